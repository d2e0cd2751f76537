"""Reading TLE and OMM files: element sets, bad rows, and the real catalogues."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from sgp4.api import Satrec

from sda_ops.catalog import ElementSet, newest_of_each, parse_catalog, read_catalog
from tests.sda_ops.catalog.catalog_texts import ALPHA1, ALPHA2, LINE1, LINE2, OMM, csv_of, data

ONE_METRE_KM = 1e-3


def position_km(satrec: Satrec) -> tuple[float, float, float]:
    error, r_km, _ = satrec.sgp4(2454730.5, 0.25)
    assert error == 0
    x, y, z = r_km
    return x, y, z


def with_checksum(line: str) -> str:
    digits = sum(int(character) if character.isdigit() else character == "-" for character in line[:68])
    return f"{line[:68]}{digits % 10}"


def test_a_tle_and_an_omm_of_one_object_give_one_orbit() -> None:
    """The ISS is within a metre of the same position from two lines and from an OMM."""
    from_tle = ElementSet.from_tle(LINE1, LINE2, name="ISS (ZARYA)")
    from_omm = ElementSet.from_omm(OMM)
    assert (
        (from_tle.catalog_number, from_tle.name) == (from_omm.catalog_number, from_omm.name) == (25544, "ISS (ZARYA)")
    )
    assert position_km(from_tle.satrec) == pytest.approx(position_km(from_omm.satrec), abs=ONE_METRE_KM)


@pytest.mark.parametrize("number", [5, 99_999, 100_000, 339_999, 340_000, 799_500_123, 999_999_999])
def test_catalog_numbers_have_up_to_nine_digits(number: int) -> None:
    """An OMM keeps its catalogue number and its orbit for any number of digits."""
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
        ({"NORAD_CAT_ID": "1000000000"}, "NORAD_CAT_ID must have one to nine digits, got '1000000000'"),
        ({"NORAD_CAT_ID": 1_000_000_000}, "NORAD_CAT_ID must have one to nine digits, got int"),
        ({"NORAD_CAT_ID": "-5"}, "NORAD_CAT_ID must have one to nine digits, got '-5'"),
        ({"NORAD_CAT_ID": "25_544"}, "NORAD_CAT_ID must have one to nine digits, got '25_544'"),
        ({"NORAD_CAT_ID": "２５５４４"}, "NORAD_CAT_ID must have one to nine digits, got '２５５４４'"),
        ({"NORAD_CAT_ID": True}, "NORAD_CAT_ID must have one to nine digits, got True"),
        ({"NORAD_CAT_ID": "0"}, "NORAD_CAT_ID must have one to nine digits and not be 0, got '0'"),
        ({"ECCENTRICITY": "1.5"}, "eccentricity in [0, 1)"),
        ({"MEAN_MOTION": "nan"}, "mean motion must be > 0"),
        ({"MEAN_MOTION": "-3"}, "mean motion must be > 0"),
        ({"MEAN_MOTION": "15.7２"}, "MEAN_MOTION must be a number, got '15.7２'"),
        ({"MEAN_MOTION": "1_5.7"}, "MEAN_MOTION must be a number, got '1_5.7'"),
        ({"MEAN_MOTION": True}, "MEAN_MOTION must be a number, got True"),
        ({"MEAN_MOTION": [15.7]}, "MEAN_MOTION must be a number, got list"),
        ({"MEAN_MOTION": 10**400}, "MEAN_MOTION must be a number, got int"),
        ({"INCLINATION": "inf"}, "elements must be finite"),
        ({"MEAN_MOTION_DOT": "inf"}, "elements must be finite"),
        ({"INCLINATION": "steep"}, "INCLINATION must be a number, got 'steep'"),
        ({"INCLINATION": "x" * 200}, "INCLINATION must be a number, got 'xxxxx"),
        ({"INCLINATION": "180.1"}, "inclination must be in [0, 180] deg, got 180.1"),
        ({"INCLINATION": "-0.1"}, "inclination must be in [0, 180] deg, got -0.1"),
        ({"EPOCH": "yesterday"}, "EPOCH must be YYYY-MM-DDThh:mm:ss[.d], or YYYY-DDD for the date, got 'yesterday'"),
        ({"EPOCH": "2008-02-30T00:00:00"}, "EPOCH '2008-02-30T00:00:00': day is out of range"),
        ({"EPOCH": "2016-12-31T23:59:60"}, "EPOCH '2016-12-31T23:59:60': second must be in 0..59"),
        ({"EPOCH": "2007-366T00:00:00"}, "there is no day 366 in 2007"),
        ({"EPOCH": "2008-000T00:00:00"}, "there is no day 000 in 2008"),
        ({"EPOCH": "2200-01-01T00:00:00"}, "EPOCH '2200-01-01T00:00:00': the year must be 1957 to 2199"),
        ({"EPOCH": "1956-12-31T00:00:00"}, "the year must be 1957 to 2199"),
        ({"EPOCH": "9999-12-31T23:59:59.9999999"}, "EPOCH '9999-12-31T23:59:59.9999999': date value out of range"),
        ({"REF_FRAME": "GCRF"}, "REF_FRAME must be TEME or TEMEOFDATE, got 'GCRF'"),
        ({"TIME_SYSTEM": "TAI"}, "TIME_SYSTEM must be UTC, got 'TAI'"),
        ({"CENTER_NAME": "MARS"}, "CENTER_NAME must be EARTH, got 'MARS'"),
        ({"MEAN_ELEMENT_THEORY": "SGP4-XP"}, "or SDP4 or SGP4/SDP4 or TLE, got 'SGP4-XP'"),
        (
            {"EPHEMERIS_TYPE": 3},
            "EPHEMERIS_TYPE 3 marks elements of PPT3, which SGP4 cannot propagate; expected 0 or 2",
        ),
        ({"EPHEMERIS_TYPE": 6}, "EPHEMERIS_TYPE 6 marks elements of special perturbations"),
        ({"EPHEMERIS_TYPE": 9}, "EPHEMERIS_TYPE 9 marks elements of another theory"),
        ({"EPHEMERIS_TYPE": "4"}, "EPHEMERIS_TYPE 4 marks elements of SGP4-XP"),
        ({"REV_AT_EPOCH": 1e9}, "REV_AT_EPOCH must have one to nine digits, got 1000000000.0"),
        # A perigee 3,000 km below the ground: SGP4's own error, at the epoch.
        ({"ECCENTRICITY": "0.5"}, "SGP4 cannot start from these elements: its error 6"),
        # Found by Hypothesis: no error, but NaN as a state.
        ({"MEAN_MOTION": "1", "INCLINATION": "1e-311"}, "SGP4 computes no finite state from these elements"),
    ],
)
def test_an_omm_without_an_orbit_is_rejected_with_the_reason(change: dict[str, object], reason: str) -> None:
    """Bad fields raise ValueError with the expected or the actual value, in a line of bounded length."""
    with pytest.raises(ValueError, match=r".") as raised:
        ElementSet.from_omm({**OMM, **change})
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 200


def test_an_omm_may_state_its_conventions() -> None:
    """TEME, UTC, SGP4 and the Earth, in either case, change nothing; nor do other names of SGP4, absent, empty or null values."""
    stated = {"CENTER_NAME": "Earth", "REF_FRAME": "TEME", "TIME_SYSTEM": "UTC", "MEAN_ELEMENT_THEORY": "SGP/SGP4"}
    tle = {"MEAN_ELEMENT_THEORY": "TLE", "REF_FRAME": "TEMEOFDATE", "EPHEMERIS_TYPE": "2"}
    for conventions in (stated, tle, dict.fromkeys(stated, ""), dict.fromkeys(stated)):
        assert position_km(ElementSet.from_omm({**OMM, **conventions}).satrec) == position_km(
            ElementSet.from_omm(OMM).satrec
        )


def test_an_epoch_may_have_decimals_a_z_and_a_day_of_year() -> None:
    """Epochs are read with or without decimals, with or without the Z of UTC, by calendar or by day of year."""
    epochs = {
        ElementSet.from_omm({**OMM, "EPOCH": epoch}).satrec.jdsatepochF
        for epoch in (
            "2008-09-20T12:25:40",
            "2008-09-20T12:25:40.0Z",
            "2008-09-20T12:25:40.0000004",
            "2008-264T12:25:40.00",
            "2008-09-20T12:25:39.9999995",
        )
    }
    assert len(epochs) == 1


def test_the_satrec_has_the_fields_of_a_tle() -> None:
    """Designator, element set number and revolution of an OMM are those of the same object's TLE."""
    from_omm, from_tle = ElementSet.from_omm(OMM).satrec, ElementSet.from_tle(LINE1, LINE2).satrec
    for satrec in (from_omm, from_tle):
        assert (satrec.intldesg, satrec.elnum, satrec.revnum, satrec.satnum) == ("98067A", 292, 56353, 25544)
    assert ElementSet.from_omm({**OMM, "OBJECT_ID": "UNKNOWN"}).satrec.intldesg == ""


