"""The thread beside the data plane, with a server that is not there: what it tells, and what it survives."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter import source_of
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.prefect_flow.reporting import reporter as module
from orchestrator_adapter.prefect_flow.reporting.artifact_publisher import ArtifactPublisher
from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.prefect_flow.reporting.reporter import DeliveryReport, Reporter
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.figures import all_ok
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, LOGS, FakePrefect, state
from tests.helpers.running import eventually

MS = timedelta(milliseconds=1)
LONG = timedelta(hours=1)
OUTCOME = RunOutcome(all_ok(), ExitCode.OK, ())
RUN = IDENTITY.flow_run_id
POLL = Spawned("poll", 1, "source", (), None)
ENDED = Exited("poll", 1, task_exit.Ok(), 1.0)
EARLIER = RunRecord(UUID(int=7), "old-owl", "radar-net", attempt=1, pid=1, started="2026-01-01T12:00:00+00:00")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the thread waits for between two steps, as short as can be."""
    for name in ("_GATHER_S", "_FINAL_CHECK_S", "_AFTER_A_BUG_S", "RECORDED_AFTER_S"):
        monkeypatch.setattr(module, name, 0.001)
    monkeypatch.setattr(module._RetryDelays, "next_s", lambda _: 0.001)
    monkeypatch.setattr("orchestrator_adapter.prefect_flow.reporting.delivery.SHOWN_AFTER_S", 0.01)


class Run:
    """A link that is about to tell of a graph, and the server it tells."""

    def __init__(self, *, directory: Path | None = None, artifacts: bool = True) -> None:
        self.prefect = FakePrefect()
        self.prefect.has_flow_run(RUN, state(StateType.RUNNING))
        graph = chain(source_of([]), CollectSink())
        self.built = graph.build()
        self.cancelled: list[tuple[str, int]] = []
        options = Reporting(directory=directory, artifacts=artifacts, status_every=MS, look_every=MS)
        self.link = Reporter(IDENTITY, graph, options, on_cancel=self._cancel)

    def _cancel(self, reason: str) -> None:
        self.cancelled.append((reason, threading.get_ident()))

    def note(self, *records: Spawned | Exited | Decided) -> None:
        hooks = self.link.hooks()
        assert hooks.on_spawn is not None
        assert hooks.on_exit is not None
        assert hooks.on_decision is not None
        for record in records:
            match record:
                case Spawned():
                    hooks.on_spawn(record)
                case Exited():
                    hooks.on_exit(record)
                case Decided():
                    hooks.on_decision(record)

    def start(self) -> None:
        self.link.start(self.built)

    async def finish(self, patience: timedelta = LONG) -> DeliveryReport:
        return await self.link.finish(OUTCOME, patience)

    def told(self) -> list[str]:
        return [item["event"] for item in self.prefect.items(EVENTS)]


@pytest.fixture
async def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    its = Run()
    monkeypatch.setattr(module, "client_without_retries", its.prefect.connected)
    return its


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "prefect-reporter":
            thread.join(timeout=30.0)
            assert not thread.is_alive()


# From the beginning to the end.


async def test_a_run_is_told_from_its_first_instance_to_its_report(run: Run) -> None:
    """Also what happened before there was a thread; the server then has everything, and shows it."""
    run.note(POLL)
    run.start()
    run.note(Decided("first", {}))
    await eventually(lambda: len(run.prefect.artifacts) == 3, "topology, status and progress are shown")
    run.note(ENDED, Decided("ended", {"outcome": "AllOk"}))
    assert await run.finish() == DeliveryReport(complete=True, cancelled=False, api_answers=True, undelivered=())
    assert run.told() == [
        *("prefect.task-run.Running", "orchestrator.pipeline.first"),
        *("prefect.task-run.Completed", "orchestrator.pipeline.ended"),
    ]
    assert [item["message"] for item in run.prefect.items(LOGS)] == ["first", "ended: outcome AllOk"]
    assert run.prefect.task_run_states() == {"poll": "Completed"}
    assert {made.key for made in run.prefect.artifacts.values()} == {
        f"radar-net-{what}" for what in ("topology", "status", "settled", "report")
    }
    assert run.prefect.twice == []


async def test_a_run_that_is_over_before_its_thread_has_begun_is_told_all_the_same(run: Run) -> None:
    """Whatever comes first: the end waits for it."""
    run.note(POLL, ENDED)
    run.start()
    assert (await run.finish()).complete
    assert run.prefect.task_run_states() == {"poll": "Completed"}


