"""What a peer of the ISL listener may cost the others: nothing. Real sockets; deadlines on a clock that stands still."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import BuiltGraph, DeadLetterList
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.sources.isl.source import BeaconConnection, ConnectionFault, IslFeed, IslListener, _origin, isl_source
from tests.helpers.running import Fault, GatedSink, counter, eventually, fed_by, port_of
from tests.sda_ops.sources.isl.test_source import (
    FEED,
    ONE_READ,
    Beacon,
    listener_of,
    message,
    messages,
    needs_ipv6,
    numbers,
)

EMPTY_FRAME = struct.pack("<I", 0)


class Crowd:
    """Beacons, all of them closed when the test is over."""

    def __init__(self) -> None:
        self._beacons: list[Beacon] = []

    def knock(self, port: int, *, source: str = "127.0.0.1") -> Beacon:
        """A new beacon, connected as far as its own kernel is concerned."""
        self._beacons.append(Beacon(port, source=source))
        return self._beacons[-1]

    async def join(self, built: BuiltGraph, *, source: str = "127.0.0.1") -> tuple[Beacon, BeaconConnection]:
        """A new beacon that has been let in, and our end of it."""
        port = await port_of(built)
        beacon, listener = self.knock(port, source=source), listener_of(built)
        await eventually(lambda: _ours(listener, beacon), "the connection is accepted")
        connection = _ours(listener, beacon)
        assert connection is not None
        return beacon, connection

    def close(self) -> None:
        for beacon in self._beacons:
            beacon.close()


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    """Whatever it does, nothing may be raised where nobody but the loop would hear of it."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    crowd = Crowd()
    yield crowd
    crowd.close()
    assert not unheard


def _ours(listener: IslListener, beacon: Beacon) -> BeaconConnection | None:
    address, port = beacon.sock.getsockname()[:2]
    named = f"{address}:{port}"  # where we listen on both kinds, an IPv4 address is the end of an IPv6 one
    return next((known for known in listener.connections if known.peer.replace("]", "").endswith(named)), None)


async def heard(connection: BeaconConnection, torn_bytes: int) -> None:
    """Wait until it holds so many bytes of an incomplete frame."""
    await eventually(lambda: connection._assembler.pending_bytes == torn_bytes, f"{torn_bytes} bytes of a frame")


async def shown(built: BuiltGraph, name: str, value: int) -> None:
    """Wait until the source shows ``value`` under ``name``."""
    await eventually(lambda: counter(built, name) == value, f"{name} is {value}, and not {counter(built, name)}")


def pending_timers(clock: ManualClock) -> int:
    return len(clock.pending_timers)


async def test_a_byte_now_and_then_does_not_put_off_the_frame_deadline(crowd: Crowd) -> None:
    """The peer is hung up on 30 s after its frame's first byte, its bytes are kept, and another beacon goes on."""
    clock, sink, letters = ManualClock(), CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (good, _) = await crowd.join(built), await crowd.join(built)
        slow.send(message(1)[:1])
        await heard(ours, 1)
        clock.advance(29)
        slow.send(message(1)[1:2])
        await heard(ours, 2)
        clock.advance(0.9)
        assert ours in listener_of(built).connections
        clock.advance(0.1)
        assert await slow.hung_up_on()
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


async def test_each_frame_has_a_deadline_of_its_own(crowd: Crowd) -> None:
    """A beacon that has never a moment without an incomplete frame, but ends each in time, is not hung up on."""
    clock, sink = ManualClock(), CollectSink()

    async def during(built: BuiltGraph) -> None:
        beacon, ours = await crowd.join(built)
        beacon.send(message(1)[:40])
        await heard(ours, 40)
        clock.advance(20)
        beacon.send(message(1)[40:] + message(2)[:50])
        await heard(ours, 50)
        clock.advance(20)
        beacon.send(message(2)[50:] + message(3)[:60])
        await heard(ours, 60)
        clock.advance(20)
        beacon.send(message(3)[60:])
        await eventually(lambda: len(sink.items) == 3, "three frames")
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), clock=clock, during=during)
    assert numbers(sink.items) == [1, 2, 3]
    assert event.figures.counters["source"]["closed_slow"] == 0


