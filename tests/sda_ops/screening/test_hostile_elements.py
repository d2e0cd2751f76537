"""Element sets that no operator would publish: no crash, nothing missed, and every object that has no position is reported."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.catalog.columns import ElementColumns
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.screen import ScreeningOptions, screen
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.brute_force import BruteForce, brute_force
from tests.helpers.mixed_objects import START_NS, epoch_of
from tests.helpers.screening_comparison import compared
from tests.helpers.sizes import examples

OPTIONS = ScreeningOptions(broad_phase="scipy", engine="sgp4")
COPIES = 8
MINUTES = 30
MISS_M = 50e3
NS_PER_DAY = 86_400_000_000_000
RETROGRADE = float(np.deg2rad(179.9))
"""The greatest inclination here: at 180 degrees, SGP4's deep-space positions jump by metres from second to second."""


@st.composite
def populations(draw: st.DrawFn) -> ScreenedObjects:
    """Some orbits, and for each some objects that meet: on nearly the same orbit, or on others through the same perigee."""
    orbits = draw(st.lists(_orbits(), min_size=1, max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 1e-9, 1e-6, 1e-4, 3e-3]))
    perigee_min = draw(st.none() | st.floats(0.0, MINUTES))
    columns: dict[str, list[float]] = {name: [] for name in orbits[0]}
    for orbit in orbits:
        if perigee_min is not None:
            # All are at their perigee and at their node at that time, where only the direction of flight differs.
            until_min = orbit["age_days"] * 1440.0 + perigee_min
            orbit |= {"argpo": 0.0, "mo": float(np.mod(-orbit["no_kozai"] * until_min, 2.0 * np.pi))}
        for copy in range(COPIES):
            for name, value in orbit.items():
                moved = value
                if copy and name in ("inclo", "nodeo", "argpo", "mo"):
                    moved = abs(value + spread * rng.normal())
                if copy and name == "no_kozai":
                    moved = value * (1.0 + 1e-2 * spread * rng.normal())
                if copy and name == "inclo" and perigee_min is not None:
                    moved = rng.uniform(0.0, RETROGRADE)
                columns[name].append(min(moved, RETROGRADE) if name == "inclo" else moved)
    return objects_of(columns)


def _orbits() -> st.SearchStrategy[dict[str, float]]:
    angle = st.floats(0.0, 2.0 * np.pi)
    return st.fixed_dictionaries(
        {
            "revolutions_per_day": st.one_of(
                st.floats(0.05, 17.0), st.sampled_from([1.0027, 2.0057, 16.9, 17.5, 20.0])
            ),
            "ecco": st.one_of(st.floats(0.0, 0.9), st.sampled_from([0.0, 1e-9, 0.02, 0.73, 0.98, 0.999])),
            "inclo": st.one_of(
                st.floats(0.0, RETROGRADE), st.sampled_from([0.0, 1e-9, np.pi / 2, RETROGRADE, np.deg2rad(63.43)])
            ),
            "nodeo": angle,
            "argpo": angle,
            "mo": st.one_of(angle, st.sampled_from([0.0, 0.01, np.pi])),
            "bstar": st.sampled_from([0.0, 1e-4, 1e-2, 1.0, -1.0, -1e-2]),
            "age_days": st.sampled_from([0.0, 0.0, -3.0, 3.0, 30.0]),
        }
    ).map(_with_motion)


def _with_motion(orbit: dict[str, float]) -> dict[str, float]:
    rest = dict(orbit)
    return {"no_kozai": rest.pop("revolutions_per_day") * 2.0 * np.pi / 1440.0} | rest


