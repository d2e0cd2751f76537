"""The ISL source operator: framing, restarts, shutdown and dead letters, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from itertools import pairwise

import pytest

from orchestrator_adapter import BuiltGraph, DeadLetterList
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.testing import CollectSink, run_graph
from sda_ops.sources.isl import IslFeed, isl_source
from tests.helpers.running import FailingStore, Fault, GatedSink, counter, eventually, fed_by, port_of
from tests.sda_ops.sources.isl.beacons import FEED, Beacon, listener_of, message, messages, numbers


@pytest.mark.parametrize("size", [1, 3, 75, 76, 77, 1000])
async def test_frames_are_the_same_for_any_segmentation(size: int) -> None:
    """However the network splits the stream, the same frames arrive, in order."""
    sink = CollectSink()
    stream = messages(*range(12))

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        for start in range(0, len(stream), size):
            beacon.send(stream[start : start + size])
            await asyncio.sleep(0)
        await eventually(lambda: len(sink.items) == 12, "twelve frames")
        built.request_shutdown("test")
        assert await beacon.closed_by_listener()
        beacon.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), during=during)
    assert numbers(sink.items) == list(range(12))
    assert (event.figures.ledger.ingested, event.figures.ledger.written) == (12, 12)
    assert event.figures.ledger_holds


async def test_a_restart_keeps_the_port_the_connections_and_a_partial_frame() -> None:
    """A frame whose first half arrived before the failure and the second after it is whole."""
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


async def test_a_restart_with_a_full_inbox_loses_and_repeats_nothing() -> None:
    """The instance fails while it waits for the graph; every frame arrives exactly once, in order."""
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
        await eventually(lambda: len(sink.items) == count, "every frame")
        built.request_shutdown("test")
        beacon.close()

    event = await run_graph(fed_by(source, sink, capacity=4), during=during)
    assert numbers(sink.items) == list(range(count))
    assert (event.figures.ledger.ingested, event.figures.ledger.repeated) == (count, 0)


async def test_data_in_the_kernel_at_shutdown_is_still_received() -> None:
    """Bytes sent before the shutdown request arrive; afterwards the port is closed."""
    sink = CollectSink()
    ports: list[int] = []

    async def during(built: BuiltGraph) -> None:
        ports.append(await port_of(built))
        beacon = Beacon(ports[0])
        beacon.send(message(0))
        await eventually(lambda: len(sink.items) == 1, "the connection is accepted")
        beacon.send(messages(*range(1, 1_000)))
        built.request_shutdown("test")
        assert await beacon.closed_by_listener()
        beacon.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), during=during)
    assert numbers(sink.items) == list(range(1_000))
    assert event.figures.exits["source"] == task_exit.Ok()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


async def test_beacons_that_never_pause_cannot_delay_the_shutdown() -> None:
    """The source ends by itself, well before the grace period is over, although its inbox never becomes empty."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", await port_of(built))
        chunk = messages(*range(200))

        async def send_endlessly() -> None:
            with suppress(ConnectionError):
                while True:
                    writer.write(chunk)
                    await writer.drain()
                    await asyncio.sleep(0)

        sending = asyncio.create_task(send_endlessly())
        await eventually(lambda: len(sink.items) > 5_000, "the stream runs")
        built.request_shutdown("test")
        await sending
        writer.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), during=during)
    assert event.figures.exits["source"] == task_exit.Ok()
    assert event.figures.ledger.written == len(sink.items)
    assert event.figures.ledger_holds


async def test_the_inbox_of_an_aborted_source_is_dead_lettered() -> None:
    """The sink takes nothing: after the grace period every frame is Undelivered, and none is lost."""
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


async def test_a_flood_of_malformed_frames_does_not_block_the_event_loop() -> None:
    """Empty frames are handled in batches, and other tasks run between the batches."""
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


async def test_a_failing_dead_letter_store_costs_no_good_frame_and_no_count() -> None:
    """Good frames before and after it are emitted, the malformed one is counted, and the run reports what was not kept."""
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(message(1) + struct.pack("<I", 3) + b"bad" + messages(*range(2, 12)))
        await eventually(lambda: len(sink.items) == 11, "the good frames")
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


async def test_an_aborted_inbox_is_counted_completely_when_the_store_always_fails() -> None:
    """Good and malformed frames in turn: each is ingested and dead-lettered, and reported as not kept."""
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
