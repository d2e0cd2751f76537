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
        self._waiting: deque[Item] = deque()
        self._under_way: list[Item] = []
        self._recent: deque[tuple[float, Item]] = deque(maxlen=_KEPT_AFTERWARDS)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._under_way)

    def put(self, item: Item) -> None:
        """Add it; never blocks."""
        self._waiting.append(item)
        if len(self) > self._capacity and self._waiting:
            self._waiting.popleft()
            self.dropped += 1

    def take(self, limit: int) -> list[Item]:
        """The oldest items, at most ``limit``; they are under way until ``arrived`` or ``failed``."""
        if not self._under_way:
            self._under_way = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        return list(self._under_way)

    def arrived(self, now: float) -> None:
        """The server has what was under way; ``now`` is monotonic, in seconds."""
        self.delivered += len(self._under_way)
        self._recent.extend((now, item) for item in self._under_way)
        self._under_way = []

    def failed(self) -> None:
        """What was under way waits again, before everything else."""
        self._waiting.extendleft(reversed(self._under_way))
        self._under_way = []

    def refused(self, item: Item) -> None:
        """The server will never take this item, which is under way, or a copy of one that is: give it up."""
        self.dropped += 1
        with suppress(ValueError):
            self._under_way.remove(item)

    def send_again(self, *, since: float) -> int:
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

    def left(self) -> list[Item]:
        """What has not been delivered, oldest first."""
        return [*self._under_way, *self._waiting]
