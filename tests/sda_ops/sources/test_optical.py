from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from orchestrator_adapter import (
    BreakerPolicy,
    BreakerState,
    BuiltGraph,
    DeadLetter,
    DeadLetterKind,
    DeadLetterList,
    RestartPolicy,
    RetryPolicy,
)
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.sources.optical import OpticalFeed, Watermark, optical_source
from sda_ops.wire import optical
from tests.helpers.running import FailingStore, Fault, GatedSink, counter, eventually, fed_by

CLOCK = ManualClock()
NOW_NS = CLOCK.now_ns()
FOR_EVER = RestartPolicy.always()


def entry(number: int, *, at_ns: int | None = None, **changes: object) -> dict[str, Any]:
    good = {
        "obs_id": f"o-{number}",
        "timestamp_ns": NOW_NS - 10**9 + number if at_ns is None else at_ns,
        "ra_rad": 1.0,
        "dec_rad": 0.5,
        "sigma_arcsec": 1.0,
        "site_id": "site-1",
    }
    return good | changes


class Archive:
    """An HTTP archive: serves ``entries`` after ``since``, ``limit`` at most, or first what ``answers`` scripts.

    A scripted answer is raw HTTP; ``None`` is a connection that is dropped without one.
    """

    def __init__(self, *entries: dict[str, Any], limit: int = 1_000) -> None:
        self.entries = list(entries)
        self.limit = limit
        self.answers: deque[bytes | None] = deque()
        self.requests: list[dict[str, int]] = []
        self.port = 0
        self.news = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/observations"

    @asynccontextmanager
    async def serving(self, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Archive]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def page(self, since: int) -> bytes:
        later = [
            each
            for each in self.entries
            if not isinstance(each.get("timestamp_ns"), int) or each["timestamp_ns"] > since
        ]
        return json.dumps(later[: self.limit]).encode()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            query = parse_qs(urlsplit(request.split()[1].decode()).query)
            asked = {name: int(values[0]) for name, values in query.items()}
            self.requests.append(asked)
            if self.answers:
                answer = self.answers.popleft()
            else:
                if "wait_ms" in asked and self.page(asked["since"]) == b"[]":
                    self.news.clear()
                    await self.news.wait()
                answer = http(200, self.page(asked["since"]))
            if answer is not None:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the poller hung up
        finally:
            writer.close()


def http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def feed(archive: Archive, **options: Any) -> OpticalFeed:
    usual: dict[str, Any] = {
        "poll_interval": timedelta(milliseconds=1),
        "lookback": timedelta(seconds=60),
        "retry": RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=5), max_attempts=None),
        "breaker": BreakerPolicy(min_calls=1_000),
    }
    return OpticalFeed(archive.url, **(usual | options))


def ids(sink: CollectSink | GatedSink) -> list[str]:
    return [item.track_id for item in sink.items]


async def when(built: BuiltGraph, clock: ManualClock, condition: Callable[[], object], what: str) -> None:
    """Let time pass, a poll interval a turn, until ``condition`` holds; then ask for the shutdown."""

    def holds() -> bool:
        clock.advance(0.001)
        return bool(condition())

    await eventually(holds, what)
    built.request_shutdown("test")


