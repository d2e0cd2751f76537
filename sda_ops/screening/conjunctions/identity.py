"""Which estimate of a later screening belongs to which known conjunction. Pure.

The id of a conjunction is made once (`sda_ops.records.ids.conjunction_id`) and stored, because an estimate that drifts across
the edge of a bucket would have another one. A later estimate of the same two objects belongs to the conjunction if it is near its
*last* estimate in time, so that an estimate may drift from screening to screening. Successive approaches of two objects
are about half a revolution apart: at least 41 minutes in a catalogue of 14,683 objects over two days. The reach is half of
that. From one element set to the next the time of an approach changes by seconds at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import NS_PER_S, Nanoseconds
from sda_ops.screening.objects import Rows

REACH_NS = 20 * 60 * NS_PER_S
"""An estimate at most this far from a conjunction's last one may be of the same conjunction."""

CatalogNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Encounters:
    """Approaches of two objects each, in any order.

    Attributes:
        one: ``(n,)``, the catalogue number of one of the two objects.
        other: ``(n,)``, that of the other one. The order of the two has no meaning.
        tca_ns: ``(n,)``, time of closest approach, UTC.
    """

    one: CatalogNumbers
    other: CatalogNumbers
    tca_ns: Nanoseconds

    def __len__(self) -> int:
        return len(self.tca_ns)


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """The result of `match`. Each row of the known and of the found ones is in exactly one place.

    Attributes:
        known: ``(m,)``, rows of the known encounters that were found again, ascending.
        found: ``(m,)``, the row of the found encounter that is the same as ``known[i]``.
        new: Rows of the found encounters that are not known, ascending.
        missing: Rows of the known encounters that were not found, ascending.
    """

    known: Rows
    found: Rows
    new: Rows
    missing: Rows


def match(known: Encounters, found: Encounters, *, reach_ns: int = REACH_NS) -> Matching:
    """Assign found encounters to known ones: the same two objects, at most ``reach_ns`` apart, one to one, in time order.

    If several assignments are possible, the one with the most matches is chosen, and of those the one with the smallest sum
    of time differences. So no encounter is new while a known one that could be the same one is missing. The result does
    not depend on the order of the rows, if no two encounters of a pair have the same time.
    """
    count = len(known)
    pair = _pairs(known, found)
    tca_ns = np.concatenate((known.tca_ns, found.tca_ns))
    order = np.lexsort((tca_ns, pair))
    pair, tca_ns = pair[order], tca_ns[order]
    # A cluster ends where the next time is out of reach: no match crosses that gap.
    begins = np.ones(len(order), dtype=np.bool_)
    begins[1:] = (np.diff(pair) != 0) | (np.diff(tca_ns) > reach_ns)
    cluster = np.cumsum(begins) - 1
    clusters = int(begins.sum())
    is_known = order < count
    known_in = np.bincount(cluster, weights=is_known, minlength=clusters)
    found_in = np.bincount(cluster, weights=~is_known, minlength=clusters)
    simple = ((known_in == 1) & (found_in == 1))[cluster]
    matched_known = [order[simple & is_known]]
    matched_found = [order[simple & ~is_known] - count]
    several = (known_in >= 1) & (found_in >= 1) & (known_in + found_in > 2)  # noqa: PLR2004 - one of each
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(order))
    for begin, end in zip(first[several].tolist(), last[several].tolist(), strict=True):
        rows, times = order[begin:end], tca_ns[begin:end]
        of_known, of_found = rows < count, rows >= count
        pairs = _in_time_order(times[of_known].tolist(), times[of_found].tolist(), reach_ns)
        matched_known.append(rows[of_known][[i for i, _ in pairs]])
        matched_found.append(rows[of_found][[j for _, j in pairs]] - count)
    known_rows, found_rows = np.concatenate(matched_known), np.concatenate(matched_found)
    ascending = np.argsort(known_rows)
    return Matching(
        known_rows[ascending],
        found_rows[ascending],
        np.setdiff1d(np.arange(len(found)), found_rows, assume_unique=True),
        np.setdiff1d(np.arange(count), known_rows, assume_unique=True),
    )


def _pairs(known: Encounters, found: Encounters) -> CatalogNumbers:
    """A number for each pair of objects, the known encounters' first. Catalogue numbers have nine digits at most."""
    one = np.concatenate((known.one, found.one))
    other = np.concatenate((known.other, found.other))
    return np.minimum(one, other) * 10**9 + np.maximum(one, other)


def _in_time_order(known: list[int], found: list[int], reach_ns: int) -> list[tuple[int, int]]:
    """Pairs of indices of two ascending lists of times: most pairs first, then the smallest sum of differences.

    ``best[i][j]`` is the best of the times from ``i`` and ``j`` on: minus the number of pairs, and the sum.
    """
    best = [[(0, 0)] * (len(found) + 1) for _ in range(len(known) + 1)]
    for i in reversed(range(len(known))):
        for j in reversed(range(len(found))):
            options = [best[i + 1][j], best[i][j + 1]]
            if (apart := abs(known[i] - found[j])) <= reach_ns:
                pairs, total = best[i + 1][j + 1]
                options.append((pairs - 1, total + apart))
            best[i][j] = min(options)
    chosen: list[tuple[int, int]] = []
    i = j = 0
    while i < len(known) and j < len(found):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            chosen.append((i, j))
            i, j = i + 1, j + 1
    return chosen
