"""Simulated truth: observations of catalogued objects are correlated with them, and observations of other objects are not.

Half a minute of simulated time (a minute in ``make test-long``), 36 hours after the element sets' epoch, for each of the three truths of
``tests.scenes.truth``. Of the real catalogue, ``make test`` has only the truth ``orbit``. ``python -m bench.correlation`` prints the
whole table, for several ages and classes of orbits.
The seed is fixed, and the shares are several standard deviations from the bounds.
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
from tests.scenes.truth import (
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
MISSING = 0.1  # enough to distinguish a share of 1 % from zero


CASES = [
    *(("generated", truth) for truth in get_args(Truth)),
    ("real", "orbit"),
    *(pytest.param(("real", truth), marks=pytest.mark.long) for truth in get_args(Truth) if truth != "orbit"),
]
"""Catalogue and truth."""


def element_sets(name: str) -> Sequence[ElementSet]:
    if name == "generated":
        return synthetic_catalog(objects=2_000, epoch_ns=REAL_EPOCH_NS)
    if not REAL_CATALOG.is_file():
        pytest.skip(f"real data absent: no {REAL_CATALOG} (set SDA_DATA_DIR)")
    return catalog()[0]


@pytest.fixture(scope="module", params=[30.0, pytest.param(60.0, marks=pytest.mark.long)])
def length_s(request: pytest.FixtureRequest) -> float:
    length_s: float = request.param
    return length_s


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def evaluated(length_s: float, request: pytest.FixtureRequest) -> Scene:
    catalogue, truth = request.param
    return scene(
        truth,
        element_sets(catalogue),
        at_ns=REAL_EPOCH_NS + 3 * NS_PER_DAY // 2,
        length_s=length_s,
        rates=RATES,
        missing=MISSING,
        seed=6,
    )


def of(evaluated: Scene, kinds: Sequence[SourceKind], *, missing: bool) -> list[Evaluated]:
    chosen = [
        one for one in evaluated.evaluated if one.kind in kinds and (one.seen.number in evaluated.missing) == missing
    ]
    assert len(chosen) > 100, "too few observations"
    return chosen


def share(group: Sequence[Evaluated], outcome: Outcome) -> float:
    return sum(one.outcome == outcome for one in group) / len(group)


@pytest.mark.parametrize("kind", ["radar", "isl"])
def test_radar_and_isl_observations_find_their_object(evaluated: Scene, kind: SourceKind) -> None:
    """At least 99 % of each kind are right, in each truth."""
    assert share(of(evaluated, [kind], missing=False), "right") >= 0.99


@pytest.mark.parametrize("kind", get_args(SourceKind))
def test_observations_are_not_correlated_with_another_object(evaluated: Scene, kind: SourceKind) -> None:
    """Fewer than one in a thousand are wrong; uncertain ones are ambiguous."""
    assert share(of(evaluated, [kind], missing=False), "wrong") < 0.001


def test_observations_of_objects_missing_from_the_catalogue_are_uncorrelated(evaluated: Scene) -> None:
    """At least 99 % are, over all kinds, and over radar and ISL alone."""
    for kinds in (get_args(SourceKind), ("radar", "isl")):
        assert share(of(evaluated, kinds, missing=True), "uct") >= 0.99


def test_the_evaluation_detects_a_wrong_association(evaluated: Scene) -> None:
    """Right associations become wrong if the true object is changed."""
    right = [one for one in evaluated.evaluated if one.outcome == "right"]
    assert {replace(one, seen=replace(one.seen, number=0)).outcome for one in right} == {"wrong"}


@pytest.mark.parametrize("kind", get_args(SourceKind))
def test_squared_distances_match_the_assumed_errors(evaluated: Scene, kind: SourceKind) -> None:
    """The mean is 1 per component if element sets err as assumed, and much less if they have no error."""
    right = [one.correlation for one in of(evaluated, [kind], missing=False) if one.outcome == "right"]
    squared = fmean((found.mahalanobis_squared or 0.0) / found.components for found in right)
    if evaluated.truth == "catalogue":
        assert squared < 0.6
    else:
        assert squared == pytest.approx(1.0, abs=0.15)
