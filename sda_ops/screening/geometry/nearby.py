"""Which objects may be near a few chosen ones, and in which slices: from knots, in blocks of four slices first.

The bounds are those of slices (`sda_ops.screening.geometry.bounds`), which hold for an interval of any length. A block is an interval
around a knot of the full length, at which every object with knots has SGP4's own position. All objects are compared with the
chosen ones at each knot, by one product of matrices: |p - r|² <= R², where R is linear in the sum of both speeds. What
remains, about 2 % in low orbit, is tested by radius and along a straight line, first at the knot, then in each slice.

Objects without a state from knots are compared in each of their slices. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.geometry.bounds import ROUNDING_KM, Bounds
from sda_ops.screening.geometry.ephemeris import Ephemeris
from sda_ops.screening.geometry.narrow import PairStates
from sda_ops.screening.geometry.parallel import chosen as taken
from sda_ops.screening.geometry.parallel import joined
from sda_ops.screening.objects import Rows

Mask: TypeAlias = npt.NDArray[np.bool_]
Slices: TypeAlias = npt.NDArray[np.int64]

_TOGETHER = 32
"""Chosen objects that are compared at a time: their distances from 30,000 others take 8 MB."""

_CHUNK = 200_000
"""Pairs that are tested at a time: their arrays take 50 MB."""


class _States(NamedTuple):
    """States of the chosen objects, ``(chosen, times, …)``; NaN where an object has none."""

    r_km: Floats
    v_km_s: Floats
    beta_km_s2: Floats


class _Pairs(NamedTuple):
    """Numbers of chosen objects, columns, and numbers of blocks or slices counted from the first."""

    of: Rows
    other: Rows
    number: Rows


def nearby(ephemeris: Ephemeris, chosen: Rows, distance_km: float) -> PairStates:
    """All pairs of ``chosen`` columns, none twice, and other objects that may be within the distance, sorted by slice."""
    parts = [
        part
        for begin in range(0, len(chosen), _TOGETHER)
        for part in _nearby(ephemeris, chosen[begin : begin + _TOGETHER], distance_km)
    ]
    together = joined(parts)
    return taken(together, np.lexsort((together.second, together.first, together.slices)))


def _nearby(ephemeris: Ephemeris, chosen: Rows, distance_km: float) -> Iterator[PairStates]:
    slices = np.arange(ephemeris.first_slice, ephemeris.end_slice, dtype=np.int64)
    in_slices, direct = _slice_states(ephemeris, chosen, slices)
    blocks = _Blocks(ephemeris, slices)
    at_knots = _knot_states(ephemeris, chosen, blocks.knots_ns)
    bounds = Bounds(
        miss_km=distance_km,
        half_s=0.5 * ephemeris.slice_ns / NS_PER_S,
        interpolation_km=ephemeris.interpolation_km,
    )
    # Where a chosen object has no state from knots, it is compared with all objects in each slice.
    unknown = ~np.isfinite(at_knots.v_km_s[:, :, 0])[:, blocks.of_slice]
    exhaustive = (direct | unknown) & np.isfinite(in_slices.r_km[:, :, 0])
    known = at_knots._replace(r_km=np.where(np.isfinite(at_knots.v_km_s), at_knots.r_km, np.nan))
    for near in _near_at_knots(ephemeris, chosen, known, blocks, ephemeris.around_knots(distance_km)):
        pairs = blocks.in_slices(near)
        pairs = _Pairs(*(column[~exhaustive[pairs.of, pairs.number]] for column in pairs))
        pairs = _without_direct(ephemeris, pairs, slices)
        for part in _parts(pairs):
            at_s = (ephemeris.middle_ns(slices[part.number]) - ephemeris.origin_ns) / NS_PER_S
            r_km, v_km_s = ephemeris.at(part.other, at_s)
            beta_km_s2 = ephemeris.beta_km_s2[part.other]
            yield _tested(chosen, part, slices, in_slices, r_km, v_km_s, beta_km_s2, bounds)
    yield from _near_direct(ephemeris, chosen, slices, in_slices, exhaustive, bounds)
    yield from _near_exhaustive(ephemeris, chosen, slices, in_slices, exhaustive, bounds)


class _Blocks:
    """Intervals around the knots of the full length.

    Attributes:
        length_ns: The length of each.
        knots_ns: ``(blocks,)``, their middles.
        of_slice: ``(slices,)``, the number of the block that has the middle of each slice.
    """

    def __init__(self, ephemeris: Ephemeris, slices: Slices) -> None:
        self.length_ns = ephemeris.knot_ns
        block = (ephemeris.middle_ns(slices) + self.length_ns // 2) // self.length_ns
        self.knots_ns: Nanoseconds = np.arange(block[0], block[-1] + 1) * self.length_ns
        self.of_slice: Rows = (block - block[0]).astype(np.intp)
        self._first = np.searchsorted(self.of_slice, np.arange(len(self.knots_ns) + 1))

    def in_slices(self, pairs: _Pairs) -> _Pairs:
        """The same pairs in each slice of their blocks."""
        first = self._first[pairs.number]
        counts = self._first[pairs.number + 1] - first
        place = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return _Pairs(pairs.of[place], pairs.other[place], first[place] + within)


def _slice_states(ephemeris: Ephemeris, chosen: Rows, slices: Slices) -> tuple[_States, Mask]:
    """The states of the chosen objects at the middles of all slices, and in which slices they have no knots."""
    at_s = (ephemeris.middle_ns(slices) - ephemeris.origin_ns) / NS_PER_S
    states = _states_at(ephemeris, chosen, at_s)
    is_direct = np.zeros((len(chosen), len(slices)), dtype=np.bool_)
    direct = ephemeris.direct
    for number, column in enumerate(chosen.tolist()):
        here = np.flatnonzero(direct.columns == column)
        where = (direct.slices[here] - slices[0]).astype(np.intp)
        is_direct[number, where] = True
        alive = direct.alive[here]
        states.r_km[number, where] = np.where(alive, direct.r_km[:, here], np.nan).T
        states.v_km_s[number, where] = direct.v_km_s[:, here].T
        states.beta_km_s2[number, where] = direct.beta_km_s2[here]
    return states, is_direct


def _knot_states(ephemeris: Ephemeris, chosen: Rows, knots_ns: Nanoseconds) -> _States:
    return _states_at(ephemeris, chosen, (knots_ns - ephemeris.origin_ns) / NS_PER_S)


def _states_at(ephemeris: Ephemeris, chosen: Rows, at_s: Floats) -> _States:
    shape = (len(chosen), len(at_s))
    r_km, v_km_s = _at(ephemeris, np.repeat(chosen, len(at_s)), np.tile(at_s, len(chosen)))
    beta_km_s2 = np.repeat(ephemeris.beta_km_s2[chosen, np.newaxis], len(at_s), axis=1)
    return _States(r_km.T.reshape(*shape, 3), v_km_s.T.reshape(*shape, 3), beta_km_s2)


def _at(ephemeris: Ephemeris, columns: Rows, at_s: Floats) -> tuple[Floats, Floats]:
    """As `Ephemeris.at`; SGP4's own states before the first slice and after the last one, for which shorter knots end."""
    length_s = len(ephemeris) * ephemeris.slice_ns / NS_PER_S
    inside = np.flatnonzero((at_s >= 0.0) & (at_s <= length_s))
    outside = np.flatnonzero((at_s < 0.0) | (at_s > length_s))
    r_km, v_km_s = np.empty((3, len(columns))), np.empty((3, len(columns)))
    r_km[:, inside], v_km_s[:, inside] = ephemeris.at(columns[inside], at_s[inside])
    if outside.size:
        at_ns = ephemeris.origin_ns + np.rint(at_s[outside] * NS_PER_S).astype(np.int64)
        r_km[:, outside], v_km_s[:, outside] = ephemeris.prepared.orbits.states_km(columns[outside], at_ns)
    return r_km, v_km_s


