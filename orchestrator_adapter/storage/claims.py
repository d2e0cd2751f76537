"""Claims: resources that only one run at a time may use, on this machine and for this user, and their owners.

A claim is a file that its process has locked (flock) and that names its owner. The kernel releases the lock when the process
ends, however it ends, so a leftover file blocks no other run. The files are in one folder: ``$ORCHESTRATOR_CLAIMS_DIR`` if
it is set, else ``orchestrator-claims-<uid>`` in the folder for temporary files (not ``$XDG_RUNTIME_DIR``, which a service
does not have: it would not see the claims of its user's shell). The folder must be on a local disk and belong to the user.

A process locks the folder while it claims. Claims are therefore made one after the other: of two runs that want the same
resources one gets all of them, a file that is only being read does not count as claimed, and leftover files can be removed.

Resources are strings in a normal form; the caller normalises them. This module opens no socket or store, and knows only that
socket addresses overlap: ``http://`` and ``tcp://`` are both TCP, ``0.0.0.0`` is every IPv4 address, ``::`` every address.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from orchestrator_adapter.primitives.errors import OrchestratorError

FOLDER_VARIABLE = "ORCHESTRATOR_CLAIMS_DIR"

_FOLDER_TIMEOUT_S = 10.0  # a claim takes a millisecond; a process that is stopped (SIGSTOP) must not block us for ever
_FOLDER_POLL_S = 0.01
_COMMAND_LENGTH = 120  # characters; enough to recognise the command
_NAME_LENGTH = 80  # characters of a file name that are for people
_FILE_BYTES = 65_536
_OTHERS_MAY_WRITE = 0o022
_UNKNOWN_OWNER = "an unknown owner (the claim's file cannot be read)"
_TRANSPORTS = {"udp": "udp", "tcp": "tcp", "http": "tcp"}


class Claimed(OrchestratorError, OSError):
    """Another run has a resource that was claimed; the message names every such resource and its owner."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a claim.

    Attributes:
        pipeline: The name of its pipeline.
        pid: Its process id.
        host: The machine (or container) of that process id.
        started: The time of the claim, UTC, ISO 8601.
        command: The command line of the process, shortened.
        run: The name of the run elsewhere, for people: ``flow run 'brave-otter' (0198…)``; empty if it has none.
    """

    pipeline: str
    pid: int
    host: str
    started: str
    command: str
    run: str = ""

    @classmethod
    def this_process(cls, pipeline: str, *, run: str = "") -> Owner:
        """This process, for a run of ``pipeline`` that starts now."""
        return cls(
            pipeline=pipeline,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            command=_command(sys.orig_argv),
            run=" ".join(run.split()),
        )

    def __str__(self) -> str:
        host = "" if self.host == socket.gethostname() else f" on {self.host}"
        run = f", {self.run}" if self.run else ""
        return f"pipeline {self.pipeline!r}, pid {self.pid}{host}{run}, since {self.started}: {self.command}"


@contextmanager
def claim(resources: Sequence[str], owner: Owner) -> Iterator[None]:
    """Within this context ``owner`` has all ``resources``; no other claim for one of them succeeds, in any process.

    Child processes do not inherit them. Raises ``Claimed`` if one of them is taken, and then claims none of them, and
    ``OSError`` if the folder cannot be used. May block while other processes claim.
    """
    claimed = _claim_all(resources, owner) if resources else {}
    try:
        yield
    finally:
        _release(claimed)


@dataclass(frozen=True, slots=True)
class _ClaimFile:
    """The content of a claim's file."""

    resource: str
    owner: Owner


# Open files that may be locked. A forked child that runs no other program would keep them locked.
_locked_files: set[int] = set()


def _close_in_child() -> None:
    for file in _locked_files:
        os.close(file)  # the child's copy only; the parent keeps the lock
    _locked_files.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _claim_all(resources: Sequence[str], owner: Owner) -> dict[int, Path]:
    """The locked files, with their paths."""
    folder = _folder()
    lock = _lock_folder(folder)
    try:
        paths = {resource: folder / _file_name(resource) for resource in resources}
        if taken := _taken(paths, list(_existing_claims(folder))):
            raise Claimed(_message(taken))
        claimed: dict[int, Path] = {}
        try:
            for resource, path in paths.items():
                file = _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                claimed[file] = path
                _write(file, _ClaimFile(resource, owner))
        except BaseException:
            _release(claimed)
            raise
        return claimed
    finally:
        _close(lock)


def _release(claimed: dict[int, Path]) -> None:
    """Remove the file, then release the lock: a file without a lock is always a leftover of a process that died."""
    for file, path in claimed.items():
        if file in _locked_files:  # it is not in a forked child
            with suppress(OSError):
                path.unlink()
            _close(file)


def _folder() -> Path:
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(tempfile.gettempdir()) / f"orchestrator-claims-{os.geteuid()}"


