"""The event log sink: one JSON line for each observation, in rotating files.

A batch is acknowledged when it is written *and* fsynced: "written" in the ledger means that it survives a power cut. Batches
are written one at a time in the graph's thread pool, while the next batch gathers; a slow disk makes larger batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
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
from sda_ops.event_time.lags import PipelineLag
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.records.observation import Observation

STEM = "observations"
_BATCH = 4_096  # items per fsync at most; usually the edge's capacity is smaller


@dataclass(frozen=True, slots=True)
class EventLogFiles:
    """The directory of the log, and the greatest size of a file in bytes."""

    directory: Path
    max_bytes: int = DEFAULT_MAX_FILE_BYTES


def event_log_sink(log: EventLogFiles, *, metrics: EventTimeMetrics | None = None) -> Factory:
    """A sink into ``log``. Raises ``StoreInUseError``, which names the other process, if another process writes it.

    ``metrics`` get the pipeline's lag, by the kind of sensor: until the acknowledgement.
    """
    lag = None if metrics is None else PipelineLag(metrics, attrgetter("source_kind", "ingest_timestamp"))
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
            except WriteFailedError as error:  # part of a batch that is larger than a file is already in finished files
                ends.receiver.acknowledge(error.accepted_lines)
                raise
            ends.gauge("bytes_written", writer.bytes_written)
            now_ns = ends.clock.now_ns()
            for ingested_ns, count in Counter([observation.ingest_timestamp for observation in batch]).items():
                ends.latency.record(now_ns - ingested_ns, count)
            if lag is not None:
                lag.ended(batch, now_ns)

    return run


def read_event_log(directory: Path) -> Iterator[Observation]:
    """Every observation in the log, oldest first, including the file that is being written."""
    decode = msgspec.json.Decoder(Observation).decode
    return map(decode, read_lines(directory, STEM))


def _write(writer: RotatingJsonLines, data: bytes, lines: int) -> None:
    writer.write_lines(data, lines)
    writer.sync()
