"""Replay of recorded observations: CCSDS TDM and IOD files, merged in time order, at their own pace or a faster one.

The files are read when the source starts, all of them, and held (about half a kilobyte an observation): what is missing or
unreadable is told before anything is passed on. The first observation leaves at once, every later one as long after it as
it was measured later, divided by the pace. A source that was held up, by a full edge or a restart, is behind its schedule
and catches up as fast as the graph takes it.

Where the replay stands outlives the operator's instances, and moves in the same step in which observations leave: a restart
neither skips nor repeats one. The stream ends after the last.

``ingest_timestamp`` is the time of passing on, ``sensor_timestamp`` the file's own: years may lie between them, and a
validation that judges age must be given the observation's own time to judge by.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from msgspec.structs import replace

from orchestrator_adapter import DeadLetterKind, Factory, OperatorError, WiredEnds
from sda_ops.records.observation import Observation
from sda_ops.wire import iod, tdm
from sda_ops.wire.malformed import MalformedFrame
from sda_ops.wire.tdm import TdmConventions

_BATCH = 512  # observations at most that leave together
_BURIED_AT_ONCE = 256  # malformed entries, before the event loop has its turn
_SLACK_S = 0.001  # what is due so soon leaves now: no timer for less, nor for what rounding puts a hair ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayFeed:
    """What is replayed, and how fast.

    Attributes:
        paths: Files, and folders of which every file is taken that matches ``pattern``. Each is told from its content.
        pattern: A glob within the folders, such as ``*.tdm`` or ``**/*.dat``.
        pace: How much faster than they were measured observations leave: 1 is real time, 60 a minute in a second, ``None``
            as fast as the graph takes them.
        conventions: What the TDM files leave open. Its ``sigma_angle_rad`` also holds for IOD lines that tell none.
    """

    paths: tuple[Path, ...]
    pattern: str = "*"
    pace: float | None = 1.0
    conventions: TdmConventions = field(default_factory=TdmConventions)

    def __post_init__(self) -> None:
        problems = [
            f"ReplayFeed: {name} must be {bound}, got {value!r}"
            for name, value, good, bound in (
                ("paths", self.paths, bool(self.paths), "one at least"),
                ("pattern", self.pattern, self.pattern and not Path(self.pattern).is_absolute(), "a relative glob"),
                ("pace", self.pace, self.pace is None or 0 < self.pace < inf, "> 0 and finite, or None"),
            )
            if not good
        ]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(slots=True)
class Playback:
    """Where a replay stands.

    Attributes:
        observations: All of them, in the order of their time.
        malformed: What is still to be buried.
        position: How many have been passed on.
        started_s: When the first was, on the graph's monotonic clock.
    """

    observations: list[Observation]
    malformed: deque[MalformedFrame]
    position: int = 0
    started_s: float | None = None

    @property
    def done(self) -> bool:
        return self.position == len(self.observations)

    def take(self, now_s: float, pace: float | None) -> list[Observation]:
        """What is due at ``now_s``, a batch at most; it counts as passed on from here."""
        if self.started_s is None:
            self.started_s = now_s
        end = min(self.position + _BATCH, len(self.observations))
        if pace is not None and not self.done:
            due_ns = self.observations[0].sensor_timestamp + (now_s - self.started_s + _SLACK_S) * pace * 1e9
            end = bisect_right(self.observations, due_ns, self.position, end, key=_time_ns)
        taken = self.observations[self.position : end]
        self.position = end
        return taken

    def wait_s(self, now_s: float, pace: float | None) -> float:
        """How long until the next is due; zero where it is already, or none is left."""
        if self.done or pace is None or self.started_s is None:
            return 0.0
        since_first_ns = self.observations[self.position].sensor_timestamp - self.observations[0].sensor_timestamp
        return max(0.0, self.started_s + since_first_ns / 1e9 / pace - now_s)


def _time_ns(observation: Observation) -> int:
    return observation.sensor_timestamp


def replay_source(feed: ReplayFeed) -> Factory:
    """A source for recorded files. One that cannot be read is an ``OperatorError`` that names it."""

    async def run(ends: WiredEnds) -> None:
        kept: list[Playback] = ends.keep("playback", list)
        if not kept:
            playback = await ends.unless_shutdown(ends.run_blocking(read_files, feed))
            if playback is None:
                return
            kept.append(playback)
        await _replay(kept[0], feed.pace, ends)

    return run


async def _replay(playback: Playback, pace: float | None, ends: WiredEnds) -> None:
    clock = ends.clock
    await _bury(playback.malformed, ends)
    while not playback.done and not ends.shutdown.is_set:
        now_ns = clock.now_ns()
        due = playback.take(clock.monotonic(), pace)
        await ends.emit([replace(observation, ingest_timestamp=now_ns) for observation in due])
        if (wait_s := playback.wait_s(clock.monotonic(), pace)) > _SLACK_S:
            await ends.shutdown.wait_at_most(wait_s, clock)


async def _bury(malformed: deque[MalformedFrame], ends: WiredEnds) -> None:
    """Dead-letter them, each once: one that the store will not keep is still there for the next instance."""
    for number in range(len(malformed)):
        ends.dead_letter(malformed[0].frame, DeadLetterKind.DESERIALIZATION, malformed[0].reason)
        ends.count("decode_errors")
        malformed.popleft()
        if number % _BURIED_AT_ONCE == 0:
            await asyncio.sleep(0)


def read_files(feed: ReplayFeed) -> Playback:
    """Everything that the feed's files hold. Blocks; for a thread.

    Raises ``OperatorError`` for a file that is missing, unreadable or in neither format, and a folder without any.
    """
    observations: list[Observation] = []
    malformed: deque[MalformedFrame] = deque()
    for path in _files(feed):
        found, problems = _decode(path, feed.conventions)
        observations += found
        malformed.extend(MalformedFrame(f"{path}: {problem.reason}", problem.frame) for problem in problems)
    observations.sort(key=_time_ns)  # merges what is in order already, and leaves equals in the order of the files
    return Playback(observations, malformed)


def _files(feed: ReplayFeed) -> Iterator[Path]:
    for path in feed.paths:
        if not path.is_dir():
            yield path
        elif found := sorted(each for each in path.glob(feed.pattern) if each.is_file()):
            yield from found
        else:
            raise OperatorError(f"replay feed: expected files {feed.pattern} in {path}, found none")


def _decode(path: Path, conventions: TdmConventions) -> tuple[list[Observation], list[MalformedFrame]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"replay feed: cannot read {path}: {error}") from error
    if tdm.is_tdm(content):
        return tdm.decode(content, conventions, ingest_timestamp=0)
    if iod.is_iod(content):
        sigma_angle_rad = conventions.uncertainty.sigma_angle_rad
        return iod.decode(content, ingest_timestamp=0, sigma_angle_rad=sigma_angle_rad)
    raise OperatorError(f"replay feed: expected a TDM or IOD lines in {path}, got {content[:40]!r}")
