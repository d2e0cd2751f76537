"""The routers: fan-in that merges, fan-out that broadcasts or partitions. Items are opaque and stay in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

from orchestrator_adapter.channels.receiver import MAX_BATCH
from orchestrator_adapter.operators.ends import Factory, WiredEnds


def merge(*, max_batch: int = MAX_BATCH) -> Factory:
    """Fan-in: takes the ready items of every input in turn, up to ``max_batch``, so that no input starves another.

    The order within an input is kept. Ends when all inputs have ended.
    """

    async def run(ends: WiredEnds) -> None:
        receivers, sender = ends.receivers, ends.sender
        while True:
            moved = False
            for receiver in receivers:
                if batch := receiver.try_recv_many(max_batch):
                    moved = True
                    sender.offer(batch)
                    receiver.acknowledge(len(batch))
                    await ends.flush()
            if not moved:
                if all(receiver.ended for receiver in receivers):
                    return
                await ends.wait_for_items()

    return run


def broadcast(*, max_batch: int = MAX_BATCH) -> Factory:
    """Fan-out: every item goes to every output. All outputs must accept a batch, by their policies, before the next one."""

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(max_batch):
            for sender in ends.senders:
                sender.offer(batch)
            ends.receiver.acknowledge(len(batch))
            await ends.flush()

    return run


def partition(
    key: Callable[[Any], int | str | bytes | tuple[int | str | bytes, ...]],
    *,
    everywhere: Callable[[Any], bool] | None = None,
    max_batch: int = MAX_BATCH,
) -> Factory:
    """Fan-out: each item goes to one output, chosen by ``key``. Items with equal keys go to the same output, in order.

    The output is chosen by a checksum of the key's ``repr``, not by ``hash``, which for a string differs between
    processes. Items without a key that concern every reader (a watermark, a checkpoint barrier) are those for which
    ``everywhere`` is true: each output gets a copy, in order with the other items.
    """

    async def run(ends: WiredEnds) -> None:
        senders = ends.senders
        async for batch in ends.receiver.batches(max_batch):
            shares: list[list[Any]] = [[] for _ in senders]
            for item in batch:
                if everywhere is not None and everywhere(item):
                    for share in shares:
                        share.append(item)
                    continue
                shares[crc32(repr(key(item)).encode()) % len(senders)].append(item)
            for sender, items in zip(senders, shares, strict=True):
                if items:
                    sender.offer(items)
            ends.receiver.acknowledge(len(batch))
            await ends.flush()

    return run
