"""`PropagatorPool` and `PropagationWorker`: requests in pieces, catalogue versions, and real worker processes."""

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


def states_by_sgp4(catalog: tuple[ElementSet, ...], time_ns: Nanoseconds) -> States:
    return sgp4_states(SatrecArray([elements.satrec for elements in catalog]), time_ns)


def assert_equal(ours: States, theirs: States) -> None:
    np.testing.assert_array_equal(ours.error, theirs.error)
    np.testing.assert_array_equal(ours.r_teme_m, theirs.r_teme_m)
    np.testing.assert_array_equal(ours.v_teme_m_s, theirs.v_teme_m_s)


class SlowWorkers:
    """Handlers in this process. Every request is recorded. While ``blocked``, calls wait for `release`, last one first."""

    def __init__(self, count: int = 1) -> None:
        self.handlers = [PropagationWorker() for _ in range(count)]
        self.requests: list[Arrays] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.cancelled = 0
        self.blocked = False
        self.share_fails_after: int | None = None

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        handler = self.handlers[len(self.requests) % len(self.handlers)]
        self.requests.append(arrays)
        if self.blocked:
            self.waiting.append(asyncio.get_running_loop().create_future())
            try:
                await self.waiting[-1]
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return handler.handle(method, arrays)

    async def share(self, key: str, arrays: Arrays) -> None:
        for number, handler in enumerate(self.handlers):
            if number == self.share_fails_after:
                raise OSError("lost")
            handler.share(key, arrays)
            await asyncio.sleep(0)

    async def release(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        for future in reversed(self.waiting):
            future.set_result(None)
            await asyncio.sleep(0)
        self.waiting.clear()
        self.blocked = False


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
def test_pieces_cover_every_state_once_and_respect_the_size_limit(
    *, objects: int, times: int, chunk: int, keep: bool
) -> None:
    """Every object and time is in exactly one piece, in order. A piece fits the limit, or has one state or one time only."""
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


def test_requests_are_split_into_few_pieces() -> None:
    """14,683 objects at 60 times in 2 MiB answers are 21 pieces, and 30 if all objects stay together."""
    assert len(split_request(14_683, 60, chunk_bytes=2 << 20, keep_objects=False)) == 21
    assert len(split_request(14_683, 60, chunk_bytes=2 << 20, keep_objects=True)) == 30


@pytest.mark.parametrize("chunk_bytes", [1, 500, 5_000, 1 << 20])
async def test_answers_in_any_order_give_the_right_states(chunk_bytes: int) -> None:
    """With pieces of any size, answered last first by three workers, the states equal sgp4's to the bit."""
    workers = SlowWorkers(3)
    pool = await pool_of(workers, chunk_bytes=chunk_bytes)
    workers.blocked = True
    request = asyncio.create_task(pool.propagate(None, minutes_later(0, 10, 20)))
    await workers.release()
    assert_equal(await request, states_by_sgp4(CATALOG, minutes_later(0, 10, 20)))


@pytest.mark.parametrize("engine", ["sgp4", "auto"])
async def test_a_selection_gives_the_states_of_its_rows_in_their_order(engine: str) -> None:
    """Rows may be in any order and may repeat, with several pieces or one. A single time may be a plain number."""
    pool = await pool_of(SlowWorkers(2), engine=engine, chunk_bytes=200)
    rows = np.array([70, 2, 2, 99])
    whole = states_by_sgp4(CATALOG, minutes_later(5, 6))
    states = await pool.propagate(rows, minutes_later(5, 6))
    assert_equal(states, States(whole.r_teme_m[rows], whole.v_teme_m_s[rows], whole.error[rows]))
    one = await pool.propagate(rows, minutes_later(5)[0])
    np.testing.assert_array_equal(one.r_teme_m, whole.r_teme_m[rows, :1])


async def test_no_objects_or_no_times_give_empty_states() -> None:
    """They have the right shape, and no worker is called."""
    workers = SlowWorkers()
    pool = await pool_of(workers)
    nothing = np.empty(0, dtype=np.int64)
    assert (await pool.propagate(nothing, minutes_later(0, 1))).r_teme_m.shape == (0, 2, 3)
    assert (await pool.propagate(None, nothing)).v_teme_m_s.shape == (100, 0, 3)
    assert workers.requests == []


@pytest.mark.parametrize(("rows", "message"), [([0, 100], r"0\.\.99, got 0\.\.100"), ([-1], r"0\.\.99, got -1\.\.-1")])
async def test_a_row_outside_the_catalogue_is_an_index_error(rows: list[int], message: str) -> None:
    """A row that is too large or negative raises IndexError before any worker is called."""
    workers = SlowWorkers()
    pool = await pool_of(workers)
    with pytest.raises(IndexError, match=message):
        await pool.propagate(np.array(rows), minutes_later(0))
    assert workers.requests == []


async def test_without_a_catalogue_nothing_is_propagated() -> None:
    """A request before the first catalogue raises RuntimeError, and a chunk size of zero raises ValueError."""
    with pytest.raises(RuntimeError, match="call use_catalog first"):
        await PropagatorPool(SlowWorkers()).propagate(None, minutes_later(0))
    with pytest.raises(ValueError, match="chunk_bytes must be >= 1, got 0"):
        PropagatorPool(SlowWorkers(), chunk_bytes=0)


async def test_states_that_cannot_be_propagated_are_nan_and_the_others_finite() -> None:
    """A state beyond max_age is stale: NaN and not usable. Without max_age no state is stale."""
    strict = await pool_of(SlowWorkers(), max_age=timedelta(hours=1))
    states = await strict.propagate(None, minutes_later(0, 59, 61))
    assert np.all(states.error == [PropagationError.NONE, PropagationError.NONE, PropagationError.STALE])
    np.testing.assert_array_equal(states.usable, ~np.isnan(states.r_teme_m).any(axis=-1))
    np.testing.assert_array_equal(states.usable, ~np.isnan(states.v_teme_m_s).any(axis=-1))
    lax = await pool_of(SlowWorkers(), max_age=None)
    assert (await lax.propagate(None, minutes_later(60 * 24 * 40))).usable.any()


async def test_a_request_in_flight_during_a_reload_finishes_with_the_old_catalogue() -> None:
    """All of its states are the old catalogue's; those of the next request are the new one's."""
    workers = SlowWorkers(2)
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.blocked = True
    request = asyncio.create_task(pool.propagate(None, minutes_later(0)))
    await asyncio.sleep(0)
    assert await pool.use_catalog(ElementColumns.of(OTHER_CATALOG)) == 2
    await workers.release()
    assert_equal(await request, states_by_sgp4(CATALOG, minutes_later(0)))
    assert_equal(await pool.propagate(None, minutes_later(0)), states_by_sgp4(OTHER_CATALOG, minutes_later(0)))


async def test_a_request_in_flight_during_two_reloads_fails_instead_of_mixing_versions() -> None:
    """Its catalogue is gone from the workers. The error has both version numbers, and the other pieces are cancelled."""
    workers = SlowWorkers()
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.blocked = True
    request = asyncio.create_task(pool.propagate(None, minutes_later(0)))
    await asyncio.sleep(0)
    await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
    await pool.use_catalog(ElementColumns.of(CATALOG))
    for _ in range(5):
        await asyncio.sleep(0)
    workers.waiting[0].set_result(None)
    with pytest.raises(CatalogMismatch, match="expected catalogue version 1, the worker has 3") as caught:
        await request
    assert (caught.value.expected, caught.value.got) == (1, 3)
    assert workers.cancelled == len(workers.waiting) - 1 > 0


async def test_an_answer_with_another_version_is_rejected() -> None:
    """A worker that answers with states of a version that was not requested makes the request fail."""

    class Confused(SlowWorkers):
        async def call(self, method: str, arrays: Arrays) -> Arrays:
            answer = dict(await super().call(method, arrays))
            return {**answer, "propagation.version": np.array([9])}

    pool = await pool_of(Confused())
    with pytest.raises(CatalogMismatch, match="expected catalogue version 1, the worker has 9"):
        await pool.propagate(None, minutes_later(0))


async def test_the_answer_of_a_worker_without_a_catalogue_is_rejected() -> None:
    """A worker that has no catalogue answers with version 0, and the request fails."""
    workers = SlowWorkers()
    pool = await pool_of(workers)
    workers.handlers[0] = PropagationWorker()
    with pytest.raises(CatalogMismatch, match="the worker has 0"):
        await pool.propagate(None, minutes_later(0))


async def test_a_failed_share_leaves_the_catalogue_in_use() -> None:
    """After several shares that fail half-way, every worker still answers with the old catalogue, and a later share works."""
    workers = SlowWorkers(2)
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.share_fails_after = 1
    for _ in range(3):
        with pytest.raises(OSError, match="lost"):
            await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
    assert pool.catalog_version == 1
    assert_equal(await pool.propagate(None, minutes_later(0)), states_by_sgp4(CATALOG, minutes_later(0)))
    workers.share_fails_after = None
    await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
    assert_equal(await pool.propagate(None, minutes_later(0)), states_by_sgp4(OTHER_CATALOG, minutes_later(0)))


async def test_concurrent_reloads_run_one_after_the_other() -> None:
    """Each of two catalogues is used for requests as soon as it is shared; the second stays in use."""
    workers = SlowWorkers(2)
    pool = await pool_of(workers)

    async def reload(catalog: tuple[ElementSet, ...]) -> tuple[int, States]:
        return await pool.use_catalog(ElementColumns.of(catalog)), await pool.propagate(None, minutes_later(0))

    (first, there), (second, then) = await asyncio.gather(reload(OTHER_CATALOG), reload(CATALOG[:10]))
    assert (first, second) == (2, 3)
    assert_equal(there, states_by_sgp4(OTHER_CATALOG, minutes_later(0)))
    assert_equal(then, states_by_sgp4(CATALOG[:10], minutes_later(0)))
    assert_equal(await pool.propagate(None, minutes_later(0)), states_by_sgp4(CATALOG[:10], minutes_later(0)))


@pytest.mark.parametrize("engine", ["sgp4", "auto"])
async def test_the_worker_computes_with_the_pools_engine(engine: Engine) -> None:
    """Pieces for heyoka (one thread) have all objects and some times; pieces for sgp4 have some objects and all times."""
    heyoka = pytest.importorskip("heyoka", reason="the extra 'heyoka' is not installed")
    heyoka.set_nthreads(2)
    workers = SlowWorkers()
    pool = await pool_of(workers, engine=engine, chunk_bytes=200 * BYTES_PER_STATE)
    assert heyoka.get_nthreads() == 1
    ((_, propagator),) = workers.handlers[0]._catalogs.values()
    assert propagator.engine == {"sgp4": "sgp4", "auto": "heyoka"}[engine]
    await pool.propagate(None, minutes_later(0, 1, 2, 3))
    sizes = [(len(request.get("objects", CATALOG)), len(request["timestamp_ns"])) for request in workers.requests]
    assert sizes == ([(50, 4), (50, 4)] if engine == "sgp4" else [(100, 2), (100, 2)])
    workers.requests.clear()
    await pool.propagate(np.arange(80), minutes_later(0, 1, 2, 3, 4))
    assert [(len(request["objects"]), len(request["timestamp_ns"])) for request in workers.requests] == [
        (40, 5),
        (40, 5),
    ]


async def test_cancelling_a_request_cancels_its_pieces() -> None:
    """Every piece is cancelled while workers compute, and the pool answers later requests."""
    workers = SlowWorkers()
    pool = await pool_of(workers, chunk_bytes=1000)
    workers.blocked = True
    request = asyncio.create_task(pool.propagate(None, minutes_later(0)))
    for _ in range(5):
        await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert workers.cancelled == len(workers.requests) == 5
    workers.blocked = False
    assert (await pool.propagate(None, minutes_later(0))).usable.all()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda worker: worker.handle("predict", {}),
        lambda worker: worker.share("sites", {}),
    ],
)
def test_a_worker_rejects_unknown_methods_and_shares(misuse: Callable[[PropagationWorker], object]) -> None:
    """The error names the unknown method or key."""
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
    """14,683 objects at 4 times, in pieces, by two processes, equal sgp4's states: to the bit, or to 1e-6 km by heyoka."""
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


async def test_the_replacement_of_a_killed_worker_has_the_catalogue() -> None:
    """Both processes are killed after a reload; their replacements answer with the newest catalogue."""
    ready: asyncio.Queue[BulkheadEvent] = asyncio.Queue()

    def record(event: BulkheadEvent) -> None:
        if event.decision == "worker_ready":
            ready.put_nowait(event)

    async with processes(record) as bulkhead:
        pool = await pool_of(bulkhead)
        await pool.use_catalog(ElementColumns.of(OTHER_CATALOG))
        for pid in bulkhead.statistics().pids.values():
            os.kill(pid, signal.SIGKILL)
        for _ in range(4):  # the two first ones and their replacements
            await ready.get()
        answers = await asyncio.gather(*(pool.propagate(None, minutes_later(0)) for _ in range(4)))
        assert bulkhead.statistics().restarts == 2
    for answer in answers:
        assert_equal(answer, states_by_sgp4(OTHER_CATALOG, minutes_later(0)))
