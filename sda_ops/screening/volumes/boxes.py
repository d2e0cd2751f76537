"""When an object is inside an asset's box: exact times by SGP4's own positions, with a bound instead of samples.

In the asset's radial, in-track and cross-track axes, which turn with its orbit, an object's coordinates x move smoothly.
Within ±s of an instant each differs from x + x' t by at most s²/2 times a bound of |x''|, which consists of the difference
of gravity and of the Coriolis, centrifugal and Euler terms of the turning axes. An interval in which one coordinate stays
beyond its half axis by that bound is outside; one in which all stay within is inside; any other is halved. So neither the
curvature of the motion nor the speed of a crossing can hide a passage.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.geometry.direct import ExactOrbits
from sda_ops.screening.objects import Rows

Mask: TypeAlias = npt.NDArray[np.bool_]

RESOLUTION_NS = 1_000
"""Entries and exits are found to this; an object that is inside for a shorter time may be left out."""

RESOLUTION_M = 1e-3
"""An interval within which no coordinate moves by more than this is not halved again: its middle decides."""

LONGEST_S = 60.0
"""The longest interval that may be tested: within half of it a geocentric distance changes by at most a few percent."""

_MU_M3_S2 = 398600.8e9
_LOWEST_M = 6_350e3
"""Below the Earth's surface by the sagitta of a chord of 1,000 km: gravity's gradient is largest there."""

_GRADIENT = 2.05
"""The norm of gravity's gradient in mu/r³: 2 for a point mass, and 2.5 % for J2."""

RESIDUAL_M_S2 = 0.1
"""How far the second derivatives of two objects are from gravity, together, unless more was measured: 0.0115 for one at most
of 14,683 objects."""

_TWO_GRAVITIES_M_S2 = 20.0
"""No two objects above the surface differ by more in acceleration."""

_TILT_RAD_S = 4e-6
"""How fast the orbit's plane turns about the radius, at most: J2's acceleration across the plane, 1.5e-5 km/s² in low
orbit, divided by the speed along it."""

_RATE_CHANGE = 1.25
"""How much faster the axes can turn within half of `LONGEST_S`: (1 - 9 km/s 30 s/6,378 km)^-2 is 1.09."""

_STATELESS_NS = NS_PER_S
"""To this the time is found at which SGP4 begins or ceases to have a state."""


class Motion(NamedTuple):
    """An object's motion relative to an asset at one instant, in the asset's radial, in-track and cross-track axes.

    Attributes:
        position_m: ``(n, 3)``.
        velocity_m_s: ``(n, 3)``, of the coordinates: in the turning axes.
        inertial_m_s: ``(n, 3)``, the difference of the velocities in TEME along the same axes.
        distance_m: ``(n,)``, the asset's from the Earth's centre.
        radial_m_s: ``(n,)``, the asset's radial speed.
        rate_rad_s: ``(n,)``, at which the axes turn.
    """

    position_m: Floats
    velocity_m_s: Floats
    inertial_m_s: Floats
    distance_m: Floats
    radial_m_s: Floats
    rate_rad_s: Floats


def motion(r_m: Floats, v_m_s: Floats, relative_m: Floats, relative_m_s: Floats) -> Motion:
    """From the asset's state and the object's minus the asset's, all ``(n, 3)`` in TEME."""
    distance_m = np.linalg.norm(r_m, axis=1)
    momentum = np.cross(r_m, v_m_s)
    momentum_norm = np.linalg.norm(momentum, axis=1)
    radial = r_m / distance_m[:, np.newaxis]
    cross_track = momentum / momentum_norm[:, np.newaxis]
    axes = np.stack((radial, np.cross(cross_track, radial), cross_track), axis=1)
    position_m = np.einsum("nij,nj->ni", axes, relative_m)
    inertial_m_s = np.einsum("nij,nj->ni", axes, relative_m_s)
    rate_rad_s = momentum_norm / distance_m**2
    velocity_m_s = inertial_m_s.copy()
    velocity_m_s[:, 0] += rate_rad_s * position_m[:, 1]
    velocity_m_s[:, 1] -= rate_rad_s * position_m[:, 0]
    radial_m_s = np.einsum("ni,ni->n", radial, v_m_s)
    return Motion(position_m, velocity_m_s, inertial_m_s, distance_m, radial_m_s, rate_rad_s)


