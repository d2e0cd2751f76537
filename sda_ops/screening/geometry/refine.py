"""The refinement: from minima of interpolated distances to minima of the distance of SGP4's own positions.

Newton's method on the derivative of half the squared distance, d w, whose derivative is w2 + d a: d and w are the relative
position and velocity by SGP4 (`sda_ops.screening.exact`), a is the difference of gravity. For slow pairs w2 alone is 10 to
1,000 times too great or too small.

Each step begins at a whole millisecond. So the result does not depend on where the first step began, except by the error of
the last step, which is below a nanosecond for all but slow pairs. Windows that share a slice agree therefore on the side
of their common edge on which a minimum lies.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.approaches import SLOW_M_S
from sda_ops.screening.exact import DIFFERENCE_S
from sda_ops.screening.geometry.bounds import gravity
from sda_ops.screening.geometry.direct import ExactOrbits
from sda_ops.screening.geometry.narrow import Candidates
from sda_ops.screening.geometry.parallel import chosen
from sda_ops.screening.objects import Rows

_NS_PER_MS = 1_000_000
_STEPS = 12
_NEWTON_STEPS = 2  # then secants
_FLAT_STEPS = 7  # before a minimum is accepted as flat
_SECANT_S = 0.01
_LAST_STEP_S = 1e-3
_LONGEST_STEP_S = 5.0
_FLAT_KM = 1e-8
"""A step that changes the distance by less is the last one: SGP4's positions are not accurate enough for more."""

_SLOW_KM_S = SLOW_M_S / 1e3
_BRACKET_S = 40.0


class Minima(NamedTuple):
    """Minima of the distance of SGP4's positions.

    Attributes:
        first: ``(n,)``, columns.
        second: ``(n,)``.
        tca_ns: ``(n,)``, UTC.
        miss_km: ``(n,)``.
        speed_km_s: ``(n,)``.
    """

    first: Rows
    second: Rows
    tca_ns: Nanoseconds
    miss_km: Floats
    speed_km_s: Floats


class Refined(NamedTuple):
    """The result of a refinement.

    Attributes:
        minima: One for each candidate that has one.
        unconverged: How many of the minima were bracketed, because Newton's method did not converge.
        error_km: The greatest difference between a candidate's interpolated distance and SGP4's at the same time.
    """

    minima: Minima
    unconverged: int
    error_km: float


def refined(candidates: Candidates, orbits: ExactOrbits, origin_ns: int) -> Refined:
    """SGP4's own minimum near each candidate. 15 µs each."""
    first, second = candidates.first, candidates.second
    count = len(first)
    begin_ns = origin_ns + np.rint(candidates.at_s * NS_PER_S).astype(np.int64)
    at_ns = _whole_ms(begin_ns)
    tca_ns, miss_km, speed_km_s = at_ns.copy(), np.full(count, np.nan), np.full(count, np.nan)
    error_km = 0.0
    last_ns, last_rate = at_ns.copy(), np.zeros(count)
    ended: list[Rows] = []
    active = np.arange(count)
    for number in range(_STEPS):
        if not active.size:
            break
        d_km, w_km_s, a_km_s2 = _relative(
            orbits, first[active], second[active], at_ns[active], precise=number >= _NEWTON_STEPS
        )
        if number == 0 and count:
            aside_s = (begin_ns - at_ns) / NS_PER_S
            expected_km = _norm(d_km + aside_s * w_km_s)
            error_km = float(np.nanmax(np.abs(expected_km - candidates.distance_km), initial=0.0))
        rate, curvature = _dot(d_km, w_km_s), _dot(w_km_s, w_km_s) + _dot(d_km, a_km_s2)
        if number >= _NEWTON_STEPS:
            # Strong drag: gravity is not all of the acceleration. The secant has all of it.
            since_s = (at_ns[active] - last_ns[active]) / NS_PER_S
            secant = (rate - last_rate[active]) / np.where(since_s == 0.0, np.inf, since_s)
            curvature = np.where((np.abs(since_s) >= _SECANT_S) & (secant > 0.0), secant, curvature)
        # Downhill where the distance is not convex.
        step_s = np.where(curvature > 0.0, -rate / np.maximum(curvature, 1e-30), -np.sign(rate) * 0.5)
        step_s = np.clip(step_s, -_LONGEST_STEP_S, _LONGEST_STEP_S)
        distance_km = _norm(d_km)
        changes_km = 0.5 * np.abs(curvature) * step_s * step_s / np.maximum(distance_km, 1e-30)
        last = (np.abs(step_s) <= _LAST_STEP_S) | ((changes_km < _FLAT_KM) & (number >= _FLAT_STEPS))
        step_ns = np.rint(np.where(np.isfinite(step_s), step_s, 0.0) * NS_PER_S).astype(np.int64)
        tca_ns[active] = at_ns[active] + step_ns
        miss_km[active] = _norm(d_km + step_s * (w_km_s + 0.5 * step_s * a_km_s2))
        speed_km_s[active] = _norm(w_km_s + step_s * a_km_s2)
        failed = ~np.isfinite(distance_km)
        ended.append(active[failed])
        last_ns[active], last_rate[active] = at_ns[active], rate
        at_ns[active] = _whole_ms(tca_ns[active])
        active = active[~last & ~failed]
    rest = np.concatenate((*ended, active))
    tca_ns[rest], miss_km[rest], speed_km_s[rest] = _bracketed(orbits, first[rest], second[rest], begin_ns[rest])
    kept = np.isfinite(miss_km)
    minima = chosen(Minima(first, second, tca_ns, miss_km, speed_km_s), kept)
    return Refined(minima, int(kept[rest].sum()), error_km)


