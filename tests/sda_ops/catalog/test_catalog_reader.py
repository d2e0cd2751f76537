from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from sgp4.api import Satrec

from sda_ops.catalog import ElementSet, parse_catalog, read_catalog

# ISS (ZARYA) of 2008-09-20, the worked example of Wikipedia's and CelesTrak's "Two-line element set".
LINE1 = "1 25544U 98067A   08264.51782528 -.00002182  00000-0 -11606-4 0  2927"
LINE2 = "2 25544  51.6416 247.4627 0006703 130.5360 325.0288 15.72125391563537"
# The same orbit under an Alpha-5 number.
ALPHA1 = "1 E8493U 98067A   08264.51782528 -.00002182  00000-0 -11606-4 0  2921"
ALPHA2 = "2 E8493  51.6416 247.4627 0006703 130.5360 325.0288 15.72125391563531"

OMM: dict[str, str | int | float | None] = {
    "OBJECT_NAME": "ISS (ZARYA)",
    "OBJECT_ID": "1998-067A",
    "EPOCH": "2008-09-20T12:25:40.104192",
    "MEAN_MOTION": 15.72125391,
    "ECCENTRICITY": 0.0006703,
    "INCLINATION": 51.6416,
    "RA_OF_ASC_NODE": 247.4627,
    "ARG_OF_PERICENTER": 130.536,
    "MEAN_ANOMALY": 325.0288,
    "EPHEMERIS_TYPE": 0,
    "CLASSIFICATION_TYPE": "U",
    "NORAD_CAT_ID": 25544,
    "ELEMENT_SET_NO": 292,
    "REV_AT_EPOCH": 56353,
    "BSTAR": -1.1606e-5,
    "MEAN_MOTION_DOT": -2.182e-5,
    "MEAN_MOTION_DDOT": 0,
}

ONE_METRE_KM = 1e-3


def data(path: str) -> Path:
    root = Path(os.environ.get("SDA_DATA_DIR", Path(__file__).parents[3] / "../shared/data"))
    if not (root / path).exists():
        pytest.skip(f"real data absent: no {root / path} (set SDA_DATA_DIR)")
    return root / path


def position_km(satrec: Satrec) -> tuple[float, float, float]:
    error, r_km, _ = satrec.sgp4(2454730.5, 0.25)
    assert error == 0
    x, y, z = r_km
    return x, y, z


def test_a_tle_and_an_omm_of_one_object_give_one_orbit() -> None:
    """The ISS lands within a metre of itself whether it came as two lines or as an OMM."""
    from_tle = ElementSet.from_tle(LINE1, LINE2, name="ISS (ZARYA)")
    from_omm = ElementSet.from_omm(OMM)
    assert (
        (from_tle.catalog_number, from_tle.name) == (from_omm.catalog_number, from_omm.name) == (25544, "ISS (ZARYA)")
    )
    assert position_km(from_tle.satrec) == pytest.approx(position_km(from_omm.satrec), abs=ONE_METRE_KM)


@pytest.mark.parametrize("number", [5, 99_999, 100_000, 339_999, 340_000, 799_500_123])
def test_catalog_numbers_have_up_to_nine_digits(number: int) -> None:
    """An OMM keeps its catalogue number and its orbit, however many digits the number has."""
    elements = ElementSet.from_omm({**OMM, "NORAD_CAT_ID": str(number)})
    assert elements.catalog_number == number
    assert position_km(elements.satrec) == position_km(ElementSet.from_omm(OMM).satrec)


def test_alpha5_numbers_are_read() -> None:
    """E8493 in a TLE is object 148493."""
    assert ElementSet.from_tle(ALPHA1, ALPHA2).catalog_number == 148_493


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"EPOCH": None}, "missing EPOCH"),
        ({"BSTAR": "", "MEAN_MOTION": None}, "missing MEAN_MOTION, BSTAR"),
        ({"NORAD_CAT_ID": "1000000000"}, "NORAD_CAT_ID must have one to nine digits, got 1000000000"),
        ({"NORAD_CAT_ID": "-5"}, "NORAD_CAT_ID must have one to nine digits, got -5"),
        ({"ECCENTRICITY": "1.5"}, "eccentricity in [0, 1)"),
        ({"MEAN_MOTION": "nan"}, "mean motion must be > 0"),
        ({"MEAN_MOTION": "-3"}, "mean motion must be > 0"),
        ({"INCLINATION": "inf"}, "elements must be finite"),
        ({"INCLINATION": "steep"}, "could not convert string to float: 'steep'"),
        ({"EPOCH": "yesterday"}, "yesterday"),
    ],
)
def test_an_omm_that_makes_no_orbit_is_refused_with_the_reason(change: dict[str, str | None], reason: str) -> None:
    """Bad fields raise ValueError that names what was expected or what came."""
    with pytest.raises(ValueError, match=r".") as refusal:
        ElementSet.from_omm({**OMM, **change})
    assert reason in str(refusal.value)


