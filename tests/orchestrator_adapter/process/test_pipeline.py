from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self

import httpx
import pytest

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetter,
    DeadLetterList,
    GraphError,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    SupervisionPolicy,
    WiredEnds,
    source_of,
)
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import CannotListen
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.process.report import ExitCode, write_report
from orchestrator_adapter.storage.claims import Claimed, Owner, claim
from orchestrator_adapter.storage.dead_letter import DeadLetterFile
from orchestrator_adapter.storage.durable import StoreInUseError
from orchestrator_adapter.storage.jsonl import RotatingJsonLines
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.log_lines import event_of
from tests.helpers.running import GatedSink, eventually
from tests.helpers.support import ROOT


async def endless(ends: WiredEnds) -> None:
    """A source that has nothing to say and waits to be stopped."""
    await ends.emit(["one item"])
    await ends.shutdown.wait()


async def stubborn(ends: WiredEnds) -> None:
    """A sink that takes nothing and waits to be aborted."""
    await asyncio.get_running_loop().create_future()


class Store(DeadLetterList):
    """Knows whether it was closed, and can fail to."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.closed = 0
        self.broken = broken

    def close(self) -> None:
        self.closed += 1
        if self.broken:
            raise OSError("the disk is gone")


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


async def test_a_run_to_the_end_leaves_report_outcome_and_a_closed_store(tmp_path: Path) -> None:
    """AllOk, exit code 0, the report on disk, no problems."""
    store, path = Store(), tmp_path / "report.json"
    outcome = await run_pipeline(
        Pipeline(chain(source_of(range(5)), CollectSink()), dead_letters=lambda: store, report=path)
    )
    assert isinstance(outcome.event, events.AllOk)
    assert (outcome.exit_code, outcome.problems) == (ExitCode.OK, ())
    assert json.loads(path.read_text())["ledger"]["written"] == 5
    assert store.closed == 1


async def test_a_graph_that_is_not_valid_opens_nothing(tmp_path: Path) -> None:
    """GraphError comes before the dead-letter store is made and leaves no report."""
    made: list[Store] = []

    def make() -> Store:
        made.append(Store())
        return made[-1]

    with pytest.raises(GraphError):
        await run_pipeline(Pipeline(OperatorGraph("empty"), dead_letters=make, report=tmp_path / "report.json"))
    assert not made
    assert is_empty(tmp_path)


async def test_a_dead_letter_store_in_use_is_told_before_anything_runs(tmp_path: Path) -> None:
    """The OSError names the folder and the process that holds it."""
    sink = CollectSink()
    with RotatingJsonLines(tmp_path, stem="dead-letters"), pytest.raises(StoreInUseError) as raised:
        await run_pipeline(Pipeline(chain(source_of([1]), sink), dead_letters=lambda: DeadLetterFile(tmp_path)))
    assert str(raised.value).startswith(f"{tmp_path} is being written by process {os.getpid()} ")
    assert not sink.items


async def test_a_dead_letter_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    """The OSError names the path."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        await run_pipeline(
            Pipeline(chain(source_of([1]), CollectSink()), dead_letters=lambda: DeadLetterFile(tmp_path / "file"))
        )


@pytest.mark.parametrize("path", ["/proc/report.json", "/dev/null/report.json", "", "/", "nul\0byte"])
async def test_a_report_that_cannot_be_written_is_a_problem_and_not_a_crash(path: str) -> None:
    """The outcome comes back all the same, with the path in its problems and the run's own exit code."""
    outcome = await run_pipeline(Pipeline(chain(source_of([1]), CollectSink()), report=Path(path)))
    assert outcome.exit_code is ExitCode.OK
    assert len(outcome.problems) == 1
    assert outcome.problems[0].startswith(f"writing the report {Path(path)} failed: ")


async def test_a_store_that_cannot_be_closed_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    """The report is written all the same."""
    path = tmp_path / "report.json"
    outcome = await run_pipeline(
        Pipeline(chain(source_of([1]), CollectSink()), dead_letters=lambda: Store(broken=True), report=path)
    )
    assert outcome.problems == ("closing the dead-letter store failed: the disk is gone",)
    assert path.exists()


