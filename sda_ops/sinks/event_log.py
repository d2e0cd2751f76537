"""The event log: every observation, one JSON line each, in rotating files.

A batch is acknowledged when it is written *and* fsynced, so "written" in the ledger means that it survives a power cut.
Writing happens in the graph's thread pool, one batch at a time: while the disk works, the next batch gathers, and a slow
disk makes larger batches instead of a longer queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orchestrator_adapter import (
    DEFAULT_MAX_FILE_BYTES,
    Factory,
    RotatingJsonLines,
    WiredEnds,
    WriteFailedError,
    read_lines,
)
from sda_ops.records.observation import Observation

STEM = "observations"
_BATCH = 4_096  # items per fsync at most; the edge's capacity is the bound that counts


@dataclass(frozen=True, slots=True)
class EventLog:
    """Where the log is and how large a file may grow, in bytes."""

    directory: Path
    max_bytes: int = DEFAULT_MAX_FILE_BYTES


def event_log_sink(log: EventLog) -> Factory:
    """A sink into ``log``. A directory that another process writes is refused, naming that process."""
    encode_lines = msgspec.json.Encoder().encode_lines

    async def run(ends: WiredEnds) -> None:
        writer = ends.keep(
            "writer",
            lambda: RotatingJsonLines(log.directory, stem=STEM, max_bytes=log.max_bytes),
            RotatingJsonLines.close,
        )
        ends.gauge("repaired_bytes", writer.repaired_bytes)
        async for batch in ends.receiver.batches(_BATCH):
            try:
                await ends.acknowledge_after(len(batch), _write, writer, encode_lines(batch), len(batch))
            except WriteFailedError as error:  # part of a batch longer than a file is in finished files already
                ends.receiver.acknowledge(error.accepted_lines)
                raise
            ends.gauge("bytes_written", writer.bytes_written)
            now_ns = ends.clock.now_ns()
            for ingested_ns, count in Counter([observation.ingest_timestamp for observation in batch]).items():
                ends.latency.record(now_ns - ingested_ns, count)

    return run


def read_event_log(directory: Path) -> Iterator[Observation]:
    """Every observation in the log, oldest first, the file that is being written included."""
    decode = msgspec.json.Decoder(Observation).decode
    return map(decode, read_lines(directory, STEM))


def _write(writer: RotatingJsonLines, data: bytes, lines: int) -> None:
    writer.write_lines(data, lines)
    writer.sync()
