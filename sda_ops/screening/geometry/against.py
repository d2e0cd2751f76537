"""Some objects against all others, from held positions: the part of a whole screening that involves them, at its cost.

The result is exactly that of `sda_ops.screening.geometry.screen` without the pairs of other objects: the phases after the broad phase
are the same.
"""

from __future__ import annotations

import time

import numpy as np

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import NS_PER_S
from sda_ops.screening.approaches import Screening, Statistics
from sda_ops.screening.geometry.bounds import Bounds
from sda_ops.screening.geometry.ephemeris import Ephemeris, check_held
from sda_ops.screening.geometry.narrow import PairStates, fast_candidates, of_states, slow_candidates
from sda_ops.screening.geometry.nearby import nearby
from sda_ops.screening.geometry.parallel import chosen
from sda_ops.screening.geometry.refine import refined
from sda_ops.screening.geometry.results import Found, screening_of_found
from sda_ops.screening.objects import Rows

_REPETITIONS = 3


def screen_against(
    ephemeris: Ephemeris, rows: Rows, miss_distance_m: float, *, start_ns: int, end_ns: int
) -> Screening:
    """Every approach within ``miss_distance_m`` of one of ``rows`` and any other object, in ``[start_ns, end_ns)``, UTC.

    Pure, and blocking. ``ephemeris`` holds the positions of the window, which is at most its own. A list of rows costs
    less than its rows one by one; a row that occurs twice counts once. The approaches and slow pairs are those of all objects
    against all (`sda_ops.screening.geometry.screen`) that involve a row of ``rows``. ``ended`` lists every object that has no position in
    a part of the window, because none of ``rows`` could be screened against it there.

    Raises ``ValueError`` for no rows, a miss distance that is not positive and finite, or a window that is not held.
    """
    if not len(rows):
        raise ValueError("expected at least one object to screen, got none")
    if not 0.0 < miss_distance_m < float("inf"):
        raise ValueError(f"miss_distance_m must be positive and finite, got {miss_distance_m:g}")
    check_held(ephemeris, start_ns, end_ns)
    columns = ephemeris.prepared.columns[np.unique(rows)]
    knot_ns, bound_km, repeated = ephemeris.knot_ns, ephemeris.interpolation_km, 0
    bounds = Bounds(
        miss_km=miss_distance_m / M_PER_KM,
        half_s=0.5 * ephemeris.slice_ns / NS_PER_S,
        interpolation_km=bound_km,
    )
    prepared = ephemeris.prepared
    laps_s = [time.process_time()]
    while True:
        near = _each_pair_once(nearby(ephemeris, columns, bounds.miss_km), columns)
        laps_s.append(time.process_time())
        pairs = of_states(near, bounds)
        fast = fast_candidates(chosen(pairs, pairs.fast), ephemeris, bounds)
        slow, contacts = slow_candidates(chosen(pairs, ~pairs.fast), ephemeris, bounds)
        laps_s.append(time.process_time())
        of_fast = refined(fast, prepared.orbits, ephemeris.origin_ns)
        of_slow = refined(slow, prepared.orbits, ephemeris.origin_ns)
        laps_s.append(time.process_time())
        error_km = max(of_fast.error_km, of_slow.error_km)
        # As in a whole screening: a greater error than the certified one is not expected.
        if error_km <= 2.0 * bound_km or repeated == _REPETITIONS:
            break
        repeated, knot_ns = repeated + 1, knot_ns // 2
        ephemeris = Ephemeris(
            prepared,
            start_ns,
            end_ns,
            slice_s=ephemeris.slice_ns / NS_PER_S,
            knot_s=knot_ns / NS_PER_S,
            interpolation_km=bound_km,
        )
    broad_s, narrow_s, refine_s = np.diff(laps_s)[-3:].tolist()
    statistics = Statistics(
        objects=len(prepared),
        slices=len(ephemeris),
        pairs=len(near.first),
        candidates=len(fast.first) + len(slow.first),
        interpolation_error_m=error_km * M_PER_KM,
        interpolation_bound_m=2.0 * bound_km * M_PER_KM,
        repeated=repeated * len(prepared),
        unconverged=of_fast.unconverged + of_slow.unconverged,
        broad_phase="knots",
        engine=prepared.engine,
        propagation_s=0.0,
        broad_s=broad_s,
        narrow_s=narrow_s,
        refine_s=refine_s,
    )
    found = Found((of_fast.minima, of_slow.minima), contacts)
    return screening_of_found(found, ephemeris, start_ns, end_ns, miss_distance_m, statistics)


def _each_pair_once(pairs: PairStates, columns: Rows) -> PairStates:
    """The smaller column first, as in a whole screening. A pair of two of ``columns`` was found from both."""
    again = np.isin(pairs.second, columns) & (pairs.second < pairs.first)
    pairs = chosen(pairs, ~again)
    swap = pairs.second < pairs.first
    return PairStates(
        slices=pairs.slices,
        first=np.where(swap, pairs.second, pairs.first),
        second=np.where(swap, pairs.first, pairs.second),
        first_r_km=np.where(swap, pairs.second_r_km, pairs.first_r_km),
        first_v_km_s=np.where(swap, pairs.second_v_km_s, pairs.first_v_km_s),
        second_r_km=np.where(swap, pairs.first_r_km, pairs.second_r_km),
        second_v_km_s=np.where(swap, pairs.first_v_km_s, pairs.second_v_km_s),
        beta_km_s2=pairs.beta_km_s2,
    )
