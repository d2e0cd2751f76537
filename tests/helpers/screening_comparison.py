"""A screening compared with brute force, and with another screening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from sgp4.api import Satrec

from sda_ops.screening.approaches import SLOW_M_S, Approaches, Screening, SlowPairs
from sda_ops.screening.exact import exact_states
from tests.helpers.brute_force import NS_PER_S, BruteForce, Minima

SAME_MINIMUM_NS = NS_PER_S
"""Two times of one pair within a second are of one minimum: the next is half a revolution later."""

EDGE_M = 1e-3
"""A minimum so near the miss distance may be in the list or not: the two computations differ by 1e-6 m."""

EDGE_NS = 10_000
"""The same for the edges of the window."""

EDGE_M_S = 0.01
"""The same for the limit between slow and other minima."""

BESIDE_S = 2.0
"""Brute force needs a position a second before and behind a minimum."""

SHORT_LIFE_S = 31
"""An object that has a position for less than half a slice, and none before and behind, may be taken for one without."""

SHALLOW_M = 50.0
"""A minimum that a step of SGP4's positions makes is less deep than the interpolation bounds of both objects, 25 m each."""

SHALLOW_S = 300

Event = tuple[int, int, int, float]
"""Rows, time (UTC, ns) and distance (m)."""


@dataclass(slots=True)
class Comparison:
    """What a screening has of what there is.

    Attributes:
        expected: How many minima brute force found, without slow ones and without those at an edge.
        found: How many of them the screening has.
        missed: Those that it does not have.
        unscreened: Those that it does not have, in a time that it reports as an object's time without position.
        invented: What it has and brute force does not.
        tca_s: The greatest difference of times of closest approach.
        range_m: The greatest difference of distances.
        slow_expected: How many minima of slow pairs there are.
        slow_missed: Those whose pair is not among the slow pairs, or has too great a smallest distance.
        contacts_missed: Pairs that touch for at least a second, and are not among the slow pairs.
        slow_invented: Slow pairs whose smallest distance is not what SGP4 says, or beyond the miss distance.
    """

    expected: int = 0
    found: int = 0
    missed: list[Event] = field(default_factory=list)
    unscreened: list[Event] = field(default_factory=list)
    invented: list[Event] = field(default_factory=list)
    tca_s: float = 0.0
    range_m: float = 0.0
    slow_expected: int = 0
    slow_missed: list[Event] = field(default_factory=list)
    contacts_missed: list[tuple[int, int]] = field(default_factory=list)
    slow_invented: list[tuple[int, int]] = field(default_factory=list)

    @property
    def faults(self) -> str:
        """What is wrong, as a text; empty if nothing is."""
        lists: dict[str, Sequence[object]] = {
            "missed": self.missed,
            "unscreened": self.unscreened,
            "invented": self.invented,
            "slow_missed": self.slow_missed,
            "contacts_missed": self.contacts_missed,
            "slow_invented": self.slow_invented,
        }
        return "; ".join(f"{len(each)} {name}: {each[:3]}" for name, each in lists.items() if each)


def compared(truth: BruteForce, screening: Screening, satrecs: Sequence[Satrec]) -> Comparison:
    """``truth`` must be of the same window, and of at least the same miss distance."""
    miss_m = screening.miss_distance_m
    result = Comparison()
    inside = _inside(truth.minima, screening)
    events = _events(truth.minima)
    certain = inside & (truth.minima.miss_m <= miss_m - EDGE_M)
    fast = certain & (truth.minima.speed_m_s >= SLOW_M_S + EDGE_M_S)
    slow = certain & (truth.minima.speed_m_s <= SLOW_M_S - EDGE_M_S)
    by_pair: dict[tuple[int, int], list[int]] = {}
    for index, (first, second, *_) in enumerate(events):
        by_pair.setdefault((first, second), []).append(index)
    matched: set[int] = set()
    for event in _approaches(screening):
        first, second, tca_ns, range_m = event
        near = [
            index
            for index in by_pair.get((first, second), [])
            if abs(events[index][2] - tca_ns) < SAME_MINIMUM_NS and index not in matched
        ]
        if near:
            nearest = min(near, key=lambda index: abs(events[index][2] - tca_ns))
            matched.add(nearest)
            result.tca_s = max(result.tca_s, abs(events[nearest][2] - tca_ns) / NS_PER_S)
            result.range_m = max(result.range_m, abs(events[nearest][3] - range_m))
        elif not _is_at_an_edge(event, screening) and not _is_beside_a_failure(event, truth, screening.start_ns):
            result.invented.append(event)
    result.expected = int(fast.sum())
    for index in np.flatnonzero(fast).tolist():
        if index in matched:
            result.found += 1
        elif _is_in_a_short_life(events[index], truth, screening.start_ns):
            result.expected -= 1
        elif _is_in_ended(events[index], screening):
            result.unscreened.append(events[index])
        else:
            result.missed.append(events[index])
    _compare_slow(truth, screening, satrecs, [events[index] for index in np.flatnonzero(slow).tolist()], result)
    return result


