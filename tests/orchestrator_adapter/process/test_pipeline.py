"""``run_pipeline``: report, store, claims, preparations and control plane of a run."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
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
    DeadLetterKind,
    DeadLetterList,
    GraphError,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    WiredEnds,
    source_of,
)
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import CannotListen
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.storage.claims import Claimed, Owner, claim
from orchestrator_adapter.storage.dead_letter import DeadLetterFile
from orchestrator_adapter.storage.jsonl import RotatingJsonLines
from orchestrator_adapter.storage.locks import StoreInUseError
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, ManualClock, chain
from tests.helpers.log_lines import event_of
from tests.helpers.pipelines import Store, endless, stubborn
from tests.helpers.running import GatedSink, eventually
from tests.helpers.support import ROOT


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


async def test_a_complete_run_writes_its_report_and_closes_the_store(tmp_path: Path) -> None:
    """AllOk, exit code 0, the report on disk, no problems."""
    store, path = Store(), tmp_path / "report.json"
    outcome = await run_pipeline(
        Pipeline(chain(source_of(range(5)), CollectSink()), dead_letters=lambda: store, report=path)
    )
    assert isinstance(outcome.event, events.AllOk)
    assert (outcome.exit_code, outcome.problems) == (ExitCode.OK, ())
    assert json.loads(path.read_text())["ledger"]["written"] == 5
    assert store.closed == 1


async def test_an_invalid_graph_opens_nothing(tmp_path: Path) -> None:
    """GraphError is raised before the dead-letter store is made, and no report is written."""
    made: list[Store] = []

    def make() -> Store:
        made.append(Store())
        return made[-1]

    with pytest.raises(GraphError):
        await run_pipeline(Pipeline(OperatorGraph("empty"), dead_letters=make, report=tmp_path / "report.json"))
    assert not made
    assert is_empty(tmp_path)


async def test_a_dead_letter_store_in_use_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    """The OSError names the folder and the process that has locked it."""
    sink = CollectSink()
    with RotatingJsonLines(tmp_path, stem="dead-letters"), pytest.raises(StoreInUseError) as raised:
        await run_pipeline(Pipeline(chain(source_of([1]), sink), dead_letters=lambda: DeadLetterFile(tmp_path)))
    assert str(raised.value).startswith(f"{tmp_path} is being written by process {os.getpid()} ")
    assert not sink.items


async def test_a_dead_letter_folder_that_is_a_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    """An ``OSError``."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        await run_pipeline(
            Pipeline(chain(source_of([1]), CollectSink()), dead_letters=lambda: DeadLetterFile(tmp_path / "file"))
        )


@pytest.mark.parametrize("path", ["/proc/report.json", "/dev/null/report.json", "", "/", "nul\0byte"])
async def test_a_report_that_cannot_be_written_is_a_problem_in_the_outcome(path: str) -> None:
    """The problem has the path; the exit code is the run's own."""
    outcome = await run_pipeline(Pipeline(chain(source_of([1]), CollectSink()), report=Path(path)))
    assert outcome.exit_code is ExitCode.OK
    assert len(outcome.problems) == 1
    assert outcome.problems[0].startswith(f"writing the report {Path(path)} failed: ")


async def test_a_store_that_cannot_be_closed_is_a_problem_in_the_outcome(tmp_path: Path) -> None:
    """The report is written."""
    path = tmp_path / "report.json"
    outcome = await run_pipeline(
        Pipeline(chain(source_of([1]), CollectSink()), dead_letters=lambda: Store(broken=True), report=path)
    )
    assert outcome.problems == ("closing the dead-letter store failed: the disk is gone",)
    assert path.exists()


async def test_the_store_is_closed_if_on_built_raises() -> None:
    """``run_pipeline`` raises the same error."""
    store = Store()

    def broken(built: BuiltGraph) -> None:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        await run_pipeline(Pipeline(chain(source_of([1]), CollectSink()), dead_letters=lambda: store), on_built=broken)
    assert store.closed == 1