def objects_of(columns: dict[str, list[float]]) -> ScreenedObjects:
    """Objects with these elements; ``age_days`` is that of the epoch at `START_NS`."""
    arrays = {name: np.array(values) for name, values in columns.items()}
    age_days = arrays.pop("age_days")
    count = len(age_days)
    epochs = [epoch_of(START_NS - round(age * NS_PER_DAY), 1) for age in age_days.tolist()]
    return ScreenedObjects(
        ElementColumns.from_arrays(
            {
                "catalog_number": np.arange(1, count + 1),
                **{name: np.concatenate([each[name] for each in epochs]) for name in epochs[0]},
                "ndot": np.zeros(count),
                "nddot": np.zeros(count),
                **arrays,
                "near_earth": arrays["no_kozai"] > 2.0 * np.pi / 225.0,
            }
        ),
        ("",) * count,
        ("",) * count,
    )


@settings(max_examples=examples(48))
@given(objects=populations())
def test_hostile_element_sets_are_screened_as_completely_as_others(objects: ScreenedObjects) -> None:
    assert_complete(objects)


def assert_complete(objects: ScreenedObjects, minutes: int = MINUTES, miss_m: float = MISS_M) -> Screening:
    end_ns = START_NS + minutes * 60_000_000_000
    screening = screen(objects, START_NS, timedelta(minutes=minutes), miss_m, options=OPTIONS)
    truth = brute_force(objects.satrecs, START_NS, end_ns, miss_m)
    comparison = compared(truth, screening, objects.satrecs)
    assert comparison.faults == ""
    assert comparison.tca_s <= 1e-2
    assert comparison.range_m <= 1e-2
    assert unreported(truth, screening) == []
    return screening


def unreported(truth: BruteForce, screening: Screening) -> list[int]:
    """Objects without a position for more than a slice that the screening does not report."""
    reported = {each.row for each in screening.ended}
    return [row for row, seconds in truth.failed_s.items() if len(seconds) > 60 and row not in reported]


def named(**elements: float) -> ScreenedObjects:
    """Eight objects on nearly one orbit."""
    orbit = {
        "no_kozai": 15.5 * 2.0 * np.pi / 1440.0,
        "ecco": 1e-3,
        "inclo": 1.0,
        "nodeo": 1.0,
        "argpo": 1.0,
        "mo": 1.0,
        "bstar": 1e-4,
        "age_days": 0.0,
    } | elements
    spread = np.linspace(-1.0, 1.0, COPIES)
    columns = {name: [value] * COPIES for name, value in orbit.items()}
    columns["mo"] = (orbit["mo"] + 1e-3 * spread).tolist()
    columns["nodeo"] = (orbit["nodeo"] + 2e-3 * spread[::-1] ** 2).tolist()
    return objects_of(columns)


def test_a_drag_term_of_one_is_screened_until_sgp4_has_no_position() -> None:
    screening = assert_complete(named(bstar=1.0))
    assert len(screening.slow_pairs) + len(screening.approaches) > 0
    for each in screening.ended:
        assert each.reason


def test_an_eccentricity_of_098_is_screened_through_its_perigee() -> None:
    # 100 minutes before to 100 minutes behind a perigee at 1,000 km.
    motion = np.sqrt(398600.8 / (7378.0 / 0.02) ** 3) * 60.0
    assert_complete(named(no_kozai=motion, ecco=0.98, mo=-100.0 * motion, bstar=0.0), minutes=200)


def test_an_orbit_whose_perigee_is_underground_is_reported_where_sgp4_has_no_position() -> None:
    motion = np.sqrt(398600.8 / 7500.0**3) * 60.0
    screening = assert_complete(named(no_kozai=motion, ecco=0.2, mo=np.pi), minutes=100)
    assert {each.row for each in screening.ended} == set(range(COPIES))


def test_polar_equatorial_and_retrograde_orbits_are_screened() -> None:
    for inclination in (0.0, np.pi / 2.0, RETROGRADE):
        assert_complete(named(inclo=inclination))


def test_pairs_that_drift_apart_by_millimetres_a_second_are_slow_pairs() -> None:
    motion = 1.0027 * 2.0 * np.pi / 1440.0
    objects = named(no_kozai=motion, ecco=1e-5, inclo=1e-3, bstar=0.0)
    screening = assert_complete(objects, minutes=120)
    assert len(screening.slow_pairs) > 0
