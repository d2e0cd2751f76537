"""A batch of a sensor's frames, each with its truth, and the interface of a sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias
from uuid import UUID

from sda_ops.astro.time import Nanoseconds
from sda_ops.records.observation import SourceKind
from sda_ops.simulate.world import WorldInterval

Fault: TypeAlias = Literal["malformed", "impossible", "duplicate"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames in time order; all sequences have one length.

    Attributes:
        timestamp_ns: When each was measured and is due to be sent, UTC nanoseconds.
        frames: The bytes to send: datagram, JSON object, or beacon with its length prefix.
        sensors: The sensor, as the pipeline's ``source_id``.
        catalog_numbers: The true object.
        faults: The fault of the frame; None for a good one.
    """

    timestamp_ns: Nanoseconds
    frames: Sequence[bytes]
    sensors: Sequence[str]
    catalog_numbers: Sequence[int]
    faults: Sequence[Fault | None]

    def part(self, start: int, stop: int) -> Batch:
        """The slice from ``start`` to ``stop``."""
        if start == 0 and stop == len(self.frames):
            return self
        return Batch(
            self.timestamp_ns[start:stop],
            self.frames[start:stop],
            self.sensors[start:stop],
            self.catalog_numbers[start:stop],
            self.faults[start:stop],
        )


class SimulatedSensor(Protocol):
    """A simulated sensor: makes frames for given times, without I/O."""

    @property
    def kind(self) -> SourceKind:
        """The kind of sensor."""

    def observe(self, interval: WorldInterval, timestamp_ns: Nanoseconds) -> Batch:
        """Good frames at these times, which are in the interval; none while no object is visible."""

    def malformed(self, frame: bytes) -> bytes:
        """A variant of the frame that does not decode."""

    def impossible(self, frame: bytes) -> bytes:
        """A variant of the frame that decodes and is physically impossible."""

    def observation_ids(self, frames: Sequence[bytes]) -> Sequence[UUID]:
        """The ids that the pipeline will give to these frames, which must decode."""
