"""A batch of frames that a sensor made, each with what it is in truth."""

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
        timestamp_ns: When each was measured and is due to leave, UTC nanoseconds.
        frames: The bytes as they leave: datagram, JSON object, or beacon with its length prefix.
        sensors: Which sensor, as the pipeline's ``source_id`` names it.
        catalog_numbers: Which object it really is.
        faults: What is wrong with it; None for a good one.
    """

    timestamp_ns: Nanoseconds
    frames: Sequence[bytes]
    sensors: Sequence[str]
    catalog_numbers: Sequence[int]
    faults: Sequence[Fault | None]

    def part(self, start: int, stop: int) -> Batch:
        """Frames ``start`` to ``stop``, as slices go."""
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
    """A kind of sensor: times in, frames out; no I/O."""

    @property
    def kind(self) -> SourceKind:
        """Which kind."""

    def observe(self, interval: WorldInterval, timestamp_ns: Nanoseconds) -> Batch:
        """Good frames at these times, which lie in the interval; none where it sees nothing."""

    def malformed(self, frame: bytes) -> bytes:
        """A frame like this one that does not decode."""

    def impossible(self, frame: bytes) -> bytes:
        """A frame like this one that decodes, and cannot be true."""

    def observation_ids(self, frames: Sequence[bytes]) -> Sequence[UUID]:
        """The ids the pipeline will give these frames, which decode."""
