"""What Prefect still has to be told: a bounded queue whose items leave only once the server has them.

Pure: it knows neither Prefect nor time but what it is given. For one event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

Item: TypeAlias = Mapping[str, Any]
"""One event or one log line, as JSON values."""

_KEPT_AFTERWARDS = 1_000  # delivered items that can still be sent again


class Outbox:
    """First in, first out; when it is full the oldest item goes, and is counted.

    Attributes:
        dropped: How many items were given up because there was no room.
        delivered: How many the server has taken.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"Outbox: capacity must be >= 1, got {capacity}")
        self.dropped = 0
        self.delivered = 0
        self._capacity = capacity
        self._queued: deque[Item] = deque()
        self._in_flight: list[Item] = []
        self._recent: deque[tuple[float, Item]] = deque(maxlen=_KEPT_AFTERWARDS)

    def __len__(self) -> int:
        return len(self._queued) + len(self._in_flight)

    def put(self, item: Item) -> None:
        """Add it; never blocks."""
        self._queued.append(item)
        if len(self) > self._capacity and self._queued:
            self._queued.popleft()
            self.dropped += 1

    def take(self, limit: int) -> list[Item]:
        """The oldest items, at most ``limit``; they are under way until ``arrived`` or ``failed``."""
        if not self._in_flight:
            self._in_flight = [self._queued.popleft() for _ in range(min(limit, len(self._queued)))]
        return list(self._in_flight)

    def mark_delivered(self, now: float) -> None:
        """The server has what was under way; ``now`` is monotonic, in seconds."""
        self.delivered += len(self._in_flight)
        self._recent.extend((now, item) for item in self._in_flight)
        self._in_flight = []

    def return_batch(self) -> None:
        """What was under way waits again, before everything else."""
        self._queued.extendleft(reversed(self._in_flight))
        self._in_flight = []

    def reject(self, item: Item) -> None:
        """The server will never take this item, which is under way, or a copy of one that is: give it up."""
        self.dropped += 1
        with suppress(ValueError):
            self._in_flight.remove(item)

    def requeue_delivered(self, *, since: float) -> int:
        """Queue once more what has arrived since then: a server that was killed may not have kept it. How many.

        Only where there is room, the latest first: what has never arrived is worth more.
        """
        room = self._capacity - len(self)
        again = [item for at, item in self._recent if at >= since][-room:] if room > 0 else []
        self._recent = deque(((at, item) for at, item in self._recent if at < since), maxlen=_KEPT_AFTERWARDS)
        for item in again:
            self.delivered -= 1
            self.put(item)
        return len(again)

    def undelivered(self) -> list[Item]:
        """What has not been delivered, oldest first."""
        return [*self._in_flight, *self._queued]
