"""Claims, within one process and between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator_adapter.primitives import forked_children
from orchestrator_adapter.storage import claims, reservation
from orchestrator_adapter.storage.claims import FOLDER_VARIABLE, Claimed, Owner, claim, with_addresses
from tests.helpers.log_lines import event_of
from tests.helpers.running import eventually
from tests.helpers.support import ROOT

HERE = socket.gethostname()
OTTER = Owner(
    "sda-ingest", 4711, HERE, "2026-11-25T02:00:00Z", "python -m flows ingest", run="flow run 'brave-otter' (0198)"
)
HARE = Owner("sda-fusion", 4712, HERE, "2026-11-25T03:00:00Z", "python -m flows fusion")
RADAR = "udp://127.0.0.1:9201"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The claims folder of this test."""
    path = tmp_path / "claims"
    monkeypatch.setenv(FOLDER_VARIABLE, str(path))
    return path


def conflict(*resources: str) -> str:
    """Why ``resources`` cannot be claimed; empty if they can."""
    try:
        with claim(resources, HARE):
            return ""
    except Claimed as error:
        return str(error)


def test_a_claimed_resource_is_rejected_with_its_full_owner() -> None:
    """The message has pipeline, process, run, start and command on one line, also within one process."""
    with claim([RADAR], OTTER):
        assert conflict(RADAR) == (
            "udp://127.0.0.1:9201 is in use by pipeline 'sda-ingest', pid 4711, flow run 'brave-otter' (0198), "
            "since 2026-11-25T02:00:00Z: python -m flows ingest"
        )
        assert issubclass(Claimed, OSError)
    with claim([RADAR], Owner("p", 1, "elsewhere", "then", "c")):
        assert conflict(RADAR).endswith(" is in use by pipeline 'p', pid 1 on elsewhere, since then: c")


def test_every_taken_resource_is_named_and_no_free_one_is_claimed() -> None:
    """Three of four resources have two owners: the message names three, in the requested order; the fourth stays free."""
    with claim(["file:///a", RADAR], OTTER), claim(["file:///b"], HARE):
        assert conflict("file:///free", RADAR, "file:///b", "file:///a") == (
            f"{RADAR} and file:///a are in use by {OTTER}; file:///b is in use by {HARE}"
        )
        assert not conflict("file:///free")


def test_the_end_of_a_claim_frees_its_resources_and_removes_its_files(folder: Path) -> None:
    """Also when the body raises."""
    with suppress(ZeroDivisionError), claim([RADAR, "file:///a"], OTTER):
        assert len(list(folder.iterdir())) == 2
        raise ZeroDivisionError
    assert not list(folder.iterdir())
    assert not conflict(RADAR, "file:///a")


def test_an_empty_claim_does_not_make_the_folder(folder: Path) -> None:
    """A pipeline without claims does not need the folder."""
    with claim([], OTTER):
        assert not folder.exists()


def test_one_claim_may_contain_a_resource_twice_and_overlapping_sockets() -> None:
    """Conflicts within one pipeline are not checked here: opening the sockets will show them."""
    with claim([RADAR, RADAR, "udp://0.0.0.0:9201"], OTTER):
        assert conflict(RADAR) == f"{RADAR} is in use by {OTTER}"
        assert conflict("udp://10.0.0.1:9201") == f"udp://10.0.0.1:9201 (as udp://0.0.0.0:9201) is in use by {OTTER}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("udp://0.0.0.0:9201", "udp://127.0.0.1:9201"),
        ("udp://[::]:9201", "udp://127.0.0.1:9201"),
        ("udp://[::]:9201", "udp://[::1]:9201"),
        ("udp://[::]:9201", "udp://0.0.0.0:9201"),
        ("tcp://127.0.0.1:9100", "http://127.0.0.1:9100"),
        ("tcp://0.0.0.0:9100", "http://127.0.0.1:9100"),
        ("udp://[::1]:9201", "udp://[0:0:0:0:0:0:0:1]:9201"),
    ],
)
def test_overlapping_sockets_are_rejected_in_either_order(one: str, other: str) -> None:
    """The message has both names: the requested one, and the claimed one."""
    for first, second in permutations((one, other)):
        with claim([first], OTTER):
            assert conflict(second) == f"{second} (as {first}) is in use by {OTTER}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("udp://127.0.0.1:9201", "udp://10.0.0.1:9201"),
        ("udp://127.0.0.1:9201", "udp://127.0.0.1:9202"),
        ("udp://0.0.0.0:9201", "udp://127.0.0.1:9202"),
        ("udp://0.0.0.0:9201", "udp://[::1]:9201"),
        ("udp://127.0.0.1:9201", "tcp://127.0.0.1:9201"),
        ("udp://0.0.0.0:9201", "tcp://0.0.0.0:9201"),
        ("udp://sensors:9201", "udp://radars:9201"),
        ("udp://sensors:9201", "udp://0.0.0.0:9201"),
        ("udp://0.0.0.0:99999", "udp://127.0.0.1:99999"),
        ("file:///a", "file:///a/b"),
        ("file:///a-b", "file:///a/b"),
        ("queue://0.0.0.0:1", "queue://127.0.0.1:1"),
    ],
)
def test_resources_that_do_not_overlap_can_be_claimed_together(one: str, other: str) -> None:
    """Different addresses, ports, transports, families and folders, in either order."""
    for first, second in permutations((one, other)):
        with claim([first], OTTER):
            assert not conflict(second)


