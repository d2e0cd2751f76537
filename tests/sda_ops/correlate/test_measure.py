"""Predictions, residuals and distances of candidates, compared with `sda_ops.astro.topocentric` and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.astro.frames import sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.sites import Site, teme_sites
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, Floats, Nanoseconds, julian_date
from sda_ops.astro.topocentric import radar_measurement, telescope_measurement
from sda_ops.catalog import synthetic_catalog
from sda_ops.correlate.measure import (
    OpticalRows,
    RadarRows,
    Scores,
    StateRows,
    score_optical,
    score_radar,
    score_states,
)
from sda_ops.propagation.interval import STEP_NS, CatalogInterval, Pairs
from sda_ops.propagation.uncertainty import AxisErrors, ElementSetErrors, Objects
from tests.helpers.running import NOON_NS
from tests.helpers.sizes import examples
from tests.scenes.correlation import (
    TEIDE,
    TROMSO,
    Moment,
    direction_of,
    echo_of,
    elevations_rad,
    flying_straight,
    interval_at,
    noon,
    orbit_axes,
    risen,
    sky,
)

A_MICROMETRE, A_NANOMETRE_PER_SECOND = 1e-6, 1e-9
A_PICORADIAN, A_NANORADIAN = 1e-12, 1e-9
ONE_IN_TEN_THOUSAND, A_THOUSANDTH = 1e-4, 1e-3

SOME_SIGMA = np.array([30.0, 0.5, 5e-4])
"""Standard deviations of range (m), range-rate (m/s) and angles (rad)."""

NO_GROWTH = dict.fromkeys(("radial_m_per_day", "in_track_m_per_day", "cross_track_m_per_day"), 0.0)


def radar_rows(site: Site, timestamp_ns: Nanoseconds, measured: Floats, sigma: Floats = SOME_SIGMA) -> RadarRows:
    shape = (timestamp_ns.size,)
    return RadarRows(
        timestamp_ns,
        sidereal_angle(*julian_date(timestamp_ns)),
        np.broadcast_to(site.r_fixed_m, (*shape, 3)),
        np.broadcast_to(site.horizon, (*shape, 3, 3)),
        measured,
        np.broadcast_to(sigma, (*shape, 3)),
    )


def optical_rows(site: Site, timestamp_ns: Nanoseconds, angles: Floats, sigma_rad: float = 1e-5) -> OpticalRows:
    return OpticalRows(
        timestamp_ns,
        sidereal_angle(*julian_date(timestamp_ns)),
        np.broadcast_to(site.r_fixed_m, (timestamp_ns.size, 3)),
        unit(angles[:, 0], angles[:, 1]),
        np.full(timestamp_ns.size, sigma_rad),
    )


def unit(longitude_rad: Floats, latitude_rad: Floats) -> Floats:
    cos = np.cos(latitude_rad)
    return np.stack((cos * np.cos(longitude_rad), cos * np.sin(longitude_rad), np.sin(latitude_rad)), axis=-1)


def each_of(objects: Objects) -> Pairs:
    """Observation i is compared with object i."""
    return Pairs(np.arange(objects.size), objects)


class Seen(NamedTuple):
    """Objects above the horizon of a site, one time of an interval for each, and their states at that time."""

    interval: CatalogInterval
    objects: Objects
    timestamp_ns: Nanoseconds
    r_m: Floats
    v_m_s: Floats


def seen_from(site: Site, interval: CatalogInterval, *, above_deg: float = 5.0) -> Seen:
    objects = risen(site, interval, interval.start_ns + STEP_NS // 2, above_deg=above_deg)
    timestamp_ns = interval.start_ns + np.arange(objects.size) * (STEP_NS // objects.size)
    return Seen(interval, objects, timestamp_ns, *interval.states(objects, timestamp_ns))


def radar_reports(site: Site, seen: Seen) -> Floats:
    angle_rad = sidereal_angle(*julian_date(seen.timestamp_ns))
    look = radar_measurement(site.r_fixed_m, site.horizon, seen.r_m, seen.v_m_s, angle_rad)
    return np.stack((look.range_m, look.range_rate_m_s, look.azimuth_rad, look.elevation_rad), axis=1)


def telescope_reports(site: Site, seen: Seen) -> Floats:
    date = julian_date(seen.timestamp_ns)
    reports = telescope_measurement(
        site.r_fixed_m, seen.r_m, seen.v_m_s, sidereal_angle(*date), teme_to_j2000_matrix(*date)
    )
    return np.stack(reports, axis=1)


# Predictions and residuals.


def test_a_radars_prediction_is_radar_measurement() -> None:
    """For every object over Tromsø, low and geostationary, a report without noise has no residual and no distance."""
    seen = seen_from(TROMSO, noon())
    assert np.ptp(np.log10(radar_reports(TROMSO, seen)[:, 0])) > 1.5
    scores = score_radar(
        radar_rows(TROMSO, seen.timestamp_ns, radar_reports(TROMSO, seen)), each_of(seen.objects), noon()
    )
    tolerances = [A_MICROMETRE, A_NANOMETRE_PER_SECOND, A_PICORADIAN, A_PICORADIAN]
    assert np.all(np.abs(scores.residuals).max(axis=0) < tolerances)
    assert scores.mahalanobis_squared.max() < 1e-12


def test_a_telescopes_prediction_is_telescope_measurement() -> None:
    """One rotation to J2000 is accurate enough for 20 seconds."""
    seen = seen_from(TEIDE, noon())
    scores = score_optical(
        optical_rows(TEIDE, seen.timestamp_ns, telescope_reports(TEIDE, seen)), each_of(seen.objects), noon()
    )
    assert np.abs(scores.residuals).max() < A_NANORADIAN


def test_a_radars_residuals_are_measured_minus_predicted_with_azimuth_scaled_to_the_sky() -> None:
    """Farther, receding faster, clockwise and up are positive; azimuth is multiplied by the cosine of the elevation."""
    seen = seen_from(TROMSO, noon())
    measured = radar_reports(TROMSO, seen)
    measured += [10.0, 0.1, 0.0, 0.0]
    measured[:, 2] += 1e-6 / np.cos(measured[:, 3])
    measured[:, 3] += 2e-6
    scores = score_radar(radar_rows(TROMSO, seen.timestamp_ns, measured), each_of(seen.objects), noon())
    low = measured[:, 3] < np.deg2rad(80.0)
    np.testing.assert_allclose(scores.residuals[low, :2], [[10.0, 0.1]] * low.sum(), atol=A_MICROMETRE)
    np.testing.assert_allclose(scores.residuals[low, 2:], [[1e-6, 2e-6]] * low.sum(), atol=1e-10)


def test_a_telescopes_residuals_are_measured_minus_predicted_with_right_ascension_scaled_to_the_sky() -> None:
    """East and north are positive; right ascension is multiplied by the cosine of the declination."""
    seen = seen_from(TEIDE, noon())
    measured = telescope_reports(TEIDE, seen)
    measured[:, 0] += 1e-6 / np.cos(measured[:, 1])
    measured[:, 1] += 2e-6
    scores = score_optical(optical_rows(TEIDE, seen.timestamp_ns, measured), each_of(seen.objects), noon())
    far = np.abs(measured[:, 1]) < np.deg2rad(80.0)
    np.testing.assert_allclose(scores.residuals[far], [[1e-6, 2e-6]] * far.sum(), atol=A_NANORADIAN)


def test_a_states_residuals_are_along_the_predicted_orbits_axes() -> None:
    """Higher, ahead and towards the angular momentum are positive, for positions and velocities."""
    objects = np.arange(0, 600, 7)
    timestamp_ns = np.full(objects.size, NOON_NS + 3 * NS_PER_S)
    r_m, v_m_s = noon().states(objects, timestamp_ns)
    axes = orbit_axes(r_m, v_m_s)
    off = np.array([100.0, 200.0, -300.0]), np.array([0.1, 0.2, -0.3])
    moved = (r_m + np.einsum("i,nij->nj", off[0], axes), v_m_s + np.einsum("i,nij->nj", off[1], axes))
    sigma = np.full((objects.size, 2), 10.0)
    scores = score_states(StateRows(timestamp_ns, *moved, sigma), each_of(objects), noon())
    np.testing.assert_allclose(scores.residuals, [np.concatenate(off)] * objects.size, atol=1e-6)
    variance = np.concatenate(noon().facts.errors.variances(objects, timestamp_ns), axis=1) + 10.0**2
    np.testing.assert_allclose(scores.mahalanobis_squared, np.sum(np.concatenate(off) ** 2 / variance, axis=1))
    log_pdf = -0.5 * (scores.mahalanobis_squared + np.sum(np.log(variance), axis=1))
    np.testing.assert_allclose(scores.log_likelihood, log_pdf)


# The zenith and the celestial pole.

DIRECTIONS = st.tuples(st.floats(0.0, 0.02), st.floats(-np.pi, np.pi))
"""Distance from the zenith or the pole (radians), and bearing."""


def over(up: Floats, away: tuple[float, float]) -> Floats:
    """A unit vector at this distance and bearing from ``up``."""
    distance_rad, bearing_rad = away
    first = np.cross(up, [1.0, 0.0, 0.0])
    first /= np.linalg.norm(first)
    across: Floats = np.cos(bearing_rad) * first + np.sin(bearing_rad) * np.cross(up, first)
    toward: Floats = np.cos(distance_rad) * up + np.sin(distance_rad) * across
    return toward


def angle_between(a: Floats, b: Floats) -> float:
    return float(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))


def local_of(measured: Floats) -> Floats:
    """The direction east, north, up ``(3,)`` of a radar's four components."""
    direction: Floats = unit(np.pi / 2.0 - measured[2], measured[3])
    return direction


