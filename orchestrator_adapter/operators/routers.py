"""The routers: fan-in that merges, fan-out that broadcasts or partitions. Items are opaque and stay in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.receiver import MAX_BATCH
from orchestrator_adapter.operators.combiners import Combiner, Head, InputEnded
from orchestrator_adapter.operators.ends import Factory, WiredEnds


def merge(*, combine: Mapping[type[Control], Combiner] | None = None, max_batch: int = MAX_BATCH) -> Factory:
    """Fan-in: takes the ready items of every input in turn, up to ``max_batch``, so that no input starves another.

    The order within an input is kept. Ends when all inputs have ended.

    Control items are combined by the first kind in ``combine`` that they are of::

        merge(combine={Watermark: LeastOfInputs(lambda mark: mark.at_ns), Barrier: Aligned(lambda barrier: barrier.number)})

    Those of no such kind are forwarded, each in its place among the items of its input: the fan-in does not know what they
    mean, and a canary must not be lost. What a combiner has taken and what it sends change in one step with its state,
    which outlives the instance, so a restart repeats and loses none.
    """
    kinds = {} if combine is None else dict(combine)

    async def run(ends: WiredEnds) -> None:
        receivers, sender = ends.receivers, ends.sender
        states: dict[type[Control], Any] = ends.keep("combined", dict)
        while True:
            moved = bool(kinds) and _combine(ends, kinds, states)
            if moved:
                await ends.flush()
            for receiver in receivers:
                if kinds and receiver.next_control is not None:
                    continue  # the next turn combines it, or a combiner holds this input
                if batch := receiver.try_recv_many(max_batch):
                    moved = True
                    sender.offer(batch)
                    receiver.acknowledge(len(batch))
                    await ends.flush()
            if not moved:
                if all(receiver.ended for receiver in receivers):
                    return
                if kinds:
                    await receivers[0].wait_for_arrival()
                else:
                    await ends.wait_for_items()

    return run


def _combine(ends: WiredEnds, kinds: Mapping[type[Control], Combiner], states: dict[type[Control], Any]) -> bool:
    """Combine the heads of the inputs as far as they can be. Returns whether any control item was taken or sent."""
    moved, again = False, True
    while again:
        again = False
        heads = [InputEnded() if receiver.ended else receiver.next_control for receiver in ends.receivers]
        kind_of = [next((kind for kind in kinds if isinstance(head, kind)), None) for head in heads]
        for receiver, head, kind in zip(ends.receivers, heads, kind_of, strict=True):
            if isinstance(head, Control) and kind is None:
                receiver.take_control()
                ends.sender.offer_control(head)
                again = True
        for kind, combiner in kinds.items():
            its_heads: list[Head] = [
                head if its_kind is kind or isinstance(head, InputEnded) else None
                for head, its_kind in zip(heads, kind_of, strict=True)
            ]
            combined = combiner.combine(states.get(kind), its_heads)
            states[kind] = combined.state
            for at in combined.take:
                ends.receivers[at].take_control()
            for control in combined.send:
                ends.sender.offer_control(control)
            again |= bool(combined.take or combined.send)
        moved |= again
    return moved


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
    processes. Data without a key that concerns every reader is that for which ``everywhere`` is true: each output gets a copy,
    in order with the other items. Control items are copied to every output in any case, and ``key`` does not get them.
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