@pytest.mark.parametrize(
    ("resource", "claimed"),
    [
        ("udp://localhost:9201", "udp://127.0.0.1:9201"),
        ("udp://[0:0::1]:9201", "udp://[::1]:9201"),
        ("http://0.0.0.0:9100", "http://0.0.0.0:9100"),
        ("tcp://no such host:9400", "tcp://no such host:9400"),
        ("file:///run/log", "file:///run/log"),
        ("any text", "any text"),
    ],
)
def test_names_of_hosts_become_addresses(resource: str, claimed: str) -> None:
    """A claim on a name is one on its address, IPv4 first. A name without an address, and anything else, stays."""
    assert with_addresses([resource]) == (claimed,)


def test_a_wildcard_address_names_every_conflicting_owner() -> None:
    """Two pipelines on two addresses of the port are both named."""
    with claim([RADAR], OTTER), claim(["udp://10.0.0.1:9201"], HARE):
        message = conflict("udp://0.0.0.0:9201")
    assert f"udp://0.0.0.0:9201 (as {RADAR}) is in use by {OTTER}" in message
    assert f"udp://0.0.0.0:9201 (as udp://10.0.0.1:9201) is in use by {HARE}" in message


@pytest.mark.parametrize(
    "resource", ["", "file:///" + "long" * 1_000, "file:///\udcff", "file:///a\nb", "größe", "../x"]
)
def test_any_string_is_a_resource(resource: str, folder: Path) -> None:
    """Of any length and with any characters: it has one file in the folder, and a conflict names it."""
    with claim([resource], OTTER):
        assert len(list(folder.iterdir())) == 1
        assert conflict(resource) == f"{resource} is in use by {OTTER}"


@pytest.mark.parametrize(
    "content", [b"", b'{"resource": "udp', b"[]", b'{"resource": 1, "owner": {}}', b'{"resource": "x"}', b"\xff"]
)
def test_a_claim_with_an_unreadable_file_is_still_a_claim(content: bytes, folder: Path) -> None:
    """Its resource is rejected without an owner's name; other resources are free; it ends with its process."""
    with claim([RADAR], OTTER):
        (file,) = folder.iterdir()
        file.write_bytes(content)
        assert conflict(RADAR) == f"{RADAR} is in use by an unknown owner (the claim's file cannot be read)"
        assert not conflict("udp://127.0.0.1:9202")
    file.write_bytes(content)  # the leftover of a killed process
    assert not conflict(RADAR)


def test_the_next_claim_removes_leftover_files(folder: Path) -> None:
    """Killed runs do not make the folder grow. Files that are not claims stay."""
    folder.mkdir()
    (folder / "udp-127.0.0.1-1-0123456789abcdef.claim").write_bytes(b"{}")
    (folder / "README").write_bytes(b"")
    assert not conflict(RADAR)
    assert [path.name for path in folder.iterdir()] == ["README"]


def test_of_many_simultaneous_claims_for_the_same_resources_exactly_one_succeeds() -> None:
    """Never two and never zero, in any order of the resources."""
    orders = [list(order) for order in permutations([RADAR, "file:///a", "file:///b"])]
    all_tried = threading.Barrier(len(orders))

    def attempt(order: Sequence[str]) -> bool:
        try:
            with claim(order, OTTER):
                all_tried.wait(30)
                return True
        except Claimed:
            all_tried.wait(30)
            return False

    with ThreadPoolExecutor(len(orders)) as threads:
        for _ in range(20):
            assert sum(threads.map(attempt, orders)) == 1