def _near_at_knots(
    ephemeris: Ephemeris,
    chosen: Rows,
    known: _States,
    blocks: _Blocks,
    bounds: Bounds,
) -> Iterator[_Pairs]:
    """Pairs, with their block, that may be within the distance in the block."""
    constant, by_speed, by_beta = _linear(bounds)
    speed_km_s = np.sqrt(np.einsum("cki,cki->ck", known.v_km_s, known.v_km_s))
    reach_km = constant + by_speed * speed_km_s + by_beta * known.beta_km_s2 + ROUNDING_KM
    # |p - r|² - R² as a scalar product of five factors of the chosen object and five terms of the other.
    factors = np.concatenate(
        (-2.0 * known.r_km, -2.0 * reach_km[..., np.newaxis], np.ones((*reach_km.shape, 1))), axis=2
    )
    limits = reach_km**2 - np.einsum("cki,cki->ck", known.r_km, known.r_km)
    states = known.r_km.reshape(-1, 3).T, known.v_km_s.reshape(-1, 3).T, known.beta_km_s2.ravel()
    rho, q = (each.reshape(reach_km.shape) for each in bounds.radial_km(*states))
    slack_km = bounds.miss_km + q
    for level in ephemeris.levels[:2]:
        columns = level.columns
        if not len(columns):
            continue
        radial_km = ephemeris.greatest.radial_km[columns]
        terms = np.empty((5, len(columns)))
        terms[3] = by_speed * ephemeris.greatest.speed_km_s[columns] + by_beta * ephemeris.beta_km_s2[columns]
        squares = np.where(ephemeris.greatest.regular[columns], terms[3] ** 2, -np.inf)
        held: list[_AtKnot] = []
        size = 0
        products = np.empty((len(chosen), len(columns)))
        for block, knot in enumerate((blocks.knots_ns // level.knot_ns - level.first).tolist()):
            np.copyto(terms[:3], level.r_km[knot])
            np.einsum("in,in->n", terms[:3], terms[:3], out=terms[4])
            distances2 = terms[4].copy()
            terms[4] -= squares
            for of in range(len(chosen)):  # not one product of matrices: its threads cost more than they gain
                np.dot(factors[of, block], terms, out=products[of])
            near = np.flatnonzero(products <= limits[:, block, np.newaxis])
            of_near, place = np.divmod(near, len(columns))
            off_km = np.abs(np.sqrt(distances2[place]) - rho[of_near, block])
            keep = off_km <= slack_km[of_near, block] + radial_km[place]
            held.append(_AtKnot(of_near[keep], place[keep], block, *level.at_knot(knot, place[keep])))
            size += len(place)
            if size > _CHUNK:
                yield _tested_at_knots(chosen, known, columns, held, ephemeris.beta_km_s2, bounds)
                held, size = [], 0
        if held:
            yield _tested_at_knots(chosen, known, columns, held, ephemeris.beta_km_s2, bounds)
    yield from _near_irregular(ephemeris, chosen, known, blocks, bounds)


def _near_irregular(
    ephemeris: Ephemeris,
    chosen: Rows,
    known: _States,
    blocks: _Blocks,
    bounds: Bounds,
) -> Iterator[_Pairs]:
    """The same as `_near_at_knots` for the objects that are not regular: each is compared in each block."""
    at_s = (blocks.knots_ns - ephemeris.origin_ns) / NS_PER_S
    for column in np.flatnonzero(~ephemeris.greatest.regular).tolist():
        r_km, v_km_s = _at(ephemeris, np.full(len(at_s), column), at_s)
        for of in range(len(chosen)):
            every = _Pairs(np.full(len(at_s), of), np.full(len(at_s), column), np.arange(len(at_s)))
            yield _kept_at_knots(chosen, known, every, r_km, v_km_s, ephemeris.beta_km_s2, bounds)


class _AtKnot(NamedTuple):
    """Pairs that may be near in one block: numbers of chosen objects, places in the level, and states at the knot."""

    of: Rows
    place: Rows
    block: int
    r_km: Floats
    v_km_s: Floats


def _tested_at_knots(
    chosen: Rows, known: _States, columns: Rows, held: list[_AtKnot], beta_km_s2: Floats, bounds: Bounds
) -> _Pairs:
    counts = [len(each.place) for each in held]
    pairs = _Pairs(
        np.concatenate([each.of for each in held]),
        columns[np.concatenate([each.place for each in held])],
        np.repeat(np.array([each.block for each in held]), counts),
    )
    r_km = np.concatenate([each.r_km for each in held], axis=1)
    v_km_s = np.concatenate([each.v_km_s for each in held], axis=1)
    return _kept_at_knots(chosen, known, pairs, r_km, v_km_s, beta_km_s2, bounds)


def _kept_at_knots(
    chosen: Rows, known: _States, pairs: _Pairs, r_km: Floats, v_km_s: Floats, beta_km_s2: Floats, bounds: Bounds
) -> _Pairs:
    of, other, block = pairs
    chosen_r_km, chosen_v_km_s = known.r_km[of, block].T, known.v_km_s[of, block].T
    beta = known.beta_km_s2[of, block], beta_km_s2[other]
    keep = _may_be_near(chosen_r_km, chosen_v_km_s, r_km, v_km_s, *beta, bounds)
    # Without a state at the knot, only its slices decide.
    keep |= ~np.isfinite(v_km_s[0]) & np.isfinite(chosen_v_km_s[0])
    keep &= chosen[of] != other
    return _Pairs(of[keep], other[keep], block[keep])


def _may_be_near(
    chosen_r_km: Floats,
    chosen_v_km_s: Floats,
    r_km: Floats,
    v_km_s: Floats,
    chosen_beta_km_s2: Floats,
    beta_km_s2: Floats,
    bounds: Bounds,
) -> Mask:
    """Bounds a to c. False where a state is NaN."""
    d_km, w_km_s = r_km - chosen_r_km, v_km_s - chosen_v_km_s
    w2 = np.einsum("in,in->n", w_km_s, w_km_s)
    line_km = bounds.line_km(np.sqrt(w2), chosen_beta_km_s2 + beta_km_s2)
    time_s = -np.einsum("in,in->n", d_km, w_km_s) / np.maximum(w2, 1e-12)
    nearest_km = d_km + w_km_s * np.clip(time_s, -bounds.half_s, bounds.half_s)
    keep: Mask = np.einsum("in,in->n", nearest_km, nearest_km) <= line_km**2
    some = np.flatnonzero(keep)
    chosen_rho, chosen_q = bounds.radial_km(chosen_r_km[:, some], chosen_v_km_s[:, some], chosen_beta_km_s2[some])
    rho, q = bounds.radial_km(r_km[:, some], v_km_s[:, some], beta_km_s2[some])
    keep[some] = np.abs(rho - chosen_rho) <= bounds.miss_km + chosen_q + q
    return keep


def _tested(
    chosen: Rows,
    pairs: _Pairs,
    slices: Slices,
    in_slices: _States,
    r_km: Floats,
    v_km_s: Floats,
    beta_km_s2: Floats,
    bounds: Bounds,
) -> PairStates:
    """The pairs that may be within the distance in their slices."""
    of, other, number = pairs
    chosen_r_km, chosen_v_km_s = in_slices.r_km[of, number].T, in_slices.v_km_s[of, number].T
    chosen_beta = in_slices.beta_km_s2[of, number]
    keep = _may_be_near(chosen_r_km, chosen_v_km_s, r_km, v_km_s, chosen_beta, beta_km_s2, bounds)
    keep &= chosen[of] != other
    return PairStates(
        slices=slices[number[keep]],
        first=chosen[of[keep]],
        second=other[keep],
        first_r_km=chosen_r_km[:, keep],
        first_v_km_s=chosen_v_km_s[:, keep],
        second_r_km=r_km[:, keep],
        second_v_km_s=v_km_s[:, keep],
        beta_km_s2=(chosen_beta + beta_km_s2)[keep],
    )


def _near_direct(
    ephemeris: Ephemeris, chosen: Rows, slices: Slices, in_slices: _States, exhaustive: Mask, bounds: Bounds
) -> Iterator[PairStates]:
    """Pairs with an object that has no knots in the slice, where the chosen one has."""
    direct = ephemeris.direct
    alive = np.flatnonzero(direct.alive)
    number = (direct.slices[alive] - slices[0]).astype(np.intp)
    for of in range(len(chosen)):
        here = ~exhaustive[of, number]
        which = alive[here]
        pairs = _Pairs(np.full(len(which), of), direct.columns[which], number[here])
        states = direct.r_km[:, which], direct.v_km_s[:, which], direct.beta_km_s2[which]
        yield _tested(chosen, pairs, slices, in_slices, *states, bounds)


def _near_exhaustive(
    ephemeris: Ephemeris, chosen: Rows, slices: Slices, in_slices: _States, exhaustive: Mask, bounds: Bounds
) -> Iterator[PairStates]:
    """Pairs of a chosen object with any other in the slices in which the chosen one is compared with all."""
    for number in np.flatnonzero(exhaustive.any(axis=0)).tolist():
        every = ephemeris.states(int(slices[number]), int(slices[number]) + 1)
        alive = np.flatnonzero(every.alive[0])
        beta_km_s2 = every.beta_km_s2[0, alive]
        for of in np.flatnonzero(exhaustive[:, number]).tolist():
            pairs = _Pairs(np.full(len(alive), of), alive, np.full(len(alive), number))
            r_km, v_km_s = every.r_km[0][:, alive], every.v_km_s[0][:, alive]
            yield _tested(chosen, pairs, slices, in_slices, r_km, v_km_s, beta_km_s2, bounds)


def _without_direct(ephemeris: Ephemeris, pairs: _Pairs, slices: Slices) -> _Pairs:
    """Without pairs whose other object has no knots in the slice."""
    direct = ephemeris.direct
    if not len(direct.slices):
        return pairs
    count = len(ephemeris.prepared)
    keys = direct.slices * count + direct.columns
    rest = ~np.isin((slices[0] + pairs.number) * count + pairs.other, keys)
    return _Pairs(*(column[rest] for column in pairs))


def _parts(pairs: _Pairs) -> Iterator[_Pairs]:
    for begin in range(0, max(1, len(pairs.of)), _CHUNK):
        yield _Pairs(*(column[begin : begin + _CHUNK] for column in pairs))


def _linear(bounds: Bounds) -> tuple[float, float, float]:
    """Bound a is linear: its constant, and its factors of the relative speed and of the sum of betas."""
    zero, one = np.zeros(1), np.ones(1)
    constant = float(bounds.distance_km(zero, zero)[0])
    by_speed = float(bounds.distance_km(one, zero)[0]) - constant
    return constant, by_speed, float(bounds.distance_km(zero, one)[0]) - constant
