"""Passages of objects through the boxes of assets: entry, exit, and the closest approach that belongs to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.approaches import Approaches, EndedObject
from sda_ops.screening.geometry.direct import ExactOrbits
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects, check_held
from sda_ops.screening.geometry.nearby import nearby
from sda_ops.screening.geometry.parallel import chosen, joined
from sda_ops.screening.geometry.results import ended_objects, joined_spans
from sda_ops.screening.objects import Rows
from sda_ops.screening.volumes.assets import Asset
from sda_ops.screening.volumes.boxes import (
    LONGEST_S,
    RESIDUAL_M_S2,
    Intervals,
    Mask,
    exact_motion,
    intervals_inside,
    may_be_inside,
    motion,
)
from sda_ops.screening.volumes.volumes import ScreeningVolume

BEYOND_S = 3_600.0
"""How long before a passage's entry, or after its exit, its closest approach may be."""

_STEP_NS = round(LONGEST_S * NS_PER_S)
"""Between two minima of the distance of one pair lie more than 2,400 s, so that no step of a minute has two of them."""

_TURN_RAD = 2e-4
"""How far the axes of an interpolated state may be turned, by an error of its velocity of 1 m/s."""

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
        tca_ns: ``(n,)``, UTC, the time of closest approach: of the smallest minimum of the distance in the passage. If the
            distance is increasing already at the entry, or decreasing still at the exit, the minimum before or after counts
            too, up to `BEYOND_S`, because a box is not a sphere; it may be outside of the window. Without a minimum it is
            the time of the smaller distance of entry and exit.
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
        """Their closest approaches, one for each passage and in this order, for `sda_ops.screening.assessment.assess`."""
        return Approaches(
            first=np.minimum(self.asset, self.other),
            second=np.maximum(self.asset, self.other),
            tca_ns=self.tca_ns,
            miss_m=self.miss_m,
            relative_speed_m_s=self.relative_speed_m_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetScreening:
    """The passages of the half-open window ``[start_ns, end_ns)``.

    Attributes:
        start_ns: UTC.
        end_ns: UTC.
        passages: Every time at which an object is inside an asset's box.
        ended: Objects that could not be screened in a part of the window: neither as an asset nor as the other object.
    """

    start_ns: int
    end_ns: int
    passages: Passages
    ended: tuple[EndedObject, ...]


def screen_assets(ephemeris: Ephemeris, assets: Sequence[Asset], start_ns: int, end_ns: int) -> AssetScreening:
    """Every passage of another object through the box of an asset in ``[start_ns, end_ns)``, from held positions.

    Complete: an object that is in a box for at least 1 µs at any time of the window is reported. Raises ``ValueError`` for a
    window that is not held. An asset costs about 0.1 s of CPU for a day of 15,000 objects (``bench.screening.assets``).
    """
    check_held(ephemeris, start_ns, end_ns)
    found: list[Intervals] = []
    for volume in dict.fromkeys(asset.volume for asset in assets):
        rows = np.unique([asset.row for asset in assets if asset.volume == volume])
        found.append(_inside(ephemeris, ephemeris.prepared.columns[rows], volume, start_ns, end_ns))
    none = np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp), np.empty(0, np.int64), np.empty(0, np.int64)
    inside = joined([Intervals(*none), *found])
    return AssetScreening(
        start_ns=start_ns,
        end_ns=end_ns,
        passages=_passages(ephemeris.prepared, inside),
        ended=ended_objects(ephemeris, start_ns, end_ns),
    )


