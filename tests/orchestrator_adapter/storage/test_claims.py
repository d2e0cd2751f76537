from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import permutations
from pathlib import Path

import pytest

from orchestrator_adapter.storage import claims
from orchestrator_adapter.storage.claims import FOLDER_VARIABLE, Claimed, Owner, claim
from tests.helpers.support import ROOT

HERE = socket.gethostname()
OTTER = Owner(
    "sda-ingest", 4711, HERE, "2026-11-25T02:00:00Z", "python -m flows ingest", run="flow run 'brave-otter' (0198)"
)
HARE = Owner("sda-fusion", 4712, HERE, "2026-11-25T03:00:00Z", "python -m flows fusion")
RADAR = "udp://127.0.0.1:9201"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of claims of the test's own."""
    path = tmp_path / "claims"
    monkeypatch.setenv(FOLDER_VARIABLE, str(path))
    return path


def refusal(*resources: str) -> str:
    """Why ``resources`` cannot be claimed; empty if they can."""
    try:
        with claim(resources, HARE):
            return ""
    except Claimed as error:
        return str(error)


def test_a_claimed_resource_is_refused_and_its_owner_is_named_in_full() -> None:
    """Pipeline, process, run, start and command, on one line; the same process is somebody else, too."""
    with claim([RADAR], OTTER):
        assert refusal(RADAR) == (
            "udp://127.0.0.1:9201 is in use by pipeline 'sda-ingest', pid 4711, flow run 'brave-otter' (0198), "
            "since 2026-11-25T02:00:00Z: python -m flows ingest"
        )
        assert issubclass(Claimed, OSError)
    with claim([RADAR], Owner("p", 1, "elsewhere", "then", "c")):
        assert refusal(RADAR).endswith(" is in use by pipeline 'p', pid 1 on elsewhere, since then: c")


def test_all_that_is_taken_is_named_with_its_owner_and_what_is_free_stays_free() -> None:
    """Three of four are taken, by two owners: three are named in the order asked for, and the fourth is not kept."""
    with claim(["file:///a", RADAR], OTTER), claim(["file:///b"], HARE):
        assert refusal("file:///free", RADAR, "file:///b", "file:///a") == (
            f"{RADAR} and file:///a are in use by {OTTER}; file:///b is in use by {HARE}"
        )
        assert not refusal("file:///free")


def test_what_was_claimed_is_free_afterwards_and_leaves_no_file(folder: Path) -> None:
    """Also when what was done meanwhile failed."""
    with suppress(ZeroDivisionError), claim([RADAR, "file:///a"], OTTER):
        assert len(list(folder.iterdir())) == 2
        raise ZeroDivisionError
    assert not list(folder.iterdir())
    assert not refusal(RADAR, "file:///a")


def test_nothing_claimed_touches_nothing(folder: Path) -> None:
    """A pipeline without claims does not need the folder."""
    with claim([], OTTER):
        assert not folder.exists()


def test_a_claim_may_name_a_thing_twice_and_sockets_that_exclude_each_other() -> None:
    """A pipeline's own resources are its own business: whether they go together, whoever opens them will say."""
    with claim([RADAR, RADAR, "udp://0.0.0.0:9201"], OTTER):
        assert refusal(RADAR) == f"{RADAR} is in use by {OTTER}"
        assert refusal("udp://10.0.0.1:9201") == f"udp://10.0.0.1:9201 (as udp://0.0.0.0:9201) is in use by {OTTER}"


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
def test_sockets_that_exclude_each_other_are_refused_whichever_comes_first(one: str, other: str) -> None:
    """And told by both names: what was asked for, and as what it is in use."""
    for first, second in permutations((one, other)):
        with claim([first], OTTER):
            assert refusal(second) == f"{second} (as {first}) is in use by {OTTER}"


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
def test_what_can_be_had_side_by_side_is_not_refused(one: str, other: str) -> None:
    """Other addresses, ports, transports, families and folders: neither order is refused."""
    for first, second in permutations((one, other)):
        with claim([first], OTTER):
            assert not refusal(second)


def test_a_wildcard_names_everybody_in_its_way() -> None:
    """Two pipelines on two addresses of the port are both told."""
    with claim([RADAR], OTTER), claim(["udp://10.0.0.1:9201"], HARE):
        told = refusal("udp://0.0.0.0:9201")
    assert f"udp://0.0.0.0:9201 (as {RADAR}) is in use by {OTTER}" in told
    assert f"udp://0.0.0.0:9201 (as udp://10.0.0.1:9201) is in use by {HARE}" in told


@pytest.mark.parametrize(
    "resource", ["", "file:///" + "long" * 1_000, "file:///\udcff", "file:///a\nb", "größe", "../x"]
)
def test_any_string_is_a_resource(resource: str, folder: Path) -> None:
    """However long, and whatever is in it: it is claimed by one file in the folder, and refused by its name."""
    with claim([resource], OTTER):
        assert len(list(folder.iterdir())) == 1
        assert refusal(resource) == f"{resource} is in use by {OTTER}"


@pytest.mark.parametrize(
    "content", [b"", b'{"resource": "udp', b"[]", b'{"resource": 1, "owner": {}}', b'{"resource": "x"}', b"\xff"]
)
def test_a_claim_that_cannot_be_read_is_somebodys_all_the_same(content: bytes, folder: Path) -> None:
    """It is refused and nobody is named; other resources are not affected, and it is forgotten with its owner."""
    with claim([RADAR], OTTER):
        (file,) = folder.iterdir()
        file.write_bytes(content)
        assert refusal(RADAR) == f"{RADAR} is in use by somebody (the claim's file cannot be read)"
        assert not refusal("udp://127.0.0.1:9202")
    file.write_bytes(content)  # as a process would leave it that was killed
    assert not refusal(RADAR)


