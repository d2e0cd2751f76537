"""Claims: resources that only one run at a time may use, on this machine and for this user, and their owners.

A claim is a file that its process has locked (flock) and that names its owner. The kernel releases the lock when the process
ends, however it ends, so a leftover file blocks no other run. The files are in one folder: ``$ORCHESTRATOR_CLAIMS_DIR`` if
it is set, else ``orchestrator-claims-<uid>`` in the folder for temporary files (not ``$XDG_RUNTIME_DIR``, which a service
does not have: it would not see the claims of its user's shell). The folder must be on a local disk and belong to the user.

A cleaner may remove the files. Therefore each claim also has a reservation, which cannot be removed (``storage.reservation``),
and a thread touches the files, so that they never are old, and restores them.

A process locks the folder while it claims. Claims are therefore made one after the other: of two runs that want the same
resources one gets all of them, a file that is only being read does not count as claimed, and leftover files can be removed.

Resources are strings in a normal form; the caller normalises them. This module opens no socket or store, and knows only that
socket addresses overlap: ``http://`` and ``tcp://`` are both TCP, ``0.0.0.0`` is every IPv4 address, ``::`` every address.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from orchestrator_adapter.primitives.errors import OrchestratorError, describe
from orchestrator_adapter.primitives.event_log import EventLog
from orchestrator_adapter.primitives.forked_children import belongs_here
from orchestrator_adapter.storage.locks import lock, open_for_lock, unlock
from orchestrator_adapter.storage.reservation import Taken, reserve

logger = logging.getLogger("orchestrator_adapter.claims")

FOLDER_VARIABLE = "ORCHESTRATOR_CLAIMS_DIR"

_FOLDER_TIMEOUT_S = 10.0  # a claim takes a millisecond; a process that is stopped (SIGSTOP) must not block us for ever
_FOLDER_POLL_S = 0.01
_CHECK_EVERY = timedelta(minutes=1)  # cleaners remove files that are days old
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


def with_addresses(resources: Sequence[str]) -> tuple[str, ...]:
    """``resources`` with the names of hosts replaced by addresses: as a listener on a name does it, IPv4 first.

    A name that has no address stays. Asking a name server may block for long: call this in a thread.
    """
    return tuple(_with_address(resource) for resource in resources)


def _with_address(resource: str) -> str:
    with suppress(OSError, ValueError):  # ValueError: not a URL, or a name that IDNA cannot encode
        parts = urlsplit(resource)
        if parts.scheme in _TRANSPORTS and parts.hostname and parts.port:
            found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
            host = str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
            return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port}"
    return resource


@contextmanager
def claim(resources: Sequence[str], owner: Owner, *, check_every: timedelta = _CHECK_EVERY) -> Iterator[None]:
    """Within this context ``owner`` has all ``resources``; no other claim for one of them succeeds, in any process.

    Child processes do not inherit them. A thread touches the claims' files ``check_every`` and restores them if they were
    removed. Raises ``Claimed`` if one of them is taken, and then claims none of them, and ``OSError`` if the folder cannot be
    used. May block while other processes claim.
    """
    if not resources:
        yield
        return
    folder = _folder()
    guard = _FileGuard(folder, _claim_all(folder, resources, owner), check_every.total_seconds())
    try:
        yield
    finally:
        guard.release()


@dataclass(frozen=True, slots=True)
class _ClaimFile:
    """The content of a claim's file."""

    resource: str
    owner: Owner


