"""Optical archive over HTTP: poll ``?since=<timestamp_ns>``, decode a page, pass it on.

The watermark outlives the operator's instances and moves in the same step in which a page's observations leave, so a
restart neither skips nor repeats one. After news it asks again for the watermark's own nanosecond and drops what it has
of it: an archive that cuts a page between two observations of the same instant loses nothing (unless its pages are shorter
than what it has of one nanosecond: nobody gets past that by ``since``). Only when that brings nothing new does a long poll
wait, and then for what is beyond the watermark.

It holds one page at most: while the graph has not taken the last one in, nothing more is asked for, and the backlog waits
where it is, at the archive.

A poll that fails in a way that may pass (the archive is down, slow, overloaded) is tried again by ``with_retry``, behind a
circuit breaker and for as long as it takes: an outage of the partner costs no restart, and a fleet of pollers does not come
back in the same instant. What will not pass by itself (a wrong address, a certificate, an answer that is no page) raises
``PermanentFailure``: then it is for the supervisor, and perhaps for a person.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import httpx

from orchestrator_adapter import (
    BreakerPolicy,
    DeadLetterKind,
    Factory,
    OperatorError,
    PermanentFailure,
    RetryCutShort,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    WiredEnds,
)
from orchestrator_adapter.resilience.http import DEFAULT_MAX_BODY_BYTES, exchange
from sda_ops.records.ids import observation_id
from sda_ops.records.observation import Observation
from sda_ops.wire import optical
from sda_ops.wire.malformed import MalformedFrame

_Page: TypeAlias = tuple[list[Observation], list[MalformedFrame]]

_REMEMBERED_MALFORMED = 1_024  # bad entries, or as many as are in one page
_BURIED_AT_ONCE = 256  # bad entries, before the event loop has its turn
_REMEMBERED_AHEAD = 65_536  # observations, or as many as are in one page: five minutes of clock error at 200 a second

UNLIMITED_RETRY = RetryPolicy(timedelta(milliseconds=200), timedelta(seconds=15), max_attempts=None)
SHORT_WINDOW = BreakerPolicy(window=timedelta(seconds=15), cooldown=timedelta(seconds=15), min_calls=3)


@dataclass(frozen=True, slots=True)
class OpticalFeed:
    """How one archive is polled.

    Attributes:
        url: Where the pages are, e.g. ``https://archive.example/observations``. Certificates are verified.
        poll_interval: Between the end of one poll and the next; in long-poll mode, only after an empty answer.
        long_poll: How long the archive may hold a request until there is something; zero for fixed-interval polls.
        timeout: For the whole of an answer, from connecting to its last byte; a long poll's wait comes on top. It must do
            for the largest page there can be, for one that is cut off is asked for again, from its first byte.
        lookback: How far before the start the first poll reaches.
        max_body_bytes: A larger page is refused, and not read any further.
        retry: When a poll that failed is tried again. Its attempts are limited by ``timeout`` unless it says otherwise.
        breaker: When the archive is left alone. A poller asks several times a second while all is well and seldom once it
            backs off, so the window is short: successes from before the outage must not outvote its failures. But as many
            polls as it takes to open it must time out within the window.
        ca_file: Certificates (PEM) to trust instead of the system's, for an archive with a certificate authority of its own.
    """

    url: str
    poll_interval: timedelta = timedelta(milliseconds=200)
    long_poll: timedelta = timedelta(0)
    timeout: timedelta = timedelta(seconds=5)
    lookback: timedelta = timedelta(0)
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    retry: RetryPolicy = UNLIMITED_RETRY
    breaker: BreakerPolicy = SHORT_WINDOW
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        zero = timedelta(0)
        problems = [
            f"OpticalFeed: {name} must be {bound}, got {value!r}"
            for name, value, good, bound in (
                ("poll_interval", self.poll_interval, self.poll_interval >= zero, ">= 0"),
                ("long_poll", self.long_poll, self.long_poll >= zero, ">= 0"),
                ("timeout", self.timeout, self.timeout > zero, "> 0"),
                ("lookback", self.lookback, self.lookback >= zero, ">= 0"),
                ("max_body_bytes", self.max_body_bytes, self.max_body_bytes >= 1, ">= 1"),
            )
            if not good
        ]
        if problems:
            raise ValueError("; ".join(problems))


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

    async def dead_letter_new(self, frames: Sequence[MalformedFrame], kind: DeadLetterKind, ends: WiredEnds) -> None:
        """Dead-letter those not met yet: an archive repeats a bad entry in every page until the watermark has passed it.

        A bad entry has no id to be told by: two of the very same content are taken for one. One that the store will
        not keep is not taken note of: the next poll meets it again. Cancelled in between, it has buried and noted some.
        """
        for number, frame in enumerate(frames, 1):
            content = observation_id("optical", frame.frame)
            if content in self.malformed:
                del self.malformed[content]  # met again: to the end of the queue, lest a long page push itself out
            else:
                ends.dead_letter(frame.frame, kind, frame.reason)
                ends.count("decode_errors")
            self.malformed[content] = None
            if number % _BURIED_AT_ONCE == 0:
                await asyncio.sleep(0)  # a page of nothing but bad entries must not freeze the loop for everyone
        while len(self.malformed) > max(_REMEMBERED_MALFORMED, len(frames)):
            del self.malformed[next(iter(self.malformed))]


def optical_source(feed: OpticalFeed) -> Factory:
    """A source for one archive, in fixed-interval or long-poll mode. Its circuit breaker has the operator's name."""

    async def run(ends: WiredEnds) -> None:
        start_ns = ends.clock.now_ns() - feed.lookback // timedelta(microseconds=1) * 1_000
        watermark = ends.keep("watermark", lambda: Watermark(start_ns))
        breaker = ends.breaker(ends.name, feed.breaker)
        async with _client(feed) as client:
            while not ends.shutdown.is_set:
                waiting = watermark.settled and bool(feed.long_poll)
                poll = partial(_poll, client, feed, watermark.timestamp_ns, ends, waiting=waiting)
                try:
                    page = await ends.unless_shutdown(
                        ends.with_retry(_limited(feed, waiting=waiting), poll, breaker=breaker)
                    )
                except RetryCutShort:
                    return
                except PermanentFailure as failure:
                    if (no_page := _malformed_page(failure)) is not None:
                        await watermark.dead_letter_new([no_page], DeadLetterKind.SCHEMA_MISMATCH, ends)
                    raise
                if not isinstance(page, RetryOk):
                    return  # the shutdown came first; a poll is never discarded
                ends.count("polls")
                news = await _pass_on(page.value, watermark, ends)
                if not feed.long_poll or (waiting and not news):
                    await ends.shutdown.wait_at_most(feed.poll_interval.total_seconds(), ends.clock)

    return run


