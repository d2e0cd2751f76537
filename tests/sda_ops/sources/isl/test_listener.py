"""Accepting: addresses, limits on connections, backpressure, and what the listener logs."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from orchestrator_adapter import BuiltGraph, DeadLetterList
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.sources.isl import IslFeed, isl_source
from sda_ops.sources.isl import listener as listener_module
from sda_ops.sources.isl.connection import ConnectionFault
from sda_ops.sources.isl.listener import IslListener, _origin, resolve
from tests.helpers.log_lines import event_of
from tests.helpers.running import GatedSink, counter, eventually, fed_by, port_of
from tests.sda_ops.sources.isl.beacons import (
    FEED,
    ONE_READ,
    Beacon,
    Peers,
    listener_of,
    message,
    messages,
    needs_ipv6,
    numbers,
    pending_timers,
    shown,
)


async def test_a_connection_above_the_limit_is_rejected_and_counted() -> None:
    """The connected beacon is not affected, and a place that becomes free is used again."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        first = Beacon(port)
        first.send(message(1))
        await eventually(lambda: len(sink.items) == 1, "the first beacon is connected")
        second = Beacon(port)
        assert await second.closed_by_listener()
        first.send(message(2))
        await eventually(lambda: len(sink.items) == 2, "the first goes on")
        assert counter(built, "rejected_connections") == 1
        first.close()
        await eventually(lambda: not listener_of(built).connections, "the first is gone")
        third = Beacon(port)
        third.send(message(3))
        await eventually(lambda: len(sink.items) == 3, "the third is connected")
        built.request_shutdown("test")
        second.close()
        third.close()

    await run_graph(fed_by(isl_source(IslFeed("127.0.0.1", 0, max_connections=1)), sink), during=during)
    assert numbers(sink.items) == [1, 2, 3]


async def test_a_full_inbox_pauses_reading_and_a_drained_one_resumes_it() -> None:
    """While the sink takes nothing, the inbox exceeds its limit by at most one read; then every frame arrives, in order."""
    sink, count = GatedSink(), 60_000
    sent_all = asyncio.Event()

    async def during(built: BuiltGraph) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", await port_of(built))

        async def send() -> None:
            for start in range(0, count, 500):
                writer.write(messages(*range(start, start + 500)))
                await writer.drain()
            sent_all.set()

        sending = asyncio.create_task(send())
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "the connection is paused")
        await settle()
        assert listener.full
        assert len(listener.inbox) <= 8 + ONE_READ
        sink.gate.set()
        await eventually(lambda: len(sink.items) == count, "every frame")
        await sending
        assert not listener.paused
        built.request_shutdown("test")
        writer.close()

    feed = IslFeed("127.0.0.1", 0, inbox_frames=8)
    event = await run_graph(fed_by(isl_source(feed), sink, capacity=4), during=during)
    assert numbers(sink.items) == list(range(count))
    assert event.figures.ledger_holds


async def test_a_port_in_use_is_named_and_exhausts_the_restart_budget() -> None:
    """The run ends with BudgetExhausted after five restarts, with the address in its cause."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        event = await run_graph(fed_by(isl_source(IslFeed("127.0.0.1", port)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"isl feed: cannot listen on tcp://127.0.0.1:{port}: [Errno 98] Address already in use" in event.chain[0]
    assert event.figures.restarts["source"].total == 5


@pytest.mark.parametrize(("host", "sources"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("", ["127.0.0.1"])])
async def test_it_listens_on_ipv4_and_ipv6_addresses(host: str, sources: list[str]) -> None:
    """IPv6 at its own address, both at ``::``, and IPv4 where no address is named."""
    if ":" in host:
        needs_ipv6()
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        beacons = [Beacon(port, source=source) for source in sources]
        for number, beacon in enumerate(beacons):
            beacon.send(message(number))
        await eventually(lambda: len(sink.items) == len(sources), "a frame of each")
        built.request_shutdown("test")
        for beacon in beacons:
            beacon.close()

    await run_graph(fed_by(isl_source(IslFeed(host, 0)), sink), during=during)
    assert sorted(numbers(sink.items)) == list(range(len(sources)))


async def test_the_error_for_an_ipv6_port_in_use_has_the_address_in_brackets() -> None:
    """Address and port can then be distinguished."""
    needs_ipv6()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        event = await run_graph(fed_by(isl_source(IslFeed("::1", port)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"isl feed: cannot listen on tcp://[::1]:{port}: [Errno 98] Address already in use" in event.chain[0]


def test_a_name_with_both_kinds_of_address_means_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any order of the resolver's list: a beacon without IPv6 must be able to connect."""
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    feed = IslFeed("localhost", 0)
    with listener_module._listen(feed, resolve(feed)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


async def test_one_address_cannot_use_all_connections(peers: Peers) -> None:
    """A connection above the limit of its address is rejected and counted; another address is still accepted."""
    sink = CollectSink()
    feed = IslFeed("127.0.0.1", 0, max_connections_per_peer=2)

    async def during(built: BuiltGraph) -> None:
        (first, _), (second, _) = await peers.join(built), await peers.join(built)
        third = peers.connect(await port_of(built))
        assert await third.closed_by_listener()
        await shown(built, "rejected_connections", 1)
        other, _ = await peers.join(built, source="127.0.0.2")
        other.send(message(1))
        second.close()
        await eventually(lambda: len(listener_of(built).connections) == 2, "the second is gone")
        again, _ = await peers.join(built)
        again.send(message(2))
        first.send(message(3))
        await eventually(lambda: len(sink.items) == 3, "a frame of each connected beacon")
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(feed), sink), during=during)
    assert sorted(numbers(sink.items)) == [1, 2, 3]


