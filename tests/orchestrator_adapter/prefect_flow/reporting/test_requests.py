"""Who may stop a compiled flow, and how often that counts; and the record that a run keeps of itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter.prefect_flow import compiled
from orchestrator_adapter.prefect_flow.compiled import RunRecordFile, _StopRequests
from orchestrator_adapter.prefect_flow.recovery.records import RunRecords
from orchestrator_adapter.prefect_flow.reporting.reporter import DeliveryReport, Reporter
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.storage.claims import Claimed
from orchestrator_adapter.testing import run_schedule
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, state

TERM, INT, CANCEL = "SIGTERM", "SIGINT", "cancelled in Prefect: by hand"


class Graph:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def request_shutdown(self, reason: str) -> None:
        self.asked.append(reason)


class Link:
    """Counts how often it is hurried."""

    def __init__(self) -> None:
        self.hurried = 0

    def stop_waiting(self) -> None:
        self.hurried += 1


def attach(requests: _StopRequests, graph: Graph, link: Link) -> None:
    requests.attach(cast("BuiltGraph", graph), cast("Reporter", link))


def asked(*script: tuple[float, str]) -> list[str]:
    """What the graph is asked for, if these come so many seconds after the start."""
    graph = Graph()

    async def main() -> None:
        requests, loop = _StopRequests(), asyncio.get_running_loop()
        attach(requests, graph, Link())
        for at, what in script:
            await asyncio.sleep(at - loop.time())
            if what == CANCEL:
                requests.cancelled(what)
            else:
                requests.signalled(what)

    run_schedule({}, main)
    return graph.asked


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([], []),
        ([(0, TERM)], [TERM]),
        ([(0, CANCEL)], [CANCEL]),
        # Prefect's cancellation under a worker: a state, and the worker's signal.
        ([(0, CANCEL), (0.5, TERM)], [CANCEL]),
        ([(0, CANCEL), (30, TERM)], [CANCEL]),
        ([(0, TERM), (3, CANCEL)], [TERM]),
        ([(0, CANCEL), (0.5, TERM), (5, TERM)], [CANCEL, TERM]),
        ([(0, CANCEL), (0.5, TERM), (0.6, TERM)], [CANCEL, TERM]),
        # Two signals are two …
        ([(0, TERM), (0.1, TERM)], [TERM, TERM]),
        ([(0, INT), (0.0, INT)], [INT, INT]),
        ([(0, TERM), (10, INT)], [TERM, INT]),
        # … unless a terminal and the worker behind it say the same.
        ([(0, INT), (0.5, TERM)], [INT]),
        ([(0, INT), (1.0, TERM)], [INT]),
        ([(0, INT), (1.01, TERM)], [INT, TERM]),
        ([(0, TERM), (0.9, INT)], [TERM]),
        ([(0, INT), (0.2, TERM), (0.4, INT)], [INT, INT]),
        ([(0, INT), (0.2, TERM), (5, INT), (5.1, TERM)], [INT, INT, TERM]),
    ],
)
def test_how_often_the_graph_is_asked(script: list[tuple[float, str]], expected: list[str]) -> None:
    """The second request aborts: a cancellation that comes twice may not, and an impatient person must be able to."""
    assert asked(*script) == expected


async def test_what_comes_before_the_graph_is_there_is_passed_on_to_it() -> None:
    """All of it, in order; and then it is asked directly."""
    requests, graph = _StopRequests(), Graph()
    requests.signalled(TERM)
    requests.signalled(TERM)
    assert graph.asked == []
    attach(requests, graph, Link())
    assert graph.asked == [TERM, TERM]
    requests.signalled(TERM)
    assert graph.asked == [TERM, TERM, TERM]


async def test_who_asked_is_known() -> None:
    """A run that Prefect asked to stop is Cancelled, one that a signal ended is Completed."""
    requests = _StopRequests()
    requests.signalled(TERM)
    assert not requests.by_prefect
    requests.cancelled(CANCEL)
    assert requests.by_prefect


async def test_after_the_end_a_signal_ends_the_waiting_for_prefect() -> None:
    """The graph has nothing to stop any more. Before it, a signal hurries nobody."""
    requests, graph, link = _StopRequests(), Graph(), Link()
    attach(requests, graph, link)
    requests.signalled(TERM)
    assert link.hurried == 0
    requests.ended = True
    requests.signalled(INT)
    requests.signalled(TERM)
    assert link.hurried == 2
    assert graph.asked == [TERM]


async def test_a_signal_after_an_end_that_never_had_a_link_is_no_error() -> None:
    """The run did not come about."""
    requests = _StopRequests()
    requests.ended = True
    requests.signalled(TERM)


# The record.


def record_file(folder: Path | None) -> RunRecordFile:
    return RunRecordFile(IDENTITY, folder)


def test_a_run_has_a_record_from_its_beginning_which_says_how_it_ended(tmp_path: Path) -> None:
    """First who it is; then the outcome, and the last word on it counts."""
    its = record_file(tmp_path)
    its.open()
    (begun,) = RunRecords(tmp_path).all()
    assert (begun.flow_run_id, begun.flow_run_name, begun.pipeline, begun.attempt) == (
        *(IDENTITY.flow_run_id, "brave-otter", "radar-net"),
        1,
    )
    assert (begun.state_type, begun.exit_code) == (None, None)
    its.record_outcome(state(StateType.COMPLETED, "ShutDown"), 0)
    its.record_outcome(state(StateType.CANCELLED, "ShutDown: by hand"), 0)
    (ended,) = RunRecords(tmp_path).all()
    assert ended == replace(begun, state_type="CANCELLED", state_message="ShutDown: by hand", exit_code=0)


def test_a_run_that_did_not_come_about_leaves_no_record(tmp_path: Path) -> None:
    """Nor does one that has not begun."""
    its = record_file(tmp_path)
    its.discard()
    its.open()
    its.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_prefect_was_not_told_is_kept_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of it, where there is nothing."""
    its = record_file(tmp_path)
    its.open()
    its.keep(DeliveryReport(complete=True, cancelled=False, api_answers=True))
    (record,) = RunRecords(tmp_path).all()
    assert RunRecords(tmp_path).undelivered(record) == []
    left = ((EVENTS, {"id": "a"}), (EVENTS, {"id": "b"}))
    its.keep(DeliveryReport(complete=False, cancelled=False, api_answers=False, undelivered=left))
    assert RunRecords(tmp_path).undelivered(record) == list(left)
    assert caplog.messages == [
        f"Prefect could not be told everything: 2 events and log lines are kept in {tmp_path} for the next start"
    ]


