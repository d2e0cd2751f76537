"""Optical archive over HTTP: poll ``?since=<timestamp_ns>``, decode a page, pass it on.

The watermark outlives the operator's instances and moves in the same step in which a page's observations leave, so a
restart neither skips nor repeats one. After news it asks again for the watermark's own nanosecond and drops what it has
of it: an archive that cuts a page between two observations of the same instant loses nothing. Only when that brings
nothing new does a long poll wait, and then for what is beyond the watermark.

A poll that fails is an ``OperatorError``: when to come back is the supervisor's business, with the jittered backoff of the
source's restart policy, so that a fleet of pollers does not come back at the same instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import httpx

from orchestrator_adapter import DeadLetterKind, Factory, OperatorError, WiredEnds
from orchestrator_adapter.clock import sleep
from sda_ops.ids import observation_id
from sda_ops.records import Observation
from sda_ops.wire import optical
from sda_ops.wire.malformed import MalformedFrame

_REMEMBERED_MALFORMED = 1_024  # bad entries, or as many as are in one page
_REMEMBERED_AHEAD = 65_536  # observations, or as many as are in one page: five minutes of clock error at 200 a second


class ArchiveUnavailable(OperatorError):
    """The archive could not be reached, refused, or answered with something that is no page."""


@dataclass(frozen=True, slots=True)
class OpticalFeed:
    """How one archive is polled.

    Attributes:
        url: Where the pages are, e.g. ``http://archive.example/observations``.
        poll_interval: Between the end of one poll and the next; in long-poll mode, only after an empty answer.
        long_poll: How long the archive may hold a request until there is something; zero for fixed-interval polls.
        timeout: For connecting, and for each read; a long poll's wait comes on top.
        lookback: How far before the start the first poll reaches.
        max_body_bytes: A larger page is refused unread.
    """

    url: str
    poll_interval: timedelta = timedelta(milliseconds=200)
    long_poll: timedelta = timedelta(0)
    timeout: timedelta = timedelta(seconds=5)
    lookback: timedelta = timedelta(0)
    max_body_bytes: int = 16 * 1024 * 1024


@dataclass(slots=True)
class Watermark:
    """How far the archive has been read: the newest timestamp, and what is known already of that very nanosecond.

    ``settled``: asked again for that nanosecond, the archive had nothing new.
    """

    timestamp_ns: int
    settled: bool = False
    seen: set[UUID] = field(default_factory=set)
    malformed: dict[UUID, None] = field(default_factory=dict)  # by content, met longest ago first
    ahead: dict[UUID, int] = field(default_factory=dict)  # passed on although their time is still to come, by id

    def fresh(self, observations: Sequence[Observation]) -> list[Observation]:
        """Those that are beyond the watermark, or at it, and not passed on yet."""
        newest = self.timestamp_ns
        return [
            observation
            for observation in observations
            if (observation.sensor_timestamp > newest and observation.observation_id not in self.ahead)
            or (observation.sensor_timestamp == newest and observation.observation_id not in self.seen)
        ]

    def advance(self, page: Sequence[Observation], *, now_ns: int) -> None:
        """Take note of a page, which has been passed on.

        The watermark never runs ahead of ``now_ns``: one timestamp far in the future would make every later poll skip
        all that comes before it. Such observations are remembered one by one until their time has come.
        """
        newest = max((o.sensor_timestamp for o in page if o.sensor_timestamp <= now_ns), default=self.timestamp_ns)
        if newest > self.timestamp_ns:
            self.timestamp_ns = newest
            self.seen = {known for known, at_ns in self.ahead.items() if at_ns == newest}
            self.ahead = {known: at_ns for known, at_ns in self.ahead.items() if at_ns > newest}
        for observation in page:
            if observation.sensor_timestamp == self.timestamp_ns:
                self.seen.add(observation.observation_id)
            elif observation.sensor_timestamp > self.timestamp_ns:
                self.ahead[observation.observation_id] = observation.sensor_timestamp
        while len(self.ahead) > max(_REMEMBERED_AHEAD, len(page)):
            del self.ahead[next(iter(self.ahead))]

    def bury_fresh(self, frames: Sequence[MalformedFrame], kind: DeadLetterKind, ends: WiredEnds) -> None:
        """Dead-letter those not met yet: an archive repeats a bad entry in every page until the watermark has passed it.

        A bad entry has no id to be told by: two of the very same content are taken for one. One that the store will
        not keep is not taken note of: the next poll meets it again.
        """
        for frame in frames:
            content = observation_id("optical", frame.frame)
            if content in self.malformed:
                del self.malformed[content]  # met again: to the end of the queue, lest a long page push itself out
            else:
                ends.dead_letter(frame.frame, kind, frame.reason)
                ends.count("decode_errors")
            self.malformed[content] = None
        while len(self.malformed) > max(_REMEMBERED_MALFORMED, len(frames)):
            del self.malformed[next(iter(self.malformed))]


def optical_source(feed: OpticalFeed) -> Factory:
    """A source for one archive, in fixed-interval or long-poll mode."""

    async def run(ends: WiredEnds) -> None:
        start_ns = ends.clock.now_ns() - feed.lookback // timedelta(microseconds=1) * 1_000
        watermark = ends.keep("watermark", lambda: Watermark(start_ns))
        timeout = httpx.Timeout(feed.timeout.total_seconds(), read=(feed.timeout + feed.long_poll).total_seconds())
        async with httpx.AsyncClient(timeout=timeout) as client:
            while not ends.shutdown.is_set:
                waiting = watermark.settled and bool(feed.long_poll)
                body = await ends.unless_shutdown(_fetch(client, feed, watermark.timestamp_ns, waiting=waiting))
                if body is None:
                    return
                ends.count("polls")
                watermark.settled = not await _pass_on(body, watermark, ends)
                if not feed.long_poll or (waiting and watermark.settled):
                    await ends.unless_shutdown(sleep(ends.clock, feed.poll_interval.total_seconds()))

    return run


async def _pass_on(body: bytes, watermark: Watermark, ends: WiredEnds) -> int:
    """Decode a page and pass on what is new in it; returns how much that was."""
    now_ns = ends.clock.now_ns()
    try:
        observations, malformed = optical.decode_page(body, ingest_timestamp=now_ns)
    except MalformedFrame as whole:
        watermark.bury_fresh([whole], DeadLetterKind.SCHEMA_MISMATCH, ends)
        raise ArchiveUnavailable(f"the archive answered with something that is no page: {whole.reason}") from whole
    watermark.bury_fresh(malformed, DeadLetterKind.DESERIALIZATION, ends)
    fresh = watermark.fresh(observations)
    watermark.advance(observations, now_ns=now_ns)
    await ends.emit(fresh)  # takes them over before it waits for anything
    return len(fresh)


async def _fetch(client: httpx.AsyncClient, feed: OpticalFeed, watermark_ns: int, *, waiting: bool) -> bytes:
    """One page as bytes. Raises ``ArchiveUnavailable`` for everything that is not a page in time."""
    params = {"since": watermark_ns if waiting else watermark_ns - 1}
    if waiting:
        params["wait_ms"] = feed.long_poll // timedelta(milliseconds=1)
    try:
        async with client.stream("GET", feed.url, params=params) as response:
            if response.status_code != httpx.codes.OK:
                raise ArchiveUnavailable(f"GET {response.url} answered {response.status_code} {response.reason_phrase}")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > feed.max_body_bytes:
                    raise ArchiveUnavailable(
                        f"GET {response.url} answered with more than the {feed.max_body_bytes} bytes allowed"
                    )
            return bytes(body)
    except httpx.HTTPError as error:
        raise ArchiveUnavailable(f"GET {feed.url} failed: {type(error).__name__}: {error}") from error