def _inside(ephemeris: Ephemeris, columns: Rows, volume: ScreeningVolume, start_ns: int, end_ns: int) -> Intervals:
    """When objects are in the boxes of the assets in these columns, which have one volume."""
    half_axes_m = np.array([volume.radial_m, volume.in_track_m, volume.cross_track_m])
    near = nearby(ephemeris, columns, volume.half_diagonal_m / M_PER_KM)
    residual_m_s2 = np.maximum(RESIDUAL_M_S2, near.beta_km_s2 * M_PER_KM)
    now = motion(
        *(near.first_r_km.T * M_PER_KM, near.first_v_km_s.T * M_PER_KM),
        *((near.second_r_km - near.first_r_km).T * M_PER_KM, (near.second_v_km_s - near.first_v_km_s).T * M_PER_KM),
    )
    half_s = 0.5 * ephemeris.slice_ns / NS_PER_S
    margin_m = 2.0 * ephemeris.interpolation_km * M_PER_KM + _TURN_RAD * volume.half_diagonal_m
    possible = np.flatnonzero(may_be_inside(now, half_s, residual_m_s2, half_axes_m, margin_m=margin_m))
    near, residual_m_s2 = chosen(near, possible), residual_m_s2[possible]
    middle_ns = ephemeris.middle_ns(near.slices)
    lives = [ephemeris.direct.life_s(near.slices, each, half_s) for each in (near.first, near.second)]
    from_s, until_s = np.maximum(lives[0][0], lives[1][0]), np.minimum(lives[0][1], lives[1][1])
    from_ns = np.maximum(start_ns, middle_ns + np.rint(from_s * NS_PER_S).astype(np.int64))
    until_ns = np.minimum(end_ns, middle_ns + np.rint(until_s * NS_PER_S).astype(np.int64))
    some = np.flatnonzero(until_ns > from_ns)
    searched = chosen(Intervals(near.first, near.second, from_ns, until_ns), some)
    return intervals_inside(
        ephemeris.prepared.orbits, searched, residual_m_s2[some], np.broadcast_to(half_axes_m, (len(some), 3))
    )


def _passages(prepared: PreparedObjects, inside: Intervals) -> Passages:
    """The closest approach of each time that an object is in a box, and its geometry; columns to rows."""
    tca_ns = _closest_ns(prepared.orbits, inside)
    now, _ = exact_motion(prepared.orbits, inside.asset, inside.other, tca_ns)
    asset, other = prepared.rows[inside.asset], prepared.rows[inside.other]
    order = np.lexsort((other, asset, inside.from_ns))
    return Passages(
        asset=asset[order],
        other=other[order],
        entry_ns=inside.from_ns[order],
        exit_ns=inside.until_ns[order],
        tca_ns=tca_ns[order],
        miss_m=np.linalg.norm(now.position_m, axis=1)[order],
        relative_speed_m_s=np.linalg.norm(now.inertial_m_s, axis=1)[order],
        relative_position_m=now.position_m[order],
        relative_velocity_m_s=now.inertial_m_s[order],
    )


def merged(screenings: Sequence[AssetScreening]) -> AssetScreening:
    """The screenings of consecutive windows as one: a passage across their common edge becomes one again.

    Its closest approach is the closer one of both. Raises ``ValueError`` where windows do not follow each other.
    """
    if not screenings:
        raise ValueError("expected at least one screening, got none")
    for one, following in pairwise(screenings):
        if one.end_ns != following.start_ns:
            raise ValueError(f"expected consecutive windows, got one to {one.end_ns} and one from {following.start_ns}")
    parts = [screening.passages for screening in screenings]
    every = {each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Passages)}
    order = np.lexsort((every["entry_ns"], every["other"], every["asset"]))
    every = {name: column[order] for name, column in every.items()}
    same = (np.diff(every["asset"]) == 0) & (np.diff(every["other"]) == 0)
    begins = np.flatnonzero(
        np.concatenate(([True], ~(same & (every["entry_ns"][1:] == every["exit_ns"][:-1]))))[: len(order)]
    )
    group = np.zeros(len(order), dtype=np.intp)
    group[begins[1:]] = 1
    group = np.cumsum(group)
    closest = np.lexsort((every["tca_ns"], every["miss_m"], group))
    closest = closest[np.searchsorted(group, np.arange(len(begins)))]
    whole = {name: column[closest] for name, column in every.items()}
    whole["entry_ns"] = every["entry_ns"][begins]
    whole["exit_ns"] = every["exit_ns"][np.append(begins, len(order))[1:] - 1]
    order = np.lexsort((whole["other"], whole["asset"], whole["entry_ns"]))
    return AssetScreening(
        start_ns=screenings[0].start_ns,
        end_ns=screenings[-1].end_ns,
        passages=Passages(**{name: column[order] for name, column in whole.items()}),
        ended=joined_spans([each for screening in screenings for each in screening.ended]),
    )


