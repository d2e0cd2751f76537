"""Replay of recorded observations: CCSDS TDM and IOD files, merged in time order, in real time or faster.

All files, plain or compressed by gzip, are read into memory when the source starts (about half a kilobyte for each
observation). A file that is missing, unreadable or in no known format costs only itself: it is logged
(``replay_file_skipped``) and counted (``files_skipped``) once, and the others are replayed. What is used of a file, but not as
its metadata may suggest, is logged as ``replay_note`` and counted as ``replay_notes``. The first observation is emitted at once, every later one after the time
between their measurements, divided by the pace. A source that was delayed, by a full edge or a restart, catches up as fast
as the graph accepts it.

The position outlives the operator's instances and moves in the same step in which observations are emitted: a restart
neither skips nor repeats one. The stream ends after the last.

``ingest_timestamp`` is the time of emission, ``sensor_timestamp`` the file's. Years may lie between them: a validation that
checks the age must compare with the observation's own time.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from msgspec.structs import replace

from orchestrator_adapter import DeadLetterKind, EventLog, Factory, WiredEnds, check_fields
from sda_ops.gzipped import inflated
from sda_ops.records.observation import Observation
from sda_ops.regular_file import read_regular_file
from sda_ops.wire import iod, tdm
from sda_ops.wire.malformed import MalformedFrame
from sda_ops.wire.tdm import TdmConventions

logger = logging.getLogger(__name__)

_BATCH = 512  # observations that are emitted together, at most
_DEAD_LETTERS_A_TURN = 256  # malformed entries, before other tasks run
_NOTES_A_FILE = 10  # that are logged; a file may have thousands of segments
_SLACK_S = 0.001  # an observation that is due this soon is emitted now: no timer is worth less


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayFeed:
    """What is replayed, and how fast.

    Attributes:
        paths: Files, and folders, of which every file that matches ``pattern`` is read. The format is detected from the
            content.
        pattern: A glob within the folders, such as ``*.tdm`` or ``**/*.dat``.
        pace: Speed relative to the measurement: 1 is real time, 60 is a minute in a second, ``None`` is as fast as the
            graph accepts.
        conventions: What the TDM files leave open. Its ``sigma_angle_rad`` is also used for IOD lines without one.
        conventions_of: The same for the files of single ``paths``, which then do not have the common ones.
    """

    paths: tuple[Path, ...]
    pattern: str = "*"
    pace: float | None = 1.0
    conventions: TdmConventions = field(default_factory=TdmConventions)
    conventions_of: Mapping[Path, TdmConventions] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(
            "ReplayFeed",
            ("paths", self.paths, bool(self.paths), "one at least"),
            ("pattern", self.pattern, self.pattern and not Path(self.pattern).is_absolute(), "a relative glob"),
            ("pace", self.pace, self.pace is None or 0 < self.pace < inf, "> 0 and finite, or None"),
        )


@dataclass(slots=True)
class Playback:
    """The position of a replay.

    Attributes:
        observations: All observations, in time order.
        malformed: Entries that are still to be dead-lettered.
        skipped: The files without any observation that could be read, each with the reason.
        notes: What a user of the observations has to know, by file.
        position: How many observations have been emitted.
        started_s: When the first was emitted, on the graph's monotonic clock.
    """

    observations: list[Observation]
    malformed: deque[MalformedFrame]
    skipped: Sequence[str] = ()
    notes: Mapping[Path, Sequence[str]] = field(default_factory=dict)
    position: int = 0
    started_s: float | None = None

    @property
    def done(self) -> bool:
        return self.position == len(self.observations)

    def take(self, now_s: float, pace: float | None) -> list[Observation]:
        """The observations that are due at ``now_s``, one batch at most. Moves the position past them."""
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
        """How long until the next observation is due; zero where it is due already, or none is left."""
        if self.done or pace is None or self.started_s is None:
            return 0.0
        since_first_ns = self.observations[self.position].sensor_timestamp - self.observations[0].sensor_timestamp
        return max(0.0, self.started_s + since_first_ns / 1e9 / pace - now_s)


def _ignore(_: Collection[str]) -> None:
    pass


def _time_ns(observation: Observation) -> int:
    return observation.sensor_timestamp


def replay_source(feed: ReplayFeed, *, on_sensors: Callable[[Collection[str]], object] = _ignore) -> Factory:
    """A source for recorded files. A file that cannot be read is logged and counted; the others are replayed.

    ``on_sensors`` is called once with the source ids of all observations, before the first is emitted: a validation has to
    compare their timestamps with their own time.
    """

    async def run(ends: WiredEnds) -> None:
        kept: list[Playback] = ends.keep("playback", list)
        if not kept:
            playback = await ends.unless_shutdown(ends.run_blocking(read_files, feed))
            if playback is None:
                return
            kept.append(playback)
            on_sensors({observation.source_id for observation in playback.observations})
            _report(playback, ends)
        await _replay(kept[0], feed.pace, ends)

    return run


async def _replay(playback: Playback, pace: float | None, ends: WiredEnds) -> None:
    clock = ends.clock
    await _dead_letter(playback.malformed, ends)
    while not playback.done and not ends.shutdown.is_set:
        await ends.flush()  # suspends while the source is paused
        now_ns = clock.now_ns()
        due = playback.take(clock.monotonic(), pace)
        await ends.emit([replace(observation, ingest_timestamp=now_ns) for observation in due])
        if (wait_s := playback.wait_s(clock.monotonic(), pace)) > _SLACK_S:
            await ends.shutdown.wait_at_most(wait_s, clock)


def _report(playback: Playback, ends: WiredEnds) -> None:
    """Log and count, once, what was not read and what has to be known of the rest."""
    log = EventLog(logger, clock=ends.clock, operator=ends.name, instance=ends.instance)
    for problem in playback.skipped:
        log("replay_file_skipped", level=logging.ERROR, reason=problem)
    for path, notes in playback.notes.items():
        for note in notes[:_NOTES_A_FILE]:
            log("replay_note", level=logging.WARNING, file=str(path), note=note)
        if (others := len(notes) - _NOTES_A_FILE) > 0:
            log("replay_note", level=logging.WARNING, file=str(path), note=f"{others} more notes on this file")
    ends.count("files_skipped", len(playback.skipped))
    ends.count("replay_notes", sum(map(len, playback.notes.values())))


async def _dead_letter(malformed: deque[MalformedFrame], ends: WiredEnds) -> None:
    """Dead-letter each entry once. One that the store fails to keep remains for the next instance."""
    for number in range(len(malformed)):
        ends.dead_letter(malformed[0].frame, DeadLetterKind.DESERIALIZATION, malformed[0].reason)
        ends.count("decode_errors")
        malformed.popleft()
        if number % _DEAD_LETTERS_A_TURN == 0:
            await asyncio.sleep(0)


def read_files(feed: ReplayFeed) -> Playback:
    """The content of all files of the feed. Blocking: run it in a thread. Raises nothing: see `Playback.skipped`."""
    observations: list[Observation] = []
    malformed: deque[MalformedFrame] = deque()
    skipped: list[str] = []
    notes: dict[Path, list[str]] = {}
    for path, conventions in _files(feed, skipped):
        remarks: list[str] = []
        try:
            good, bad = _decode(path, conventions, remarks.append)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path, and our own
            reason = error.strerror or error if isinstance(error, OSError) else error
            skipped.append(f"{path}: {reason}")
            continue
        observations += good
        malformed.extend(MalformedFrame(f"{path}: {frame.reason}", frame.frame) for frame in bad)
        if remarks:
            notes[path] = remarks
    observations.sort(key=_time_ns)  # stable: equal times stay in the order of the files
    return Playback(observations, malformed, skipped, notes)


def _files(feed: ReplayFeed, skipped: list[str]) -> Iterator[tuple[Path, TdmConventions]]:
    """Each file with its conventions. A folder without a match goes to ``skipped``."""
    for path in feed.paths:
        conventions = feed.conventions_of.get(path, feed.conventions)
        matching = [path]
        try:
            if path.is_dir():
                matching = sorted(each for each in path.glob(feed.pattern) if each.is_file())
                if not matching:
                    skipped.append(f"{path}: expected files {feed.pattern} in this folder, got none")
        except (OSError, ValueError):
            pass  # reading it has the reason
        for each in matching:
            yield each, conventions


def _decode(
    path: Path, conventions: TdmConventions, note: Callable[[str], object]
) -> tuple[list[Observation], list[MalformedFrame]]:
    """Raises ``OSError``, and ``ValueError`` for content that is neither format."""
    content = inflated(read_regular_file(path))
    if tdm.is_tdm(content):
        return tdm.decode(content, conventions, ingest_timestamp=0, note=note)
    if iod.is_iod(content):
        sigma_angle_rad = conventions.uncertainty.sigma_angle_rad
        return iod.decode(content, ingest_timestamp=0, sigma_angle_rad=sigma_angle_rad)
    first_line = content.lstrip().partition(b"\n")[0][:60].decode("utf-8", "replace").rstrip()
    raise ValueError(f"expected TDM or IOD, got {repr(first_line) if first_line else 'an empty file'}")
