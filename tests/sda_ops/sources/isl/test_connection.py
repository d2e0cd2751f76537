"""Limits for what one peer sends: malformed frames, frame length, torn frames, and a flood beside other peers."""

from __future__ import annotations

import asyncio
import struct

from orchestrator_adapter import BuiltGraph, DeadLetterKind, DeadLetterList
from orchestrator_adapter.testing import CollectSink, run_graph
from sda_ops.sources.isl import IslFeed, isl_source
from tests.helpers.running import GatedSink, eventually, fed_by, port_of
from tests.sda_ops.sources.isl.beacons import (
    EMPTY_FRAME,
    FEED,
    ONE_READ,
    Beacon,
    Peers,
    listener_of,
    message,
    messages,
    numbers,
    received_part,
    shown,
)


async def test_a_frame_of_a_wrong_length_is_skipped_whole() -> None:
    """Its bytes are dead-lettered; frames before and after it on the same connection are received."""
    sink, letters = CollectSink(), DeadLetterList()
    odd = b"\x05" * 70

    async def during(built: BuiltGraph) -> None:
        beacon = Beacon(await port_of(built))
        beacon.send(message(1) + struct.pack("<I", 70) + odd + struct.pack("<I", 0) + message(2))
        await eventually(lambda: len(sink.items) == 2, "the good frames")
        built.request_shutdown("test")
        beacon.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1, 2]
    assert [letter.payload for letter in letters.letters] == [odd, b""]
    assert letters.letters[0].kind is DeadLetterKind.DESERIALIZATION
    assert letters.letters[0].message == "isl frame: expected 72 bytes, got 70"
    assert event.figures.counters["source"]["decode_errors"] == 2
    assert not event.figures.restarts


async def test_lost_framing_closes_only_that_connection() -> None:
    """The bytes from the impossible length on are dead-lettered; another beacon's connection is not affected."""
    sink, letters = CollectSink(), DeadLetterList()
    not_frames = b"GET / HTTP/1.1\r\n\r\n"

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        good, bad = Beacon(port), Beacon(port)
        good.send(message(1)[:30])
        bad.send(message(2) + not_frames)
        assert await bad.closed_by_listener()
        good.send(message(1)[30:] + message(3))
        await eventually(lambda: len(sink.items) == 3, "three frames")
        assert len(listener_of(built).connections) == 1
        built.request_shutdown("test")
        good.close()
        bad.close()

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [2, 1, 3]
    assert [letter.payload for letter in letters.letters] == [not_frames]
    assert event.figures.ledger.ingested == 4
    assert event.figures.ledger_holds


async def test_a_frame_torn_by_a_disconnect_is_dead_lettered() -> None:
    """The bytes that arrived of it are kept, with its length prefix."""
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


async def test_too_many_malformed_frames_close_the_connection(peers: Peers) -> None:
    """The allowed ones and one more are dead letters of their own; the rest of the read is one dead letter."""
    sink, letters, count = CollectSink(), DeadLetterList(), 4_000
    feed = IslFeed("127.0.0.1", 0, max_malformed_frames=3)

    async def during(built: BuiltGraph) -> None:
        (bad, ours), (good, _) = await peers.join(built), await peers.join(built)
        bad.send(message(1)[:40])
        await received_part(ours, 40)
        bad.send(message(1)[40:] + EMPTY_FRAME * count + message(2)[:10])
        assert await bad.closed_by_listener()
        good.send(message(3))
        await eventually(lambda: len(sink.items) == 2, "the good frames")
        await shown(built, "closed_malformed", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(feed), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1, 3]
    assert [letter.payload for letter in letters.letters[:4]] == [b""] * 4
    assert [letter.payload for letter in letters.letters[4:]] == [EMPTY_FRAME * (count - 4) + message(2)[:10]]
    assert event.figures.ledger.ingested == 7
    assert event.figures.ledger_holds


async def test_as_many_malformed_frames_as_allowed_keep_the_connection_open(peers: Peers) -> None:
    """The limit is inclusive, counts across reads, and starts at zero for each connection."""
    sink, letters = CollectSink(), DeadLetterList()
    feed = IslFeed("127.0.0.1", 0, max_malformed_frames=3)

    async def during(built: BuiltGraph) -> None:
        (first, _), (second, _) = await peers.join(built), await peers.join(built)
        first.send(EMPTY_FRAME * 2 + message(1))
        await eventually(lambda: len(sink.items) == 1, "the first")
        first.send(EMPTY_FRAME + message(2))
        second.send(EMPTY_FRAME * 3 + message(3))
        await eventually(lambda: len(sink.items) == 3, "all good frames")
        assert len(listener_of(built).connections) == 2
        first.send(EMPTY_FRAME)
        assert await first.closed_by_listener()
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(feed), sink), dead_letters=letters, during=during)
    assert letters.total == 7


async def test_a_frame_length_above_the_limit_closes_the_connection(peers: Peers) -> None:
    """The length alone is enough. A frame of exactly the limit is skipped, and the stream continues."""
    sink, letters = CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        beacon, _ = await peers.join(built)
        beacon.send(struct.pack("<I", 4_096) + bytes(4_096) + message(1) + struct.pack("<I", 4_097))
        assert await beacon.closed_by_listener()
        await shown(built, "closed_framing_lost", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1]
    assert [letter.payload for letter in letters.letters] == [bytes(4_096), struct.pack("<I", 4_097)]
    assert event.figures.ledger_holds


async def test_a_reset_within_a_frame_costs_only_that_frame(peers: Peers) -> None:
    """The bytes that arrived are kept, as after an orderly end; another beacon continues."""
    sink, letters = CollectSink(), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        (resetting, ours), (good, _) = await peers.join(built), await peers.join(built)
        resetting.send(message(1) + message(2)[:40])
        await received_part(ours, 40)
        resetting.reset()
        await eventually(lambda: letters.total, "the torn frame")
        good.send(message(3))
        await eventually(lambda: len(sink.items) == 2, "both whole frames")
        await shown(built, "connections", 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(isl_source(FEED), sink), dead_letters=letters, during=during)
    assert numbers(sink.items) == [1, 3]
    assert [letter.payload for letter in letters.letters] == [message(2)[:40]]
    assert event.figures.ledger_holds


async def test_a_flood_does_not_starve_other_peers(peers: Peers) -> None:
    """Frames of forty quiet beacons are read within three reads of each peer that never pauses."""
    sink, flooding, beacons = GatedSink(), 2, 40
    flood = messages(*range(1_000, 31_000))

    async def during(built: BuiltGraph) -> None:
        floods = [(await peers.join(built))[0] for _ in range(flooding)]
        listener = listener_of(built)
        sending = [asyncio.create_task(asyncio.to_thread(peer.send, flood)) for peer in floods]
        await eventually(lambda: listener.paused, "the inbox is full")
        for number in range(beacons):
            (await peers.join(built))[0].send(message(number))
        sink.gate.set()
        await asyncio.gather(*sending)
        await eventually(lambda: len(sink.items) == flooding * 30_000 + beacons, "every frame")
        built.request_shutdown("test")

    graph = fed_by(isl_source(IslFeed("127.0.0.1", 0, inbox_frames=8)), sink, capacity=4)
    event = await run_graph(graph, during=during)
    places = [place for place, number in enumerate(numbers(sink.items)) if number < beacons]
    # Before them: frames in the graph, frames that filled the inbox, and frames that are read in the same turn.
    assert max(places) <= 3 * flooding * ONE_READ + beacons
    assert event.figures.ledger_holds
