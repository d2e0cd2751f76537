"""Claims: what only one run at a time may have, on this machine and for this user, and who has it.

A claim is a file, locked (flock) by the process that made it and telling whose it is. The kernel lets go of the lock when
that process ends, however it ends, so a file that was left behind is in nobody's way. The files are in one folder:
``$ORCHESTRATOR_CLAIMS_DIR`` where that is set, else ``orchestrator-claims-<uid>`` in the folder for temporary files (not
``$XDG_RUNTIME_DIR``: a service has none, and would not meet its user's shell). It has to be on a local disk, and is the
user's own.

Whoever claims locks the folder meanwhile. So claims are made one after the other: of two that want the same things one
gets them all, what is being looked at is not taken for claimed, and a file may be removed.

Resources are strings that the caller has brought into one form. Nothing here opens a socket or a store, or knows what they
are, but for one thing: sockets exclude one another although their addresses differ (``http://`` and ``tcp://`` are both
TCP, ``0.0.0.0`` is every IPv4 address and ``::`` every address there is).
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

_TURN_LIMIT_S = 10.0  # others need a millisecond; one that was stopped (SIGSTOP) just then may not stop us for good
_TURN_PAUSE_S = 0.01
_COMMAND_LENGTH = 120  # characters; it is to be recognised, not to be run
_NAME_LENGTH = 80  # characters of a file's name that are for people
_FILE_BYTES = 65_536
_OTHERS_MAY_WRITE = 0o022
_SOMEBODY = "somebody (the claim's file cannot be read)"
_TRANSPORTS = {"udp": "udp", "tcp": "tcp", "http": "tcp"}


class Claimed(OrchestratorError, OSError):
    """Somebody else has what was claimed; the message names every such resource, and its owner."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has a claim.

    Attributes:
        pipeline: The name of its pipeline.
        pid: Its process id.
        host: The machine (or container) that counts so.
        started: Since when, UTC, ISO 8601.
        command: How the process was started, shortened.
        run: What the run is called elsewhere, as it is to be read: ``flow run 'brave-otter' (0198…)``; empty if nowhere.
    """

    pipeline: str
    pid: int
    host: str
    started: str
    command: str
    run: str = ""

    @classmethod
    def this_process(cls, pipeline: str, *, run: str = "") -> Owner:
        """This process, from now on, for a run of ``pipeline``."""
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
    """While inside, ``owner`` has all the ``resources``, and nobody else can claim one of them, in this process or another.

    No child process inherits them. Raises ``Claimed`` if one of them is taken, and then has none, and ``OSError`` if the
    folder cannot be used. May block for as long as others are just claiming.
    """
    held = _take(resources, owner) if resources else {}
    try:
        yield
    finally:
        _let_go(held)


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a claim's file says."""

    resource: str
    owner: Owner


# Open files that are or may be locked. A child that was forked, and runs no other program, would keep them locked.
_locked_here: set[int] = set()


def _forget_in_child() -> None:
    for file in _locked_here:
        os.close(file)  # the child's; the lock is the parent's still
    _locked_here.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _take(resources: Sequence[str], owner: Owner) -> dict[int, Path]:
    """The locked files, with their paths."""
    folder = _folder()
    turn = _turn(folder)
    try:
        paths = {resource: folder / _file_name(resource) for resource in resources}
        if taken := _taken(paths, list(_held_in(folder))):
            raise Claimed(_refusal(taken))
        held: dict[int, Path] = {}
        try:
            for resource, path in paths.items():
                file = _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                held[file] = path
                _write(file, _Claim(resource, owner))
        except BaseException:
            _let_go(held)
            raise
        return held
    finally:
        _close(turn)


def _let_go(held: dict[int, Path]) -> None:
    """First the name, then the lock: what has the name and no lock was left by somebody who died."""
    for file, path in held.items():
        if file in _locked_here:  # in a forked child it is not
            with suppress(OSError):
                path.unlink()
            _close(file)


def _folder() -> Path:
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(tempfile.gettempdir()) / f"orchestrator-claims-{os.geteuid()}"


def _turn(folder: Path) -> int:
    """The open and locked folder: until it is closed, nobody else claims."""
    turn = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        turn = _opened(folder, os.O_RDONLY | os.O_DIRECTORY)
        if why := _not_ours(os.fstat(turn)):
            raise PermissionError(why)
        deadline = time.monotonic() + _TURN_LIMIT_S
        while not _lock(turn):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another process has kept it locked for {_TURN_LIMIT_S:g} s")
            time.sleep(_TURN_PAUSE_S)
    except OSError as error:
        if turn >= 0:
            _close(turn)
        why = "it is a symbolic link" if folder.is_symlink() else str(error)
        raise OSError(
            f"the folder of claims, {folder}, cannot be used: {why} ({FOLDER_VARIABLE} sets another)"
        ) from error
    return turn


