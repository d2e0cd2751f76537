"""Satellites that send their own state over one connection, in turn, as length-prefixed beacons."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import NS_PER_DAY, Nanoseconds
from sda_ops.records.ids import observation_ids
from sda_ops.records.observation import SourceKind
from sda_ops.simulate.config import Noise
from sda_ops.simulate.frames import Batch
from sda_ops.simulate.world import World, WorldInterval
from sda_ops.wire import isl

MESSAGE_DTYPE = np.dtype(
    [
        ("length", "<u4"),
        ("satellite_id", "<u4"),
        ("sequence", "<u4"),
        ("timestamp_ns", "<u8"),
        ("position_m", "<f8", 3),
        ("velocity_m_s", "<f8", 3),
        ("sigma_position_m", "<f4"),
        ("sigma_velocity_m_s", "<f4"),
    ]
)
"""Prefix and frame as `sda_ops.wire.isl.encode` writes them, as a numpy type."""

FRAMING_LOST_PREFIX = b"\xff\xff\xff\xff"
"""An impossible length: the receiver must close the connection, and so does the sender."""


class Beacons:
    """The satellites of one connection. Each has its own sequence; ``satellite_id`` is its catalogue number."""

    kind: SourceKind = "isl"

    def __init__(
        self, world: World, *, satellites: npt.NDArray[np.intp], noise: Noise, rng: np.random.Generator
    ) -> None:
        self._satellites = satellites
        self._numbers = np.array([world.catalog_numbers[index] for index in satellites.tolist()], dtype=np.uint32)
        self._names = tuple(f"isl-{number}" for number in self._numbers.tolist())
        self._noise = noise
        self._rng = rng
        self._turn = 0

    def observe(self, interval: WorldInterval, timestamp_ns: Nanoseconds) -> Batch:
        """One beacon at each time, from the satellites in turn; one that has decayed sends none."""
        turns = self._turn + np.arange(len(timestamp_ns))
        self._turn += len(timestamp_ns)
        alive = np.isin(self._satellites, interval.propagated())[turns % self._satellites.size]
        turns, timestamp_ns = turns[alive], timestamp_ns[alive]
        members = turns % self._satellites.size
        r_m, v_m_s = interval.states(self._satellites[members], timestamp_ns)
        messages = np.zeros(turns.size, dtype=MESSAGE_DTYPE)
        messages["length"] = isl.FRAME_SIZE
        messages["satellite_id"] = self._numbers[members]
        messages["sequence"] = turns // self._satellites.size
        messages["timestamp_ns"] = timestamp_ns
        messages["position_m"] = r_m + self._rng.normal(0.0, self._noise.isl_position_m, r_m.shape)
        messages["velocity_m_s"] = v_m_s + self._rng.normal(0.0, self._noise.isl_velocity_m_s, v_m_s.shape)
        messages["sigma_position_m"] = self._noise.isl_position_m
        messages["sigma_velocity_m_s"] = self._noise.isl_velocity_m_s
        octets = messages.tobytes()
        size = MESSAGE_DTYPE.itemsize
        return Batch(
            timestamp_ns,
            [octets[start : start + size] for start in range(0, len(octets), size)],
            [self._names[member] for member in members.tolist()],
            self._numbers[members].tolist(),
            [None] * turns.size,
        )

    def malformed(self, frame: bytes) -> bytes:
        """A frame of another length, with the right prefix; one in eight has a prefix that ends the connection."""
        if self._rng.integers(8) == 0:
            return FRAMING_LOST_PREFIX + frame[isl.PREFIX_SIZE :]
        size = int(self._rng.integers(0, isl.FRAME_SIZE))
        return size.to_bytes(isl.PREFIX_SIZE, "little") + frame[isl.PREFIX_SIZE : isl.PREFIX_SIZE + size]

    def impossible(self, frame: bytes) -> bytes:
        """Inside the Earth, far above escape velocity, with a NaN position, or a day ahead."""
        message = np.frombuffer(frame, dtype=MESSAGE_DTYPE).copy()
        match int(self._rng.integers(4)):
            case 0:
                message["position_m"] *= 1e-3
            case 1:
                message["velocity_m_s"] *= 100.0
            case 2:
                message["position_m"] = np.nan
            case _:
                message["timestamp_ns"] += NS_PER_DAY
        return message.tobytes()

    def observation_ids(self, frames: Sequence[bytes]) -> Sequence[UUID]:
        """The ids are made from the 72 bytes after the prefix."""
        return observation_ids("isl", [frame[isl.PREFIX_SIZE :] for frame in frames])