async def test_whoever_is_alive_at_the_end_is_told_as_a_straggler(run: Run) -> None:
    """Nobody else will."""
    run.note(POLL)
    run.start()
    assert (await run.finish()).complete
    assert run.prefect.task_run_states() == {"poll": "Crashed"}


async def test_without_artifacts_none_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither meanwhile nor at the end."""
    run = Run(artifacts=False)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    run.start()
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > 3, "it looks at the run's state")
    assert (await run.finish()).complete
    assert run.prefect.artifacts == {}


async def test_a_run_without_an_outcome_tells_what_there_is_and_ends(run: Run) -> None:
    """It was cancelled: no report, and nobody waits for a server that is away."""
    run.prefect.away = True
    run.note(POLL, Decided("first", {}))
    run.start()
    run.link.abandon()
    telling = await asyncio.wrap_future(run.link._result)
    assert not telling.complete
    run.prefect.away = False
    assert run.prefect.artifacts == {}


# What it costs the data plane.


async def test_a_hook_only_appends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record itself, with its time: everything that Prefect is told is made on the link's thread."""
    threads: list[str] = []
    note = Delivery.add

    def noted(delivery: Delivery, record: Any, at_ns: int) -> None:
        threads.append(threading.current_thread().name)
        note(delivery, record, at_ns)

    monkeypatch.setattr(Delivery, "add", noted)
    records: list[Spawned | Exited | Decided] = [POLL, Decided("first", {}), ENDED]
    before_ns = time.time_ns()
    run.note(*records)
    assert [record for _, record in run.link._inbox] == records
    assert all(one is other for (_, one), other in zip(run.link._inbox, records, strict=True))
    assert all(before_ns <= at_ns <= time.time_ns() for at_ns, _ in run.link._inbox)
    assert run.link._delivery.idle
    run.start()
    run.note(Decided("ended", {}))
    await run.finish()
    assert threads == 4 * ["prefect-reporter"]


async def test_what_no_hook_is_for_is_not_asked_for(run: Run) -> None:
    """Restarts, escalations and shutdowns are told as decisions; a second hook would tell them twice."""
    hooks = run.link.hooks()
    assert (hooks.on_restart, hooks.on_escalate, hooks.on_shutdown) == (None, None, None)


# What it survives.


