"""From minima and contacts to a `Screening`, and from the screenings of consecutive windows to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.approaches import SLOW_M_S, Approaches, EndedObject, Screening, SlowPairs, Statistics
from sda_ops.screening.geometry.direct import ended_spans
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.geometry.narrow import Contacts
from sda_ops.screening.geometry.parallel import chosen, joined
from sda_ops.screening.geometry.refine import Minima, without_repetitions
from sda_ops.screening.objects import Rows


class Found(NamedTuple):
    """What the phases found in one window, in columns.

    Attributes:
        minima: Of fast and of slow pairs, repetitions included.
        contacts: Of slow pairs.
    """

    minima: tuple[Minima, ...]
    contacts: Contacts


def screening_of_found(
    found: Found, ephemeris: Ephemeris, start_ns: int, end_ns: int, miss_distance_m: float, statistics: Statistics
) -> Screening:
    """Translates to rows and metres, and keeps what is within the miss distance and the window."""
    every = without_repetitions(joined(found.minima))
    within = (every.miss_km * M_PER_KM <= miss_distance_m) & (every.tca_ns >= start_ns) & (every.tca_ns < end_ns)
    every = chosen(every, within)
    slow = every.speed_km_s * M_PER_KM < SLOW_M_S
    return Screening(
        start_ns=start_ns,
        end_ns=end_ns,
        miss_distance_m=miss_distance_m,
        approaches=_approaches(chosen(every, ~slow), ephemeris.prepared),
        slow_pairs=_slow_pairs(chosen(every, slow), found.contacts, ephemeris, start_ns, end_ns),
        ended=ended_objects(ephemeris, start_ns, end_ns),
        statistics=statistics,
    )


def _approaches(minima: Minima, prepared: PreparedObjects) -> Approaches:
    first, second = _rows(minima.first, minima.second, prepared)
    return _sorted(
        Approaches(
            first=first,
            second=second,
            tca_ns=minima.tca_ns,
            miss_m=minima.miss_km * M_PER_KM,
            relative_speed_m_s=minima.speed_km_s * M_PER_KM,
        )
    )


def _sorted(approaches: Approaches) -> Approaches:
    order = np.lexsort((approaches.second, approaches.first, approaches.tca_ns))
    return Approaches(**{each.name: getattr(approaches, each.name)[order] for each in fields(Approaches)})


def _rows(first: Rows, second: Rows, prepared: PreparedObjects) -> tuple[Rows, Rows]:
    """Columns to rows, the smaller one first."""
    one, other = prepared.rows[first], prepared.rows[second]
    return np.minimum(one, other), np.maximum(one, other)


class _Samples(NamedTuple):
    """Moments of slow pairs, any number of each pair, in rows."""

    first: Rows
    second: Rows
    at_ns: Nanoseconds
    distance_m: Floats
    speed_m_s: Floats
    minima: npt.NDArray[np.int64]
    contact_s: Floats


def _slow_pairs(minima: Minima, contacts: Contacts, ephemeris: Ephemeris, start_ns: int, end_ns: int) -> SlowPairs:
    """One row for each pair: the smallest distance by SGP4 of its minima and of both ends of its contacts."""
    first, second, from_ns, until_ns = _intervals(contacts, ephemeris)
    inside = (until_ns >= start_ns) & (from_ns < end_ns)
    first, second = first[inside], second[inside]
    from_ns, until_ns = np.maximum(from_ns[inside], start_ns), np.minimum(until_ns[inside], end_ns)
    contact_s = (until_ns - from_ns) / NS_PER_S
    count = len(first)
    at_ns = np.concatenate((from_ns, (from_ns + until_ns) // 2, np.minimum(until_ns, end_ns - 1)))
    distance_km, speed_km_s = _exact(ephemeris.prepared, np.tile(first, 3), np.tile(second, 3), at_ns)
    ends = _Samples(
        *_rows(np.tile(first, 3), np.tile(second, 3), ephemeris.prepared),
        at_ns,
        distance_km * M_PER_KM,
        speed_km_s * M_PER_KM,
        np.zeros(3 * count, dtype=np.int64),
        np.concatenate((contact_s, np.zeros(2 * count))),
    )
    of_minima = _Samples(
        *_rows(minima.first, minima.second, ephemeris.prepared),
        minima.tca_ns,
        minima.miss_km * M_PER_KM,
        minima.speed_km_s * M_PER_KM,
        np.ones(len(minima.first), dtype=np.int64),
        np.zeros(len(minima.first)),
    )
    return _by_pair(joined((ends, of_minima)))


def _intervals(contacts: Contacts, ephemeris: Ephemeris) -> tuple[Rows, Rows, Nanoseconds, Nanoseconds]:
    """Contacts that follow each other directly as one, in columns and UTC."""
    order = np.lexsort((contacts.until_s, contacts.from_s, contacts.second, contacts.first))
    first, second = contacts.first[order], contacts.second[order]
    from_ns, until_ns = (
        ephemeris.origin_ns + np.rint(at_s[order] * NS_PER_S).astype(np.int64)
        for at_s in (contacts.from_s, contacts.until_s)
    )
    follows = np.zeros(len(order), dtype=np.bool_)
    follows[1:] = (np.diff(first) == 0) & (np.diff(second) == 0) & (from_ns[1:] <= until_ns[:-1])
    begins = np.flatnonzero(~follows)
    last = np.append(begins[1:] - 1, len(order) - 1) if len(order) else begins
    return first[begins], second[begins], from_ns[begins], until_ns[last]


def _exact(prepared: PreparedObjects, first: Rows, second: Rows, at_ns: Nanoseconds) -> tuple[Floats, Floats]:
    """Distance and relative speed by SGP4; infinite distance where one has no position."""
    count = len(first)
    r_km, v_km_s = prepared.orbits.states_km(np.concatenate((first, second)), np.concatenate((at_ns, at_ns)))
    distance_km = np.linalg.norm(r_km[:, count:] - r_km[:, :count], axis=0)
    return np.where(np.isfinite(distance_km), distance_km, np.inf), np.linalg.norm(
        v_km_s[:, count:] - v_km_s[:, :count], axis=0
    )


def _by_pair(samples: _Samples) -> SlowPairs:
    """One row for each pair: its smallest distance, the first time it is reached, and sums of the rest."""
    order = np.lexsort((samples.at_ns, samples.distance_m, samples.second, samples.first))
    samples = chosen(samples, order)
    new = (np.diff(samples.first, prepend=-1) != 0) | (np.diff(samples.second, prepend=-1) != 0)
    best = np.flatnonzero(new)
    return SlowPairs(
        first=samples.first[best],
        second=samples.second[best],
        smallest_m=samples.distance_m[best],
        smallest_at_ns=samples.at_ns[best],
        relative_speed_m_s=samples.speed_m_s[best],
        minima=np.add.reduceat(samples.minima, best) if best.size else samples.minima,
        contact_s=np.add.reduceat(samples.contact_s, best) if best.size else samples.contact_s,
    )


def ended_objects(ephemeris: Ephemeris, start_ns: int, end_ns: int) -> tuple[EndedObject, ...]:
    """The objects that cannot be screened in a part of the window, by row and time."""
    spans = ended_spans(ephemeris.prepared.orbits, ephemeris.direct, ephemeris.slice_ns)
    return joined_spans(
        [
            EndedObject(
                row=int(ephemeris.prepared.rows[span.column]),
                from_ns=max(start_ns, span.from_ns),
                until_ns=min(end_ns, span.until_ns),
                reason=span.reason,
            )
            for span in spans
            if span.from_ns < end_ns and span.until_ns > start_ns
        ]
    )


def merged(screenings: Sequence[Screening]) -> Screening:
    """The screenings of consecutive windows as one. Raises ``ValueError`` where windows do not follow each other.

    A slow pair has the smallest of its distances, and the sums of its minima and contact times.
    """
    if not screenings:
        raise ValueError("expected at least one screening, got none")
    for one, other in pairwise(screenings):
        if one.end_ns != other.start_ns:
            raise ValueError(f"expected consecutive windows, got one to {one.end_ns} and one from {other.start_ns}")
        if one.miss_distance_m != other.miss_distance_m:
            raise ValueError(f"expected one miss distance, got {one.miss_distance_m:g} and {other.miss_distance_m:g} m")
    if len(screenings) == 1:
        return screenings[0]
    approaches = Approaches(
        **{
            each.name: np.concatenate([getattr(screening.approaches, each.name) for screening in screenings])
            for each in fields(Approaches)
        }
    )
    samples = [
        _Samples(
            pairs.first,
            pairs.second,
            pairs.smallest_at_ns,
            pairs.smallest_m,
            pairs.relative_speed_m_s,
            pairs.minima,
            pairs.contact_s,
        )
        for pairs in (screening.slow_pairs for screening in screenings)
    ]
    return Screening(
        start_ns=screenings[0].start_ns,
        end_ns=screenings[-1].end_ns,
        miss_distance_m=screenings[0].miss_distance_m,
        approaches=_sorted(approaches),
        slow_pairs=_by_pair(joined(samples)),
        ended=joined_spans([each for screening in screenings for each in screening.ended]),
        statistics=_summed([screening.statistics for screening in screenings]),
    )


def joined_spans(ended: Sequence[EndedObject]) -> tuple[EndedObject, ...]:
    """Spans of one object that follow each other as one, by row and time."""
    spans: list[EndedObject] = []
    for each in sorted(ended, key=lambda span: (span.row, span.from_ns)):
        if spans and spans[-1].row == each.row and spans[-1].until_ns == each.from_ns:
            spans[-1] = replace(spans[-1], until_ns=each.until_ns)
        else:
            spans.append(each)
    return tuple(spans)


def _summed(statistics: Sequence[Statistics]) -> Statistics:
    first = statistics[0]
    return replace(
        first,
        slices=sum(each.slices for each in statistics),
        pairs=sum(each.pairs for each in statistics),
        candidates=sum(each.candidates for each in statistics),
        interpolation_error_m=max(each.interpolation_error_m for each in statistics),
        repeated=sum(each.repeated for each in statistics),
        unconverged=sum(each.unconverged for each in statistics),
        propagation_s=sum(each.propagation_s for each in statistics),
        broad_s=sum(each.broad_s for each in statistics),
        narrow_s=sum(each.narrow_s for each in statistics),
        refine_s=sum(each.refine_s for each in statistics),
    )
