"""Every close approach of all objects with each other in a window: the whole method, from element sets to a `Screening`.

For each part of the window, two hours long: positions at knots and the certificate of their interpolation (`ephemeris`); for
each slice the pairs that may come close (`broad`); of those the minima of the interpolated distance and the contacts of slow
pairs (`narrow`); and the minima of SGP4's own distance (`refine`). `sda_ops.screening.geometry.bounds` says why nothing is missed.

Windows are half open. A minimum belongs to the window that contains its time of closest approach, also where the window
cuts a slice. So windows that follow each other have together exactly the list of the whole (`merged`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import get_args

from sda_ops.astro.propagation import M_PER_KM, Engine
from sda_ops.astro.time import NS_PER_S
from sda_ops.screening.approaches import Screening, Statistics
from sda_ops.screening.geometry.bounds import Bounds
from sda_ops.screening.geometry.broad import BroadPhase, BroadPhaseName, broad_phase, pairs_in_slices
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.geometry.narrow import ClosePairs, close_pairs, fast_candidates, slow_candidates
from sda_ops.screening.geometry.parallel import chosen, joined
from sda_ops.screening.geometry.refine import refined
from sda_ops.screening.geometry.results import Found, merged, screening_of_found
from sda_ops.screening.objects import ScreenedObjects

__all__ = ["ScreeningOptions", "held_positions", "merged", "screen", "screen_window"]

Progress = Callable[[float], None]
"""Called with the share of the window that is done, from 0 to 1. It may raise an exception to cancel the screening."""

PART_S = 7200.0
"""So much of the window is held in memory at a time: 80 MB of knots for 15,000 objects."""

_RANGES = {"slice_s": (1.0, 120.0), "knot_s": (1.0, 3600.0), "interpolation_bound_m": (0.1, 1000.0)}
"""Of the options. SGP4's own steps are of some metres."""

_SLICES = 20  # whose states are held at a time: 14 MB for 15,000 objects
_REPETITIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningOptions:
    """How to screen. No option changes the list of events, except in the last digits.

    Attributes:
        slice_s: The length of a slice. From 40 to 120 s the cost is nearly the same.
        knot_s: The greatest interval between two positions by SGP4.
        broad_phase: ``auto`` is numba if it is installed, otherwise scipy.
        engine: ``auto`` is heyoka if it is installed, otherwise sgp4.
        interpolation_bound_m: Objects whose interpolation error may exceed this get shorter knots.
    """

    slice_s: float = 60.0
    knot_s: float = 240.0
    broad_phase: BroadPhaseName = "auto"
    engine: Engine = "auto"
    interpolation_bound_m: float = 25.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {low:g} to {high:g}, got {getattr(self, name):g}"
            for name, (low, high) in _RANGES.items()
            if not low <= getattr(self, name) <= high
        ]
        problems += [
            f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}"
            for name, choices in (("broad_phase", BroadPhaseName), ("engine", Engine))
            if getattr(self, name) not in get_args(choices)
        ]
        if problems:
            raise ValueError(f"ScreeningOptions: {'; '.join(problems)}")


def held_positions(prepared: PreparedObjects, start_ns: int, end_ns: int, options: ScreeningOptions) -> Ephemeris:
    """Positions of all objects for slices that cover ``[start_ns, end_ns)``, UTC."""
    return Ephemeris(
        prepared,
        start_ns,
        end_ns,
        slice_s=options.slice_s,
        knot_s=options.knot_s,
        interpolation_km=options.interpolation_bound_m / M_PER_KM,
    )


def screen(
    objects: ScreenedObjects | PreparedObjects,
    start_ns: int,
    horizon: timedelta,
    miss_distance_m: float,
    *,
    options: ScreeningOptions | None = None,
    on_progress: Progress | None = None,
) -> Screening:
    """Every approach within ``miss_distance_m`` in ``[start_ns, start_ns + horizon)``. See `screen_window`."""
    end_ns = start_ns + horizon // timedelta(microseconds=1) * 1000
    return screen_window(objects, start_ns, end_ns, miss_distance_m, options, on_progress=on_progress)