@pytest.mark.parametrize(
    ("line1", "line2", "reason"),
    [
        (LINE1[:-1] + "8", LINE2, "line 1 must end in checksum 7, got '8'"),
        (LINE1[:-1] + "x", LINE2, "line 1 must end in checksum 7, got 'x'"),
        (LINE1, LINE2[:-1], "line 2 must be 69 characters"),
        (LINE1, LINE2.replace("247", "２47"), "line 2 must be 69 characters"),
        (LINE1, ALPHA2, "both lines must carry one catalogue number, got '25544' and 'E8493'"),
        # A checksum ignores letters and blanks.
        (LINE1, LINE2.replace("0006703", "OOO67O3"), "line 2 has a field that is not in its columns"),
        (LINE1.replace("00000-0", "O0000-0"), LINE2, "line 1 has a field that is not in its columns"),
        *(
            (
                with_checksum(LINE1[:62] + digit + LINE1[63:]),
                LINE2,
                f"ephemeris type {digit} marks elements of {theory}",
            )
            for digit, theory in (
                ("3", "PPT3"),
                ("4", "SGP4-XP"),
                ("6", "special perturbations"),
                ("9", "another theory"),
            )
        ),
        *(
            (with_checksum(f"{LINE1[:18]}{day}{LINE1[23:]}"), LINE2, f"there is no day {day[2:]} in {day_of}")
            for day, day_of in (("26000", 2026), ("26366", 2026), ("24367", 2024), ("26399", 2026), ("57999", 1957))
        ),
        (with_checksum("1 00000" + LINE1[7:]), with_checksum("2 00000" + LINE2[7:]), "number must not be 0"),
        (LINE1, with_checksum(LINE2.replace("0006703", "9906703")), "SGP4 cannot start from these elements"),
    ],
)
def test_an_invalid_two_line_set_is_rejected_with_the_reason(line1: str, line2: str, reason: str) -> None:
    """Checksum, length, columns and number are checked before SGP4 reads the lines."""
    with pytest.raises(ValueError, match=r".") as raised:
        ElementSet.from_tle(line1, line2)
    assert reason in str(raised.value)


