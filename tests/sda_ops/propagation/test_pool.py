from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sgp4.api import SatrecArray

from orchestrator_adapter.bulkhead import Bulkhead, BulkheadEvent
from orchestrator_adapter.supervision.restart import RestartPolicy
from sda_ops.astro.propagation import Engine, PropagationError, States, sgp4_states
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, Nanoseconds
from sda_ops.catalog import ElementColumns, ElementSet, read_catalog, synthetic_catalog
from sda_ops.propagation.pool import (
    BYTES_PER_STATE,
    CatalogMismatch,
    InlinePropagator,
    PropagatorPool,
    Workers,
    split_request,
)
from sda_ops.propagation.worker import Arrays, PropagationWorker
from tests.helpers.support import SDA_DATA_DIR

NOW_NS = 1_790_000_000_000_000_000
MARCH_10TH_2026_NS = 1_773_144_000 * NS_PER_S
ONE_MILLIONTH_KILOMETRE = 1e-3
CATALOG = synthetic_catalog(objects=100, epoch_ns=NOW_NS)
OTHER_CATALOG = synthetic_catalog(objects=80, epoch_ns=NOW_NS, seed=7)


def minutes_later(*minutes: int) -> Nanoseconds:
    return NOW_NS + np.array(minutes) * 60 * NS_PER_S


def sgp4_says(catalog: tuple[ElementSet, ...], time_ns: Nanoseconds) -> States:
    return sgp4_states(SatrecArray([elements.satrec for elements in catalog]), time_ns)


def assert_equal(ours: States, theirs: States) -> None:
    np.testing.assert_array_equal(ours.error, theirs.error)
    np.testing.assert_array_equal(ours.r_teme_m, theirs.r_teme_m)
    np.testing.assert_array_equal(ours.v_teme_m_s, theirs.v_teme_m_s)


