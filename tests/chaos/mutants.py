"""The orchestrator, broken on purpose, one way at a time: what the schedules must notice.

Each mutant is a context manager that breaks one thing while it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from orchestrator_adapter import edge, restart, routers, supervisor
from orchestrator_adapter.burial import Burial
from orchestrator_adapter.channel import Channel, Undeliverable
from orchestrator_adapter.edge import Receiver, Sender
from orchestrator_adapter.ends import Factory, WiredEnds

Mutant = Callable[[], AbstractContextManager[None]]


@contextmanager
def give_back_drops_an_item() -> Iterator[None]:
    """A lease that goes back loses its first item."""
    give_back = Channel.give_back

    def broken(self: Channel[Any], failure: str, max_deliveries: int) -> list[Undeliverable[Any]]:
        if self.leased > 1:
            self.acknowledge(1)
        return give_back(self, failure, max_deliveries)

    with patch.object(Channel, "give_back", broken):
        yield


@contextmanager
def acknowledge_takes_one_too_many() -> Iterator[None]:
    """An acknowledgement swallows one leased item more than it says."""
    acknowledge = Channel.acknowledge

    def broken(self: Channel[Any], count: int) -> None:
        acknowledge(self, min(count + 1, self.leased))

    with patch.object(Channel, "acknowledge", broken):
        yield


@contextmanager
def acknowledge_forgets_to_wake_the_writer() -> Iterator[None]:
    """Room is made and nobody is told: a lost wake-up."""

    def broken(self: Receiver[Any], count: int | None = None) -> None:
        count = self.channel.leased if count is None else count
        if count:
            self.channel.acknowledge(count)
            self._account.acknowledge(count)

    with patch.object(Receiver, "acknowledge", broken):
        yield


@contextmanager
def the_budget_always_admits() -> Iterator[None]:
    """A bounded policy restarts for ever."""

    def broken(policy: restart.RestartPolicy, charged: tuple[float, ...], now: float) -> tuple[bool, tuple[float, ...]]:
        _, remembered = restart.admit(policy, charged, now)
        return policy.kind is not restart.RestartKind.NEVER, remembered

    with patch.object(supervisor, "admit", broken):
        yield


@contextmanager
def offer_forgets_what_does_not_fit() -> Iterator[None]:
    """The outbox leaks."""

    def broken(self: Sender[Any], items: Sequence[Any]) -> None:
        self._account.emit(len(items))
        self.channel.push(items)
        self._arrivals.wake()

    with patch.object(Sender, "offer", broken):
        yield


@contextmanager
def merge_forgets_its_last_input() -> Iterator[None]:
    """A fan-in serves all its inputs but one, and ends without it."""
    whole = routers.merge

    def broken(*, max_batch: int = edge.MAX_BATCH) -> Factory:
        run = whole(max_batch=max_batch)

        async def without_the_last(ends: WiredEnds) -> None:
            ends.receivers = ends.receivers[:-1] or ends.receivers
            await run(ends)

        return without_the_last

    with patch("tests.chaos.behaviour.merge", broken):
        yield


@contextmanager
def what_is_undelivered_is_not_buried() -> Iterator[None]:
    """What lies in edges at the end vanishes."""
    with patch.object(Burial, "bury_undelivered", lambda *_: None):
        yield


@contextmanager
def poison_is_not_buried() -> Iterator[None]:
    """Pills leave the edge and arrive nowhere."""
    with patch.object(Burial, "bury", lambda *_: None):
        yield


MUTANTS: dict[str, Mutant] = {
    mutant.__name__.replace("_", "-"): mutant
    for mutant in (
        give_back_drops_an_item,
        acknowledge_takes_one_too_many,
        acknowledge_forgets_to_wake_the_writer,
        the_budget_always_admits,
        offer_forgets_what_does_not_fit,
        merge_forgets_its_last_input,
        what_is_undelivered_is_not_buried,
        poison_is_not_buried,
    )
}