def above(site: Site, sight_teme: Floats, *, range_m: float = 8e5) -> CatalogInterval:
    """One object in this direction, moving at right angles to its position."""
    site_m = teme_sites(site.r_fixed_m, site.horizon, sidereal_angle(*julian_date(np.array([NOON_NS])))).r_teme_m[0]
    r_m = site_m + range_m * sight_teme
    across = np.cross(r_m, [0.3, 0.4, 0.5])
    return flying_straight(r_m[np.newaxis], 7_500.0 * across[np.newaxis] / np.linalg.norm(across))


def zenith(site: Site) -> Floats:
    horizon: Floats = teme_sites(
        site.r_fixed_m, site.horizon, sidereal_angle(*julian_date(np.array([NOON_NS])))
    ).horizon_teme
    up: Floats = horizon[0, 2]
    return up


def pole() -> Floats:
    north: Floats = teme_to_j2000_matrix(*julian_date(np.array(NOON_NS)))[2]
    return north


@settings(max_examples=examples(50))
@given(DIRECTIONS, DIRECTIONS)
def test_at_the_zenith_a_radars_residuals_are_the_angle_between(
    predicted: tuple[float, float], measured: tuple[float, float]
) -> None:
    """Azimuths jump by half a turn at the zenith; the residual is still the angle on the sky, and the distance fits it."""
    interval = above(TROMSO, over(zenith(TROMSO), predicted))
    moment = Moment.of(interval, 0, NOON_NS)
    report = echo_of(TROMSO, moment)
    seen = over(np.array([0.0, 0.0, 1.0]), measured)
    report[2:] = np.arctan2(seen[0], seen[1]), np.arctan2(seen[2], np.hypot(seen[0], seen[1]))
    scores = score_radar(radar_rows(TROMSO, np.array([NOON_NS]), report[np.newaxis]), each_of(np.array([0])), interval)
    apart_rad = angle_between(local_of(echo_of(TROMSO, moment)), seen)
    assert abs(np.hypot(*scores.residuals[0, 2:]) - apart_rad) < A_NANORADIAN
    expected = reference_radar(TROMSO, moment, report, SOME_SIGMA, variances_of(interval))
    assert scores.mahalanobis_squared[0] == pytest.approx(expected.squared, rel=1e-3, abs=1e-3)


