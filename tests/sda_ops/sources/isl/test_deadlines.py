"""Frame and silence deadlines of a connection, on a manual clock."""

from __future__ import annotations

import socket

from orchestrator_adapter import BuiltGraph, DeadLetterList
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.sources.isl import IslFeed, isl_source
from tests.helpers.running import Fault, GatedSink, counter, eventually, fed_by, port_of
from tests.sda_ops.sources.isl.beacons import (
    FEED,
    Peers,
    listener_of,
    message,
    messages,
    numbers,
    pending_timers,
    received_part,
    shown,
)


async def test_single_bytes_do_not_extend_the_frame_deadline(peers: Peers) -> None:
    """The connection is closed 30 s after the frame's first byte, its bytes are kept, and another beacon continues."""
    clock, sink, letters = ManualClock(), CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (good, _) = await peers.join(built), await peers.join(built)
        slow.send(message(1)[:1])
        await received_part(ours, 1)
        clock.advance(29)
        slow.send(message(1)[1:2])
        await received_part(ours, 2)
        clock.advance(0.9)
        assert ours in listener_of(built).connections
        clock.advance(0.1)
        assert await slow.closed_by_listener()
        good.send(message(2))
        await eventually(lambda: sink.items, "the other beacon's frame")
        await shown(built, "closed_slow", 1)
        assert counter(built, "connections") == 1
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), clock=clock, dead_letters=letters, during=during)
    assert numbers(sink.items) == [2]
    assert [(letter.payload, letter.message) for letter in letters.letters] == [
        (message(1)[:2], "isl stream: expected a whole frame within 30 s, got 2 bytes of it")
    ]
    assert event.figures.ledger.ingested == 2
    assert event.figures.ledger_holds


async def test_each_frame_has_a_deadline_of_its_own(peers: Peers) -> None:
    """A beacon that always has an incomplete frame, but completes each one in time, stays connected."""
    clock, sink = ManualClock(), CollectSink()

    async def during(built: BuiltGraph) -> None:
        beacon, ours = await peers.join(built)
        beacon.send(message(1)[:40])
        await received_part(ours, 40)
        clock.advance(20)
        beacon.send(message(1)[40:] + message(2)[:50])
        await received_part(ours, 50)
        clock.advance(20)
        beacon.send(message(2)[50:] + message(3)[:60])
        await received_part(ours, 60)
        clock.advance(20)
        beacon.send(message(3)[60:])
        await eventually(lambda: len(sink.items) == 3, "three frames")
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), clock=clock, during=during)
    assert numbers(sink.items) == [1, 2, 3]
    assert event.figures.counters["source"]["closed_slow"] == 0


async def test_a_silent_connection_is_closed_and_an_active_one_is_not(peers: Peers) -> None:
    """It is closed five minutes after its last byte, to the second, and nothing is dead-lettered."""
    clock, sink, letters = ManualClock(), CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (silent, _), (good, ours) = await peers.join(built), await peers.join(built)
        clock.advance(299)
        good.send(message(1))
        await eventually(lambda: sink.items, "a frame just in time")
        clock.advance(1)
        assert await silent.closed_by_listener()
        await shown(built, "closed_silent", 1)
        assert listener_of(built).connections == {ours}
        clock.advance(298)
        assert listener_of(built).connections == {ours}
        clock.advance(1)
        assert await good.closed_by_listener()
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), clock=clock, dead_letters=letters, during=during)
    assert event.figures.counters["source"]["closed_silent"] == 2
    assert not letters.total


async def test_deadlines_stand_still_while_connections_are_not_read(peers: Peers) -> None:
    """Hours with a full inbox close no connection; afterwards a frame has the rest of its time."""
    clock, sink, letters = ManualClock(), GatedSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (flood, _) = await peers.join(built), await peers.join(built)
        slow.send(message(1)[:40])
        await received_part(ours, 40)
        clock.advance(20)
        flood.send(messages(*range(100, 600)))
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "the inbox is full")
        clock.advance(7_200)
        assert len(listener.connections) == 2
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 500, "the flood has passed")
        clock.advance(9.9)
        assert ours in listener.connections
        clock.advance(0.1)
        assert await slow.closed_by_listener()
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert [letter.payload for letter in letters.letters] == [message(1)[:40]]
    assert event.figures.ledger_holds


