"""Finished windows of screenings in a folder, one file each, so that an interrupted run continues where it ended.

    20260310T030000Z_20260310T060000Z_<catalogue>_<settings>.screening

A file is complete: it is written under another name, fsynced, and renamed. It begins with a digest of its content, so that
damage is noticed; the content is in numpy's format ``npz``. Its name has digests of the catalogue and of the settings. So
several screenings can share a folder, and never use each other's windows. A run with another start or horizon uses the
windows that both have. It knows nothing of worker processes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from orchestrator_adapter import OrchestratorError, make_directory, sync_directory
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog.columns import ElementColumns
from sda_ops.screening.approaches import Screening
from sda_ops.screening.workers.encoding import arrays_of, digest_of, screening_of

_FORMAT = 1
"""Change it with the meaning of a file's content: files of another format are not used."""
_DIGITS = 16
_READABLE = "%Y-%m-%dT%H:%M:%S"
_SUFFIX = ".screening"
_PARTS = 4
_DIGEST_BYTES = 16

logger = logging.getLogger(__name__)


class Window(NamedTuple):
    """A half-open window ``[start_ns, end_ns)``, UTC."""

    start_ns: int
    end_ns: int

    def __str__(self) -> str:
        return f"{_utc(self.start_ns, _READABLE)} to {_utc(self.end_ns, _READABLE)}"


class CheckpointError(OrchestratorError, OSError):
    """The folder cannot be read or written: a full disk, or missing permission. Files that are complete remain usable."""


class Checkpoints:
    """The finished windows of one screening: of one catalogue with one miss distance and one set of options. Blocking."""

    def __init__(self, folder: Path, columns: ElementColumns, miss_distance_m: float, options: object) -> None:
        """Opens nothing. ``options`` is a dataclass of numbers and texts; every field counts."""
        settings = msgspec.json.encode((_FORMAT, float(miss_distance_m), options), order="deterministic")
        self._folder = folder
        self._catalog = digest_of(columns.arrays())[:_DIGITS]
        self._settings = hashlib.blake2b(settings).hexdigest()[:_DIGITS]

    def finished(self, windows: Sequence[Window]) -> dict[Window, Screening]:
        """Those of ``windows`` that are finished. Logs one line each about files of other screenings and damaged files.

        Raises `CheckpointError` if the folder cannot be read.
        """
        try:
            names = {path.name for path in self._folder.iterdir()} if self._folder.exists() else set()
        except OSError as error:
            raise CheckpointError(f"checkpoints {self._folder}: {error.strerror or error}") from error
        self._log_other_screenings(names)
        found = {window: self._read(window) for window in windows if self._name(window) in names}
        return {window: screening for window, screening in found.items() if screening is not None}

    def store(self, window: Window, screening: Screening) -> None:
        """Write the file of ``window``. It is on the disk when this returns. Raises `CheckpointError`."""
        path = self._folder / self._name(window)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        content = _encoded(screening)
        try:
            make_directory(self._folder)
            try:
                with draft.open("wb") as file:
                    file.write(_digest(content))
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            sync_directory(self._folder)
        except OSError as error:
            raise CheckpointError(
                f"checkpoints {self._folder}: the window {window} could not be written: {error.strerror or error}; "
                "the windows before it are kept"
            ) from error

    def _read(self, window: Window) -> Screening | None:
        """The content of the file; ``None`` if it is damaged."""
        path = self._folder / self._name(window)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"checkpoints {path}: {error.strerror or error}") from error
        try:
            return _decoded(data, window)
        except ValueError as error:
            logger.warning("checkpoints %s: its window is screened again: %s", path, error)
            return None

    def _log_other_screenings(self, names: set[str]) -> None:
        parts = [name.removesuffix(_SUFFIX).split("_") for name in names if name.endswith(_SUFFIX)]
        keys = [(part[2], part[3]) for part in parts if len(part) == _PARTS]
        catalogs = sum(catalog != self._catalog for catalog, _ in keys)
        settings = sum(catalog == self._catalog and key != self._settings for catalog, key in keys)
        why = [
            f"{count} of another {what}"
            for count, what in ((catalogs, "catalogue"), (settings, "miss distance or other options"))
            if count
        ]
        if why:
            logger.warning("checkpoints %s: windows that are not used: %s", self._folder, ", ".join(why))

    def _name(self, window: Window) -> str:
        return f"{_utc(window.start_ns)}_{_utc(window.end_ns)}_{self._catalog}_{self._settings}{_SUFFIX}"


def _encoded(screening: Screening) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays_of(screening))
    return content.getvalue()


def _decoded(data: bytes, window: Window) -> Screening:
    """The content of a file. Raises ``ValueError`` if it is damaged or of another window."""
    if data[:_DIGEST_BYTES] != _digest(data[_DIGEST_BYTES:]):
        raise ValueError("the file is damaged")
    with np.load(io.BytesIO(data[_DIGEST_BYTES:]), allow_pickle=False) as arrays:
        screening = screening_of(dict(arrays))
    content = Window(screening.start_ns, screening.end_ns)
    if content != window:
        raise ValueError(f"the file has the window {content}")
    return screening


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _utc(timestamp_ns: int, form: str = "%Y%m%dT%H%M%S") -> str:
    """``20260310T030000Z``; with a fraction if the time is not a whole second."""
    seconds, nanoseconds = divmod(timestamp_ns, NS_PER_S)
    fraction = f".{nanoseconds:09}" if nanoseconds else ""
    return f"{datetime.fromtimestamp(seconds, UTC):{form}}{fraction}Z"
