"""The routers: fan-in that merges, fan-out that broadcasts or partitions. Items pass through opaque and in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

from orchestrator_adapter.channels.receiver import MAX_BATCH
from orchestrator_adapter.operators.ends import Factory, WiredEnds


def merge(*, max_batch: int = MAX_BATCH) -> Factory:
    """Fan-in: every input in turn gives what it has ready, up to ``max_batch`` items, so none starves another.

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
    """Fan-out: every item goes to every output. All must accept before the next batch is taken; each by its own policy."""

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
    """Fan-out: each item goes to one output, chosen by ``key``; equal keys always take the same way, in order.

    The way is chosen by a checksum of the key's ``repr``, not by ``hash``, which for a string differs from one process
    to the next. Items that have no key but concern every reader (a watermark, a checkpoint barrier) are those for which
    ``everywhere`` holds: a copy goes each way, in its place among the others.
    """

    async def run(ends: WiredEnds) -> None:
        senders = ends.senders
        async for batch in ends.receiver.batches(max_batch):
            ways: list[list[Any]] = [[] for _ in senders]
            for item in batch:
                if everywhere is not None and everywhere(item):
                    for way in ways:
                        way.append(item)
                    continue
                ways[crc32(repr(key(item)).encode()) % len(senders)].append(item)
            for sender, items in zip(senders, ways, strict=True):
                if items:
                    sender.offer(items)
            ends.receiver.acknowledge(len(batch))
            await ends.flush()

    return run
