"""Whole simulations over real sockets, and the command that runs them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.__main__ import main
from flows.local_prefect.processes import free_ports
from sda_ops.simulate import (
    Burst,
    ConfigurationError,
    Endpoint,
    Noise,
    Outage,
    Ready,
    SimulationSummary,
    SimulatorConfig,
    simulate,
)
from sda_ops.wire import isl, optical, radar
from sda_ops.wire.malformed import MalformedFrame

LOCAL = "127.0.0.1"
BOUNDED_S = 60
REPOSITORY = Path(__file__).parents[3]


class Receiver:
    """A receiver for all three kinds of feed, on free ports, that keeps every datagram, byte and entry."""

    def __init__(self) -> None:
        self.radars = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for receiver in self.radars:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            receiver.bind((LOCAL, 0))
            receiver.settimeout(0.0)
        self.datagrams: list[bytes] = []
        self.streams: list[bytes] = []
        self.stream_ended = asyncio.Semaphore(0)
        self.entries: list[Any] = []
        self.archive: Endpoint | None = None
        self.isl_port = 0

    @property
    def targets(self) -> dict[str, Any]:
        return {
            "radar_targets": tuple(Endpoint(LOCAL, receiver.getsockname()[1]) for receiver in self.radars),
            "archives": (Endpoint(LOCAL, 0),),
            "isl_targets": (Endpoint(LOCAL, self.isl_port),),
        }

    def on_ready(self, ready: Ready) -> None:
        self.archive = next(iter(ready.archives), None)

    def take_datagrams(self, receiver: socket.socket) -> None:
        with suppress(BlockingIOError):
            while True:
                datagram = receiver.recv(2048)
                self.datagrams.append(datagram)

    async def take_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streams.append(await reader.read())
        self.stream_ended.release()
        writer.close()

    async def poll_archive(self) -> None:
        """Poll as a pipeline does, until the archive stops."""
        since = 0
        async with httpx.AsyncClient() as client:
            while self.archive is not None:
                url = f"http://{self.archive.host}:{self.archive.port}/observations"
                try:
                    answer = await client.get(url, params={"since": since, "wait_ms": 50})
                except httpx.TransportError:
                    return
                if answer.status_code == 200 and (entries := answer.json()):
                    self.entries += entries
                    since = max(e["timestamp_ns"] for e in entries if isinstance(e, dict))

    def frames(self) -> tuple[list[Any], list[Any]]:
        """The ids of everything that decodes, and everything that does not."""
        observations, malformed = radar.decode_many(self.datagrams, ingest_timestamp=0)
        page, bad_entries = optical.decode_page(json.dumps(self.entries).encode(), ingest_timestamp=0)
        pieces = [piece for stream in self.streams for piece in isl.FrameAssembler().feed(stream)]
        beacons = [isl.decode_frame(piece, ingest_timestamp=0) for piece in pieces if isinstance(piece, bytes)]
        bad_beacons = [piece for piece in pieces if isinstance(piece, MalformedFrame)]
        return [o.observation_id for o in (*observations, *page, *beacons)], [*malformed, *bad_entries, *bad_beacons]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    loop = asyncio.get_running_loop()
    for radar_socket in receiver.radars:
        loop.add_reader(radar_socket, receiver.take_datagrams, radar_socket)
    server = await asyncio.start_server(receiver.take_stream, LOCAL, 0)
    receiver.isl_port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(BOUNDED_S):
            yield receiver
    finally:
        server.close()
        for radar_socket in receiver.radars:
            loop.remove_reader(radar_socket)
            radar_socket.close()


async def received(receiver: Receiver, config: SimulatorConfig) -> SimulationSummary:
    """Simulate, poll until every entry of the archive was served, stop."""
    stop = asyncio.Event()
    polling: list[asyncio.Task[None]] = []

    def on_ready(ready: Ready) -> None:
        receiver.on_ready(ready)
        if ready.archives:
            polling.append(asyncio.create_task(receiver.poll_archive()))

    def on_progress(summary: SimulationSummary) -> None:
        if config.count is not None and summary.total >= config.count and summary.unserved == 0:
            stop.set()

    summary = await simulate(config, stop=stop, on_ready=on_ready, on_progress=on_progress)
    await asyncio.gather(*polling)
    for radar_socket in receiver.radars:
        receiver.take_datagrams(radar_socket)
    return summary


def truth_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_truth_is_exactly_what_arrives(tmp_path: Path) -> None:
    """With all faults on, the ids and malformed frames received from all three feeds are those of the truth file."""
    truth = tmp_path / "truth.jsonl"
    async with receiving() as receiver:
        config = SimulatorConfig(
            **receiver.targets,
            radar_rate_hz=2000.0,
            optical_rate_hz=1000.0,
            isl_rate_hz=1000.0,
            count=3000,
            objects=300,
            malformed=0.05,
            impossible=0.05,
            duplicates=0.05,
            truth=truth,
        )
        summary = await received(receiver, config)
        ids, malformed = receiver.frames()
    lines = truth_of(truth)
    assert len(lines) == summary.total == 3000
    assert Counter(map(str, ids)) == Counter(line["observation_id"] for line in lines if line["fault"] != "malformed")
    assert len(malformed) == sum(line["fault"] == "malformed" for line in lines)
    assert summary.unserved == 0
    counted = Counter((line["kind"], line["fault"] or "good") for line in lines)
    assert counted == Counter({(kind, fault): n for kind, by in summary.sent.items() for fault, n in by.items()})
    assert sum(line["size"] for line in lines if line["kind"] == "radar") == sum(map(len, receiver.datagrams))
    assert sum(line["size"] for line in lines if line["kind"] == "isl") == sum(map(len, receiver.streams))


async def test_timestamps_are_of_the_real_clock_and_never_ahead_of_it() -> None:
    """Every detection was measured between the start of the simulation and its arrival."""
    received_at: list[tuple[int, bytes]] = []
    async with receiving() as receiver:
        loop = asyncio.get_running_loop()
        for radar_socket in receiver.radars:

            def take(radar_socket: socket.socket = radar_socket) -> None:
                received_at.append((time.time_ns(), radar_socket.recv(2048)))

            loop.add_reader(radar_socket, take)
        start_ns = time.time_ns()
        config = SimulatorConfig(**receiver.targets, optical_rate_hz=0, isl_rate_hz=0, count=200, objects=300)
        await simulate(config, stop=asyncio.Event())
    assert received_at
    for arrived_ns, datagram in received_at:
        observation = radar.decode(datagram, ingest_timestamp=0)
        assert start_ns <= observation.sensor_timestamp <= arrived_ns


async def test_a_start_time_moves_all_timestamps(tmp_path: Path) -> None:
    """Timestamps begin at the given time and advance in real time."""
    start_ns = 1_773_144_000 * 10**9
    truth = tmp_path / "truth.jsonl"
    async with receiving() as receiver:
        config = SimulatorConfig(
            **receiver.targets, start_time_ns=start_ns, count=300, objects=300, isl_rate_hz=500.0, truth=truth
        )
        await received(receiver, config)
    times_ns = [line["timestamp_ns"] for line in truth_of(truth)]
    assert start_ns <= min(times_ns)
    assert max(times_ns) < start_ns + BOUNDED_S * 10**9


async def test_stop_ends_everything_and_every_byte_still_arrives(tmp_path: Path) -> None:
    """A simulation that is stopped at full rate ends, and each beacon in the truth has arrived whole."""
    truth = tmp_path / "truth.jsonl"
    stop = asyncio.Event()
    async with receiving() as receiver:
        config = SimulatorConfig(
            **receiver.targets, radar_rate_hz=0, optical_rate_hz=0, isl_rate_hz=50_000.0, objects=300, truth=truth
        )
        summary = await simulate(config, stop=stop, on_progress=lambda _: stop.set())
        for _ in range(config.isl_connections):
            await receiver.stream_ended.acquire()
        ids, malformed = receiver.frames()
    assert summary.total > 0
    assert malformed == []
    assert Counter(map(str, ids)) == Counter(line["observation_id"] for line in truth_of(truth))


async def test_telescopes_and_satellites_are_divided_among_archives_and_rings(tmp_path: Path) -> None:
    """Each telescope's entries are in one archive, each satellite's beacons go to one ring, and none is missing."""
    truth = tmp_path / "truth.jsonl"
    rings: list[list[bytes]] = [[], []]
    archives: list[Endpoint] = []

    def taking(ring: list[bytes]) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ring.append(await reader.read())
            writer.close()

        return take

    async def sites_of(client: httpx.AsyncClient, archive: Endpoint) -> set[int]:
        page = await client.get(f"http://{archive.host}:{archive.port}/observations", params={"since": 0})
        return {entry["site_id"] for entry in page.json()}

    stop = asyncio.Event()
    async with asyncio.timeout(BOUNDED_S), httpx.AsyncClient() as client:
        servers = [await asyncio.start_server(taking(ring), LOCAL, 0) for ring in rings]
        config = SimulatorConfig(
            radar_rate_hz=0.0,
            archives=(Endpoint(LOCAL, 0), Endpoint(LOCAL, 0)),
            optical_rate_hz=1000.0,
            isl_targets=tuple(Endpoint(LOCAL, server.sockets[0].getsockname()[1]) for server in servers),
            isl_rate_hz=1000.0,
            isl_connections=2,
            isl_satellites=9,
            objects=300,
            count=400,
            truth=truth,
        )
        sites: list[set[int]] = []

        async def read_sites() -> None:
            sites.extend([await sites_of(client, archive) for archive in archives])
            stop.set()

        reading: list[asyncio.Task[None]] = []

        def on_progress(summary: SimulationSummary) -> None:
            if summary.total >= 400 and not reading:
                reading.append(asyncio.create_task(read_sites()))

        await simulate(
            config, stop=stop, on_ready=lambda ready: archives.extend(ready.archives), on_progress=on_progress
        )
        await asyncio.gather(*reading)
        for server in servers:
            server.close()
    lines = truth_of(truth)
    assert sites == [{1, 2}, {3, 4}]
    satellites = [
        {isl.decode_frame(stream[at + 4 : at + 76], ingest_timestamp=0).source_id for at in range(0, len(stream), 76)}
        for ring in rings
        for stream in ring
    ]
    assert [len(ring) for ring in rings] == [2, 2]
    assert sum(map(len, satellites)) == len(set.union(*satellites))
    assert set.union(*satellites) == {line["sensor"] for line in lines if line["kind"] == "isl"}


async def test_satellites_connect_when_there_is_a_listener_and_reconnect() -> None:
    """Beacons arrive from a simulation that started before the listener, and again after the listener closed the connection."""
    (port,) = free_ports(1)
    connections: asyncio.Queue[bytes] = asyncio.Queue()

    async def take_one_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.put_nowait(await reader.readexactly(76))
        writer.close()

    stop, ready = asyncio.Event(), asyncio.Event()
    config = SimulatorConfig(
        radar_rate_hz=0,
        optical_rate_hz=0,
        isl_rate_hz=1000.0,
        isl_connections=1,
        isl_targets=(Endpoint(LOCAL, port),),
        objects=100,
    )
    async with asyncio.timeout(BOUNDED_S), asyncio.TaskGroup() as tasks:
        simulation = tasks.create_task(simulate(config, stop=stop, on_ready=lambda _: ready.set()))
        await ready.wait()
        server = await asyncio.start_server(take_one_and_close, LOCAL, port)
        first, second = await connections.get(), await connections.get()
        stop.set()
        await simulation
        server.close()
    assert first != second


async def test_an_address_in_use_is_an_error() -> None:
    """With the archive's port in use, simulate raises OSError, which names the option and the address, and sends nothing."""
    with socket.create_server((LOCAL, 0)) as taken:
        config = SimulatorConfig(archives=(Endpoint(LOCAL, taken.getsockname()[1]),), objects=10)
        with pytest.raises(OSError, match="another socket listens there") as raised:
            await simulate(config, stop=asyncio.Event())
    assert str(raised.value).startswith(f"an archive cannot listen on {config.archives[0]} (--archive): ")


