"""Optical archive over HTTP: poll ``?since=<timestamp_ns>``, decode the page, emit its observations.

**Position.** The position in the archive outlives the operator's instances. It moves in the same step in which a page's observations are
emitted, so that a restart neither skips nor repeats one. After a page with new observations, the next poll asks again for
the position's own nanosecond and drops the known ones: a page that ends between two observations of one nanosecond loses
none. (Only an archive with more observations in one nanosecond than fit into a page cannot be read by ``since``.) A long
poll waits only after a poll without new observations, and then for what is after the position.

**Memory.** At most one page is in memory. While the graph has not accepted it, no further poll is made, and the backlog
stays at the archive.

**Failures.** A temporary failure (the archive is down, slow or overloaded) is retried by ``with_retry``, behind a circuit
breaker and without a limit: an outage of the partner costs no restart, and a fleet of pollers does not return at the same
instant. A permanent one (a wrong address, a certificate, an answer that is not a page) raises ``PermanentFailure``, for
the supervisor.

**Event time.** No observation is emitted that is earlier than the position, because no later poll asks for it: an entry that
the archive publishes behind later ones is never read. A poll that returned nothing new is a contact: everything that the
archive had published before the request has been emitted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
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
    check_fields,
)
from orchestrator_adapter.resilience.http import DEFAULT_MAX_BODY_BYTES, exchange
from sda_ops.records.ids import observation_id
from sda_ops.records.observation import Observation
from sda_ops.wire import optical
from sda_ops.wire.malformed import MalformedFrame

_Page: TypeAlias = tuple[list[Observation], list[MalformedFrame]]
_Answer: TypeAlias = tuple[int, _Page]  # when it was requested, UTC ns

_MAX_KNOWN_MALFORMED = 1_024  # malformed entries, or as many as are in one page
_DEAD_LETTERS_A_TURN = 256  # malformed entries, before other tasks run
_MAX_AHEAD = 65_536  # observations, or as many as are in one page: five minutes of clock error at 200 a second

UNLIMITED_RETRY = RetryPolicy(timedelta(milliseconds=200), timedelta(seconds=15), max_attempts=None)
SHORT_WINDOW = BreakerPolicy(window=timedelta(seconds=15), cooldown=timedelta(seconds=15), min_calls=3)


@dataclass(frozen=True, slots=True)
class OpticalFeed:
    """How one archive is polled.

    Attributes:
        url: The address of the pages, e.g. ``https://archive.example/observations``. Certificates are verified.
        poll_interval: Between the end of one poll and the next; in long-poll mode, only after an empty answer.
        long_poll: How long the archive may delay an answer until it has one; zero for fixed-interval polls.
        timeout: For a whole answer, from connecting to its last byte; a long poll's wait is added. It must be long enough
            for the largest page: after a timeout the page is requested again from its first byte.
        lookback: How far before the start the first poll reaches.
        max_body_bytes: A larger page is rejected, and the rest of it is not read.
        retry: When a failed poll is retried. ``timeout`` limits each attempt unless the policy has a limit of its own.
        breaker: When polls are suspended. While the archive answers, polls come several times a second; after failures
            they come seldom. The window is therefore short: successes from before an outage must not outweigh its
            failures. But ``min_calls`` polls must be able to time out within the window.
        ca_file: Certificates (PEM) to trust instead of the system's, for an archive with its own certificate authority.
    """

    url: str = field(repr=False)  # it may have credentials
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
        check_fields(
            "OpticalFeed",
            ("poll_interval", self.poll_interval, self.poll_interval >= zero, ">= 0"),
            ("long_poll", self.long_poll, self.long_poll >= zero, ">= 0"),
            ("timeout", self.timeout, self.timeout > zero, "> 0"),
            ("lookback", self.lookback, self.lookback >= zero, ">= 0"),
            ("max_body_bytes", self.max_body_bytes, self.max_body_bytes >= 1, ">= 1"),
        )


@dataclass(slots=True)
class ArchivePosition:
    """How far the archive has been read.

    Attributes:
        timestamp_ns: The newest timestamp that was read, UTC nanoseconds.
        settled: The last poll, which included that nanosecond, had nothing new.
        seen: Observations of that nanosecond that were emitted.
        malformed: Malformed entries that were dead-lettered, by content; the least recently seen first.
        ahead: Emitted observations with a timestamp in the future, by id.
    """

    timestamp_ns: int
    settled: bool = False
    seen: set[UUID] = field(default_factory=set)
    malformed: dict[UUID, None] = field(default_factory=dict)
    ahead: dict[UUID, int] = field(default_factory=dict)

    def fresh(self, observations: Sequence[Observation]) -> list[Observation]:
        """The observations after the position, or at it, that were not emitted yet."""
        newest = self.timestamp_ns
        return [
            observation
            for observation in observations
            if (observation.sensor_timestamp > newest and observation.observation_id not in self.ahead)
            or (observation.sensor_timestamp == newest and observation.observation_id not in self.seen)
        ]

    def advance(self, page: Sequence[Observation], *, now_ns: int) -> None:
        """Move the position past a page that has been emitted.

        The position never exceeds ``now_ns``: with one timestamp far in the future, every later poll would skip all
        observations before it. Such observations are remembered one by one until their time.
        """
        newest = max((o.sensor_timestamp for o in page if o.sensor_timestamp <= now_ns), default=self.timestamp_ns)
        if newest > self.timestamp_ns:
            self.timestamp_ns = newest
            self.seen = {each for each, at_ns in self.ahead.items() if at_ns == newest}
            self.ahead = {each: at_ns for each, at_ns in self.ahead.items() if at_ns > newest}
        for observation in page:
            if observation.sensor_timestamp == self.timestamp_ns:
                self.seen.add(observation.observation_id)
            elif observation.sensor_timestamp > self.timestamp_ns:
                self.ahead[observation.observation_id] = observation.sensor_timestamp
        while len(self.ahead) > max(_MAX_AHEAD, len(page)):
            del self.ahead[next(iter(self.ahead))]

    async def dead_letter_new(self, frames: Sequence[MalformedFrame], kind: DeadLetterKind, ends: WiredEnds) -> None:
        """Dead-letter malformed entries that are new. An archive repeats one in every page until the position passes it.

        A malformed entry has no id, so that two with the same content count as one. One that the store fails to keep
        stays unknown, and the next poll finds it again. A cancellation can leave some of them done and some not.
        """
        for number, frame in enumerate(frames, 1):
            content = observation_id("optical", frame.frame)
            if content in self.malformed:
                del self.malformed[content]  # inserted again below, as the newest: a long page must not evict itself
            else:
                ends.dead_letter(frame.frame, kind, frame.reason)
                ends.count("decode_errors")
            self.malformed[content] = None
            if number % _DEAD_LETTERS_A_TURN == 0:
                await asyncio.sleep(0)  # a page of malformed entries must not block the event loop
        while len(self.malformed) > max(_MAX_KNOWN_MALFORMED, len(frames)):
            del self.malformed[next(iter(self.malformed))]


def optical_source(feed: OpticalFeed, *, on_contact: Callable[[int], object] | None = None) -> Factory:
    """A source for one archive, in fixed-interval or long-poll mode. Its circuit breaker has the operator's name.

    ``on_contact`` is called with the time of request (UTC ns) of each poll that returned nothing new.
    """

    async def run(ends: WiredEnds) -> None:
        start_ns = ends.clock.now_ns() - feed.lookback // timedelta(microseconds=1) * 1_000
        position = ends.keep("position", lambda: ArchivePosition(start_ns))
        breaker = ends.breaker(ends.name, feed.breaker)
        async with _client(feed) as client:
            while not ends.shutdown.is_set:
                await ends.flush()  # suspends while the source is paused
                waiting = position.settled and bool(feed.long_poll)
                poll = partial(_poll, client, feed, position.timestamp_ns, ends, waiting=waiting)
                try:
                    answer = await ends.unless_shutdown(
                        ends.with_retry(_with_timeout(feed, waiting=waiting), poll, breaker=breaker)
                    )
                except RetryCutShort:
                    return
                except PermanentFailure as failure:
                    if (malformed := _malformed_page(failure)) is not None:
                        await position.dead_letter_new([malformed], DeadLetterKind.SCHEMA_MISMATCH, ends)
                    raise
                if not isinstance(answer, RetryOk):
                    return  # the shutdown came first (a poll is never discarded)
                ends.count("polls")
                requested_ns, page = answer.value
                new = await _emit_new(page, position, ends)
                if not new and on_contact is not None:
                    on_contact(requested_ns)
                if not feed.long_poll or (waiting and not new):
                    await ends.shutdown.wait_at_most(feed.poll_interval.total_seconds(), ends.clock)

    return run


def _client(feed: OpticalFeed) -> httpx.AsyncClient:
    """Raises ``OperatorError`` for a certificate file, or a proxy of the environment, that cannot be used."""
    trusted: ssl.SSLContext | bool = True
    if feed.ca_file is not None:
        try:
            trusted = ssl.create_default_context(cafile=feed.ca_file)
        except OSError as error:  # includes SSLError
            raise OperatorError(f"optical feed: no certificates in ca_file {feed.ca_file}: {error}") from error
    try:
        return httpx.AsyncClient(verify=trusted, timeout=(feed.timeout + feed.long_poll).total_seconds())
    except (ImportError, ValueError) as error:
        raise OperatorError(f"optical feed: the environment's proxy (HTTP_PROXY and the like): {error}") from error


def _with_timeout(feed: OpticalFeed, *, waiting: bool) -> RetryPolicy:
    if feed.retry.attempt_timeout is not None:
        return feed.retry
    return replace(feed.retry, attempt_timeout=feed.timeout + feed.long_poll if waiting else feed.timeout)


async def _poll(
    client: httpx.AsyncClient, feed: OpticalFeed, since_ns: int, ends: WiredEnds, *, waiting: bool
) -> RetryDisposition[_Answer]:
    requested_ns = ends.clock.now_ns()
    params = {"since": since_ns if waiting else since_ns - 1}
    if waiting:
        params["wait_ms"] = feed.long_poll // timedelta(milliseconds=1)

    def decode(body: bytes) -> _Answer:
        return requested_ns, optical.decode_page(body, ingest_timestamp=ends.clock.now_ns())

    return await exchange(
        client,
        client.build_request("GET", httpx.URL(feed.url).copy_merge_params(params)),
        decode=decode,
        now_ns=ends.clock.now_ns,
        max_body_bytes=feed.max_body_bytes,
    )


def _malformed_page(failure: PermanentFailure) -> MalformedFrame | None:
    """The body that could not be decoded as a page, if that was the failure."""
    cause = failure.__cause__.__cause__ if failure.__cause__ is not None else None
    return cause if isinstance(cause, MalformedFrame) else None


async def _emit_new(page: _Page, position: ArchivePosition, ends: WiredEnds) -> int:
    """Emit the new observations of a page; returns their number."""
    observations, malformed = page
    await position.dead_letter_new(malformed, DeadLetterKind.DESERIALIZATION, ends)
    fresh = position.fresh(observations)
    position.advance(observations, now_ns=ends.clock.now_ns())
    position.settled = not fresh
    await ends.emit(fresh)  # takes them before it first waits: position and observations move in one step
    return len(fresh)