def test_a_bad_row_costs_only_itself_in_every_format() -> None:
    """Of three rows with a bad one in the middle, two are read and one is reported with file, line and reason."""
    bad = {**OMM, "MEAN_MOTION": "fast"}
    columns = list(OMM)
    csv_text = "\n".join([",".join(columns), *(",".join(str(row[key]) for key in columns) for row in (OMM, bad, OMM))])
    tle = f"{LINE1}\n{LINE2}\n"
    texts = {
        "json": (json.dumps([OMM, bad, OMM]), 1),
        "json of many lines": (json.dumps([OMM, bad, OMM], indent=1), 21),
        "json lines": (f"{json.dumps(OMM)}\n{json.dumps(bad)}\n{json.dumps(OMM)}\n", 2),
        "csv": (csv_text, 3),
        "csv of Windows": (csv_text.replace("\n", "\r\n"), 3),
        "tle": (f"{tle}{LINE1}\n{tle}", 3),
        "3le": (f"0 ISS (ZARYA)\n{tle}ISS (ZARYA)\n{LINE1[:-1]}0\n{LINE2}\n\nISS (ZARYA)\r\n{tle}", 5),
    }
    for name, (text, line) in texts.items():
        catalog = parse_catalog(text, file=name)
        assert [elements.catalog_number for elements in catalog.element_sets] == [25544, 25544], name
        assert [(problem.file, problem.line) for problem in catalog.problems] == [(name, line)], name
        assert catalog.problems[0].reason in str(catalog.problems[0])
        assert not catalog.truncated


def test_lines_are_those_of_the_good_rows() -> None:
    """Each element set has the number of the line at which it begins."""
    catalog = parse_catalog(f"# by hand\nISS\n{LINE1}\n{LINE2}\n\n{ALPHA1}\n{ALPHA2}\n", file="x")
    assert catalog.lines == (3, 6)


def test_a_name_belongs_to_the_lines_below_it_only() -> None:
    """The next object without a name line has no name."""
    catalog = parse_catalog(f"0 FIRST\n{LINE1}\n{LINE2}\n{ALPHA1}\n{ALPHA2}\n", file="x")
    assert [elements.name for elements in catalog.element_sets] == ["FIRST", ""]