async def test_polls_at_a_fixed_interval_bring_everything_once() -> None:
    """What the archive holds at the start and what it gets later arrives once, in order, and no poll waits."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1), entry(2)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 2, "the first poll comes at once")
            await settle()
            assert counter(built, "polls") == 1
            archive.entries.append(entry(3))
            clock.advance(4.999)
            await settle()
            assert counter(built, "polls") == 1
            clock.advance(0.001)
            await eventually(lambda: len(sink.items) == 3, "the second poll comes after the interval")
            built.request_shutdown("test")

        graph = fed_by(optical_source(feed(archive, poll_interval=timedelta(seconds=5))), sink)
        event = await run_graph(graph, clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2", "o-3"]
    assert [set(request) for request in archive.requests] == [{"since"}] * len(archive.requests)
    assert archive.requests[0]["since"] == NOW_NS - 60 * 10**9 - 1
    assert event.figures.ledger.written == 3
    assert event.figures.ledger_holds


async def test_a_long_poll_waits_at_the_archive_and_not_with_us() -> None:
    """Once there is nothing new the request says how long it may be held, and news come through without any interval."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in asked for asked in archive.requests), "a request that waits")
            await settle()
            held = len(archive.requests)
            archive.entries.append(entry(2))
            archive.news.set()
            await eventually(lambda: len(sink.items) == 2, "the news, without any time passing")
            assert archive.requests[held - 1] == {"since": entry(1)["timestamp_ns"], "wait_ms": 20_000}
            await eventually(lambda: len(archive.requests) >= held + 2, "it waits again")
            built.request_shutdown("test")

        graph = fed_by(
            optical_source(feed(archive, long_poll=timedelta(seconds=20), poll_interval=timedelta(seconds=100))), sink
        )
        event = await run_graph(graph, clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2"]
    assert event.figures.exits["source"] == task_exit.Ok()


async def test_a_page_boundary_inside_one_nanosecond_loses_and_repeats_nothing() -> None:
    """Three observations share an instant, and the archive's pages cut between them."""
    sink, clock = CollectSink(), ManualClock()
    at_ns = NOW_NS - 500
    entries = [entry(1), *(entry(number, at_ns=at_ns) for number in (2, 3, 4)), entry(5, at_ns=at_ns + 1)]
    async with Archive(*entries, limit=2).serving() as archive:
        archive.answers.append(http(200, json.dumps(entries[:2]).encode()))
        archive.limit = 4

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: len(sink.items) >= 5 and len(archive.requests) >= 5, "all five")

        event = await run_graph(fed_by(optical_source(feed(archive)), sink), clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2", "o-3", "o-4", "o-5"]
    assert archive.requests[1]["since"] == at_ns - 1
    assert event.figures.ledger.ingested == 5


async def test_bad_entries_are_dead_lettered_once_though_every_page_repeats_them() -> None:
    """However often the archive shows them: one dead letter each, with the entry, and the good ones get through."""
    sink, letters, clock = CollectSink(), DeadLetterList(), ManualClock()
    bad = [entry(7, ra_rad="east"), {"nothing": "of use"}, "not even an object"]
    async with Archive(entry(1)).serving() as archive:
        page = http(200, json.dumps([*bad, entry(1)]).encode())
        archive.answers.extend([page] * 5)

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: (counter(built, "polls") or 0) >= 6, "six polls")

        event = await run_graph(
            fed_by(optical_source(feed(archive)), sink), clock=clock, dead_letters=letters, during=during
        )
    assert ids(sink) == ["o-1"]
    assert [json.loads(letter.payload) for letter in letters.letters] == bad
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.DESERIALIZATION}
    assert event.figures.counters["source"]["decode_errors"] == 3
    assert not event.figures.restarts
    assert event.figures.ledger_holds


async def test_a_page_with_more_bad_entries_than_are_remembered_is_dead_lettered_once() -> None:
    """A long page does not push its own entries out of the memory that tells repeats."""
    letters, clock = DeadLetterList(), ManualClock()
    async with Archive(*({"bad": number} for number in range(1_500)), limit=5_000).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: (counter(built, "polls") or 0) >= 4, "four polls")

        graph = fed_by(optical_source(feed(archive)), CollectSink())
        await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert letters.total == 1_500


async def test_a_page_of_nothing_but_bad_entries_leaves_the_others_their_turns() -> None:
    """While 5,000 of them are buried the event loop goes round at least once for every 500."""
    turns, clock = 0, ManualClock()
    buried_at: list[int] = []

    class Store(DeadLetterList):
        def append(self, letters: Sequence[DeadLetter]) -> None:
            super().append(letters)
            buried_at.append(turns)

    async def during(built: BuiltGraph) -> None:
        nonlocal turns
        while len(buried_at) < 5_000:
            turns += 1
            await asyncio.sleep(0)
        built.request_shutdown("test")

    async with Archive(*({"bad": number} for number in range(5_000)), limit=5_000).serving() as archive:
        graph = fed_by(optical_source(feed(archive)), CollectSink())
        await run_graph(graph, clock=clock, dead_letters=Store(), during=during)
    assert buried_at[-1] - buried_at[0] >= 10