async def test_a_cancelled_run_drains_and_writes_its_report(tmp_path: Path) -> None:
    """The cancellation is passed on after the store is closed and the report is written."""
    store, path, sink = Store(), tmp_path / "report.json", CollectSink()
    running = asyncio.create_task(run_pipeline(Pipeline(chain(endless, sink), dead_letters=lambda: store, report=path)))
    await eventually(lambda: sink.items, "it runs")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    report = json.loads(path.read_text())
    assert (report["event"], report["cause"], report["ledger"]["written"]) == ("ShutDown", "run() was cancelled", 1)
    assert store.closed == 1


class Full(DeadLetterList):
    """Every write fails."""

    def append(self, letters: Sequence[DeadLetter]) -> None:
        raise OSError("full")


async def test_dead_letters_that_could_not_be_stored_are_a_problem_of_the_event() -> None:
    """The items are accounted for; the problem says that their content is lost."""
    built: list[BuiltGraph] = []
    running = asyncio.create_task(
        run_pipeline(Pipeline(chain(endless, stubborn), dead_letters=Full), on_built=built.append)
    )
    await eventually(lambda: built and built[0].ledger().ingested == 1, "it runs")
    built[0].request_shutdown("test")
    built[0].request_shutdown("again")
    outcome = await running
    assert outcome.event.figures.ledger.dead_lettered == 1
    assert outcome.event.figures.ledger_holds
    assert outcome.event.figures.problems == ("1 items of 'sink' could not be kept as dead letters: OSError: full",)


class Throttled(DeadLetterList):
    """A remote store that rejects every letter, each time with another text; each third one at another place."""

    def append(self, letters: Sequence[DeadLetter]) -> None:
        self.total += len(letters)
        if self.total % 3 == 0:
            raise ConnectionError(f"reset (request {self.total})")
        raise OSError(f"503 Slow Down (request {self.total})")


async def test_losses_with_different_texts_are_one_problem_for_each_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """20,000 texts of two errors: two problems with their numbers, two log lines, and a report of a few kilobytes."""

    async def source(ends: WiredEnds) -> None:
        for number in range(20_000):
            ends.dead_letter(b"x", DeadLetterKind.DESERIALIZATION, f"no frame {number}", must_keep=False)
            if number % 100 == 0:
                await asyncio.sleep(0)

    report = tmp_path / "report.json"
    outcome = await run_pipeline(Pipeline(chain(source, CollectSink()), dead_letters=Throttled, report=report))
    assert outcome.event.figures.ledger_holds
    assert outcome.event.figures.ledger.dead_lettered == 20_000
    lost_items = "items of 'source' could not be kept as dead letters"
    assert outcome.event.figures.problems == (
        f"13334 {lost_items}: OSError: 503 Slow Down (request 1) (the first of 13334 such failures)",
        f"6666 {lost_items}: ConnectionError: reset (request 3) (the first of 6666 such failures)",
    )
    lost = [line for line in map(event_of, caplog.messages) if line["event"] == "dead_letters_lost"]
    assert [(line["operator"], line["kind"]) for line in lost] == [("source", "Deserialization")] * 2
    assert len(report.read_bytes()) < 10_000


async def test_a_very_long_error_does_not_make_the_report_long(tmp_path: Path) -> None:
    """Its text has a megabyte, and a chain of 100 causes: the report has the beginning of both."""

    async def failing(ends: WiredEnds) -> None:
        error: Exception = OperatorError("x" * 1_000_000)
        for number in range(100):
            cause, error = error, OperatorError(f"failure {number}")
            error.__cause__ = cause
        raise OperatorError("y" * 1_000_000) from error

    report = tmp_path / "report.json"
    outcome = await run_pipeline(
        Pipeline(chain(failing, CollectSink()), report=report, clock=ManualClock(autojump=True))
    )
    assert isinstance(outcome.event, events.BudgetExhausted)
    assert outcome.event.chain[0] == f"OperatorError: {'y' * 2_000}… (1000000 characters)"
    assert (len(outcome.event.chain), outcome.event.chain[-1]) == (20, "OperatorError: failure 81, and further causes")
    assert len(report.read_bytes()) < 10_000