def test_an_omm_needs_no_fraction_of_a_second_and_takes_a_z() -> None:
    """Epochs are read with or without decimals, with or without the Z of UTC."""
    epochs = [
        ElementSet.from_omm({**OMM, "EPOCH": epoch}).satrec.jdsatepochF
        for epoch in ("2008-09-20T12:25:40", "2008-09-20T12:25:40.0Z", "2008-09-20T12:25:40.000000")
    ]
    assert epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize(
    ("line1", "line2", "reason"),
    [
        (LINE1[:-1] + "8", LINE2, "line 1 must end in checksum 7, got '8'"),
        (LINE1, LINE2[:-1], "line 2 must be 69 characters"),
        (LINE1, ALPHA2, "both lines must carry one catalogue number, got '25544' and 'E8493'"),
    ],
)
def test_two_lines_that_do_not_belong_are_refused_with_the_reason(line1: str, line2: str, reason: str) -> None:
    """Checksum, length and number are checked before SGP4 sees the lines."""
    with pytest.raises(ValueError, match=r".") as refusal:
        ElementSet.from_tle(line1, line2)
    assert reason in str(refusal.value)


def test_a_bad_row_costs_only_itself_in_every_format() -> None:
    """Of three rows with a bad one in the middle, two are read and one is reported with file, row and reason."""
    bad = {**OMM, "MEAN_MOTION": "fast"}
    columns = list(OMM)
    csv_text = "\n".join([",".join(columns), *(",".join(str(row[key]) for key in columns) for row in (OMM, bad, OMM))])
    tle = f"{LINE1}\n{LINE2}\n"
    texts = {
        "json": (json.dumps([OMM, bad, OMM]), 2),
        "csv": (csv_text, 3),
        "tle": (f"{tle}{LINE1}\n{tle}", 3),
        "3le": (f"0 ISS (ZARYA)\n{tle}ISS (ZARYA)\n{LINE1[:-1]}0\n{LINE2}\n\nISS (ZARYA)\r\n{tle}", 5),
    }
    for name, (text, row) in texts.items():
        catalog = parse_catalog(text, file=name)
        assert [elements.catalog_number for elements in catalog.element_sets] == [25544, 25544], name
        assert [(problem.file, problem.row) for problem in catalog.problems] == [(name, row)], name
        assert catalog.problems[0].reason in str(catalog.problems[0])


def test_names_come_from_the_line_above_and_do_not_leak() -> None:
    """A 3LE's name is its own: the object after it that has none gets none."""
    catalog = parse_catalog(f"0 FIRST\n{LINE1}\n{LINE2}\n{ALPHA1}\n{ALPHA2}\n", file="x")
    assert [elements.name for elements in catalog.element_sets] == ["FIRST", ""]


@pytest.mark.parametrize("text", ["", "hello", "a,b,c\n1,2,3", "[{]"])
def test_a_file_in_no_known_format_is_refused(text: str) -> None:
    """What is no catalogue at all raises ValueError that names the file."""
    with pytest.raises(ValueError, match=r"catalog\.txt"):
        parse_catalog(text, file="catalog.txt")


def test_the_real_catalogue_is_read_whole() -> None:
    """All 14,683 active satellites of March 2026 are read, with no problem, six-digit numbers among them."""
    catalog = read_catalog(data("catalog/celestrak_active_2026-03.csv"))
    assert len(catalog.element_sets) == 14_683
    assert catalog.problems == ()
    assert len({elements.catalog_number for elements in catalog.element_sets}) == 14_683


@pytest.mark.parametrize(("name", "size"), [("cosmos-2251-debris", 571), ("iridium-33-debris", 106), ("stations", 33)])
def test_the_real_json_catalogues_are_read_whole(name: str, size: int) -> None:
    """CelesTrak's OMM JSON files are read with no problem."""
    catalog = read_catalog(data(f"catalog/celestrak_{name}_gp.json"))
    assert (len(catalog.element_sets), catalog.problems) == (size, ())
