"""The file of assets, and the published volumes."""

from __future__ import annotations

import math

import pytest
from sgp4.api import WGS72, Satrec

from sda_ops.catalog.elements import ElementSet
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.volumes.assets import Asset, read_assets
from sda_ops.screening.volumes.volumes import ScreeningVolume, published_volume

EARTH_RADIUS_KM = 6378.135
MU_KM3_S2 = 398600.8


def element_set(
    number: int, perigee_km: float, eccentricity: float = 0.0001, inclination_deg: float = 20.0
) -> ElementSet:
    satrec = Satrec()
    semi_major_axis_km = (EARTH_RADIUS_KM + perigee_km) / (1.0 - eccentricity)
    motion_rad_min = 60.0 * math.sqrt(MU_KM3_S2 / semi_major_axis_km**3)
    satrec.sgp4init(
        WGS72,
        "i",
        number,
        27_800.0,
        0.0,
        0.0,
        0.0,
        eccentricity,
        0.0,
        math.radians(inclination_deg),
        0.0,
        motion_rad_min,
        0.0,
    )
    return ElementSet(number, f"OBJECT {number}", satrec, 27_800.0)


OBJECTS = ScreenedObjects.of(
    [
        element_set(25544, 420.0),
        element_set(20580, 535.0),
        element_set(270_001, 42_164.0 - EARTH_RADIUS_KM, inclination_deg=1.0),
        element_set(41_000, 20_180.0),  # a navigation satellite
    ]
)


def box(radial_km: float, in_track_km: float, cross_track_km: float) -> ScreeningVolume:
    return ScreeningVolume(radial_m=1e3 * radial_km, in_track_m=1e3 * in_track_km, cross_track_m=1e3 * cross_track_km)


def test_csv_and_toml_give_the_same_assets_in_the_order_of_the_file() -> None:
    expected = (Asset(row=2, volume=box(12.0, 364.0, 30.0)), Asset(row=0, volume=box(0.5, 17, 20)))
    csv = """# our fleet
catalog_number, radial_km,in_track_km,cross_track_km

270001,12,364,30
25544, 0.5,17,2e1
"""
    toml = """
[[assets]]
catalog_number = 270001
radial_km = 12
in_track_km = 364.0
cross_track_km = 30

[[assets]]
catalog_number = 25544
radial_km = 0.5
in_track_km = 17
cross_track_km = 20
"""
    assert read_assets(csv, OBJECTS, file="fleet.csv") == expected
    assert read_assets("\ufeff" + csv.replace("\n", "\r\n"), OBJECTS, file="fleet.csv") == expected
    assert read_assets(toml, OBJECTS, file="fleet.toml") == expected


def test_an_asset_without_half_axes_gets_the_published_volume_of_its_orbit() -> None:
    assets = read_assets("catalog_number\n25544\n20580\n270001\n", OBJECTS, file="fleet.csv")
    assert [asset.volume for asset in assets] == [box(0.4, 44, 51), box(0.4, 25, 25), box(10, 10, 10)]
    mixed = "catalog_number,radial_km,in_track_km,cross_track_km\n25544,,,\n20580,1,2,3\n"
    assert [asset.volume for asset in read_assets(mixed, OBJECTS, file="f")] == [box(0.4, 44, 51), box(1, 2, 3)]


@pytest.mark.parametrize(
    ("perigee_km", "eccentricity", "inclination_deg", "expected"),
    [
        (400.0, 0.001, 51.6, box(0.4, 44, 51)),
        (600.0, 0.001, 97.0, box(0.4, 25, 25)),
        (1150.0, 0.001, 88.0, box(0.4, 12, 12)),
        (1400.0, 0.1, 66.0, box(0.4, 2, 2)),
        (35_786.0, 0.001, 2.0, box(10, 10, 10)),
        (35_786.0, 0.001, 36.0, None),
        (20_180.0, 0.01, 20.0, None),
        (400.0, 0.26, 28.0, None),
    ],
)
def test_published_volumes_by_orbit(
    perigee_km: float, eccentricity: float, inclination_deg: float, expected: ScreeningVolume | None
) -> None:
    """The half axes of the Spaceflight Safety Handbook 1.7, table 3, as public programs cite them."""
    assert published_volume(element_set(1, perigee_km, eccentricity, inclination_deg).satrec) == expected