def without_repetitions(minima: Minima, same_s: float = 0.5, same_slow_s: float = 20.0) -> Minima:
    """Each minimum once: slices overlap a little. Sorted by pair and time; minima of a slow pair are flat."""
    order = np.lexsort((minima.tca_ns, minima.second, minima.first))
    minima = chosen(minima, order)
    same = (np.diff(minima.first) == 0) & (np.diff(minima.second) == 0)
    slow = np.maximum(minima.speed_km_s[1:], minima.speed_km_s[:-1]) < _SLOW_KM_S
    apart_s = np.diff(minima.tca_ns) / NS_PER_S
    again = same & (apart_s < np.where(slow, same_slow_s, same_s))
    return chosen(minima, np.concatenate(([True], ~again))[: len(order)])


def _bracketed(
    orbits: ExactOrbits, first: Rows, second: Rows, around_ns: Nanoseconds
) -> tuple[Nanoseconds, Floats, Floats]:
    """The minimum nearest to each time: a sign change of the range-rate, by bisection. The distance is NaN without one."""
    count = len(first)
    samples_ns = np.rint(np.arange(-_BRACKET_S, _BRACKET_S + 0.25, 0.5) * NS_PER_S).astype(np.int64)

    def range_rate(rows: Rows, at_ns: Nanoseconds) -> Floats:
        d_km, w_km_s, _ = _relative(orbits, first[rows], second[rows], at_ns, precise=True)
        return _dot(d_km, w_km_s)

    sampled = range_rate(
        np.repeat(np.arange(count), len(samples_ns)), (around_ns[:, np.newaxis] + samples_ns).ravel()
    ).reshape(count, len(samples_ns))
    minimum = (sampled[:, :-1] < 0.0) & (sampled[:, 1:] >= 0.0)
    cell = np.where(minimum, np.abs(samples_ns[:-1]), np.iinfo(np.int64).max).argmin(axis=1)
    low_ns, high_ns = around_ns + samples_ns[cell], around_ns + samples_ns[cell + 1]
    for _ in range(30 if count else 0):
        between_ns = (low_ns + high_ns) // 2
        before = range_rate(np.arange(count), between_ns) < 0.0
        low_ns, high_ns = np.where(before, between_ns, low_ns), np.where(before, high_ns, between_ns)
    d_km, w_km_s, _ = _relative(orbits, first, second, high_ns, precise=True)
    return high_ns, np.where(minimum.any(axis=1), _norm(d_km), np.nan), _norm(w_km_s)


def _relative(
    orbits: ExactOrbits, first: Rows, second: Rows, at_ns: Nanoseconds, *, precise: bool
) -> tuple[Floats, Floats, Floats]:
    """Relative position, velocity and gravity, ``(3, n)``, second minus first.

    A precise velocity is the central difference extrapolated from half a second and a quarter (Richardson). Its error is of
    the fourth order of that time, which matters in the last seconds of an object.
    """
    count = len(first)
    columns = np.concatenate((first, second))
    r_km, v_km_s = orbits.states_km(columns, np.concatenate((at_ns, at_ns)))
    if precise:
        aside_ns = round(2.0 * DIFFERENCE_S * NS_PER_S)
        before_km, _ = orbits.states_km(columns, np.concatenate((at_ns, at_ns)) - aside_ns)
        behind_km, _ = orbits.states_km(columns, np.concatenate((at_ns, at_ns)) + aside_ns)
        better_km_s = (4.0 * v_km_s - (behind_km - before_km) / (4.0 * DIFFERENCE_S)) / 3.0
        v_km_s = np.where(np.isfinite(better_km_s), better_km_s, v_km_s)
    pull = gravity(r_km)
    return tuple(both[:, count:] - both[:, :count] for both in (r_km, v_km_s, pull))  # type: ignore[return-value] # three


def _whole_ms(at_ns: Nanoseconds) -> Nanoseconds:
    rounded: Nanoseconds = (at_ns + _NS_PER_MS // 2) // _NS_PER_MS * _NS_PER_MS
    return rounded


def _dot(a: Floats, b: Floats) -> Floats:
    product: Floats = np.einsum("c...,c...->...", a, b)
    return product


def _norm(a: Floats) -> Floats:
    return np.sqrt(_dot(a, a))
