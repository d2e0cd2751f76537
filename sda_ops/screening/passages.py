"""Passages of objects through the boxes of assets: entry, exit, and the closest approach that belongs to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sgp4.api import Satrec

from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.approaches import Approaches
from sda_ops.screening.boxes import LONGEST_S, Intervals, Mask, exact_motion
from sda_ops.screening.objects import Rows

BEYOND_S = 3_600.0
"""How long before a passage's entry, or after its exit, its closest approach may be."""

_STEP_NS = round(LONGEST_S * NS_PER_S)
"""Between two minima of the distance of one pair lie more than 2,400 s, so that no step of a minute has two of them."""

_RESOLUTION_NS = 1_000
_ITERATIONS = 40


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Passages:
    """Times during which an object is in an asset's box, by SGP4 itself. Sorted by ``entry_ns``, then by rows.

    Two assets that pass through each other's boxes have a passage each.

    Attributes:
        asset: ``(n,)``, row numbers of the screened objects.
        other: ``(n,)``, the object that is in the box of ``asset``.
        entry_ns: ``(n,)``, UTC, to 1 µs; the window's start if the object is in the box already.
        exit_ns: ``(n,)``, UTC; the window's end if the object is in the box still.
        tca_ns: ``(n,)``, UTC, the time of closest approach: where the distance has a minimum. It may be before the entry or
            after the exit, also outside of the window, because the box is not a sphere: at most `BEYOND_S`, or else it is
            the time of the smallest distance in the passage.
        miss_m: ``(n,)``, the distance at that time.
        relative_speed_m_s: ``(n,)``, at that time.
        relative_position_m: ``(n, 3)``, at that time, object minus asset: radial, in-track, cross-track of the asset.
        relative_velocity_m_s: ``(n, 3)``, along the same axes, as in a CDM: the axes' own turning is not subtracted.
    """

    asset: Rows
    other: Rows
    entry_ns: Nanoseconds
    exit_ns: Nanoseconds
    tca_ns: Nanoseconds
    miss_m: Floats
    relative_speed_m_s: Floats
    relative_position_m: Floats
    relative_velocity_m_s: Floats

    def __len__(self) -> int:
        return len(self.asset)

    def approaches(self) -> Approaches:
        """Their closest approaches, one for each passage and in this order, for `sda_ops.screening.assess`."""
        return Approaches(
            first=np.minimum(self.asset, self.other),
            second=np.maximum(self.asset, self.other),
            tca_ns=self.tca_ns,
            miss_m=self.miss_m,
            relative_speed_m_s=self.relative_speed_m_s,
        )


def passages(satrecs: Sequence[Satrec], inside: Intervals) -> Passages:
    """The closest approach of each interval that an object is in a box, and its geometry."""
    asset, other, from_ns, until_ns = inside
    tca_ns = _closest_ns(satrecs, inside)
    now, _ = exact_motion(satrecs, asset, other, tca_ns)
    order = np.lexsort((other, asset, from_ns))
    return Passages(
        asset=asset[order],
        other=other[order],
        entry_ns=from_ns[order],
        exit_ns=until_ns[order],
        tca_ns=tca_ns[order],
        miss_m=np.linalg.norm(now.position_m, axis=1)[order],
        relative_speed_m_s=np.linalg.norm(now.inertial_m_s, axis=1)[order],
        relative_position_m=now.position_m[order],
        relative_velocity_m_s=now.inertial_m_s[order],
    )


def _closest_ns(satrecs: Sequence[Satrec], inside: Intervals) -> Nanoseconds:
    """The time of the smallest distance in each interval; where that is an edge, of the minimum beyond it."""
    of, at_ns = _steps(inside.from_ns, inside.until_ns)
    asset, other = inside.asset, inside.other
    distance_m, rate, ok = _distance_and_rate(satrecs, asset[of], other[of], at_ns)
    adjoin = np.flatnonzero((of[1:] == of[:-1]) & (rate[:-1] < 0.0) & (rate[1:] >= 0.0) & ok[:-1] & ok[1:])
    minimum_ns = _minimum_ns(satrecs, asset[of[adjoin]], other[of[adjoin]], at_ns[adjoin], at_ns[adjoin + 1])
    minimum_m, _, _ = _distance_and_rate(satrecs, asset[of[adjoin]], other[of[adjoin]], minimum_ns)
    # The steps and the minima between them: the smallest of each interval.
    all_of = np.concatenate((of, of[adjoin]))
    all_ns = np.concatenate((at_ns, minimum_ns))
    all_m = np.concatenate((np.where(ok, distance_m, np.inf), minimum_m))
    order = np.lexsort((all_ns, all_m, all_of))
    first = order[np.searchsorted(all_of[order], np.arange(len(asset)))]
    closest_ns = all_ns[first]
    for edge_ns, direction in ((inside.from_ns, -1), (inside.until_ns, 1)):
        _follow(satrecs, inside, closest_ns, np.flatnonzero(closest_ns == edge_ns), direction)
    return closest_ns