async def test_a_silent_peer_is_hung_up_on_and_one_that_speaks_is_not(crowd: Crowd) -> None:
    """Five minutes after its last byte, to the second; nothing is dead-lettered for it."""
    clock, sink, letters = ManualClock(), CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (silent, _), (good, ours) = await crowd.join(built), await crowd.join(built)
        clock.advance(299)
        good.send(message(1))
        await eventually(lambda: sink.items, "a frame just in time")
        clock.advance(1)
        assert await silent.hung_up_on()
        await shown(built, "closed_silent", 1)
        assert listener_of(built).connections == {ours}
        clock.advance(298)
        assert listener_of(built).connections == {ours}
        clock.advance(1)
        assert await good.hung_up_on()
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), clock=clock, dead_letters=letters, during=during)
    assert event.figures.counters["source"]["closed_silent"] == 2
    assert not letters.total


async def test_deadlines_stand_still_while_we_do_not_read(crowd: Crowd) -> None:
    """Hours with a full inbox cost nobody the connection; afterwards a frame has what was left of its time before."""
    clock, sink, letters = ManualClock(), GatedSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (flood, _) = await crowd.join(built), await crowd.join(built)
        slow.send(message(1)[:40])
        await heard(ours, 40)
        clock.advance(20)
        flood.send(messages(*range(100, 600)))
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "the inbox is full")
        clock.advance(7_200)
        assert len(listener.connections) == 2
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 500, "the flood has run off")
        clock.advance(9.9)
        assert ours in listener.connections
        clock.advance(0.1)
        assert await slow.hung_up_on()
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert [letter.payload for letter in letters.letters] == [message(1)[:40]]
    assert event.figures.ledger_holds


async def test_a_peer_that_connects_while_we_do_not_read_is_not_read_and_has_all_its_time_before_it(
    crowd: Crowd,
) -> None:
    """New connections bring nothing into a full inbox, and the pause that they were born into is no silence of theirs."""
    clock, sink = ManualClock(), GatedSink()

    async def during(built: BuiltGraph) -> None:
        flood, _ = await crowd.join(built)
        flood.send(messages(*range(500)))
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "the inbox is full")
        clock.advance(1_000)
        held = len(listener.inbox)
        beacon, late = await crowd.join(built)
        beacon.send(message(500))
        await settle()
        assert len(listener.inbox) == held
        clock.advance(1_000)
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 501, "the flood has run off, and one more")
        clock.advance(299)
        assert late in listener.connections
        clock.advance(1)
        assert late not in listener.connections
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    await run_graph(graph, clock=clock, during=during)


async def test_a_deadline_that_rounding_puts_off_by_a_hair_is_kept_a_millisecond_late(crowd: Crowd) -> None:
    """After a pause whose length no float holds exactly, time neither stands still at the deadline nor passes it by."""
    clock, sink = ManualClock(), GatedSink()
    clock.advance(4.6)

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (flood, _) = await crowd.join(built), await crowd.join(built)
        slow.send(message(1)[:40])
        await heard(ours, 40)
        flood.send(messages(*range(500)))
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "the inbox is full")
        clock.advance(433_334.3)
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 500, "the flood has run off")
        clock.advance(30)
        assert 0 < ours.due()[0] - listener.reading_s < 1e-9  # else the numbers are not what this test needs
        clock.advance(0.001)
        assert ours not in listener.connections
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    await run_graph(graph, clock=clock, during=during)


async def test_no_timer_is_left_without_a_connection_or_after_the_run(crowd: Crowd) -> None:
    """The deadlines' timer is there while a beacon is, and only then, also where the run ends before the beacon does."""
    clock = ManualClock()

    async def during(built: BuiltGraph) -> None:
        await port_of(built)
        before = pending_timers(clock)
        beacon, _ = await crowd.join(built)
        await shown(built, "connections", 1)
        assert pending_timers(clock) == before + 1
        beacon.close()
        await eventually(lambda: not listener_of(built).connections, "the beacon is gone")
        assert pending_timers(clock) == before
        await crowd.join(built)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), CollectSink()), clock=clock, during=during)
    assert event.figures.counters["source"]["connections"] == 0
    assert not pending_timers(clock)


