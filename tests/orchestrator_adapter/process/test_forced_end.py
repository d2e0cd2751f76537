"""A run whose event loop does not turn after a signal: what is decided, and what its process leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator_adapter.process.signals import Received, RunningTime, force_end_at
from tests.helpers.support import ROOT, wait_until

_ENDS_S = 60  # a busy machine; what it waits for takes a few tenths of a second
_DRAINS_S = 3.0  # a run that gets stuck only after the signal must come so far within its grace, on a busy machine too
_TERM, _INT = "SIGTERM", "SIGINT"


@pytest.mark.parametrize(
    ("received", "last_turn", "at"),
    [
        ([], 0.0, None),
        ([], 100.0, None),
        # After the first signal: grace + patience, from the signal or the last turn of the loop.
        ([(_TERM, 10.0)], 0.0, 16.0),
        ([(_TERM, 10.0)], 9.0, 16.0),
        ([(_TERM, 10.0)], 12.0, 18.0),
        # After a second one: the patience.
        ([(_TERM, 10.0), (_TERM, 10.5)], 0.0, 11.5),
        ([(_TERM, 10.0), (_TERM, 10.5)], 12.0, 13.0),
        ([(_TERM, 10.0), (_INT, 14.0)], 0.0, 15.0),
        ([(_TERM, 10.0), (_TERM, 30.0)], 0.0, 16.0),
        ([(_TERM, 10.0), (_TERM, 10.5), (_TERM, 14.0)], 0.0, 11.5),
        # A Ctrl-C that arrives twice is one request.
        ([(_INT, 10.0), (_TERM, 10.9)], 0.0, 16.0),
        ([(_INT, 10.0), (_TERM, 10.9), (_INT, 12.0)], 0.0, 13.0),
        # A cancellation that arrives as Prefect's state and as a signal is one request, in either order.
        ([("cancelled", 10.0), (_TERM, 14.0)], 0.0, 16.0),
        ([(_TERM, 10.0), ("cancelled", 14.0)], 0.0, 16.0),
        ([("cancelled", 10.0), (_TERM, 12.0), (_TERM, 14.0)], 0.0, 15.0),
        ([(_TERM, 10.0), ("cancelled", 11.0), (_INT, 14.0)], 0.0, 15.0),
    ],
)
def test_a_silent_loop_has_grace_and_patience_after_the_first_signal_and_the_patience_after_a_second(
    received: list[tuple[str, float]], last_turn: float, at: float | None
) -> None:
    """The later of signal and last turn counts: a loop that turns is never ended by force."""
    signals = [Received(name, when, is_signal=name.startswith("SIG")) for name, when in received]
    assert force_end_at(signals, last_turn, grace_s=5.0, patience_s=1.0) == at


def test_the_time_in_which_the_process_is_stopped_is_no_silence_of_its_loop() -> None:
    """A process that is stopped (SIGSTOP) after a signal is not ended when it continues. A gap of a second is a slow check."""
    now = [100.0]
    time = RunningTime(lambda: now[0])
    time.check(first=True)
    for gap, counted in [(0.05, 0.05), (1.0, 1.0), (60.0, 1.0), (0.05, 0.05)]:
        before = time.now()
        now[0] += gap
        time.check(first=False)
        assert time.now() - before == pytest.approx(counted)
    now[0] += 3600.0  # no signal for an hour: the next check is the first one again
    time.check(first=True)
    assert time.now() == pytest.approx(100.0 + 2.1 + 3600.0)


@contextmanager
def stuck_run(where: str, report: Path, *, grace_s: float) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.stuck_run", where, str(report), str(grace_s)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("where", "operator", "frame", "written"),
    [
        ("spin", "work", "in spin", 20),
        pytest.param("spin_without_wakeup", "work", "in spin_without_wakeup", 20, marks=pytest.mark.long),
        pytest.param("sleep", "work", "in sleep", 20, marks=pytest.mark.long),
        ("in_c", "work", "in in_c", 20),
        ("close", "work", "in close_all", None),
        ("prepare", "preparation prepare", "in prepare", 0),
    ],
)
def test_a_process_whose_loop_is_blocked_ends_after_a_signal_with_its_report(
    tmp_path: Path, where: str, operator: str, frame: str, written: int | None
) -> None:
    """Exit code 5. The report names the operator with its stack, and the ledger balances with what is in flight."""
    path = tmp_path / "report.json"
    with stuck_run(where, path, grace_s=_DRAINS_S if where == "close" else 0.1) as process:
        if where == "close":
            assert line(process) == "running"
        else:
            assert line(process) == "stuck"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=_ENDS_S)
    assert process.returncode == 5
    assert output.endswith("ended by force: ShutDown 5\n")
    report = json.loads(path.read_text())
    assert (report["event"], report["cause"], report["exit_code"]) == ("ShutDown", "SIGTERM", 5)
    (straggler,) = report["stragglers"]
    assert straggler["operator"] == operator
    assert frame in straggler["stack"]
    (problem,) = report["problems"]
    assert problem.startswith("SIGTERM: the event loop did not turn for ")
    assert report["ledger_holds"]
    ledger = report["ledger"]
    assert ledger["ingested"] == ledger["written"] + ledger["in_flight"] + ledger["dead_lettered"]
    if written is not None:
        assert ledger["written"] == written


def test_a_loop_that_is_blocked_after_the_run_passes_on_how_the_run_has_ended(tmp_path: Path) -> None:
    """The exit code is that of the run, and its caller can still record the outcome. The report is not written again."""
    path = tmp_path / "report.json"
    with stuck_run("after", path, grace_s=0.1) as process:
        assert line(process) == "stuck"
        before = path.read_bytes()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=_ENDS_S)
    assert process.returncode == 0
    assert output == "ended by force: ShutDown 0\n"
    assert path.read_bytes() == before


def test_a_blocked_run_on_another_thread_is_ended_although_the_run_on_the_main_thread_has_ended(tmp_path: Path) -> None:
    """Both have had the signal. The one on the main thread, where signals are handled, ends at once."""
    path = tmp_path / "report.json"
    with stuck_run("other_thread", path, grace_s=0.1) as process:
        assert line(process) == "stuck"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_ENDS_S)
    assert process.returncode == 5
    report = json.loads(path.read_text())
    assert (report["cause"], [each["operator"] for each in report["stragglers"]]) == ("SIGTERM", ["work"])


def test_a_request_of_another_thread_ends_a_blocked_process_without_a_signal(tmp_path: Path) -> None:
    """As the cancellation of a flow run does: Prefect's state is read on a thread."""
    path = tmp_path / "report.json"
    with stuck_run("asked", path, grace_s=0.1) as process:
        process.communicate(timeout=_ENDS_S)
    assert process.returncode == 5
    assert json.loads(path.read_text())["cause"] == "asked by a thread"