def _compare_slow(
    truth: BruteForce, screening: Screening, satrecs: Sequence[Satrec], events: list[Event], result: Comparison
) -> None:
    pairs = screening.slow_pairs
    smallest_m = {pair: distance_m for pair, (distance_m, _) in _smallest_of(screening).items()}
    result.slow_expected = len(events)
    result.slow_missed = [
        event
        for event in events
        if not smallest_m.get((event[0], event[1]), np.inf) <= event[3] + EDGE_M
        and not _is_in_a_short_life(event, truth, screening.start_ns)
    ]
    result.contacts_missed = [
        pair
        for pair, contact in truth.contacts.items()
        if contact.smallest_m <= screening.miss_distance_m - EDGE_M
        and pair not in smallest_m
        and not (contact.seconds <= SHORT_LIFE_S and truth.failed_s.keys() & set(pair))
    ]
    if len(pairs):
        one, other = (exact_states(satrecs, rows, pairs.smallest_at_ns) for rows in (pairs.first, pairs.second))
        distance_m = np.linalg.norm(other.r_teme_m - one.r_teme_m, axis=1)
        wrong = ~(np.abs(distance_m - pairs.smallest_m) <= EDGE_M) | (pairs.smallest_m > screening.miss_distance_m)
        wrong |= (pairs.smallest_at_ns < screening.start_ns) | (pairs.smallest_at_ns >= screening.end_ns)
        result.slow_invented = [(int(pairs.first[row]), int(pairs.second[row])) for row in np.flatnonzero(wrong)]


def same_list(one: Screening, other: Screening, satrecs: Sequence[Satrec] = ()) -> str:
    """What is different in two screenings of the same window and distance; empty if nothing is.

    The same minima, with times within 1 ms and distances within 1 mm, except those at an edge; the same slow pairs, with
    the same smallest distances. With ``satrecs``, a shallow minimum (`is_shallow`) may be in one of both only.
    """
    differences = []
    remaining = _by_pair(_approaches(other))
    for event in _approaches(one):
        candidates = remaining.get((event[0], event[1]), [])
        same = [
            each for each in candidates if abs(each[2] - event[2]) <= 1_000_000 and abs(each[3] - event[3]) <= EDGE_M
        ]
        if same:
            candidates.remove(same[0])
        elif not _is_at_an_edge(event, one) and not is_shallow(event, satrecs):
            differences.append(f"only in the first: {event}")
    differences += [
        f"only in the second: {event}"
        for events in remaining.values()
        for event in events
        if not _is_at_an_edge(event, one) and not is_shallow(event, satrecs)
    ]
    slow = [_smallest_of(one), _smallest_of(other)]
    for pair in sorted(slow[0].keys() | slow[1].keys()):
        (one_m, speed_m_s), (other_m, _) = (each.get(pair, (np.inf, 0.0)) for each in slow)
        # A contact ends where the relative speed reaches 10 m/s: the smallest distance may be there, and as exact as this time.
        tolerance_m = 10.0 if abs(speed_m_s - SLOW_M_S) <= EDGE_M_S else EDGE_M
        if not abs(one_m - other_m) <= tolerance_m and min(one_m, other_m) <= one.miss_distance_m - EDGE_M:
            differences.append(f"slow pair {pair}: smallest distances {one_m} and {other_m} m")
    return "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")