async def test_a_caller_that_fails_before_the_start_leaves_the_store_closed() -> None:
    """What ``on_built`` raises is raised, and nothing stays open."""
    store = Store()

    def broken(built: BuiltGraph) -> None:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        await run_pipeline(Pipeline(chain(source_of([1]), CollectSink()), dead_letters=lambda: store), on_built=broken)
    assert store.closed == 1


async def test_a_cancelled_run_drains_and_leaves_its_report(tmp_path: Path) -> None:
    """The cancellation is passed on only when store and report are settled."""
    store, path, sink = Store(), tmp_path / "report.json", CollectSink()
    running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink), dead_letters=lambda: store, report=path)))
    await eventually(lambda: sink.items, "it runs")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    told = json.loads(path.read_text())
    assert (told["event"], told["cause"], told["ledger"]["written"]) == ("ShutDown", "run() was cancelled", 1)
    assert store.closed == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_for_the_drain_and_the_handlers_before_come_back(number: signal.Signals) -> None:
    """ShutDown with the signal's name; afterwards whoever handled the signals does so again."""
    heard: list[int] = []

    def mine(signum: int, frame: object) -> None:
        heard.append(signum)

    before = {each: signal.signal(each, mine) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        sink = CollectSink()
        running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink))))
        await eventually(lambda: sink.items, "it runs")
        os.kill(os.getpid(), number)
        outcome = await running
        assert isinstance(outcome.event, events.ShutDown)
        assert outcome.event.reason == number.name
        assert not heard
        for each in before:
            assert signal.getsignal(each) is mine
        os.kill(os.getpid(), number)
        await eventually(lambda: heard, "our own handler")
        assert heard == [number]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


async def test_a_second_signal_goes_to_the_abort_at_once() -> None:
    """With a grace of an hour, two signals end the run now, and the item that nobody took is kept."""
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
    await eventually(lambda: built[0]._shutdown.phase == 1, "the drain")
    os.kill(os.getpid(), signal.SIGTERM)
    outcome = await asyncio.wait_for(running, 20)
    assert isinstance(outcome.event, events.ShutDown)
    assert [letter.payload for letter in store.letters] == ["one item"]
    assert outcome.event.figures.ledger_holds


async def test_a_signal_while_it_settles_does_not_cost_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An impatient second Ctrl-C, after the drain and before the report, changes nothing."""
    path = tmp_path / "report.json"

    def interrupted(event: events.SupervisorEvent, to: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write_report(event, to)

    monkeypatch.setattr("orchestrator_adapter.process.pipeline.write_report", interrupted)
    outcome = await run_pipeline(Pipeline(chain(source_of([1]), CollectSink()), report=path))
    assert (outcome.exit_code, outcome.problems) == (ExitCode.OK, ())
    assert path.exists()


def test_outside_the_main_thread_it_runs_without_signals() -> None:
    """Python cannot handle signals there; the run comes about all the same."""

    async def elsewhere() -> ExitCode:
        pipeline = Pipeline(chain(source_of([1]), CollectSink()))
        outcome = await asyncio.to_thread(lambda: asyncio.run(run_pipeline(pipeline)))
        return outcome.exit_code

    assert asyncio.run(elsewhere()) is ExitCode.OK


class Refusing(DeadLetterList):
    """Keeps nothing."""

    def append(self, letters: Sequence[DeadLetter]) -> None:
        raise OSError("full")


async def test_dead_letters_that_could_not_be_kept_are_told() -> None:
    """The items are still accounted for, and the event's problems say that their content is lost."""
    built: list[BuiltGraph] = []
    running = asyncio.create_task(
        run_pipeline(Pipeline(chain(endless, stubborn), dead_letters=Refusing), on_built=built.append)
    )
    await eventually(lambda: built and built[0].ledger().ingested == 1, "it runs")
    built[0].request_shutdown("test")
    built[0].request_shutdown("again")
    outcome = await running
    assert outcome.event.figures.ledger.dead_lettered == 1
    assert outcome.event.figures.ledger_holds
    assert outcome.event.figures.problems == ("1 items of 'sink' could not be kept as dead letters: OSError: full",)


# With claims.