@pytest.mark.parametrize("where", ["spin", "regex"])
def test_a_second_signal_ends_a_blocked_process_after_its_patience(tmp_path: Path, where: str) -> None:
    """The grace of an hour does not matter then. A regular expression holds the interpreter lock: it takes a further signal."""
    path = tmp_path / "report.json"
    with stuck_run(where, path, grace_s=3600.0) as process:
        assert line(process) == "stuck"
        process.send_signal(signal.SIGTERM)

        def ended_after_another() -> bool:  # two signals that arrive at the same moment are one
            process.send_signal(signal.SIGTERM)
            return process.poll() is not None

        wait_until(ended_after_another, "it ends")
    assert process.returncode == 5
    assert json.loads(path.read_text())["stragglers"][0]["operator"] == "work"


def test_a_store_that_hangs_when_it_is_closed_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    """The run has ended by then, so its event and exit code stay; the outcome says what hung."""
    path = tmp_path / "report.json"
    with stuck_run("close_store", path, grace_s=_DRAINS_S) as process:
        assert line(process) == "running"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=_ENDS_S)
    assert process.returncode == 0
    assert json.loads(path.read_text())["exit_code"] == 0
    said, problem = output.splitlines()[-2:]
    assert said == "ended by force: ShutDown 0"
    assert "while the run closed its dead-letter store or wrote its report" in problem
