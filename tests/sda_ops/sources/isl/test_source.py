from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest

from orchestrator_adapter import BuiltGraph, DeadLetterKind, DeadLetterList
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import CollectSink, run_graph, settle
from sda_ops.records.observation import Observation
from sda_ops.sources.isl import source as isl_module
from sda_ops.sources.isl.source import IslFeed, IslListener, isl_source
from sda_ops.wire import isl
from tests.helpers.running import NOON_NS, FailingStore, Fault, GatedSink, counter, eventually, fed_by, port_of

FEED = IslFeed("127.0.0.1", 0)
ONE_READ = 16 * 1024 // 76 + 1  # frames in what is read of a connection at a time, at most


def message(number: int, satellite: int = 1) -> bytes:
    return isl.encode(
        satellite_id=satellite,
        sequence=number,
        timestamp_ns=NOON_NS + number,
        position_m=(7e6, 0.0, 0.0),
        velocity_m_s=(0.0, 7.5e3, 0.0),
        sigma_position_m=1.0,
        sigma_velocity_m_s=0.1,
    )


def messages(*numbers: int) -> bytes:
    return b"".join(map(message, numbers))


def numbers(items: Sequence[Observation]) -> list[int]:
    return [item.sensor_timestamp - NOON_NS for item in items]


class Beacon:
    """A connected beacon with a blocking socket: what it has sent is in the kernel when ``send`` returns."""

    def __init__(self, port: int, *, source: str = "127.0.0.1") -> None:
        to = "::1" if ":" in source else "127.0.0.1"
        self.sock = socket.create_connection((to, port), timeout=60, source_address=(source, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    async def hung_up_on(self) -> bool:
        """Whether the other side closed the connection; waits for it."""
        self.sock.settimeout(0)
        with suppress(ConnectionError):
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 1), 60) == b""
        return True

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close without the courtesies: the other side sees a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def needs_ipv6() -> None:
    """Skip the test where there is none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")


def listener_of(built: BuiltGraph) -> IslListener:
    listener: IslListener = built._slots["source"].ends._kept["listener"][0]
    return listener


@pytest.mark.parametrize("size", [1, 3, 75, 76, 77, 1000])
async def test_frames_survive_any_chopping(size: int) -> None:
    """However the stream is cut into segments, the same frames come out, in order."""
    sink = CollectSink()
    stream = messages(*range(12))

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        for start in range(0, len(stream), size):
            beacon.send(stream[start : start + size])
            await asyncio.sleep(0)
        await eventually(lambda: len(sink.items) == 12, "twelve frames")
        built.request_shutdown("test")
        assert await beacon.hung_up_on()
        beacon.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), during=during)
    assert numbers(sink.items) == list(range(12))
    assert (event.figures.ledger.ingested, event.figures.ledger.written) == (12, 12)
    assert event.figures.ledger_holds


async def test_a_frame_of_a_wrong_length_is_skipped_whole() -> None:
    """It is dead-lettered with its bytes, and the frames around it get through on the same connection."""
    sink, letters = CollectSink(), DeadLetterList()
    odd = b"\x05" * 70

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(message(1) + struct.pack("<I", 70) + odd + struct.pack("<I", 0) + message(2))
        await eventually(lambda: len(sink.items) == 2, "the good ones")
        built.request_shutdown("test")
        beacon.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1, 2]
    assert [letter.payload for letter in letters.letters] == [odd, b""]
    assert letters.letters[0].kind is DeadLetterKind.DESERIALIZATION
    assert letters.letters[0].message == "isl frame: expected 72 bytes, got 70"
    assert event.figures.counters["source"]["decode_errors"] == 2
    assert not event.figures.restarts


async def test_lost_framing_costs_only_that_peer() -> None:
    """The peer is hung up on and its nonsense kept; another beacon's connection goes on as if nothing had happened."""
    sink, letters = CollectSink(), DeadLetterList()
    nonsense = b"GET / HTTP/1.1\r\n\r\n"

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        good, bad = Beacon(port), Beacon(port)
        good.send(message(1)[:30])
        bad.send(message(2) + nonsense)
        assert await bad.hung_up_on()
        good.send(message(1)[30:] + message(3))
        await eventually(lambda: len(sink.items) == 3, "three frames")
        assert len(listener_of(built).connections) == 1
        built.request_shutdown("test")
        good.close()
        bad.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [2, 1, 3]
    assert [letter.payload for letter in letters.letters] == [nonsense]
    assert event.figures.ledger.ingested == 4
    assert event.figures.ledger_holds


