"""One id for one encounter: in any order, in a replay, in two processes, with estimates that drift."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.records.ids import ENCOUNTER_BUCKET_NS, conjunction_id
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable
from tests.helpers.sizes import examples
from tests.sda_ops.screening.conjunctions.test_conjunction_table import T0, WHOLE, S, estimate

MINUTE = 60 * S
EDGE = (T0 // ENCOUNTER_BUCKET_NS + 4) * ENCOUNTER_BUCKET_NS

Screening = Sequence[ConjunctionEstimate]
Encounter = tuple[int, int]  # the pair, and which of its encounters


@contextmanager
def empty_table() -> Iterator[ConjunctionTable]:
    table = ConjunctionTable(Path(":memory:"))
    table.open()
    try:
        yield table
    finally:
        table.close()


def updates_of(screenings: Sequence[Screening]) -> list[ConjunctionUpdate]:
    """Every update that these screenings make, one after the other, from an empty table on."""
    with empty_table() as table:
        for number, found in enumerate(screenings):
            table.record(found, WHOLE, T0 + number)
        return table.undelivered(0, 100_000)


def only_ids(*screenings: Screening) -> list[UUID]:
    """In the order of the first estimates' times."""
    first: dict[UUID, int] = {}
    for update in updates_of(screenings):
        first.setdefault(update.conjunction_id, update.tca_timestamp)
    return sorted(first, key=lambda name: first[name])


class World:
    """Four pairs with six encounters each, 41 to 60 minutes apart, whose estimates move by up to ten minutes in all."""

    def __init__(self, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        self.truth: dict[Encounter, int] = {}
        for pair in range(4):
            minute = rng.randint(60, 100)
            for number in range(6):
                self.truth[pair, number] = minute = minute + rng.randint(41, 60)
        self.encounter_of: dict[tuple[int, int, int], Encounter] = {}

    def screenings(self, count: int) -> list[list[ConjunctionEstimate]]:
        """Each finds some of the encounters, in any order, with a new element set."""
        rng, drift = self._rng, dict.fromkeys(self.truth, 0.0)
        every: list[list[ConjunctionEstimate]] = []
        for number in range(count):
            for each in drift:
                drift[each] = max(-10.0, min(10.0, drift[each] + rng.uniform(-4, 4)))
            found = []
            for each in self.truth:
                if rng.random() < 0.7:
                    tca_ns = T0 + round((self.truth[each] + drift[each]) * MINUTE)
                    found.append(estimate(each[0], 100 + each[0], tca_ns=tca_ns, epoch_ns=T0 - 10**6 + number))
                    self.encounter_of[each[0], tca_ns, number] = each
            rng.shuffle(found)
            every.append(found)
        return every

    def encounter(self, update: ConjunctionUpdate) -> Encounter:
        """Which one this estimate is of."""
        number = update.epoch_first_timestamp - (T0 - 10**6)
        return self.encounter_of[update.catalog_number_first, update.tca_timestamp, number]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=examples(60), deadline=None)
def test_an_encounter_has_one_id_over_screenings_that_move_and_miss_it(seed: int) -> None:
    world = World(seed)
    ids: dict[Encounter, set[UUID]] = {}
    for update in updates_of(world.screenings(8)):
        ids.setdefault(world.encounter(update), set()).add(update.conjunction_id)
    assert all(len(each) == 1 for each in ids.values())
    assert len(set().union(*ids.values())) == len(ids)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=examples(40), deadline=None)
