"""Slow pairs: docked, in formation, or passing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog.reader import parse_catalog
from sda_ops.screening.approaches import SlowPairs
from sda_ops.screening.assessment.formations import FORMATION_S, AssessedSlowPairs, PairKind, assess_slow_pairs
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.support import SDA_DATA_DIR
from tests.sda_ops.screening.orbits import EPOCH_NS, Orbit, screened

ACTIVE = SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv"


def pair(*, contact_s: float = 86_400.0, smallest_m: float = 100.0, at_ns: int = EPOCH_NS) -> SlowPairs:
    """Rows 0 and 1."""
    return SlowPairs(
        first=np.array([0]),
        second=np.array([1]),
        smallest_m=np.array([smallest_m]),
        smallest_at_ns=np.array([at_ns]),
        relative_speed_m_s=np.array([0.1]),
        minima=np.array([3]),
        contact_s=np.array([contact_s]),
    )


def kind(assessed: AssessedSlowPairs) -> PairKind:
    return PairKind(assessed.kind[0])


def of_catalog(first: str, second: str, **changes: float) -> AssessedSlowPairs:
    if not ACTIVE.exists():
        pytest.skip(f"real data absent: no {ACTIVE} (set SDA_DATA_DIR)")
    header, *lines = ACTIVE.read_text(encoding="utf-8").splitlines()
    rows = [header, *(line for line in lines if line.partition(",")[0] in {first, second})]
    chosen = {each.name: each for each in parse_catalog("\n".join(rows), file=ACTIVE.name).element_sets}
    objects = ScreenedObjects.of([chosen[first], chosen[second]])
    slow = pair(at_ns=int(objects.columns.epoch_ns.max()), **changes)
    return assess_slow_pairs(objects, slow)


def test_modules_of_a_station_are_docked_because_they_share_their_elements() -> None:
    assessed = of_catalog("ISS (ZARYA)", "POISK", contact_s=60.0, smallest_m=0.0)
    assert kind(assessed) is PairKind.DOCKED
    assert assessed.largest_m[0] == 0.0
    assert kind(of_catalog("CSS (TIANHE)", "CSS (WENTIAN)", contact_s=60.0)) is PairKind.DOCKED


def test_tandem_x_and_terrasar_x_are_a_formation_of_a_kilometre() -> None:
    """Two satellites that fly around each other for years, at 0.2 to 1.2 km."""
    assessed = of_catalog("TERRASAR-X", "TANDEM-X")
    assert kind(assessed) is PairKind.FORMATION
    assert 300.0 < assessed.largest_m[0] < 3_000.0
    assert not assessed.same_fleet[0]


def test_two_of_a_train_of_satellites_that_are_together_for_an_hour_only_pass() -> None:
    assert kind(of_catalog("STARLINK-1362", "STARLINK-2514", contact_s=3_600.0)) is PairKind.PASSING


def test_a_pair_with_own_elements_that_stays_close_for_a_revolution_is_docked() -> None:
    """30 m apart on one orbit: an element set is not better than that."""
    angle_deg = float(np.degrees(30.0 / 6_928_000.0))
    objects = screened([Orbit(perigee_km=550.0), Orbit(perigee_km=550.0, anomaly_deg=angle_deg)])
    assessed = assess_slow_pairs(objects, pair(contact_s=60.0, smallest_m=30.0))
    assert kind(assessed) is PairKind.DOCKED
    assert assessed.largest_m[0] == pytest.approx(30.0, abs=1.0)


@pytest.mark.parametrize(
    ("apart_km", "drift_km", "contact_s", "expected"),
    [
        (2.0, 0.0, FORMATION_S, PairKind.FORMATION),
        (2.0, 0.0, FORMATION_S - 60.0, PairKind.PASSING),
        (2.0, 5.0, 86_400.0, PairKind.PASSING),  # 5 km higher: 47 km back in each revolution
    ],
)
def test_a_formation_stays_together_for_hours_and_through_a_revolution(
    apart_km: float, drift_km: float, contact_s: float, expected: PairKind
) -> None:
    angle_deg = float(np.degrees(apart_km / 6_928.0))
    objects = screened([Orbit(perigee_km=550.0), Orbit(perigee_km=550.0 + drift_km, anomaly_deg=angle_deg)])
    assert kind(assess_slow_pairs(objects, pair(contact_s=contact_s, smallest_m=2_000.0))) is expected


def test_the_figures_of_the_screening_are_passed_on() -> None:
    slow = pair(contact_s=1_234.0, smallest_m=321.0, at_ns=EPOCH_NS + 5 * NS_PER_S)
    objects = screened([Orbit(perigee_km=550.0), Orbit(perigee_km=550.0, anomaly_deg=0.01)])
    assessed = assess_slow_pairs(objects, slow)
    for field in dataclasses.fields(slow):
        assert getattr(assessed, field.name).tolist() == getattr(slow, field.name).tolist()
    assert (assessed.catalog_number_first[0], assessed.catalog_number_second[0]) == (700_001, 700_002)
    assert len(assessed) == 1


def test_no_slow_pairs_are_no_formations() -> None:
    objects = screened([Orbit(perigee_km=550.0), Orbit(perigee_km=560.0)])
    slow = pair()
    none = SlowPairs(**{field.name: getattr(slow, field.name)[:0] for field in dataclasses.fields(slow)})
    assessed = assess_slow_pairs(objects, none)
    assert len(assessed) == 0
    assert assessed.are_together(np.array([0]), np.array([1]), objects=2).tolist() == [False]
