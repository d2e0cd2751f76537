"""What the optical source does when a poll, a page or the environment fails."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from orchestrator_adapter import (
    BreakerPolicy,
    BreakerState,
    BuiltGraph,
    DeadLetterKind,
    DeadLetterList,
    RetryPolicy,
)
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph
from sda_ops.sources.optical import OpticalFeed, optical_source
from tests.helpers.running import FailingStore, Fault, GatedSink, eventually, fed_by
from tests.sda_ops.sources.optical_archive import ALWAYS, NOW_NS, Archive, entry, feed, http, ids, when

TEMPORARY = {
    "503": http(503, b"out of service"),
    "429": http(429, b"too many requests", "Retry-After: 0"),
    "dropped": None,
    "cut short": http(200, b"[]")[:-1],
}


@pytest.mark.parametrize("what", TEMPORARY)
async def test_a_temporary_failure_costs_an_attempt_and_no_restart(what: str) -> None:
    """The source continues where the last page ended."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 1, "the first page")
            archive.answers.extend([TEMPORARY[what]] * 2)
            archive.entries.append(entry(2))
            await when(built, clock, lambda: len(sink.items) >= 2, "the second page")

        event = await run_graph(fed_by(optical_source(feed(archive)), sink), clock=clock, during=during)
    assert not event.figures.restarts
    assert event.figures.counters["source"]["retry_attempts"] == 2
    assert ids(sink) == ["o-1", "o-2"]
    assert event.figures.ledger_holds


PERMANENT = {
    "404": (http(404, b""), r"answered 404 Not Found"),
    "redirect": (http(302, b"", "Location: /elsewhere"), r"answered 302 Found"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", r"failed: RemoteProtocolError"),
    "oversized": (http(200, b" " * 10_001), r"answered with more than the 10000 bytes allowed"),
    "not JSON": (http(200, b"<html>"), r"not what was expected: optical page: expected a JSON array, got 6 bytes"),
    "no array": (http(200, b"{}"), r"not what was expected: optical page: expected a JSON array, got a JSON dict"),
    "empty": (http(200, b""), r"not what was expected"),
}


@pytest.mark.parametrize("what", PERMANENT)
async def test_a_permanent_failure_costs_one_restart_and_no_observation(what: str) -> None:
    """The next instance continues where the last good page ended."""
    answer, message = PERMANENT[what]
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 1, "the first page")
            archive.answers.append(answer)
            archive.entries.append(entry(2))
            await when(built, clock, lambda: len(sink.items) >= 2, "the second page")

        graph = fed_by(optical_source(feed(archive, max_body_bytes=10_000)), sink, policy=ALWAYS)
        event = await run_graph(graph, clock=clock, during=during)
    causes = [restart.cause for restart in event.figures.restarts["source"].recent]
    assert len(causes) == 1
    assert causes[0].startswith("PermanentFailure: HttpFailure: GET http://127.0.0.1")
    assert re.search(message, causes[0])
    assert ids(sink) == ["o-1", "o-2"]
    assert event.figures.ledger_holds


async def test_a_body_that_is_not_a_page_is_dead_lettered_once() -> None:
    """The first of several identical error pages is dead-lettered whole, as SchemaMismatch."""
    letters, clock, sink = DeadLetterList(), ManualClock(), CollectSink()
    async with Archive(entry(1)).serving() as archive:
        archive.answers.extend([http(200, b"<html>maintenance</html>")] * 3)

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: sink.items, "the first page")

        graph = fed_by(optical_source(feed(archive)), sink, policy=ALWAYS)
        event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [
        (b"<html>maintenance</html>", DeadLetterKind.SCHEMA_MISMATCH)
    ]
    assert event.figures.restarts["source"].total == 3
    assert event.figures.ledger_holds


async def test_an_outage_costs_no_restart() -> None:
    """The archive is down until the breaker has opened three times: nothing is lost, and the breaker closes afterwards."""
    sink = CollectSink()
    breaker = BreakerPolicy(window=timedelta(milliseconds=200), cooldown=timedelta(milliseconds=10), min_calls=3)
    archive = Archive(entry(1, at_ns=time.time_ns()))
    async with archive.serving():
        pass  # it has a port now, and connections to it fail

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
    assert event.figures.breakers["source"].rejections > 0
    assert event.figures.ledger_holds


async def test_a_shutdown_during_an_outage_is_not_a_failure() -> None:
    """A source that waits for its next attempt ends at once, without an error."""
    archive = Archive()
    async with archive.serving():
        pass

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: failing(built), "the first failed poll")
        built.request_shutdown("test")

    def failing(built: BuiltGraph) -> bool:
        breaker = built.status().breakers.get("source")
        return breaker is not None and breaker.failures > 0

    patient = RetryPolicy(timedelta(hours=1), timedelta(hours=1), max_attempts=None)
    graph = fed_by(optical_source(feed(archive, retry=patient)), CollectSink())
    event = await run_graph(graph, clock=ManualClock(), during=during)
    assert event.figures.exits["source"] == task_exit.Ok()