class SlowWorkers:
    """Handlers in this process whose answers come when they are let go, the last first; every request is kept."""

    def __init__(self, count: int = 1) -> None:
        self.handlers = [PropagationWorker() for _ in range(count)]
        self.requests: list[Arrays] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.abandoned = 0
        self.held = False
        self.share_fails_after: int | None = None

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        handler = self.handlers[len(self.requests) % len(self.handlers)]
        self.requests.append(arrays)
        if self.held:
            self.waiting.append(asyncio.get_running_loop().create_future())
            try:
                await self.waiting[-1]
            except asyncio.CancelledError:
                self.abandoned += 1
                raise
        return handler.handle(method, arrays)

    async def share(self, key: str, arrays: Arrays) -> None:
        for number, handler in enumerate(self.handlers):
            if number == self.share_fails_after:
                raise OSError("lost")
            handler.share(key, arrays)
            await asyncio.sleep(0)

    async def let_go(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        for future in reversed(self.waiting):
            future.set_result(None)
            await asyncio.sleep(0)
        self.waiting.clear()
        self.held = False


async def pool_of(workers: Workers, **options: Any) -> PropagatorPool:
    pool = PropagatorPool(workers, **{"engine": "sgp4", **options})
    await pool.use_catalog(ElementColumns.of(CATALOG))
    return pool


@given(
    objects=st.integers(0, 100),
    times=st.integers(0, 100),
    chunk=st.integers(1, 20_000),
    keep=st.booleans(),
)
def test_pieces_cover_every_state_once_and_are_no_larger_than_allowed(
    *, objects: int, times: int, chunk: int, keep: bool
) -> None:
    """Every object and time is in exactly one piece, in order; a piece has one state at least, or fits, or is one time."""
    covered = np.zeros((objects, times), dtype=np.int64)
    pieces = split_request(objects, times, chunk_bytes=chunk, keep_objects=keep)
    for rows, columns in pieces:
        covered[rows, columns] += 1
        states = covered[rows, columns].size
        assert states > 0
        if keep:
            assert rows == slice(0, objects)
            assert states * BYTES_PER_STATE <= chunk or columns.stop - columns.start == 1
        else:
            assert states * BYTES_PER_STATE <= chunk or states == 1
    assert np.all(covered == 1)
    starts = [(rows.start, columns.start) for rows, columns in pieces]
    assert starts == sorted(starts)


def test_pieces_are_few() -> None:
    """14,683 objects at 60 times in 2 MiB answers are 21 pieces, and 30 where all objects must stay together."""
    assert len(split_request(14_683, 60, chunk_bytes=2 << 20, keep_objects=False)) == 21
    assert len(split_request(14_683, 60, chunk_bytes=2 << 20, keep_objects=True)) == 30


@pytest.mark.parametrize("chunk_bytes", [1, 500, 5_000, 1 << 20])
async def test_answers_in_any_order_are_put_where_they_belong(chunk_bytes: int) -> None:
    """Cut into pieces of any size and answered last first by three workers, the states are sgp4's to the bit."""
    workers = SlowWorkers(3)
    pool = await pool_of(workers, chunk_bytes=chunk_bytes)
    workers.held = True
    asked = asyncio.create_task(pool.propagate(None, minutes_later(0, 10, 20)))
    await workers.let_go()
    assert_equal(await asked, sgp4_says(CATALOG, minutes_later(0, 10, 20)))


@pytest.mark.parametrize("engine", ["sgp4", "auto"])
async def test_a_selection_is_those_objects_in_that_order(engine: str) -> None:
    """Rows asked for, in any order and twice over, come back in that order, in pieces or whole; one time may be a number."""
    pool = await pool_of(SlowWorkers(2), engine=engine, chunk_bytes=200)
    rows = np.array([70, 2, 2, 99])
    whole = sgp4_says(CATALOG, minutes_later(5, 6))
    states = await pool.propagate(rows, minutes_later(5, 6))
    assert_equal(states, States(whole.r_teme_m[rows], whole.v_teme_m_s[rows], whole.error[rows]))
    one = await pool.propagate(rows, minutes_later(5)[0])
    np.testing.assert_array_equal(one.r_teme_m, whole.r_teme_m[rows, :1])


async def test_no_objects_or_no_times_are_empty_states() -> None:
    """Nothing asked for is nothing computed, in the right shape, and no worker is asked."""
    workers = SlowWorkers()
    pool = await pool_of(workers)
    nothing = np.empty(0, dtype=np.int64)
    assert (await pool.propagate(nothing, minutes_later(0, 1))).r_teme_m.shape == (0, 2, 3)
    assert (await pool.propagate(None, nothing)).v_teme_m_s.shape == (100, 0, 3)
    assert workers.requests == []


@pytest.mark.parametrize(("rows", "message"), [([0, 100], r"0\.\.99, got 0\.\.100"), ([-1], r"0\.\.99, got -1\.\.-1")])
async def test_a_row_that_is_not_there_is_the_callers_error(rows: list[int], message: str) -> None:
    """A row beyond the catalogue, or a negative one, is an IndexError before any worker is asked."""
    workers = SlowWorkers()
    pool = await pool_of(workers)
    with pytest.raises(IndexError, match=message):
        await pool.propagate(np.array(rows), minutes_later(0))
    assert workers.requests == []


async def test_without_a_catalogue_nothing_is_propagated() -> None:
    """Asked before it has a catalogue, the pool says so; told to cut into nothing, likewise."""
    with pytest.raises(RuntimeError, match="call use_catalog first"):
        await PropagatorPool(SlowWorkers()).propagate(None, minutes_later(0))
    with pytest.raises(ValueError, match="chunk_bytes must be >= 1, got 0"):
        PropagatorPool(SlowWorkers(), chunk_bytes=0)


async def test_what_cannot_be_propagated_is_marked_and_the_rest_is_finite() -> None:
    """Stale by the pool's own max_age: marked, NaN, not usable; everything else is finite. With no bound nothing is stale."""
    strict = await pool_of(SlowWorkers(), max_age=timedelta(hours=1))
    states = await strict.propagate(None, minutes_later(0, 59, 61))
    assert np.all(states.error == [PropagationError.NONE, PropagationError.NONE, PropagationError.STALE])
    np.testing.assert_array_equal(states.usable, ~np.isnan(states.r_teme_m).any(axis=-1))
    np.testing.assert_array_equal(states.usable, ~np.isnan(states.v_teme_m_s).any(axis=-1))
    lax = await pool_of(SlowWorkers(), max_age=None)
    assert (await lax.propagate(None, minutes_later(60 * 24 * 40))).usable.any()


async def test_a_request_under_way_finishes_with_the_catalogue_it_began_with() -> None:
    """Reloaded in between, a held request's states are the old catalogue's, all of them; the next one's are the new."""
    workers = SlowWorkers(2)
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.held = True
    asked = asyncio.create_task(pool.propagate(None, minutes_later(0)))
    await asyncio.sleep(0)
    assert await pool.use_catalog(ElementColumns.of(OTHER_CATALOG)) == 2
    await workers.let_go()
    assert_equal(await asked, sgp4_says(CATALOG, minutes_later(0)))
    assert_equal(await pool.propagate(None, minutes_later(0)), sgp4_says(OTHER_CATALOG, minutes_later(0)))


async def test_two_reloads_later_a_request_is_refused_not_mixed() -> None:
    """A request whose catalogue no worker has any more fails with both version numbers; the other pieces are abandoned."""
    workers = SlowWorkers()
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.held = True
    asked = asyncio.create_task(pool.propagate(None, minutes_later(0)))
    await asyncio.sleep(0)
    await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
    await pool.use_catalog(ElementColumns.of(CATALOG))
    for _ in range(5):
        await asyncio.sleep(0)
    workers.waiting[0].set_result(None)
    with pytest.raises(CatalogMismatch, match="expected catalogue version 1, the worker has 3") as caught:
        await asked
    assert (caught.value.expected, caught.value.got) == (1, 3)
    assert workers.abandoned == len(workers.waiting) - 1 > 0


async def test_an_answer_of_another_version_is_refused() -> None:
    """A worker that answers with states of a version that was not asked for is not believed."""

    class Confused(SlowWorkers):
        async def call(self, method: str, arrays: Arrays) -> Arrays:
            answer = dict(await super().call(method, arrays))
            return {**answer, "propagation.version": np.array([9])}

    pool = await pool_of(Confused())
    with pytest.raises(CatalogMismatch, match="expected catalogue version 1, the worker has 9"):
        await pool.propagate(None, minutes_later(0))


async def test_a_worker_without_a_catalogue_is_refused() -> None:
    """A worker that has been given nothing says version 0, and its answer is an error."""
    workers = SlowWorkers()
    pool = await pool_of(workers)
    workers.handlers[0] = PropagationWorker()
    with pytest.raises(CatalogMismatch, match="the worker has 0"):
        await pool.propagate(None, minutes_later(0))


async def test_a_catalogue_that_could_not_be_shared_changes_nothing() -> None:
    """However often sharing fails half-way, every worker still answers with the catalogue in use; then the next is taken."""
    workers = SlowWorkers(2)
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.share_fails_after = 1
    for _ in range(3):
        with pytest.raises(OSError, match="lost"):
            await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
    assert pool.catalog_version == 1
    assert_equal(await pool.propagate(None, minutes_later(0)), sgp4_says(CATALOG, minutes_later(0)))
    workers.share_fails_after = None
    await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
    assert_equal(await pool.propagate(None, minutes_later(0)), sgp4_says(OTHER_CATALOG, minutes_later(0)))


async def test_two_reloads_at_once_take_turns() -> None:
    """Of two catalogues shared at the same time each is answered from as soon as it is in use; the later one stays."""
    workers = SlowWorkers(2)
    pool = await pool_of(workers)

    async def reload(catalog: tuple[ElementSet, ...]) -> tuple[int, States]:
        return await pool.use_catalog(ElementColumns.of(catalog)), await pool.propagate(None, minutes_later(0))

    (first, there), (second, then) = await asyncio.gather(reload(OTHER_CATALOG), reload(CATALOG[:10]))
    assert (first, second) == (2, 3)
    assert_equal(there, sgp4_says(OTHER_CATALOG, minutes_later(0)))
    assert_equal(then, sgp4_says(CATALOG[:10], minutes_later(0)))
    assert_equal(await pool.propagate(None, minutes_later(0)), sgp4_says(CATALOG[:10], minutes_later(0)))


@pytest.mark.parametrize("engine", ["sgp4", "auto"])
async def test_the_worker_computes_with_the_pools_engine(engine: Engine) -> None:
    """heyoka, kept to one thread, is asked for the whole catalogue, some times a piece; sgp4 for some objects at all times."""
    heyoka = pytest.importorskip("heyoka", reason="the extra 'heyoka' is not installed")
    heyoka.set_nthreads(2)
    workers = SlowWorkers()
    pool = await pool_of(workers, engine=engine, chunk_bytes=200 * BYTES_PER_STATE)
    assert heyoka.get_nthreads() == 1
    ((_, propagator),) = workers.handlers[0]._catalogs.values()
    assert propagator.engine == {"sgp4": "sgp4", "auto": "heyoka"}[engine]
    await pool.propagate(None, minutes_later(0, 1, 2, 3))
    asked = [(len(request.get("objects", CATALOG)), len(request["timestamp_ns"])) for request in workers.requests]
    assert asked == ([(50, 4), (50, 4)] if engine == "sgp4" else [(100, 2), (100, 2)])
    workers.requests.clear()
    await pool.propagate(np.arange(80), minutes_later(0, 1, 2, 3, 4))
    assert [(len(request["objects"]), len(request["timestamp_ns"])) for request in workers.requests] == [
        (40, 5),
        (40, 5),
    ]


async def test_a_cancelled_request_abandons_its_pieces() -> None:
    """Cancelled while workers compute, every piece is given up, and the pool goes on."""
    workers = SlowWorkers()
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.held = True
    asked = asyncio.create_task(pool.propagate(None, minutes_later(0)))
    for _ in range(5):
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert workers.abandoned == len(workers.requests) == 5
    workers.held = False
    assert (await pool.propagate(None, minutes_later(0))).usable.all()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda worker: worker.handle("predict", {}),
        lambda worker: worker.share("sites", {}),
    ],
)
def test_a_worker_does_nothing_else(misuse: Callable[[PropagationWorker], object]) -> None:
    """Another method or another share is an error that names what came."""
    with pytest.raises(ValueError, match=r"got '(predict|sites)'"):
        misuse(PropagationWorker())


