"""SIGTERM and SIGINT: the drain, the abort, and the handlers afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    SupervisionPolicy,
    source_of,
)
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.process.report import ExitCode, write_report
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.pipelines import Store, endless, stubborn
from tests.helpers.running import eventually
from tests.helpers.support import ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_requests_the_drain_and_the_previous_handlers_are_restored(number: signal.Signals) -> None:
    """ShutDown with the signal's name; afterwards the signal calls the previous handler."""
    handled: list[int] = []

    def mine(signum: int, frame: object) -> None:
        handled.append(signum)

    before = {each: signal.signal(each, mine) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        sink = CollectSink()
        running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink))))
        await eventually(lambda: sink.items, "it runs")
        os.kill(os.getpid(), number)
        outcome = await running
        assert isinstance(outcome.event, events.ShutDown)
        assert outcome.event.reason == number.name
        assert not handled
        for each in before:
            assert signal.getsignal(each) is mine
        os.kill(os.getpid(), number)
        await eventually(lambda: handled, "the previous handler")
        assert handled == [number]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


async def test_a_second_signal_aborts_at_once() -> None:
    """With a grace of an hour, two signals end the run now; the item that was not taken is a dead letter."""
    store = Store()
    policy = SupervisionPolicy(grace=timedelta(hours=1))
    built: list[BuiltGraph] = []
    running = asyncio.create_task(
        run_pipeline(
            Pipeline(chain(endless, stubborn), policy=policy, dead_letters=lambda: store), on_built=built.append
        )
    )
    await eventually(lambda: built and built[0].ledger().ingested == 1, "it runs")
    os.kill(os.getpid(), signal.SIGTERM)
    await eventually(lambda: built[0]._loop.shutdown.phase == 1, "the drain")
    os.kill(os.getpid(), signal.SIGTERM)
    outcome = await asyncio.wait_for(running, 20)
    assert isinstance(outcome.event, events.ShutDown)
    assert [letter.payload for letter in store.letters] == ["one item"]
    assert outcome.event.figures.ledger_holds


async def test_a_signal_before_the_report_is_written_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C after the drain changes nothing."""
    path = tmp_path / "report.json"

    def interrupted(event: events.SupervisorEvent, to: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write_report(event, to)

    monkeypatch.setattr("orchestrator_adapter.process.pipeline.write_report", interrupted)
    outcome = await run_pipeline(Pipeline(chain(source_of([1]), CollectSink()), report=path))
    assert (outcome.exit_code, outcome.problems) == (ExitCode.OK, ())
    assert path.exists()


def test_a_run_outside_the_main_thread_handles_no_signals() -> None:
    """Python cannot handle signals there; the run starts and ends as usual."""

    async def in_a_thread() -> ExitCode:
        pipeline = Pipeline(chain(source_of([1]), CollectSink()))
        outcome = await asyncio.to_thread(lambda: asyncio.run(run_pipeline(pipeline)))
        return outcome.exit_code

    assert asyncio.run(in_a_thread()) is ExitCode.OK


PROGRAM = """
import asyncio, pathlib, sys
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.pipelines import endless

sink = CollectSink()

async def main():
    running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink), report=pathlib.Path(sys.argv[1]))))
    while not sink.items:
        await asyncio.sleep(0)
    print("running", flush=True)
    return await running

sys.exit(asyncio.run(main()).exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_drains_writes_its_report_and_exits_with_zero_after_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A real signal to a real process: no traceback, exit code 0, and the report names the signal."""
    path = tmp_path / "report.json"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    report = json.loads(path.read_text())
    assert (report["event"], report["cause"], report["exit_code"]) == ("ShutDown", number.name, 0)