def travel_m(now: Motion, half_s: Floats | float, residual_m_s2: Floats) -> Floats:
    """How far each coordinate can move within ``half_s``, at most half of `LONGEST_S`, before and after, ``(n, 3)``.

    ``residual_m_s2`` is how far both accelerations are from gravity, together, at least `RESIDUAL_M_S2`.
    """
    s = np.broadcast_to(half_s, now.distance_m.shape)
    speed_m_s = np.linalg.norm(now.inertial_m_s, axis=1) + _TWO_GRAVITIES_M_S2 * s
    apart_m = np.linalg.norm(now.position_m, axis=1) + speed_m_s * s
    lowest_m = np.maximum(_LOWEST_M, now.distance_m - (np.abs(now.radial_m_s) + _TWO_GRAVITIES_M_S2 * s) * s - apart_m)
    gravity_m_s2 = np.minimum(_GRADIENT * _MU_M3_S2 / lowest_m**3 * apart_m, _TWO_GRAVITIES_M_S2) + residual_m_s2
    rate = _RATE_CHANGE * now.rate_rad_s + _TILT_RAD_S
    rate_change = 2.0 * rate * (np.abs(now.radial_m_s) + _TWO_GRAVITIES_M_S2 * s) / _LOWEST_M
    bound_m_s2 = gravity_m_s2 + 2.0 * rate * (speed_m_s + rate * apart_m) + (rate**2 + rate_change) * apart_m
    along_m = (np.abs(now.velocity_m_s) + (_TILT_RAD_S * apart_m)[:, np.newaxis]) * s[:, np.newaxis]
    travel: Floats = along_m + (0.5 * bound_m_s2 * s**2)[:, np.newaxis]
    return travel


def may_be_inside(now: Motion, half_s: float, residual_m_s2: Floats, half_axes_m: Floats, *, margin_m: float) -> Mask:
    """Whether the object may be inside within ``half_s`` before and after; ``margin_m`` is the error of the positions."""
    near = np.abs(now.position_m) - travel_m(now, half_s, residual_m_s2) <= half_axes_m + margin_m
    possible: Mask = np.all(near, axis=1)
    return possible


class Intervals(NamedTuple):
    """Times during which object ``other[i]`` is inside the box of ``asset[i]``; sorted by asset, object and time."""

    asset: Rows
    other: Rows
    from_ns: Nanoseconds
    until_ns: Nanoseconds


def intervals_inside(orbits: ExactOrbits, searched: Intervals, residual_m_s2: Floats, half_axes_m: Floats) -> Intervals:
    """The times within ``searched``, of at most `LONGEST_S` each, in which SGP4 puts the object inside the box.

    ``half_axes_m`` is ``(n, 3)``, one row for each searched interval. Adjoining intervals are joined. Where SGP4 has no
    state of one of the two, the object is not inside.
    """
    asset, other, from_ns, until_ns = searched
    box_m, residual = half_axes_m, residual_m_s2
    found: list[tuple[Rows, Rows, Nanoseconds, Nanoseconds]] = []
    while asset.size:
        middle_ns = from_ns + (until_ns - from_ns) // 2
        now, failed = exact_motion(orbits, asset, other, middle_ns)
        half_s = 0.5 * (until_ns - from_ns) / NS_PER_S
        travelled_m = travel_m(now, half_s, residual)
        away_m = np.abs(now.position_m)
        short = until_ns - from_ns <= RESOLUTION_NS
        decided = short | ((travelled_m <= RESOLUTION_M).all(axis=1) & ~failed)
        inside = np.where(decided, (away_m <= box_m).all(axis=1), (away_m + travelled_m <= box_m).all(axis=1)) & ~failed
        outside = (decided & ~inside) | ((away_m - travelled_m > box_m).any(axis=1) & ~failed)
        outside |= failed & (until_ns - from_ns <= _STATELESS_NS)
        found.append((asset[inside], other[inside], from_ns[inside], until_ns[inside]))
        rest = ~inside & ~outside
        asset, other = np.repeat(asset[rest], 2), np.repeat(other[rest], 2)
        box_m, residual = np.repeat(box_m[rest], 2, axis=0), np.repeat(residual[rest], 2)
        from_ns, until_ns = (
            np.stack((from_ns[rest], middle_ns[rest]), axis=1).ravel(),
            np.stack((middle_ns[rest], until_ns[rest]), axis=1).ravel(),
        )
    if not found:
        return searched
    return adjoined(Intervals(*(np.concatenate(parts) for parts in zip(*found, strict=True))))


def exact_motion(orbits: ExactOrbits, asset: Rows, other: Rows, timestamp_ns: Nanoseconds) -> tuple[Motion, Mask]:
    """The motion by SGP4 itself at ``timestamp_ns[i]``, and where SGP4 has no state of one of the two."""
    count = len(asset)
    r_km, v_km_s = orbits.states_km(np.concatenate((asset, other)), np.tile(timestamp_ns, 2))
    r_m, v_m_s = r_km.T * M_PER_KM, v_km_s.T * M_PER_KM
    now = motion(r_m[:count], v_m_s[:count], r_m[count:] - r_m[:count], v_m_s[count:] - v_m_s[:count])
    return now, ~np.isfinite(now.position_m[:, 0])


def adjoined(intervals: Intervals) -> Intervals:
    """Intervals of one pair that adjoin become one."""
    order = np.lexsort((intervals.from_ns, intervals.other, intervals.asset))
    asset, other, from_ns, until_ns = (column[order] for column in intervals)
    begins = np.ones(len(asset), dtype=np.bool_)
    begins[1:] = (asset[1:] != asset[:-1]) | (other[1:] != other[:-1]) | (from_ns[1:] > until_ns[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first, len(asset))[1:] - 1
    return Intervals(asset[first], other[first], from_ns[first], until_ns[last])
