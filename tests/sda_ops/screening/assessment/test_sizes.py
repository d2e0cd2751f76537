"""Hard-body radii by catalogue number and by name."""

from __future__ import annotations

import pytest

from sda_ops.screening.assessment.sizes import KNOWN_SIZES, Sizes


def radius_m(number: int, name: str, sizes: Sizes | None = None) -> float:
    return float((sizes or Sizes()).of([number], [name])[0])


@pytest.mark.parametrize(
    ("number", "name", "expected_m"),
    [
        (44713, "STARLINK-1007", 10.0),
        (25544, "ISS (ZARYA)", 55.0),
        (49044, "ISS (NAUKA)", 55.0),
        (48274, "CSS (TIANHE)", 28.0),
        (20580, "HST", 7.0),
        (27386, "ENVISAT", 14.2),
        (12586, "SL-3 R/B", 2.31),
        (5, "VANGUARD 1", 1.0),
        (100_123, "", 1.0),
        (99_999, "STARLINK-1007 DEB", 1.0),  # a fragment has not the size of the satellite
        (99_998, "ISS DEB", 1.0),
    ],
)
def test_an_object_has_the_radius_of_its_number_or_its_name(number: int, name: str, expected_m: float) -> None:
    assert radius_m(number, name) == expected_m


def test_a_number_wins_over_a_name_and_the_first_pattern_over_the_others() -> None:
    sizes = Sizes(by_number={7: 3.0}, by_name={"STARLINK-1*": 5.0, "STARLINK-*": 9.0}, unknown_m=0.5)
    assert radius_m(7, "STARLINK-1007", sizes) == 3.0
    assert radius_m(8, "STARLINK-1007", sizes) == 5.0
    assert radius_m(8, "STARLINK-2007", sizes) == 9.0
    assert radius_m(8, "ISS (ZARYA)", sizes) == 0.5


def test_a_pattern_that_names_debris_fits_debris() -> None:
    sizes = Sizes(by_name={"FENGYUN*": 4.0, "FENGYUN 1C DEB": 0.2})
    assert radius_m(1, "FENGYUN 3A", sizes) == 4.0
    assert radius_m(1, "FENGYUN 1C DEB", sizes) == 0.2


def test_every_known_size_has_a_source() -> None:
    assert all(size.source and 0.0 < size.radius_m < 100.0 for size in KNOWN_SIZES)
    assert len({size.objects for size in KNOWN_SIZES}) == len(KNOWN_SIZES)