@pytest.mark.parametrize("end", ["\n", ""])
def test_text_around_the_sets_costs_no_row(end: str) -> None:
    """A header, remarks between the sets and a footer are skipped; the footer is remarked on, and no file is truncated by it."""
    text = f"SB KEPS\n2Line Elements 069\n\nISS\n{LINE1}\n{LINE2}\nand then\n{ALPHA1}\n{ALPHA2}\n\n/EX{end}"
    catalog = parse_catalog(text, file="x")
    assert [elements.name for elements in catalog.element_sets] == ["ISS", "and then"]
    assert (catalog.problems, catalog.truncated, catalog.rows) == ((), False, 2)
    assert catalog.remarks == ("x:11: the text after the last element set is skipped: '/EX'",)


def test_text_above_the_header_of_a_csv_costs_no_row() -> None:
    """The header is found in the first 20 lines; a footer below the rows is one bad row."""
    catalog = parse_catalog(f"our catalogue\n\n{csv_of([OMM])}\nthe end\n", file="x")
    assert (len(catalog.element_sets), catalog.lines, catalog.rows) == (1, (4,), 2)
    assert [problem.line for problem in catalog.problems] == [5]


@pytest.mark.parametrize("name", ["2 SCOUTS", "1 OF FEW", "1 2345", "2 12345 AND MORE", "1 25544", "0 2 MANY"])
def test_a_name_may_begin_like_a_line_of_elements(name: str) -> None:
    """A line is one of elements by its columns. Such names are kept, above a first set and above a later one."""
    text = f"{name}\n{LINE1}\n{LINE2}\n" * 2
    catalog = parse_catalog(text, file="x")
    assert [elements.name for elements in catalog.element_sets] == [name.removeprefix("0 ")] * 2
    assert (catalog.problems, catalog.remarks) == ((), ())


def test_a_damaged_line_of_elements_is_not_a_name() -> None:
    """A line 1 with a wrong character, shortened, or without its line 2 is a bad row, and the set below it has no name."""
    damaged = (LINE1[:3] + "x" + LINE1[4:], LINE1[:40], LINE1[:9], LINE1, LINE2)
    for line in damaged:
        catalog = parse_catalog(f"{ALPHA1}\n{ALPHA2}\n{line}\n{LINE1}\n{LINE2}\n", file="x")
        assert [elements.name for elements in catalog.element_sets] == ["", ""], line
        assert [problem.line for problem in catalog.problems] == [3], line


@pytest.mark.parametrize("blank", ["", " "])
def test_a_set_without_checksums_is_accepted_with_a_remark(blank: str) -> None:
    """As in old archives; the orbit is the same. If only one line has none, the set is rejected."""
    text = f"{LINE1[:-1]}{blank}\n{LINE2[:-1]}{blank}\n"
    catalog = parse_catalog(text * 3, file="x")
    assert catalog.problems == ()
    assert catalog.remarks == ("x:1: an element set without checksums is accepted (and 2 more)",)
    assert position_km(catalog.element_sets[0].satrec) == position_km(ElementSet.from_tle(LINE1, LINE2).satrec)
    (problem,) = parse_catalog(f"{LINE1}\n{LINE2[:-1]}{blank}\n", file="x").problems
    assert "line 2 must be 69 characters" in problem.reason


def test_a_day_that_the_year_does_not_have_displaces_no_good_set() -> None:
    """Day 366 exists in leap years only. The good set is kept, and the other is a bad row with its line."""
    wrong = with_checksum(f"{LINE1[:18]}26366{LINE1[23:]}")
    leap = with_checksum(f"{LINE1[:18]}08366{LINE1[23:]}")
    catalog = newest_of_each(parse_catalog(f"{leap}\n{LINE2}\n{wrong}\n{LINE2}\n", file="x"))
    assert [elements.satrec.epochyr for elements in catalog.element_sets] == [8]
    assert [str(problem) for problem in catalog.problems] == [
        "x:3: the epoch of line 1 is wrong: there is no day 366 in 2026"
    ]


def test_a_file_compressed_by_gzip_is_read(tmp_path: Path) -> None:
    """By its content and not by its name, of several members too. A truncated or damaged one is rejected in one line."""
    path = tmp_path / "catalog.csv"
    whole = gzip.compress(f"{LINE1}\n".encode()) + gzip.compress(f"{LINE2}\n".encode())
    path.write_bytes(whole)
    assert [elements.catalog_number for elements in read_catalog(path).element_sets] == [25544]
    for content, problem in (
        (whole[:-9], "the gzip file is truncated"),
        (whole[:12] + b"\xff\xff" + whole[14:], "the gzip file is invalid: "),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r".") as raised:
            read_catalog(path)
        assert str(raised.value).startswith(f"{path}: {problem}")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "hello", "a,b,c\n1,2,3", "[{]", "{", "<html/>", "<omm", "503\n1 moment, please\n", '"NORAD_CAT_ID,x']
)
def test_a_file_in_an_unknown_format_is_rejected(text: str) -> None:
    """ValueError names the file."""
    with pytest.raises(ValueError, match=r"^catalog\.txt: "):
        parse_catalog(text, file="catalog.txt")


