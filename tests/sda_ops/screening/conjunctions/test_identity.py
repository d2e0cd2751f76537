"""Which estimate belongs to which conjunction."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.screening.conjunctions.identity import REACH_NS, Encounters, Matching, match
from tests.helpers.sizes import examples

MINUTE_NS = 60 * 10**9
T0 = 1_772_000_000 * 10**9

Row = tuple[int, int, int]


def encounters(rows: Sequence[Row]) -> Encounters:
    """Rows of two catalogue numbers and minutes after ``T0``."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Encounters(columns[0], columns[1], T0 + columns[2] * MINUTE_NS)


def pairs(matching: Matching) -> list[tuple[int, int]]:
    return list(zip(matching.known.tolist(), matching.found.tolist(), strict=True))


def test_an_estimate_within_twenty_minutes_is_the_same_conjunction() -> None:
    matching = match(encounters([(5, 9, 0)]), encounters([(5, 9, 20)]))
    assert pairs(matching) == [(0, 0)]
    assert len(matching.new) == len(matching.missing) == 0


def test_an_estimate_beyond_twenty_minutes_is_another_conjunction() -> None:
    matching = match(encounters([(5, 9, 0)]), encounters([(5, 9, 21)]))
    assert pairs(matching) == []
    assert (matching.new.tolist(), matching.missing.tolist()) == ([0], [0])


def test_the_order_of_the_two_objects_has_no_meaning() -> None:
    assert pairs(match(encounters([(5, 9, 0)]), encounters([(9, 5, 1)]))) == [(0, 0)]


def test_an_estimate_of_another_pair_at_the_same_time_is_another_conjunction() -> None:
    matching = match(encounters([(5, 9, 0)]), encounters([(5, 10, 0)]))
    assert (pairs(matching), matching.new.tolist(), matching.missing.tolist()) == ([], [0], [0])


def test_of_two_known_ones_the_nearer_gets_the_estimate() -> None:
    matching = match(encounters([(5, 9, 0), (5, 9, 30)]), encounters([(5, 9, 17)]))
    assert (pairs(matching), matching.missing.tolist()) == ([(1, 0)], [0])


def test_of_two_estimates_the_nearer_gets_the_known_one_and_the_other_is_new() -> None:
    matching = match(encounters([(5, 9, 18)]), encounters([(5, 9, 0), (5, 9, 35)]))
    assert (pairs(matching), matching.new.tolist()) == ([(0, 1)], [0])


def test_two_known_ones_and_two_estimates_are_assigned_in_time_order() -> None:
    # The nearest two are 16 and 15; taking them first would leave 30 and 0, which are too far apart.
    matching = match(encounters([(5, 9, 16), (5, 9, 30)]), encounters([(5, 9, 0), (5, 9, 15)]))
    assert pairs(matching) == [(0, 0), (1, 1)]


def test_nothing_known_makes_everything_new_and_nothing_found_makes_everything_missing() -> None:
    some = encounters([(5, 9, 0), (5, 7, 3)])
    assert match(encounters([]), some).new.tolist() == [0, 1]
    assert match(some, encounters([])).missing.tolist() == [0, 1]
    assert len(match(encounters([]), encounters([])).new) == 0


rows = st.lists(
    st.tuples(st.integers(1, 3), st.integers(4, 5), st.integers(0, 200)), max_size=12, unique_by=lambda row: row
)


@given(rows, rows, st.randoms(use_true_random=False))
@settings(max_examples=examples(240), deadline=None)
def test_matching_is_one_to_one_complete_and_independent_of_the_order_of_rows(
    known: list[Row], found: list[Row], rng: random.Random
) -> None:
    matching = match(encounters(known), encounters(found))
    assert sorted([*matching.known.tolist(), *matching.missing.tolist()]) == list(range(len(known)))
    assert sorted([*matching.found.tolist(), *matching.new.tolist()]) == list(range(len(found)))
    for i, j in pairs(matching):
        assert known[i][:2] == found[j][:2]
        assert abs(known[i][2] - found[j][2]) * MINUTE_NS <= REACH_NS
    # No encounter is new while a known one within reach of it is missing.
    for i in matching.missing.tolist():
        for j in matching.new.tolist():
            assert known[i][:2] != found[j][:2] or abs(known[i][2] - found[j][2]) * MINUTE_NS > REACH_NS
    shuffled_known, shuffled_found = known.copy(), found.copy()
    rng.shuffle(shuffled_known)
    rng.shuffle(shuffled_found)
    again = match(encounters(shuffled_known), encounters(shuffled_found))
    assert {(known[i], found[j]) for i, j in pairs(matching)} == {
        (shuffled_known[i], shuffled_found[j]) for i, j in pairs(again)
    }


@given(rows)
@settings(max_examples=examples(100), deadline=None)
def test_the_same_estimates_again_are_the_same_conjunctions(found: list[Row]) -> None:
    some = encounters(found)
    assert pairs(match(some, some)) == [(i, i) for i in range(len(found))]