async def test_a_malformed_frame_too_many_ends_the_connection(crowd: Crowd) -> None:
    """Of a read full of empty frames, the limit and one more are dead letters of their own, the rest is one together."""
    sink, letters, count = CollectSink(), DeadLetterList(), 4_000
    feed = IslFeed("127.0.0.1", 0, max_malformed_frames=3)

    async def during(built: BuiltGraph) -> None:
        (bad, ours), (good, _) = await crowd.join(built), await crowd.join(built)
        bad.send(message(1)[:40])
        await heard(ours, 40)
        bad.send(message(1)[40:] + EMPTY_FRAME * count + message(2)[:10])
        assert await bad.hung_up_on()
        good.send(message(3))
        await eventually(lambda: len(sink.items) == 2, "the good ones")
        await shown(built, "closed_malformed", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(feed), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1, 3]
    assert [letter.payload for letter in letters.letters[:4]] == [b""] * 4
    assert [letter.payload for letter in letters.letters[4:]] == [EMPTY_FRAME * (count - 4) + message(2)[:10]]
    assert event.figures.ledger.ingested == 7
    assert event.figures.ledger_holds


async def test_as_many_malformed_frames_as_allowed_end_nothing(crowd: Crowd) -> None:
    """The limit itself is within it, however the frames are spread over reads, and a new connection starts at none."""
    sink, letters = CollectSink(), DeadLetterList()
    feed = IslFeed("127.0.0.1", 0, max_malformed_frames=3)

    async def during(built: BuiltGraph) -> None:
        (first, _), (second, _) = await crowd.join(built), await crowd.join(built)
        first.send(EMPTY_FRAME * 2 + message(1))
        await eventually(lambda: len(sink.items) == 1, "the first")
        first.send(EMPTY_FRAME + message(2))
        second.send(EMPTY_FRAME * 3 + message(3))
        await eventually(lambda: len(sink.items) == 3, "all good ones")
        assert len(listener_of(built).connections) == 2
        first.send(EMPTY_FRAME)
        assert await first.hung_up_on()
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(feed), sink), dead_letters=letters, during=during)
    assert letters.total == 7


async def test_a_frame_longer_than_allowed_ends_the_connection_before_it_comes(crowd: Crowd) -> None:
    """Its announcement is enough; one of just the allowed length is skipped, and the stream goes on."""
    sink, letters = CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        beacon, _ = await crowd.join(built)
        beacon.send(struct.pack("<I", 4_096) + bytes(4_096) + message(1) + struct.pack("<I", 4_097))
        assert await beacon.hung_up_on()
        await shown(built, "closed_framing_lost", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1]
    assert [letter.payload for letter in letters.letters] == [bytes(4_096), struct.pack("<I", 4_097)]
    assert event.figures.ledger_holds


async def test_one_address_cannot_take_all_places(crowd: Crowd) -> None:
    """A connection too many of one address is turned away and counted; another address still gets in."""
    sink = CollectSink()
    feed = IslFeed("127.0.0.1", 0, max_connections_per_peer=2)

    async def during(built: BuiltGraph) -> None:
        (first, _), (second, _) = await crowd.join(built), await crowd.join(built)
        third = crowd.knock(await port_of(built))
        assert await third.hung_up_on()
        await shown(built, "rejected_connections", 1)
        other, _ = await crowd.join(built, source="127.0.0.2")
        other.send(message(1))
        second.close()
        await eventually(lambda: len(listener_of(built).connections) == 2, "the second is gone")
        again, _ = await crowd.join(built)
        again.send(message(2))
        first.send(message(3))
        await eventually(lambda: len(sink.items) == 3, "all who are in")
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(feed), sink), during=during)
    assert sorted(numbers(sink.items)) == [1, 2, 3]


async def test_an_ipv6_peer_is_limited_too_and_named_as_one(crowd: Crowd, caplog: pytest.LogCaptureFixture) -> None:
    """One connection too many is turned away, its address in brackets in the log; IPv4 at the same port still gets in."""
    needs_ipv6()
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        await crowd.join(built, source="::1")
        second = crowd.knock(await port_of(built), source="::1")
        assert await second.hung_up_on()
        await shown(built, "rejected_connections", 1)
        other, _ = await crowd.join(built)
        other.send(message(1))
        await eventually(lambda: len(sink.items) == 1, "who is in")
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
    """An IPv4 address, however it is written, or an IPv6 network of 64 bits."""
    assert _origin(address) == counted