async def test_a_connection_too_many_is_turned_away_and_counted() -> None:
    """The limit holds, the connected beacon does not notice, and a place that becomes free is given again."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        first = Beacon(port)
        first.send(message(1))
        await eventually(lambda: len(sink.items) == 1, "the first beacon is in")
        second = Beacon(port)
        assert await second.hung_up_on()
        first.send(message(2))
        await eventually(lambda: len(sink.items) == 2, "the first goes on")
        assert counter(built, "rejected_connections") == 1
        first.close()
        await eventually(lambda: not listener_of(built).connections, "the first is gone")
        third = Beacon(port)
        third.send(message(3))
        await eventually(lambda: len(sink.items) == 3, "the third is in")
        built.request_shutdown("test")
        second.close()
        third.close()

    await run_graph(fed_by(isl_source(IslFeed("127.0.0.1", 0, max_connections=1)), sink), during=during)
    assert numbers(sink.items) == [1, 2, 3]


async def test_a_full_inbox_stops_the_reading_and_an_emptied_one_resumes_it() -> None:
    """While the sink is stuck no more than a read beyond the limit is held; then everything arrives, in order."""
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
        await eventually(lambda: len(sink.items) == count, "all of them")
        await sending
        assert not listener.paused
        built.request_shutdown("test")
        writer.close()

    feed = IslFeed("127.0.0.1", 0, inbox_frames=8)
    event = await run_graph(fed_by(isl_source(feed), sink, capacity=4), during=during)
    assert numbers(sink.items) == list(range(count))
    assert event.figures.ledger_holds


async def test_a_frame_torn_by_a_disconnect_is_kept() -> None:
    """The bytes that came of it are dead-lettered, its length prefix included."""
    sink, letters = CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(message(1) + message(2)[:40])
        beacon.close()
        await eventually(lambda: letters.total, "the torn frame")
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1]
    assert [letter.payload for letter in letters.letters] == [message(2)[:40]]
    assert letters.letters[0].message == "isl stream: the connection ended within a frame, after 40 bytes of it"
    assert event.figures.ledger_holds


async def test_a_restart_keeps_port_connections_and_half_a_frame() -> None:
    """A frame whose first half came before the fault and the second after it is whole."""
    sink = CollectSink()
    source = Fault(isl_source(FEED))

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        beacon = Beacon(port)
        beacon.send(message(1) + message(2)[:20])
        await eventually(lambda: len(sink.items) == 1, "the first")
        source.strike()
        await eventually(lambda: source.instances == 2, "the restart")
        beacon.send(message(2)[20:])
        late = Beacon(port)
        late.send(message(3))
        await eventually(lambda: len(sink.items) == 3, "the others")
        assert counter(built, "port") == port
        built.request_shutdown("test")
        beacon.close()
        late.close()

    event = await run_graph(fed_by(source, sink), during=during)
    assert sorted(numbers(sink.items)) == [1, 2, 3]
    assert event.figures.restarts["source"].total == 1
    assert event.figures.ledger_holds


async def test_a_restart_in_the_middle_of_a_full_inbox_loses_and_repeats_nothing() -> None:
    """The fault strikes while the source waits for the graph; every frame arrives exactly once, in order."""
    sink, count = GatedSink(), 2_000
    source = Fault(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=16)))

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(messages(*range(count)))
        listener = listener_of(built)
        await eventually(lambda: listener.full, "the inbox is full")
        source.strike()
        await eventually(lambda: built.status().restarts == 1, "the fault")
        sink.gate.set()
        await eventually(lambda: len(sink.items) == count, "all of them")
        built.request_shutdown("test")
        beacon.close()

    event = await run_graph(fed_by(source, sink, capacity=4), during=during)
    assert numbers(sink.items) == list(range(count))
    assert (event.figures.ledger.ingested, event.figures.ledger.repeated) == (count, 0)


async def test_a_port_that_is_taken_is_named_and_brings_the_run_down() -> None:
    """BudgetExhausted after five restarts, with the address in its cause."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        event = await run_graph(fed_by(isl_source(IslFeed("127.0.0.1", port)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"isl feed: cannot listen on tcp://127.0.0.1:{port}: [Errno 98] Address already in use" in event.chain[0]
    assert event.figures.restarts["source"].total == 5


async def test_what_the_kernel_holds_at_shutdown_is_still_taken_in() -> None:
    """Bytes that were sent before the stop was asked for arrive; afterwards nobody listens there."""
    sink = CollectSink()
    ports: list[int] = []

    async def during(built: BuiltGraph) -> None:
        ports.append(await port_of(built))
        beacon = Beacon(ports[0])
        beacon.send(message(0))
        await eventually(lambda: len(sink.items) == 1, "the connection is accepted")
        beacon.send(messages(*range(1, 1_000)))
        built.request_shutdown("test")
        assert await beacon.hung_up_on()
        beacon.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), during=during)
    assert numbers(sink.items) == list(range(1_000))
    assert event.figures.exits["source"] == task_exit.Ok()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


