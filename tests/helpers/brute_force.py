"""Close approaches by brute force, for comparison: every pair at every second, then SGP4's own minimum.

It shares no code with `sda_ops.screening`, and uses sgp4 directly. Positions of all objects at every second are compared
pair by pair. One sample in eleven is taken for all pairs first: a pair whose distance there exceeds the miss distance by more
than both objects move in six seconds (their own greatest steps, measured) cannot be within it in the eleven, and is left out.
A sample that is smaller than its neighbours brackets a minimum. There the relative position is interpolated through five
positions of SGP4 half a second apart, and the root of its range-rate is the time of closest approach.

A state with one of SGP4's error codes is no position: minima beside it are not expected. Nor are minima of states without an
error code that are far beyond the orbit (`IMPLAUSIBLE_APOGEES`), which a diverging drag term produces, or that move faster than
any orbit (`NO_ORBIT_KM_S`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from sgp4.api import Satrec, SatrecArray

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

NS_PER_S = 1_000_000_000
NS_PER_DAY = 86_400 * NS_PER_S
UNIX_EPOCH_JD = 2440587.5
EARTH_RADIUS_KM = 6378.135
IMPLAUSIBLE_APOGEES = 1.5
NO_ORBIT_KM_S = 22.4  # twice the escape velocity at the Earth's surface
SLOW_KM_S = 0.010
REACH_S = 5  # a block is this many seconds before and after its middle
CHUNK_BLOCKS = 160  # half an hour

_NODES_S = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
_TO_COEFFICIENTS = np.linalg.inv(np.vander(_NODES_S, increasing=True))


@dataclass(frozen=True, slots=True, eq=False)
class Minima:
    """Minima of the distance of two objects, at most the miss distance, in ``[start, end)``: arrays of one length.

    ``first < second``; sorted by time.
    """

    first: Integers
    second: Integers
    tca_ns: Integers
    miss_m: Floats
    speed_m_s: Floats

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Minima:
        return Minima(
            self.first[chosen], self.second[chosen], self.tca_ns[chosen], self.miss_m[chosen], self.speed_m_s[chosen]
        )


@dataclass(frozen=True, slots=True)
class Contact:
    """A pair's seconds within the miss distance while its relative speed is below `SLOW_KM_S`, and its smallest sample."""

    seconds: int
    smallest_m: float


@dataclass(frozen=True, slots=True, eq=False)
class BruteForce:
    """Everything there is.

    Attributes:
        minima: All, slow ones included.
        contacts: By pair.
        failed_s: By object: seconds after the start of the window at which it has no position.
        samples: How many distances were compared or excluded.
    """

    minima: Minima
    contacts: dict[tuple[int, int], Contact]
    failed_s: dict[int, Integers]
    samples: int

    def fast(self, miss_m: float) -> Minima:
        """The minima at most ``miss_m``, without the slow ones."""
        return self.minima.where((self.minima.miss_m <= miss_m) & (self.minima.speed_m_s >= SLOW_KM_S * 1e3))

    def slow(self, miss_m: float) -> Minima:
        return self.minima.where((self.minima.miss_m <= miss_m) & (self.minima.speed_m_s < SLOW_KM_S * 1e3))