async def test_half_open_connections_are_probed(crowd: Crowd) -> None:
    """The kernel probes an idle peer after a minute, and gives it up after another: long before the silence deadline."""

    async def during(built: BuiltGraph) -> None:
        _, ours = await crowd.join(built)
        sock = ours._socket
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle_s, between_s, probes = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert (idle_s, idle_s + between_s * probes) == (60, 120)
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(FEED), CollectSink()), during=during)


async def test_a_reset_in_the_middle_of_a_frame_costs_that_frame_only(crowd: Crowd) -> None:
    """What came of it is kept, as after an orderly end; another beacon goes on."""
    sink, letters = CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (rude, ours), (good, _) = await crowd.join(built), await crowd.join(built)
        rude.send(message(1) + message(2)[:40])
        await heard(ours, 40)
        rude.reset()
        await eventually(lambda: letters.total, "the torn frame")
        good.send(message(3))
        await eventually(lambda: len(sink.items) == 2, "both whole frames")
        await shown(built, "connections", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1, 3]
    assert [letter.payload for letter in letters.letters] == [message(2)[:40]]
    assert event.figures.ledger_holds


@pytest.mark.parametrize("leave", [Beacon.close, Beacon.reset])
async def test_a_port_scan_leaves_nothing_behind(crowd: Crowd, leave: Callable[[Beacon], None]) -> None:
    """Peers that leave as soon as they have come, orderly or not, are neither counted nor kept, nor in anyone's way."""
    sink, letters = CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        good, ours = await crowd.join(built)
        port = await port_of(built)
        for _ in range(50):
            leave(crowd.knock(port))
        good.send(message(1))
        await eventually(lambda: sink.items, "the beacon's frame")
        last, _ = await crowd.join(built)  # behind the fifty in the kernel's queue
        last.close()
        await eventually(lambda: listener_of(built).connections == {ours}, "the others are gone")
        await shown(built, "connections", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert event.figures.counters["source"]["rejected_connections"] == 0
    assert (event.figures.ledger.ingested, letters.total) == (1, 0)


async def test_two_hundred_beacons_at_once_all_get_in_and_leave_nothing_behind(crowd: Crowd) -> None:
    """They connect in the same instant, each sends a frame and leaves: every frame is there, no connection is."""
    sink, count = CollectSink(), 200
    feed = IslFeed("127.0.0.1", 0, max_connections_per_peer=count)

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        beacons = [
            crowd.knock(port) for _ in range(count)
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


async def test_a_flood_does_not_starve_the_others(crowd: Crowd) -> None:
    """Forty beacons that have sent one frame each are heard within three reads of each peer that never pauses."""
    sink, flooding, beacons = GatedSink(), 2, 40
    flood = messages(*range(1_000, 31_000))

    async def during(built: BuiltGraph) -> None:
        floods = [(await crowd.join(built))[0] for _ in range(flooding)]
        listener = listener_of(built)
        sending = [asyncio.create_task(asyncio.to_thread(peer.send, flood)) for peer in floods]
        await eventually(lambda: listener.paused, "the inbox is full")
        for number in range(beacons):
            (await crowd.join(built))[0].send(message(number))
        sink.gate.set()
        await asyncio.gather(*sending)
        await eventually(lambda: len(sink.items) == flooding * 30_000 + beacons, "all of them")
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    event = await run_graph(graph, during=during)
    places = [place for place, number in enumerate(numbers(sink.items)) if number < beacons]
    # Before them: what the graph held already, what filled the inbox, and what is read in the same turn as they are.
    assert max(places) <= 3 * flooding * ONE_READ + beacons
    assert event.figures.ledger_holds


async def test_without_descriptors_the_listener_lives_on(crowd: Crowd) -> None:
    """A connected beacon is read all the while; the one that waits gets in a second after there are some again."""
    clock, sink = ManualClock(), CollectSink()

    async def during(built: BuiltGraph) -> None:
        good, _ = await crowd.join(built)
        port = await port_of(built)
        waiting = socket.socket()
        with no_more_descriptors():
            waiting.connect(("127.0.0.1", port))
            await shown(built, "accept_failures", 1)
            good.send(message(1))
            await eventually(lambda: sink.items, "the connected one's frame")
            clock.advance(1)
            await shown(built, "accept_failures", 2)
        waiting.sendall(message(2))
        clock.advance(1)
        await eventually(lambda: len(sink.items) == 2, "the frame of the one that waited")
        assert counter(built, "accept_failures") == 2
        built.request_shutdown("test")
        waiting.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), clock=clock, during=during)
    assert numbers(sink.items) == [1, 2]
    assert not event.figures.restarts
    assert not pending_timers(clock)