async def test_beacons_that_never_pause_cannot_hold_off_the_shutdown() -> None:
    """The source ends by itself, well before the grace is over, though the inbox never runs empty."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", await port_of(built))
        chunk = messages(*range(200))

        async def send_for_ever() -> None:
            with suppress(ConnectionError):
                while True:
                    writer.write(chunk)
                    await writer.drain()
                    await asyncio.sleep(0)

        sending = asyncio.create_task(send_for_ever())
        await eventually(lambda: len(sink.items) > 5_000, "the stream runs")
        built.request_shutdown("test")
        await sending
        writer.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), during=during)
    assert event.figures.exits["source"] == task_exit.Ok()
    assert event.figures.ledger.written == len(sink.items)
    assert event.figures.ledger_holds


async def test_an_aborted_source_leaves_its_inbox_to_the_dead_letters() -> None:
    """The sink never takes anything: after the grace every frame received is Undelivered, none is forgotten."""
    sink, letters, count = GatedSink(), DeadLetterList(), 3_000

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(messages(*range(count)))
        listener = listener_of(built)
        await eventually(lambda: len(listener.inbox) + built.ledger().ingested == count, "all frames are received")
        built.request_shutdown("test")
        built.request_shutdown("again")
        beacon.close()

    graph = fed_by(isl_source(FEED), sink, capacity=8)
    event = await run_graph(graph, dead_letters=letters, during=during)
    assert isinstance(event.figures.exits["source"], task_exit.Aborted)
    assert sorted(numbers([letter.payload for letter in letters.letters])) == list(range(count))
    assert event.figures.ledger.dead_lettered == count
    assert event.figures.ledger_holds


async def test_a_flood_of_malformed_frames_does_not_freeze_the_loop() -> None:
    """A read's worth of empty frames is dealt with in batches, between which everyone else has a turn."""
    turns_between: list[int] = []
    letters = DeadLetterList(capacity=1)
    count = 20_000

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(struct.pack("<I", 0) * count)
        while letters.total < count:
            turns_between.append(letters.total)
            await asyncio.sleep(0)
        turns_between.append(letters.total)
        built.request_shutdown("test")
        beacon.close()

    feed = IslFeed("127.0.0.1", 0, max_malformed_frames=count)
    await run_graph(fed_by(isl_source(feed), CollectSink()), dead_letters=letters, during=during)
    steps = [after - before for before, after in pairwise(turns_between)]
    assert max(steps) <= 512


async def test_a_dead_letter_store_that_fails_costs_no_good_frame_and_no_count() -> None:
    """The good frames before and behind get through, the malformed one is booked, and the run tells what was not kept."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(message(1) + struct.pack("<I", 3) + b"bad" + messages(*range(2, 12)))
        await eventually(lambda: len(sink.items) == 11, "the good ones")
        built.request_shutdown("test")
        beacon.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=FailingStore(1), during=during)
    assert numbers(sink.items) == list(range(1, 12))
    assert not event.figures.restarts
    assert event.figures.counters["source"]["decode_errors"] == 1
    assert (event.figures.ledger.ingested, event.figures.ledger.dead_lettered) == (12, 1)
    assert event.figures.ledger_holds
    assert event.figures.problems == (
        "1 items of 'source' could not be kept as dead letters: OSError: [Errno 28] No space left on device",
    )


async def test_an_aborted_inbox_is_booked_whole_where_the_store_never_keeps_anything() -> None:
    """Good frames and bad ones behind each other in the inbox: each is ingested and dead-lettered, and told as lost."""
    sink, count = GatedSink(), 1_000
    pair = struct.pack("<I", 3) + b"bad" + message(0)

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(pair * count)
        listener = listener_of(built)
        await eventually(lambda: len(listener.inbox) + built.ledger().ingested == 2 * count, "all frames are received")
        assert any(isinstance(frame, bytes) for _, frame in listener.inbox)
        built.request_shutdown("test")
        built.request_shutdown("again")
        beacon.close()

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, max_malformed_frames=count)), sink, capacity=8)
    event = await run_graph(graph, dead_letters=FailingStore(10**9), during=during)
    assert isinstance(event.figures.exits["source"], task_exit.Aborted)
    assert (event.figures.ledger.ingested, event.figures.ledger.dead_lettered) == (2 * count, 2 * count)
    assert event.figures.ledger_holds
    assert sum(int(problem.split()[0]) for problem in event.figures.problems) == 2 * count


@pytest.mark.parametrize(("host", "sources"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("", ["127.0.0.1"])])
async def test_an_address_of_either_kind_is_listened_on(host: str, sources: list[str]) -> None:
    """IPv6 at its own address, both kinds at ``::``, and IPv4 where no address is named."""
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


async def test_an_ipv6_port_that_is_taken_is_named_as_one() -> None:
    """In brackets, so that address and port can be told apart."""
    needs_ipv6()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        event = await run_graph(fed_by(isl_source(IslFeed("::1", port)), CollectSink()))
    assert isinstance(event, events.BudgetExhausted)
    assert f"isl feed: cannot listen on tcp://[::1]:{port}: [Errno 98] Address already in use" in event.chain[0]


def test_a_name_of_both_kinds_is_its_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever the resolver names first: a beacon that knows no IPv6 must get in."""
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with isl_module._listen(IslFeed("localhost", 0)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
