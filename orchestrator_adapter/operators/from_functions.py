"""Operators made from plain functions: one line each.

Each acknowledges exactly the items that it has passed on. If the function raises in the middle of a batch, the items before
the one at fault are acknowledged and the rest is redelivered: nothing is repeated and nothing is lost.

No function is called with a control item: every operator here forwards them in their place, and every sink acknowledges them.
Their place is behind what the items before them have become. The functions return data only.
"""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
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
    """The item is invalid, for this reason: it counts as rejected and is dead-lettered."""

    reason: str


@dataclass(frozen=True, slots=True)
class Discard:
    """The item is not needed: it counts as discarded."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The item repeats one that was passed on before: it counts as a duplicate."""


@dataclass(frozen=True, slots=True)
class DeadLetterAs:
    """The item cannot be processed: it is dead-lettered."""

    kind: DeadLetterKind
    message: str


Verdict: TypeAlias = Reject | Discard | Duplicate | DeadLetterAs | None
"""What ``sift``'s judge decides about an item; ``None`` passes it on."""


def source_of(items: Iterable[Any] | AsyncIterable[Any], *, batch: int = MAX_BATCH) -> Factory:
    """A source from an iterable (in batches) or an async iterable (item by item). Stops early at shutdown.

    Control items among the items are sent in their place.

    The iterator outlives the instance: after a restart the source continues where it was, and repeats nothing. A generator
    that has raised cannot continue. The source then raises the same error again, because the stream has not ended.

    A generator is closed at the end of the run, so its ``finally`` runs before the report is written. What it raises then
    is a problem of the run, and if it is no operational error, a panic of the source (see ``WiredEnds.keep``).
    """

    async def run(ends: WiredEnds) -> None:
        failure: list[BaseException] = ends.keep("failure", list)
        raised_at_shutdown: list[BaseException] = ends.keep("raised at shutdown", list, _raise_first)
        if isinstance(items, AsyncIterable):
            stream = ends.keep("iterator", lambda: aiter(items), _close_async)
            while not ends.shutdown.is_set:
                taken: list[Any] = []
                try:
                    await ends.unless_shutdown(_take_next(stream, taken))
                except BaseException as error:
                    ends.ingest(taken)  # the item may arrive in the same turn of the loop as the cancellation
                    failure[:] = [error]
                    if ends.shutdown.is_set:  # the cancellation closes the generator: this is what its `finally` raises
                        raised_at_shutdown[:] = [error]
                    raise
                if not taken:
                    if failure and inspect.isasyncgen(stream) and not ends.shutdown.is_set:
                        raise failure[0]
                    return
                await ends.emit(taken)
            return
        iterator = ends.keep("iterator", lambda: iter(items), _close)
        while not ends.shutdown.is_set:
            chunk: list[Any] = []
            try:
                chunk.extend(islice(iterator, batch))  # keeps the items that were taken before the iterator raised
            except BaseException as error:
                ends.ingest(chunk)
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
                    outputs.append(function(item))  # noqa: PERF401 - if it raises, the outputs so far must be known
            finally:
                ends.commit(outputs, acknowledge=len(outputs))
            await ends.flush()

    return run


def map_batches(function: Callable[[list[In]], Sequence[Out]], *, max_batch: int = MAX_BATCH) -> Factory:
    """A batch out for each batch in, of the same length (of any length, if the operator is declared as expanding).

    If the function raises, the whole batch is redelivered, one item at a time.
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
    """Pass on the items for which ``judge`` returns ``None``; give every other item the outcome that it returns."""

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(max_batch):
            passed: list[In] = []
            not_passed = 0
            try:
                for item in batch:
                    verdict = judge(item)
                    if verdict is None:
                        passed.append(item)
                    else:
                        _carry_out(verdict, item, ends)
                        not_passed += 1
            finally:
                ends.commit(passed, acknowledge=len(passed) + not_passed)
            await ends.flush()

    return run


def filter_items(wanted: Callable[[In], bool], *, max_batch: int = MAX_BATCH) -> Factory:
    """Pass on the wanted items; the others count as discarded."""
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
    """A sink that calls a function (plain or async) for each micro-batch. If it raises, the whole batch is redelivered."""

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
    """Append the next item to ``taken``. A returned item would be lost if the caller were cancelled at that moment."""
    with suppress(StopAsyncIteration):
        taken.append(await anext(stream))


def _close(iterator: Iterator[Any]) -> None:
    if isinstance(iterator, Generator):
        iterator.close()


async def _close_async(stream: AsyncIterator[Any]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()


def _raise_first(errors: list[BaseException]) -> None:
    if errors and isinstance(errors[0], Exception):
        raise errors[0]