def _closest_ns(orbits: ExactOrbits, inside: Intervals) -> Nanoseconds:
    """The time of the smallest distance in each interval, and in the decrease beyond each of its edges."""
    of, at_ns = _steps(inside.from_ns, inside.until_ns)
    asset, other = inside.asset, inside.other
    _, rate, ok = _distance_and_rate(orbits, asset[of], other[of], at_ns)
    turns = np.flatnonzero((of[1:] == of[:-1]) & (rate[:-1] < 0.0) & (rate[1:] >= 0.0) & ok[:-1] & ok[1:])
    of_minimum = of[turns]
    minimum_ns = _minimum_ns(orbits, asset[of_minimum], other[of_minimum], at_ns[turns], at_ns[turns + 1])
    every = np.arange(len(asset))
    beyond_ns = [
        _followed_ns(orbits, inside, edge_ns, way) for edge_ns, way in ((inside.from_ns, -1), (inside.until_ns, 1))
    ]
    of = np.concatenate((every, every, every, every, of_minimum))
    at_ns = np.concatenate((inside.from_ns, inside.until_ns, *beyond_ns, minimum_ns))
    distance_m, _, ok = _distance_and_rate(orbits, asset[of], other[of], at_ns)
    order = np.lexsort((at_ns, np.where(ok, distance_m, np.inf), of))
    closest_ns: Nanoseconds = at_ns[order[np.searchsorted(of[order], every)]]
    return closest_ns


def _steps(from_ns: Nanoseconds, until_ns: Nanoseconds) -> tuple[Rows, Nanoseconds]:
    """Times of each interval, from its beginning to its end, at most `_STEP_NS` apart, and the number of their interval."""
    counts = -(-(until_ns - from_ns) // _STEP_NS) + 1
    of = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    return of, np.minimum(from_ns[of] + within * _STEP_NS, until_ns[of])


def _followed_ns(orbits: ExactOrbits, inside: Intervals, edge_ns: Nanoseconds, way: int) -> Nanoseconds:
    """From each edge on, before or after the interval, the first minimum of the distance if that decreases there; or the edge."""
    found_ns, here_ns = edge_ns.copy(), edge_ns
    active = np.arange(len(edge_ns))
    for step in range(round(BEYOND_S * NS_PER_S) // _STEP_NS + 1):
        next_ns = here_ns + way * _STEP_NS * min(step, 1)
        asset, other = inside.asset[active], inside.other[active]
        _, rate, ok = _distance_and_rate(orbits, asset, other, next_ns)
        decreasing = (way * rate < 0.0) & ok
        turned = np.flatnonzero(~decreasing & ok)
        if step and turned.size:
            low_ns, high_ns = np.minimum(here_ns, next_ns)[turned], np.maximum(here_ns, next_ns)[turned]
            found_ns[active[turned]] = _minimum_ns(orbits, asset[turned], other[turned], low_ns, high_ns)
        active, here_ns = active[decreasing], next_ns[decreasing]
        if not active.size:
            break
    return found_ns


def _minimum_ns(
    orbits: ExactOrbits, asset: Rows, other: Rows, low_ns: Nanoseconds, high_ns: Nanoseconds
) -> Nanoseconds:
    """The root of the range rate between times at which it is below and at least 0: regula falsi, halved in every third turn."""
    low_ns, high_ns = low_ns.copy(), high_ns.copy()
    _, low_rate, _ = _distance_and_rate(orbits, asset, other, low_ns)
    _, high_rate, _ = _distance_and_rate(orbits, asset, other, high_ns)
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
        _, rate, _ = _distance_and_rate(orbits, asset[active], other[active], between)
        below = rate < 0.0
        low_ns[active], low_rate[active] = np.where(below, between, a), np.where(below, rate, fa)
        high_ns[active], high_rate[active] = np.where(below, b, between), np.where(below, fb, rate)
        active = active[high_ns[active] - low_ns[active] > _RESOLUTION_NS]
    return low_ns + (high_ns - low_ns) // 2


def _distance_and_rate(
    orbits: ExactOrbits, asset: Rows, other: Rows, timestamp_ns: Nanoseconds
) -> tuple[Floats, Floats, Mask]:
    """The distance, the distance times its rate, and where SGP4 has both states."""
    now, failed = exact_motion(orbits, asset, other, timestamp_ns)
    rate = np.einsum("ni,ni->n", now.position_m, now.inertial_m_s)
    return np.linalg.norm(now.position_m, axis=1), rate, ~failed