@settings(max_examples=examples(50))
@given(DIRECTIONS, DIRECTIONS)
def test_at_the_celestial_pole_a_telescopes_residuals_are_the_angle_between(
    predicted: tuple[float, float], measured: tuple[float, float]
) -> None:
    """Right ascensions jump by half a turn at the pole; the residual is still the angle on the sky."""
    interval = above(TROMSO, over(pole(), predicted))
    moment = Moment.of(interval, 0, NOON_NS)
    seen = over(np.array([0.0, 0.0, 1.0]), measured)
    report = np.array([np.arctan2(seen[1], seen[0]), np.arctan2(seen[2], np.hypot(seen[0], seen[1]))])
    scores = score_optical(
        optical_rows(TROMSO, np.array([NOON_NS]), report[np.newaxis]), each_of(np.array([0])), interval
    )
    apart_rad = angle_between(unit(*direction_of(TROMSO, moment)), seen)
    assert abs(np.hypot(*scores.residuals[0]) - apart_rad) < A_NANORADIAN
    expected = reference_optical(TROMSO, moment, report, 1e-5, variances_of(interval))
    assert scores.mahalanobis_squared[0] == pytest.approx(expected.squared, rel=1e-3, abs=1e-3)


# Distances and likelihoods, compared with finite differences of the public functions.


