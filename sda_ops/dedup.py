"""Deduplication: what comes again within the window is booked as a duplicate and goes no further.

``SeenSet`` is the window: pure, its time passed in. ``deduplicate`` makes an operator of it. Nothing here knows why
anything comes twice (redundant feeds, an archive polled with an overlap, a source that repeats after a failure), nor
what is done with the items behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from datetime import timedelta
from typing import Any

from orchestrator_adapter import Factory, WiredEnds, check_fields
from sda_ops.records.observation import Observation

_SWEPT_AT_ONCE = 256
"""Keys whose time is up, let go of at one meeting: a burst that grows old all at once holds nobody up (0.1 ms, not 0.2 s)."""


def observation_key(observation: Observation) -> int:
    """What an observation is recognised by: its id, as the number that the ``UUID`` holds anyway.

    The ``UUID`` itself takes 65 bytes more to remember, is one more object for every full garbage collection to visit
    (70 ms against 20 ms for 500,000 of them), and hashes and compares in Python. ``UUID.bytes`` must be made first, and
    takes 16 bytes more.
    """
    return observation.observation_id.int


class SeenSet:
    """Which keys were met lately: within ``max_age``, and at most ``max_items`` of them, the last met ones.

    The window slides: meeting a key again renews it, so that what keeps coming stays known for as long as it comes. A
    key that was last met exactly ``max_age`` ago is not known any more.

    An observation's id takes about 150 bytes (75 MB for 500,000; an ``OrderedDict`` takes 265 an id), where each is met at
    a time of its own 180; keys that are met again and again add up to 40. A meeting takes 0.5 µs, or 1 µs where another key
    has to go for it. That is amortised: the table grows in steps, of 30 ms at 500,000 ids.

    Attributes:
        evicted_early: How many keys were forgotten for want of room before their time. While it grows, the window is
            shorter than ``max_age``, and a repeat may pass for new.
    """

    __slots__ = ("_keys", "_known", "_max_age_s", "_max_items", "_swept_at", "_times", "evicted_early")

    def __init__(self, max_age: timedelta, max_items: int) -> None:
        """Raises ``ValueError``, naming every bound that makes no sense."""
        check_fields(
            "SeenSet",
            ("max_age", max_age, max_age > timedelta(0), "> 0"),
            ("max_items", max_items, max_items >= 1, ">= 1"),
        )
        self.evicted_early = 0
        self._max_age_s = max_age.total_seconds()
        self._max_items = max_items
        self._swept_at = float("-inf")
        # When each key was last met, in that order.
        self._known: dict[Hashable, float] = {}
        # Every meeting, in that order: whether the key has been met again since, ``_known`` tells. The dict alone would do,
        # but to find its oldest entry a dict walks past everything that was deleted before it, each time.
        self._keys: deque[Hashable] = deque()
        self._times: deque[float] = deque()

    def __len__(self) -> int:
        """How many keys are held. Those whose time is up go when other keys are met, up to 256 at each meeting."""
        return len(self._known)

    def check_and_add(self, key: Hashable, now: float) -> bool:
        """Whether ``key`` was met within the last ``max_age``; from now on it was.

        ``now`` is in monotonic seconds, never less than before. If the key cannot be hashed or compared, what that
        raises is raised, and it was not met.
        """
        if now != self._swept_at:
            self._sweep(now)
        known = self._known
        met_at = known.get(key)
        if met_at == now:
            return True
        if met_at is not None:
            del known[key]  # so that it comes last
        elif len(known) >= self._max_items:
            self._make_room(now)
        known[key] = now
        self._keys.append(key)
        self._times.append(now)
        if len(self._keys) > 2 * len(known):
            self._forget_renewed_meetings()
        return met_at is not None and now - met_at < self._max_age_s

    def _sweep(self, now: float) -> None:
        """Let go of what is too old, or of some of it."""
        for _ in range(_SWEPT_AT_ONCE):
            if not self._times or now - self._times[0] < self._max_age_s:
                self._swept_at = now
                return
            self._forget_first_meeting()

    def _make_room(self, now: float) -> None:
        met_at = now
        while len(self._known) >= self._max_items:
            met_at = self._forget_first_meeting()
        if now - met_at < self._max_age_s:
            self.evicted_early += 1

    def _forget_first_meeting(self) -> float:
        """And with it its key, unless that was met again since. Returns when it was."""
        key, met_at = self._keys.popleft(), self._times.popleft()
        if self._known.get(key) == met_at:
            del self._known[key]
        return met_at

    def _forget_renewed_meetings(self) -> None:
        """Most keys were met again and again: only the last meeting of each counts."""
        self._keys = deque(self._known)
        self._times = deque(self._known.values())


def deduplicate(
    *,
    max_age: timedelta = timedelta(minutes=10),
    max_items: int = 500_000,
    key: Callable[[Any], Hashable] = observation_key,
    keep_across_restarts: bool = True,
) -> Factory:
    """An operator that passes each item on once, in order; those it has passed on before are booked as duplicates.

    Exact under failures and redelivery: an item is known from the moment at which it leaves (or is found to repeat one
    that has left), and its lease ends in the same step. So an item that is redelivered is never taken for its own
    repeat, one whose key cannot be told is not known, and one that has left never passes again while it is known.

    "Left" means left here: what is shed or buried further down is known all the same.

    Raises ``ValueError`` at once if the bounds make no sense. Declare the operator as ``stateful``.

    Its own figures: ``remembered``, as of the last batch, and ``evicted_early`` (see ``SeenSet``), over all instances.

    Args:
        max_age: How long an item is known after it was last met, on the graph's monotonic clock.
        max_items: How many are known at most: the last met ones.
        key: What an item is recognised by. If it raises, the operator fails with it, at that item.
        keep_across_restarts: Whether a restarted instance knows what the one before it knew. If not, what has left before
            the restart and comes again behind it passes a second time: at least once, downstream.
    """

    def window() -> SeenSet:
        return SeenSet(max_age, max_items)

    window()  # bad bounds are refused where they are written, not when the graph runs

    async def run(ends: WiredEnds) -> None:
        seen = ends.keep("seen", window) if keep_across_restarts else window()
        ends.gauge("remembered", len(seen))
        ends.count("evicted_early", 0)
        # ``sift``, but for what is done once a batch: the clock and the figures, item by item, would cost 0.5 µs each time.
        async for batch in ends.receiver.batches():
            now = ends.clock.monotonic()
            forgotten_before = seen.evicted_early
            passed: list[Any] = []
            repeats = 0
            try:
                for item in batch:
                    if seen.check_and_add(key(item), now):
                        repeats += 1
                    else:
                        passed.append(item)
            finally:  # nothing was awaited since the batch came: what has been met leaves, whatever became of the rest
                ends.duplicate(repeats)
                ends.commit(passed, acknowledge=len(passed) + repeats)
                ends.gauge("remembered", len(seen))
                ends.count("evicted_early", seen.evicted_early - forgotten_before)
            await ends.flush()

    return run
