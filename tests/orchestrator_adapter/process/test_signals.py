"""SIGTERM, SIGINT and SIGHUP: the drain, the abort, preparations, several runs, and the handlers afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Self

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    RestartPolicy,
    SupervisionHooks,
    SupervisionPolicy,
    source_of,
)
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.process.report import ExitCode, write_report
from orchestrator_adapter.process.signals import STOP_SIGNALS
from orchestrator_adapter.process.stop_requests import StopRequests
from orchestrator_adapter.storage.claims import Claimed
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.pipelines import Store, endless, stubborn
from tests.helpers.running import eventually
from tests.helpers.sizes import small_and_long
from tests.helpers.support import ROOT


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_a_signal_requests_the_drain_and_the_previous_handlers_are_restored(number: signal.Signals) -> None:
    """ShutDown with the signal's name; afterwards the signal calls the previous handler."""
    handled: list[int] = []

    def mine(signum: int, frame: object) -> None:
        handled.append(signum)

    before = {each: signal.signal(each, mine) for each in STOP_SIGNALS}
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


async def test_a_handler_of_the_hosts_loop_is_called_again_after_the_run() -> None:
    """The handler of ``loop.add_signal_handler``: not during the run, which the signal stops, and again after it."""
    handled, loop, sink = list[str](), asyncio.get_running_loop(), CollectSink()
    loop.add_signal_handler(signal.SIGTERM, handled.append, "host")
    loop.add_signal_handler(signal.SIGUSR1, handled.append, "other")
    try:
        running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink))))
        await eventually(lambda: sink.items, "it runs")
        os.kill(os.getpid(), signal.SIGUSR1)
        await eventually(lambda: handled == ["other"], "another signal reaches the host during the run")
        os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance((await running).event, events.ShutDown)
        assert handled == ["other"]
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: handled == ["other", "host"], "the host's handler")
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGUSR1)


async def test_a_handler_that_was_installed_during_the_run_stays() -> None:
    """It is newer than the run's; what was there before the run is not installed over it."""

    def newer(signum: int, frame: object) -> None:
        pass

    before = signal.getsignal(signal.SIGTERM)
    try:
        await run_pipeline(
            Pipeline(chain(source_of([1]), CollectSink())), on_built=lambda _: signal.signal(signal.SIGTERM, newer)
        )
        assert signal.getsignal(signal.SIGTERM) is newer
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_every_run_of_a_process_gets_the_signal() -> None:
    """Two runs on one loop: the one that ends first does not take the signals from the other; then both get them."""
    before = signal.getsignal(signal.SIGTERM)
    sinks = [CollectSink(), CollectSink()]
    running = [asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink)))) for sink in sinks]
    await run_pipeline(Pipeline(chain(source_of([1]), CollectSink())))
    await eventually(lambda: all(sink.items for sink in sinks), "both run")
    os.kill(os.getpid(), signal.SIGTERM)
    outcomes = await asyncio.wait_for(asyncio.gather(*running), 60)
    assert [isinstance(outcome.event, events.ShutDown) for outcome in outcomes] == [True, True]
    assert signal.getsignal(signal.SIGTERM) == before


