"""Staged passages: SGP4's own distance has the minimum that was staged, and the screening finds it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from sda_ops.astro.time import NS_PER_S, julian_date
from sda_ops.catalog import ElementSet, synthetic_catalog
from sda_ops.catalog.reader import parse_catalog
from sda_ops.screening.geometry.screen import ScreeningOptions, screen
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.simulate.catalog_file import omm_json
from sda_ops.simulate.staged import (
    Passage,
    StagedPassage,
    Staging,
    StagingPlan,
    passing,
    read_staged,
    stage,
    write_staged,
)
from tests.helpers.sizes import examples

START_NS = 1_773_230_400 * NS_PER_S + 123_456_789
CATALOG = synthetic_catalog(objects=300, epoch_ns=START_NS)
PLAN = StagingPlan(conjunctions=6, near_misses=6, first_after_s=600.0, last_after_s=5_400.0)
ONE_M = 1.0


def distance_km(first: ElementSet, second: ElementSet, near_ns: int, late_s: float) -> float:
    """SGP4's distance so long after a time."""
    jd, fraction = julian_date(np.array(near_ns + round(late_s * NS_PER_S)))
    states = [each.satrec.sgp4(float(jd), float(fraction)) for each in (first, second)]
    assert all(error == 0 for error, _, _ in states)
    return float(np.linalg.norm(np.subtract(states[0][1], states[1][1])))


