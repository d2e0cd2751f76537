from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.operators.routers import merge
from orchestrator_adapter.testing import settle
from tests.helpers.sizes import examples
from tests.orchestrator_adapter.operators.bench import Bench, cancel


async def test_merge_serves_every_input_in_turn() -> None:
    """An input that is always full does not starve another: of the first four batches of one, two are the other's."""
    bench = Bench(inputs=2, capacity=8)
    bench.feeds[0].offer(["a"] * 8)
    bench.feeds[1].offer(["b"] * 2)
    merging = asyncio.create_task(merge(max_batch=1)(bench.ends))
    await settle()
    assert "".join(bench.drain.try_recv_many(4)) == "abab"
    await cancel(merging)


async def test_wait_for_items_returns_for_any_input_and_when_all_have_ended() -> None:
    """It waits while one input has ended. It returns when the other has an item, and when both have ended."""
    bench = Bench(inputs=2)
    waiting = asyncio.create_task(bench.ends.wait_for_items())
    bench.inputs[0].close()
    await settle()
    assert not waiting.done()
    bench.feeds[1].offer(["x"])
    await waiting
    bench.ends.receivers[1].try_recv_many()
    bench.inputs[1].close()
    await bench.ends.wait_for_items()


@settings(max_examples=examples(40))
@given(
    lengths=st.lists(st.integers(0, 20), min_size=2, max_size=4),
    capacity=st.integers(1, 5),
    max_batch=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_merge_loses_nothing_and_keeps_each_inputs_order(
    lengths: list[int], capacity: int, max_batch: int, seed: int
) -> None:
    """With any interleaving of writers and reader, every item of every input arrives once, in the order of its input."""
    rng = random.Random(seed)

    async def scenario() -> list[tuple[int, int]]:
        bench = Bench(inputs=len(lengths), capacity=capacity)

        async def write(index: int, length: int) -> None:
            for number in range(length):
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                await bench.feeds[index].send((index, number))
            bench.inputs[index].close()

        async def relay() -> None:
            await merge(max_batch=max_batch)(bench.ends)
            bench.output.close()

        writers = [asyncio.create_task(write(index, length)) for index, length in enumerate(lengths)]
        relaying = asyncio.create_task(relay())
        async with asyncio.timeout(20):
            arrived = [item async for item in bench.drain]
            await asyncio.gather(relaying, *writers)
        return arrived

    arrived = asyncio.run(scenario())
    for index, length in enumerate(lengths):
        assert [number for from_input, number in arrived if from_input == index] == list(range(length))
