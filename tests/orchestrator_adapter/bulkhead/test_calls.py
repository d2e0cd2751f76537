from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator_adapter.bulkhead import HandlerFailed
from orchestrator_adapter.primitives.errors import OperatorError
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import at, bulkhead, numbers
from tests.orchestrator_adapter.bulkhead.waiting import in_flight, process_ended


async def test_calls_are_answered_by_other_processes() -> None:
    """Ten concurrent calls, two workers: every answer is right, and every call is accounted for."""
    async with bulkhead(workers=2) as pool:
        answers = await asyncio.gather(*(pool.call("double", numbers(n, n + 1)) for n in range(10)))
        figures = pool.statistics()
    assert [list(answer["x"]) for answer in answers] == [[2 * n, 2 * n + 2] for n in range(10)]
    assert (figures.alive, figures.calls, figures.answered, figures.in_flight) == (2, 10, 10, 0)
    assert figures.balanced
    assert os.getpid() not in figures.pids.values()
    await eventually(lambda: all(process_ended(pid) for pid in figures.pids.values()), "the workers have ended")


async def test_an_exception_of_the_handler_reaches_the_caller_as_text_and_the_worker_continues() -> None:
    """The error has type, message and remote traceback. An answer that cannot be sent is the handler's failure, too."""
    async with bulkhead() as pool:
        with pytest.raises(HandlerFailed) as raised:
            await pool.call("raise", {})
        assert str(raised.value) == "bulkhead 'toy': raise: the handler raised LookupError: no such object: 25544"
        assert (raised.value.error_type, raised.value.error_message) == ("LookupError", "no such object: 25544")
        assert 'raise LookupError("no such object: 25544")' in raised.value.remote_traceback
        assert not isinstance(raised.value, OperatorError)
        with pytest.raises(HandlerFailed, match="TypeError: answer '': array 'text': expected little-endian"):
            await pool.call("bad answer", {})
        assert (await pool.call("double", numbers(1)))["x"] == 2
        figures = pool.statistics()
    assert (figures.failed, figures.answered, figures.restarts) == (2, 1, 0)
    assert figures.balanced


async def test_a_call_is_queued_while_all_places_are_taken(tmp_path: Path) -> None:
    """One worker has two places: two of four calls are queued, and all are answered in the order in which they were made."""
    ended: list[int] = []

    async def call(number: int) -> None:
        await pool.call("wait for", at(tmp_path / "gate")) if not number else await pool.call("double", numbers(1))
        ended.append(number)

    async with bulkhead() as pool:
        calls = [asyncio.create_task(call(number)) for number in range(4)]
        await eventually(in_flight(pool, 2), "the worker has two calls")
        assert pool.statistics().waiting == 2
        (tmp_path / "gate").touch()
        await asyncio.gather(*calls)
    assert ended == [0, 1, 2, 3]


async def test_cancelling_a_caller_discards_only_its_answer(tmp_path: Path) -> None:
    """Calls are cancelled in flight and in the queue: the same process answers the others, and every call is counted."""
    async with bulkhead() as pool:
        before = pool.statistics().pids
        calls = [asyncio.create_task(pool.call("wait for", at(tmp_path / "gate")))]
        calls += [asyncio.create_task(pool.call("double", numbers(n))) for n in range(4)]
        await eventually(in_flight(pool, 2), "the worker has two calls")
        for cancelled in (calls[0], calls[1], calls[3]):
            cancelled.cancel()
        outcomes = await asyncio.gather(calls[0], calls[1], calls[3], return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert (pool.statistics().in_flight, pool.statistics().waiting) == (0, 2)
        (tmp_path / "gate").touch()
        assert [float((await calls[n])["x"][0]) for n in (2, 4)] == [2, 6]
        figures = pool.statistics()
    assert figures.pids == before
    assert (figures.calls, figures.answered, figures.abandoned) == (5, 2, 3)
    assert figures.balanced


async def test_a_call_cancelled_in_the_same_loop_turn_as_its_answer_is_counted_once() -> None:
    """The loop may process the cancellation or the answer first: the counts add up, and no worker is lost."""
    async with bulkhead() as pool:
        for turns in range(40):
            call = asyncio.create_task(pool.call("double", numbers(1)))
            await asyncio.sleep(0)
            time.sleep(0.001)  # noqa: ASYNC251 - the answer must arrive before the loop polls again
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert pool.statistics().balanced
        figures = pool.statistics()
    assert figures.restarts == 0
    assert figures.abandoned > 0


async def test_arrays_that_cannot_be_sent_raise_before_anything_is_sent() -> None:
    """The TypeError names the array; such a share stores nothing."""
    async with bulkhead() as pool:
        with pytest.raises(TypeError, match="call 'double': array 'x': expected little-endian"):
            await pool.call("double", {"x": np.array([None])})
        with pytest.raises(TypeError, match="share 'table': array 'x'"):
            await pool.share("table", {"x": np.array([None])})
        assert await pool.call("recall", {}) == {}
        assert pool.statistics().calls == 1