def _client(feed: OpticalFeed) -> httpx.AsyncClient:
    """Raises ``OperatorError`` for a certificate file, or a proxy of the environment, that cannot be used."""
    trusted: ssl.SSLContext | bool = True
    if feed.ca_file is not None:
        try:
            trusted = ssl.create_default_context(cafile=feed.ca_file)
        except OSError as error:  # an SSLError is one
            raise OperatorError(f"optical feed: no certificates in ca_file {feed.ca_file}: {error}") from error
    try:
        return httpx.AsyncClient(verify=trusted, timeout=(feed.timeout + feed.long_poll).total_seconds())
    except (ImportError, ValueError) as error:
        raise OperatorError(f"optical feed: the environment's proxy (HTTP_PROXY and the like): {error}") from error


def _limited(feed: OpticalFeed, *, waiting: bool) -> RetryPolicy:
    if feed.retry.attempt_timeout is not None:
        return feed.retry
    return replace(feed.retry, attempt_timeout=feed.timeout + feed.long_poll if waiting else feed.timeout)


async def _poll(
    client: httpx.AsyncClient, feed: OpticalFeed, since_ns: int, ends: WiredEnds, *, waiting: bool
) -> RetryDisposition[_Page]:
    params = {"since": since_ns if waiting else since_ns - 1}
    if waiting:
        params["wait_ms"] = feed.long_poll // timedelta(milliseconds=1)

    def decode(body: bytes) -> _Page:
        return optical.decode_page(body, ingest_timestamp=ends.clock.now_ns())

    return await exchange(
        client,
        client.build_request("GET", httpx.URL(feed.url).copy_merge_params(params)),
        decode=decode,
        now_ns=ends.clock.now_ns,
        max_body_bytes=feed.max_body_bytes,
    )


def _malformed_page(failure: PermanentFailure) -> MalformedFrame | None:
    """The body that was no page, if that is what it was about."""
    cause = failure.__cause__.__cause__ if failure.__cause__ is not None else None
    return cause if isinstance(cause, MalformedFrame) else None


async def _pass_on(page: _Page, watermark: Watermark, ends: WiredEnds) -> int:
    """Pass on what is new in a page; returns how much that was."""
    observations, malformed = page
    await watermark.dead_letter_new(malformed, DeadLetterKind.DESERIALIZATION, ends)
    fresh = watermark.fresh(observations)
    watermark.advance(observations, now_ns=ends.clock.now_ns())
    watermark.settled = not fresh  # in this step: an instance that fails while it emits has moved the watermark already
    await ends.emit(fresh)  # takes them over before it waits for anything
    return len(fresh)