async def test_a_second_run_of_what_is_claimed_is_refused_before_it_opens_anything(tmp_path: Path) -> None:
    """Its store is never made; it is told the first's pipeline, process and label; and the first goes on to its end."""
    made: list[Store] = []

    def make() -> Store:
        made.append(Store())
        return made[-1]

    sink, graphs = CollectSink(), list[BuiltGraph]()
    first = Pipeline(chain(endless, sink), claims=("file:///log",))
    second = Pipeline(
        chain(source_of([1]), CollectSink()),
        dead_letters=make,
        report=tmp_path / "report.json",
        claims=("file:///other", "file:///log"),
    )
    running = asyncio.create_task(run_pipeline(first, on_built=graphs.append, run_label="flow run 'otter' (7)"))
    await eventually(lambda: sink.items, "it runs")
    with pytest.raises(Claimed, match=f"'chain', pid {os.getpid()}, flow run 'otter' \\(7\\), since") as raised:
        await run_pipeline(second)
    assert str(raised.value).startswith("file:///log is in use by ")
    assert not made
    assert is_empty(tmp_path)
    graphs[0].request_shutdown("enough")
    assert (await running).exit_code is ExitCode.OK
    assert (await run_pipeline(second)).exit_code is ExitCode.OK


async def test_what_a_run_claims_is_its_own_until_its_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can claim it while the store is closed and the report written, and anybody can when the run has returned."""
    path, somebody, settled = tmp_path / "report.json", Owner.this_process("somebody"), list[str]()

    def still_claimed(what: str) -> None:
        with pytest.raises(Claimed), claim(["file:///log"], somebody):
            pass
        settled.append(what)

    class Watched(Store):
        def close(self) -> None:
            still_claimed("store")

    def watched(event: events.SupervisorEvent, to: Path) -> None:
        still_claimed("report")

    monkeypatch.setattr("orchestrator_adapter.process.pipeline.write_report", watched)
    await run_pipeline(
        Pipeline(chain(source_of([1]), CollectSink()), dead_letters=Watched, report=path, claims=("file:///log",))
    )
    assert settled == ["store", "report"]
    with claim(["file:///log"], somebody):
        pass


async def test_a_run_that_does_not_come_about_keeps_no_claim() -> None:
    """A dead-letter store that cannot be opened, and then it is anybody's."""

    def broken() -> Store:
        raise OSError("no such disk")

    pipeline = Pipeline(chain(source_of([1]), CollectSink()), dead_letters=broken, claims=("file:///log",))
    with pytest.raises(OSError, match="no such disk"):
        await run_pipeline(pipeline)
    with claim(["file:///log"], Owner.this_process("somebody")):
        pass


# With preparations.


class Pool(Bulkhead):
    """No worker, but it says when it would start them."""

    def __init__(self, log: list[str]) -> None:
        super().__init__("none", "no:worker", answer_within=timedelta(seconds=1), rebuilds=RestartPolicy.never())
        self.log = log

    async def __aenter__(self) -> Self:
        self.log.append("bulkhead")
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_what_is_prepared_is_there_before_anything_starts_and_is_not_looked_through_for_garbage() -> None:
    """One after another, before the bulkheads and the graph; what they made is no business of a later collection."""
    log: list[str] = []

    class Loaded:
        pass

    loaded: list[Loaded] = []

    async def load() -> None:
        await asyncio.sleep(0)
        loaded.append(Loaded())
        log.append("loaded")

    async def index() -> None:
        log.append("indexed")

    async def source(ends: WiredEnds) -> None:
        log.append("source")
        log.append(f"looked through: {any(thing is loaded[0] for thing in gc.get_objects())}")

    pipeline = Pipeline(
        chain(source, CollectSink()),
        preparations=(load, index),
        bulkheads=(Pool(log),),
    )
    with frozen_heap():
        outcome = await run_pipeline(pipeline, on_built=lambda _: log.append("built"))
        assert outcome.exit_code is ExitCode.OK
    assert log == ["loaded", "indexed", "bulkhead", "built", "source", "looked through: False"]
    assert gc.get_freeze_count() == 0


