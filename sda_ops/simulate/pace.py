"""Sends one sensor's frames when they are due.

Frames are measured a block of 50 ms ahead and sent in ticks of about 5 ms, none before its timestamp. A frame that is more
than `MAX_LAG_NS` late is skipped and counted, so that a slow machine or an absent peer gives fewer frames, not old ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sda_ops.astro.time import NS_PER_S
from sda_ops.simulate.faults import FaultRates, Schedule, Window
from sda_ops.simulate.frames import Batch, SimulatedSensor
from sda_ops.simulate.links import Link
from sda_ops.simulate.truth import Tally, TruthLog
from sda_ops.simulate.world import World

TICK_S = 0.005
MAX_LAG_NS = NS_PER_S // 2
MAX_FRAMES_AT_ONCE = 1024
"""Frames sent before other sensors run."""


class Run:
    """The state that the sensors of one simulation share.

    Attributes:
        world: The objects that they observe.
        now_ns: The simulation's clock, UTC.
        start_ns: The clock's time at the start.
        ended: Set when no more frames are to be sent.
        tally: Counts of the frames that were sent.
        truth: The file of all frames; None if there is no such file.
    """

    def __init__(self, world: World, *, now_ns: Callable[[], int], count: int | None, truth: TruthLog | None) -> None:
        self.world = world
        self.now_ns = now_ns
        self.start_ns = now_ns()
        self.ended = asyncio.Event()
        self.tally = Tally()
        self.truth = truth
        self._count = self._left = count
        self._sent = 0

    def grant(self, frames: int) -> int:
        """How many of these frames may be sent: all, unless the configured count is nearly reached."""
        if self._left is None:
            return frames
        granted = min(frames, self._left)
        self._left -= granted
        return granted

    def record(self, sensor: SimulatedSensor, sent: Batch, *, granted: int) -> None:
        """Record the frames that were sent, of those that were granted. The last one ends the simulation."""
        self.tally.sent(sensor.kind, sent)
        if self.truth is not None:
            self.truth.append(sensor, sent)
        if self._count is not None and self._left is not None:
            self._left += granted - len(sent.frames)
            self._sent += len(sent.frames)
            if self._sent == self._count:
                self.ended.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One sensor, its times, its faults and its link.

    Attributes:
        sensor: Makes the frames.
        schedule: The times of its measurements.
        link: Sends the frames.
        faults: Rates of faults.
        fault_rng: Random numbers for faults, separate from the sensor's, so that faults change no good frame.
        disconnect_in: Outages during which the link is closed.
    """

    sensor: SimulatedSensor
    schedule: Schedule
    link: Link
    faults: FaultRates
    fault_rng: np.random.Generator
    disconnect_in: Window | None = None


async def drive(feed: Feed, run: Run) -> None:
    """Measure and send until the simulation has ended; then close the link properly."""
    at_ns = run.start_ns
    try:
        while not run.ended.is_set():
            if feed.disconnect_in is not None and feed.disconnect_in.contains(at_ns):
                await feed.link.disconnect()
            elif not await feed.link.ready(run.ended):
                break
            at_ns = _catch_up(feed, run, at_ns)
            interval = run.world.interval(at_ns)
            end_ns, times_ns = feed.schedule.block(at_ns, interval.end_ns)
            batch = feed.sensor.observe(interval, times_ns)
            await _send(feed, run, feed.faults.insert(batch, feed.sensor, feed.fault_rng))
            await _sleep_until(run, end_ns)
            at_ns = end_ns
    finally:
        await feed.link.disconnect()


def _catch_up(feed: Feed, run: Run, at_ns: int) -> int:
    """The start of the next block: ``at_ns``, or now if that is too long ago."""
    now_ns = run.now_ns()
    if now_ns - at_ns <= MAX_LAG_NS:
        return at_ns
    while at_ns < now_ns:
        at_ns, missed_ns = feed.schedule.block(at_ns, now_ns)
        run.tally.skipped(feed.sensor.kind, len(missed_ns))
    return at_ns


async def _send(feed: Feed, run: Run, batch: Batch) -> None:
    """Send each frame of the batch when it is due, or skip it if it is too late."""
    kind = feed.sensor.kind
    at = 0
    while at < len(batch.frames) and await feed.link.ready(run.ended):
        now_ns = run.now_ns()
        fresh, due = np.searchsorted(batch.timestamp_ns, (now_ns - MAX_LAG_NS, now_ns), side="right").tolist()
        if fresh > at:
            run.tally.skipped(kind, fresh - at)
            at = fresh
        granted = run.grant(min(max(0, due - at), MAX_FRAMES_AT_ONCE))  # 0 where the clock was set back
        if granted > 0:
            sent = await feed.link.send(batch.part(at, at + granted))
            run.record(feed.sensor, batch.part(at, at + sent), granted=granted)
            at += sent
        await asyncio.sleep(0 if at < due and granted > 0 else TICK_S)


async def _sleep_until(run: Run, time_ns: int) -> None:
    """Sleep until the end of a block, at most 50 ms."""
    remaining_s = (time_ns - run.now_ns()) / NS_PER_S
    if remaining_s > TICK_S:
        await asyncio.sleep(remaining_s)