def test_what_the_dead_left_is_removed_by_whoever_claims_next(folder: Path) -> None:
    """The folder does not grow with every run that was killed; files of others are left alone."""
    folder.mkdir()
    (folder / "udp-127.0.0.1-1-0123456789abcdef.claim").write_bytes(b"{}")
    (folder / "README").write_bytes(b"")
    assert not refusal(RADAR)
    assert [path.name for path in folder.iterdir()] == ["README"]


def test_of_many_who_want_the_same_at_once_one_gets_it_all() -> None:
    """Never two and never none, in whichever order each of them names it."""
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


def test_a_claim_that_cannot_be_written_leaves_nothing_claimed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up at the second of three: the error is told, the first is free again, and so is the folder."""
    write, written = claims._write, list[int]()

    def full(file: int, what: claims._Claim) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        write(file, what)

    monkeypatch.setattr(claims, "_write", full)
    with pytest.raises(OSError, match="No space left"), claim([RADAR, "file:///a", "file:///b"], OTTER):
        pass
    assert not list(folder.iterdir())
    assert not claims._locked_here
    monkeypatch.undo()
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert not refusal(RADAR, "file:///a")


def test_a_copy_that_a_child_is_just_being_made_with_keeps_nothing_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between fork and exec a child has all that is open: neither the folder nor a claim waits for it."""
    write, copies = claims._write, list[int]()

    def copying(file: int, what: claims._Claim) -> None:
        write(file, what)
        copies.extend(os.dup(each) for each in claims._locked_here)

    monkeypatch.setattr(claims, "_TURN_LIMIT_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(claims, "_write", copying)
        with claim([RADAR], OTTER):
            assert refusal(RADAR)
    assert not refusal(RADAR)
    assert len(copies) == 2
    for copy in copies:
        os.close(copy)


# Processes.

HOLDER = """
import os, subprocess, sys
from orchestrator_adapter.storage.claims import Owner, claim

held = claim(sys.argv[2:], Owner.this_process("holder", run="run 7"))
held.__enter__()
if sys.argv[1] == "children":
    subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, close_fds=False)
    if os.fork() == 0:
        held.__exit__(None, None, None)
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
else:
    print("claimed", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(kind: str, *resources: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has ``resources``, with or without children; they all end with this block."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, *resources],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() in {"claimed\n", "forked\n"}
        yield process
        process.kill()


def test_a_process_that_is_killed_frees_what_it_had_at_once() -> None:
    """While it lives it is refused, with its pid and run; after kill -9 the very next claim succeeds."""
    with holder("alone", RADAR, "file:///a") as process:
        told = refusal("file:///a", RADAR)
        assert told.startswith(
            f"file:///a and {RADAR} are in use by pipeline 'holder', pid {process.pid}, run 7, since "
        )
        process.kill()
        process.wait()
        assert not refusal(RADAR, "file:///a")


def test_children_neither_keep_a_claim_nor_let_go_of_it() -> None:
    """A forked child that leaves the block takes nothing from its parent; forked or executed, it outlives it without it."""
    with holder("children", RADAR) as process:
        assert f"pid {process.pid}" in refusal(RADAR)
        process.kill()
        process.wait()
        assert not refusal(RADAR)


# The owner.


def test_this_process_is_an_owner_that_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid, host and start in UTC; the command as it was typed, but for the interpreter's folder."""
    monkeypatch.setattr(sys, "orig_argv", ["/opt/venv/bin/python", "-m", "flows", "ingest"])
    owner = Owner.this_process("sda-ingest", run="flow run\n'x'")
    assert (owner.pid, owner.host, owner.run) == (os.getpid(), HERE, "flow run 'x'")
    assert owner.command == "python -m flows ingest"
    assert owner.started.endswith("Z")


def test_a_command_is_told_on_one_line_of_120_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on the command line, with its newlines, is cut; a process without a command line has none."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "import os\n" * 100])
    command = Owner.this_process("p").command
    assert command.startswith("python -c import os import os ")
    assert (len(command), command[-1]) == (120, "…")
    monkeypatch.setattr(sys, "orig_argv", [])
    assert not Owner.this_process("p").command


# The folder.


def test_the_folder_is_the_users_whatever_session_the_run_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service and its user's shell meet in one folder, which bears the user's id and has mode 0700."""
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
def test_a_folder_that_others_could_meddle_with_is_refused(make: object, why: str, folder: Path) -> None:
    """The error names the folder, what is wrong with it and the variable that sets another; nothing is written there."""
    assert callable(make)
    make(folder)
    with pytest.raises(OSError, match=f"^the folder of claims, {folder}, cannot be used: .*{why}.*{FOLDER_VARIABLE}"):
        refusal(RADAR)
    assert not claims._locked_here
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_folder_of_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it first could let anyone claim anything; both users are named."""
    folder.mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(OSError, match=f"it belongs to user {owner}, and this is user {owner + 1} "):
        refusal(RADAR)


def test_a_folder_that_stays_locked_is_an_error_and_not_a_wait_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped while it claimed: the others say so once their patience is over."""
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(claims, "_TURN_LIMIT_S", 0.0)
    kept = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=f"{folder}, cannot be used: another process has kept it locked for 0 s"):
            refusal(RADAR)
    finally:
        os.close(kept)
    assert not refusal(RADAR)