async def test_a_connection_made_during_a_pause_is_not_read_and_has_its_full_time_afterwards(
    peers: Peers,
) -> None:
    """It adds nothing to a full inbox, and the rest of the pause does not count as silence."""
    clock, sink = ManualClock(), GatedSink()

    async def during(built: BuiltGraph) -> None:
        flood, _ = await peers.join(built)
        flood.send(messages(*range(500)))
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "the inbox is full")
        clock.advance(1_000)
        inbox_size = len(listener.inbox)
        beacon, late = await peers.join(built)
        beacon.send(message(500))
        await settle()
        assert len(listener.inbox) == inbox_size
        clock.advance(1_000)
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 501, "the flood and one more frame have passed")
        clock.advance(299)
        assert late in listener.connections
        clock.advance(1)
        assert late not in listener.connections
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    await run_graph(graph, clock=clock, during=during)


async def test_a_deadline_just_after_its_timer_is_checked_a_millisecond_later(peers: Peers) -> None:
    """After a pause whose length is not exact as a float, the check neither repeats endlessly nor is lost."""
    clock, sink = ManualClock(), GatedSink()
    clock.advance(4.6)

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (flood, _) = await peers.join(built), await peers.join(built)
        slow.send(message(1)[:40])
        await received_part(ours, 40)
        flood.send(messages(*range(500)))
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "the inbox is full")
        clock.advance(433_334.3)
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 500, "the flood has passed")
        clock.advance(30)
        assert 0 < ours.next_deadline()[0] - listener.reading_s < 1e-9  # the case that this test needs
        clock.advance(0.001)
        assert ours not in listener.connections
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    await run_graph(graph, clock=clock, during=during)


async def test_the_deadline_timer_exists_only_while_a_beacon_is_connected(peers: Peers) -> None:
    """It ends with the last connection, also where the run ends before the beacon does."""
    clock = ManualClock()

    async def during(built: BuiltGraph) -> None:
        await port_of(built)
        before = pending_timers(clock)
        beacon, _ = await peers.join(built)
        await shown(built, "connections", 1)
        assert pending_timers(clock) == before + 1
        beacon.close()
        await eventually(lambda: not listener_of(built).connections, "the beacon is gone")
        assert pending_timers(clock) == before
        await peers.join(built)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), CollectSink()), clock=clock, during=during)
    assert event.figures.counters["source"]["connections"] == 0
    assert not pending_timers(clock)


async def test_half_open_connections_are_probed(peers: Peers) -> None:
    """The kernel probes an idle peer after one minute and gives up after another, before the silence deadline."""

    async def during(built: BuiltGraph) -> None:
        _, ours = await peers.join(built)
        sock = ours._socket
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle_s, between_s, probes = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert (idle_s, idle_s + between_s * probes) == (60, 120)
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(FEED), CollectSink()), during=during)


async def test_fault_counts_continue_across_a_restart(peers: Peers) -> None:
    """A restart does not reset them, and deadlines continue to run during it."""
    clock = ManualClock()
    source = Fault(isl_source(FEED))

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (silent, _) = await peers.join(built), await peers.join(built)
        slow.send(b"x")
        await received_part(ours, 1)
        clock.advance(30)
        await shown(built, "closed_slow", 1)
        source.strike()
        await eventually(lambda: built.status().restarts == 1, "the fault")
        clock.advance(270)
        assert await silent.closed_by_listener()
        await eventually(lambda: source.instances == 2, "the restart")
        await shown(built, "closed_silent", 1)
        assert counter(built, "closed_slow") == 1
        built.request_shutdown("test")

    await run_graph(fed_by(source, CollectSink()), clock=clock, during=during)
