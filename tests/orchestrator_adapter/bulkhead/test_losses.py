from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from orchestrator_adapter.bulkhead import BatchLost, Bulkhead, BulkheadEvent, BulkheadExhausted
from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.supervision.restart import RestartPolicy
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import at, bulkhead, numbers
from tests.orchestrator_adapter.bulkhead.waiting import in_flight, process_ended


async def test_a_killed_worker_costs_a_restart_and_no_call(tmp_path: Path) -> None:
    """The successor answers the oldest call and the one queued behind it; ``on_event`` sees the decisions in order."""
    events: list[BulkheadEvent] = []
    async with bulkhead(on_event=events.append) as pool:
        before = pool.statistics().pids[1]
        first = asyncio.create_task(pool.call("wait for", at(tmp_path / "gate")))
        second = asyncio.create_task(pool.call("double", numbers(4)))
        await eventually(in_flight(pool, 2), "the worker has both calls")
        os.kill(before, signal.SIGKILL)
        (tmp_path / "gate").touch()
        await first
        assert (await second)["x"] == 8
        figures = pool.statistics()
    assert (figures.restarts, figures.resubmitted, figures.answered, figures.lost) == (1, 1, 2, 0)
    assert figures.pids[1] != before
    assert [event.decision for event in events] == [
        *("worker_launched", "worker_ready", "bulkhead_ready", "batch_resubmitted", "worker_lost", "worker_restart"),
        *("worker_launched", "worker_ready", "worker_stopped", "bulkhead_closed"),
    ]
    restart = events[5]
    assert (restart.bulkhead, restart.fields["worker"], restart.fields["instance"]) == ("toy", 1, 2)
    assert events[3].fields["requeued"] == 1


async def test_a_batch_that_kills_two_workers_is_lost_and_the_queued_calls_are_not() -> None:
    """``BatchLost`` names the method; the three calls behind it, sent and queued, are answered."""
    async with bulkhead() as pool:
        killer = asyncio.create_task(pool.call("die", numbers(1)))
        others = [asyncio.create_task(pool.call("double", numbers(n))) for n in range(3)]
        with pytest.raises(BatchLost, match="die: two workers were lost with it") as raised:
            await killer
        assert [float((await other)["x"][0]) for other in others] == [0, 2, 4]
        figures = pool.statistics()
    assert (raised.value.method, raised.value.losses) == ("die", 2)
    assert isinstance(raised.value, OperatorError)
    assert (figures.lost, figures.resubmitted, figures.restarts) == (1, 1, 2)
    assert figures.balanced


async def test_a_batch_that_kills_one_worker_is_answered_by_the_second(tmp_path: Path) -> None:
    """The caller gets the answer and no error."""
    async with bulkhead(workers=2) as pool:
        assert (await pool.call("die once", at(tmp_path / "died")))["survived"]
        assert pool.statistics().resubmitted == 1


async def test_a_worker_that_hangs_is_killed_and_its_batch_lost_the_second_time() -> None:
    """No answer within ``answer_within``: the process is killed, and so is the second; the next call is answered."""
    async with bulkhead(answer_within=timedelta(seconds=0.2)) as pool:
        before = pool.statistics().pids[1]
        with pytest.raises(BatchLost, match=r"the second because: it hung: no answer within 0\.2 s"):
            await pool.call("hang", {})
        pool._dispatcher.answer_within_s = 60.0  # the successor has low priority, and may be slow on a busy machine
        await eventually(lambda: pool.statistics().alive, "a worker is ready")
        assert (await pool.call("double", numbers(1)))["x"] == 2
        figures = pool.statistics()
    assert (figures.hung, figures.restarts, figures.lost) == (2, 2, 1)
    assert process_ended(before)


async def test_a_stopped_process_is_treated_as_hung() -> None:
    """After SIGSTOP it keeps its connection and does not answer: it is killed, and another worker answers its call."""
    async with bulkhead(answer_within=timedelta(seconds=0.3)) as pool:
        before = pool.statistics().pids[1]
        os.kill(before, signal.SIGSTOP)
        call = asyncio.create_task(pool.call("double", numbers(1)))
        await eventually(lambda: pool.statistics().hung, "the hang is detected")
        pool._dispatcher.answer_within_s = 60.0  # the successor has low priority, and may be slow on a busy machine
        assert (await call)["x"] == 2
        assert pool.statistics().hung == 1
        await eventually(lambda: process_ended(before), "the stopped process has ended")


async def test_beyond_the_budget_every_call_raises_and_all_workers_end() -> None:
    """One rebuild, two losses: ``BulkheadExhausted`` for calls in flight, queued calls and later calls."""
    once = RestartPolicy.bounded(1, timedelta(minutes=5))
    async with bulkhead(rebuilds=once, workers=2, in_flight=1) as pool:
        pids = pool.statistics().pids
        calls = [asyncio.create_task(pool.call(method, {})) for method in ("hang", "die", "hang", "double")]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        # "die" kills two workers: it raises BatchLost, or is aborted with the others if the budget is used up first.
        assert {type(outcome) for outcome in outcomes} <= {BulkheadExhausted, BatchLost}
        assert sum(isinstance(outcome, BulkheadExhausted) for outcome in outcomes) >= 3
        with pytest.raises(BulkheadExhausted, match=r"the budget for rebuilds is used up: worker-\d was lost: "):
            await pool.call("double", numbers(1))
        with pytest.raises(BulkheadExhausted):
            await pool.share("table", numbers(1))
        figures = pool.statistics()
        assert figures.exhausted
        assert figures.balanced
        await eventually(lambda: all(process_ended(pid) for pid in pids.values()), "all workers have ended")
    assert figures.restarts == 1


@pytest.fixture
async def killing() -> AsyncIterator[Callable[[Bulkhead], None]]:
    """Kills workers at random, repeatedly, but never two with the same batch."""
    rng = random.Random(20261125)
    tasks: list[asyncio.Task[None]] = []

    def recovered(pool: Bulkhead, worker: int, killed: int) -> bool:
        # Until its calls are answered, another kill might hit one of them again, which would then rightly be lost.
        return pool.statistics().pids.get(worker) != killed and not any(pool._dispatcher._scheduler._losses.values())

    async def kill(pool: Bulkhead) -> None:
        while True:
            await asyncio.sleep(rng.uniform(0.0, 0.05))
            if len(pids := pool.statistics().pids) > 1:
                worker, pid = rng.choice(list(pids.items()))
                os.kill(pid, signal.SIGKILL)
                await eventually(
                    partial(recovered, pool, worker, pid), "the loss is detected, and its calls are answered"
                )

    yield lambda pool: tasks.append(asyncio.create_task(kill(pool)))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_kill_9_at_random_during_calls_costs_no_answer(killing: Callable[[Bulkhead], None]) -> None:
    """Three workers are killed repeatedly during calls of up to 80 kB: every answer arrives once and is right."""
    rng = random.Random(1)
    async with bulkhead(workers=3) as pool:
        killing(pool)

        async def caller(number: int) -> int:
            calls = 0
            while pool.statistics().restarts < 4:
                sent = np.full(rng.randrange(10_000), float(number + calls))
                received = (await pool.call("double", {"x": sent}))["x"]
                assert np.array_equal(received, 2 * sent)
                calls += 1
            return calls

        calls = sum(await asyncio.gather(*(caller(1_000 * n) for n in range(6))))
        figures = pool.statistics()
    assert figures.resubmitted > 0
    assert (figures.calls, figures.answered, figures.lost) == (calls, calls, 0)
    assert figures.balanced
