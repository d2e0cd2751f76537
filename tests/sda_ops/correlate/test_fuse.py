"""The ``fuse`` operator in running graphs."""

from __future__ import annotations

from datetime import timedelta

from orchestrator_adapter import (
    BuiltGraph,
    source_of,
)
from orchestrator_adapter.testing import (
    CollectSink,
    ListSource,
    ManualClock,
    Pause,
    UntilShutdown,
    chain,
    run_graph,
    settle,
)
from sda_ops.astro.time import NS_PER_S
from sda_ops.correlate.fuse import fuse
from sda_ops.correlate.windows import WindowLimits
from sda_ops.records.correlation import Correlation
from tests.helpers.running import Fault, GatedSink, counter, eventually
from tests.scenes.operators import (
    beacons,
    correlate,
    correlations_of,
    fusing,
    propagate,
    updates_of,
)


async def correlations(*batches: tuple[int, str]) -> list[list[Correlation]]:
    """For each batch, the correlations of so many beacons of one sensor."""
    found: list[list[Correlation]] = []
    for count, source_id in batches:
        sink = CollectSink()
        observations = beacons([1.0] * count, source_id=source_id)
        await run_graph(chain(source_of(observations), propagate(), correlate(), sink))
        found.append(sink.items)
    return found


async def test_a_window_closes_at_its_time_without_further_input() -> None:
    """It does not close a millisecond earlier. The correlations have been passed on before."""
    clock, sink = ManualClock(), CollectSink()
    first, second = await correlations((3, "isl-1"), (3, "isl-2"))
    source = ListSource(first, Pause(timedelta(seconds=1.5)), second, UntilShutdown())
    seen: list[tuple[int, int]] = []

    async def advance(built: BuiltGraph) -> None:
        await eventually(lambda: len(sink.items) == 3, "the first sensor's correlations arrive")
        await clock.advance_when_idle(1.5)
        await eventually(lambda: len(sink.items) == 6, "the second sensor's correlations arrive")
        await clock.advance_when_idle(0.499)
        seen.append((len(updates_of(sink.items)), counter(built, "open_windows", "fuse") or 0))
        await clock.advance_when_idle(0.001)
        await eventually(lambda: len(sink.items) == 9, "the windows close")
        seen.append((len(updates_of(sink.items)), counter(built, "open_windows", "fuse") or 0))
        built.request_shutdown("seen")

    event = await run_graph(fusing(source, fuse(), sink=sink), clock=clock, during=advance)
    assert seen == [(0, 3), (3, 0)]
    start_ns = ManualClock().now_ns()
    for update in updates_of(sink.items):
        assert (update.opened_timestamp, update.closed_timestamp) == (start_ns, start_ns + 2 * NS_PER_S)
    assert event.figures.ledger_holds


async def test_a_window_that_is_due_closes_before_waiting_input_is_added() -> None:
    """The operator is blocked by its output until the windows are due. The second sensor's waiting input is too late for them."""
    clock, sink = ManualClock(), GatedSink()
    first, second = await correlations((2, "isl-1"), (1, "isl-2"))

    async def advance(_: BuiltGraph) -> None:
        await settle()
        clock.advance(2.0)
        sink.gate.set()

    graph = fusing(source_of([*first, *second]), fuse(), sink=sink, capacity=1)
    event = await run_graph(graph, clock=clock, during=advance)
    assert sink.items == [*first, *second]
    assert event.figures.counters["fuse"] == {"updates": 0, "open_windows": 0, "closed_early": 0}


async def test_an_update_follows_the_correlations_that_it_is_made_of() -> None:
    """A full window closes at once, before later correlations."""
    first, second = await correlations((3, "isl-1"), (3, "isl-2"))
    sink = CollectSink()
    graph = fusing(source_of([*first, *second]), fuse(WindowLimits(max_contributions=2)), sink=sink)
    event = await run_graph(graph, clock=ManualClock())
    kinds = [type(item).__name__ for item in sink.items]
    assert kinds == ["Correlation"] * 3 + ["Correlation", "CrossSensorUpdate"] * 3
    assert correlations_of(sink.items) == [*first, *second]
    assert (event.figures.ledger.derived, event.figures.ledger.absorbed) == (3, 0)


async def test_windows_that_close_early_because_of_max_open_are_counted() -> None:
    """There are ten objects and at most four open windows."""
    (found,) = await correlations((10, "isl-1"))
    sink = CollectSink()
    event = await run_graph(fusing(source_of(found), fuse(WindowLimits(max_open=4)), sink=sink), clock=ManualClock())
    assert sink.items == found
    assert event.figures.counters["fuse"] == {"updates": 0, "open_windows": 0, "closed_early": 6}


async def test_the_windows_outlive_the_instance() -> None:
    """Correlations before a restart and after it still make one update for each object."""
    clock, sink, fault = ManualClock(), CollectSink(), Fault(fuse(WindowLimits(length=timedelta(hours=1))))
    first, second = await correlations((3, "isl-1"), (3, "isl-2"))
    source = ListSource(first, Pause(timedelta(minutes=1)), second)

    async def strike(_: BuiltGraph) -> None:
        await eventually(lambda: len(sink.items) == 3, "the first sensor's correlations arrive")
        fault.strike()
        await clock.advance_when_idle(5.0)  # the longest backoff
        await eventually(lambda: fault.instances == 2, "the operator is restarted")
        await clock.advance_when_idle(60.0)

    event = await run_graph(fusing(source, fault, sink=sink), clock=clock, during=strike)
    assert event.figures.restarts["fuse"].total == 1
    assert correlations_of(sink.items) == [*first, *second]
    assert [len(update.contributions) for update in updates_of(sink.items)] == [2, 2, 2]
    assert event.figures.ledger_holds
