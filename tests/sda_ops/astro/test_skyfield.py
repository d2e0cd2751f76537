"""Predictions compared with skyfield, which uses sgp4 too, but its own frames, sites and angles.

The sidereal angle gets skyfield's UT1 - UTC; neither has polar motion. Skyfield's directions are in the ICRS with
IAU 2006/2000A, ours in FK5 with IAU 1976/1980.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import erfa
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sgp4.api import WGS72, Satrec, SatrecArray
from skyfield.api import EarthSatellite, load, wgs84

from sda_ops.astro.frames import sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.propagation import sgp4_states
from sda_ops.astro.sites import Site
from sda_ops.astro.time import Floats, Nanoseconds, julian_date
from sda_ops.astro.topocentric import (
    SPEED_OF_LIGHT_M_S,
    direction_j2000_many,
    light_time_corrected,
    look_many,
    radar_measurement,
    site_in_teme,
    telescope_measurement,
)
from tests.helpers.sizes import examples

TIMESCALE = load.timescale(builtin=True)
NS_PER_S = 10**9
JANUARY_2018_S, JANUARY_2026_S = 1_514_764_800, 1_767_225_600

TEN_NANORADIANS = 1e-8
ONE_TENTH_ARCSECOND = np.deg2rad(0.1 / 3600)
ONE_MILLIMETRE = 1e-3
ONE_MILLIMETRE_PER_SECOND = 1e-3
A_TENTH_OF_A_MILLIMETRE_PER_SECOND = 1e-4


class Scene(NamedTuple):
    """One object and one site at three times, for both libraries."""

    site: Site
    satrec: Satrec
    time_ns: Nanoseconds

    def states(self) -> tuple[Floats, Floats]:
        states = sgp4_states(SatrecArray([self.satrec]), self.time_ns)
        assert states.usable.all()
        return states.r_teme_m[0], states.v_teme_m_s[0]

    def flown(self) -> tuple[Floats, Floats]:
        """Positions, and velocities as their derivatives, from which SGP4's own velocities differ by some cm/s."""
        around_ns = self.time_ns[:, np.newaxis] + np.array([-NS_PER_S // 4, 0, NS_PER_S // 4])
        r_m = sgp4_states(SatrecArray([self.satrec]), around_ns.ravel()).r_teme_m.reshape(3, 3, 3)
        return r_m[:, 1], (r_m[:, 2] - r_m[:, 0]) / 0.5

    def sidereal_rad(self) -> Floats:
        return sidereal_angle(*julian_date(self.time_ns), ut1_minus_utc_s=float(self.skyfield_time().dut1[0]))

    def skyfield_time(self, *, earlier_s: Floats | float = 0.0) -> Any:
        start = datetime.fromtimestamp(int(self.time_ns[0]) // NS_PER_S, UTC)
        seconds = (self.time_ns - int(start.timestamp()) * NS_PER_S) / NS_PER_S - earlier_s
        day = (start.year, start.month, start.day)
        return TIMESCALE.utc(*day, 0, 0, start.hour * 3600 + start.minute * 60 + start.second + seconds)

    def skyfield_site(self) -> Any:
        degrees = np.rad2deg([self.site.latitude_rad, self.site.longitude_rad])
        return wgs84.latlon(float(degrees[0]), float(degrees[1]), elevation_m=self.site.height_m)

    def skyfield_satellite(self) -> Any:
        return EarthSatellite.from_satrec(self.satrec, TIMESCALE)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    site = Site(
        "anywhere",
        draw(st.floats(-1.57, 1.57)),
        draw(st.floats(-np.pi, np.pi)),
        draw(st.floats(-400.0, 6000.0)),
    )
    epoch_s = draw(st.integers(JANUARY_2018_S, JANUARY_2026_S))
    perigee_km, apogee_km = sorted((draw(st.floats(300.0, 36_000.0)), draw(st.floats(300.0, 36_000.0))))
    a_km = 6378.135 + (perigee_km + apogee_km) / 2
    satrec = Satrec()
    satrec.sgp4init(
        WGS72,
        "i",
        1,
        epoch_s / 86_400 + 2440587.5 - 2433281.5,
        1e-5,
        0.0,
        0.0,
        (apogee_km - perigee_km) / (2 * a_km),
        draw(st.floats(0.0, 6.28)),
        draw(st.floats(0.001, 3.14)),
        draw(st.floats(0.0, 6.28)),
        60.0 * np.sqrt(398600.8 / a_km**3),
        draw(st.floats(0.0, 6.28)),
    )
    start_ns = epoch_s * NS_PER_S + draw(st.integers(-NS_PER_S, 86_400 * NS_PER_S))
    return Scene(site, satrec, start_ns + np.array([0, 137, 1_000_000_000], dtype=np.int64))


def difference(one_rad: Floats, other_rad: Floats) -> Floats:
    return np.abs((one_rad - other_rad + np.pi) % (2.0 * np.pi) - np.pi)


@given(scenes())
@settings(max_examples=examples(60))
def test_azimuth_elevation_range_and_range_rate_match_skyfield(scene: Scene) -> None:
    """Geometric: angles to 10 nrad on the sky, range to 1 mm, range-rate to 0.1 mm/s, at any site, time and orbit."""
    r_m, v_m_s = scene.states()
    ours = look_many(scene.site.r_fixed_m, scene.site.horizon, r_m, v_m_s, scene.sidereal_rad())
    apart = (scene.skyfield_satellite() - scene.skyfield_site()).at(scene.skyfield_time())
    elevation, azimuth, distance, _, _, rate = apart.frame_latlon_and_rates(scene.skyfield_site())
    east_rad = difference(ours.azimuth_rad, azimuth.radians) * np.cos(ours.elevation_rad)
    assert east_rad.max() < TEN_NANORADIANS
    assert np.abs(ours.elevation_rad - elevation.radians).max() < TEN_NANORADIANS
    assert np.abs(ours.range_m - distance.m).max() < ONE_MILLIMETRE
    assert np.abs(ours.range_rate_m_s - rate.m_per_s).max() < A_TENTH_OF_A_MILLIMETRE_PER_SECOND


@given(scenes())
@settings(max_examples=examples(60))
def test_right_ascension_and_declination_match_skyfield(scene: Scene) -> None:
    """Geometric: the direction in J2000 is skyfield's in the ICRS to a tenth of an arcsecond."""
    r_m, _ = scene.states()
    matrices = teme_to_j2000_matrix(*julian_date(scene.time_ns))
    ra_rad, dec_rad = direction_j2000_many(scene.site.r_fixed_m, r_m, scene.sidereal_rad(), matrices)
    ra, dec, _ = (scene.skyfield_satellite() - scene.skyfield_site()).at(scene.skyfield_time()).radec()
    assert erfa.seps(ra_rad, dec_rad, ra.radians, dec.radians).max() < ONE_TENTH_ARCSECOND


def skyfields_light_time(scene: Scene) -> tuple[Floats, Any]:
    """The delay, iterated with skyfield's positions at the time when the light left, and the vector from site to object."""
    site_m = scene.skyfield_site().at(scene.skyfield_time()).position.m
    delay_s: Floats = np.zeros(3)
    for _ in range(5):
        satellite_m = scene.skyfield_satellite().at(scene.skyfield_time(earlier_s=delay_s)).position.m
        delay_s = np.linalg.norm(satellite_m - site_m, axis=0) / SPEED_OF_LIGHT_M_S
    return delay_s, satellite_m - site_m


@given(scenes())
@settings(max_examples=examples(60))
def test_light_time_matches_skyfield(scene: Scene) -> None:
    """The delay agrees with skyfield's, iterated, to 1 mm of distance within 48,000 km."""
    r_m, v_m_s = scene.flown()
    site_m = site_in_teme(scene.site.r_fixed_m, scene.sidereal_rad())
    _, _, delay_s = light_time_corrected(r_m, v_m_s, site_m)
    theirs_s, _ = skyfields_light_time(scene)
    assert np.abs(delay_s - theirs_s).max() * SPEED_OF_LIGHT_M_S < ONE_MILLIMETRE


@given(scenes())
@settings(max_examples=examples(60))
def test_a_telescope_measurement_matches_skyfield_at_the_time_when_the_light_left(scene: Scene) -> None:
    """Observed: the direction from skyfield's site at t to its object at t - d agrees to 0.1 arcseconds."""
    r_m, v_m_s = scene.states()
    matrices = teme_to_j2000_matrix(*julian_date(scene.time_ns))
    ra_rad, dec_rad = telescope_measurement(scene.site.r_fixed_m, r_m, v_m_s, scene.sidereal_rad(), matrices)
    _, (x, y, z) = skyfields_light_time(scene)
    assert erfa.seps(ra_rad, dec_rad, *erfa.c2s(np.stack((x, y, z), axis=-1))).max() < ONE_TENTH_ARCSECOND


@given(scenes())
@settings(max_examples=examples(60))
def test_a_radar_measurement_matches_skyfield_at_the_bounce(scene: Scene) -> None:
    """Observed: skyfield's geometry at t - range / c agrees to 1 mm in range, 1 mm/s in range-rate, 10 nrad in angles."""
    at = (scene.site.r_fixed_m, scene.site.horizon)
    ours = radar_measurement(*at, *scene.flown(), scene.sidereal_rad())
    rate_m_s = radar_measurement(*at, *scene.states(), scene.sidereal_rad()).range_rate_m_s
    bounce = scene.skyfield_time(earlier_s=ours.range_m / SPEED_OF_LIGHT_M_S)
    apart = (scene.skyfield_satellite() - scene.skyfield_site()).at(bounce)
    elevation, azimuth, distance, _, _, rate = apart.frame_latlon_and_rates(scene.skyfield_site())
    assert np.abs(ours.range_m - distance.m).max() < ONE_MILLIMETRE
    assert np.abs(rate_m_s - rate.m_per_s).max() < ONE_MILLIMETRE_PER_SECOND
    assert (difference(ours.azimuth_rad, azimuth.radians) * np.cos(ours.elevation_rad)).max() < TEN_NANORADIANS
    assert np.abs(ours.elevation_rad - elevation.radians).max() < TEN_NANORADIANS