async def test_the_limit_per_peer_holds_for_ipv6_and_the_log_has_the_address_in_brackets(
    peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    """One connection too many is rejected; IPv4 at the same port is still accepted."""
    needs_ipv6()
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        await peers.join(built, source="::1")
        second = peers.connect(await port_of(built), source="::1")
        assert await second.closed_by_listener()
        await shown(built, "rejected_connections", 1)
        other, _ = await peers.join(built)
        other.send(message(1))
        await eventually(lambda: len(sink.items) == 1, "the connected beacon's frame")
        assert f'"[::1]:{second.sock.getsockname()[1]}"' in caplog.text
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(IslFeed("::", 0, max_connections_per_peer=1)), sink), during=during)
    assert numbers(sink.items) == [1]


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_what_counts_as_one_peer(address: str, counted: str) -> None:
    """An IPv4 address in any notation, or an IPv6 network of 64 bits."""
    assert _origin(address) == counted


@pytest.mark.parametrize("disconnect", [Beacon.close, Beacon.reset])
async def test_a_port_scan_disconnects_no_connections(peers: Peers, disconnect: Callable[[Beacon], None]) -> None:
    """Peers that disconnect at once, orderly or by a reset, are not counted as rejected and do not delay a beacon."""
    sink, letters = CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        good, ours = await peers.join(built)
        port = await port_of(built)
        for _ in range(50):
            disconnect(peers.connect(port))
        good.send(message(1))
        await eventually(lambda: sink.items, "the beacon's frame")
        last, _ = await peers.join(built)  # after the fifty in the kernel's queue
        last.close()
        await eventually(lambda: listener_of(built).connections == {ours}, "the others are gone")
        await shown(built, "connections", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert event.figures.counters["source"]["rejected_connections"] == 0
    assert (event.figures.ledger.ingested, letters.total) == (1, 0)


async def test_two_hundred_beacons_that_connect_at_once_are_all_received(peers: Peers) -> None:
    """Each sends one frame and disconnects: every frame arrives, and no connection is left."""
    sink, count = CollectSink(), 200
    feed = IslFeed("127.0.0.1", 0, max_connections_per_peer=count)

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        beacons = [
            peers.connect(port) for _ in range(count)
        ]  # blocking: the listener has no turn until all are in its queue
        for number, beacon in enumerate(beacons):
            beacon.send(message(number))
        await eventually(lambda: len(sink.items) == count, "a frame of each")
        await shown(built, "connections", count)
        for beacon in beacons:
            beacon.close()
        await shown(built, "connections", 0)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(feed), sink), during=during)
    assert sorted(numbers(sink.items)) == list(range(count))
    assert event.figures.ledger_holds


