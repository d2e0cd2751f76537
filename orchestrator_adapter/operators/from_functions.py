"""Operators out of plain functions: one line each.

Every one of them acknowledges exactly what it has passed on. If the function raises in the middle of a batch, the items
before are through, and the batch is redelivered from the culprit on: nothing is repeated and nothing is lost.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, TypeVar, assert_never

from orchestrator_adapter.channels.receiver import MAX_BATCH
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.storage.dead_letter import DeadLetterKind

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Reject:
    """The item is unacceptable, for this reason: booked as rejected and kept in the dead letters."""

    reason: str


@dataclass(frozen=True, slots=True)
class Discard:
    """The item is of no interest here."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The item repeats one that was passed on before."""


@dataclass(frozen=True, slots=True)
class DeadLetterAs:
    """The item cannot be processed: it goes to the dead letters."""

    kind: DeadLetterKind
    message: str


Verdict: TypeAlias = Reject | Discard | Duplicate | DeadLetterAs | None
"""What ``sift``'s judge says of an item; ``None`` lets it pass."""


def source_of(items: Iterable[Any] | AsyncIterable[Any], *, batch: int = MAX_BATCH) -> Factory:
    """A source from an iterable (in batches) or an async iterable (item by item). Stops early at shutdown.

    The iterator outlives the instance: after a restart the source goes on where it was, and repeats nothing. Only a
    generator cannot go on once it has raised: it raises the same again, rather than pass for a stream that has ended.
    """

    async def run(ends: WiredEnds) -> None:
        failure: list[BaseException] = ends.keep("failure", list)
        if isinstance(items, AsyncIterable):
            stream = ends.keep("iterator", lambda: aiter(items))
            while not ends.shutdown.is_set:
                taken: list[Any] = []
                try:
                    await ends.unless_shutdown(_take_next(stream, taken))
                except BaseException as error:
                    ends.sender.offer(taken)  # it may have come in the very turn in which this instance was cancelled
                    failure[:] = [error]
                    raise
                if not taken:
                    if failure and inspect.isasyncgen(stream) and not ends.shutdown.is_set:
                        raise failure[0]
                    return
                await ends.emit(taken)
            return
        iterator = ends.keep("iterator", lambda: iter(items))
        while not ends.shutdown.is_set:
            chunk: list[Any] = []
            try:
                chunk.extend(islice(iterator, batch))  # keeps what was taken before the iterator raised, if it does
            except BaseException as error:
                ends.sender.offer(chunk)
                failure[:] = [error]
                raise
            if not chunk:
                if failure and inspect.isgenerator(iterator):
                    raise failure[0]
                return
            await ends.emit(chunk)

    return run


def map_items(function: Callable[[In], Out], *, max_batch: int = MAX_BATCH) -> Factory:
    """One item out for each item in."""

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(max_batch):
            outputs: list[Out] = []
            try:
                for item in batch:
                    outputs.append(function(item))  # noqa: PERF401 - what is done when it raises must be known
            finally:
                ends.commit(outputs, acknowledge=len(outputs))
            await ends.flush()

    return run


def map_batches(function: Callable[[list[In]], Sequence[Out]], *, max_batch: int = MAX_BATCH) -> Factory:
    """A batch out for each batch in, of the same length (or whatever the books allow, if declared expanding).

    All or nothing: if the function raises, the whole batch is redelivered, one item at a time.
    """

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(max_batch):
            ends.commit(function(batch), acknowledge=len(batch))
            await ends.flush()

    return run


def flat_map_items(function: Callable[[In], Iterable[Out]], *, max_batch: int = MAX_BATCH) -> Factory:
    """Any number of items out for each item in: declare the operator as expanding."""

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(max_batch):
            outputs: list[Out] = []
            done = 0
            try:
                for item in batch:
                    outputs += list(function(item))
                    done += 1
            finally:
                ends.commit(outputs, acknowledge=done)
            await ends.flush()

    return run


def sift(judge: Callable[[In], Verdict], *, max_batch: int = MAX_BATCH) -> Factory:
    """Pass on what the judge lets pass (``None``), give everything else the outcome that the judge names."""

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(max_batch):
            passed: list[In] = []
            turned_away = 0
            try:
                for item in batch:
                    verdict = judge(item)
                    if verdict is None:
                        passed.append(item)
                    else:
                        _carry_out(verdict, item, ends)
                        turned_away += 1
            finally:
                ends.commit(passed, acknowledge=len(passed) + turned_away)
            await ends.flush()

    return run


def filter_items(wanted: Callable[[In], bool], *, max_batch: int = MAX_BATCH) -> Factory:
    """Pass on what is wanted; the rest is booked as discarded."""
    unwanted = Discard()

    def judge(item: In) -> Verdict:
        return None if wanted(item) else unwanted

    return sift(judge, max_batch=max_batch)


def for_each(function: Callable[[In], Awaitable[None] | None]) -> Factory:
    """A sink that calls a function (plain or async) for each item."""

    async def run(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            result = function(item)
            if inspect.isawaitable(result):
                await result

    return run


def for_each_batch(function: Callable[[list[In]], Awaitable[None] | None], *, max_batch: int = MAX_BATCH) -> Factory:
    """A sink that calls a function (plain or async) for each micro-batch; all or nothing."""

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(max_batch):
            result = function(batch)
            if inspect.isawaitable(result):
                await result

    return run


def _carry_out(verdict: Reject | Discard | Duplicate | DeadLetterAs, item: object, ends: WiredEnds) -> None:
    match verdict:
        case Reject(reason):
            ends.reject(item, reason)
        case Discard():
            ends.discard()
        case Duplicate():
            ends.duplicate()
        case DeadLetterAs(kind, message):
            ends.dead_letter(item, kind, message)
        case _:
            assert_never(verdict)


async def _take_next(stream: Any, taken: list[Any]) -> None:
    """Into the caller's hands, and not as a result: that would be lost if the caller were cancelled now."""
    with suppress(StopAsyncIteration):
        taken.append(await anext(stream))
