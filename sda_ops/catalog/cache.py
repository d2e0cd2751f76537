"""The last good content of a catalogue's URL, kept on disk, so that a restart does not depend on the server.

One file, replaced as a whole: a line of JSON, then the content. It is read only for the URL it was fetched from. That URL
may have credentials, so the file has a salted hash of it, and for people the URL without user, password and query. Two runs
may share a folder: the later write wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator_adapter import make_directory, sync_directory
from sda_ops.catalog.fetch import CatalogUrl

_FORMAT = 1
_MAX_HEADER_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class CachedContent:
    """Content of a URL.

    Attributes:
        body: The content.
        validators: The headers of a request for a newer one.
        confirmed_ns: When the server last sent it, or answered that it has not changed, UTC nanoseconds.
    """

    body: bytes
    validators: Mapping[str, str]
    confirmed_ns: int


class CacheError(Exception):
    """The file cannot be used; the message says why, with its path."""


def cache_path(directory: Path) -> Path:
    """The file in this folder."""
    return directory / "catalog.cache"


def read_cache(directory: Path, source: CatalogUrl) -> CachedContent | None:
    """The content that was kept for this URL; ``None`` if there is no file, or it is of another URL. Blocking.

    Raises `CacheError` for a file that cannot be read or is damaged.
    """
    path = cache_path(directory)
    try:
        header_line, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{path}: {error.strerror or error}") from error
    try:
        header: dict[str, Any] = json.loads(header_line[:_MAX_HEADER_BYTES])
        if header["format"] != _FORMAT or header["sha256"] != hashlib.sha256(body).hexdigest():
            raise CacheError(f"{path}: expected the content that its first line names; it is damaged")
        if header["url_hash"] != _hash(source.url, bytes.fromhex(header["salt"])):
            return None
        validators = {str(name): str(value) for name, value in header["validators"].items()}
        return CachedContent(body, validators, int(header["confirmed_ns"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path}: expected a line of JSON first; it is damaged") from error


def write_cache(directory: Path, source: CatalogUrl, content: CachedContent) -> None:
    """Replace the file. It is on the disk when this returns; if it fails, the old file is unchanged. Blocking.

    Raises `CacheError`.
    """
    path = cache_path(directory)
    salt = secrets.token_bytes(16)
    header = {
        "format": _FORMAT,
        "url": str(source),
        "url_hash": _hash(source.url, salt),
        "salt": salt.hex(),
        "confirmed_ns": content.confirmed_ns,
        "validators": dict(content.validators),
        "sha256": hashlib.sha256(content.body).hexdigest(),
    }
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        make_directory(directory)
        try:
            with draft.open("wb") as file:
                draft.chmod(0o600)
                file.write(json.dumps(header).encode() + b"\n" + content.body)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_directory(directory)
    except OSError as error:
        raise CacheError(f"{path}: {error.strerror or error}") from error


def _hash(url: str, salt: bytes) -> str:
    """A hash from which a password or token in the URL cannot be guessed quickly (RFC 7914): 50 ms."""
    return hashlib.scrypt(url.encode(), salt=salt, n=2**14, r=8, p=1).hex()
