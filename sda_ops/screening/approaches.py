"""What a screening finds: close approaches, slow pairs, and objects that could not be screened."""

from __future__ import annotations

from dataclasses import dataclass

from sda_ops.astro.time import Floats, Nanoseconds
from sda_ops.screening.objects import Rows

SLOW_M_S = 10.0
"""Minima below this relative speed are of slow pairs, which have a list of their own."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Approaches:
    """Minima of the distance of two objects, at most the miss distance, by SGP4 itself. Sorted by ``tca_ns``, then by rows.

    Attributes:
        first: ``(n,)``, row numbers of the screened objects.
        second: ``(n,)``, ``first < second``.
        tca_ns: ``(n,)``, time of closest approach, UTC: the minimum of the distance of SGP4's positions.
        miss_m: ``(n,)``, the distance at that time.
        relative_speed_m_s: ``(n,)``, at least `SLOW_M_S`; from differences of positions.
    """

    first: Rows
    second: Rows
    tca_ns: Nanoseconds
    miss_m: Floats
    relative_speed_m_s: Floats

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SlowPairs:
    """Pairs within the miss distance while they hardly move against each other: docked, in formation, co-orbital.

    One row for each pair, sorted by rows. The figures are of the whole window.

    Attributes:
        first: ``(n,)``, row numbers of the screened objects.
        second: ``(n,)``, ``first < second``.
        smallest_m: ``(n,)``, the smallest distance.
        smallest_at_ns: ``(n,)``, when, UTC.
        relative_speed_m_s: ``(n,)``, at that time.
        minima: ``(n,)``, how many minima at most the miss distance, below `SLOW_M_S`.
        contact_s: ``(n,)``, how long the pair is within the miss distance, to the length of a slice.
    """

    first: Rows
    second: Rows
    smallest_m: Floats
    smallest_at_ns: Nanoseconds
    relative_speed_m_s: Floats
    minima: Nanoseconds
    contact_s: Floats

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedObject:
    """An object without a usable position in a part of the window. Elsewhere in the window it was screened, directly.

    Attributes:
        row: Its row number.
        from_ns: The first time without a position, UTC, to the length of a slice.
        until_ns: The end of that time; the window's end if it does not come back.
        reason: Why, as a sentence.
    """

    row: int
    from_ns: int
    until_ns: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """The result for the half-open window ``[start_ns, end_ns)``: a minimum at ``end_ns`` belongs to the next window.

    Attributes:
        start_ns: UTC.
        end_ns: UTC.
        miss_distance_m: What was screened for.
        approaches: The close approaches.
        slow_pairs: Docked objects, formations, and slow approaches.
        ended: Objects that could not be screened in a part of the window.
        statistics: What the screening did and what it cost.
    """

    start_ns: int
    end_ns: int
    miss_distance_m: float
    approaches: Approaches
    slow_pairs: SlowPairs
    ended: tuple[EndedObject, ...]
    statistics: Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a screening did and what it cost. The sums of windows are the figures of the whole.

    Attributes:
        objects: How many were screened.
        slices: How many slices.
        pairs: How many pairs the broad phase returned.
        candidates: How many minima were refined with SGP4.
        interpolation_error_m: The greatest difference between the interpolants' distance and SGP4's, over all candidates.
        interpolation_bound_m: The bound that the method assumes for that difference. A greater error is reported here after
            the window was screened again three times, with shorter knots each time.
        repeated: How often the positions of an object were computed again for a window, with shorter knots, because the error
            would have exceeded the bound.
        unconverged: How many minima were found by bracketing instead of Newton's method.
        broad_phase: ``numba`` or ``scipy``; ``knots`` for some objects against all.
        engine: ``sgp4`` or ``heyoka``.
        propagation_s: CPU time of SGP4 at the knots.
        broad_s: CPU time of the broad phase.
        narrow_s: CPU time of the narrow phase.
        refine_s: CPU time of the refinement.
    """

    objects: int
    slices: int
    pairs: int
    candidates: int
    interpolation_error_m: float
    interpolation_bound_m: float
    repeated: int
    unconverged: int = 0
    broad_phase: str
    engine: str
    propagation_s: float
    broad_s: float
    narrow_s: float
    refine_s: float
