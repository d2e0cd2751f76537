"""Three feeds with their physics, in virtual time: a radar's socket, an archive, and connections; and the oracle of their marks.

A reading is measured at a true time, dated by a clock that is wrong by up to the clock error, and arrives up to the greatest
lateness later. Most of the readings have extreme values, and arrive at a moment at which a source may read. The sources read as the real ones do. What each source sends
and what the fan-in makes of it are recorded in front of, and behind, the fan-in.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from orchestrator_adapter import (
    Backoff,
    Control,
    DeadLetterList,
    Factory,
    OperatorGraph,
    RestartPolicy,
    SupervisionPolicy,
    SupervisorEvent,
    WiredEnds,
    merge,
)
from orchestrator_adapter.testing import LoopClock
from sda_ops.event_time.promises import PromiseRules, ReadOrder
from sda_ops.event_time.source import OnContact, watermarked
from sda_ops.event_time.watermark import Watermark, least_watermark
from sda_ops.sources.optical import ArchivePosition
from tests.scenes.restarts import away

MS = 1_000_000
S = 1_000 * MS
DURATION_S = 25.0
IDLE_AFTER_S = 3.0
_GRID_S = 0.01  # what arrives and what is read often falls on the same instant
_YEAR_NS = 366 * 86_400 * S
_ALWAYS = RestartPolicy.always(backoff=Backoff(initial=timedelta(seconds=0.05), cap=timedelta(seconds=0.3)))


@dataclass(frozen=True, slots=True)
class Reading:
    """As an observation has them: two times and an id."""

    feed: str
    observation_id: int
    sensor_timestamp: int
    arrived_ns: int
    ingest_timestamp: int = 0


def times_of(reading: Reading) -> tuple[int, int]:
    return reading.sensor_timestamp, reading.ingest_timestamp


@dataclass(slots=True)
class Plan:
    """What a seed decides for a feed: when readings arrive, and what goes wrong.

    Attributes:
        order: The kind of the feed.
        lateness_s: Its greatest lateness.
        error_s: Its clock error.
        arrive_at_s: On the grid; several may be at the same instant.
        faults_s: When the source fails, at its next step after this time.
        stall: From when to when it neither reads nor has contact.
        ends_s: When it ends.
        goes_back: Whether some contacts are reported an hour too early.
    """

    order: ReadOrder
    lateness_s: float
    error_s: float
    arrive_at_s: list[float]
    faults_s: list[float]
    stall: tuple[float, float] | None
    ends_s: float
    goes_back: bool

    @property
    def rules(self) -> PromiseRules:
        return PromiseRules(
            max_lateness=timedelta(seconds=self.lateness_s),
            clock_error=timedelta(seconds=self.error_s),
            order=self.order,
            idle_after=timedelta(seconds=IDLE_AFTER_S),
            least_step=timedelta(milliseconds=20),
        )


class Feed:
    """One feed: its readings arrive by themselves; ``source`` is the source that reads them."""

    def __init__(self, name: str, plan: Plan, rng: random.Random) -> None:
        self.name = name
        self.plan = plan
        self.entered: list[Reading] = []
        self._rng = rng
        self._clock = LoopClock()
        self._queues: list[deque[Reading]] = [deque() for _ in range(3 if plan.order is ReadOrder.ANY else 1)]
        self._published: list[Reading] = []
        self._began_s = 0.0
        self._contacts = 0
        self._turn = 0

    def schedule_readings(self) -> None:
        self._began_s = asyncio.get_running_loop().time()
        for number, at_s in enumerate(self.plan.arrive_at_s):
            asyncio.get_running_loop().call_later(at_s, self._arrive, number)

    def _arrive(self, number: int) -> None:
        rng, plan, now_ns = self._rng, self.plan, self._clock.now_ns()
        late_s = rng.choice((0.0, plan.lateness_s, plan.lateness_s, rng.uniform(0, plan.lateness_s)))
        error_s = rng.choice((-plan.error_s, -plan.error_s, plan.error_s, 0.0))
        event_ns = now_ns - round(late_s * S) + round(error_s * S)
        if rng.random() < 0.05:
            event_ns = now_ns + _YEAR_NS
        elif plan.order is ReadOrder.EVENT_TIME:  # an archive publishes in the order of its times
            past = [each.sensor_timestamp for each in self._published if each.sensor_timestamp <= now_ns]
            event_ns = max([event_ns, *past]) if event_ns <= now_ns else now_ns
        reading = Reading(self.name, number, event_ns, now_ns)
        self._published.append(reading)
        rng.choice(self._queues).append(reading)

    async def _pause(self, *steps: int) -> None:
        """Until a moment at which something may arrive, so many steps from now; one of ``steps`` is drawn."""
        now_s = self._now_s
        at = int(now_s / _GRID_S) + self._rng.choice(steps)
        await asyncio.sleep(max(0.0, at * _GRID_S - now_s))

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_s

    def source(self, on_contact: OnContact) -> Factory:
        def contact(at_ns: int) -> None:
            self._contacts += 1
            on_contact(at_ns - 3_600 * S if self.plan.goes_back and self._contacts % 7 == 0 else at_ns)

        step = {ReadOrder.ARRIVAL: self._drain, ReadOrder.EVENT_TIME: self._poll, ReadOrder.ANY: self._read_in_turn}

        async def run(ends: WiredEnds) -> None:
            while self._now_s < self.plan.ends_s and not ends.shutdown.is_set:
                if self.plan.faults_s and self.plan.faults_s[0] <= self._now_s:
                    self.plan.faults_s.pop(0)
                    raise away()
                if self.plan.stall is not None and self.plan.stall[0] <= self._now_s < self.plan.stall[1]:
                    await asyncio.sleep(self.plan.stall[1] - self._now_s)
                await step[self.plan.order](ends, contact)

        return run

    def _ingested(self, readings: Sequence[Reading]) -> list[Reading]:
        now_ns = self._clock.now_ns()
        emitted = [replace(each, ingest_timestamp=now_ns) for each in readings]
        self.entered += emitted
        return emitted

    async def _drain(self, ends: WiredEnds, contact: OnContact) -> None:
        """A socket: one queue, read in small batches; a drain that empties it is a contact."""
        queue, before_ns = self._queues[0], self._clock.now_ns()
        taken = [queue.popleft() for _ in range(min(len(queue), self._rng.randint(1, 3)))]
        emptied = not queue
        if taken:
            await ends.emit(self._ingested(taken))
        if emptied:
            contact(before_ns)
        if not taken:
            await self._pause(1, 1, 2, 50)

    async def _poll(self, ends: WiredEnds, contact: OnContact) -> None:
        """An archive: a page of entries after the newest one that was read, by the real position."""
        requested_ns = self._clock.now_ns()
        position = ends.keep("position", lambda: ArchivePosition(requested_ns - 3_600 * S))
        await self._pause(0, 1, 3)
        after_ns = position.timestamp_ns
        page = sorted(
            (each for each in self._published if each.sensor_timestamp >= after_ns), key=lambda it: it.sensor_timestamp
        )[:20]
        fresh: list[Any] = position.fresh(page)  # type: ignore[arg-type]  # a reading has what it needs
        emitted = self._ingested(fresh)
        position.advance(page, now_ns=self._clock.now_ns())  # type: ignore[arg-type]  # as above
        await ends.emit(emitted)
        if not fresh:
            contact(requested_ns)
        await self._pause(1, 10, 30)

    async def _read_in_turn(self, ends: WiredEnds, contact: OnContact) -> None:
        """Connections: what had arrived at the beginning of a round is emitted before the round is a contact."""
        began_ns = self._clock.now_ns()
        unread = [len(queue) for queue in self._queues]
        while any(unread):
            self._turn = (self._turn + 1) % len(self._queues)
            queue, of = self._queues[self._turn], self._turn
            taken = [queue.popleft() for _ in range(min(len(queue), 2))]
            unread[of] = max(0, unread[of] - len(taken))
            if taken:
                await ends.emit(self._ingested(taken))
            await asyncio.sleep(0)
        contact(began_ns)
        await self._pause(1, 5, 50)


@dataclass(frozen=True, slots=True)
class Sent:
    """Something that passed a place, and when."""

    part: Reading | Watermark
    at_ns: int


class Tap:
    """An operator that records what passes, in order."""

    def __init__(self) -> None:
        self.passed: list[Sent] = []

    async def __call__(self, ends: WiredEnds) -> None:
        async for part in ends.receiver.batches(controls=True):
            now_ns = ends.clock.now_ns()
            if isinstance(part, Control):
                assert isinstance(part, Watermark)
                self.passed.append(Sent(part, now_ns))
            else:
                self.passed += [Sent(item, now_ns) for item in part]
                ends.commit(part, acknowledge=len(part))
                await ends.flush()


class SlowSink:
    """Collects, and sometimes takes its time."""

    def __init__(self, rng: random.Random, *, blocks_s: float) -> None:
        self.items: list[Reading] = []
        self._rng = rng
        self._blocks_s = blocks_s

    async def __call__(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(4):
            if self._rng.random() < 0.1:
                await asyncio.sleep(0.02)
            if self._blocks_s and len(self.items) > 5:
                await asyncio.sleep(self._blocks_s)
                self._blocks_s = 0.0
            self.items += batch


class FeedsRun:
    """One run: three feeds, or more, with what goes wrong in them; all drawn from a seed."""

    def __init__(self, seed: int, *, blocks: bool = False, stops: int = 0) -> None:
        """``stops``: one drains the run at a random time, a second one aborts it a moment later."""
        rng = random.Random(f"feeds {seed}")
        self.blocks = blocks
        self.letters = DeadLetterList()
        self._stops = [rng.uniform(0.0, DURATION_S), rng.uniform(0.0, 0.05)][:stops]
        self.feeds = [Feed(f"feed-{at}", _plan(rng, at, blocks=blocks), rng) for at in range(rng.randint(2, 4))]
        self.taps = {feed.name: Tap() for feed in self.feeds}
        self.merged, self.sink = Tap(), SlowSink(rng, blocks_s=3 * IDLE_AFTER_S if blocks else 0.0)
        graph = OperatorGraph("feeds")
        fan_in = graph.add_fan_in("merge", merge(combine={Watermark: least_watermark()}), restart_policy=_ALWAYS)
        for feed in self.feeds:
            source = graph.add_source(
                feed.name, watermarked(feed.source, feed.plan.rules, times_of=times_of), restart_policy=_ALWAYS
            )
            tap = graph.add_operator(f"tap-{feed.name}", self.taps[feed.name])
            graph.connect(source, tap, rng.randint(1, 6))
            graph.connect(tap, fan_in, rng.randint(1, 6))
        behind = graph.add_operator("behind", self.merged)
        graph.connect(fan_in, behind, rng.randint(1, 6))
        graph.connect(behind, graph.add_sink("sink", self.sink), rng.randint(1, 6))
        self.built = graph.build(clock=LoopClock(), rng=rng, dead_letters=self.letters)

    @property
    def stopped(self) -> bool:
        return bool(self._stops)

    async def run(self) -> SupervisorEvent:
        for feed in self.feeds:
            feed.schedule_readings()
        running = asyncio.create_task(self.built.run(SupervisionPolicy(grace=timedelta(hours=1))))
        for after_s in self._stops:
            await asyncio.sleep(after_s)
            self.built.request_shutdown("asked")
        return await running


def _plan(rng: random.Random, at: int, *, blocks: bool) -> Plan:
    order = (ReadOrder.ARRIVAL, ReadOrder.EVENT_TIME, ReadOrder.ANY)[at] if at < 3 else rng.choice(list(ReadOrder))
    arrive_at_s: list[float] = []
    for _ in range(rng.randint(12, 20) if blocks else rng.randint(0, 12)):
        burst_s = rng.randrange(round(DURATION_S / _GRID_S)) * _GRID_S
        arrive_at_s += [burst_s + _GRID_S * rng.randint(0, 2) for _ in range(rng.choice((1, 2, 8)))]
    stall, ends_s = None, DURATION_S
    if at and not blocks:  # the first feed always lives, so that something must advance
        match rng.randrange(5):
            case 0:
                stall = (0.0, DURATION_S)  # it never reports
            case 1:
                stall = (begin_s := rng.uniform(1, 8), begin_s + rng.uniform(1, 12))
            case 2:
                ends_s = rng.uniform(1, DURATION_S)
            case _:
                pass
    faults = [] if rng.random() < 0.5 else sorted(rng.uniform(0, DURATION_S) for _ in range(rng.randint(1, 5)))
    return Plan(
        order,
        lateness_s=(0.1, 2.0, 1.0)[at % 3],
        error_s=rng.choice((0.0, 0.05)),
        arrive_at_s=sorted(arrive_at_s),
        faults_s=faults,
        stall=stall,
        ends_s=ends_s,
        goes_back=rng.random() < 0.3,
    )


# The oracle.


def problems_of(run: FeedsRun, event: SupervisorEvent) -> Iterator[str]:
    """The broken promises of a run that has ended."""
    if not event.figures.ledger_holds:
        yield "the ledger does not hold, or a control item was lost"
    entered = [reading for feed in run.feeds for reading in feed.entered]
    left = [*run.sink.items, *(letter.payload for letter in run.letters.letters)]
    if sorted(map(_id, entered)) != sorted(map(_id, left)):
        yield "a reading was lost or repeated"
    for feed in run.feeds:
        passed = run.taps[feed.name].passed
        yield from _goes_back(feed.name, passed, strictly=False)
        yield from _too_early(feed.name, passed, excused=lambda _: False)
        if not run.stopped:
            yield from _stays_idle(feed, passed)
        if run.blocks and any(isinstance(sent.part, Watermark) and sent.part.time_ns is None for sent in passed):
            yield f"{feed.name} was idle while it waited for space"
    passed_over = {feed.name: _passed_over(run.taps[feed.name].passed, run.merged.passed) for feed in run.feeds}
    yield from _goes_back("merge", run.merged.passed, strictly=True)
    yield from _too_early(
        "merge", run.merged.passed, excused=lambda reading: reading.sensor_timestamp < passed_over[reading.feed]
    )
    if not run.blocks and not run.stopped:
        yield from _held(run)


def _id(reading: Reading) -> tuple[str, int]:
    return reading.feed, reading.observation_id


def _live_marks(passed: Sequence[Sent]) -> list[tuple[int, int]]:
    """When each came, and its time."""
    return [
        (sent.at_ns, sent.part.time_ns)
        for sent in passed
        if isinstance(sent.part, Watermark) and sent.part.time_ns is not None
    ]


def _goes_back(where: str, passed: Sequence[Sent], *, strictly: bool) -> Iterator[str]:
    times = [time_ns for _, time_ns in _live_marks(passed)]
    if times != sorted(times):
        yield f"{where}: a mark went back"
    idle_between = any(isinstance(sent.part, Watermark) and sent.part.time_ns is None for sent in passed)
    if strictly and not idle_between and len(times) != len(set(times)):
        yield f"{where}: a mark was repeated"


def _too_early(where: str, passed: Sequence[Sent], *, excused: Callable[[Reading], bool]) -> Iterator[str]:
    mark_ns = None
    for sent in passed:
        if isinstance(sent.part, Watermark):
            mark_ns = mark_ns if sent.part.time_ns is None else sent.part.time_ns
        elif mark_ns is not None and sent.part.sensor_timestamp < mark_ns and not excused(sent.part):
            yield f"{where}: {sent.part} came {mark_ns - sent.part.sensor_timestamp} ns after the mark that excludes it"
            return


def _stays_idle(feed: Feed, passed: Sequence[Sent]) -> Iterator[str]:
    """A source that delivers again has a live mark within three seconds, unless it ends before that."""
    ends_ns = LoopClock().now_ns() + round(feed.plan.ends_s * S)  # outside the loop: from the beginning of virtual time
    delivered_ns = None  # since when, while it is idle
    idle = False
    for sent in passed:
        if isinstance(sent.part, Watermark):
            idle, delivered_ns = sent.part.time_ns is None, None
        elif idle and delivered_ns is None:
            delivered_ns = sent.at_ns
        if delivered_ns is not None and sent.at_ns > delivered_ns + 3 * S:
            break
    else:
        if delivered_ns is None or delivered_ns + 3 * S > ends_ns:
            return
    yield f"{feed.name} delivers, and is idle"


def _passed_over(passed: Sequence[Sent], merged: Sequence[Sent]) -> int:
    """How far the least mark came while this feed was idle, and no one waited for it: what is older may be late."""
    returned_ns, idle = 0, False
    for sent in passed:
        if isinstance(sent.part, Watermark):
            returned_ns = sent.at_ns if idle and sent.part.time_ns is not None else returned_ns
            idle = sent.part.time_ns is None
    until_ns = 1 << 63 if idle else returned_ns + S // 2  # its mark takes a moment to the fan-in
    return max(
        (time_ns for at_ns, time_ns in _live_marks(merged) if idle or (returned_ns and at_ns <= until_ns)), default=0
    )


def _held(run: FeedsRun) -> Iterator[str]:
    """The least mark follows the clock at the distance of the slowest feed, also when other feeds have died."""
    slowest_s = max(feed.plan.lateness_s + feed.plan.error_s for feed in run.feeds)
    behind_ns = round((slowest_s + 2 * IDLE_AFTER_S + 3.0) * S)  # a first contact, a tick, a poll and backoffs
    marks = _live_marks(run.merged.passed)
    begin_ns = LoopClock().now_ns()  # outside the loop: when virtual time begins
    for second in range(10, int(DURATION_S)):
        now_ns = begin_ns + second * S
        latest_ns = max((time_ns for at_ns, time_ns in marks if at_ns <= now_ns), default=0)
        if latest_ns < now_ns - behind_ns:
            yield f"merge: held for {(now_ns - latest_ns) / S:.1f} s at second {second}"
            return
