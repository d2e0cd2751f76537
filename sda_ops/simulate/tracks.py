"""A pass of catalogued objects over a radar, as a CCSDS Tracking Data Message (503.0-B, KVN), for a replay."""

from __future__ import annotations

import numpy as np

from sda_ops.astro.frames import sidereal_angle
from sda_ops.astro.sites import Site
from sda_ops.astro.time import NS_PER_S, julian_date
from sda_ops.astro.topocentric import SPEED_OF_LIGHT_M_S, radar_measurement
from sda_ops.simulate.config import Noise
from sda_ops.simulate.radar import MAX_RANGE_M, MIN_ELEVATION_RAD
from sda_ops.simulate.world import World

M_PER_KM = 1000.0


def track_tdm(
    world: World,
    *,
    site: Site,
    participant: str,
    start_ns: int,
    seconds: float,
    rate_hz: float,
    noise: Noise,
    seed: int,
) -> str:
    """Detections of random visible objects, ``rate_hz`` of them a second, from ``start_ns`` (UTC) on.

    Ranges are round trips in seconds, as EISCAT writes them, Doppler is positive when receding, angles are azimuth and
    elevation, time tags are of the reception. Without a visible object the message has no data.
    """
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    for timestamp_ns in (start_ns + np.arange(int(seconds * rate_hz)) * int(NS_PER_S / rate_hz)).tolist():
        interval = world.interval(timestamp_ns)
        visible = interval.visible(site, min_elevation_rad=MIN_ELEVATION_RAD, max_range_m=MAX_RANGE_M)
        if not visible.size:
            continue
        at = np.array([timestamp_ns])
        r_m, v_m_s = interval.states(rng.choice(visible, 1), at)
        seen = radar_measurement(site.r_fixed_m, site.horizon, r_m, v_m_s, sidereal_angle(*julian_date(at)))
        tag = np.datetime_as_string(np.datetime64(timestamp_ns, "ns"), unit="ns")
        round_trip_s = 2.0 * (seen.range_m[0] + rng.normal(0.0, noise.radar_range_m)) / SPEED_OF_LIGHT_M_S
        doppler_km_s = (seen.range_rate_m_s[0] + rng.normal(0.0, noise.radar_range_rate_m_s)) / M_PER_KM
        elevation_deg = np.rad2deg(seen.elevation_rad[0] + rng.normal(0.0, noise.radar_angle_rad))
        across_rad = rng.normal(0.0, noise.radar_angle_rad) / np.cos(seen.elevation_rad[0])
        lines += [
            f"RANGE = {tag} {round_trip_s:.15f}",
            f"DOPPLER_INSTANTANEOUS = {tag} {doppler_km_s:.9f}",
            f"ANGLE_1 = {tag} {np.rad2deg(seen.azimuth_rad[0] + across_rad) % 360.0:.7f}",
            f"ANGLE_2 = {tag} {min(elevation_deg, 90.0):.7f}",
        ]
    return "\n".join((*_head(participant), *lines, "DATA_STOP", ""))


def _head(participant: str) -> tuple[str, ...]:
    return (
        "CCSDS_TDM_VERS = 1.0",
        "COMMENT simulated",
        "CREATION_DATE = 2026-01-01T00:00:00",
        "ORIGINATOR = SIMULATOR",
        "META_START",
        "TIME_SYSTEM = UTC",
        f"PARTICIPANT_1 = {participant}",
        "PARTICIPANT_2 = UNKNOWN",
        "MODE = SEQUENTIAL",
        "PATH = 1,2,1",
        "TIMETAG_REF = RECEIVE",
        "RANGE_UNITS = s",
        "ANGLE_TYPE = AZEL",
        "META_STOP",
        "DATA_START",
    )