@pytest.mark.parametrize("option", ["--archive", "--radar"])
@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("no-such-host.invalid", r"\(--{}\): .*"),
        ("x" * 80, "--{}: expected HOST:PORT, and '" + "x" * 80 + "' is no host name"),
    ],
)
def test_a_name_without_an_address_is_one_plain_line(
    option: str, host: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown name and a name that is too long: the line names the option."""
    archive = ["--archive", "127.0.0.1:0"] if option == "--radar" else []
    assert main(["simulate", *archive, option, f"{host}:9999", "--objects", "10", "--count", "1"]) in {1, 2}
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "sending" not in each]
    assert re.search(why.format(option[2:]), line), line


def test_every_problem_of_a_configuration_is_reported_at_once() -> None:
    """Seven mistakes make one error with seven problems."""
    with pytest.raises(ConfigurationError) as raised:
        SimulatorConfig(
            radar_rate_hz=-1.0,
            objects=0,
            malformed=2.0,
            duration_s=-1.0,
            noise=Noise(isl_position_m=0.0),
            bursts=(Burst("radar", 10.0, 5.0, 5.0),),
            outages=(Outage("isl", 1.0, 5.0), Outage("isl", 2.0, 5.0)),
        )
    assert sorted(raised.value.problems) == [
        "burst of radar: 0 < for_s < every_s expected, got 5.0, 5.0",
        "duration_s must be >= 0, got -1.0",
        "malformed must be in [0, 1], got 2.0",
        "noise.isl_position_m must be > 0 and finite, got 0.0",
        "objects must be >= 1, got 0",
        "outage of isl: given more than once",
        "radar_rate_hz must be in [0, 1e6], got -1.0",
    ]


COMMAND = """
import argparse, sys
from flows.commands.simulate import add_arguments, run
parser = argparse.ArgumentParser("simulate")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""


async def command(*options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        COMMAND,
        *options,
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


async def test_sigterm_ends_the_command_cleanly(tmp_path: Path) -> None:
    """On SIGTERM the command exits 0, its truth file is complete, and its last line of output is the summary."""
    truth = tmp_path / "truth.jsonl"
    async with receiving() as receiver, asyncio.timeout(BOUNDED_S):
        process = await command(
            "--isl", f"{LOCAL}:{receiver.isl_port}", "--archive", f"{LOCAL}:0", "--truth", str(truth), "--progress",
            *(option for target in receiver.targets["radar_targets"] for option in ("--radar", f"{LOCAL}:{target.port}")),
        )  # fmt: skip
        assert process.stderr is not None
        assert b"sending, 2000 objects" in await process.stderr.readline()
        assert b"radar" in await process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert json.loads(output)["total"] == len(truth_of(truth)) > 0


async def test_the_command_names_every_mistake_and_exits_with_2() -> None:
    """Four bad options give four lines on standard error, none on standard output, and exit code 2."""
    process = await command("--radar", "here", "--rate-isl", "-1", "--catalog", "/no/such", "--start-time", "soon")
    async with asyncio.timeout(BOUNDED_S):
        output, errors = await process.communicate()
    assert process.returncode == 2
    assert output == b""
    assert errors.decode().splitlines() == [
        "simulate: --catalog: no such file: /no/such",
        "simulate: --radar: expected HOST:PORT, got 'here'",
        "simulate: --start-time: Invalid isoformat string: 'soon'",
        "simulate: isl_rate_hz must be in [0, 1e6], got -1.0",
    ]