def _not_ours(folder: os.stat_result) -> str | None:
    if folder.st_uid != os.geteuid():
        return f"it belongs to user {folder.st_uid}, and this is user {os.geteuid()}"
    if folder.st_mode & _OTHERS_MAY_WRITE:
        return f"others may write to it (mode {folder.st_mode & 0o7777:04o}; 0700 will do)"
    return None


def _held_in(folder: Path) -> Iterator[tuple[Path, _Claim | None]]:
    """Every claim there is, ``None`` where its file cannot be read. What the dead have left is removed."""
    for path in sorted(folder.glob("*.claim")):
        try:
            file = _opened(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # let go since
        try:
            if _lock(file):
                path.unlink(missing_ok=True)
            else:
                yield path, _read(file)
        finally:
            _close(file)


def _taken(wanted: dict[str, Path], held: Sequence[tuple[Path, _Claim | None]]) -> list[tuple[str, str, Owner | None]]:
    """What is wanted, as what it is taken, and whose that is (``None``: nobody knows), in the order of ``wanted``."""
    found: list[tuple[str, str, Owner | None]] = []
    for resource, path in wanted.items():
        against = [
            (resource, its.resource if its else resource, its.owner if its else None)
            for other, its in held
            if other == path or (its and _exclude_each_other(resource, its.resource))
        ]
        itself = [each for each in against if each[1] == resource]
        found += itself or against  # itself says more than what includes it, or is a part of it
    return found


def _exclude_each_other(one: str, other: str) -> bool:
    ours, theirs = _address(one), _address(other)
    if ours is None or theirs is None or ours[:2] != theirs[:2]:
        return False
    return ours[2] == theirs[2] or _includes(ours[2], theirs[2]) or _includes(theirs[2], ours[2])


def _includes(wildcard: IPv4Address | IPv6Address, address: IPv4Address | IPv6Address) -> bool:
    return wildcard.is_unspecified and wildcard.version >= address.version


def _address(resource: str) -> tuple[str, int, IPv4Address | IPv6Address] | None:
    """Transport, port and address, if the resource is a socket and its host an address."""
    try:
        parts = urlsplit(resource)
        if parts.scheme in _TRANSPORTS and parts.hostname and parts.port:
            return _TRANSPORTS[parts.scheme], parts.port, ip_address(parts.hostname)
    except ValueError:  # no address, or no URL at all: it is then only what it is called
        pass
    return None


def _refusal(taken: Sequence[tuple[str, str, Owner | None]]) -> str:
    whose: dict[Owner | None, list[str]] = {}
    for wanted, held, owner in taken:
        whose.setdefault(owner, []).append(wanted if wanted == held else f"{wanted} (as {held})")
    return "; ".join(
        f"{_listed(names)} {'is' if len(names) == 1 else 'are'} in use by {owner or _SOMEBODY}"
        for owner, names in whose.items()
    )


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _command(arguments: Sequence[str]) -> str:
    """On one line, and no longer than it takes to recognise it."""
    words = " ".join([*(Path(program).name for program in arguments[:1]), *arguments[1:]]).split()
    line = " ".join(words)
    return line if len(line) <= _COMMAND_LENGTH else f"{line[: _COMMAND_LENGTH - 1]}…"


def _file_name(resource: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", resource)[-_NAME_LENGTH:].strip("-.")
    return f"{readable}-{hashlib.sha256(os.fsencode(resource)).hexdigest()[:16]}.claim"


def _write(file: int, what: _Claim) -> None:
    if not _lock(file):  # it is new, and nobody else may look at it now
        raise OSError("a claim's file is locked by a process that has not waited for its turn")
    with os.fdopen(file, "wb", closefd=False) as out:
        out.write(json.dumps(asdict(what)).encode())


def _read(file: int) -> _Claim | None:
    try:
        return msgspec.convert(json.loads(os.pread(file, _FILE_BYTES, 0)), _Claim)
    except ValueError:  # torn, or none of ours
        return None


def _opened(path: Path, flags: int) -> int:
    """Not inherited by other programs (PEP 446), nor by forked children."""
    file = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    _locked_here.add(file)
    return file


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close(file: int) -> None:
    """The lock goes with it, although a child that is just being made may have a copy."""
    _locked_here.discard(file)
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
