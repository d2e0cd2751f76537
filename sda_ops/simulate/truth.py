"""The frames that were sent: a line for each, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from uuid import UUID

import msgspec

from sda_ops.records.observation import SourceKind
from sda_ops.simulate.config import SOURCE_KINDS
from sda_ops.simulate.frames import Batch, Fault, SimulatedSensor


class TruthLine(msgspec.Struct, frozen=True, gc=False):
    """One frame that was sent.

    Attributes:
        kind: The kind of sensor.
        sensor: The pipeline's ``source_id``.
        catalog_number: The true object.
        timestamp_ns: When it was measured, UTC (an impossible frame may have another time).
        observation_id: The id that the pipeline will make; None for a malformed frame.
        fault: The frame's fault; None for a good one.
        size: Bytes on the wire.
    """

    kind: SourceKind
    sensor: str
    catalog_number: int
    timestamp_ns: int
    observation_id: UUID | None
    fault: Fault | None
    size: int


class TruthLog:
    """The JSON Lines file. It is written in batches and complete when closed. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)
        self._encode = msgspec.json.Encoder().encode_lines

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, sensor: SimulatedSensor, sent: Batch) -> None:
        """One line for each frame of the batch."""
        decodable = [frame for frame, fault in zip(sent.frames, sent.faults, strict=True) if fault != "malformed"]
        ids = iter(sensor.observation_ids(decodable))
        kind = sensor.kind
        self._file.write(
            self._encode(
                [
                    TruthLine(kind, name, number, time, None if fault == "malformed" else next(ids), fault, len(frame))
                    for name, number, time, fault, frame in zip(
                        sent.sensors,
                        sent.catalog_numbers,
                        sent.timestamp_ns.tolist(),
                        sent.faults,
                        sent.frames,
                        strict=True,
                    )
                ]
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSummary:
    """The totals of a simulation.

    Attributes:
        sent: Frames by kind, and then by fault or ``good``.
        skipped: Frames that were due and were not made or not sent, by kind: the machine was too slow, or the peer was
            absent. Outages do not count.
        unserved: Entries in the archive that were in no answer.
        archive_requests: Requests that the archive received.
        archive_requests_in_outage: Requests that the archive received during outages.
        elapsed_s: The time during which frames were sent.
    """

    sent: Mapping[SourceKind, Mapping[str, int]]
    skipped: Mapping[SourceKind, int]
    unserved: int
    archive_requests: int
    archive_requests_in_outage: int
    elapsed_s: float

    @property
    def total(self) -> int:
        """Frames of all kinds."""
        return sum(sum(by_fault.values()) for by_fault in self.sent.values())

    def to_json(self) -> str:
        """One line."""
        rate_per_s = round(self.total / self.elapsed_s, 1) if self.elapsed_s > 0.0 else 0.0
        return msgspec.json.encode({**asdict(self), "total": self.total, "rate_per_s": rate_per_s}).decode()


class Tally:
    """Counts frames during a simulation."""

    def __init__(self) -> None:
        self._sent: dict[SourceKind, Counter[str]] = {kind: Counter() for kind in SOURCE_KINDS}
        self._skipped: Counter[SourceKind] = Counter()

    def sent(self, kind: SourceKind, sent: Batch) -> None:
        """Count frames that were sent."""
        self._sent[kind].update("good" if fault is None else fault for fault in sent.faults)

    def skipped(self, kind: SourceKind, count: int) -> None:
        """Count frames that were not sent."""
        self._skipped[kind] += count

    def summary(
        self, *, unserved: int, archive_requests: int, archive_requests_in_outage: int, elapsed_s: float
    ) -> SimulationSummary:
        """The totals so far."""
        return SimulationSummary(
            sent={kind: dict(by_fault) for kind, by_fault in self._sent.items()},
            skipped={kind: self._skipped[kind] for kind in SOURCE_KINDS},
            unserved=unserved,
            archive_requests=archive_requests,
            archive_requests_in_outage=archive_requests_in_outage,
            elapsed_s=elapsed_s,
        )