def is_shallow(event: Event, satrecs: Sequence[Satrec]) -> bool:
    """Whether the distance rises by less than `SHALLOW_M` and then falls below the minimum, within `SHALLOW_S` on one side.

    So the pair has a nearer approach. A minimum from which the distance only rises is not shallow. False without ``satrecs``.
    """
    if not satrecs:
        return False
    seconds = np.arange(1, SHALLOW_S + 1)
    for side in (-1, 1):
        at_ns = event[2] + side * seconds * NS_PER_S
        one, other = (exact_states(satrecs, np.full(SHALLOW_S, row), at_ns) for row in event[:2])
        rise_m = np.linalg.norm(other.r_teme_m - one.r_teme_m, axis=1) - event[3]
        below = np.flatnonzero(rise_m < -EDGE_M)
        if below.size and rise_m[: below[0] + 1].max() < SHALLOW_M:
            return True
    return False


def part_of(screening: Screening, rows: Sequence[int]) -> Screening:
    """The pairs with one of these rows."""

    def involves(pairs: Approaches | SlowPairs) -> dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]]:
        which = np.isin(pairs.first, rows) | np.isin(pairs.second, rows)
        return {each.name: getattr(pairs, each.name)[which] for each in fields(pairs)}

    approaches, slow_pairs = Approaches(**involves(screening.approaches)), SlowPairs(**involves(screening.slow_pairs))  # type: ignore[arg-type] # the same types as before
    return replace(screening, approaches=approaches, slow_pairs=slow_pairs)


def _smallest_of(screening: Screening) -> dict[tuple[int, int], tuple[float, float]]:
    """The smallest distance of each slow pair, m, and the relative speed there, m/s."""
    pairs = screening.slow_pairs
    return {
        (first, second): (smallest_m, speed_m_s)
        for first, second, smallest_m, speed_m_s in zip(
            pairs.first.tolist(),
            pairs.second.tolist(),
            pairs.smallest_m.tolist(),
            pairs.relative_speed_m_s.tolist(),
            strict=True,
        )
    }


def _approaches(screening: Screening) -> list[Event]:
    approaches = screening.approaches
    return list(
        zip(
            approaches.first.tolist(),
            approaches.second.tolist(),
            approaches.tca_ns.tolist(),
            approaches.miss_m.tolist(),
            strict=True,
        )
    )


def _events(minima: Minima) -> list[Event]:
    return list(
        zip(
            minima.first.tolist(),
            minima.second.tolist(),
            minima.tca_ns.tolist(),
            minima.miss_m.tolist(),
            strict=True,
        )
    )


def _by_pair(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    by_pair: dict[tuple[int, int], list[Event]] = {}
    for event in events:
        by_pair.setdefault((event[0], event[1]), []).append(event)
    return by_pair


def _inside(minima: Minima, screening: Screening) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    inside = (minima.tca_ns >= screening.start_ns + EDGE_NS) & (minima.tca_ns < screening.end_ns - EDGE_NS)
    return np.asarray(inside, dtype=np.bool_)


def _is_at_an_edge(event: Event, screening: Screening) -> bool:
    return (
        min(event[2] - screening.start_ns, screening.end_ns - event[2]) <= EDGE_NS
        or event[3] > screening.miss_distance_m - EDGE_M
    )


def _is_beside_a_failure(event: Event, truth: BruteForce, start_ns: int) -> bool:
    """Whether SGP4 has an error so near that brute force does not look for minima there."""
    second = (event[2] - start_ns) / NS_PER_S
    return any(
        bool((np.abs(truth.failed_s[row] - second) <= BESIDE_S).any()) for row in event[:2] if row in truth.failed_s
    )


def _is_in_a_short_life(event: Event, truth: BruteForce, start_ns: int) -> bool:
    """Whether SGP4 has errors before and behind, so near that the screening may take the object for one without position."""
    second = (event[2] - start_ns) / NS_PER_S
    for row in event[:2]:
        failed = truth.failed_s.get(row, np.empty(0))
        before, behind = failed[failed <= second], failed[failed > second]
        if len(behind) and behind[0] - (before[-1] if len(before) else 0) <= SHORT_LIFE_S:
            return True
    return False


def _is_in_ended(event: Event, screening: Screening) -> bool:
    return any(each.row in event[:2] and each.from_ns <= event[2] < each.until_ns for each in screening.ended)
