"""A bounded queue of items that Prefect has not received. An item leaves only once the server has accepted it.

Pure: knows neither Prefect nor any clock; times are given. For one event loop.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from orchestrator_adapter.prefect_flow.client.posting import ReportItem

_DELIVERED_KEPT = 1_000  # delivered items that can still be sent again


class Outbox:
    """First in, first out. When it is full, the oldest item is dropped and counted.

    Attributes:
        dropped: How many items were dropped: no room, or rejected by the server.
        delivered: How many items the server has accepted.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"Outbox: capacity must be >= 1, got {capacity}")
        self.dropped = 0
        self.delivered = 0
        self._capacity = capacity
        self._queued: deque[ReportItem] = deque()
        self._in_flight: list[ReportItem] = []
        self._recent: deque[tuple[float, ReportItem]] = deque(maxlen=_DELIVERED_KEPT)

    def __len__(self) -> int:
        return len(self._queued) + len(self._in_flight)

    def put(self, item: ReportItem) -> None:
        """Add an item; never blocks."""
        self._queued.append(item)
        if len(self) > self._capacity and self._queued:
            self._queued.popleft()
            self.dropped += 1

    def take(self, limit: int) -> list[ReportItem]:
        """The oldest items, at most ``limit``. They are in flight until ``mark_delivered`` or ``return_batch``."""
        if not self._in_flight:
            self._in_flight = [self._queued.popleft() for _ in range(min(limit, len(self._queued)))]
        return list(self._in_flight)

    def mark_delivered(self, now: float) -> None:
        """The server has accepted the batch in flight; ``now`` is monotonic, in seconds."""
        self.delivered += len(self._in_flight)
        self._recent.extend((now, item) for item in self._in_flight)
        self._in_flight = []

    def return_batch(self) -> None:
        """The batch in flight was not delivered: put it back at the front of the queue."""
        self._queued.extendleft(reversed(self._in_flight))
        self._in_flight = []

    def reject(self, item: ReportItem) -> None:
        """The server rejects this item of the batch in flight, or a copy of one: drop it."""
        self.dropped += 1
        with suppress(ValueError):
            self._in_flight.remove(item)

    def requeue_delivered(self, *, since: float) -> int:
        """Queue items again that were delivered since then: a killed server may have lost them. Returns how many.

        Only as many as there is room for, the latest first: items that were never delivered are worth more.
        """
        room = self._capacity - len(self)
        again = [item for at, item in self._recent if at >= since][-room:] if room > 0 else []
        self._recent = deque(((at, item) for at, item in self._recent if at < since), maxlen=_DELIVERED_KEPT)
        for item in again:
            self.delivered -= 1
            self.put(item)
        return len(again)

    def undelivered(self) -> list[ReportItem]:
        """Every item that is in flight or queued, oldest first."""
        return [*self._in_flight, *self._queued]