def test_another_process_and_a_replay_make_the_same_updates_in_the_same_order(seed: int) -> None:
    """In any order in which a screening lists what it has found."""
    screenings = World(seed).screenings(5)
    rng = random.Random(seed)
    shuffled = [rng.sample(found, len(found)) for found in screenings]
    again = [(each.conjunction_id, each.revision, each.sequence, each.status) for each in updates_of(shuffled)]
    assert [
        (each.conjunction_id, each.revision, each.sequence, each.status) for each in updates_of(screenings)
    ] == again


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(max_examples=examples(60), deadline=None)
def test_a_process_that_begins_later_makes_the_same_id_if_no_edge_lies_between_the_first_estimates(
    seed: int, later: int
) -> None:
    world = World(seed)
    screenings = world.screenings(6)
    firsts: list[dict[Encounter, ConjunctionUpdate]] = [{}, {}]
    for first, of_process in zip(firsts, (screenings, screenings[later:]), strict=True):
        for update in updates_of(of_process):
            first.setdefault(world.encounter(update), update)
    for encounter in firsts[0].keys() & firsts[1].keys():
        one, other = (first[encounter] for first in firsts)
        if is_alone(one, firsts[0]) and is_alone(other, firsts[1]):
            assert (one.conjunction_id == other.conjunction_id) == (bucket(one) == bucket(other))


def bucket(update: ConjunctionUpdate) -> tuple[int, int]:
    return update.catalog_number_first, update.tca_timestamp // ENCOUNTER_BUCKET_NS


def is_alone(update: ConjunctionUpdate, first: dict[Encounter, ConjunctionUpdate]) -> bool:
    """Whether no other encounter of the pair was found first in the same bucket."""
    return [bucket(each) for each in first.values()].count(bucket(update)) == 1


def test_an_estimate_that_drifts_across_an_edge_keeps_the_id_of_its_table() -> None:
    before, behind = EDGE - S, EDGE + S
    assert conjunction_id(5, 9, before) != conjunction_id(5, 9, behind)
    steps = [
        [estimate(tca_ns=tca_ns, epoch_ns=T0 + n)] for n, tca_ns in enumerate([before, behind, before, behind + S])
    ]
    updates = updates_of(steps)
    assert {each.conjunction_id for each in updates} == {conjunction_id(5, 9, before)}
    assert [each.revision for each in updates] == [1, 2, 3, 4]


def test_every_time_of_a_bucket_gives_its_id_and_the_next_bucket_another_one() -> None:
    inside = {conjunction_id(5, 9, EDGE + at) for at in (0, 1, 7 * MINUTE, ENCOUNTER_BUCKET_NS - 1)}
    assert len(inside) == 1
    assert not inside & {conjunction_id(5, 9, EDGE - 1), conjunction_id(5, 9, EDGE + ENCOUNTER_BUCKET_NS)}


def test_the_ids_are_pinned() -> None:
    """They are in tables, audits and subscribers' systems: another version must make the same ones."""
    assert str(conjunction_id(25_544, 49_044, 1_772_000_000 * S)) == "e1179a29-2b68-894b-aac7-7c2f2ad70596"
    assert (
        str(conjunction_id(49_044, 25_544, 1_772_000_000 * S, occurrence=1)) == "b42ec4df-4f11-85cb-931f-62d2c4e38f63"
    )


@given(st.permutations([0, 9, 21, 39]))
@settings(deadline=None)
def test_encounters_of_a_pair_in_one_bucket_have_different_ids_in_any_order(minutes: list[int]) -> None:
    found = [estimate(tca_ns=EDGE + minute * MINUTE) for minute in minutes]
    assert only_ids(found) == [conjunction_id(5, 9, EDGE, occurrence=n) for n in range(4)]


def test_an_encounter_that_is_found_later_in_the_same_bucket_gets_an_id_of_its_own() -> None:
    one, other = estimate(tca_ns=EDGE + 25 * MINUTE), estimate(tca_ns=EDGE + MINUTE)
    expected = [conjunction_id(5, 9, EDGE, occurrence=1), conjunction_id(5, 9, EDGE)]
    assert only_ids([one], [one, other]) == expected
    assert only_ids([one], [other, one], [one], [other, one]) == expected  # also when it was withdrawn in between


def test_an_encounter_whose_bucket_has_the_id_of_one_that_drifted_away_gets_another_id() -> None:
    here, drifted = estimate(tca_ns=EDGE + MINUTE), estimate(tca_ns=EDGE - 18 * MINUTE, epoch_ns=T0)
    new = estimate(tca_ns=EDGE + 3 * MINUTE, epoch_ns=T0 + 1)
    assert len(set(only_ids([here], [drifted], [drifted, new]))) == 2