async def test_the_listener_survives_running_out_of_descriptors(peers: Peers) -> None:
    """A connected beacon is still read; a waiting one is accepted one second after descriptors are free again."""
    clock, sink = ManualClock(), CollectSink()

    async def during(built: BuiltGraph) -> None:
        good, _ = await peers.join(built)
        port = await port_of(built)
        waiting = socket.socket()
        with no_more_descriptors():
            waiting.connect(("127.0.0.1", port))
            await shown(built, "accept_failures", 1)
            good.send(message(1))
            await eventually(lambda: sink.items, "the connected beacon's frame")
            clock.advance(1)
            await shown(built, "accept_failures", 2)
        waiting.sendall(message(2))
        clock.advance(1)
        await eventually(lambda: len(sink.items) == 2, "the waiting beacon's frame")
        assert counter(built, "accept_failures") == 2
        built.request_shutdown("test")
        waiting.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), clock=clock, during=during)
    assert numbers(sink.items) == [1, 2]
    assert not event.figures.restarts
    assert not pending_timers(clock)


async def test_a_listener_that_is_closed_while_it_cannot_accept_disconnects_no_timer(peers: Peers) -> None:
    """The next attempt is cancelled, and the port is closed."""
    clock = ManualClock()
    listener = IslListener(FEED, resolve(FEED), clock, "isl")
    listener.accept()
    waiting = socket.socket()
    with no_more_descriptors():
        waiting.connect(("127.0.0.1", listener.port))
        await eventually(lambda: listener.faults[ConnectionFault.ACCEPT], "an attempt to accept")
    listener.close()
    assert not pending_timers(clock)
    listener.accept()  # as an instance does that is restarted during the drain
    with pytest.raises(ConnectionRefusedError):
        peers.connect(listener.port)
    waiting.close()


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process can open nothing except its standard streams."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_accepted_during_the_close_is_closed(peers: Peers, turns: int) -> None:
    """The connection is closed at any point of its acceptance, and no timer is left."""
    clock = ManualClock()
    listener = IslListener(FEED, resolve(FEED), clock, "isl")
    listener.accept()
    beacon = peers.connect(listener.port)
    for _ in range(turns):
        await asyncio.sleep(0)
    listener.close()
    assert await beacon.closed_by_listener()
    assert not listener.connections
    assert not pending_timers(clock)


async def test_a_peer_that_reconnects_endlessly_costs_one_log_line_a_second(
    peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    """The first fault is logged with address and reason; those of the same second are only counted."""
    clock, expected = ManualClock(), "isl stream: expected a frame length of 72 (at most 4096), got 4294967295"

    async def during(built: BuiltGraph) -> None:
        for _ in range(5):
            beacon, _ = await peers.join(built)
            beacon.send(b"\xff" * 4)
            assert await beacon.closed_by_listener()
        clock.advance(1)
        beacon, _ = await peers.join(built)
        beacon.send(b"\xff" * 4)
        assert await beacon.closed_by_listener()
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(FEED), CollectSink()), clock=clock, during=during)
    logged = [event_of(line.getMessage()) for line in caplog.records if "isl_fault" in line.getMessage()]
    lines = [{name: line[name] for name in line if name != "peer"} for line in logged]
    assert [line["peer"].split(":")[0] for line in logged] == ["127.0.0.1"] * 2
    assert lines == [
        {
            "event": "isl_fault",
            "operator": "source",
            "kind": "closed_framing_lost",
            "message": expected,
            "not_logged_since_last": suppressed,
        }
        for suppressed in (0, 4)
    ]


def test_all_problems_of_a_feed_are_reported_together() -> None:
    """One error names each invalid field, its bound and its value."""
    with pytest.raises(ValueError, match="IslFeed") as raised:
        IslFeed(
            "127.0.0.1",
            -1,
            max_connections=0,
            max_connections_per_peer=0,
            inbox_frames=0,
            frame_deadline=timedelta(0),
            silence_deadline=timedelta(seconds=-1),
            max_frame_bytes=71,
            max_malformed_frames=-1,
        )
    assert str(raised.value).split("; ") == [
        "IslFeed: port must be 0 to 65535, got -1",
        "IslFeed: max_connections must be >= 1, got 0",
        "IslFeed: max_connections_per_peer must be >= 1, got 0",
        "IslFeed: inbox_frames must be >= 1, got 0",
        "IslFeed: frame_deadline must be > 0, got datetime.timedelta(0)",
        "IslFeed: silence_deadline must be > 0, got datetime.timedelta(days=-1, seconds=86399)",
        "IslFeed: max_frame_bytes must be >= 72, got 71",
        "IslFeed: max_malformed_frames must be >= 0, got -1",
    ]