def _steps(from_ns: Nanoseconds, until_ns: Nanoseconds) -> tuple[Rows, Nanoseconds]:
    """Times of each interval, from its beginning to its end, at most `_STEP_NS` apart, and the number of their interval."""
    counts = -(-(until_ns - from_ns) // _STEP_NS) + 1
    of = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    return of, np.minimum(from_ns[of] + within * _STEP_NS, until_ns[of])


def _follow(satrecs: Sequence[Satrec], inside: Intervals, closest_ns: Nanoseconds, edges: Rows, direction: int) -> None:
    """Replaces the edges from which the distance goes on to decrease in this direction by the minimum that follows."""
    asset, other, here_ns = inside.asset[edges], inside.other[edges], closest_ns[edges]
    steps = round(BEYOND_S * NS_PER_S) // _STEP_NS
    for step in range(steps + 1):
        next_ns = here_ns + direction * _STEP_NS * min(step, 1)
        _, rate, ok = _distance_and_rate(satrecs, asset, other, next_ns)
        decreasing = (direction * rate < 0.0) & ok
        reached = np.flatnonzero(~decreasing & ok)
        if step and reached.size:
            pair = np.stack((here_ns[reached], next_ns[reached]))
            minimum_ns = _minimum_ns(satrecs, asset[reached], other[reached], pair.min(axis=0), pair.max(axis=0))
            closest_ns[edges[reached]] = minimum_ns
        edges, asset, other, here_ns = edges[decreasing], asset[decreasing], other[decreasing], next_ns[decreasing]
        if not edges.size:
            return


def _minimum_ns(
    satrecs: Sequence[Satrec], asset: Rows, other: Rows, low_ns: Nanoseconds, high_ns: Nanoseconds
) -> Nanoseconds:
    """The root of the range rate between times at which it is below and at least 0: regula falsi, halved in every third turn."""
    low_ns, high_ns = low_ns.copy(), high_ns.copy()
    _, low_rate, _ = _distance_and_rate(satrecs, asset, other, low_ns)
    _, high_rate, _ = _distance_and_rate(satrecs, asset, other, high_ns)
    active = np.flatnonzero(high_ns - low_ns > _RESOLUTION_NS)
    for turn in range(_ITERATIONS):
        if not active.size:
            break
        a, b, fa, fb = low_ns[active], high_ns[active], low_rate[active], high_rate[active]
        rise = fb - fa
        share = np.where(rise > 0.0, -fa / np.where(rise > 0.0, rise, 1.0), 0.5) if turn % 3 != 2 else 0.5  # noqa: PLR2004
        # Not nearer to an edge than the resolution, so that the bracket closes from both sides.
        half_ns = _RESOLUTION_NS // 2
        between = np.clip(a + np.rint(share * (b - a)).astype(np.int64), a + half_ns, b - half_ns)
        _, rate, _ = _distance_and_rate(satrecs, asset[active], other[active], between)
        below = rate < 0.0
        low_ns[active], low_rate[active] = np.where(below, between, a), np.where(below, rate, fa)
        high_ns[active], high_rate[active] = np.where(below, b, between), np.where(below, fb, rate)
        active = active[high_ns[active] - low_ns[active] > _RESOLUTION_NS]
    return low_ns + (high_ns - low_ns) // 2


def _distance_and_rate(
    satrecs: Sequence[Satrec], asset: Rows, other: Rows, timestamp_ns: Nanoseconds
) -> tuple[Floats, Floats, Mask]:
    """The distance, the distance times its rate, and where SGP4 has both states."""
    now, failed = exact_motion(satrecs, asset, other, timestamp_ns)
    rate = np.einsum("ni,ni->n", now.position_m, now.inertial_m_s)
    return np.linalg.norm(now.position_m, axis=1), rate, ~failed
