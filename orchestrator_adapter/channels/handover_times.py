"""``HandoverTimes``: how long items wait in a channel, and how long its reader needs for a batch. Sampled, at a bounded cost.

One item at a time is marked when it is accepted, and its wait ends when the reader takes it for the first time. One batch at a
time is measured, from when it is taken until all of it is acknowledged. Large batches at a low rate are all measured. At a
high rate, or with small batches, a measurement stands for what was not measured since the last one:

- A wait counts for all items that were taken since the last measured wait, so ``waits`` counts items.
- A batch of n items counts as often as n goes into the number of items since the last measured batch; the remainder is
  carried over. The places at which batches are measured are spread over the items, so the probability that a batch is measured
  is proportional to n, and this weight makes ``batches`` an unbiased count of batches (Horvitz and Thompson, 1952, J. Am. Stat.
  Assoc. 47, 663-685).

The rate decides how many items lie between two measurements: as many as come in 10 ms, 4,096 at most. The places are jittered, so
that no regular pattern of batches escapes. After a slow rate has followed a fast one, ``measure_next`` ends the long gap: who
reads the figures calls it, so there is a measurement at least as often as there are readings.

A batch that is not acknowledged (its reader failed, or it was withdrawn) is not measured, and neither is an item that leaves
the channel before it is taken. Nothing is read from the clock between measurements.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.metrics import LatencyHistogram

NEVER: Final = 1 << 62
"""Greater than any number of items."""

_EVERY_S = 0.01
_MOST = 4_096  # items between two measurements, on average; a power of two


class HandoverTimes:
    """Of one channel. Sequence numbers are the channel's, and so are the cursors that it compares with the thresholds.

    Attributes:
        waits: From the acceptance of an item until it is taken.
        batches: From taking a batch to its acknowledgement.
        mark_from: The next push marks an item once so many items have been sent.
        attend_at: A take of the item with this sequence number, or a later one, calls ``taken``.
        holds: A batch is being measured: each acknowledgement calls ``acknowledged``.
    """

    __slots__ = (
        "_accounted",
        "_clock",
        "_jitter",
        "_last",
        "_marked",
        "_marked_at",
        "_next_batch",
        "_open",
        "_stride",
        "_waits_until",
        "attend_at",
        "batches",
        "holds",
        "mark_from",
        "waits",
    )

    def __init__(self, clock: Clock | None) -> None:
        """Without a clock nothing is measured."""
        self.waits = LatencyHistogram()
        self.batches = LatencyHistogram()
        self.mark_from = self.attend_at = self._next_batch = NEVER if clock is None else 0
        self.holds = False
        self._clock = clock
        self._marked = NEVER  # the marked item's sequence number
        self._marked_at = 0.0
        self._waits_until = 0  # items received at the last measured wait
        self._open = (
            0,
            0,
            0,
            0.0,
        )  # of the measured batch: its end, its size, items received with it, when it was taken
        self._accounted = 0  # items that measured batches stand for
        self._last = (0, 0.0)  # items received, and the time, at the last measured batch
        self._stride = 0  # items between two measurements
        self._jitter = 0

    def accepted(self, end: int, count: int) -> None:
        """The channel has accepted ``count`` items, the last of which is the one before ``end``: mark one in their middle."""
        if count and self._clock is not None:
            self.mark(end - 1 - count // 2, self._clock.monotonic())

    def mark(self, sequence: int, at: float) -> None:
        """The item with this sequence number was accepted at ``at``."""
        self.mark_from = NEVER
        self._marked, self._marked_at = sequence, at
        self.attend_at = min(self._next_batch, sequence)

    def forget_mark(self) -> None:
        """The marked item will not be taken: mark another one."""
        if self._clock is not None:
            self._marked, self.mark_from = NEVER, 0
            self.attend_at = self._next_batch

    def taken(self, end: int, size: int, *, received: int, sent: int) -> None:
        """The reader has taken ``size`` items, the last of which is the one before ``end``."""
        if self._clock is None:
            return
        now = self._clock.monotonic()
        if self._marked < end:
            self.waits.record(_ns(now - self._marked_at), max(1, received - self._waits_until))
            self._waits_until = received
            self._marked, self.mark_from = NEVER, sent + self._stride
        if self._next_batch < end:
            self.holds, self._next_batch = True, NEVER
            self._open = end, size, received, now
        self.attend_at = min(self._next_batch, self._marked)

    def acknowledged(self, head: int) -> None:
        """All items before ``head`` are acknowledged."""
        end, size, received, taken_at = self._open
        if head < end or self._clock is None:
            return
        now = self._clock.monotonic()
        count = max(1, (received - self._accounted) // size)
        self._accounted = max(self._accounted, min(received, self._accounted + count * size))
        self.batches.record(_ns(now - taken_at), count)
        before, at = self._last
        self._last = received, now
        elapsed_s, items = now - at, received - before
        fast = items * _EVERY_S >= _MOST * elapsed_s
        mean = _MOST if fast else int(items * _EVERY_S / elapsed_s)
        self._jitter = (self._jitter * 5 + 3) % _MOST  # each number below it once, then again
        self._stride = mean // 2 + mean * self._jitter // _MOST
        self._measure_from(end + self._stride)

    def returned(self, items: int) -> None:
        """These leased items are returned or withdrawn: their batches count only if they are delivered again."""
        self._accounted += items
        if self.holds:
            self._measure_from(0)

    def removed(self, sequences: Sequence[int]) -> None:
        """The ready items with these ascending sequence numbers have left the channel. Those behind them have moved up."""
        if sequences[0] <= self._marked < NEVER:
            before = bisect_left(sequences, self._marked)
            if before < len(sequences) and sequences[before] == self._marked:
                self.forget_mark()
            else:
                self.mark(self._marked - before, self._marked_at)

    def measure_next(self) -> None:
        """Measure the next wait and the next batch, however many there are."""
        if self._clock is None:
            return
        if self.mark_from < NEVER:
            self.mark_from = 0
        if not self.holds:
            self._measure_from(0)

    def _measure_from(self, sequence: int) -> None:
        self.holds = False
        self._next_batch = sequence
        self.attend_at = min(sequence, self._marked)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
