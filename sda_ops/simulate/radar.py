"""A radar array: detections of the visible objects in turn, as 64-byte datagrams.

A detection's time is the arrival of the echo, as in `sda_ops.astro.topocentric`.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import numpy as np

from sda_ops.astro.frames import sidereal_angle
from sda_ops.astro.sites import Site
from sda_ops.astro.time import NS_PER_DAY, Nanoseconds, julian_date
from sda_ops.astro.topocentric import radar_measurement
from sda_ops.records.ids import observation_ids
from sda_ops.records.observation import SourceKind
from sda_ops.simulate.config import Noise
from sda_ops.simulate.frames import Batch
from sda_ops.simulate.world import World, WorldInterval
from sda_ops.wire import radar

MIN_ELEVATION_RAD = np.deg2rad(10.0)
MAX_RANGE_M = 5_000_000.0
"""The reach of a surveillance radar for low orbits; geostationary objects are beyond it."""


class RadarArray:
    """One array. Every object gets a new track number when it rises; numbers count from 1."""

    kind: SourceKind = "radar"

    def __init__(self, world: World, *, array_id: int, site: Site, noise: Noise, rng: np.random.Generator) -> None:
        self._world = world
        self._array_id = array_id
        self._site = site
        self._noise = noise
        self._rng = rng
        self._turn = 0
        self._interval: WorldInterval | None = None
        self._visible = np.empty(0, dtype=np.intp)
        self._tracks = np.zeros(len(world.catalog_numbers), dtype=np.uint32)
        self._last_track = 0

    def observe(self, interval: WorldInterval, timestamp_ns: Nanoseconds) -> Batch:
        """One detection at each time, of the visible objects in turn."""
        if interval is not self._interval:
            self._update_visible(interval)
        count = len(timestamp_ns) if self._visible.size else 0
        timestamp_ns = timestamp_ns[:count]
        objects = self._visible[(self._turn + np.arange(count)) % max(1, self._visible.size)]
        self._turn += count
        r_m, v_m_s = interval.states(objects, timestamp_ns)
        angle_rad = sidereal_angle(*julian_date(timestamp_ns))
        seen = radar_measurement(self._site.r_fixed_m, self._site.horizon, r_m, v_m_s, angle_rad)
        noise, rng = self._noise, self._rng
        detections = np.zeros(count, dtype=radar.FRAME_DTYPE)
        detections["array_id"] = self._array_id
        detections["target_track_id"] = self._tracks[objects]
        detections["timestamp_ns"] = timestamp_ns
        detections["range_m"] = seen.range_m + rng.normal(0.0, noise.radar_range_m, count)
        detections["range_rate_m_s"] = seen.range_rate_m_s + rng.normal(0.0, noise.radar_range_rate_m_s, count)
        # The noise is an angle on the sky: near the zenith the azimuth is imprecise.
        azimuth_noise_rad = rng.normal(0.0, noise.radar_angle_rad, count) / np.cos(seen.elevation_rad)
        detections["azimuth_rad"] = (seen.azimuth_rad + azimuth_noise_rad) % (2.0 * np.pi)
        elevation_noise_rad = rng.normal(0.0, noise.radar_angle_rad, count)
        detections["elevation_rad"] = np.minimum(seen.elevation_rad + elevation_noise_rad, np.pi / 2.0)
        detections["sigma_range_m"] = noise.radar_range_m
        detections["sigma_rate_m_s"] = noise.radar_range_rate_m_s
        octets = detections.tobytes()
        size = radar.FRAME_SIZE
        numbers = self._world.catalog_numbers
        return Batch(
            timestamp_ns,
            [octets[start : start + size] for start in range(0, len(octets), size)],
            [f"radar-{self._array_id}"] * count,
            [numbers[index] for index in objects.tolist()],
            [None] * count,
        )

    def malformed(self, frame: bytes) -> bytes:
        """A datagram that is too short (possibly empty) or too long."""
        size = int(self._rng.integers(0, 2 * len(frame)))
        return (frame + frame)[: size if size != len(frame) else size + 1]

    def impossible(self, frame: bytes) -> bytes:
        """No range, an impossible range or speed, an elevation beyond the zenith, or a time far ahead."""
        detection = np.frombuffer(frame, dtype=radar.FRAME_DTYPE).copy()
        field, value = _IMPOSSIBLE[int(self._rng.integers(len(_IMPOSSIBLE)))]
        detection[field] = value
        if self._rng.integers(len(_IMPOSSIBLE) + 1) == 0:
            detection["timestamp_ns"] += NS_PER_DAY
        return detection.tobytes()

    def observation_ids(self, frames: Sequence[bytes]) -> Sequence[UUID]:
        """The ids are made from all 64 bytes."""
        return observation_ids("radar", frames)

    def _update_visible(self, interval: WorldInterval) -> None:
        """Update the visible objects, with new track numbers for those that have risen, in a new random order."""
        visible = interval.visible(self._site, min_elevation_rad=MIN_ELEVATION_RAD, max_range_m=MAX_RANGE_M)
        before = np.zeros(self._tracks.size, dtype=np.bool_)
        before[self._visible] = True
        risen = visible[~before[visible]]
        self._tracks[risen] = self._last_track + 1 + np.arange(risen.size)
        self._last_track += risen.size
        self._visible = self._rng.permutation(visible)
        self._interval = interval


_IMPOSSIBLE = (
    ("range_m", np.nan),
    ("range_m", -1000.0),
    ("range_m", 1e12),
    ("range_rate_m_s", 1e6),
    ("elevation_rad", 2.0),
)
"""`sda_ops.validate` rejects each of these, for any other values of the detection."""