def processes(on_event: Callable[[BulkheadEvent], object] | None = None) -> Bulkhead:
    return Bulkhead(
        "propagator",
        "sda_ops.propagation.worker:PropagationWorker",
        workers=2,
        answer_within=timedelta(seconds=30),
        rebuilds=RestartPolicy.bounded(3, timedelta(minutes=1)),
        on_event=on_event,
    )


@pytest.fixture(scope="module")
def real_catalog() -> ElementColumns:
    path = SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv"
    if not path.exists():
        pytest.skip(f"real data absent: no {path} (set SDA_DATA_DIR)")
    return ElementColumns.of(read_catalog(path).element_sets)


@pytest.mark.parametrize(("engine", "tolerance_m"), [("sgp4", 0.0), ("auto", ONE_MILLIONTH_KILOMETRE)])
async def test_real_processes_compute_the_real_catalogue(
    real_catalog: ElementColumns, engine: Engine, tolerance_m: float
) -> None:
    """14,683 real objects at 4 times, cut in pieces, by two processes: sgp4's states to the bit, heyoka's to 1e-6 km."""
    times_ns = MARCH_10TH_2026_NS + np.array([-40, 0, 1, 20]) * NS_PER_DAY
    inline = InlinePropagator(engine="sgp4")
    await inline.use_catalog(real_catalog)
    here = await inline.propagate(None, times_ns)
    async with processes() as bulkhead:
        pool = PropagatorPool(bulkhead, engine=engine, chunk_bytes=800_000)
        await pool.use_catalog(real_catalog)
        there = await pool.propagate(None, times_ns)
        assert bulkhead.statistics().answered == 4
    np.testing.assert_array_equal(there.error, here.error)
    np.testing.assert_allclose(there.r_teme_m, here.r_teme_m, rtol=0, atol=tolerance_m)
    assert np.count_nonzero(there.error[:, 0] == PropagationError.STALE) > 14_000
    assert np.count_nonzero(there.usable[:, 1:]) > 40_000


async def test_a_worker_that_is_killed_is_replaced_by_one_that_has_the_catalogue() -> None:
    """Both processes killed after a reload, their successors answer, with the newest catalogue."""
    ready: asyncio.Queue[BulkheadEvent] = asyncio.Queue()

    def note(event: BulkheadEvent) -> None:
        if event.decision == "worker_ready":
            ready.put_nowait(event)

    async with processes(note) as bulkhead:
        pool = await pool_of(bulkhead)
        await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
        for pid in bulkhead.statistics().pids.values():
            os.kill(pid, signal.SIGKILL)
        for _ in range(4):  # two that were, two that come
            await ready.get()
        answers = await asyncio.gather(*(pool.propagate(None, minutes_later(0)) for _ in range(4)))
        assert bulkhead.statistics().restarts == 2
    for answer in answers:
        assert_equal(answer, sgp4_says(OTHER_CATALOG, minutes_later(0)))