def _lock_folder(folder: Path) -> int:
    """Lock the folder and return it, open: until it is closed, no other process claims."""
    lock = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _opened(folder, os.O_RDONLY | os.O_DIRECTORY)
        if why := _not_private(os.fstat(lock)):
            raise PermissionError(why)
        deadline = time.monotonic() + _FOLDER_TIMEOUT_S
        while not _lock(lock):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another process has locked it for {_FOLDER_TIMEOUT_S:g} s")
            time.sleep(_FOLDER_POLL_S)
    except OSError as error:
        if lock >= 0:
            _close(lock)
        why = "it is a symbolic link" if folder.is_symlink() else str(error)
        raise OSError(
            f"the folder of claims, {folder}, cannot be used: {why} ({FOLDER_VARIABLE} sets another)"
        ) from error
    return lock


def _not_private(folder: os.stat_result) -> str | None:
    if folder.st_uid != os.geteuid():
        return f"it belongs to user {folder.st_uid}, and this is user {os.geteuid()}"
    if folder.st_mode & _OTHERS_MAY_WRITE:
        return f"others may write to it (mode {folder.st_mode & 0o7777:04o}; 0700 will do)"
    return None


def _existing_claims(folder: Path) -> Iterator[tuple[Path, _ClaimFile | None]]:
    """Every claim; ``None`` if its file cannot be read. Removes the leftovers of processes that died."""
    for path in sorted(folder.glob("*.claim")):
        try:
            file = _opened(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # released since
        try:
            if _lock(file):
                path.unlink(missing_ok=True)
            else:
                yield path, _read(file)
        finally:
            _close(file)


def _taken(
    wanted: dict[str, Path], claims: Sequence[tuple[Path, _ClaimFile | None]]
) -> list[tuple[str, str, Owner | None]]:
    """The wanted resources that are taken, each with the claimed resource and its owner (``None``: unknown), in order."""
    found: list[tuple[str, str, Owner | None]] = []
    for resource, path in wanted.items():
        against = [
            (resource, its.resource if its else resource, its.owner if its else None)
            for other, its in claims
            if other == path or (its and _exclude_each_other(resource, its.resource))
        ]
        itself = [each for each in against if each[1] == resource]
        found += itself or against  # an exact match says more than an overlap
    return found


def _exclude_each_other(one: str, other: str) -> bool:
    ours, theirs = _address(one), _address(other)
    if ours is None or theirs is None or ours[:2] != theirs[:2]:
        return False
    return ours[2] == theirs[2] or _includes(ours[2], theirs[2]) or _includes(theirs[2], ours[2])


def _includes(wildcard: IPv4Address | IPv6Address, address: IPv4Address | IPv6Address) -> bool:
    return wildcard.is_unspecified and wildcard.version >= address.version


def _address(resource: str) -> tuple[str, int, IPv4Address | IPv6Address] | None:
    """Transport, port and address of a socket whose host is an address."""
    try:
        parts = urlsplit(resource)
        if parts.scheme in _TRANSPORTS and parts.hostname and parts.port:
            return _TRANSPORTS[parts.scheme], parts.port, ip_address(parts.hostname)
    except ValueError:  # not an address, or not a URL: only an equal string excludes it
        pass
    return None


def _message(taken: Sequence[tuple[str, str, Owner | None]]) -> str:
    by_owner: dict[Owner | None, list[str]] = {}
    for wanted, claimed, owner in taken:
        by_owner.setdefault(owner, []).append(wanted if wanted == claimed else f"{wanted} (as {claimed})")
    return "; ".join(
        f"{_listed(names)} {'is' if len(names) == 1 else 'are'} in use by {owner or _UNKNOWN_OWNER}"
        for owner, names in by_owner.items()
    )


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _command(arguments: Sequence[str]) -> str:
    """The command line on one line, shortened."""
    words = " ".join([*(Path(program).name for program in arguments[:1]), *arguments[1:]]).split()
    line = " ".join(words)
    return line if len(line) <= _COMMAND_LENGTH else f"{line[: _COMMAND_LENGTH - 1]}…"


def _file_name(resource: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", resource)[-_NAME_LENGTH:].strip("-.")
    return f"{readable}-{hashlib.sha256(os.fsencode(resource)).hexdigest()[:16]}.claim"


def _write(file: int, content: _ClaimFile) -> None:
    if not _lock(file):  # it is new, and the folder is locked
        raise OSError("a claim's file is locked by a process that has not locked the folder")
    with os.fdopen(file, "wb", closefd=False) as out:
        out.write(json.dumps(asdict(content)).encode())


def _read(file: int) -> _ClaimFile | None:
    try:
        return msgspec.convert(json.loads(os.pread(file, _FILE_BYTES, 0)), _ClaimFile)
    except ValueError:  # torn, or written by another program
        return None


def _opened(path: Path, flags: int) -> int:
    """Open a file that neither other programs (PEP 446) nor forked children inherit."""
    file = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    _locked_files.add(file)
    return file


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close(file: int) -> None:
    """Release the lock, also if a child that is just being forked has a copy of the file."""
    _locked_files.discard(file)
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
