"""Faults and their times, as pure functions: bad frames among the good ones, bursts, outages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np

from sda_ops.astro.time import NS_PER_S, Nanoseconds
from sda_ops.simulate.frames import Batch, Fault, SimulatedSensor

BLOCK_NS = NS_PER_S // 20
"""The longest time that is measured in one block."""


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Additional frames for each good one, in [0, 1]."""

    malformed: float = 0.0
    impossible: float = 0.0
    duplicate: float = 0.0

    def insert(self, batch: Batch, sensor: SimulatedSensor, rng: np.random.Generator) -> Batch:
        """The batch with bad frames after the good ones that they are made from, at the same times.

        The good frames do not change: the same seed sends the same ones with and without faults.
        """
        rates: tuple[tuple[Fault, float], ...] = (
            ("malformed", self.malformed),
            ("impossible", self.impossible),
            ("duplicate", self.duplicate),
        )
        extra: list[tuple[int, Fault]] = [
            (int(index), fault)
            for fault, rate in rates
            if rate > 0.0
            for index in np.flatnonzero(rng.random(len(batch.frames)) < rate)
        ]
        if not extra:
            return batch
        extra.sort(key=lambda pair: pair[0])
        origin = np.insert(np.arange(len(batch.frames)), [index + 1 for index, _ in extra], [i for i, _ in extra])
        positions = [index + 1 + already for already, (index, _) in enumerate(extra)]
        indices = origin.tolist()
        frames = [batch.frames[index] for index in indices]
        faults = [batch.faults[index] for index in indices]
        for position, (_, fault) in zip(positions, extra, strict=True):
            frames[position] = _with_fault(frames[position], fault, sensor)
            faults[position] = fault
        return Batch(
            batch.timestamp_ns[origin],
            frames,
            [batch.sensors[index] for index in indices],
            [batch.catalog_numbers[index] for index in indices],
            faults,
        )


def _with_fault(frame: bytes, fault: Fault, sensor: SimulatedSensor) -> bytes:
    match fault:
        case "malformed":
            return sensor.malformed(frame)
        case "impossible":
            return sensor.impossible(frame)
        case "duplicate":
            return frame
        case _:
            assert_never(fault)


@dataclass(frozen=True, slots=True)
class Window:
    """The last ``length_ns`` of every ``period_ns``, counted from ``start_ns``."""

    start_ns: int
    length_ns: int
    period_ns: int

    def contains(self, time_ns: int) -> bool:
        """Whether the time is in the window."""
        return (time_ns - self.start_ns) % self.period_ns >= self.period_ns - self.length_ns

    def next_change_ns(self, time_ns: int) -> int:
        """The first later time at which the window opens or closes."""
        into_period_ns = (time_ns - self.start_ns) % self.period_ns
        opens_ns = self.period_ns - self.length_ns
        return time_ns - into_period_ns + (opens_ns if into_period_ns < opens_ns else self.period_ns)


class Schedule:
    """When a sensor measures: evenly at its rate, faster in bursts, not at all in outages.

    ``phase`` in [0, 1) shifts it by a part of its period, so that sensors of one rate do not measure at the same times.
    """

    def __init__(
        self,
        *,
        rate_hz: float,
        phase: float,
        burst: Window | None = None,
        burst_factor: float = 1.0,
        outage: Window | None = None,
    ) -> None:
        self._rate_hz = rate_hz
        self._burst = burst
        self._burst_factor = burst_factor
        self._outage = outage
        self._carry = phase

    def block(self, start_ns: int, limit_ns: int) -> tuple[int, Nanoseconds]:
        """The end of the next block, at ``limit_ns`` at the latest, and the times in it, ascending.

        Call it for consecutive blocks: the rest of a period continues in the next block.
        """
        windows = [window for window in (self._burst, self._outage) if window is not None]
        end_ns = min(start_ns + BLOCK_NS, limit_ns, *(window.next_change_ns(start_ns) for window in windows))
        rate_hz = self._rate_hz * (self._burst_factor if self._burst and self._burst.contains(start_ns) else 1.0)
        if self._outage is not None and self._outage.contains(start_ns):
            return end_ns, np.empty(0, dtype=np.int64)
        due = self._carry + rate_hz * (end_ns - start_ns) / NS_PER_S
        count = int(due)
        offsets_ns = (np.arange(1, count + 1) - self._carry) * (NS_PER_S / rate_hz)
        self._carry = due - count
        return end_ns, start_ns + np.minimum(offsets_ns.astype(np.int64), end_ns - start_ns - 1)