# Claims.


async def test_a_second_run_with_the_same_claim_is_rejected_before_it_opens_anything(tmp_path: Path) -> None:
    """Its error has the first run's pipeline, process and label; the first run goes on to its end."""
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


async def test_the_loop_turns_while_the_host_of_a_claim_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server answers only after a task of the loop has run. The claim is then on the address."""
    asked, answer = threading.Event(), threading.Event()
    found = socket.getaddrinfo("127.0.0.1", 9201, type=socket.SOCK_STREAM)

    def name_server(host: str, *_: object, **__: object) -> list[object]:
        assert host == "radar.example"
        asked.set()
        assert answer.wait(20)
        return list(found)

    monkeypatch.setattr(socket, "getaddrinfo", name_server)
    sink, graphs = CollectSink(), list[BuiltGraph]()
    pipeline = Pipeline(chain(endless, sink), claims=("udp://radar.example:9201", "file:///log"))
    running = asyncio.create_task(run_pipeline(pipeline, on_built=graphs.append))
    await eventually(asked.is_set, "the name server is asked")
    answer.set()
    await eventually(lambda: sink.items, "it runs")
    with (
        pytest.raises(Claimed, match="9201"),
        claim(("udp://127.0.0.1:9201",), Owner.this_process("b")),
    ):
        pass
    graphs[0].request_shutdown("enough")
    assert (await running).exit_code is ExitCode.OK


async def test_a_claim_lasts_until_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be claimed while the store is closed and the report written; it can after the run has returned."""
    path, another, checked = tmp_path / "report.json", Owner.this_process("another"), list[str]()

    def still_claimed(what: str) -> None:
        with pytest.raises(Claimed), claim(["file:///log"], another):
            pass
        checked.append(what)

    class Watched(Store):
        def close(self) -> None:
            still_claimed("store")

    def watched(event: events.SupervisorEvent, to: Path) -> None:
        still_claimed("report")

    monkeypatch.setattr("orchestrator_adapter.process.pipeline.write_report", watched)
    await run_pipeline(
        Pipeline(chain(source_of([1]), CollectSink()), dead_letters=Watched, report=path, claims=("file:///log",))
    )
    assert checked == ["store", "report"]
    with claim(["file:///log"], another):
        pass


async def test_a_run_that_did_not_start_keeps_no_claim() -> None:
    """The dead-letter store cannot be opened; afterwards the claim is free."""

    def broken() -> Store:
        raise OSError("no such disk")

    pipeline = Pipeline(chain(source_of([1]), CollectSink()), dead_letters=broken, claims=("file:///log",))
    with pytest.raises(OSError, match="no such disk"):
        await run_pipeline(pipeline)
    with claim(["file:///log"], Owner.this_process("another")):
        pass


# Preparations.


class Pool(Bulkhead):
    """Starts no worker; records when it would."""

    def __init__(self, log: list[str]) -> None:
        super().__init__("none", "no:worker", answer_within=timedelta(seconds=1), rebuilds=RestartPolicy.never())
        self.log = log

    async def __aenter__(self) -> Self:
        self.log.append("bulkhead")
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_preparations_run_before_anything_starts_and_their_results_are_frozen() -> None:
    """One after another, before the bulkheads and the graph; later garbage collections do not examine what they made."""
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
        log.append(f"examined: {any(thing is loaded[0] for thing in gc.get_objects())}")

    pipeline = Pipeline(
        chain(source, CollectSink()),
        preparations=(load, index),
        bulkheads=(Pool(log),),
    )
    with frozen_heap():
        outcome = await run_pipeline(pipeline, on_built=lambda _: log.append("built"))
        assert outcome.exit_code is ExitCode.OK
    assert log == ["loaded", "indexed", "bulkhead", "built", "source", "examined: False"]
    assert gc.get_freeze_count() == 0