HEADER = "catalog_number,radial_km,in_track_km,cross_track_km\n"
NAMES = "catalog_number,radial_km,in_track_km,cross_track_km"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEADER + "25544,1,2\n", "line 2: expected 4 fields as in the header, got 3"),
        (HEADER + "ISS,1,2,3\n", "line 2: catalog_number: expected a catalogue number, got 'ISS'"),
        (HEADER + ",1,2,3\n", "line 2: catalog_number: expected a catalogue number, got nothing"),
        (
            HEADER + "25544,0,2,3\n",
            "line 2: radial_km: expected kilometres, more than 0 and at most 1000, got '0'",
        ),
        (
            HEADER + "25544,0.4,44000,3\n",
            "line 2: in_track_km: expected kilometres, more than 0 and at most 1000, got '44000'",
        ),
        (HEADER + "25544,nan,2,3\n", "line 2: radial_km: expected kilometres, more than 0 and at most 1000, got 'nan'"),
        (HEADER + "25544,1,2,\n", "line 2: object 25544: give all three half axes or none; cross_track_km missing"),
        (HEADER + "25544,1,2,3\n25544,1,2,3\n", "line 3: object 25544 is listed already (line 2)"),
        (HEADER + "99999,1,2,3\n", "line 2: object 99999 is not one of the 4 screened objects"),
        (
            "catalog_number\n41000\n",
            "line 2: no published volume for the orbit of object 41000; give radial_km, in_track_km, cross_track_km",
        ),
        (
            HEADER + "25544,1,2\n99999,1,2,3\n",
            "line 2: expected 4 fields as in the header, got 3; line 3: object 99999 is not one of the 4 screened objects",
        ),
        ("catalog_number,radial_m\n25544,400\n", f"line 1: expected the names {NAMES}, got 'radial_m'"),
        ("radial_km\n1\n", f"line 1: expected the names {NAMES}, got no 'catalog_number'"),
        ("", f"expected at least one asset: a line below the header {NAMES}, or [[assets]] in TOML"),
        ("[[assets]]\ncatalog_number = true\n", "asset 1: catalog_number: expected a catalogue number, got True"),
        ("[[asets]]\ncatalog_number = 1\n", "TOML: expected only tables [[assets]], got 'asets'"),
        ("[[assets]]\nnumber = 1\n", f"asset 1: expected the names {NAMES}, got 'number'"),
        ("[[assets]\n", "not valid TOML: Expected ']]' at the end of an array declaration (at line 1, column 9)"),
    ],
)
def test_a_problem_in_the_file_gives_one_line_with_its_place_and_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        read_assets(text, OBJECTS, file="fleet.csv")
    assert str(caught.value) == f"fleet.csv: {problem}"


def test_of_many_problems_the_first_five_are_listed() -> None:
    text = HEADER + "".join(f"{number},1,2,3\n" for number in range(1, 9))
    with pytest.raises(ValueError, match=r"line 6: object 5 is not one of the 4 screened objects \(and 3 more\)$"):
        read_assets(text, OBJECTS, file="fleet.csv")


def test_a_volume_rejects_a_half_axis_that_is_no_length() -> None:
    with pytest.raises(ValueError, match="in_track_m must be > 0"):
        ScreeningVolume(radial_m=1.0, in_track_m=-2.0, cross_track_m=1.0)
    assert ScreeningVolume(radial_m=2.0, in_track_m=3.0, cross_track_m=6.0).half_diagonal_m == 7.0
