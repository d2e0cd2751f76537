"""The settings of screening: what they say about sizes, fleets and errors, and what they reject."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.settings.load import SettingsError, load_settings
from flows.settings.screening import ScreeningSettings
from flows.settings.sections import Section
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.assessment.fleets import FLEETS
from sda_ops.screening.geometry.screen import ScreeningOptions
from sda_ops.screening.objects import ScreenedObjects
from tests.sda_ops.screening.orbits import Orbit, screened


class File(Section):
    """A file with one table."""

    screening: ScreeningSettings = ScreeningSettings()


def loaded(tmp_path: Path, text: str) -> ScreeningSettings:
    file = tmp_path / "screening.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(File, file, prefix="SDA_TEST_OF_SCREENING__").screening


def radius_m(assumptions: Assumptions, number: int, name: str) -> float:
    return float(assumptions.sizes.of([number], [name])[0])


def test_defaults_are_the_built_in_assumptions() -> None:
    assumptions = ScreeningSettings().assumptions()
    built_in = Assumptions()
    assert assumptions == built_in
    assert assumptions.errors is None
    assert ScreeningSettings().advanced.options() == ScreeningOptions()
    assert ScreeningSettings().horizon.total_seconds() == 86_400.0


def test_sizes_that_are_set_win_over_the_built_in_ones(tmp_path: Path) -> None:
    assumptions = loaded(
        tmp_path,
        """
        [screening.sizes]
        unknown_m = 0.5
        numbers = { "25544" = 60.0 }
        names = { "STARLINK-1*" = 4.0, "ONEWEB-*" = 2.0 }
        """,
    ).assumptions()
    assert radius_m(assumptions, 25_544, "ISS (ZARYA)") == 60.0
    assert radius_m(assumptions, 1, "STARLINK-1008") == 4.0
    assert radius_m(assumptions, 1, "STARLINK-3000") == 10.0  # built in
    assert radius_m(assumptions, 1, "ONEWEB-0012") == 2.0
    assert radius_m(assumptions, 1, "VANGUARD 1") == 0.5


def test_the_built_in_sizes_can_be_left_out(tmp_path: Path) -> None:
    assumptions = loaded(tmp_path, "[screening.sizes]\nbuilt_in = false\n").assumptions()
    assert radius_m(assumptions, 1, "STARLINK-3000") == 1.0
    assert radius_m(assumptions, 27_386, "ENVISAT") == 1.0


def test_a_fleet_is_added_and_one_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    assumptions = loaded(
        tmp_path,
        """
        [[screening.fleets]]
        name = "Mine"
        names = ["MINE-*"]
        without = [7]

        [[screening.fleets]]
        name = "Starlink"
        names = ["STARLINK-*"]
        without = [44713]
        """,
    ).assumptions()
    fleets = assumptions.fleets
    assert len(fleets.names) == len(FLEETS) + 1
    found = fleets.of([6, 7, 44_713, 44_714, 1], ["MINE-1", "MINE-2", "STARLINK-1", "STARLINK-2", "ONEWEB-0012"])
    assert [fleets.names[index] if index >= 0 else None for index in found] == [
        "Mine",
        None,
        None,
        "Starlink",
        "OneWeb",
    ]


def test_errors_of_element_sets_are_used_only_if_a_probability_is_wanted(tmp_path: Path) -> None:
    assert loaded(tmp_path, "[screening]\nprobability = true\n").assumptions().errors == ElementSetErrors()
    axes = ", ".join(
        f"{axis}_m{growth} = {value}"
        for value, (axis, growth) in enumerate(
            [(axis, growth) for growth in ("", "_per_day") for axis in ("radial", "in_track", "cross_track")], 1
        )
    )
    errors = loaded(tmp_path, f"[screening]\nprobability = true\nnear_earth = {{ {axes} }}\n").assumptions().errors
    assert errors is not None
    assert (errors.near_earth.radial_m, errors.near_earth.cross_track_m_per_day) == (1.0, 6.0)
    assert errors.deep_space == ElementSetErrors().deep_space


def test_a_size_or_a_fleet_that_fits_no_object_is_reported_with_the_name_that_is_near(tmp_path: Path) -> None:
    """What fits is not reported, and the built-in tables are not."""
    objects = screened([Orbit(perigee_km=500.0), Orbit(perigee_km=600.0)])
    objects = ScreenedObjects(objects.columns, ("STARLINK-1008", "ONEWEB-0012"), objects.designators)
    settings = loaded(
        tmp_path,
        """
        [screening.sizes]
        numbers = { "700001" = 5.0, "25544" = 5.0 }
        names = { "STARLINK-*" = 4.0, "STARLNK-*" = 4.0 }

        [[screening.fleets]]
        name = "Mine"
        names = ["ONEWEB-*", "xyzzy*"]
        """,
    )
    assert settings.without_effect(objects) == [
        "[screening.sizes] numbers: there is no object 25544",
        "[screening.sizes] names: no object's name fits 'STARLNK-*'; there are names that begin with STARLINK",
        "[[screening.fleets]] Mine: no object's name fits 'xyzzy*'",
    ]
    assert ScreeningSettings().without_effect(objects) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[screening]\nmiss_distanc_m = 1\n", "there is no such setting; did you mean miss_distance_m?"),
        ("[screening]\nmiss_distance_m = 0\n", "[screening] miss_distance_m: Input should be greater than 0, got 0"),
        ("[screening]\nmiss_distance_m = 1e6\n", "Input should be less than or equal to 100000, got 1000000.0"),
        ('[screening.sizes]\nnumbers = { "ISS" = 5 }\n', "unable to parse string as an integer, got 'ISS'"),
        ('[screening.sizes]\nnames = { "STARLINK-*" = 0 }\n', "Input should be greater than 0, got 0"),
        ('[[screening.fleets]]\nname = "Mine"\n', "is missing, and has no default"),
        (
            '[[screening.fleets]]\nname = "A"\nnames = ["A*"]\n[[screening.fleets]]\nname = "A"\nnames = ["B*"]\n',
            "fleets: names must differ, got A more than once",
        ),
        ("[screening.advanced]\nbroad_phase = 'gpu'\n", "Input should be 'auto', 'numba' or 'scipy', got 'gpu'"),
    ],
)
def test_a_mistake_is_one_line_that_says_where_and_what(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, text)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]
    assert str(tmp_path / "screening.toml") in caught.value.problems[0]