async def test_a_run_that_cannot_be_prepared_does_not_come_about(tmp_path: Path) -> None:
    """What the preparation raises is raised; no bulkhead, store or graph has begun, and nothing stays claimed."""
    stores, graphs, log = list[Store](), list[BuiltGraph](), list[str]()

    async def load() -> None:
        raise OperatorError("there is nothing to load")

    def store() -> Store:
        stores.append(Store())
        return stores[0]

    pipeline = Pipeline(
        chain(source_of([1]), CollectSink()),
        dead_letters=store,
        report=tmp_path / "report.json",
        claims=(f"file://{tmp_path}",),
        preparations=(load,),
        bulkheads=(Pool(log),),
    )
    with pytest.raises(OperatorError, match="there is nothing to load"):
        await run_pipeline(pipeline, on_built=graphs.append)
    assert (stores, graphs, log) == ([], [], [])
    assert is_empty(tmp_path)
    with claim(pipeline.claims, Owner.this_process("another")):
        pass


# With a control plane.


async def test_a_run_can_be_asked_from_before_its_first_operator_to_its_last(caplog: pytest.LogCaptureFixture) -> None:
    """The address is the log's first line; health answers while it runs and while it drains, and not after the end."""
    sink, graphs = GatedSink(), list[BuiltGraph]()
    with caplog.at_level(logging.INFO, logger="orchestrator_adapter"):
        pipeline = Pipeline(chain(endless, sink), control_plane=ControlPlane(port=0))
        running = asyncio.create_task(run_pipeline(pipeline, on_built=graphs.append))
        await eventually(lambda: graphs and graphs[0].ledger().ingested == 1, "it runs")
        told = [event_of(record.message) for record in caplog.records]
    assert told[0] == {"event": "control_plane", "graph": "chain", "url": told[0]["url"]}
    assert {line["event"] for line in told[1:]} == {"spawn"}
    url = told[0]["url"] + "/health"
    assert (await asyncio.to_thread(httpx.get, url)).json()["status"] == "ok"
    graphs[0].request_shutdown("enough")
    answer = await asyncio.to_thread(httpx.get, url)
    assert (answer.status_code, answer.json()["status"]) == (200, "draining")
    sink.gate.set()
    assert (await running).exit_code is ExitCode.OK
    with pytest.raises(httpx.ConnectError):
        await asyncio.to_thread(httpx.get, url)


async def test_a_control_plane_that_cannot_listen_keeps_the_run_from_coming_about(tmp_path: Path) -> None:
    """An ``OSError`` that names the address: nothing has started, nobody was told of a graph, and the store is closed."""
    store, sink, graphs = Store(), CollectSink(), list[BuiltGraph]()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        pipeline = Pipeline(
            chain(source_of([1]), sink),
            dead_letters=lambda: store,
            report=tmp_path / "report.json",
            control_plane=ControlPlane(port=port),
        )
        with pytest.raises(CannotListen, match=f"cannot listen on http://127.0.0.1:{port}: "):
            await run_pipeline(pipeline, on_built=graphs.append)
    assert (store.closed, sink.items, graphs) == (1, [], [])
    assert is_empty(tmp_path)


async def test_a_caller_that_fails_before_the_start_leaves_no_control_plane_behind() -> None:
    """What ``on_built`` raises is raised, and the thread has ended."""

    def broken(built: BuiltGraph) -> None:
        raise RuntimeError("no terminal")

    pipeline = Pipeline(chain(source_of([1]), CollectSink()), control_plane=ControlPlane(port=0))
    with pytest.raises(RuntimeError, match="no terminal"):
        await run_pipeline(pipeline, on_built=broken)
    assert "control-plane" not in {thread.name for thread in threading.enumerate()}


def test_a_run_without_a_control_plane_loads_no_web_server() -> None:
    """Whoever does not want one does not wait for its import."""
    program = (
        "import asyncio, sys; from orchestrator_adapter import source_of;"
        "from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline;"
        "from orchestrator_adapter.testing import CollectSink, chain;"
        "asyncio.run(run_pipeline(Pipeline(chain(source_of([1]), CollectSink()))));"
        "sys.exit(bool({'uvicorn', 'starlette', 'prometheus_client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60).returncode == 0


PROGRAM = """
import asyncio, pathlib, sys
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.testing import CollectSink, chain
from tests.orchestrator_adapter.process.test_pipeline import endless

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
def test_a_process_that_is_told_to_stop_drains_reports_and_exits_with_zero(
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
    told = json.loads(path.read_text())
    assert (told["event"], told["cause"], told["exit_code"]) == ("ShutDown", number.name, 0)
