"""What counts as a request to stop a compiled flow."""

from __future__ import annotations

import asyncio
from typing import cast
from uuid import UUID, uuid4

import pytest

from orchestrator_adapter.prefect_flow import compiled
from orchestrator_adapter.prefect_flow.compiled import _StopRequests
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.reporter import Reporter
from orchestrator_adapter.process import RunOutcome, exit_code
from orchestrator_adapter.supervision.events import RunFigures
from orchestrator_adapter.testing import run_schedule
from tests.helpers.figures import FIGURES, STUCK, shut_down

TERM, INT, CANCEL = "SIGTERM", "SIGINT", "cancelled in Prefect: by hand"

MINE = RunIdentity("toy", "toy-stream", uuid4(), "radar-net", uuid4())


class Graph:
    """Records the shutdown requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def request_shutdown(self, reason: str) -> None:
        self.asked.append(reason)


class FakeReporter:
    """Counts the calls of ``stop_waiting``."""

    def __init__(self) -> None:
        self.stop_calls = 0

    def stop_waiting(self) -> None:
        self.stop_calls += 1


def attach(requests: _StopRequests, graph: Graph, reporter: FakeReporter) -> None:
    requests.reporter = cast("Reporter", reporter)
    requests.attach(graph)


def asked(*script: tuple[float, str]) -> list[str]:
    """The shutdown requests that the graph gets, for requests at these seconds after the start."""
    graph = Graph()

    async def main() -> None:
        requests, loop = _StopRequests(), asyncio.get_running_loop()
        attach(requests, graph, FakeReporter())
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
        # A cancellation under a worker arrives as a state and as the worker's signal.
        ([(0, CANCEL), (0.5, TERM)], [CANCEL]),
        ([(0, CANCEL), (30, TERM)], [CANCEL]),
        ([(0, TERM), (3, CANCEL)], [TERM]),
        ([(0, CANCEL), (0.5, TERM), (5, TERM)], [CANCEL, TERM]),
        ([(0, CANCEL), (0.5, TERM), (0.6, TERM)], [CANCEL, TERM]),
        # Two signals are two requests …
        ([(0, TERM), (0.1, TERM)], [TERM, TERM]),
        ([(0, INT), (0.0, INT)], [INT, INT]),
        ([(0, TERM), (10, INT)], [TERM, INT]),
        # … except a Ctrl-C that the terminal and the worker both deliver.
        ([(0, INT), (0.5, TERM)], [INT]),
        ([(0, INT), (1.0, TERM)], [INT]),
        ([(0, INT), (1.01, TERM)], [INT, TERM]),
        ([(0, TERM), (0.9, INT)], [TERM]),
        ([(0, INT), (0.2, TERM), (0.4, INT)], [INT, INT]),
        ([(0, INT), (0.2, TERM), (5, INT), (5.1, TERM)], [INT, INT, TERM]),
    ],
)
def test_duplicate_stop_requests_count_once(script: list[tuple[float, str]], expected: list[str]) -> None:
    """A second request aborts operators. A cancellation that arrives twice must not; a second Ctrl-C must."""
    assert asked(*script) == expected


async def test_requests_before_the_graph_is_built_are_passed_on_to_it() -> None:
    """All of them, in order; later requests go to the graph directly."""
    requests, graph = _StopRequests(), Graph()
    requests.signalled(TERM)
    requests.signalled(TERM)
    assert graph.asked == []
    attach(requests, graph, FakeReporter())
    assert graph.asked == [TERM, TERM]
    requests.signalled(TERM)
    assert graph.asked == [TERM, TERM, TERM]


async def test_a_cancellation_by_prefect_is_remembered() -> None:
    """A run that Prefect asked to stop is Cancelled, one that a signal ended is Completed."""
    requests = _StopRequests()
    requests.signalled(TERM)
    assert not requests.by_prefect
    requests.cancelled(CANCEL)
    assert requests.by_prefect


async def test_after_the_graph_has_ended_a_signal_ends_the_wait_for_prefect() -> None:
    """Before that, a signal stops the graph and does not affect the wait."""
    requests, graph, reporter = _StopRequests(), Graph(), FakeReporter()
    attach(requests, graph, reporter)
    requests.signalled(TERM)
    assert reporter.stop_calls == 0
    requests.graph_ended = True
    requests.signalled(INT)
    requests.signalled(TERM)
    assert reporter.stop_calls == 2
    assert graph.asked == [TERM]


async def test_a_signal_without_a_reporter_is_not_an_error() -> None:
    """The run did not start."""
    requests = _StopRequests()
    requests.graph_ended = True
    requests.signalled(TERM)


def test_a_flow_called_outside_a_flow_run_says_what_to_call() -> None:
    """The flow's function alone has no flow run to report to."""
    with pytest.raises(RuntimeError, match="called outside a flow run; call the flow, or run_pipeline"):
        compiled._identity("radar-net", "sda-ingest")


@pytest.mark.parametrize(
    ("figures", "run_of_process", "ended"),
    [(STUCK, MINE.flow_run_id, [5]), (FIGURES, MINE.flow_run_id, []), (STUCK, uuid4(), []), (STUCK, None, [])],
)
def test_only_the_process_of_a_workers_flow_run_is_ended_and_only_for_a_straggler(
    figures: RunFigures, run_of_process: UUID | None, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does more than this flow run decides itself when it ends."""
    codes: list[int] = []

    def end(exit_code: int, *, within_s: float) -> None:
        codes.append(exit_code)

    monkeypatch.setattr(compiled, "end_process", end)
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    if run_of_process is not None:
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run_of_process))
    event = shut_down(figures)
    compiled._end_own_process(RunOutcome(event, exit_code(event), ()), MINE)
    assert codes == ended