@pytest.mark.parametrize(
    ("components", "sigma", "tolerance"),
    [
        (slice(0, 1), [1e-3, 1e9, 1e9], 1e-3),
        (slice(1, 2), [1e9, 1e-7, 1e9], 1e-5),
        (slice(2, 4), [1e9, 1e9, 1e-10], 3e-9),
    ],
)
def test_a_clock_error_shifts_a_component_by_its_rate_of_change(
    components: slice, sigma: list[float], tolerance: float
) -> None:
    """With only the clock uncertain, the residual of a report that is dated 10 ms late over its distance is the shift by one
    standard deviation, 10 ms. In high orbits, where the site's acceleration is a third of the rate of the range-rate."""
    exact = AxisErrors(**dict.fromkeys(("radial_m", "in_track_m", "cross_track_m"), 1e-4), **NO_GROWTH)
    errors = ElementSetErrors(near_earth=exact, deep_space=exact)
    seen = seen_from(TROMSO, interval_at([each for each in sky() if each.satrec.method == "d"], errors=errors))
    rows = radar_rows(TROMSO, seen.timestamp_ns + 10_000_000, radar_reports(TROMSO, seen), np.array(sigma))
    scores = score_radar(rows._replace(clock_s=0.01), each_of(seen.objects), seen.interval)
    shift = np.linalg.norm(scores.residuals[:, components], axis=1)
    assert shift.max() > 100 * tolerance
    np.testing.assert_allclose(shift / np.sqrt(scores.mahalanobis_squared), shift, rtol=0.0, atol=tolerance)


class Fit(NamedTuple):
    """Textbook values for one measurement and one object: the squared distance and the logarithm of the density."""

    squared: float
    log_likelihood: float


def reference(
    moment: Moment, measure: Callable[[Moment], Floats], residuals: Floats, sigma: Floats, variances: Floats
) -> Fit:
    """All components are in metres and m/s; a NaN residual was not measured."""
    steps = np.diag([50.0] * 3 + [0.05] * 3)
    jacobian = np.stack(
        [
            (measure(moment.moved(step[:3], step[3:])) - measure(moment.moved(-step[:3], -step[3:]))) / (2 * step.sum())
            for step in steps
        ],
        axis=1,
    )
    there = ~np.isnan(residuals)
    covariance = (jacobian @ np.diag(variances) @ jacobian.T + np.diag(sigma**2))[np.ix_(there, there)]
    z = residuals[there]
    squared = float(z @ np.linalg.inv(covariance) @ z)
    return Fit(squared, -0.5 * (squared + float(np.linalg.slogdet(covariance)[1])))


def tangents(direction: Floats) -> Floats:
    """Any two unit vectors ``(2, 3)`` at right angles to it and to each other."""
    first = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
    first /= np.linalg.norm(first)
    return np.stack((first, np.cross(direction, first)))


def offset(seen: Floats, predicted: Floats) -> Floats:
    """The angle from ``predicted`` to ``seen``, as components along `tangents`."""
    across: Floats = tangents(predicted) @ seen
    length = float(np.linalg.norm(across))
    across *= angle_between(seen, predicted) / length if length else 1.0
    return across


def reference_radar(site: Site, moment: Moment, measured: Floats, sigma: Floats, variances: Floats) -> Fit:
    predicted = echo_of(site, moment)
    range_m, ahead = predicted[0], local_of(predicted)

    def measure(where: Moment) -> Floats:
        echo = echo_of(site, where)
        return np.concatenate((echo[:2], range_m * (tangents(ahead) @ local_of(echo))))

    angles = np.full(2, np.nan) if np.isnan(measured[2]) else range_m * offset(local_of(measured), ahead)
    residuals = np.concatenate((measured[:2] - predicted[:2], angles))
    fit = reference(moment, measure, residuals, sigma[[0, 1, 2, 2]] * [1.0, 1.0, range_m, range_m], variances)
    return Fit(fit.squared, fit.log_likelihood + np.count_nonzero(~np.isnan(angles)) * np.log(range_m))