async def test_an_ignored_sighup_stays_ignored() -> None:
    """``nohup`` starts a process like that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sink = CollectSink()
        running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink))))
        await eventually(lambda: sink.items, "it runs")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        outcome = await running
        assert isinstance(outcome.event, events.ShutDown)
        assert outcome.event.reason == "SIGTERM"
    finally:
        signal.signal(signal.SIGHUP, before)


class Starting(Bulkhead):
    """A bulkhead whose workers never become ready."""

    def __init__(self) -> None:
        super().__init__("slow", "no:worker", answer_within=timedelta(seconds=1), rebuilds=RestartPolicy.never())
        self.stopped = False

    async def __aenter__(self) -> Self:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.stopped = True
        return self


@pytest.mark.parametrize("during", ["preparation", "bulkhead"])
async def test_a_signal_during_preparations_or_while_a_bulkhead_starts_ends_the_run_with_its_report(
    tmp_path: Path, during: str
) -> None:
    """ShutDown, exit code 0: the step is cancelled, no later step begins, and no operator, store or port is opened."""
    path, steps, spawned = tmp_path / "report.json", list[str](), list[str]()

    async def load() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            steps.append("cancelled")

    def store() -> Store:
        steps.append("store")
        return Store()

    bulkhead = Starting()
    pipeline = Pipeline(
        chain(endless, CollectSink()),
        report=path,
        dead_letters=store,
        preparations=(load,) if during == "preparation" else (),
        bulkheads=(bulkhead,),
        control_plane=ControlPlane(port=0),
    )
    hooks = SupervisionHooks(on_spawn=lambda each: spawned.append(each.operator))
    outcome = await asyncio.wait_for(run_pipeline(pipeline, hooks=hooks), 60)
    assert isinstance(outcome.event, events.ShutDown)
    assert (outcome.event.reason, outcome.exit_code) == ("SIGTERM", ExitCode.OK)
    assert steps == (["cancelled"] if during == "preparation" else [])
    assert bulkhead.stopped is (during == "bulkhead")
    assert spawned == []
    report = json.loads(path.read_text())
    assert (report["event"], report["cause"], report["ledger"]["ingested"]) == ("ShutDown", "SIGTERM", 0)
    assert report["ledger_holds"]


async def test_a_host_asks_a_run_to_stop_without_signals() -> None:
    """``stop`` carries the requests, also one from before the run; the process's handlers are not touched."""
    stop, sink = StopRequests(), CollectSink()
    before = signal.getsignal(signal.SIGTERM)
    running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink)), stop=stop))
    await eventually(lambda: sink.items, "it runs")
    assert signal.getsignal(signal.SIGTERM) == before
    stop.request("the host closes")
    assert isinstance(event := (await running).event, events.ShutDown)
    assert event.reason == "the host closes"
    outcome = await run_pipeline(Pipeline(chain(endless, CollectSink())), stop=stop)
    assert outcome.event.figures.ledger.ingested == 0


async def test_a_run_that_is_stopped_before_its_start_does_not_replace_the_report_of_a_run_that_goes_on(
    tmp_path: Path,
) -> None:
    """It claims its report before it writes it, and so it is rejected."""
    path, sink, stop = tmp_path / "report.json", CollectSink(), StopRequests()
    claims = (f"file://{path}",)
    first = asyncio.create_task(
        run_pipeline(Pipeline(chain(endless, sink), report=path, claims=claims), stop=(first_stop := StopRequests()))
    )
    await eventually(lambda: sink.items, "it runs")
    stop.request("at once")
    with pytest.raises(Claimed):
        await run_pipeline(Pipeline(chain(endless, CollectSink()), report=path, claims=claims), stop=stop)
    assert not path.exists()
    first_stop.request("enough")
    assert (await first).exit_code is ExitCode.OK


def test_a_child_that_is_forked_during_a_run_has_the_previous_handlers() -> None:
    """A SIGTERM ends the child, and does not stop the run of its parent."""
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("child ended by signal 15, run asked to stop: False\n", 0)


FORKS = """
import asyncio, os, signal, time
from orchestrator_adapter.process import Pipeline, StopRequests, run_pipeline
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.pipelines import endless

async def main():
    stop, sink = StopRequests(), CollectSink()
    with stop.listen():
        running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink)), stop=stop))
        while not sink.items:
            await asyncio.sleep(0)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writer, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(reader, 1)  # it has left fork(), which drops the signals of its first moments
        os.kill(child, signal.SIGTERM)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        print(f"child ended by signal {os.WTERMSIG(status)}, run asked to stop: {bool(stop.reasons)}", flush=True)
        stop.request("done")
        await running

asyncio.run(main())
"""


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


@small_and_long("number", *STOP_SIGNALS)
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