def brute_force(satrecs: Sequence[Satrec], start_ns: int, end_ns: int, miss_m: float) -> BruteForce:
    """Every minimum and every slow contact in the half-open window."""
    miss_km = miss_m / 1e3
    count = len(satrecs)
    array = SatrecArray(list(satrecs))
    apogee_km = np.array([(satrec.alta + 1.0) * EARTH_RADIUS_KM for satrec in satrecs])
    seconds = -(-(end_ns - start_ns) // NS_PER_S)
    block = 2 * REACH_S + 1
    rows, columns = np.triu_indices(count, 1)
    found: list[tuple[Integers, Integers, Integers]] = []
    within: dict[tuple[int, int], Contact] = {}
    failed: dict[int, list[Integers]] = {}
    for begin in range(-1, seconds + 2, block * CHUNK_BLOCKS):
        blocks = min(CHUNK_BLOCKS, -(-(seconds + 2 - begin) // block))
        second = np.arange(begin - 1, begin + blocks * block + 1)  # with one more before and behind
        r_km = _positions(array, apogee_km, start_ns + second * NS_PER_S)
        step_km = np.linalg.norm(np.diff(r_km, axis=1), axis=2)
        with np.errstate(invalid="ignore"):
            too_fast = step_km > NO_ORBIT_KM_S
        r_km[:, 1:][too_fast] = np.nan
        r_km[:, :-1][too_fast] = np.nan
        bad = np.isnan(r_km[:, :, 0])
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            inside = second[bad[row]]
            failed.setdefault(row, []).append(inside[(inside >= 0) & (inside < seconds)])
        step_km = np.linalg.norm(np.diff(r_km, axis=1), axis=2)
        fastest_km = np.nanmax(np.where(np.isnan(step_km), 0.0, step_km), axis=1)
        reach_km = miss_km + (REACH_S + 1) * (fastest_km[rows] + fastest_km[columns])
        for number in range(blocks):
            middle = 1 + number * block + REACH_S
            # A position that does not exist is near everything: the samples around it decide.
            near = np.flatnonzero(~(pdist(r_km[:, middle]) > reach_km))
            if not near.size:
                continue
            i, j = rows[near], columns[near]
            span = slice(middle - REACH_S - 1, middle + REACH_S + 2)
            d_km = r_km[j, span] - r_km[i, span]
            square = np.einsum("ptc,ptc->pt", d_km, d_km)
            inner = square[:, 1:-1]
            with np.errstate(invalid="ignore"):
                least = (inner <= square[:, :-2]) & (inner < square[:, 2:])
                room_km = miss_km + (fastest_km[i] + fastest_km[j])
                pair, offset = np.nonzero(least & (inner <= np.square(room_km)[:, np.newaxis]))
                speed_km_s = np.linalg.norm(d_km[:, 2:] - d_km[:, :-2], axis=2) / 2.0
                time_s = second[span][1:-1]
                touching = (inner <= miss_km**2) & (speed_km_s < SLOW_KM_S) & (time_s >= 0) & (time_s < seconds)
            found.append((i[pair], j[pair], start_ns + time_s[offset] * NS_PER_S))
            for each in np.flatnonzero(touching.any(axis=1)).tolist():
                key = (int(i[each]), int(j[each]))
                before = within.get(key, Contact(0, np.inf))
                smallest_m = float(np.sqrt(inner[each][touching[each]].min())) * 1e3
                within[key] = Contact(before.seconds + int(touching[each].sum()), min(before.smallest_m, smallest_m))
    first, second_, near_ns = (
        (np.concatenate(column) for column in zip(*found, strict=True)) if found else (np.empty(0, dtype=np.int64),) * 3
    )
    minima = _minima(satrecs, first, second_, near_ns.astype(np.int64))
    kept = (minima.miss_m <= miss_m) & (minima.tca_ns >= start_ns) & (minima.tca_ns < end_ns)
    return BruteForce(
        minima.where(kept),
        within,
        {row: np.unique(np.concatenate(times)) for row, times in failed.items() if np.concatenate(times).size},
        len(rows) * seconds,
    )


def _positions(array: SatrecArray, apogee_km: Floats, timestamp_ns: Integers) -> Floats:
    """Positions ``(objects, times, 3)``, km, NaN where the object has no position."""
    error, r_km, _ = array.sgp4(*_julian(timestamp_ns))
    radius_km = np.linalg.norm(r_km, axis=2)
    bad = (error != 0) | ~(radius_km <= IMPLAUSIBLE_APOGEES * apogee_km[:, np.newaxis])
    r_km[bad] = np.nan
    positions: Floats = r_km
    return positions


def _julian(timestamp_ns: Integers) -> tuple[Floats, Floats]:
    day, rest = np.divmod(timestamp_ns, NS_PER_DAY)
    return UNIX_EPOCH_JD + day, rest / NS_PER_DAY


def _minima(satrecs: Sequence[Satrec], first: Integers, second: Integers, near_ns: Integers) -> Minima:
    """SGP4's own minimum near each time, where there is one."""
    tca_ns = near_ns.copy()
    valid = np.ones(len(first), dtype=np.bool_)
    speed_km_s = np.zeros(len(first))
    active = np.arange(len(first))
    for _ in range(6):
        if not active.size:
            break
        times_ns = tca_ns[active, np.newaxis] + np.rint(_NODES_S * NS_PER_S).astype(np.int64)
        d_km = _each(satrecs, second[active], times_ns) - _each(satrecs, first[active], times_ns)
        coefficients = np.einsum("kn,pnc->pkc", _TO_COEFFICIENTS, d_km)
        tau_s = _least(coefficients)
        finite = np.isfinite(tau_s)
        valid[active[~finite]] = False
        active, tau_s, coefficients = active[finite], tau_s[finite], coefficients[finite]
        tca_ns[active] += np.rint(tau_s * NS_PER_S).astype(np.int64)
        speed_km_s[active] = np.linalg.norm(_value(coefficients, tau_s, 1), axis=1)
        active = active[np.abs(tau_s) > 0.5]
    at_ns = tca_ns[:, np.newaxis]
    d_km = (_each(satrecs, second, at_ns) - _each(satrecs, first, at_ns))[:, 0]
    valid &= np.isfinite(d_km).all(axis=1)
    order = np.lexsort((second, first, tca_ns))
    order = order[valid[order]]
    all_minima = Minima(
        first[order], second[order], tca_ns[order], np.linalg.norm(d_km[order], axis=1) * 1e3, speed_km_s[order] * 1e3
    )
    # One minimum, bracketed by two neighbouring samples that are equal to the last bit, is one.
    key = first[order] * len(satrecs) + second[order]
    again = np.zeros(len(order), dtype=np.bool_)
    by_pair = np.lexsort((all_minima.tca_ns, key))
    again[by_pair[1:]] = (np.diff(key[by_pair]) == 0) & (np.diff(all_minima.tca_ns[by_pair]) < 10_000_000)
    return all_minima.where(~again)


def _each(satrecs: Sequence[Satrec], rows: Integers, timestamp_ns: Integers) -> Floats:
    """Positions ``(n, times, 3)`` of object ``rows[k]`` at ``timestamp_ns[k]``, km; NaN where SGP4 has an error."""
    r_km = np.empty((*timestamp_ns.shape, 3))
    for row in np.unique(rows).tolist():
        chosen = np.flatnonzero(rows == row)
        jd, fraction = _julian(timestamp_ns[chosen].ravel())
        error, positions_km, _ = satrecs[row].sgp4_array(jd, fraction)
        positions_km[error != 0] = np.nan
        r_km[chosen] = positions_km.reshape(len(chosen), -1, 3)
    return r_km


def _value(coefficients: Floats, tau_s: Floats, derivative: int) -> Floats:
    """The polynomials' derivative of that order at ``tau_s``: ``(n, 3)``."""
    total = np.zeros((len(tau_s), 3))
    for power in range(derivative, len(_NODES_S)):
        factor = np.prod(np.arange(power - derivative + 1, power + 1)) if derivative else 1.0
        total += factor * coefficients[:, power] * (tau_s ** (power - derivative))[:, np.newaxis]
    return total


def _least(coefficients: Floats) -> Floats:
    """Where the polynomials' length is smallest, within 1.5 s of 0: a root of range times range-rate, by Newton."""
    tau_s = np.zeros(len(coefficients))
    for _ in range(30):
        d, w, a = (_value(coefficients, tau_s, order) for order in (0, 1, 2))
        slope = np.einsum("pc,pc->p", w, w) + np.einsum("pc,pc->p", d, a)
        rate = np.einsum("pc,pc->p", d, w)
        with np.errstate(invalid="ignore", divide="ignore"):
            step_s = np.where(slope > 0.0, -rate / slope, -np.sign(rate) * 0.1)
        tau_s = np.clip(tau_s + step_s, -1.5, 1.5)
    return tau_s