async def test_limited_attempts_end_in_a_restart() -> None:
    """With a limit on its attempts the source fails with the last error, and the default budget is exhausted after five restarts."""
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


async def test_an_instance_that_fails_while_it_emits_leaves_no_gap() -> None:
    """In long-poll mode, too: the next instance asks for the rest of the watermark's nanosecond."""
    sink, clock = GatedSink(), ManualClock()
    at_ns = NOW_NS - 500
    late = [entry(number, at_ns=at_ns) for number in range(2, 5)]
    async with Archive(entry(1)).serving() as archive:
        source = Fault(optical_source(feed(archive, long_poll=timedelta(seconds=20))))

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in query for query in archive.requests), "a request that waits")
            archive.limit = 1  # its pages cut within the nanosecond
            archive.entries += late
            archive.added.set()
            await eventually(lambda: built.ledger().ingested >= 2, "the page, cut within a nanosecond")
            source.strike()
            await eventually(lambda: built.status().restarts == 1, "the fault")
            archive.limit = 10
            sink.gate.set()
            await when(built, clock, lambda: len(sink.items) >= 4, "the rest of the nanosecond")

        event = await run_graph(fed_by(source, sink, capacity=1, policy=ALWAYS), clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2", "o-3", "o-4"]
    assert event.figures.ledger_holds


async def test_the_query_of_the_url_is_sent_and_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    """``?site=…&token=…`` is part of each poll; neither it nor a password appears in any log line."""
    clock, targets = ManualClock(), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        targets.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
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
    assert parse_qs(urlsplit(targets[0]).query).keys() == {"site", "token", "since"}
    logged = [line.getMessage() for line in caplog.records if line.name.startswith("orchestrator_adapter")]
    assert any("503" in line for line in logged)
    assert not any("s3cret" in line for line in logged)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "gopher://127.0.0.1:1"])
async def test_a_proxy_that_cannot_be_used_is_an_operational_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy that httpx does not support: the source fails with its name, and this is not a panic."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    event = await run_graph(fed_by(optical_source(OpticalFeed("http://127.0.0.1:1/o")), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert event.chain[0].startswith("OperatorError: optical feed: the environment's proxy")


async def test_an_invalid_certificate_file_is_named(tmp_path: Path) -> None:
    """The error names a file that is missing or has other content."""
    (tmp_path / "garbage.pem").write_text("garbage")
    for name in ("garbage.pem", "gone.pem"):
        event = await run_graph(
            fed_by(optical_source(OpticalFeed("https://127.0.0.1:1/o", ca_file=tmp_path / name)), CollectSink())
        )
        assert isinstance(event, events.BudgetExhausted)
        assert event.chain[0].startswith(f"OperatorError: optical feed: no certificates in ca_file {tmp_path / name}: ")


async def test_the_watermark_survives_a_restart_within_a_page() -> None:
    """The instance fails while its page waits for the graph: the page is delivered once, and the next poll asks after it."""
    sink, clock = GatedSink(), ManualClock()
    async with Archive(*map(entry, range(20))).serving() as archive:
        source = Fault(optical_source(feed(archive)))

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: built.ledger().ingested == 20, "the page is ingested")
            source.strike()
            await eventually(lambda: built.status().restarts == 1, "the fault")
            sink.gate.set()
            polls = len(archive.requests)
            await when(built, clock, lambda: len(sink.items) >= 20 and len(archive.requests) > polls, "page and poll")

        event = await run_graph(fed_by(source, sink, capacity=4, policy=ALWAYS), clock=clock, during=during)
    assert ids(sink) == [f"o-{number}" for number in range(20)]
    assert archive.requests[-1]["since"] == entry(19)["timestamp_ns"] - 1
    assert (event.figures.ledger.ingested, event.figures.ledger.repeated) == (20, 0)


async def test_an_archive_with_its_own_certificate_authority_is_verified(tmp_path: Path) -> None:
    """With the authority's file it is read over TLS; without it, no request is made and the reason is named."""
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
        polls = len(archive.requests)
        rejected = await run_graph(fed_by(optical_source(replace(secure, ca_file=None)), CollectSink()))
        assert len(archive.requests) == polls
    assert isinstance(rejected, events.BudgetExhausted)
    assert "CERTIFICATE_VERIFY_FAILED" in rejected.chain[0]


async def test_a_failing_dead_letter_store_loses_no_entry() -> None:
    """A malformed entry that could not be kept is found again by the next poll, and the page's good entry is emitted."""
    sink, letters, clock = CollectSink(), FailingStore(1), ManualClock()
    async with Archive({"bad": 1}, entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: sink.items and letters.total, "both")

        graph = fed_by(optical_source(feed(archive)), sink, policy=ALWAYS)
        event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert ids(sink) == ["o-1"]
    assert letters.total == 1
    assert event.figures.ledger.ingested == 2
