"""Blocking calls: pools of threads, timeouts, abandoned threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import (
    BlockingCallTimedOut,
    BlockingPool,
    BlockingPoolExhausted,
    BuiltGraph,
    DeadLetterKind,
    DeadLetterList,
    GraphError,
    OperatorGraph,
    RestartPolicy,
    SupervisionPolicy,
    WiredEnds,
    events,
    for_each,
    map_items,
    source_of,
)
from orchestrator_adapter.control_plane import Health, HealthStatus, health_of
from orchestrator_adapter.process import ExitCode
from orchestrator_adapter.testing import CollectSink, ListSource, UntilShutdown, chain, run_graph
from tests.helpers.running import eventually
from tests.helpers.support import ROOT
from tests.orchestrator_adapter.operators.bench import Bench

SHORT = timedelta(milliseconds=20)


class Hung:
    """A function that blocks until the test ends. ``calls`` is how often it was called."""

    def __init__(self) -> None:
        self.calls = 0
        self._end = threading.Event()

    def __call__(self, *_: object) -> None:
        self.calls += 1
        assert self._end.wait(60)

    def release(self) -> None:
        self._end.set()


@contextmanager
def hung_call() -> Iterator[Hung]:
    hung = Hung()
    try:
        yield hung
    finally:
        hung.release()


@pytest.fixture
async def hung() -> AsyncIterator[Hung]:
    with hung_call() as function:
        yield function


# One pool.


async def test_a_call_that_exceeds_its_timeout_is_an_operational_error_and_its_thread_is_replaced(hung: Hung) -> None:
    """It is also a ``TimeoutError``. The next call does not wait for the thread that hangs."""
    bench = Bench(pool=BlockingPool("op", threads=1, timeout=SHORT))
    with pytest.raises(BlockingCallTimedOut, match=r"blocking call .*Hung did not return within 0\.02 s") as caught:
        await bench.ends.run_blocking(hung)
    assert isinstance(caught.value, TimeoutError)
    assert await bench.ends.run_blocking_within(None, divmod, 7, 2) == (3, 1)
    seen = bench.pool.statistics()
    assert (seen.threads, seen.busy, seen.abandoned, seen.abandoned_total, seen.calls_total) == (1, 0, 1, 1, 2)
    assert [(call.operator, call.abandoned) for call in seen.hanging] == [("op", True)]
    hung.release()
    await eventually(lambda: bench.pool.statistics().abandoned == 0, "the end of the abandoned call")
    assert bench.pool.statistics().abandoned_total == 1


async def test_the_timeout_does_not_count_the_time_in_which_a_call_waits_for_a_thread(hung: Hung) -> None:
    """The second call waits for the only thread until the first call exceeds its timeout, and then succeeds."""
    bench = Bench(pool=BlockingPool("op", threads=1, timeout=SHORT))
    first = asyncio.create_task(bench.ends.run_blocking(hung))
    await eventually(lambda: hung.calls, "the first call")
    second = asyncio.create_task(bench.ends.run_blocking(divmod, 7, 2))
    await eventually(lambda: bench.pool.statistics().waiting, "the second call")
    with pytest.raises(BlockingCallTimedOut):
        await first
    assert await second == (3, 1)


async def test_a_call_with_a_limit_of_its_own_ignores_the_timeout_of_the_pool() -> None:
    """``run_blocking_within`` passes keyword arguments on, also one that is called ``timeout``."""

    def function(*, timeout: str, limit: int = 0) -> tuple[str, int]:
        return timeout, limit

    bench = Bench(pool=BlockingPool("op", timeout=timedelta(microseconds=1)))
    assert await bench.ends.run_blocking_within(timedelta(minutes=1), function, timeout="x") == ("x", 0)


async def test_a_pool_whose_threads_all_hang_says_which_calls_hang(hung: Hung) -> None:
    """One thread and one replacement: the third call is rejected at once, and so is a call that waits."""
    bench = Bench(pool=BlockingPool("op", threads=1, replacements=1, timeout=None))
    with pytest.raises(BlockingCallTimedOut):
        await bench.ends.run_blocking_within(SHORT, hung)
    last = asyncio.create_task(bench.ends.run_blocking(hung))
    await eventually(lambda: hung.calls == 2, "the last thread")
    waiting = asyncio.create_task(bench.ends.run_blocking(divmod, 7, 2))
    await eventually(lambda: bench.pool.statistics().waiting, "the call that waits")
    last.cancel()
    message = r"blocking pool 'op' has no thread left: 2 calls hang \(\S*Hung of operator 'op'\); give these calls"
    with pytest.raises(BlockingPoolExhausted, match=message):
        await waiting
    with pytest.raises(BlockingPoolExhausted, match=message):
        await bench.ends.run_blocking(divmod, 7, 2)
    hung.release()
    await eventually(lambda: bench.pool.statistics().threads == 1, "a thread")
    assert await bench.ends.run_blocking(divmod, 7, 2) == (3, 1)


async def test_a_cancelled_write_that_has_not_begun_never_begins(hung: Hung) -> None:
    """Nothing is written, and nothing is acknowledged."""
    written: list[int] = []
    bench = Bench(pool=BlockingPool("op", threads=1, timeout=None))
    bench.feed.offer("ab")
    bench.ends.receiver.try_recv_many()
    other = asyncio.create_task(bench.ends.run_blocking(hung))
    await eventually(lambda: hung.calls, "the first call")
    write = asyncio.create_task(bench.ends.acknowledge_after(2, written.append, 1))
    await eventually(lambda: bench.pool.statistics().waiting, "the write")
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    hung.release()
    await other
    assert await bench.ends.run_blocking(len, written) == 0
    assert (bench.ends.receiver.leased, bench.pool.statistics().waiting) == (2, 0)


async def test_an_overdue_write_is_reported_and_completed(hung: Hung) -> None:
    """The sink goes on waiting: no second write of the items begins, and they are acknowledged once it is durable."""
    bench = Bench(pool=BlockingPool("op", timeout=SHORT))
    bench.feed.offer("ab")
    bench.ends.receiver.try_recv_many()
    write = asyncio.create_task(bench.ends.acknowledge_after(2, hung))
    (call,) = await eventually(lambda: bench.pool.statistics().hanging, "the overdue write")
    assert (call.operator, call.abandoned, bench.pool.statistics().abandoned_total) == ("op", False, 0)
    assert "is overdue after" in str(call)
    assert not write.done()
    assert bench.ends.receiver.leased == 2
    hung.release()
    await write
    assert bench.ends.receiver.leased == 0
    assert bench.pool.statistics().hanging == ()


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"threads": 0}, {"replacements": -1}, {"timeout": timedelta(0)}], ids=str
)
def test_a_pool_rejects_wrong_options(wrong: dict[str, Any]) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=f"BlockingPool: {next(iter(wrong))} must be "):
        BlockingPool(**({"name": "io"} | wrong))


# In a graph.


def blocking_map(function: Any) -> Any:
    async def run(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await ends.run_blocking(function, item)
            ends.commit([item], acknowledge=1)
            await ends.flush()

    return run


async def test_calls_that_hang_delay_no_other_operator_and_name_their_own(hung: Hung) -> None:
    """Eight calls of ``enrich`` hang. The sink on another branch writes every item; health and straggler name ``enrich``."""

    def call(item: int) -> None:
        if item < 4:
            hung()

    written: list[int] = []

    async def log(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(4):
            await ends.acknowledge_after(len(batch), written.extend, batch)

    healths: list[Health] = []

    async def watch(built: BuiltGraph) -> None:
        await eventually(lambda: (hung.calls, len(written), len(sink.items)) == (8, 100, 16), "the hung calls")
        healths.append(health_of(built.status()))
        built.request_shutdown("enough")

    graph, sink, letters = OperatorGraph("two branches"), CollectSink(), DeadLetterList()
    enrich = graph.add_operator(
        "enrich",
        blocking_map(call),
        restart_policy=RestartPolicy.always(),
        blocking_pool=BlockingPool("enrich", threads=2, timeout=SHORT),
    )
    graph.connect(graph.add_source("a", ListSource(list(range(20)), UntilShutdown())), enrich, 32)
    graph.connect(enrich, graph.add_sink("sink", sink), 32)
    other = graph.add_source("b", ListSource(list(range(100)), UntilShutdown()))
    graph.connect(other, graph.add_sink("log", log), 64)
    policy = SupervisionPolicy(grace=5 * SHORT, patience=5 * SHORT)
    event = await run_graph(graph, dead_letters=letters, during=watch, policy=policy)

    assert sink.items == list(range(4, 20))
    assert written == list(range(100))
    assert [letter.kind for letter in letters.letters] == [DeadLetterKind.POISON_PILL] * 4
    assert healths[0].status is HealthStatus.DEGRADED
    assert healths[0].ok
    assert [reason.split(" after ")[0] for reason in healths[0].reasons] == [
        f"blocking call {__name__}.{call.__qualname__} of operator 'enrich' is abandoned"
    ]
    assert [straggler.operator for straggler in event.figures.stragglers] == ["enrich"]
    assert "self._end.wait" in event.figures.stragglers[0].stack
    assert event.figures.ledger_holds


async def test_a_call_that_is_cancelled_by_the_shutdown_may_end_within_the_patience() -> None:
    """Then its operator is no straggler."""
    begun, may_end = threading.Event(), threading.Event()

    def read() -> None:
        begun.set()
        assert may_end.wait(60)

    async def reads(ends: WiredEnds) -> None:
        await ends.unless_shutdown(ends.run_blocking(read))

    async def stop(built: BuiltGraph) -> None:
        await eventually(begun.is_set, "the call")
        built.request_shutdown("enough")
        await eventually(lambda: all(status.ended_for_good for status in built.status().operators), "the operators")
        may_end.set()

    event = await run_graph(chain(reads, CollectSink()), during=stop, grace=timedelta(minutes=1))
    assert isinstance(event, events.ShutDown)
    assert event.figures.stragglers == ()


async def test_an_exhausted_pool_ends_the_graph_and_dead_letters_no_sound_item(hung: Hung) -> None:
    """Items 1 to 3 hang the pool. Item 4 is no poison pill: it stays leased, and is dead-lettered as undelivered."""
    letters = DeadLetterList()
    graph = OperatorGraph("exhausted")
    pool = BlockingPool("few", threads=2, replacements=4, timeout=SHORT)
    always = RestartPolicy.always()
    work = graph.add_operator("work", blocking_map(hung), restart_policy=always, blocking_pool=pool)
    graph.connect(graph.add_source("source", source_of([1, 2, 3, 4])), work, 8)
    graph.connect(work, graph.add_sink("sink", CollectSink()), 8)
    event = await run_graph(graph, dead_letters=letters, policy=SupervisionPolicy(grace=SHORT, patience=SHORT))
    assert isinstance(event, events.BudgetExhausted)
    assert event.chain[0].startswith("BlockingPoolExhausted: blocking pool 'few' has no thread left: 6 calls hang")
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [
        *((item, DeadLetterKind.POISON_PILL) for item in (1, 2, 3)),
        (4, DeadLetterKind.UNDELIVERED),
    ]
    assert event.figures.ledger_holds


async def test_operators_with_equal_pools_share_one() -> None:
    """Two operators, one pool: the status has one pool with the calls of both."""
    shared = BlockingPool("shared", threads=1)
    graph = OperatorGraph("shared")
    last = graph.add_source("source", source_of([1, 2]))
    for name in ("one", "two"):
        operator = graph.add_operator(name, blocking_map(str), blocking_pool=shared)
        graph.connect(last, operator, 4)
        last = operator
    graph.connect(last, graph.add_sink("sink", CollectSink()), 4)
    built = graph.build()
    await built.run()
    assert {name: pool.calls_total for name, pool in built.status().blocking_pools.items()} == {"shared": 4}


def test_two_different_pools_of_one_name_are_a_problem_of_the_graph() -> None:
    """The message says what to do."""
    graph = OperatorGraph("clash")
    source = graph.add_source("source", source_of([1]), blocking_pool=BlockingPool("io", threads=2))
    work = graph.add_operator("work", map_items(str), blocking_pool=BlockingPool("io", threads=3))
    graph.connect(source, work, 4)
    graph.connect(work, graph.add_sink("sink", for_each(print)), 4)
    with pytest.raises(GraphError, match="there are two different blocking pools with the name 'io'; pass the same"):
        graph.validate()


def test_a_thread_that_hangs_does_not_keep_the_process_alive() -> None:
    """The process ends with exit code 5, although the call would take a day."""
    script = """
import asyncio, sys, time
from datetime import timedelta
from orchestrator_adapter import OperatorGraph, SupervisionPolicy, source_of
from orchestrator_adapter.process import Pipeline, run_pipeline
from orchestrator_adapter.testing import chain

async def hangs(ends):
    await ends.run_blocking_within(timedelta(milliseconds=1), time.sleep, 86_400)

short = timedelta(milliseconds=10)
pipeline = Pipeline(chain(source_of([1]), hangs), SupervisionPolicy(grace=short, patience=short))
sys.exit(asyncio.run(run_pipeline(pipeline)).exit_code)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert ended.returncode == ExitCode.STRAGGLERS, ended.stderr.decode()
