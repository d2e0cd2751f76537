"""Radar over UDP on real sockets: datagrams, restarts, shutdown, and what the kernel drops."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import BuiltGraph, DeadLetterKind, DeadLetterList
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.sources import radar as radar_module
from sda_ops.sources.radar import RadarFeed, kernel_drops, radar_source
from tests.helpers.running import FailingStore, Fault, GatedSink, counter, datagram, eventually, fed_by, port_of, tracks
from tests.sda_ops.sources.isl.beacons import needs_ipv6

FEED = RadarFeed("127.0.0.1", 0)


def send(port: int, *datagrams: bytes, to: str = "127.0.0.1") -> None:
    with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sensor:
        for each in datagrams:
            sensor.sendto(each, (to, port))


def socket_of(built: BuiltGraph) -> socket.socket:
    sock: socket.socket = built._runs["source"].services.kept["socket"]
    return sock


async def test_every_datagram_becomes_one_observation_in_order() -> None:
    """Datagrams sent to the port arrive at the sink once, in order, and the ledger counts them as ingested."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        send(await port_of(built), *map(datagram, range(100)))
        await eventually(lambda: len(sink.items) == 100, "100 observations")
        built.request_shutdown("test")

    event = await run_graph(fed_by(radar_source(FEED), sink), during=during)
    assert tracks(sink.items) == list(range(100))
    assert (event.figures.ledger.ingested, event.figures.ledger.written) == (100, 100)
    assert event.figures.ledger_holds


async def test_malformed_datagrams_cost_only_themselves() -> None:
    """Empty, short, long and huge datagrams are dead-lettered with their bytes; the good ones are emitted."""
    sink, letters = CollectSink(), DeadLetterList()
    bad = [b"", b"x" * 63, b"x" * 65, b"x" * 60_000]

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        for number, malformed in enumerate(bad):
            send(port, malformed, datagram(number))
        await eventually(lambda: len(sink.items) == len(bad), "the good datagrams")
        built.request_shutdown("test")

    event = await run_graph(fed_by(radar_source(FEED), sink), dead_letters=letters, during=during)
    assert tracks(sink.items) == [0, 1, 2, 3]
    assert [letter.payload for letter in letters.letters] == bad
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.DESERIALIZATION}
    assert letters.letters[1].message == "radar datagram: expected 64 bytes, got 63"
    assert event.figures.counters["source"]["decode_errors"] == 4
    assert (event.figures.ledger.ingested, event.figures.ledger.dead_lettered) == (8, 4)
    assert not event.figures.restarts
    assert event.figures.ledger_holds