def reference_optical(site: Site, moment: Moment, measured: Floats, sigma_rad: float, variances: Floats) -> Fit:
    ahead, range_m = unit(*direction_of(site, moment)), echo_of(site, moment)[0]

    def measure(where: Moment) -> Floats:
        across_m: Floats = range_m * (tangents(ahead) @ unit(*direction_of(site, where)))
        return across_m

    residuals = range_m * offset(unit(*measured), ahead)
    fit = reference(moment, measure, residuals, np.full(2, sigma_rad * range_m), variances)
    return Fit(fit.squared, fit.log_likelihood + 2 * np.log(range_m))


def variances_of(interval: CatalogInterval, row: int = 0, timestamp_ns: int = NOON_NS) -> Floats:
    """The variances ``(6,)`` of position and velocity."""
    variances = interval.facts.errors.variances(np.array([row]), np.array([timestamp_ns]))
    of_state: Floats = np.concatenate(variances, axis=1)[0]
    return of_state


COMPONENTS: dict[str, Sequence[int]] = {
    "all": (),
    "no rate": (1,),
    "no angles": (2, 3),
    "range alone": (1, 2, 3),
}
"""The absent components of each case."""


@pytest.mark.parametrize("absent", COMPONENTS.values(), ids=COMPONENTS)
def test_a_radars_distance_and_likelihood_match_the_textbook(absent: Sequence[int]) -> None:
    """For noisy reports of every object over Tromsø, with Jacobians by finite differences and measured components only."""
    seen = seen_from(TROMSO, noon())
    rng = np.random.default_rng(5)
    measured = radar_reports(TROMSO, seen)
    noise = rng.normal(size=measured.shape) * [300.0, 1.0, 5e-4, 5e-4]
    noise[:, 2] /= np.cos(measured[:, 3])
    measured += noise
    measured[:, absent] = np.nan
    scores = score_radar(radar_rows(TROMSO, seen.timestamp_ns, measured), each_of(seen.objects), noon())
    for index, (row, time_ns) in enumerate(zip(seen.objects.tolist(), seen.timestamp_ns.tolist(), strict=True)):
        moment, variances = Moment.of(noon(), row, time_ns), variances_of(noon(), row, time_ns)
        expected = reference_radar(TROMSO, moment, measured[index], SOME_SIGMA, variances)
        assert scores.mahalanobis_squared[index] == pytest.approx(expected.squared, rel=ONE_IN_TEN_THOUSAND)
        assert scores.log_likelihood[index] == pytest.approx(expected.log_likelihood, abs=A_THOUSANDTH)
    assert np.all(np.isnan(scores.residuals[:, absent]))
    assert np.isnan(scores.residuals).sum() == len(absent) * seen.objects.size


def test_a_telescopes_distance_and_likelihood_match_the_textbook() -> None:
    """For noisy reports of every object over Teide, with Jacobians by finite differences."""
    seen = seen_from(TEIDE, noon())
    measured = telescope_reports(TEIDE, seen)
    measured += np.random.default_rng(6).normal(size=measured.shape) * 3e-5
    scores = score_optical(optical_rows(TEIDE, seen.timestamp_ns, measured), each_of(seen.objects), noon())
    for index, (row, time_ns) in enumerate(zip(seen.objects.tolist(), seen.timestamp_ns.tolist(), strict=True)):
        moment, variances = Moment.of(noon(), row, time_ns), variances_of(noon(), row, time_ns)
        expected = reference_optical(TEIDE, moment, measured[index], 1e-5, variances)
        assert scores.mahalanobis_squared[index] == pytest.approx(expected.squared, rel=ONE_IN_TEN_THOUSAND)
        assert scores.log_likelihood[index] == pytest.approx(expected.log_likelihood, abs=A_THOUSANDTH)


def test_without_pairs_there_are_no_scores() -> None:
    """Three observations without a candidate give empty arrays, not an error."""
    no_pairs = Pairs(np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp))
    times_ns = np.full(3, NOON_NS)
    for scores in (
        score_radar(radar_rows(TROMSO, times_ns, np.ones((3, 4))), no_pairs, noon()),
        score_optical(optical_rows(TROMSO, times_ns, np.ones((3, 2))), no_pairs, noon()),
        score_states(StateRows(times_ns, np.ones((3, 3)), np.ones((3, 3)), np.ones((3, 2))), no_pairs, noon()),
    ):
        assert scores.mahalanobis_squared.size == scores.log_likelihood.size == len(scores.residuals) == 0