def minimum(first: ElementSet, second: ElementSet, near_ns: int, within_s: float = 20.0) -> tuple[float, float]:
    """When SGP4's distance has its minimum, s after a time, and the distance, m: by bracketing."""
    late_s = np.linspace(-within_s, within_s, 401)
    best_s = late_s[np.argmin([distance_km(first, second, near_ns, each) for each in late_s])]
    found = minimize_scalar(
        lambda each: distance_km(first, second, near_ns, each),
        bounds=(best_s - 0.2, best_s + 0.2),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(found.x), 1e3 * float(found.fun)


@pytest.fixture(scope="module")
def staged() -> Staging:
    return stage(CATALOG, PLAN, start_ns=START_NS, rng=np.random.default_rng(7))


def pair_of(staged: Staging, truth: StagedPassage) -> tuple[ElementSet, ElementSet]:
    by_number = {each.catalog_number: each for each in (*CATALOG, *staged.element_sets)}
    return by_number[truth.catalog_number_first], by_number[truth.catalog_number_second]


def test_each_staged_pair_has_the_minimum_that_the_truth_names(staged: Staging) -> None:
    """Within 1 ms and 1 m, by bracketing SGP4's distance."""
    assert [each.kind for each in staged.passages] == ["conjunction"] * 6 + ["near_miss", "late"] * 3
    for truth in staged.passages:
        first, second = pair_of(staged, truth)
        late_s, miss_m = minimum(first, second, truth.tca_timestamp)
        assert abs(late_s) < 1e-3
        assert miss_m == pytest.approx(truth.miss_m, abs=ONE_M)
        assert (miss_m < PLAN.threshold_m) == (truth.kind == "conjunction")
        assert START_NS + 590 * NS_PER_S < truth.tca_timestamp < START_NS + 5_410 * NS_PER_S


def test_a_late_object_crosses_the_path_of_the_other_one(staged: Staging) -> None:
    """Its path is within 200 m of the other object's path, although the objects are more than 1,000 m apart."""
    late = [each for each in staged.passages if each.kind == "late"]
    assert late
    for truth in late:
        first, second = pair_of(staged, truth)
        shifts_s = np.linspace(-3.0, 3.0, 121)
        jd, fraction = julian_date(truth.tca_timestamp + np.rint(shifts_s * NS_PER_S).astype(np.int64))
        paths = [each.satrec.sgp4_array(jd, fraction)[1] for each in (first, second)]
        apart_km = np.linalg.norm(paths[0][:, np.newaxis] - paths[1], axis=-1)
        # Samples are 50 ms apart, 380 m of path: compare with the straight lines between them.
        nearest = np.unravel_index(apart_km.argmin(), apart_km.shape)
        directions = [np.gradient(path, axis=0)[place] for path, place in zip(paths, nearest, strict=True)]
        normal = np.cross(*directions)
        offset_km = abs((paths[0][nearest[0]] - paths[1][nearest[1]]) @ normal) / np.linalg.norm(normal)
        assert offset_km < 0.2
        assert truth.miss_m > PLAN.threshold_m


def test_the_screening_finds_each_staged_passage_and_no_other_of_the_pair(staged: Staging) -> None:
    """Over three hours and up to 25 km: with the time and the distance of the truth, from the written catalogue."""
    written = omm_json((*CATALOG, *staged.element_sets)).decode()
    pairs = {
        number for truth in staged.passages for number in (truth.catalog_number_first, truth.catalog_number_second)
    }
    read = parse_catalog(written, file="catalog.json").element_sets
    few = ScreenedObjects.of([each for each in read if each.catalog_number in pairs])
    options = ScreeningOptions(engine="sgp4", broad_phase="scipy")
    found = screen(few, START_NS, timedelta(hours=3), 25_000.0, options=options).approaches
    numbers = few.columns.catalog_number
    one_m_s = 1.0  # SGP4's velocity is not exactly the derivative of its position
    by_pair: dict[tuple[int, int], list[int]] = {}
    for index in range(len(found)):
        first, second = sorted((int(numbers[found.first[index]]), int(numbers[found.second[index]])))
        by_pair.setdefault((first, second), []).append(index)
    for truth in staged.passages:
        (index,) = by_pair[truth.catalog_number_first, truth.catalog_number_second]
        assert found.miss_m[index] == pytest.approx(truth.miss_m, abs=ONE_M)
        assert abs(int(found.tca_ns[index]) - truth.tca_timestamp) < NS_PER_S // 1000
        assert found.relative_speed_m_s[index] == pytest.approx(truth.relative_speed_m_s, abs=one_m_s)


@settings(max_examples=examples(60), deadline=None)
@given(
    target=st.sampled_from([each for each in CATALOG if each.satrec.method == "n"]),
    after_s=st.floats(60.0, 86_400.0),
    miss_m=st.floats(0.0, 20_000.0),
    angle_deg=st.floats(0.0, 360.0),
    turn_deg=st.floats(10.0, 170.0),
)
def test_the_mean_elements_reproduce_the_wanted_miss_for_any_passage(
    target: ElementSet, after_s: float, miss_m: float, angle_deg: float, turn_deg: float
) -> None:
    """Within 1 m up to 1 km, and within the curvature of the orbits beyond it: 0.1 % (20 km are 1/340 of a radius)."""
    wanted = Passage(
        at_ns=START_NS + round(after_s * NS_PER_S),
        miss_m=miss_m,
        miss_angle_rad=float(np.deg2rad(angle_deg)),
        turn_rad=float(np.deg2rad(turn_deg)),
    )
    staged = passing(target, wanted, catalog_number=999_999_999, name="X", epoch_ns=START_NS)
    _, found_m = minimum(target, staged, wanted.at_ns, within_s=1.0)
    assert found_m == pytest.approx(miss_m, abs=ONE_M + 1e-3 * max(0.0, miss_m - 1_000.0))
    assert staged.catalog_number == 999_999_999


def test_a_staged_object_has_the_speed_and_direction_of_the_passage() -> None:
    """The velocities differ by the turn, and the speeds by the factor."""
    target, at_ns = CATALOG[0], START_NS + 3_000 * NS_PER_S
    passage = Passage(at_ns=at_ns, miss_m=0.0, turn_rad=float(np.deg2rad(60.0)), speed=1.02)
    staged = passing(target, passage, catalog_number=9, epoch_ns=START_NS)
    jd, fraction = (float(part) for part in julian_date(np.array(at_ns)))
    ours, theirs = (np.array(each.satrec.sgp4(jd, fraction)[2]) for each in (target, staged))
    assert np.linalg.norm(theirs) / np.linalg.norm(ours) == pytest.approx(1.02, abs=1e-6)
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(
        60.0, abs=0.01
    )  # the radial part of the velocity is not turned


def test_staged_objects_have_free_numbers_and_plain_names(staged: Staging) -> None:
    taken = {each.catalog_number for each in CATALOG}
    made = [each.catalog_number for each in staged.element_sets]
    assert not taken & set(made)
    assert len(set(made)) == len(made) == 12
    assert {each.name for each in staged.element_sets} == {f"OBJECT {number}" for number in made}


def test_the_same_seed_stages_the_same_objects(staged: Staging, tmp_path: Path) -> None:
    """The truth is equal, read from its file."""
    again = stage(CATALOG, PLAN, start_ns=START_NS, rng=np.random.default_rng(7))
    write_staged(tmp_path / "staged.jsonl", again.passages)
    assert read_staged(tmp_path / "staged.jsonl") == list(staged.passages)


def test_a_catalogue_with_too_few_objects_in_low_orbit_is_rejected() -> None:
    high = [each for each in CATALOG if each.satrec.method == "d"]
    with pytest.raises(ValueError, match="staging 12 passages needs as many objects in low orbit, got 0"):
        stage(high, PLAN, start_ns=START_NS, rng=np.random.default_rng(0))


def test_only_the_named_targets_are_passed() -> None:
    one_target = next(each for each in CATALOG if each.name.startswith("SUNSYNC"))
    one = replace(PLAN, conjunctions=1, near_misses=0)
    (truth,) = stage(CATALOG, one, start_ns=START_NS, rng=np.random.default_rng(0), targets=[one_target]).passages
    assert truth.catalog_number_first == one_target.catalog_number
