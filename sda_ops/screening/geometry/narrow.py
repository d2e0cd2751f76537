"""The narrow phase: from pairs in slices to candidates for a closest approach, and contacts of slow pairs.

All pairs of many slices are handled at once. First the bounds c and d of `sda_ops.screening.geometry.bounds` are applied in double
precision (`close_pairs`). Then there are two kinds (bound e):

- A *fast* pair has one minimum in the slice at most. Newton's method finds it on the interpolated orbits.
- A *slow* pair may have several minima, or none for hours. It is sampled every `SAMPLE_S` seconds at most. A minimum lies
  where the range-rate goes from negative to positive, and the secant finds it. A *contact* is a time in which the distance
  is at most the miss distance and the relative speed below `SLOW_M_S`; bisection with SGP4 itself finds where it begins and ends. A contact
  shorter than the interval of the samples is found if it is at the smallest relative speed of the slice or at a minimum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import Floats
from sda_ops.screening.approaches import SLOW_M_S
from sda_ops.screening.geometry.bounds import Bounds, gravity
from sda_ops.screening.geometry.broad import Pairs, near_line
from sda_ops.screening.geometry.ephemeris import EDGE_S, Ephemeris, SliceStates
from sda_ops.screening.geometry.parallel import chosen, joined
from sda_ops.screening.objects import Rows

SAMPLE_S = 15.0

FAST_EDGE_S = 1.0
"""Minima of fast pairs are looked for this far beyond the slice. By the interpolation error, SGP4's minimum may be in the
slice and the interpolated one outside: with 25 m for each object, at the slowest 100 m/s, by 0.5 s for the error of the
distance along the relative velocity and 0.3 s for that of the velocity. What is found twice is merged."""

SLOW_EDGE_S = EDGE_S
"""The same for slow pairs, whose minima are flat. They are sampled with SGP4 itself where one of the objects is irregular."""

_SLOW_KM_S = SLOW_M_S / 1e3
_NEWTON_STEPS = 8
_SETTLED_S = 1e-4  # the refinement with SGP4 starts here
_SECANT_STEPS = 12
_TOGETHER_KM = 1e-7
_TOGETHER_KM_S = 1e-9
"""Pairs below both share their elements, as docked objects do. Minima of their distance would be rounding errors."""
_BISECTIONS = 16  # of 15 s: to 0.2 ms


class PairStates(NamedTuple):
    """Pairs in slices, with their states at the middle of the slice, TEME.

    Attributes:
        slices: ``(n,)``, slice numbers.
        first: ``(n,)``, columns.
        second: ``(n,)``.
        first_r_km: ``(3, n)``.
        first_v_km_s: ``(3, n)``.
        second_r_km: ``(3, n)``.
        second_v_km_s: ``(3, n)``.
        beta_km_s2: ``(n,)``, the sum of both.
    """

    slices: npt.NDArray[np.int64]
    first: Rows
    second: Rows
    first_r_km: Floats
    first_v_km_s: Floats
    second_r_km: Floats
    second_v_km_s: Floats
    beta_km_s2: Floats


class ClosePairs(NamedTuple):
    """Pairs that obey all bounds, with their relative states in the middle of the slice.

    Attributes:
        slices: ``(n,)``, slice numbers.
        first: ``(n,)``, columns.
        second: ``(n,)``.
        d_km: ``(3, n)``, second minus first.
        w_km_s: ``(3, n)``.
        a_km_s2: ``(3, n)``, the difference of gravity.
        fast: ``(n,)``: see above.
    """

    slices: npt.NDArray[np.int64]
    first: Rows
    second: Rows
    d_km: Floats
    w_km_s: Floats
    a_km_s2: Floats
    fast: npt.NDArray[np.bool_]


class Candidates(NamedTuple):
    """Minima of the interpolated distance.

    Attributes:
        first: ``(n,)``, columns.
        second: ``(n,)``.
        at_s: ``(n,)``, from the ephemeris' origin.
        distance_km: ``(n,)``, interpolated.
    """

    first: Rows
    second: Rows
    at_s: Floats
    distance_km: Floats


class Contacts(NamedTuple):
    """Times in which slow pairs touch, from the ephemeris' origin; those of one pair may follow each other directly.

    Attributes:
        first: ``(n,)``, columns.
        second: ``(n,)``.
        from_s: ``(n,)``.
        until_s: ``(n,)``.
    """

    first: Rows
    second: Rows
    from_s: Floats
    until_s: Floats


def close_pairs(pairs: Pairs, states: SliceStates, bounds: Bounds) -> ClosePairs:
    """Those of these pairs that obey the bounds c and d."""
    place, first, second = pairs
    betas = states.beta_km_s2
    row = place if len(betas) > 1 else np.zeros_like(place)
    return of_states(
        PairStates(
            slices=place + states.first_slice,
            first=first,
            second=second,
            first_r_km=states.r_km[place, :, first].T,
            first_v_km_s=states.v_km_s[place, :, first].T,
            second_r_km=states.r_km[place, :, second].T,
            second_v_km_s=states.v_km_s[place, :, second].T,
            beta_km_s2=betas[row, first] + betas[row, second],
        ),
        bounds,
    )


def of_states(pairs: PairStates, bounds: Bounds) -> ClosePairs:
    """Those of these pairs that obey the bounds c and d."""
    d_km, w_km_s = pairs.second_r_km - pairs.first_r_km, pairs.second_v_km_s - pairs.first_v_km_s
    beta_km_s2 = pairs.beta_km_s2
    speeds_km_s = _norm(pairs.first_v_km_s) + _norm(pairs.second_v_km_s)
    a_km_s2 = gravity(pairs.second_r_km) - gravity(pairs.first_r_km)
    fast = _norm(w_km_s) >= bounds.slow_km_s(beta_km_s2)
    every = ClosePairs(pairs.slices, pairs.first, pairs.second, d_km, w_km_s, a_km_s2, fast)
    near = near_line(d_km, w_km_s, beta_km_s2, bounds)
    every, beta_km_s2, speeds_km_s = chosen(every, near), beta_km_s2[near], speeds_km_s[near]
    least_s = _parabola_minimum_s(every, bounds.half_s)
    least_km = _norm(every.d_km + least_s * (every.w_km_s + 0.5 * least_s * every.a_km_s2))
    return chosen(every, ~every.fast | (least_km <= bounds.parabola_km(speeds_km_s, beta_km_s2)))


def fast_candidates(pairs: ClosePairs, ephemeris: Ephemeris, bounds: Bounds) -> Candidates:
    """The minima of fast pairs within their slices, at most the miss distance."""
    middle_s = _middle_s(pairs, ephemeris)
    from_s, until_s = _life_s(pairs, ephemeris, bounds.half_s, FAST_EDGE_S)
    at_s = np.clip(_parabola_minimum_s(pairs, bounds.half_s), from_s, until_s)
    distance_km = np.full(len(at_s), np.inf)
    active = np.arange(len(at_s))
    settled = np.zeros(len(at_s), dtype=np.bool_)
    for _ in range(_NEWTON_STEPS):
        some = chosen(pairs, active)
        now_s = at_s[active]
        d_km, w_km_s = ephemeris.relative(some.first, some.second, middle_s[active] + now_s)
        step_s = -_dot(d_km, w_km_s) / (_dot(w_km_s, w_km_s) + _dot(d_km, some.a_km_s2))
        distance_km[active] = _norm(d_km)
        done = np.abs(step_s) < _SETTLED_S
        settled[active] = done
        next_s = np.clip(now_s + step_s, from_s[active], until_s[active])
        moves = ~done & (np.abs(next_s - now_s) > 0.0)  # false at the edge of the slice and where there is no state
        at_s[active[moves]] = next_s[moves]
        active = active[moves]
        if not active.size:
            break
    settled[active] = True  # within tenths of a millisecond after eight steps, or the refinement will notice
    kept = np.flatnonzero(settled & (distance_km <= bounds.near_km))
    return Candidates(pairs.first[kept], pairs.second[kept], (middle_s + at_s)[kept], distance_km[kept])


def slow_candidates(pairs: ClosePairs, ephemeris: Ephemeris, bounds: Bounds) -> tuple[Candidates, Contacts]:
    """The minima of slow pairs within their slices, at most the miss distance; and their contacts."""
    apart: npt.NDArray[np.bool_] = (_norm(pairs.d_km) > _TOGETHER_KM) | (_norm(pairs.w_km_s) > _TOGETHER_KM_S)
    together = ~apart
    middle_s = _middle_s(pairs, ephemeris)
    whole = Contacts(
        pairs.first[together],
        pairs.second[together],
        middle_s[together] - bounds.half_s,
        middle_s[together] + bounds.half_s,
    )
    pairs, middle_s = chosen(pairs, apart), middle_s[apart]
    cells = max(2, math.ceil(2.0 * bounds.half_s / SAMPLE_S))
    inner_s = np.linspace(-bounds.half_s, bounds.half_s, cells + 1)
    offsets_s = np.concatenate(([-bounds.half_s - SLOW_EDGE_S], inner_s, [bounds.half_s + SLOW_EDGE_S]))
    at_s = middle_s[:, np.newaxis] + offsets_s
    from_s, until_s = _life_s(pairs, ephemeris, bounds.half_s, SLOW_EDGE_S)
    at_s = np.clip(at_s, (middle_s + from_s)[:, np.newaxis], (middle_s + until_s)[:, np.newaxis])
    d_km, w_km_s = _relative_at(pairs, at_s, ephemeris)
    minima = _minima(pairs, at_s, _dot(d_km, w_km_s), ephemeris, bounds)
    inside = slice(1, -1)
    contact = _touches(d_km[:, :, inside], w_km_s[:, :, inside], bounds)
    contacts = _contacts(pairs, at_s[:, inside], contact, ephemeris, bounds)
    slowest = _slowest_contacts(pairs, middle_s, contact, ephemeris, bounds)
    return minima, joined((whole, contacts, slowest))


def _minima(pairs: ClosePairs, at_s: Floats, range_rate: Floats, ephemeris: Ephemeris, bounds: Bounds) -> Candidates:
    """Where the range-rate times the distance, ``(n, samples)``, goes from negative to positive between two samples."""
    pair, cell = np.nonzero((range_rate[:, :-1] < 0.0) & (range_rate[:, 1:] >= 0.0))
    some = chosen(pairs, pair)
    low_s, high_s = at_s[pair, cell], at_s[pair, cell + 1]
    low, high = range_rate[pair, cell], range_rate[pair, cell + 1]
    root_s = low_s
    distance_km = np.empty(len(pair))
    for number in range(_SECANT_STEPS):
        # Every third step is a bisection, so that the bracket shrinks in any case.
        secant_s = low_s - low * (high_s - low_s) / (high - low)
        bisected = np.isnan(secant_s) | (number % 3 == 2)  # noqa: PLR2004 - see above; NaN where there is no state
        root_s = np.where(bisected, 0.5 * (low_s + high_s), secant_s)
        d_km, w_km_s = ephemeris.relative(some.first, some.second, root_s, accurate=True)
        value = _dot(d_km, w_km_s)
        distance_km = _norm(d_km)
        before = value < 0.0
        low_s, low = np.where(before, root_s, low_s), np.where(before, value, low)
        high_s, high = np.where(before, high_s, root_s), np.where(before, high, value)
    kept = np.flatnonzero(distance_km <= bounds.near_km)
    return Candidates(some.first[kept], some.second[kept], root_s[kept], distance_km[kept])


def _contacts(
    pairs: ClosePairs, at_s: Floats, contact: npt.NDArray[np.bool_], ephemeris: Ephemeris, bounds: Bounds
) -> Contacts:
    """The contacts between neighbouring samples ``(n, samples)`` of which at least one is in contact."""
    pair, cell = np.nonzero(contact[:, :-1] | contact[:, 1:])
    from_s, until_s = at_s[pair, cell].copy(), at_s[pair, cell + 1].copy()
    for begins in (True, False):
        edge = np.flatnonzero((contact[pair, cell] != begins) & (contact[pair, cell + 1] == begins))
        apart_s = (from_s if begins else until_s)[edge]
        touching_s = (until_s if begins else from_s)[edge]
        some = chosen(pairs, pair[edge])
        for _ in range(_BISECTIONS if edge.size else 0):
            between_s = 0.5 * (apart_s + touching_s)
            touches = _touches(*ephemeris.exact_relative(some.first, some.second, between_s), bounds)
            apart_s, touching_s = np.where(touches, apart_s, between_s), np.where(touches, between_s, touching_s)
        (from_s if begins else until_s)[edge] = touching_s
    return Contacts(pairs.first[pair], pairs.second[pair], from_s, until_s)


def _slowest_contacts(
    pairs: ClosePairs, middle_s: Floats, contact: npt.NDArray[np.bool_], ephemeris: Ephemeris, bounds: Bounds
) -> Contacts:
    """Contacts, without a length, at the smallest relative speed of slices in which no sample is in contact."""
    a2 = _dot(pairs.a_km_s2, pairs.a_km_s2)
    slowest_s = -_dot(pairs.w_km_s, pairs.a_km_s2) / np.maximum(a2, 1e-30)
    maybe = np.flatnonzero(~contact.any(axis=1) & (np.abs(slowest_s) < bounds.half_s))
    some, at_s = chosen(pairs, maybe), (middle_s + slowest_s)[maybe]
    touches = np.flatnonzero(_touches(*ephemeris.relative(some.first, some.second, at_s, accurate=True), bounds))
    return Contacts(some.first[touches], some.second[touches], at_s[touches], at_s[touches])


def _touches(d_km: Floats, w_km_s: Floats, bounds: Bounds) -> npt.NDArray[np.bool_]:
    near = _dot(d_km, d_km) <= bounds.miss_km**2
    slow = _dot(w_km_s, w_km_s) < _SLOW_KM_S**2
    touching: npt.NDArray[np.bool_] = near & slow
    return touching


def _relative_at(pairs: ClosePairs, at_s: Floats, ephemeris: Ephemeris) -> tuple[Floats, Floats]:
    """Relative states ``(3, n, times)`` of each pair at its times ``(n, times)``."""
    count, times = at_s.shape
    first, second = np.repeat(pairs.first, times), np.repeat(pairs.second, times)
    d_km, w_km_s = ephemeris.relative(first, second, at_s.ravel(), accurate=True)
    return d_km.reshape(3, count, times), w_km_s.reshape(3, count, times)


def _parabola_minimum_s(pairs: ClosePairs, half_s: float) -> Floats:
    """Where in the slice |d + w s + a s2/2| is smallest: of the line, then by Newton."""
    d_km, w_km_s, a_km_s2 = pairs.d_km, pairs.w_km_s, pairs.a_km_s2
    at_s = np.clip(-_dot(d_km, w_km_s) / np.maximum(_dot(w_km_s, w_km_s), 1e-30), -half_s, half_s)
    for _ in range(3):
        position, velocity = d_km + at_s * (w_km_s + 0.5 * at_s * a_km_s2), w_km_s + at_s * a_km_s2
        curvature = _dot(velocity, velocity) + _dot(position, a_km_s2)
        step_s = np.where(curvature > 0.0, -_dot(position, velocity) / np.maximum(curvature, 1e-30), 0.0)
        at_s = np.clip(at_s + step_s, -half_s, half_s)
    return at_s


def _life_s(pairs: ClosePairs, ephemeris: Ephemeris, half_s: float, edge_s: float) -> tuple[Floats, Floats]:
    """Between which times, from the middle, minima are looked for: a little beyond the slice, but not beyond a life."""
    lives = [ephemeris.direct.life_s(pairs.slices, columns, half_s) for columns in (pairs.first, pairs.second)]
    from_s, until_s = np.maximum(lives[0][0], lives[1][0]), np.minimum(lives[0][1], lives[1][1])
    from_s[from_s == -half_s] -= edge_s
    until_s[until_s == half_s] += edge_s
    return from_s, until_s


def _middle_s(pairs: ClosePairs, ephemeris: Ephemeris) -> Floats:
    middle_s: Floats = (ephemeris.middle_ns(pairs.slices) - ephemeris.origin_ns) / 1e9
    return middle_s


def _dot(a: Floats, b: Floats) -> Floats:
    product: Floats = np.einsum("c...,c...->...", a, b)
    return product


def _norm(a: Floats) -> Floats:
    return np.sqrt(_dot(a, a))
