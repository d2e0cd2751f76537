from __future__ import annotations

import asyncio
import errno
import socket
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
    sock: socket.socket = built._slots["source"].ends._kept["socket"][0]
    return sock


async def test_every_datagram_becomes_one_observation_in_order() -> None:
    """What is sent to the port arrives at the sink, once, in order, and the ledger counts it as ingested."""
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
    """Empty, short, long and huge datagrams end up in the dead letters with their bytes; the good ones get through."""
    sink, letters = CollectSink(), DeadLetterList()
    bad = [b"", b"x" * 63, b"x" * 65, b"x" * 60_000]

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        for number, malformed in enumerate(bad):
            send(port, malformed, datagram(number))
        await eventually(lambda: len(sink.items) == len(bad), "the good ones")
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


async def test_a_port_that_is_taken_is_named_and_brings_the_run_down() -> None:
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
    """Neither a foreign address nor a name that IDNA cannot say is taken for a bug."""
    event = await run_graph(fed_by(radar_source(RadarFeed(host, 0)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"cannot receive on udp://{host}:0" in event.chain[0]


@pytest.mark.parametrize(("host", "senders"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("", ["127.0.0.1"])])
async def test_an_address_of_either_kind_is_received_on(host: str, senders: list[str]) -> None:
    """IPv6 at its own address, both kinds at ``::``, and IPv4 where no address is named."""
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


async def test_an_ipv6_port_that_is_taken_is_named_as_one() -> None:
    """In brackets, so that address and port can be told apart."""
    needs_ipv6()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::1", 0))
        port = other.getsockname()[1]
        event = await run_graph(fed_by(radar_source(RadarFeed("::1", port)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"cannot receive on udp://[::1]:{port}: [Errno 98] Address already in use" in event.chain[0]


def test_a_name_of_both_kinds_is_its_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever the resolver names first: a sender that knows no IPv6 must be heard."""
    both = [
        (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with radar_module._bind(RadarFeed("localhost", 0)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_all_problems_of_a_feed_are_told_together() -> None:
    """One error names each field that cannot be, what it must be and what it is."""
    with pytest.raises(ValueError, match="RadarFeed") as raised:
        RadarFeed("127.0.0.1", 65_536, receive_buffer_bytes=0)
    assert str(raised.value).split("; ") == [
        "RadarFeed: port must be 0 to 65535, got 65536",
        "RadarFeed: receive_buffer_bytes must be 1 to 2147483647, got 0",
    ]
    with pytest.raises(ValueError, match="receive_buffer_bytes"):
        RadarFeed("127.0.0.1", 0, receive_buffer_bytes=2**31)


async def test_what_the_kernel_holds_at_shutdown_is_still_taken_in() -> None:
    """The source is stuck on a full edge when the stop is asked for; the datagrams it had not read yet arrive too."""
    sink = GatedSink()

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        send(port, *map(datagram, range(20)))
        await eventually(lambda: built.ledger().ingested == 20, "the source has taken in the first of them")
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
    """The second instance listens on the same port and takes in what was sent while nobody read."""
    sink = CollectSink()
    source = Fault(radar_source(FEED))

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        send(port, *map(datagram, range(10)))
        await eventually(lambda: len(sink.items) == 10, "the first ten")
        source.strike()
        send(port, *map(datagram, range(10, 20)))
        await eventually(lambda: source.instances == 2 and len(sink.items) == 20, "the second instance reads on")
        assert counter(built, "port") == port
        built.request_shutdown("test")

    event = await run_graph(fed_by(source, sink), during=during)
    assert tracks(sink.items) == list(range(20))
    assert event.figures.restarts["source"].total == 1
    assert (event.figures.ledger.ingested, event.figures.ledger.repeated) == (20, 0)


async def test_an_aborted_source_leaves_what_it_took_in_to_the_dead_letters() -> None:
    """The sink never takes anything: after the grace every datagram taken in is Undelivered, none is unaccounted for."""
    sink, letters = GatedSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        send(await port_of(built), *map(datagram, range(50)))
        await eventually(lambda: built.ledger().ingested == 50, "the source has taken them in")
        built.request_shutdown("test")
        built.request_shutdown("again")

    graph = fed_by(radar_source(FEED), sink, capacity=8)
    event = await run_graph(graph, dead_letters=letters, during=during)
    assert isinstance(event.figures.exits["source"], task_exit.Aborted)
    assert sorted(tracks([letter.payload for letter in letters.letters])) == list(range(50))
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.UNDELIVERED}
    assert event.figures.ledger_holds


async def test_a_flood_of_malformed_datagrams_does_not_freeze_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that never stops and never makes sense cannot keep the graph from hearing that it should stop."""
    monkeypatch.setattr(radar_module, "_drain", lambda sock: [b"nonsense"])

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: (counter(built, "decode_errors") or 0) > 100, "the flood runs")
        built.request_shutdown("test")

    event = await run_graph(fed_by(radar_source(FEED), CollectSink()), during=during)
    assert isinstance(event, events.ShutDown)
    assert event.figures.exits["source"] == task_exit.Ok()


class BrokenSocket:
    """Gives what it has, then fails."""

    def __init__(self, *held: bytes) -> None:
        self.held = list(held)

    def recv(self, limit: int) -> bytes:
        if self.held:
            return self.held.pop(0)
        raise OSError(errno.ENOMEM, "no memory")


def test_a_socket_error_does_not_cost_the_datagrams_before_it() -> None:
    """They come first; the error is raised by the next attempt."""
    sock: Any = BrokenSocket(b"one", b"two")
    assert radar_module._drain(sock) == [b"one", b"two"]
    with pytest.raises(OSError, match="no memory"):
        radar_module._drain(sock)


async def test_a_dead_letter_store_that_fails_costs_no_good_datagram_and_no_count() -> None:
    """The batch's good datagrams get through, the malformed one is booked, and the run tells what was not kept."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        send(await port_of(built), datagram(0), b"malformed", datagram(1))
        await eventually(lambda: len(sink.items) == 2, "the good ones")
        built.request_shutdown("test")

    event = await run_graph(fed_by(radar_source(FEED), sink), dead_letters=FailingStore(1), during=during)
    assert tracks(sink.items) == [0, 1]
    assert not event.figures.restarts
    assert (event.figures.ledger.ingested, event.figures.ledger.dead_lettered) == (3, 1)
    assert event.figures.problems == (
        "1 items of 'source' could not be kept as dead letters: OSError: [Errno 28] No space left on device",
    )


async def test_what_the_kernel_dropped_is_counted() -> None:
    """While the graph pushes back the kernel's buffer overflows: drops and observations add up to what was sent."""
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


async def test_drops_are_shown_while_the_graph_pushes_back_and_after_an_abort_in_that_state() -> None:
    """A second later the figure is the kernel's, twice in one wait for room; the report has the last of them, too."""
    clock, sink, told = ManualClock(), GatedSink(), [0]

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        for _ in range(2):
            send(port, *map(datagram, range(1_000)))
            await eventually(lambda: built._slots["source"].ends.waits_for_room, "the source waits for room")
            clock.advance(1)
            told.append(kernel_drops(socket_of(built)))
            assert counter(built, "kernel_drops") == told[-1] > told[-2]
        send(port, *map(datagram, range(1_000)))
        told.append(kernel_drops(socket_of(built)))
        built.request_shutdown("test")
        built.request_shutdown("again")

    feed = RadarFeed("127.0.0.1", 0, receive_buffer_bytes=1)
    event = await run_graph(fed_by(radar_source(feed), sink, capacity=1), clock=clock, during=during)
    assert isinstance(event.figures.exits["source"], task_exit.Aborted)
    assert event.figures.counters["source"]["kernel_drops"] == told[-1] > told[-2]
    assert event.figures.ledger_holds
    assert not clock.pending_timers


def test_drops_of_a_new_socket_are_zero() -> None:
    """The figure is the socket's own, not the machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert kernel_drops(sock) == 0


async def test_a_shutdown_before_the_start_ends_at_once() -> None:
    """A source that is started into a shutdown takes in nothing and ends well."""
    built = fed_by(radar_source(FEED), CollectSink()).build()
    built.request_shutdown("before the run")
    event = await asyncio.wait_for(built.run(), timedelta(seconds=10).total_seconds())
    assert event.figures.exits["source"] == task_exit.Ok()
    assert event.figures.ledger.ingested == 0