@dataclass(slots=True)
class _Held:
    """A claim of this process: its locked file, and its reservation, which lasts if the file is removed."""

    content: _ClaimFile
    path: Path
    file: int
    reservation: socket.socket | None
    fault: str = ""

    @property
    def is_in_place(self) -> bool:
        """Whether the locked file is the one that other processes find."""
        try:
            return os.path.samestat(os.fstat(self.file), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file, then release the lock: a file without a lock is always a leftover of a process that died."""
        if belongs_here(self.file):  # it does not in a forked child
            with suppress(OSError):
                if self.is_in_place:
                    self.path.unlink()
            unlock(self.file)
            if self.reservation is not None:
                self.reservation.close()


def _claim_all(folder: Path, resources: Sequence[str], owner: Owner) -> list[_Held]:
    folder_lock = _lock_folder(folder)
    try:
        paths = {resource: folder / _file_name(resource) for resource in resources}
        if taken := _taken(paths, list(_existing_claims(folder))):
            raise Claimed(_message(taken))
        held: list[_Held] = []
        try:
            for resource, path in paths.items():
                held.append(_claim_one(folder, _ClaimFile(resource, owner), path))
        except BaseException:
            for each in held:
                each.release()
            raise
        return held
    finally:
        unlock(folder_lock)


def _claim_one(folder: Path, content: _ClaimFile, path: Path) -> _Held:
    """Claim a resource that no file claims. Only with the folder locked."""
    reservation = reserve(f"{os.path.realpath(folder)}\0{content.resource}")
    if isinstance(reservation, Taken):
        process = "another process" if reservation.pid is None else f"process {reservation.pid}"
        raise Claimed(f"{content.resource} is in use by {process}, whose file {path} was removed")
    try:
        return _Held(content, path, _new_file(content, path), reservation)
    except BaseException:
        if reservation is not None:
            reservation.close()
        raise


class _FileGuard:
    """Keeps the files of this process's claims in place until ``release``, on a thread of its own.

    A cleaner of temporary files removes what is old: a touched file never is. A file that was removed nevertheless is restored.
    """

    def __init__(self, folder: Path, claims: list[_Held], check_every_s: float) -> None:
        self._folder = folder
        self._claims = claims
        self._check_every_s = check_every_s
        self._released = threading.Event()
        self._checking = threading.Lock()
        self._log = EventLog(logger)
        threading.Thread(target=self._run, name="claims", daemon=True).start()

    def release(self) -> None:
        """Release every claim. In a forked child, where no thread runs, this does nothing."""
        self._released.set()
        if any(belongs_here(each.file) for each in self._claims):
            with self._checking:
                for each in self._claims:
                    each.release()

    def _run(self) -> None:
        while not self._released.wait(self._check_every_s):
            with self._checking:
                if not self._released.is_set():
                    for each in self._claims:
                        self._check(each)

    def _check(self, held: _Held) -> None:
        fault = ""
        try:
            os.utime(held.file)
            if not held.is_in_place:
                fault = self._restore(held)
        except OSError as error:
            fault = describe(error)
        if fault and fault != held.fault:
            self._log("claim_lost", level=logging.ERROR, resource=held.content.resource, cause=fault)
        held.fault = fault

    def _restore(self, held: _Held) -> str:
        """Make the file again. Returns why that is not possible; an empty text if it is."""
        folder_lock = _lock_folder(self._folder)
        try:
            for path, its in _existing_claims(self._folder):  # removes leftovers
                if path == held.path:
                    return f"its file was removed, and is now that of {its.owner if its else _UNKNOWN_OWNER}"
            restored = _new_file(held.content, held.path)
        finally:
            unlock(folder_lock)
        unlock(held.file)
        held.file = restored
        self._log("claim_restored", level=logging.WARNING, resource=held.content.resource, file=str(held.path))
        return ""


def _folder() -> Path:
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(tempfile.gettempdir()) / f"orchestrator-claims-{os.geteuid()}"


def _lock_folder(folder: Path) -> int:
    """Lock the folder and return it, open: until it is closed, no other process claims."""
    opened = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = open_for_lock(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if why := _not_private(os.fstat(opened)):
            raise PermissionError(why)
        deadline = time.monotonic() + _FOLDER_TIMEOUT_S
        while not lock(opened):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another process has locked it for {_FOLDER_TIMEOUT_S:g} s")
            time.sleep(_FOLDER_POLL_S)
    except OSError as error:
        if opened >= 0:
            unlock(opened)
        why = "it is a symbolic link" if folder.is_symlink() else str(error)
        raise OSError(
            f"the folder of claims, {folder}, cannot be used: {why} ({FOLDER_VARIABLE} sets another)"
        ) from error
    return opened


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
            file = open_for_lock(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # released since
        try:
            if lock(file):
                path.unlink(missing_ok=True)
            else:
                yield path, _read(file)
        finally:
            unlock(file)


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


def _new_file(content: _ClaimFile, path: Path) -> int:
    """The locked file of a claim. Only with the folder locked, and if there is no such file."""
    file = open_for_lock(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    try:
        _write(file, content)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        unlock(file)
        raise
    return file


def _write(file: int, content: _ClaimFile) -> None:
    if not lock(file):  # it is new, and the folder is locked
        raise OSError("a claim's file is locked by a process that has not locked the folder")
    with os.fdopen(file, "wb", closefd=False) as out:
        out.write(json.dumps(asdict(content)).encode())


def _read(file: int) -> _ClaimFile | None:
    try:
        return msgspec.convert(json.loads(os.pread(file, _FILE_BYTES, 0)), _ClaimFile)
    except ValueError:  # torn, or written by another program
        return None