def test_a_failed_write_claims_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the second of three files: the error is raised, and the first resource and the folder are free."""
    write, written, before = claims._write, list[int](), set(forked_children._files)

    def full(file: int, content: claims._ClaimFile) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        write(file, content)

    monkeypatch.setattr(claims, "_write", full)
    with pytest.raises(OSError, match="No space left"), claim([RADAR, "file:///a", "file:///b"], OTTER):
        pass
    assert not list(folder.iterdir())
    assert forked_children._files == before
    monkeypatch.undo()
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert not conflict(RADAR, "file:///a")


def test_a_child_between_fork_and_exec_keeps_nothing_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a child has copies of all open files: neither the folder nor a claim stays locked by them."""
    write, copies, before = claims._write, list[int](), set(forked_children._files)

    def copying(file: int, content: claims._ClaimFile) -> None:
        write(file, content)
        copies.extend(os.dup(each) for each in forked_children._files - before)

    monkeypatch.setattr(claims, "_FOLDER_TIMEOUT_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(claims, "_write", copying)
        with claim([RADAR], OTTER):
            assert conflict(RADAR)
    assert not conflict(RADAR)
    assert len(copies) == 2
    for copy in copies:
        os.close(copy)


# Processes.

CLAIMING_PROGRAM = """
import os, subprocess, sys
from orchestrator_adapter.storage.claims import Owner, claim

claimed = claim(sys.argv[2:], Owner.this_process("other", run="run 7"))
claimed.__enter__()
if sys.argv[1] == "children":
    subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, close_fds=False)
    if os.fork() == 0:
        claimed.__exit__(None, None, None)
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
else:
    print("claimed", flush=True)
sys.stdin.read()
"""


@contextmanager
def claiming_process(kind: str, *resources: str) -> Iterator[subprocess.Popen[str]]:
    """A process that claims ``resources``, with or without children. All of them end with this block."""
    with subprocess.Popen(
        [sys.executable, "-c", CLAIMING_PROGRAM, kind, *resources],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() in {"claimed\n", "forked\n"}
        yield process
        process.kill()


def test_a_killed_process_frees_its_claims_at_once() -> None:
    """While it lives, a conflict names its pid and run. After kill -9 the next claim succeeds."""
    with claiming_process("alone", RADAR, "file:///a") as process:
        message = conflict("file:///a", RADAR)
        assert message.startswith(
            f"file:///a and {RADAR} are in use by pipeline 'other', pid {process.pid}, run 7, since "
        )
        process.kill()
        process.wait()
        assert not conflict(RADAR, "file:///a")


def test_children_neither_keep_nor_release_a_claim() -> None:
    """A forked child that exits the block does not release the claim; a child that outlives its parent does not keep it."""
    with claiming_process("children", RADAR) as process:
        assert f"pid {process.pid}" in conflict(RADAR)
        process.kill()
        process.wait()
        assert not conflict(RADAR)


# What a cleaner removes.


def claim_files(folder: Path) -> list[Path]:
    return list(folder.glob("*.claim"))


def remove_files(folder: Path) -> None:
    for path in claim_files(folder):
        path.unlink()


@pytest.mark.parametrize("remove", [remove_files, shutil.rmtree])
def test_a_claim_holds_although_its_file_was_removed(remove: Callable[[Path], object], folder: Path) -> None:
    """Also if the whole folder was removed, in this process and between processes. The message names the process."""
    with claiming_process("alone", RADAR) as process, claim(["file:///a"], OTTER):
        remove(folder)
        removed = rf"whose file {folder}/.*\.claim was removed"
        assert re.fullmatch(f"{RADAR} is in use by process {process.pid}, {removed}", conflict(RADAR))
        assert re.fullmatch(f"file:///a is in use by process {os.getpid()}, {removed}", conflict("file:///a"))
        process.kill()
        process.wait()
        assert not conflict(RADAR)
    assert not conflict("file:///a")


@pytest.mark.parametrize("remove", [remove_files, shutil.rmtree])
async def test_a_removed_file_is_restored(
    remove: Callable[[Path], object], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner is named again, the log says so, and nothing is left after the claim."""
    with claim([RADAR], OTTER, check_every=timedelta(milliseconds=5)):
        remove(folder)
        await eventually(lambda: claim_files(folder), "the file is restored")
        await eventually(lambda: caplog.messages, "the log says so")
        assert "pid 4711, flow run 'brave-otter'" in conflict(RADAR)
    assert not claim_files(folder)
    assert [(event_of(line)["event"], event_of(line)["resource"]) for line in caplog.messages] == [
        ("claim_restored", RADAR)
    ]


async def test_the_files_of_claims_are_never_old(folder: Path) -> None:
    """A file whose times are years old is touched, so that no cleaner finds it."""
    with claim([RADAR], OTTER, check_every=timedelta(milliseconds=5)):
        (path,) = claim_files(folder)
        os.utime(path, (0, 0))
        await eventually(lambda: min(path.stat().st_mtime, path.stat().st_atime) > 0, "it is touched")


async def test_without_reservations_the_loss_of_a_claim_is_logged_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another run claimed the resource after the file was removed: the log names it, and its file is not removed."""
    monkeypatch.setattr(claims, "reserve", lambda _: None)
    with claim([RADAR], OTTER, check_every=timedelta(milliseconds=200)):
        remove_files(folder)
        with claim([RADAR], HARE):
            await eventually(lambda: caplog.messages, "the loss is logged")
            lost = event_of(caplog.messages[0])
            assert (lost["event"], lost["resource"]) == ("claim_lost", RADAR)
            assert lost["cause"] == f"its file was removed, and is now that of {HARE}"
            (theirs,) = claim_files(folder)
        await eventually(lambda: len(caplog.messages) == 2, "the claim is restored when the other run has ended")
        assert event_of(caplog.messages[1])["event"] == "claim_restored"
    assert theirs not in claim_files(folder)


def test_a_reservation_of_another_user_does_not_count(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every user could take the name, which is no secret: the files decide."""
    with claim([RADAR], OTTER):
        remove_files(folder)
        monkeypatch.setattr(reservation, "_holder", lambda _: (1, os.geteuid() + 1))
        assert not conflict(RADAR)


def test_on_other_systems_there_are_no_reservations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims work with files only."""
    monkeypatch.setattr(reservation, "sys", SimpleNamespace(platform="other"))
    assert reservation.reserve("key") is None
    with claim([RADAR], OTTER):
        assert conflict(RADAR)
    assert not conflict(RADAR)


# The owner.


def test_this_process_as_owner_has_pid_host_start_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is in UTC. The command is as typed, without the interpreter's folder."""
    monkeypatch.setattr(sys, "orig_argv", ["/opt/venv/bin/python", "-m", "flows", "ingest"])
    owner = Owner.this_process("sda-ingest", run="flow run\n'x'")
    assert (owner.pid, owner.host, owner.run) == (os.getpid(), HERE, "flow run 'x'")
    assert owner.command == "python -m flows ingest"
    assert owner.started.endswith("Z")


def test_a_command_is_shortened_to_one_line_of_120_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on the command line loses its newlines and is truncated. A process without a command line has no command."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "import os\n" * 100])
    command = Owner.this_process("p").command
    assert command.startswith("python -c import os import os ")
    assert (len(command), command[-1]) == (120, "…")
    monkeypatch.setattr(sys, "orig_argv", [])
    assert not Owner.this_process("p").command


# The folder.


def test_the_default_folder_belongs_to_the_user_in_every_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service and its user's shell use one folder, whose name has the user's id, with mode 0700."""
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    of_the_user = tmp_path / f"orchestrator-claims-{os.geteuid()}"
    with claim([RADAR], OTTER):
        assert of_the_user.stat().st_mode & 0o777 == 0o700
        assert len(list(of_the_user.iterdir())) == 1


def link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (link, "it is a symbolic link"),
        (open_to_all, r"others may write to it \(mode 0777; 0700 will do\)"),
        (Path.touch, "File exists"),
    ],
)
def test_a_folder_that_others_could_change_is_rejected(make: object, why: str, folder: Path) -> None:
    """The error names the folder, the reason and the variable that sets another folder. Nothing is written there."""
    assert callable(make)
    make(folder)
    before = set(forked_children._files)
    with pytest.raises(OSError, match=f"^the folder of claims, {folder}, cannot be used: .*{why}.*{FOLDER_VARIABLE}"):
        conflict(RADAR)
    assert forked_children._files == before
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_folder_of_another_user_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could change the claims. The message names both users."""
    folder.mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(OSError, match=f"it belongs to user {owner}, and this is user {owner + 1} "):
        conflict(RADAR)


def test_a_folder_that_stays_locked_is_an_error_after_the_timeout(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was stopped while it claimed: other processes raise after the timeout."""
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(claims, "_FOLDER_TIMEOUT_S", 0.0)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=f"{folder}, cannot be used: another process has locked it for 0 s"):
            conflict(RADAR)
    finally:
        os.close(lock)
    assert not conflict(RADAR)
