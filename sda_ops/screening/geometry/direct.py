"""States of objects that have no knots in some slices: they decay, fail, or are too irregular to interpolate.

In such slices an object has SGP4's own state at the slice's middle, so it is screened as every other object, up to the
millisecond at which SGP4 fails. Where the middle has no position but a part of the slice has, the state there is
extrapolated to the middle; the bound of the object's acceleration is wider then. A life that begins and ends within half a
slice is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sgp4.api import Satrec

from sda_ops.astro.propagation import IMPLAUSIBLE_APOGEES, M_PER_KM, PropagationError
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds, julian_date
from sda_ops.screening.exact import exact_states
from sda_ops.screening.geometry.bounds import BETA_KM_S2, gravity
from sda_ops.screening.objects import Rows

FASTEST_KM_S = 22.4
"""Twice the escape velocity at the surface. SGP4 moves hostile element sets faster than that; this is not an orbit, and
positions a second apart say nothing of what lies between them."""

PARTIAL_BETA_KM_S2 = 2e-3
"""The least beta where an object has a state in a part of the slice only: a fifth of gravity, for the extrapolation. Strong
drag adds up to 8 km/s2 in the last second, so there beta is measured as well."""

_PARTIAL_SAMPLES = 9

_BETA_MARGIN = 2.0
_BISECTIONS = 16  # of half a slice, 30 s: to 0.5 ms

_REASONS = {
    PropagationError.NONE: "SGP4 moves it faster than 22.4 km/s, which is not an orbit",
    PropagationError.MEAN_ELEMENTS: "SGP4 error 1: the mean eccentricity is outside 0 to 1",
    PropagationError.MEAN_MOTION: "SGP4 error 2: the mean motion is below zero",
    PropagationError.PERTURBED_ECCENTRICITY: "SGP4 error 3: the perturbed eccentricity is outside 0 to 1",
    PropagationError.SEMILATUS_RECTUM: "SGP4 error 4: the semilatus rectum is below zero",
    PropagationError.EPOCH_UNDERGROUND: "SGP4 error 5: the orbit at epoch is below the Earth's surface",
    PropagationError.DECAYED: "SGP4 error 6: it has decayed, its position is below the Earth's surface",
    PropagationError.IMPLAUSIBLE: "SGP4 puts it far beyond its orbit",
}


class DirectStates(NamedTuple):
    """States of objects in single slices, sorted by slice, then by column.

    Attributes:
        slices: ``(n,)``, slice numbers.
        columns: ``(n,)``, column numbers.
        alive: ``(n,)``; false where the object has no state in the slice.
        r_km: ``(3, n)``, at the middle.
        v_km_s: ``(3, n)``.
        beta_km_s2: ``(n,)``.
        from_s: ``(n,)``, where in the slice it has a state, counted from the middle.
        until_s: ``(n,)``.
    """

    slices: npt.NDArray[np.int64]
    columns: Rows
    alive: npt.NDArray[np.bool_]
    r_km: Floats
    v_km_s: Floats
    beta_km_s2: Floats
    from_s: Floats
    until_s: Floats

    def life_s(self, slices: npt.NDArray[np.int64], columns: Rows, half_s: float) -> tuple[Floats, Floats]:
        """From when until when the objects have a state in these slices: the whole slice if it is not one of these."""
        from_s, until_s = np.full(len(slices), -half_s), np.full(len(slices), half_s)
        if len(self.slices):
            objects = int(max(self.columns.max(), columns.max(initial=0))) + 1
            keys = self.slices * objects + self.columns
            wanted = slices * objects + columns
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = keys[place] == wanted
            from_s[known], until_s[known] = self.from_s[place[known]], self.until_s[place[known]]
        return from_s, until_s


class EndedSpan(NamedTuple):
    """A time without a state."""

    column: int
    from_ns: int
    until_ns: int
    reason: str


class ExactOrbits:
    """SGP4 itself for the objects in columns."""

    def __init__(self, satrecs: Sequence[Satrec]) -> None:
        self._satrecs = satrecs
        self._farthest_km = IMPLAUSIBLE_APOGEES * np.array([(s.alta + 1.0) * s.radiusearthkm for s in satrecs])

    def states_km(self, columns: Rows, timestamp_ns: Nanoseconds) -> tuple[Floats, Floats]:
        """Position and its derivative ``(3, n)``, km and km/s, of object ``columns[i]`` at ``timestamp_ns[i]``.

        NaN where SGP4 has an error, or a position far beyond the orbit, or a speed that no orbit has.
        """
        states = exact_states(self._satrecs, columns, timestamp_ns)
        r_km, v_km_s = states.r_teme_m.T / M_PER_KM, states.v_teme_m_s.T / M_PER_KM
        plausible = (r_km * r_km).sum(axis=0) <= self._farthest_km[columns] ** 2
        plausible &= (v_km_s * v_km_s).sum(axis=0) <= FASTEST_KM_S**2
        failed = states.failed | ~plausible
        r_km[:, failed] = np.nan
        v_km_s[:, failed] = np.nan
        return r_km, v_km_s

    def reason(self, column: int, timestamp_ns: int) -> str:
        """Why an object has no state at a time, as a sentence."""
        jd, fraction = julian_date(np.array([timestamp_ns]))
        error, r_km, _ = self._satrecs[column].sgp4(float(jd[0]), float(fraction[0]))
        if error == PropagationError.NONE and not np.linalg.norm(r_km) <= self._farthest_km[column]:
            error = PropagationError.IMPLAUSIBLE
        return _REASONS[PropagationError(error)]


def direct_states(orbits: ExactOrbits, slices: npt.NDArray[np.int64], columns: Rows, slice_ns: int) -> DirectStates:
    """The states of objects ``columns[i]`` in slices ``slices[i]``. About 12 µs each."""
    order = np.lexsort((columns, slices))
    slices, columns = slices[order], columns[order]
    half_ns = slice_ns // 2
    half_s = half_ns / NS_PER_S
    middle_ns = slices * slice_ns + half_ns
    before, _ = orbits.states_km(columns, middle_ns - half_ns)
    r_km, v_km_s = orbits.states_km(columns, middle_ns)
    after, _ = orbits.states_km(columns, middle_ns + half_ns)
    at_start, at_middle, at_end = (np.isfinite(r[0]) for r in (before, r_km, after))

    def edge_s(dead_s: float, alive_s: float, where: npt.NDArray[np.bool_]) -> Floats:
        """The last time with a state, counted from the middle, between one without and one with a state."""
        dead, alive = np.full(int(where.sum()), dead_s), np.full(int(where.sum()), alive_s)
        for _ in range(_BISECTIONS if len(dead) else 0):
            between = 0.5 * (dead + alive)
            at_ns = middle_ns[where] + np.rint(between * NS_PER_S).astype(np.int64)
            ok = np.isfinite(orbits.states_km(columns[where], at_ns)[0][0])
            alive, dead = np.where(ok, between, alive), np.where(ok, dead, between)
        return alive

    from_s, until_s = np.full(len(slices), -half_s), np.full(len(slices), half_s)
    for where, dead_s, alive_s in (
        (~at_start & at_middle, -half_s, 0.0),
        (~at_start & ~at_middle & at_end, 0.0, half_s),
    ):
        from_s[where] = edge_s(dead_s, alive_s, where)
    for where, dead_s, alive_s in (
        (~at_end & at_middle, half_s, 0.0),
        (~at_end & ~at_middle & at_start, 0.0, -half_s),
    ):
        until_s[where] = edge_s(dead_s, alive_s, where)
    whole = at_start & at_middle & at_end
    second = (before - 2.0 * r_km + after) / half_s**2
    beta_km_s2 = np.full(len(slices), PARTIAL_BETA_KM_S2)
    beyond = np.sqrt(((second - gravity(r_km)) ** 2).sum(axis=0))
    beta_km_s2[whole] = np.maximum(_BETA_MARGIN * beyond[whole], BETA_KM_S2)
    aside = ~at_middle & (at_start | at_end)
    if aside.any():
        sample_s = np.where(at_start[aside], -half_s, half_s)
        at_ns = middle_ns[aside] + np.rint(sample_s * NS_PER_S).astype(np.int64)
        sample_r, sample_v = orbits.states_km(columns[aside], at_ns)
        pull = gravity(sample_r)
        r_km[:, aside] = sample_r - sample_s * sample_v + 0.5 * sample_s**2 * pull
        v_km_s[:, aside] = sample_v - sample_s * pull
    alive = at_start | at_middle | at_end
    partial = np.flatnonzero(alive & ~whole)
    beta_km_s2[partial] = np.maximum(
        PARTIAL_BETA_KM_S2,
        _partial_beta_km_s2(
            orbits,
            columns[partial],
            middle_ns[partial],
            np.linspace(from_s[partial], until_s[partial], _PARTIAL_SAMPLES),
            (r_km[:, partial], v_km_s[:, partial]),
            half_s,
        ),
    )
    return DirectStates(slices, columns, alive, r_km, v_km_s, beta_km_s2, from_s, until_s)


def _partial_beta_km_s2(
    orbits: ExactOrbits,
    columns: Rows,
    middle_ns: Nanoseconds,
    sample_s: Floats,
    state: tuple[Floats, Floats],
    half_s: float,
) -> Floats:
    """Beta of objects that have a position from the first to the last of ``sample_s``, ``(samples, n)``, from the middle.

    The bounds use beta for how far an object leaves the parabola of its state in the middle, half_s2/2 times beta. So that
    distance is measured. It is greatest at the end of a life, which is a sample.
    """
    times, count = sample_s.shape
    at_ns = (middle_ns + np.rint(sample_s * NS_PER_S).astype(np.int64)).ravel()
    r_km = orbits.states_km(np.tile(columns, times), at_ns)[0].reshape(3, times, count)
    middle_km, v_km_s = state[0][:, np.newaxis], state[1][:, np.newaxis]
    pull = gravity(state[0])[:, np.newaxis]
    beyond_km = np.linalg.norm(r_km - middle_km - sample_s * (v_km_s + 0.5 * sample_s * pull), axis=0)
    beta: Floats = _BETA_MARGIN * 2.0 / half_s**2 * np.nan_to_num(beyond_km).max(axis=0, initial=0.0)
    return beta


def no_direct_states() -> DirectStates:
    """For a window in which every object has knots."""
    none, no_columns, no_values = np.empty(0, np.int64), np.empty(0, np.intp), np.empty(0)
    vectors = np.empty((3, 0))
    return DirectStates(none, no_columns, np.empty(0, np.bool_), vectors, vectors, no_values, no_values, no_values)


def ended_spans(orbits: ExactOrbits, direct: DirectStates, slice_ns: int) -> list[EndedSpan]:
    """The times without a state, by column and time. One between two edges of a slice that have a state is left out."""
    order = np.lexsort((direct.slices, direct.columns))
    spans: list[EndedSpan] = []
    for index in order.tolist():
        column, begin_ns = int(direct.columns[index]), int(direct.slices[index]) * slice_ns
        middle_ns = begin_ns + slice_ns // 2
        if not direct.alive[index]:
            parts = [(begin_ns, begin_ns + slice_ns)]
        else:
            alive_ns = [middle_ns + round(s * NS_PER_S) for s in (direct.from_s[index], direct.until_s[index])]
            parts = [
                (a, b)
                for a, b in ((begin_ns, alive_ns[0]), (alive_ns[1], begin_ns + slice_ns))
                if b - a > 1  # rounding
            ]
        for from_ns, until_ns in parts:
            if spans and spans[-1].column == column and spans[-1].until_ns == from_ns:
                spans[-1] = spans[-1]._replace(until_ns=until_ns)
            else:
                reason = orbits.reason(column, (from_ns + until_ns) // 2)
                spans.append(EndedSpan(column, from_ns, until_ns, reason))
    return spans