async def test_a_port_in_use_is_named_and_exhausts_the_restart_budget() -> None:
    """Five restarts, then BudgetExhausted with the address and the reason in its cause."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        event = await run_graph(fed_by(radar_source(RadarFeed("127.0.0.1", port)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert event.operator == "source"
    assert event.chain[0] == (
        f"OperatorError: radar feed: cannot receive on udp://127.0.0.1:{port}: [Errno 98] Address already in use"
    )
    assert event.figures.restarts["source"].total == 5
    assert event.figures.ledger_holds


@pytest.mark.parametrize("host", ["203.0.113.1", "a..b", "x" * 70 + ".example"])
async def test_a_host_that_cannot_be_bound_is_an_operational_failure(host: str) -> None:
    """A foreign address, or a name that IDNA cannot encode, is not a panic."""
    event = await run_graph(fed_by(radar_source(RadarFeed(host, 0)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"cannot receive on udp://{host}:0" in event.chain[0]


@pytest.mark.parametrize(("host", "senders"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("", ["127.0.0.1"])])
async def test_it_receives_on_ipv4_and_ipv6_addresses(host: str, senders: list[str]) -> None:
    """IPv6 at its own address, both at ``::``, and IPv4 where no address is named."""
    if ":" in host:
        needs_ipv6()
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        for number, sender in enumerate(senders):
            send(port, datagram(number), to=sender)
        await eventually(lambda: len(sink.items) == len(senders), "a datagram of each")
        built.request_shutdown("test")

    await run_graph(fed_by(radar_source(RadarFeed(host, 0)), sink), during=during)
    assert sorted(tracks(sink.items)) == list(range(len(senders)))


async def test_the_error_for_an_ipv6_port_in_use_has_the_address_in_brackets() -> None:
    """Address and port can then be distinguished."""
    needs_ipv6()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::1", 0))
        port = other.getsockname()[1]
        event = await run_graph(fed_by(radar_source(RadarFeed("::1", port)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"cannot receive on udp://[::1]:{port}: [Errno 98] Address already in use" in event.chain[0]


def test_a_name_with_both_kinds_of_address_means_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any order of the resolver's list: a sender without IPv6 must be received."""
    both = [
        (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    feed = RadarFeed("localhost", 0)
    with radar_module._bind(feed, *radar_module._resolve(feed)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


async def test_the_loop_turns_while_the_host_of_a_feed_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server answers only after a task of the loop has run."""
    asked, answer = threading.Event(), threading.Event()

    def name_server(*_: object, **__: object) -> list[object]:
        asked.set()
        assert answer.wait(20)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", name_server)

    async def during(built: BuiltGraph) -> None:
        await eventually(asked.is_set, "the name server is asked")
        answer.set()
        assert await port_of(built)
        built.request_shutdown("test")

    event = await run_graph(fed_by(radar_source(RadarFeed("radar.example", 0)), CollectSink()), during=during)
    assert isinstance(event, events.ShutDown)


def test_all_problems_of_a_feed_are_reported_together() -> None:
    """One error names each invalid field, its bound and its value."""
    with pytest.raises(ValueError, match="RadarFeed") as raised:
        RadarFeed("127.0.0.1", 65_536, receive_buffer_bytes=0)
    assert str(raised.value).split("; ") == [
        "RadarFeed: port must be 0 to 65535, got 65536",
        "RadarFeed: receive_buffer_bytes must be 1 to 2147483647, got 0",
    ]
    with pytest.raises(ValueError, match="receive_buffer_bytes"):
        RadarFeed("127.0.0.1", 0, receive_buffer_bytes=2**31)


async def test_datagrams_in_the_kernel_at_shutdown_are_still_received() -> None:
    """The source waits for a full edge when the shutdown is requested; the datagrams that it had not read yet arrive, too."""
    sink = GatedSink()

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        send(port, *map(datagram, range(20)))
        await eventually(lambda: built.ledger().ingested == 20, "the source has read the first of them")
        send(port, *map(datagram, range(20, 120)))
        built.request_shutdown("test")
        await settle()
        sink.gate.set()

    event = await run_graph(fed_by(radar_source(FEED), sink, capacity=8), during=during)
    assert isinstance(event, events.ShutDown)
    assert tracks(sink.items) == list(range(120))
    assert event.figures.exits["source"] == task_exit.Ok()
    assert event.figures.ledger_holds


async def test_a_restart_keeps_the_socket_and_loses_no_datagram() -> None:
    """The second instance receives on the same port, and reads what was sent during the restart."""
    sink = CollectSink()
    source = Fault(radar_source(FEED))

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        send(port, *map(datagram, range(10)))
        await eventually(lambda: len(sink.items) == 10, "the first ten")
        source.strike()
        send(port, *map(datagram, range(10, 20)))
        await eventually(lambda: source.instances == 2 and len(sink.items) == 20, "the second instance continues")
        assert counter(built, "port") == port
        built.request_shutdown("test")

    event = await run_graph(fed_by(source, sink), during=during)
    assert tracks(sink.items) == list(range(20))
    assert event.figures.restarts["source"].total == 1
    assert (event.figures.ledger.ingested, event.figures.ledger.repeated) == (20, 0)


async def test_the_datagrams_of_an_aborted_source_are_dead_lettered() -> None:
    """The sink takes nothing: after the grace period every datagram that was read is Undelivered."""
    sink, letters = GatedSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        send(await port_of(built), *map(datagram, range(50)))
        await eventually(lambda: built.ledger().ingested == 50, "the source has read them")
        built.request_shutdown("test")
        built.request_shutdown("again")

    graph = fed_by(radar_source(FEED), sink, capacity=8)
    event = await run_graph(graph, dead_letters=letters, during=during)
    assert isinstance(event.figures.exits["source"], task_exit.Aborted)
    assert sorted(tracks([letter.payload for letter in letters.letters])) == list(range(50))
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.UNDELIVERED}
    assert event.figures.ledger_holds


async def test_a_flood_of_malformed_datagrams_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that never stops and sends only malformed datagrams cannot keep the graph from its shutdown."""
    monkeypatch.setattr(radar_module, "_drain", lambda sock: ([b"nonsense"], False))

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: (counter(built, "decode_errors") or 0) > 100, "the flood runs")
        built.request_shutdown("test")

    event = await run_graph(fed_by(radar_source(FEED), CollectSink()), during=during)
    assert isinstance(event, events.ShutDown)
    assert event.figures.exits["source"] == task_exit.Ok()


class BrokenSocket:
    """Returns its datagrams, then fails."""

    def __init__(self, *datagrams: bytes) -> None:
        self.datagrams = list(datagrams)

    def recv(self, limit: int) -> bytes:
        if self.datagrams:
            return self.datagrams.pop(0)
        raise OSError(errno.ENOMEM, "no memory")


def test_a_socket_error_does_not_cost_the_datagrams_before_it() -> None:
    """They are returned first; the next call raises the error."""
    sock: Any = BrokenSocket(b"one", b"two")
    assert radar_module._drain(sock) == ([b"one", b"two"], False)
    with pytest.raises(OSError, match="no memory"):
        radar_module._drain(sock)


async def test_a_failing_dead_letter_store_costs_no_good_datagram_and_no_count() -> None:
    """The batch's good datagrams are emitted, the malformed one is counted, and the run reports what was not kept."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        send(await port_of(built), datagram(0), b"malformed", datagram(1))
        await eventually(lambda: len(sink.items) == 2, "the good datagrams")
        built.request_shutdown("test")

    event = await run_graph(fed_by(radar_source(FEED), sink), dead_letters=FailingStore(1), during=during)
    assert tracks(sink.items) == [0, 1]
    assert not event.figures.restarts
    assert (event.figures.ledger.ingested, event.figures.ledger.dead_lettered) == (3, 1)
    assert event.figures.problems == (
        "1 items of 'source' could not be kept as dead letters: OSError: [Errno 28] No space left on device",
    )


async def test_datagrams_dropped_by_the_kernel_are_counted() -> None:
    """During backpressure the kernel's buffer overflows: drops and observations add up to what was sent."""
    sink = GatedSink()
    sent = 3_000

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        send(port, *map(datagram, range(sent)))
        await settle()
        sink.gate.set()
        built.request_shutdown("test")

    feed = RadarFeed("127.0.0.1", 0, receive_buffer_bytes=1)
    event = await run_graph(fed_by(radar_source(feed), sink, capacity=1), during=during)
    drops = event.figures.counters["source"]["kernel_drops"]
    assert drops > 0
    assert len(sink.items) + drops == sent
    assert event.figures.counters["source"]["receive_buffer_bytes"] > 1


async def test_kernel_drops_are_published_during_backpressure_and_after_an_abort() -> None:
    """The figure follows the kernel's within a second, twice in one wait for room; the report has the last value, too."""
    clock, sink, drops = ManualClock(), GatedSink(), [0]

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        for _ in range(2):
            send(port, *map(datagram, range(1_000)))
            await eventually(lambda: built._runs["source"].waits_for_space, "the source waits for room")
            clock.advance(1)
            drops.append(kernel_drops(socket_of(built)))
            assert counter(built, "kernel_drops") == drops[-1] > drops[-2]
        send(port, *map(datagram, range(1_000)))
        drops.append(kernel_drops(socket_of(built)))
        built.request_shutdown("test")
        built.request_shutdown("again")

    feed = RadarFeed("127.0.0.1", 0, receive_buffer_bytes=1)
    event = await run_graph(fed_by(radar_source(feed), sink, capacity=1), clock=clock, during=during)
    assert isinstance(event.figures.exits["source"], task_exit.Aborted)
    assert event.figures.counters["source"]["kernel_drops"] == drops[-1] > drops[-2]
    assert event.figures.ledger_holds
    assert not clock.pending_timers


def test_drops_of_a_new_socket_are_zero() -> None:
    """The figure is the socket's own, not the machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert kernel_drops(sock) == 0


async def test_a_shutdown_before_the_start_ends_at_once() -> None:
    """Nothing is read, and the run ends as a shutdown."""
    built = fed_by(radar_source(FEED), CollectSink()).build()
    built.request_shutdown("before the run")
    event = await asyncio.wait_for(built.run(), timedelta(seconds=10).total_seconds())
    assert isinstance(event, events.ShutDown)
    assert event.figures.ledger.ingested == 0
