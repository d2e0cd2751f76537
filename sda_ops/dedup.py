"""Deduplication: an item that repeats within the window is counted as a duplicate and not passed on.

`SeenSet` is the window. It is pure: the time is passed in. `deduplicate` makes an operator of it. Nothing here knows why
items repeat (redundant feeds, an archive polled with an overlap, a source that repeats after a failure).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from datetime import timedelta
from typing import Any

from orchestrator_adapter import Factory, WiredEnds, check_fields
from sda_ops.records.observation import Observation

_SWEPT_AT_ONCE = 256
"""How many expired keys one call removes at most, so that a burst that expires at once does not stall the loop (0.1 ms
instead of 0.2 s)."""


def observation_key(observation: Observation) -> int:
    """The deduplication key of an observation: its id as an integer, which the ``UUID`` stores anyway.

    The ``UUID`` itself takes 65 bytes more, is one more object for every full garbage collection (70 ms instead of 20 ms
    for 500,000 of them), and hashes and compares in Python. ``UUID.bytes`` must be computed first and takes 16 bytes more.
    """
    return observation.observation_id.int


class SeenSet:
    """The keys seen within the last ``max_age``; at most ``max_items``, the most recently seen ones.

    The window slides: seeing a key again renews it, so a key that keeps coming stays known. A key that was last seen
    exactly ``max_age`` ago is no longer known.

    An observation's id takes about 150 bytes (75 MB for 500,000; an ``OrderedDict`` takes 265 per id), or 180 if each id is
    seen at a different time; repeated keys add up to 40. A call takes 0.5 µs, or 1 µs if it evicts another key. This is
    amortised: the table grows in steps, which take 30 ms at 500,000 ids.

    Attributes:
        evicted_early: How many keys were evicted before ``max_age`` because of ``max_items``. While it grows, the window is
            shorter than ``max_age``, and a repeat may pass as new.
    """

    __slots__ = ("_keys", "_known", "_max_age_s", "_max_items", "_swept_at", "_times", "evicted_early")

    def __init__(self, max_age: timedelta, max_items: int) -> None:
        """Raises ``ValueError`` that lists every invalid bound."""
        check_fields(
            "SeenSet",
            ("max_age", max_age, max_age > timedelta(0), "> 0"),
            ("max_items", max_items, max_items >= 1, ">= 1"),
        )
        self.evicted_early = 0
        self._max_age_s = max_age.total_seconds()
        self._max_items = max_items
        self._swept_at = float("-inf")
        # The time when each key was last seen, in order of time.
        self._known: dict[Hashable, float] = {}
        # Every sighting in order of time; it is current if ``_known`` has the same time for its key. The dict alone would
        # be enough, but finding its oldest entry means skipping all entries deleted before it, each time.
        self._keys: deque[Hashable] = deque()
        self._times: deque[float] = deque()

    def __len__(self) -> int:
        """The number of stored keys. Expired keys are removed by later calls, up to 256 by each."""
        return len(self._known)

    def check_and_add(self, key: Hashable, now: float) -> bool:
        """Whether ``key`` was seen within the last ``max_age``; records that it is seen now.

        ``now`` is in monotonic seconds and must not decrease. If hashing or comparing the key raises, that error is raised
        and nothing is recorded.
        """
        if now != self._swept_at:
            self._sweep(now)
        known = self._known
        seen_at = known.get(key)
        if seen_at == now:
            return True
        if seen_at is not None:
            del known[key]  # so that the new entry comes last
        elif len(known) >= self._max_items:
            self._evict(now)
        known[key] = now
        self._keys.append(key)
        self._times.append(now)
        if len(self._keys) > 2 * len(known):
            self._drop_outdated_sightings()
        return seen_at is not None and now - seen_at < self._max_age_s

    def _sweep(self, now: float) -> None:
        """Remove expired keys, `_SWEPT_AT_ONCE` at most."""
        for _ in range(_SWEPT_AT_ONCE):
            if not self._times or now - self._times[0] < self._max_age_s:
                self._swept_at = now
                return
            self._drop_first_sighting()

    def _evict(self, now: float) -> None:
        seen_at = now
        while len(self._known) >= self._max_items:
            seen_at = self._drop_first_sighting()
        if now - seen_at < self._max_age_s:
            self.evicted_early += 1

    def _drop_first_sighting(self) -> float:
        """Drop the oldest sighting, and its key unless that was seen again since. Returns its time."""
        key, seen_at = self._keys.popleft(), self._times.popleft()
        if self._known.get(key) == seen_at:
            del self._known[key]
        return seen_at

    def _drop_outdated_sightings(self) -> None:
        """Keep only the last sighting of each key."""
        self._keys = deque(self._known)
        self._times = deque(self._known.values())


def deduplicate(
    *,
    max_age: timedelta = timedelta(minutes=10),
    max_items: int = 500_000,
    key: Callable[[Any], Hashable] = observation_key,
    keep_across_restarts: bool = True,
) -> Factory:
    """An operator that passes each item on once, in order, and counts repeats as duplicates.

    It is exact under failures and redelivery: an item becomes known when it is sent (or found to be a repeat), and its lease
    ends in the same step. So a redelivered item is never taken for a repeat of itself, an item whose key function fails is
    not known, and a sent item is not sent again while it is known. Items that are shed or dead-lettered downstream stay
    known.

    Raises ``ValueError`` at once if a bound is invalid. Declare the operator as ``stateful``.

    Metrics: ``remembered``, as of the last batch, and ``evicted_early`` (see `SeenSet`), over all instances.

    Args:
        max_age: How long an item is known after it was last seen, on the graph's monotonic clock.
        max_items: How many items are known at most: the most recently seen ones.
        key: The deduplication key of an item. If it raises, the operator fails with that error, at that item.
        keep_across_restarts: Whether a restarted instance keeps the window. If not, an item that was sent before the restart
            and repeats after it is sent a second time (at least once).
    """

    def window() -> SeenSet:
        return SeenSet(max_age, max_items)

    window()  # raises for invalid bounds now, not when the graph runs

    async def run(ends: WiredEnds) -> None:
        seen = ends.keep("seen", window) if keep_across_restarts else window()
        ends.gauge("remembered", len(seen))
        ends.count("evicted_early", 0)
        # Not ``sift``: reading the clock and setting metrics for each item would cost 0.5 µs; here it is once a batch.
        async for batch in ends.receiver.batches():
            now = ends.clock.monotonic()
            evicted_before = seen.evicted_early
            passed: list[Any] = []
            repeats = 0
            try:
                for item in batch:
                    if seen.check_and_add(key(item), now):
                        repeats += 1
                    else:
                        passed.append(item)
            finally:  # items that are recorded as seen are sent, even if a later item of the batch has failed
                ends.duplicate(repeats)
                ends.commit(passed, acknowledge=len(passed) + repeats)
                ends.gauge("remembered", len(seen))
                ends.count("evicted_early", seen.evicted_early - evicted_before)
            await ends.flush()

    return run
