"""Candidates against measurements: residuals, their covariance, and the likelihood of the measurement for each candidate.

Each pair of an observation and a candidate has a residual ``z`` (measured minus predicted) and a Jacobian ``H`` of the
measured quantities with respect to the object's state in its own axes (radial, in-track, cross-track). The covariance is
``S = R + H P H^T``: ``R`` has the sensor's variances, ``P`` the element set's. ``z^T S^-1 z`` is the squared Mahalanobis
distance; with ``log det S`` it gives the likelihood (Bar-Shalom, Willett, Tian, Tracking and Data Fusion, 2011, 3.4).
Directions are compared as angles between unit vectors, so that the zenith and the celestial poles need no special case.

A clock that is wrong shifts all components of a measurement together, each by its rate of change. So where ``clock_s`` is set,
the clock is one more component of the state: ``H`` has the rates as a column, ``P`` the variance of the time. The components of
a state vector are taken as independent, in this too.

Arrays have one row for each pair. Nothing here decides which candidate is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sda_ops.astro.frames import EARTH_ROTATION_RAD_S
from sda_ops.astro.sites import teme_sites
from sda_ops.astro.time import Floats, Nanoseconds
from sda_ops.astro.topocentric import MU_M3_S2, light_time_corrected, site_in_teme
from sda_ops.propagation.interval import CatalogInterval, Pairs


class Scores(NamedTuple):
    """How well each pair fits.

    Attributes:
        mahalanobis_squared: ``(pairs,)``.
        log_likelihood: ``(pairs,)``, without the constant that all candidates of an observation share.
        residuals: ``(pairs, m)``, measured minus predicted; NaN for what was not measured.
    """

    mahalanobis_squared: Floats
    log_likelihood: Floats
    residuals: Floats


class RadarRows(NamedTuple):
    """Radar observations.

    Attributes:
        timestamp_ns: ``(n,)``.
        sidereal_rad: Sidereal angles ``(n,)`` at the timestamps.
        r_fixed_m: Earth-fixed positions ``(n, 3)`` of the sites.
        horizon: Horizons ``(n, 3, 3)`` of the sites.
        measured: ``(n, 4)``: range (m), range-rate (m/s), azimuth, elevation (rad); NaN for what was not measured.
        sigma: ``(n, 3)``: of range (m), range-rate (m/s) and angles (rad).
        clock_s: One standard deviation of the timestamps, seconds.
    """

    timestamp_ns: Nanoseconds
    sidereal_rad: Floats
    r_fixed_m: Floats
    horizon: Floats
    measured: Floats
    sigma: Floats
    clock_s: float = 0.0


class OpticalRows(NamedTuple):
    """Optical observations.

    Attributes:
        timestamp_ns: ``(n,)``.
        sidereal_rad: Sidereal angles ``(n,)`` at the timestamps.
        r_fixed_m: Earth-fixed positions ``(n, 3)`` of the sites.
        line_of_sight_j2000: ``(n, 3)``, unit vectors.
        sigma_rad: ``(n,)``.
        clock_s: One standard deviation of the timestamps, seconds.
    """

    timestamp_ns: Nanoseconds
    sidereal_rad: Floats
    r_fixed_m: Floats
    line_of_sight_j2000: Floats
    sigma_rad: Floats
    clock_s: float = 0.0


class StateRows(NamedTuple):
    """State vectors.

    Attributes:
        timestamp_ns: ``(n,)``.
        r_teme_m: ``(n, 3)``.
        v_teme_m_s: ``(n, 3)``.
        sigma: ``(n, 2)``: of each component of position (m) and velocity (m/s).
        clock_s: One standard deviation of the timestamps, seconds.
    """

    timestamp_ns: Nanoseconds
    r_teme_m: Floats
    v_teme_m_s: Floats
    sigma: Floats
    clock_s: float = 0.0


def score_radar(rows: RadarRows, pairs: Pairs, interval: CatalogInterval) -> Scores:
    """Residuals: range (m), range-rate (m/s), azimuth times cos elevation, elevation (rad)."""
    row = pairs.row
    timestamp_ns, sidereal_rad, r_fixed_m = rows.timestamp_ns[row], rows.sidereal_rad[row], rows.r_fixed_m[row]
    at_arrival = interval.states(pairs.object, timestamp_ns)
    r_m, v_m_s, delay_s = light_time_corrected(*at_arrival, site_in_teme(r_fixed_m, sidereal_rad))
    site = teme_sites(r_fixed_m, rows.horizon[row], sidereal_rad - EARTH_ROTATION_RAD_S * delay_s)  # at the bounce
    sight_m = r_m - site.r_teme_m
    range_m = _length(sight_m)
    sight = sight_m / range_m[:, np.newaxis]
    relative_m_s = v_m_s - site.v_teme_m_s
    range_rate_m_s = _dot(sight, relative_m_s)

    local = np.einsum("nij,nj->ni", site.horizon_teme, sight)
    azimuth_axis, elevation_axis = _axes(np.pi / 2.0 - np.arctan2(local[:, 0], local[:, 1]), local[:, 2])
    azimuth_axis = -azimuth_axis  # azimuth runs clockwise
    measured = rows.measured[row]
    seen = _unit(np.pi / 2.0 - measured[:, 2], measured[:, 3])
    along_azimuth, along_elevation = _angles_between(seen, local, azimuth_axis, elevation_axis)
    residuals = np.stack(
        (measured[:, 0] - range_m, measured[:, 1] - range_rate_m_s, along_azimuth, along_elevation), axis=1
    )

    to_axes = _orbit_axes(r_m, v_m_s)
    sight_axes = _in(to_axes, sight)
    across_m_s = relative_m_s - range_rate_m_s[:, np.newaxis] * sight
    across_axes = _in(to_axes, across_m_s / range_m[:, np.newaxis])
    jacobian = np.zeros((row.size, 4, 6))
    jacobian[:, 0, :3] = sight_axes
    jacobian[:, 1, :3] = across_axes
    jacobian[:, 1, 3:6] = sight_axes
    axes_teme = [np.einsum("nij,ni->nj", site.horizon_teme, axis) for axis in (azimuth_axis, elevation_axis)]
    for component, axis in enumerate(axes_teme, 2):
        jacobian[:, component, :3] = _in(to_axes, axis) / range_m[:, np.newaxis]
    sigma = rows.sigma[row][:, (0, 1, 2, 2)]
    variance = np.concatenate(_variances(interval, pairs, timestamp_ns), axis=1)
    if rows.clock_s > 0.0:
        acceleration_m_s2 = _gravity(r_m) - _turning(site.v_teme_m_s)
        over_ground_m_s = relative_m_s - _turning(sight_m)  # the horizon turns with the Earth
        rates = (
            range_rate_m_s,
            _dot(across_m_s, across_m_s) / range_m + _dot(sight, acceleration_m_s2),
            *(_dot(axis, over_ground_m_s) / range_m for axis in axes_teme),
        )
        jacobian, variance = _with_clock(jacobian, variance, rates, rows.clock_s)
    return _scored(residuals, jacobian, sigma, variance)


def score_optical(rows: OpticalRows, pairs: Pairs, interval: CatalogInterval) -> Scores:
    """Residuals: right ascension times cos declination, declination (rad)."""
    row = pairs.row
    timestamp_ns = rows.timestamp_ns[row]
    site_m = site_in_teme(rows.r_fixed_m[row], rows.sidereal_rad[row])
    r_m, v_m_s, _ = light_time_corrected(*interval.states(pairs.object, timestamp_ns), site_m)
    sight_m = r_m - site_m
    range_m = _length(sight_m)
    sight_j2000 = (sight_m / range_m[:, np.newaxis]) @ interval.teme_to_j2000.T
    axes = _axes(np.arctan2(sight_j2000[:, 1], sight_j2000[:, 0]), sight_j2000[:, 2])
    residuals = np.stack(_angles_between(rows.line_of_sight_j2000[row], sight_j2000, *axes), axis=1)
    to_axes = _orbit_axes(r_m, v_m_s)
    axes_teme = [axis @ interval.teme_to_j2000 for axis in axes]
    jacobian = np.stack([_in(to_axes, axis) / range_m[:, np.newaxis] for axis in axes_teme], axis=1)
    sigma = np.repeat(rows.sigma_rad[row, np.newaxis], 2, axis=1)
    variance = _variances(interval, pairs, timestamp_ns)[0]
    if rows.clock_s > 0.0:
        relative_m_s = v_m_s - _turning(site_m)
        rates = [_dot(axis, relative_m_s) / range_m for axis in axes_teme]
        jacobian, variance = _with_clock(jacobian, variance, rates, rows.clock_s)
    return _scored(residuals, jacobian, sigma, variance)


def score_states(rows: StateRows, pairs: Pairs, interval: CatalogInterval) -> Scores:
    """Residuals: radial, in-track, cross-track position (m) and velocity (m/s); all six are taken as independent."""
    row = pairs.row
    timestamp_ns = rows.timestamp_ns[row]
    r_m, v_m_s = interval.states(pairs.object, timestamp_ns)
    to_axes = _orbit_axes(r_m, v_m_s)
    residuals = np.concatenate(
        (_in(to_axes, rows.r_teme_m[row] - r_m), _in(to_axes, rows.v_teme_m_s[row] - v_m_s)), axis=1
    )
    sigma = rows.sigma[row][:, (0, 0, 0, 1, 1, 1)]
    variance = sigma**2 + np.concatenate(_variances(interval, pairs, timestamp_ns), axis=1)
    if rows.clock_s > 0.0:
        rates = np.concatenate((_in(to_axes, v_m_s), _in(to_axes, _gravity(r_m))), axis=1)
        variance += (rows.clock_s * rates) ** 2
    squared = np.sum(residuals**2 / variance, axis=1)
    return Scores(squared, -0.5 * (squared + np.sum(np.log(variance), axis=1)), residuals)


def _scored(residuals: Floats, jacobian: Floats, sigma: Floats, state_variance: Floats) -> Scores:
    """From ``(n, m)`` residuals, ``(n, m, k)`` Jacobians, ``(n, m)`` sigmas and ``(n, k)`` variances of the state."""
    absent = np.isnan(residuals)
    covariance = np.einsum("nik,nk,njk->nij", jacobian, state_variance, jacobian)
    diagonal = np.einsum("nii->ni", covariance)
    diagonal += sigma**2
    covariance[absent] = 0.0
    np.swapaxes(covariance, 1, 2)[absent] = 0.0
    diagonal[absent] = 1.0
    # The matrix mixes metres and radians. Scaled by each component's own deviation it is well conditioned.
    scale = np.sqrt(diagonal)
    scaled = covariance / (scale[:, :, np.newaxis] * scale[:, np.newaxis, :])
    normalized = np.where(absent, 0.0, residuals) / scale
    squared = _dot(normalized, np.linalg.solve(scaled, normalized[:, :, np.newaxis])[:, :, 0])
    log_determinant = np.linalg.slogdet(scaled)[1] + 2.0 * np.sum(np.log(scale), axis=1)
    return Scores(squared, -0.5 * (squared + log_determinant), residuals)


def _variances(interval: CatalogInterval, pairs: Pairs, timestamp_ns: Nanoseconds) -> tuple[Floats, Floats]:
    return interval.facts.errors.variances(pairs.object, timestamp_ns)


def _with_clock(
    jacobian: Floats, state_variance: Floats, rates: Sequence[Floats], clock_s: float
) -> tuple[Floats, Floats]:
    """Append the clock to the state; ``rates`` has the derivative of each measured component with respect to the time."""
    clock_variance = np.full((len(state_variance), 1), clock_s**2)
    column = np.stack(rates, axis=1)[:, :, np.newaxis]
    return np.concatenate((jacobian, column), axis=2), np.concatenate((state_variance, clock_variance), axis=1)


def _gravity(r_m: Floats) -> Floats:
    """Acceleration of a point mass, m/s^2, ``(n, 3)``."""
    return r_m * (-MU_M3_S2 / _length(r_m) ** 3)[:, np.newaxis]


def _turning(vectors: Floats) -> Floats:
    """The rate of change of a vector that turns with the Earth, per second, ``(n, 3)``."""
    return EARTH_ROTATION_RAD_S * np.stack((-vectors[:, 1], vectors[:, 0], np.zeros(len(vectors))), axis=1)


def _orbit_axes(r_m: Floats, v_m_s: Floats) -> Floats:
    """Rows radial, in-track, cross-track ``(n, 3, 3)``, unit vectors."""
    normal = np.cross(r_m, v_m_s)
    radial = r_m / _length(r_m)[:, np.newaxis]
    normal /= _length(normal)[:, np.newaxis]
    return np.stack((radial, np.cross(normal, radial), normal), axis=1)


def _axes(longitude_rad: Floats, sine_of_latitude: Floats) -> tuple[Floats, Floats]:
    """Unit vectors ``(n, 3)`` in the directions of growing longitude and latitude."""
    cos, sin = np.cos(longitude_rad), np.sin(longitude_rad)
    cos_latitude = np.sqrt(np.maximum(0.0, 1.0 - sine_of_latitude**2))
    along = np.stack((-sin, cos, np.zeros_like(cos)), axis=1)
    up = np.stack((-cos * sine_of_latitude, -sin * sine_of_latitude, cos_latitude), axis=1)
    return along, up


def _angles_between(seen: Floats, predicted: Floats, first_axis: Floats, second_axis: Floats) -> tuple[Floats, Floats]:
    """Angles (rad) from ``predicted`` to ``seen`` along two axes at right angles to ``predicted``; all are unit vectors."""
    first, second = _dot(seen, first_axis), _dot(seen, second_axis)
    sine = np.hypot(first, second)
    angle = np.arctan2(sine, _dot(seen, predicted))
    stretch = np.divide(angle, sine, out=np.ones_like(sine), where=sine > 0.0)
    return first * stretch, second * stretch


def _unit(longitude_rad: Floats, latitude_rad: Floats) -> Floats:
    cos = np.cos(latitude_rad)
    return np.stack((cos * np.cos(longitude_rad), cos * np.sin(longitude_rad), np.sin(latitude_rad)), axis=1)


def _in(axes: Floats, vectors: Floats) -> Floats:
    turned: Floats = np.einsum("nij,nj->ni", axes, vectors)
    return turned


def _dot(a: Floats, b: Floats) -> Floats:
    product: Floats = np.einsum("ni,ni->n", a, b)
    return product


def _length(vectors: Floats) -> Floats:
    return np.sqrt(_dot(vectors, vectors))