async def test_host_names_that_no_resolver_answers_do_not_hold_other_work_in_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten look-ups hang; Python's own executor has six threads on a machine with two processors."""
    over = threading.Event()
    begun: list[object] = []

    def hangs(*arguments: object, **_: object) -> None:
        begun.append(arguments)
        over.wait(30.0)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    async def source(_: WiredEnds) -> None:
        loop = asyncio.get_running_loop()
        lookups = [asyncio.ensure_future(loop.getaddrinfo(f"host-{number}", 443)) for number in range(10)]
        try:
            await eventually(lambda: len(begun) >= 6, "the look-ups")
            async with asyncio.timeout(5.0):
                assert await asyncio.to_thread(lambda: "done") == "done"
        finally:
            over.set()
            await asyncio.gather(*lookups, return_exceptions=True)

    outcome = await run_pipeline(Pipeline(chain(source, CollectSink())))
    assert (outcome.exit_code, dict(outcome.event.figures.restarts)) == (ExitCode.OK, {})


async def test_a_run_whose_preparation_fails_does_not_start(tmp_path: Path) -> None:
    """It raises the same error; no bulkhead, store or graph has been started, and nothing stays claimed."""
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


# The control plane.


async def test_the_control_plane_answers_while_the_graph_runs_and_drains(caplog: pytest.LogCaptureFixture) -> None:
    """The log's first line has the address; health answers during the run and the drain, and not after the end."""
    sink, graphs = GatedSink(), list[BuiltGraph]()
    with caplog.at_level(logging.INFO, logger="orchestrator_adapter"):
        pipeline = Pipeline(chain(endless, sink), control_plane=ControlPlane(port=0, reuse_for=timedelta(0)))
        running = asyncio.create_task(run_pipeline(pipeline, on_built=graphs.append))
        await eventually(lambda: graphs and graphs[0].ledger().ingested == 1, "it runs")
        lines = [event_of(record.message) for record in caplog.records]
    assert lines[0] == {"event": "control_plane", "graph": "chain", "url": lines[0]["url"]}
    assert {line["event"] for line in lines[1:]} == {"spawn"}
    url = lines[0]["url"] + "/health"
    assert (await asyncio.to_thread(httpx.get, url)).json()["status"] == "ok"
    graphs[0].request_shutdown("enough")
    answer = await asyncio.to_thread(httpx.get, url)
    assert (answer.status_code, answer.json()["status"]) == (200, "draining")
    sink.gate.set()
    assert (await running).exit_code is ExitCode.OK
    with pytest.raises(httpx.ConnectError):
        await asyncio.to_thread(httpx.get, url)


async def test_a_run_whose_control_plane_cannot_listen_does_not_start(tmp_path: Path) -> None:
    """An ``OSError`` that names the address: nothing has started, ``on_built`` was not called, and the store is closed."""
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


async def test_the_control_plane_ends_if_on_built_raises() -> None:
    """Its thread has ended."""

    def broken(built: BuiltGraph) -> None:
        raise RuntimeError("no terminal")

    pipeline = Pipeline(chain(source_of([1]), CollectSink()), control_plane=ControlPlane(port=0))
    with pytest.raises(RuntimeError, match="no terminal"):
        await run_pipeline(pipeline, on_built=broken)
    assert "control-plane" not in {thread.name for thread in threading.enumerate()}


def test_a_run_without_a_control_plane_loads_no_web_server() -> None:
    """Its import takes a tenth of a second."""
    program = (
        "import asyncio, sys; from orchestrator_adapter import source_of;"
        "from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline;"
        "from orchestrator_adapter.testing import CollectSink, chain;"
        "asyncio.run(run_pipeline(Pipeline(chain(source_of([1]), CollectSink()))));"
        "sys.exit(bool({'uvicorn', 'starlette', 'prometheus_client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60).returncode == 0