def test_a_disk_that_fails_costs_the_record_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it runs. Before that it is better not to begin."""
    its = record_file(tmp_path)
    its.open()

    def full(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    for name in ("write", "write_undelivered"):
        monkeypatch.setattr(RunRecords, name, full)
    its.record_outcome(state(StateType.COMPLETED), 0)
    its.keep(DeliveryReport(complete=False, cancelled=False, api_answers=False, undelivered=((EVENTS, {}),)))
    assert len(caplog.messages) == 2
    assert all("could not be written" in message for message in caplog.messages)
    with pytest.raises(OSError, match="No space left"):
        record_file(tmp_path).open()


def test_without_a_folder_nothing_is_kept() -> None:
    """And nothing fails."""
    its = record_file(None)
    with its.claimed("radar-net"):
        its.open()
        its.record_outcome(state(StateType.COMPLETED), 0)
        its.keep(DeliveryReport(complete=False, cancelled=False, api_answers=False, undelivered=((EVENTS, {}),)))
        its.discard()


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    """Whoever else wants it is told who has it, also by another name; afterwards it is free."""
    with (
        record_file(tmp_path).claimed("radar-net"),
        pytest.raises(Claimed, match=r"pipeline 'radar-net'.*flow run 'brave-otter'"),
        record_file(tmp_path / "." / ".." / tmp_path.name).claimed("radar-net"),
    ):
        raise AssertionError("two runs have it")
    with record_file(tmp_path).claimed("radar-net"):
        pass


def test_a_flow_called_outside_a_flow_run_says_what_to_call() -> None:
    """Its function alone has no run to tell of."""
    with pytest.raises(RuntimeError, match="called outside a flow run; call the flow, or run_pipeline"):
        compiled._identity("radar-net", "sda-ingest")