def screen_window(
    objects: ScreenedObjects | PreparedObjects,
    start_ns: int,
    end_ns: int,
    miss_distance_m: float,
    options: ScreeningOptions | None = None,
    *,
    on_progress: Progress | None = None,
) -> Screening:
    """Every approach within ``miss_distance_m`` in ``[start_ns, end_ns)``, UTC, of all objects with each other.

    Pure, and blocking: 14,683 objects take a quarter of a second of CPU an hour. An exception of ``on_progress``, which is
    called about every 20 slices, ends it. Pass `PreparedObjects` to screen several windows of the same objects. Raises ``ValueError`` for a
    miss distance that is not positive and finite, or a window whose end is before its start.
    """
    options = options or ScreeningOptions()
    if not 0.0 < miss_distance_m < float("inf"):
        raise ValueError(f"miss_distance_m must be positive and finite, got {miss_distance_m:g}")
    if end_ns < start_ns:
        raise ValueError(f"the window must not end before it starts, got {start_ns} to {end_ns}")
    prepared = objects if isinstance(objects, PreparedObjects) else PreparedObjects(objects, engine=options.engine)
    phase = broad_phase(options.broad_phase)
    part_ns = max(1, round(PART_S / options.slice_s)) * round(options.slice_s * NS_PER_S)
    screenings: list[Screening] = []
    from_ns = start_ns
    while from_ns < end_ns or not screenings:
        until_ns = min(end_ns, (from_ns // part_ns + 1) * part_ns)
        progress = _part_of(on_progress, start_ns, end_ns, from_ns, until_ns)
        screenings.append(_screen_part(prepared, from_ns, until_ns, miss_distance_m, options, phase, progress))
        from_ns = until_ns
    return merged(screenings)


def _part_of(progress: Progress | None, start_ns: int, end_ns: int, from_ns: int, until_ns: int) -> Progress:
    """The progress of a part as that of the whole."""

    def report(share: float) -> None:
        if progress is not None:
            progress((from_ns - start_ns + share * (until_ns - from_ns)) / max(1, end_ns - start_ns))

    return report


def _screen_part(
    prepared: PreparedObjects,
    start_ns: int,
    end_ns: int,
    miss_distance_m: float,
    options: ScreeningOptions,
    phase: BroadPhase,
    progress: Progress,
) -> Screening:
    """A part that fits into memory; again with knots at half the length if the refinement finds a greater error."""
    bound_km = options.interpolation_bound_m / 1e3
    bounds = Bounds(miss_km=miss_distance_m / 1e3, half_s=0.5 * options.slice_s, interpolation_km=bound_km)
    knot_s, repeated = options.knot_s, 0
    while True:
        timer = _Timer()
        ephemeris = held_positions(prepared, start_ns, end_ns, replace(options, knot_s=knot_s))
        repeated += ephemeris.shortened
        timer.lap("propagation")
        pairs, count = _close_pairs(ephemeris, bounds, phase, timer, progress)
        fast = fast_candidates(chosen(pairs, pairs.fast), ephemeris, bounds)
        slow, contacts = slow_candidates(chosen(pairs, ~pairs.fast), ephemeris, bounds)
        timer.lap("narrow")
        of_fast = refined(fast, prepared.orbits, ephemeris.origin_ns)
        of_slow = refined(slow, prepared.orbits, ephemeris.origin_ns)
        timer.lap("refine")
        error_km = max(of_fast.error_km, of_slow.error_km)
        # A distance errs by the errors of two objects.
        if error_km <= 2.0 * bound_km or _repeated_too_often(knot_s, options.knot_s):
            break
        knot_s *= 0.5
        repeated += len(prepared)
    statistics = Statistics(
        objects=len(prepared),
        slices=len(ephemeris),
        pairs=count,
        candidates=len(fast.first) + len(slow.first),
        interpolation_error_m=1e3 * error_km,
        interpolation_bound_m=2e3 * bound_km,
        repeated=repeated,
        unconverged=of_fast.unconverged + of_slow.unconverged,
        broad_phase=phase.name,
        engine=prepared.engine,
        propagation_s=timer.laps["propagation"],
        broad_s=timer.laps["broad"],
        narrow_s=timer.laps["narrow"],
        refine_s=timer.laps["refine"],
    )
    found = Found((of_fast.minima, of_slow.minima), contacts)
    return screening_of_found(found, ephemeris, start_ns, end_ns, miss_distance_m, statistics)


def _repeated_too_often(knot_s: float, first_knot_s: float) -> bool:
    """Whether the knots are at an eighth of their first length: then the statistics say that the bound is exceeded."""
    return first_knot_s / knot_s >= 2.0**_REPETITIONS


def _close_pairs(
    ephemeris: Ephemeris, bounds: Bounds, phase: BroadPhase, timer: _Timer, progress: Progress
) -> tuple[ClosePairs, int]:
    """The pairs that obey all bounds, and how many the broad phase returned."""
    found = []
    count = 0
    for first in range(ephemeris.first_slice, ephemeris.end_slice, _SLICES):
        end = min(first + _SLICES, ephemeris.end_slice)
        states = ephemeris.states(first, end)
        pairs = pairs_in_slices(states, bounds, phase)
        count += len(pairs.first)
        timer.lap("broad")
        found.append(close_pairs(pairs, states, bounds))
        timer.lap("narrow")
        progress((end - ephemeris.first_slice) / len(ephemeris))
    return joined(found), count


class _Timer:
    """CPU time of the stages."""

    def __init__(self) -> None:
        self.laps = {"propagation": 0.0, "broad": 0.0, "narrow": 0.0, "refine": 0.0}
        self._since_s = time.process_time()

    def lap(self, stage: str) -> None:
        """Adds the time since the last call to a stage."""
        now_s = time.process_time()
        self.laps[stage] += now_s - self._since_s
        self._since_s = now_s
