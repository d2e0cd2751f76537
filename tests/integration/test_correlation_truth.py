"""Simulated truth: what is seen of a catalogue's objects is found to be theirs, and what is seen of others is not.

The issue's bounds, on a minute of simulated time 36 hours after the element sets' epoch, in each of the three truths of
``tests.scenes.truth_scene``. ``python -m bench.correlation`` prints the whole table, several ages and classes of
orbits. The seed is fixed: the shares are what they are, and lie a multiple of their own scatter from the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import get_args

import pytest

from sda_ops.astro.time import NS_PER_DAY
from sda_ops.catalog import ElementSet, synthetic_catalog
from sda_ops.records.observation import SourceKind
from tests.scenes.truth_scene import (
    REAL_CATALOG,
    REAL_EPOCH_NS,
    Evaluated,
    Outcome,
    Rates,
    Scene,
    Truth,
    catalog,
    scene,
)

RATES = Rates(radar_hz=80.0, optical_hz=40.0, isl_hz=60.0)
MISSING = 0.1  # enough of them for one in a hundred to be told from none


@pytest.fixture(scope="module", params=["real", "generated"])
def element_sets(request: pytest.FixtureRequest) -> Sequence[ElementSet]:
    if request.param == "generated":
        return synthetic_catalog(objects=2_000, epoch_ns=REAL_EPOCH_NS)
    if not REAL_CATALOG.is_file():
        pytest.skip(f"real data absent: no {REAL_CATALOG} (set SDA_DATA_DIR)")
    return catalog()[0]


@pytest.fixture(scope="module", params=get_args(Truth))
def evaluated(element_sets: Sequence[ElementSet], request: pytest.FixtureRequest) -> Scene:
    return scene(
        request.param,
        element_sets,
        at_ns=REAL_EPOCH_NS + 3 * NS_PER_DAY // 2,
        length_s=60.0,
        rates=RATES,
        missing=MISSING,
        seed=6,
    )


def of(evaluated: Scene, kinds: Sequence[SourceKind], *, missing: bool) -> list[Evaluated]:
    chosen = [
        one for one in evaluated.evaluated if one.kind in kinds and (one.seen.number in evaluated.missing) == missing
    ]
    assert len(chosen) > 100, "too few to say anything"
    return chosen


def share(group: Sequence[Evaluated], outcome: Outcome) -> float:
    return sum(one.outcome == outcome for one in group) / len(group)


@pytest.mark.parametrize("kind", ["radar", "isl"])
def test_radar_and_isl_observations_find_their_object(evaluated: Scene, kind: SourceKind) -> None:
    """At least 99 % of each, whatever the truth."""
    assert share(of(evaluated, [kind], missing=False), "right") >= 0.99


@pytest.mark.parametrize("kind", get_args(SourceKind))
def test_an_observation_is_not_given_to_another_object(evaluated: Scene, kind: SourceKind) -> None:
    """Fewer than one in a thousand; where it is not certain, the correlation says so."""
    assert share(of(evaluated, [kind], missing=False), "wrong") < 0.001


def test_what_is_missing_from_the_catalogue_is_uncorrelated(evaluated: Scene) -> None:
    """At least 99 % of all kinds, and of radar and ISL alone."""
    for kinds in (get_args(SourceKind), ("radar", "isl")):
        assert share(of(evaluated, kinds, missing=True), "uct") >= 0.99


def test_the_judge_tells_a_wrong_association(evaluated: Scene) -> None:
    """What was right is wrong once the truth is another."""
    right = [one for one in evaluated.evaluated if one.outcome == "right"]
    assert {replace(one, seen=replace(one.seen, number=0)).outcome for one in right} == {"wrong"}


@pytest.mark.parametrize("kind", get_args(SourceKind))
def test_squared_distances_are_what_the_stated_errors_make_them(evaluated: Scene, kind: SourceKind) -> None:
    """One for each component where element sets err as stated, much less where they do not err at all."""
    right = [one.correlation for one in of(evaluated, [kind], missing=False) if one.outcome == "right"]
    squared = fmean((found.mahalanobis_squared or 0.0) / found.components for found in right)
    if evaluated.truth == "catalogue":
        assert squared < 0.6
    else:
        assert squared == pytest.approx(1.0, abs=0.15)
