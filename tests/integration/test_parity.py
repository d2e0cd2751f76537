"""The pipeline and a plain loop write the same log from the same bytes."""

from __future__ import annotations

import asyncio
import math
import random
import socket
import time
from collections import deque
from pathlib import Path

from flows.settings.ingest import IngestSettings
from flows.topologies.ingest import ingest_pipeline
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.process.pipeline import RunOutcome, run_pipeline
from orchestrator_adapter.storage.jsonl import read_lines
from orchestrator_adapter.supervision import events
from sda_ops.sinks.event_log import STEM
from sda_ops.wire import isl, optical, radar
from tests.helpers.running import eventually
from tests.helpers.support import Addresses
from tests.integration.reference import decoded, log_lines, without_ingest_time

COUNT = 3_000  # of each kind


def radar_datagrams(rng: random.Random, now_ns: int) -> list[bytes]:
    """With and without angles, azimuths above 360 degrees, malformed and impossible ones."""
    frames = []
    for number in range(COUNT):
        frame = radar.encode(
            array_id=number % 3,
            target_track_id=number,
            timestamp_ns=now_ns - rng.randrange(10**9),
            range_m=rng.uniform(4e5, 2e6) * rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, -1]),
            range_rate_m_s=rng.uniform(-7e3, 7e3),
            azimuth_rad=rng.choice([math.nan, rng.uniform(-7, 7)]),
            elevation_rad=rng.uniform(0.1, 1.5),
            sigma_range_m=30.0,
            sigma_rate_m_s=0.3,
        )
        frames.append(frame if number % 50 else frame[: rng.randrange(64)])
    return frames


def optical_page(rng: random.Random, now_ns: int) -> bytes:
    """One page, in time order, with right ascensions above 360 degrees and one entry without a key."""
    entries = [
        optical.OpticalEntry(
            obs_id=f"o{number}",
            timestamp_ns=now_ns - (COUNT - number) * 1000,
            ra_rad=rng.uniform(-1, 8),
            dec_rad=rng.uniform(-1.5, 1.5),
            sigma_arcsec=2.0,
            site_id=number % 4,
        )
        for number in range(COUNT)
    ]
    return optical.encode_page(entries)[:-1] + b',{"obs_id": "half an entry"}]'


def beacon_stream(rng: random.Random, now_ns: int) -> bytes:
    """Beacons of one connection, some inside the Earth, one of a wrong length."""
    messages = []
    for number in range(COUNT):
        radius_m = 7e6 if number % 20 else 5e6
        messages.append(
            isl.encode(
                satellite_id=70_000 + number % 7,
                sequence=number,
                timestamp_ns=now_ns - number,
                position_m=(radius_m, rng.uniform(-1e5, 1e5), 0.0),
                velocity_m_s=(0.0, 7.5e3, 1.0),
                sigma_position_m=5.0,
                sigma_velocity_m_s=0.01,
            )
        )
    messages.insert(COUNT // 2, (10).to_bytes(4, "little") + b"0123456789")
    return b"".join(messages)


async def serve_page(page: bytes, port: int, served: asyncio.Event) -> asyncio.Server:
    """An archive that answers one page once, then empty pages."""
    pages = deque([page])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            body = pages.popleft() if pages else b"[]"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            if not pages:
                served.set()

    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # the client is done
        finally:
            writer.close()

    return await asyncio.start_server(until_closed, "127.0.0.1", port)


async def feed(built: BuiltGraph, addresses: Addresses, datagrams: list[bytes], stream: bytes, expected: int) -> None:
    """Send everything, slowly enough for the socket buffers; wait until it is ingested; then request the shutdown."""

    await eventually(lambda: sum("port" in operator.counters for operator in built.status().operators) == 2, "ports")
    _, writer = await asyncio.open_connection("127.0.0.1", addresses.isl)
    writer.write(stream)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for start in range(0, len(datagrams), 100):
            for datagram in datagrams[start : start + 100]:
                sock.sendto(datagram, ("127.0.0.1", addresses.radars[0]))
            await asyncio.sleep(0.001)
    await writer.drain()
    await eventually(lambda: built.ledger().ingested >= expected, "everything is ingested")
    built.request_shutdown("everything is in")
    writer.close()


async def test_the_pipeline_writes_the_same_lines_as_a_plain_loop(tmp_path: Path) -> None:
    """Apart from the ingest time, every byte of every line is the same as in the log of a hand-written loop."""
    rng, now_ns = random.Random(2026), time.time_ns()
    datagrams, page, stream = radar_datagrams(rng, now_ns), optical_page(rng, now_ns), beacon_stream(rng, now_ns)
    expected = log_lines(decoded(datagrams, [page], [stream], now_ns=now_ns))
    addresses = Addresses.free(radars=1)
    settings = IngestSettings.model_validate(addresses.settings(tmp_path))
    sent = len(datagrams) + (COUNT + 1) + (COUNT + 1)
    server = await serve_page(page, addresses.archive, asyncio.Event())
    feeding: list[asyncio.Task[None]] = []

    def start_feeding(built: BuiltGraph) -> None:
        feeding.append(asyncio.create_task(feed(built, addresses, datagrams, stream, sent)))

    async with server:
        outcome: RunOutcome = await run_pipeline(ingest_pipeline(settings), on_built=start_feeding)
        await feeding[0]

    assert isinstance(outcome.event, events.ShutDown)
    written = list(read_lines(tmp_path / "log", STEM))
    assert without_ingest_time(written) == without_ingest_time(expected)
    assert len(expected) > 2.5 * COUNT  # the logs are not empty
    ledger = outcome.event.figures.ledger
    assert ledger.balanced
    assert (ledger.ingested, ledger.written) == (sent, len(expected))
    assert ledger.dead_lettered == COUNT // 50 + 1 + 1
    assert ledger.rejected == sent - len(expected) - ledger.dead_lettered