async def test_a_listener_that_is_closed_while_it_cannot_accept_leaves_no_timer(crowd: Crowd) -> None:
    """The next attempt is called off, and nobody listens any more."""
    clock = ManualClock()
    listener = IslListener(FEED, clock, "isl")
    listener.open()
    waiting = socket.socket()
    with no_more_descriptors():
        waiting.connect(("127.0.0.1", listener.port))
        await eventually(lambda: listener.faults[ConnectionFault.ACCEPT], "an attempt to accept")
    listener.close()
    assert not pending_timers(clock)
    listener.open()  # as an instance would that is restarted during the drain
    with pytest.raises(ConnectionRefusedError):
        crowd.knock(listener.port)
    waiting.close()


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process can open nothing beyond its standard streams."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_comes_with_the_close_does_not_survive_it(crowd: Crowd, turns: int) -> None:
    """However far its acceptance has come when the listener closes, it is hung up on, and no timer is left."""
    clock = ManualClock()
    listener = IslListener(FEED, clock, "isl")
    listener.open()
    beacon = crowd.knock(listener.port)
    for _ in range(turns):
        await asyncio.sleep(0)
    listener.close()
    assert await beacon.hung_up_on()
    assert not listener.connections
    assert not pending_timers(clock)


async def test_counts_outlive_the_instance(crowd: Crowd) -> None:
    """A restart in between does not set them back, and deadlines run on through it."""
    clock = ManualClock()
    source = Fault(isl_source(FEED))

    async def during(built: BuiltGraph) -> None:
        (slow, ours), (silent, _) = await crowd.join(built), await crowd.join(built)
        slow.send(b"x")
        await heard(ours, 1)
        clock.advance(30)
        await shown(built, "closed_slow", 1)
        source.strike()
        await eventually(lambda: built.status().restarts == 1, "the fault")
        clock.advance(270)
        assert await silent.hung_up_on()
        await eventually(lambda: source.instances == 2, "the restart")
        await shown(built, "closed_silent", 1)
        assert counter(built, "closed_slow") == 1
        built.request_shutdown("test")

    await run_graph(fed_by(source, CollectSink()), clock=clock, during=during)


async def test_a_peer_that_comes_back_for_ever_costs_a_line_a_second(
    crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is told with its address and reason; those of the same second are only counted."""
    clock, expected = ManualClock(), "isl stream: expected a frame length of 72 (at most 4096), got 4294967295"

    async def during(built: BuiltGraph) -> None:
        for _ in range(5):
            beacon, _ = await crowd.join(built)
            beacon.send(b"\xff" * 4)
            assert await beacon.hung_up_on()
        clock.advance(1)
        beacon, _ = await crowd.join(built)
        beacon.send(b"\xff" * 4)
        assert await beacon.hung_up_on()
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(FEED), CollectSink()), clock=clock, during=during)
    told = [json.loads(line.getMessage()) for line in caplog.records if "isl_fault" in line.getMessage()]
    lines = [{name: line[name] for name in line if name != "peer"} for line in told]
    assert [line["peer"].split(":")[0] for line in told] == ["127.0.0.1"] * 2
    assert lines == [
        {
            "event": "isl_fault",
            "operator": "source",
            "kind": "closed_framing_lost",
            "message": expected,
            "not_logged_since_last": left_out,
        }
        for left_out in (0, 4)
    ]


def test_all_problems_of_a_feed_are_told_together() -> None:
    """One error names each field that cannot be, what it must be and what it is."""
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
