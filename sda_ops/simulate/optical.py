"""Telescopes that share one archive: directions of the objects above them, as JSON entries.

An observation's time is that of the light's arrival, as `sda_ops.astro.topocentric` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

from sda_ops.astro.frames import sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.sites import Site
from sda_ops.astro.time import Nanoseconds, julian_date
from sda_ops.astro.topocentric import telescope_measurement
from sda_ops.records.observation import SourceKind
from sda_ops.simulate.config import Noise
from sda_ops.simulate.frames import Batch
from sda_ops.simulate.world import World, WorldInterval
from sda_ops.wire import optical

MIN_ELEVATION_RAD = np.deg2rad(20.0)


class Telescopes:
    """All telescopes of one archive, observing in turn, with consecutive site ids. No two observations share a timestamp."""

    kind: SourceKind = "optical"

    def __init__(
        self, world: World, *, sites: Sequence[Site], noise: Noise, rng: np.random.Generator, first_site_id: int = 1
    ) -> None:
        self._world = world
        self._sites = sites
        self._first_site_id = first_site_id
        self._noise = noise
        self._rng = rng
        self._turn = 0
        self._interval: WorldInterval | None = None
        self._visible: list[npt.NDArray[np.intp]] = []

    def observe(self, interval: WorldInterval, timestamp_ns: Nanoseconds) -> Batch:
        """One observation at each time, from the telescopes in turn; a telescope without a visible object makes none."""
        if interval is not self._interval:
            self._interval = interval
            self._visible = [
                interval.visible(site, min_elevation_rad=MIN_ELEVATION_RAD, max_range_m=np.inf) for site in self._sites
            ]
        sites = (self._turn + np.arange(len(timestamp_ns))) % len(self._sites)
        entries: list[tuple[optical.OpticalEntry, int]] = []
        for index, (site, visible) in enumerate(zip(self._sites, self._visible, strict=True)):
            times_ns = timestamp_ns[sites == index]
            if visible.size and times_ns.size:
                site_id = self._first_site_id + index
                entries += self._look(interval, site, site_id, self._rng.choice(visible, times_ns.size), times_ns)
        self._turn += len(timestamp_ns)
        entries.sort(key=lambda pair: pair[0].timestamp_ns)
        return Batch(
            np.array([entry.timestamp_ns for entry, _ in entries], dtype=np.int64),
            [msgspec.json.encode(entry) for entry, _ in entries],
            [f"optical-{entry.site_id}" for entry, _ in entries],
            [number for _, number in entries],
            [None] * len(entries),
        )

    def malformed(self, frame: bytes) -> bytes:
        """JSON that is not an entry: a missing key, a text instead of a number, or not an object."""
        entry = msgspec.json.decode(frame)
        match int(self._rng.integers(3)):
            case 0:
                del entry["dec_rad"]
            case 1:
                entry["ra_rad"] = "12h 34m"
            case _:
                entry = f"exposure {entry['obs_id']} failed"
        return msgspec.json.encode(entry)

    def impossible(self, frame: bytes) -> bytes:
        """A declination beyond the pole, or a negative sigma."""
        entry = msgspec.json.decode(frame)
        field, value = (("dec_rad", 2.0), ("sigma_arcsec", -1.0))[int(self._rng.integers(2))]
        return msgspec.json.encode({**entry, field: value})

    def observation_ids(self, frames: Sequence[bytes]) -> Sequence[UUID]:
        """The ids that the wire format's decoder makes."""
        observations, _ = optical.decode_page(b"[" + b",".join(frames) + b"]", ingest_timestamp=0)
        return [observation.observation_id for observation in observations]

    def _look(
        self,
        interval: WorldInterval,
        site: Site,
        site_id: int,
        objects: npt.NDArray[np.intp],
        timestamp_ns: Nanoseconds,
    ) -> list[tuple[optical.OpticalEntry, int]]:
        """One telescope's entry for object i at time i, and the object's number."""
        r_m, v_m_s = interval.states(objects, timestamp_ns)
        jd, fraction = julian_date(timestamp_ns)
        to_j2000 = teme_to_j2000_matrix(jd[0], fraction[0])
        ra_rad, dec_rad = telescope_measurement(site.r_fixed_m, r_m, v_m_s, sidereal_angle(jd, fraction), to_j2000)
        sigma_rad = self._noise.optical_arcsec * optical.RAD_PER_ARCSEC
        ra_rad = (ra_rad + self._rng.normal(0.0, sigma_rad, objects.size) / np.cos(dec_rad)) % (2.0 * np.pi)
        dec_rad = np.clip(dec_rad + self._rng.normal(0.0, sigma_rad, objects.size), -np.pi / 2.0, np.pi / 2.0)
        return [
            (
                optical.OpticalEntry(f"{site_id}-{time}", time, ra, dec, self._noise.optical_arcsec, site_id),
                self._world.catalog_numbers[index],
            )
            for time, ra, dec, index in zip(
                timestamp_ns.tolist(), ra_rad.tolist(), dec_rad.tolist(), objects.tolist(), strict=True
            )
        ]