def test_bytes_that_are_not_text_cost_only_their_row(tmp_path: Path) -> None:
    """In a TLE's line 1 they cost that object; in a name they cost nothing."""
    garbage = bytearray(f"CAF\xe9\n{LINE1}\n{LINE2}\n{ALPHA1}\n{ALPHA2}\n".encode("latin-1"))
    garbage[garbage.index(b"E8493U") + 6] = 0xFF
    (tmp_path / "garbage.tle").write_bytes(garbage)
    catalog = read_catalog(tmp_path / "garbage.tle")
    assert [(e.catalog_number, e.name) for e in catalog.element_sets] == [(25544, "CAF\ufffd")]
    assert [problem.line for problem in catalog.problems] == [4]


def omm_row(**change: object) -> dict[str, object]:
    return {**OMM, **change}


def test_the_newest_element_set_of_an_object_is_kept() -> None:
    """Of several element sets of one object the newest counts, at any place, and the others are not problems."""
    texts = [
        omm_row(EPOCH="2008-09-20T00:00:00", OBJECT_NAME="old"),
        omm_row(NORAD_CAT_ID=7, OBJECT_NAME="other"),
        omm_row(EPOCH="2008-09-21T00:00:00.000001", OBJECT_NAME="newest"),
        omm_row(EPOCH="2008-09-21T00:00:00", OBJECT_NAME="newer"),
    ]
    catalog = newest_of_each(parse_catalog(json.dumps(texts, indent=0), file="x"))
    assert [element_set.name for element_set in catalog.element_sets] == ["newest", "other"]
    assert catalog.lines == (40, 21)
    assert catalog.problems == ()


def test_different_element_sets_of_one_epoch_are_a_problem() -> None:
    """Equal ones count as one; a different one of the same epoch is reported at its line, and the first is kept."""
    rows = [omm_row(), omm_row(OBJECT_NAME="again"), omm_row(OBJECT_NAME="another", MEAN_ANOMALY=325.0289)]
    catalog = newest_of_each(parse_catalog(json.dumps(rows, indent=0), file="x"))
    assert [element_set.name for element_set in catalog.element_sets] == ["ISS (ZARYA)"]
    assert [str(problem) for problem in catalog.problems] == [
        "x:40: object 25544 has other elements of the same epoch in line 2"
    ]


def test_the_real_catalogue_is_read_whole() -> None:
    """All 14,683 active satellites of March 2026 are read without a problem, six-digit numbers among them."""
    catalog = read_catalog(data("catalog/celestrak_active_2026-03.csv"))
    assert len(catalog.element_sets) == 14_683
    assert catalog.problems == ()
    assert len({elements.catalog_number for elements in catalog.element_sets}) == 14_683
    assert newest_of_each(catalog) == catalog
    assert catalog.lines == tuple(range(2, 14_685))


@pytest.mark.parametrize(("name", "size"), [("cosmos-2251-debris", 571), ("iridium-33-debris", 106), ("stations", 33)])
def test_the_real_json_catalogues_are_read_whole(name: str, size: int) -> None:
    """CelesTrak's OMM JSON files are read without a problem."""
    catalog = read_catalog(data(f"catalog/celestrak_{name}_gp.json"))
    assert (len(catalog.element_sets), catalog.problems) == (size, ())


@pytest.mark.parametrize("path", ["eiscat_envisat_2016-09-06/tles.txt", "optical_noss_2019/tlegen_37386.txt"])
def test_the_real_two_line_sets_are_read(path: str) -> None:
    """Two-line sets of other publishers have the columns that the reader requires."""
    text = data(path).read_text()
    catalog = parse_catalog(text, file=path)
    assert len(catalog.element_sets) == f"\n{text}".count("\n1 ") > 0
    assert catalog.problems == ()


def test_the_real_socrates_pairs_are_read() -> None:
    """Of SOCRATES's 20 pairs, CSV and JSON are read whole; five of the two-line sets have a line 2 of 70 characters."""
    catalogs = [read_catalog(file) for file in sorted(data("socrates_2026-03-09/pairs_gp").iterdir())]
    problems = [problem for catalog in catalogs for problem in catalog.problems]
    assert sum(len(catalog.element_sets) for catalog in catalogs) == 3 * 20 * 2 - 5
    assert len(problems) == 5
    assert all(p.file.endswith(".txt") and p.reason.startswith("line 2 must be 69 characters") for p in problems)