# The covariance matches the true errors.

DRAWS = 20_000
GATE_MISS = 1e-4
SQUARED_AT_GATE = {1: 15.137, 2: 18.421, 4: 23.513, 6: 27.856}
"""By degrees of freedom m, the value that chi-squared exceeds once in 10,000 cases (scipy.stats.chi2.isf(1e-4, m))."""


@pytest.fixture(scope="module")
def truth() -> Seen:
    """Objects two days after their epochs, with true states that differ from the element sets as `uncertainty` assumes."""
    rng = np.random.default_rng(11)
    interval = interval_at(synthetic_catalog(objects=600, epoch_ns=NOON_NS - 2 * NS_PER_DAY), NOON_NS)
    over_one = np.flatnonzero(elevations_rad(TROMSO, interval, NOON_NS) > np.deg2rad(15.0))
    objects = over_one[np.arange(DRAWS) % over_one.size]
    timestamp_ns = NOON_NS + rng.integers(0, 4 * NS_PER_S, DRAWS)
    r_m, v_m_s = interval.states(objects, timestamp_ns)
    axes = orbit_axes(r_m, v_m_s)
    variances = interval.facts.errors.variances(objects, timestamp_ns)
    off_m, off_m_s = (rng.normal(size=(DRAWS, 3)) * np.sqrt(variance) for variance in variances)
    r_m = r_m + np.einsum("ni,nij->nj", off_m, axes)
    v_m_s = v_m_s + np.einsum("ni,nij->nj", off_m_s, axes)
    return Seen(interval, objects, timestamp_ns, r_m, v_m_s)


def assert_chi_squared(squared: Floats, components: int) -> None:
    """Mean and variance are within four standard errors, and the share outside the gate fits the distribution."""
    assert abs(squared.mean() - components) < 4.0 * np.sqrt(2.0 * components / DRAWS)
    kurtosis_term = np.sqrt((48.0 * components + 8.0 * components**2) / DRAWS)
    assert abs(squared.var() - 2.0 * components) < 4.0 * kurtosis_term
    # Two are expected. More than twelve occur once in a million cases.
    assert np.count_nonzero(squared > SQUARED_AT_GATE[components]) <= 12


@pytest.mark.parametrize(("absent", "components"), [((), 4), ((2, 3), 2), ((1, 2, 3), 1)])
def test_a_radars_distance_of_the_truth_is_chi_squared(truth: Seen, absent: Sequence[int], components: int) -> None:
    """20,000 draws of element set errors and radar noise; the degrees of freedom are the measured components."""
    measured = radar_reports(TROMSO, truth)
    noise = np.random.default_rng(12).normal(size=measured.shape) * SOME_SIGMA[[0, 1, 2, 2]]
    noise[:, 2] /= np.cos(measured[:, 3])
    measured += noise
    measured[:, absent] = np.nan
    scores = score_radar(radar_rows(TROMSO, truth.timestamp_ns, measured), each_of(truth.objects), truth.interval)
    assert_chi_squared(scores.mahalanobis_squared, components)


def test_a_telescopes_distance_of_the_truth_is_chi_squared(truth: Seen) -> None:
    """It has two degrees of freedom."""
    measured = telescope_reports(TROMSO, truth)
    noise = np.random.default_rng(13).normal(size=measured.shape) * 2e-4
    noise[:, 0] /= np.cos(measured[:, 1])
    rows = optical_rows(TROMSO, truth.timestamp_ns, measured + noise, 2e-4)
    assert_chi_squared(score_optical(rows, each_of(truth.objects), truth.interval).mahalanobis_squared, 2)


def test_a_states_distance_of_the_truth_is_chi_squared(truth: Seen) -> None:
    """It has six degrees of freedom."""
    rng = np.random.default_rng(14)
    r_m = truth.r_m + rng.normal(size=truth.r_m.shape) * 200.0
    v_m_s = truth.v_m_s + rng.normal(size=truth.v_m_s.shape) * 0.5
    rows = StateRows(truth.timestamp_ns, r_m, v_m_s, np.broadcast_to([200.0, 0.5], (DRAWS, 2)))
    scores: Scores = score_states(rows, each_of(truth.objects), truth.interval)
    assert_chi_squared(scores.mahalanobis_squared, 6)