async def test_one_timestamp_in_the_future_does_not_silence_the_archive() -> None:
    """It is passed on once, for validate to reject, and what comes before it in time is still fetched."""
    sink, clock = CollectSink(), ManualClock()
    far = entry(9, at_ns=2**62)
    async with Archive(entry(1), far).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 2, "the first page")
            archive.entries.insert(1, entry(2))
            polls = len(archive.requests)
            await when(
                built, clock, lambda: len(sink.items) >= 3 and len(archive.requests) > polls + 3, "the later one"
            )

        event = await run_graph(fed_by(optical_source(feed(archive)), sink), clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-9", "o-2"]
    assert event.figures.ledger.ingested == 3


def test_what_was_ahead_is_not_repeated_when_its_time_has_come() -> None:
    """An observation a little ahead of our clock is passed on once, before and after the watermark reaches it."""
    early, late = (
        optical.decode_page(json.dumps([entry(n, at_ns=at)]).encode(), ingest_timestamp=0)[0][0]
        for n, at in ((1, 100), (2, 200))
    )
    watermark = Watermark(50)
    assert watermark.fresh([early, late]) == [early, late]
    watermark.advance([early, late], now_ns=150)
    assert (watermark.timestamp_ns, watermark.fresh([early, late])) == (100, [])
    watermark.advance([early, late], now_ns=250)
    assert (watermark.timestamp_ns, watermark.fresh([late])) == (200, [])
    assert not watermark.ahead


MAY_PASS = {
    "503": http(503, b"out of service"),
    "429": http(429, b"not so fast", "Retry-After: 0"),
    "dropped": None,
    "cut short": http(200, b"[]")[:-1],
}


@pytest.mark.parametrize("what", MAY_PASS)
async def test_a_poll_that_may_work_the_next_time_costs_an_attempt_and_no_restart(what: str) -> None:
    """Whatever passing trouble the archive has, the source is not restarted, and goes on where the last page ended."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 1, "the first page")
            archive.answers.extend([MAY_PASS[what]] * 2)
            archive.entries.append(entry(2))
            await when(built, clock, lambda: len(sink.items) >= 2, "the second page")

        event = await run_graph(fed_by(optical_source(feed(archive)), sink), clock=clock, during=during)
    assert not event.figures.restarts
    assert event.figures.counters["source"]["retry_attempts"] == 2
    assert ids(sink) == ["o-1", "o-2"]
    assert event.figures.ledger_holds


UNAVAILABLE = {
    "404": (http(404, b""), r"answered 404 Not Found"),
    "redirect": (http(302, b"", "Location: /elsewhere"), r"answered 302 Found"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", r"failed: RemoteProtocolError"),
    "oversized": (http(200, b" " * 10_001), r"answered with more than the 10000 bytes allowed"),
    "not JSON": (http(200, b"<html>"), r"not what was expected: optical page: expected a JSON array, got 6 bytes"),
    "no array": (http(200, b"{}"), r"not what was expected: optical page: expected a JSON array, got a JSON dict"),
    "empty": (http(200, b""), r"not what was expected"),
}


@pytest.mark.parametrize("what", UNAVAILABLE)
async def test_an_answer_that_will_never_be_a_page_costs_a_restart_and_nothing_else(what: str) -> None:
    """Whatever the archive answers instead of a page, the next instance goes on where the last good one ended."""
    answer, message = UNAVAILABLE[what]
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 1, "the first page")
            archive.answers.append(answer)
            archive.entries.append(entry(2))
            await when(built, clock, lambda: len(sink.items) >= 2, "the second page")

        graph = fed_by(optical_source(feed(archive, max_body_bytes=10_000)), sink, policy=FOR_EVER)
        event = await run_graph(graph, clock=clock, during=during)
    causes = [restart.cause for restart in event.figures.restarts["source"].recent]
    assert len(causes) == 1
    assert causes[0].startswith("PermanentFailure: HttpFailure: GET http://127.0.0.1")
    assert re.search(message, causes[0])
    assert ids(sink) == ["o-1", "o-2"]
    assert event.figures.ledger_holds


async def test_a_body_that_is_no_page_is_kept_once() -> None:
    """The first of several identical error pages goes to the dead letters, as SchemaMismatch, whole."""
    letters, clock, sink = DeadLetterList(), ManualClock(), CollectSink()
    async with Archive(entry(1)).serving() as archive:
        archive.answers.extend([http(200, b"<html>maintenance</html>")] * 3)

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: sink.items, "the first page")

        graph = fed_by(optical_source(feed(archive)), sink, policy=FOR_EVER)
        event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [
        (b"<html>maintenance</html>", DeadLetterKind.SCHEMA_MISMATCH)
    ]
    assert event.figures.restarts["source"].total == 3
    assert event.figures.ledger_holds


async def test_an_outage_is_waited_out_without_a_restart() -> None:
    """Refused for as long as it takes the breaker to open thrice: no restart, no loss, and it closes afterwards."""
    sink = CollectSink()
    breaker = BreakerPolicy(window=timedelta(milliseconds=200), cooldown=timedelta(milliseconds=10), min_calls=3)
    archive = Archive(entry(1, at_ns=time.time_ns()))
    async with archive.serving():
        pass  # now it has a port, and refuses connections there

    async def during(built: BuiltGraph) -> None:
        async with archive.serving():
            await eventually(lambda: len(sink.items) == 1, "the first page")
        archive.entries.append(entry(2, at_ns=time.time_ns()))
        await eventually(lambda: built.status().breakers["source"].opened >= 3, "an outage")
        async with archive.serving():
            await eventually(lambda: len(sink.items) >= 2, "the page after the outage")
            built.request_shutdown("test")

    event = await run_graph(fed_by(optical_source(feed(archive, breaker=breaker)), sink), during=during)
    assert ids(sink) == ["o-1", "o-2"]
    assert not event.figures.restarts
    assert event.figures.breakers["source"].state is BreakerState.CLOSED
    assert event.figures.breakers["source"].refusals > 0
    assert event.figures.ledger_holds


async def test_a_shutdown_in_an_outage_is_no_failure() -> None:
    """A source that waits for its next attempt ends well, at once, when the graph is asked to stop."""
    archive = Archive()
    async with archive.serving():
        pass

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: failing(built), "the first refusal")
        built.request_shutdown("test")

    def failing(built: BuiltGraph) -> bool:
        breaker = built.status().breakers.get("source")
        return breaker is not None and breaker.failures > 0

    patient = RetryPolicy(timedelta(hours=1), timedelta(hours=1), max_attempts=None)
    graph = fed_by(optical_source(feed(archive, retry=patient)), CollectSink())
    event = await run_graph(graph, clock=ManualClock(), during=during)
    assert event.figures.exits["source"] == task_exit.Ok()


async def test_attempts_that_are_counted_end_in_a_restart() -> None:
    """With a bound on its attempts the source fails with the last error, and the default budget gives up after five."""
    archive = Archive()
    async with archive.serving():
        pass
    twice = RetryPolicy(timedelta(microseconds=1), timedelta(microseconds=2), max_attempts=2)
    graph = fed_by(optical_source(feed(archive, retry=twice)), CollectSink())
    event = await run_graph(graph)
    assert isinstance(event, events.BudgetExhausted)
    assert event.chain[0].startswith(
        f"RetriesExhausted: no attempts left: HttpFailure: GET {archive.url} failed: Connect"
    )
    assert "Connect call failed" in event.chain[0]


async def test_an_instance_that_fails_while_it_emits_leaves_no_gap_behind() -> None:
    """In long-poll mode, too: what the archive still has of the watermark's nanosecond is asked for by the next instance."""
    sink, clock = GatedSink(), ManualClock()
    at_ns = NOW_NS - 500
    late = [entry(number, at_ns=at_ns) for number in range(2, 5)]
    async with Archive(entry(1)).serving() as archive:
        source = Fault(optical_source(feed(archive, long_poll=timedelta(seconds=20))))

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in asked for asked in archive.requests), "a request that waits")
            archive.limit = 1  # its pages cut within the nanosecond
            archive.entries += late
            archive.news.set()
            await eventually(lambda: built.ledger().ingested >= 2, "the page, cut within a nanosecond")
            source.strike()
            await eventually(lambda: built.status().restarts == 1, "the fault")
            archive.limit = 10
            sink.gate.set()
            await when(built, clock, lambda: len(sink.items) >= 4, "the rest of the nanosecond")

        event = await run_graph(fed_by(source, sink, capacity=1, policy=FOR_EVER), clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2", "o-3", "o-4"]
    assert event.figures.ledger_holds


async def test_an_observation_is_taken_in_when_its_page_has_come_and_not_when_it_was_asked_for() -> None:
    """A long poll that was held for ten seconds dates its observations by their arrival."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive().serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in asked for asked in archive.requests), "a request that waits")
            clock.advance(10.0)
            archive.entries.append(entry(1))
            archive.news.set()
            await eventually(lambda: sink.items, "the news")
            built.request_shutdown("test")

        await run_graph(
            fed_by(optical_source(feed(archive, long_poll=timedelta(seconds=20))), sink), clock=clock, during=during
        )
    assert [item.ingest_timestamp for item in sink.items] == [clock.now_ns()]


async def test_the_archives_own_query_is_kept_and_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """``?site=…&token=…`` goes along with each poll; neither it nor a password is in any message."""
    clock, asked = ManualClock(), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        writer.write(http(503, b""))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://user:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}/o?site=NZ&token=s3cret"

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: "downstream_failing" in caplog.text, "the first failure")
            built.request_shutdown("test")

        with caplog.at_level("INFO"):
            await run_graph(fed_by(optical_source(OpticalFeed(url)), CollectSink()), clock=clock, during=during)
    assert parse_qs(urlsplit(asked[0]).query).keys() == {"site", "token", "since"}
    told = [line.getMessage() for line in caplog.records if line.name.startswith("orchestrator_adapter")]
    assert any("503" in line for line in told)
    assert not any("s3cret" in line for line in told)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "gopher://127.0.0.1:1"])
async def test_a_proxy_that_cannot_be_used_is_an_error_and_no_panic(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment names one that httpx cannot speak to: the source fails, by name, and the graph is not torn down."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    event = await run_graph(fed_by(optical_source(OpticalFeed("http://127.0.0.1:1/o")), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert event.chain[0].startswith("OperatorError: optical feed: the environment's proxy")


async def test_a_certificate_file_that_is_none_is_named(tmp_path: Path) -> None:
    """Whether it has gone or holds something else, the error says which file."""
    (tmp_path / "garbage.pem").write_text("garbage")
    for name in ("garbage.pem", "gone.pem"):
        event = await run_graph(
            fed_by(optical_source(OpticalFeed("https://127.0.0.1:1/o", ca_file=tmp_path / name)), CollectSink())
        )
        assert isinstance(event, events.BudgetExhausted)
        assert event.chain[0].startswith(f"OperatorError: optical feed: no certificates in ca_file {tmp_path / name}: ")


def test_all_problems_of_a_feed_are_told_together() -> None:
    """One error names each field that cannot be, what it must be and what it is."""
    negative = timedelta(seconds=-1)
    with pytest.raises(ValueError, match="OpticalFeed") as raised:
        OpticalFeed(
            "", poll_interval=negative, long_poll=negative, timeout=negative, lookback=negative, max_body_bytes=0
        )
    assert [problem.split(" must")[0] for problem in str(raised.value).split("; ")] == [
        f"OpticalFeed: {name}" for name in ("poll_interval", "long_poll", "timeout", "lookback", "max_body_bytes")
    ]


async def test_the_watermark_survives_a_restart_in_the_middle_of_a_page() -> None:
    """The fault strikes while a page waits for the graph: it is delivered once, and the next poll asks behind it."""
    sink, clock = GatedSink(), ManualClock()
    async with Archive(*map(entry, range(20))).serving() as archive:
        source = Fault(optical_source(feed(archive)))

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: built.ledger().ingested == 20, "the page is taken in")
            source.strike()
            await eventually(lambda: built.status().restarts == 1, "the fault")
            sink.gate.set()
            asked = len(archive.requests)
            await when(built, clock, lambda: len(sink.items) >= 20 and len(archive.requests) > asked, "page and poll")

        event = await run_graph(fed_by(source, sink, capacity=4, policy=FOR_EVER), clock=clock, during=during)
    assert ids(sink) == [f"o-{number}" for number in range(20)]
    assert archive.requests[-1]["since"] == entry(19)["timestamp_ns"] - 1
    assert (event.figures.ledger.ingested, event.figures.ledger.repeated) == (20, 0)


async def test_a_page_that_the_graph_does_not_take_is_the_only_one_that_is_held() -> None:
    """While downstream stands still no further poll is made, however much time passes; then everything comes, once."""
    sink, clock = GatedSink(), ManualClock()
    async with Archive(*map(entry, range(40)), limit=20).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: built.ledger().ingested == 20, "the first page")
            for _ in range(100):
                clock.advance(60.0)
                await settle(5)
            assert len(archive.requests) == 1
            assert built.ledger().in_flight == 20
            sink.gate.set()
            await when(built, clock, lambda: len(sink.items) >= 40, "the rest")

        graph = fed_by(optical_source(feed(archive)), sink, capacity=4)
        event = await run_graph(graph, clock=clock, during=during)
    assert ids(sink) == [f"o-{number}" for number in range(40)]
    assert event.figures.ledger_holds


async def test_an_archive_with_an_authority_of_its_own_is_verified_by_it(tmp_path: Path) -> None:
    """With its certificate authority's file it is read over TLS; without, nothing is asked and the reason is named."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    ca_file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(ca_file)
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1)).serving(tls=tls) as archive:
        secure = replace(feed(archive, ca_file=ca_file), url=archive.url.replace("http:", "https:"))

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: sink.items, "a page")
            built.request_shutdown("test")

        event = await run_graph(fed_by(optical_source(secure), sink), clock=clock, during=during)
        assert event.figures.exits["source"] == task_exit.Ok()
        asked = len(archive.requests)
        refused = await run_graph(fed_by(optical_source(replace(secure, ca_file=None)), CollectSink()))
        assert len(archive.requests) == asked
    assert isinstance(refused, events.BudgetExhausted)
    assert "CERTIFICATE_VERIFY_FAILED" in refused.chain[0]


async def test_a_shutdown_does_not_wait_for_the_archive() -> None:
    """A long poll that is held by the archive is given up at once, and the source ends well."""
    async with Archive().serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in asked for asked in archive.requests), "a request that waits")
            built.request_shutdown("test")

        graph = fed_by(optical_source(feed(archive, long_poll=timedelta(seconds=300))), CollectSink())
        event = await run_graph(graph, clock=ManualClock(), during=during)
    assert event.figures.exits["source"] == task_exit.Ok()
    assert isinstance(event, events.ShutDown)


async def test_a_dead_letter_store_that_fails_loses_no_entry() -> None:
    """The bad entry that could not be kept is met again by the next poll, and the page's good one is not lost."""
    sink, letters, clock = CollectSink(), FailingStore(1), ManualClock()
    async with Archive({"bad": 1}, entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: sink.items and letters.total, "both")

        graph = fed_by(optical_source(feed(archive)), sink, policy=FOR_EVER)
        event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert ids(sink) == ["o-1"]
    assert letters.total == 1
    assert event.figures.ledger.ingested == 2