@pytest.mark.parametrize("broken", ["display", "records", "look", "tell"])
async def test_a_bug_in_one_side_task_ends_neither_it_nor_the_others(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, tried again, and everything else is told as if nothing were."""
    run = Run(directory=tmp_path)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    failures = 3

    def fails_at_first(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def fail() -> None:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise KeyError("a bug")

        def method(self: Any, *arguments: Any) -> Any:
            fail()
            return real(self, *arguments)

        async def awaited(self: Any, *arguments: Any) -> Any:  # a bug in it shows where it is awaited
            fail()
            return await real(self, *arguments)

        monkeypatch.setattr(owner, name, awaited if inspect.iscoroutinefunction(real) else method)

    owner, name = {
        "display": (ArtifactPublisher, "refresh"),
        "records": (RunRecords, "all"),
        "look": (Reporter, "_check_flow_run"),
        "tell": (Delivery, "deliver"),
    }[broken]
    RunRecords(tmp_path).write(EARLIER)
    run.prefect.has_flow_run(EARLIER.flow_run_id, state(StateType.RUNNING))
    fails_at_first(owner, name)
    run.note(POLL)
    run.start()
    run.note(ENDED)
    await eventually(lambda: run.prefect.task_run_states() == {"poll": "Completed"}, "it is told")
    await eventually(lambda: len(run.prefect.artifacts) == 3, "it is shown")
    await eventually(lambda: run.prefect.flow_run_state(EARLIER.flow_run_id).type is StateType.CRASHED, "it is tidy")
    assert "failed; it is tried again" in caplog.text
    assert (await run.finish()).complete


@pytest.mark.parametrize(("owner", "name"), [(Reporter, "_check_flow_run"), (ArtifactPublisher, "report")])
async def test_a_bug_in_the_last_words_does_not_cost_how_the_run_ended(
    owner: type, name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has everything else, and so the flow run gets its state."""

    async def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(owner, name, broken)
    run.note(POLL, ENDED)
    run.start()
    assert await run.finish() == DeliveryReport(complete=True, cancelled=False, api_answers=True, undelivered=())


async def test_a_server_that_answers_and_is_behind_is_told_how_the_run_ended(run: Run) -> None:
    """What it does not show yet is left for the next start; an end that it could be told of is not withheld."""
    run.prefect.records = False
    run.note(POLL, ENDED)
    run.start()
    telling = await run.finish(MS)
    assert (telling.complete, telling.api_answers) == (False, True)
    assert [kind for kind, _ in telling.undelivered] == [EVENTS, EVENTS]


async def test_the_end_does_not_cut_a_delivery_short(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way when the graph ends is awaited: nothing of it is sent, or has to be looked for, a second time."""
    taken, let_go = threading.Event(), threading.Event()
    request = FakePrefect.request

    async def slow(self: FakePrefect, method: str, path: str, *, json: Any) -> None:
        await request(self, method, path, json=json)
        taken.set()
        await asyncio.to_thread(let_go.wait, 20)

    monkeypatch.setattr(FakePrefect, "request", slow)
    run.note(POLL, ENDED)
    run.start()
    await eventually(taken.is_set, "a delivery is under way")
    waits = asyncio.create_task(run.finish())
    await eventually(run.link._ending.is_set, "the end has begun")
    let_go.set()
    assert (await waits).complete
    assert run.prefect.twice == []
    assert "read_events" not in run.prefect.calls


async def test_last_words_that_are_not_answered_are_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bounded time, and what was told is told."""

    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "_FINAL_STEP_S", 0.01)
    monkeypatch.setattr(ArtifactPublisher, "report", hangs)
    run.start()
    assert (await run.finish()).complete


async def test_a_thread_that_breaks_hangs_nobody_and_keeps_what_it_had(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is; what was noted until then is handed on, and what comes after it is not gathered for ever."""

    def no_client() -> None:
        raise SystemExit("whatever it is")

    monkeypatch.setattr(module, "client_without_retries", no_client)
    run.note(POLL, Decided("first", {}))
    run.start()
    await eventually(run.link._result.done, "it has broken")
    run.note(Decided("second", {}))
    assert len(run.link._inbox) == 0
    telling = await run.finish()
    assert (telling.complete, telling.cancelled) == (False, False)
    assert [item.get("event") for kind, item in telling.undelivered if kind == EVENTS] == [
        *("prefect.task-run.Running", "orchestrator.pipeline.first")
    ]
    assert "the Prefect reporter has failed; the pipeline runs on without it" in caplog.text


async def test_a_thread_that_does_not_end_is_given_up_and_may_still_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the patience and a margin; its own end, later, is no error."""
    let_go = threading.Event()

    @asynccontextmanager
    async def hangs() -> Any:
        let_go.wait(20)
        yield run.prefect.client

    monkeypatch.setattr(module, "client_without_retries", hangs)
    monkeypatch.setattr(module, "_MARGIN_S", 0.01)
    run.start()
    assert await run.finish(MS) == DeliveryReport(complete=False, cancelled=False, api_answers=False, undelivered=())
    assert "does not end and is abandoned" in caplog.text
    let_go.set()
    await eventually(run.link._result.done, "the thread ends")
    assert run.link._result.result().complete


async def test_a_caller_that_is_cancelled_while_it_waits_for_the_end_does_not_break_the_thread(run: Run) -> None:
    """It tells the rest all the same."""
    run.prefect.away = True
    run.note(POLL, ENDED)
    run.start()
    waits = asyncio.create_task(run.finish())
    await eventually(lambda: run.link._outcome is not None and run.prefect.calls, "it waits for the end")
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    run.prefect.away = False
    await eventually(run.link._result.done, "the thread ends")
    assert run.prefect.task_run_states() == {"poll": "Completed"}


# A server that is away.


async def test_the_end_waits_for_a_server_that_is_away_as_long_as_it_is_told_to(run: Run) -> None:
    """Then everything is left, each once."""
    run.prefect.away = True
    run.note(POLL, Decided("first", {}), ENDED)
    run.start()
    telling = await run.finish(20 * MS)
    assert not telling.complete
    assert [kind for kind, _ in telling.undelivered] == [*3 * [EVENTS], LOGS]
    assert len({item["id"] for kind, item in telling.undelivered if kind == EVENTS}) == 3


async def test_a_hurry_ends_the_waiting_at_once(run: Run) -> None:
    """An hour of patience is over; a second hurry, after the end, does nothing."""
    run.prefect.away = True
    run.note(POLL)
    run.start()
    ends = asyncio.create_task(run.finish(LONG))
    await eventually(lambda: run.prefect.calls.count("post event") > 3, "it tries again and again")
    assert not ends.done()
    run.link.stop_waiting()
    async with asyncio.timeout(60):
        assert not (await ends).complete
    run.link.stop_waiting()


async def test_a_server_that_comes_back_within_the_patience_is_told_all(run: Run) -> None:
    """And then nobody waits any longer."""
    run.prefect.away = True
    run.note(POLL, ENDED)
    run.start()
    ends = asyncio.create_task(run.finish(LONG))
    await eventually(lambda: run.prefect.calls.count("post event") > 3, "it tries again and again")
    run.prefect.away = False
    async with asyncio.timeout(60):
        assert (await ends).complete
    assert run.prefect.task_run_states() == {"poll": "Completed"}


# What the server says.


@pytest.mark.parametrize("kind", [StateType.CANCELLING, StateType.CANCELLED])
async def test_a_cancellation_is_passed_on_once_and_on_the_data_planes_loop(kind: StateType, run: Run) -> None:
    """However often it is seen; the end says that there was one."""
    run.start()
    await eventually(lambda: run.prefect.calls, "it looks")
    assert run.cancelled == []
    run.prefect.has_flow_run(RUN, state(kind, "by hand"))
    await eventually(lambda: run.cancelled, "it is passed on")
    seen = run.prefect.calls.count("read_flow_run")
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > seen + 3, "it looks again")
    assert (await run.finish()).cancelled
    assert run.cancelled == [("cancelled in Prefect: by hand", threading.get_ident())]


async def test_a_cancellation_that_comes_at_the_very_end_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the last look, where none before it has been."""
    run = Run()
    run.link._options = replace(run.link._options, look_every=LONG)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    run.start()
    await eventually(lambda: "read_flow_run" in run.prefect.calls, "it looks")
    run.prefect.has_flow_run(RUN, state(StateType.CANCELLING))
    assert (await run.finish()).cancelled


async def test_a_run_that_was_taken_for_dead_says_that_it_is_alive(run: Run) -> None:
    """An automation crashed it while its heartbeat was held up; it runs."""
    run.prefect.has_flow_run(RUN, state(StateType.CRASHED, "Reaped"))
    run.start()
    await eventually(lambda: run.prefect.flow_run_state(RUN).type is StateType.RUNNING, "it says so")
    assert run.prefect.flow_run_state(RUN).message == "the run is alive"
    assert (await run.finish()).cancelled is False


async def test_a_run_that_has_ended_does_not_claim_to_be_alive(run: Run) -> None:
    """Its own state is about to be told."""
    run.prefect.has_flow_run(RUN, state(StateType.CRASHED, "Reaped"))
    run.link._outcome = OUTCOME
    run.start()
    assert (await run.finish()).complete
    assert run.prefect.flow_run_state(RUN).message == "Reaped"


async def test_a_flow_run_without_a_state_says_nothing(run: Run) -> None:
    """Nor does one that the server does not know."""
    run.prefect.has_flow_run(RUN, None)
    run.start()
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > 2, "it looks")
    run.prefect.flow_runs.clear()
    seen = run.prefect.calls.count("read_flow_run")
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > seen + 2, "it looks again")
    assert (await run.finish()) == DeliveryReport(complete=True, cancelled=False, api_answers=True, undelivered=())


# Earlier runs.


async def test_earlier_runs_are_put_right_and_this_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier attempt of the same flow run is an earlier run; a file that is none is named, and stays."""
    run = Run(directory=tmp_path)
    run.link._identity = replace(IDENTITY, attempt=2)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    records = RunRecords(tmp_path)
    mine = replace(EARLIER, flow_run_id=RUN, attempt=2)
    first = replace(mine, attempt=1)
    for record in (mine, first, EARLIER):
        records.write(record)
    (tmp_path / "foreign.json").write_text("{}")
    run.prefect.has_flow_run(RUN, state(StateType.RUNNING), attempt=2)
    run.prefect.has_flow_run(EARLIER.flow_run_id, state(StateType.RUNNING))
    task_run = run.prefect.has_task_run(1, EARLIER.flow_run_id, state(StateType.RUNNING))
    run.prefect.away = True
    run.start()
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > 5, "it tries again and again")
    assert len(list(records.all())) == 3
    run.prefect.away = False
    await eventually(lambda: list(records.all()) == [mine], "the others are put right")
    await run.finish()
    assert run.prefect.flow_run_state(RUN).type is StateType.RUNNING
    assert run.prefect.flow_run_state(EARLIER.flow_run_id).message == (
        f"its process no longer exists; reconciled by flow run 'brave-otter' ({RUN})"
    )
    task_run_state = run.prefect.task_runs[task_run].state
    assert task_run_state is not None
    assert task_run_state.type is StateType.CRASHED
    assert f"{tmp_path / 'foreign.json'} is not a valid run record; it is left unchanged" in caplog.messages
    told = f"earlier run old-owl ({EARLIER.flow_run_id}): set to Crashed, 1 of its task runs to Crashed"
    assert [line for line in caplog.messages if line.startswith("earlier run")] == [told]
