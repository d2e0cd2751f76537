"""OMM in XML, KVN, JSON and CSV, and two-line sets, as CelesTrak publishes them: good and bad ones."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sgp4.alpha5 import to_alpha5
from sgp4.api import Satrec
from sgp4.exporter import export_tle

from sda_ops.catalog import ElementSet, parse_catalog, read_catalog
from tests.helpers.sizes import examples
from tests.sda_ops.catalog.catalog_texts import (
    LINE1,
    LINE2,
    METADATA,
    OMM,
    Fields,
    csv_of,
    data,
    json_of,
    kvn,
    kvn_message,
    xml,
    xml_message,
)

Notation: TypeAlias = Callable[[Sequence[Fields]], str]

NOTATIONS: list[Notation] = [kvn, xml, json_of, csv_of]


def state(element_set: ElementSet) -> tuple[object, ...]:
    satrec = element_set.satrec
    return (element_set.catalog_number, element_set.name, satrec.sgp4(satrec.jdsatepoch, satrec.jdsatepochF + 0.37))


@pytest.mark.parametrize("notation", [kvn, xml, json_of])
def test_the_real_catalogue_is_the_same_in_every_notation(notation: Notation) -> None:
    """1,500 real objects rewritten from CSV are read without a problem, to the same orbits, to the bit."""
    path = data("catalog/celestrak_active_2026-03.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))[::10]
    expected = read_catalog(path).element_sets[::10]
    catalog = parse_catalog(notation(rows), file="rewritten")
    assert catalog.problems == ()
    assert not catalog.truncated
    assert [state(element_set) for element_set in catalog.element_sets] == [state(e) for e in expected]


YEARS = (datetime(1957, 1, 1), datetime(2056, 12, 31))  # noqa: DTZ001 - UTC; the years that a TLE can express

good_rows = st.fixed_dictionaries(
    {
        "OBJECT_NAME": st.from_regex(r"[A-Z0-9][A-Z0-9 ()&<>\[\]+.-]{0,20}[A-Z0-9)\]]", fullmatch=True),
        "OBJECT_ID": st.just("1998-067A"),
        "EPOCH": st.datetimes(*YEARS).map(lambda t: t.isoformat(timespec="microseconds")),
        "MEAN_MOTION": st.floats(0.5, 15.5),
        "ECCENTRICITY": st.floats(0.0, 0.02),
        "INCLINATION": st.integers(0, 1_800_000).map(lambda n: n / 10_000),
        "RA_OF_ASC_NODE": st.floats(0.0, 360.0),
        "ARG_OF_PERICENTER": st.floats(0.0, 360.0),
        "MEAN_ANOMALY": st.floats(0.0, 360.0),
        "NORAD_CAT_ID": st.integers(1, 999_999_999),
        "BSTAR": st.integers(-100_000, 100_000).map(lambda n: n / 1e8),
    }
)


@settings(max_examples=examples(30))
@given(rows=st.lists(good_rows, min_size=1, max_size=4))
@pytest.mark.parametrize("notation", NOTATIONS)
def test_written_objects_are_read_back(notation: Notation, rows: list[Fields]) -> None:
    """Any objects in any notation have the same numbers, names and orbits, to the bit."""
    catalog = parse_catalog(notation(rows), file="written")
    assert catalog.problems == ()
    assert list(map(state, catalog.element_sets)) == [state(ElementSet.from_omm(row)) for row in rows]


def fit_for_a_tle(row: Fields) -> Fields:
    """Elements and number within the limits of a TLE, and an orbit above the ground."""
    return row | {"NORAD_CAT_ID": row["NORAD_CAT_ID"] % 339_999 + 1, "MEAN_MOTION": round(row["MEAN_MOTION"], 8)}


@settings(max_examples=examples(30))
@given(row=good_rows.map(fit_for_a_tle))
def test_written_two_line_sets_are_read_back(row: Fields) -> None:
    """Two lines from sgp4's exporter give the same number, and the same orbit as sgp4's reader, to the bit."""
    satrec = ElementSet.from_omm(row).satrec
    satrec.satnum_str = to_alpha5(
        row["NORAD_CAT_ID"]
    )  # sgp4init itself uses the letters I and O, which Alpha-5 excludes
    lines = export_tle(satrec)
    (element_set,) = parse_catalog("\n".join(lines), file="written").element_sets
    assert element_set.catalog_number == row["NORAD_CAT_ID"]
    assert state(element_set)[2] == state(ElementSet(1, "", Satrec.twoline2rv(*lines)))[2]


@settings(max_examples=examples(30))
@given(rows=st.lists(good_rows, min_size=3, max_size=3), damage=st.sampled_from(["", "nan", "1e", "１", "-4"]))
@pytest.mark.parametrize("notation", NOTATIONS)
def test_one_bad_message_costs_only_itself(notation: Notation, rows: list[Fields], damage: str) -> None:
    """Of three messages with a bad one in the middle two are read, and the problem has the line where the bad one begins."""
    rows[1]["MEAN_MOTION"] = damage
    text = notation(rows)
    catalog = parse_catalog(text, file="x")
    assert [e.catalog_number for e in catalog.element_sets] == [rows[0]["NORAD_CAT_ID"], rows[2]["NORAD_CAT_ID"]]
    per_message = kvn_message(rows[0]).count("\n") + 1
    lines: dict[Notation, int] = {kvn: 1 + per_message, xml: 4, json_of: 1, csv_of: 3}
    assert [problem.line for problem in catalog.problems] == [lines[notation]]


@pytest.mark.parametrize("message", [kvn_message, xml_message])
def test_units_may_be_written_and_must_be_the_standards(message: Callable[..., str]) -> None:
    """[deg] and [rev/day] change nothing; a mean motion per hour, or a node in radians, is a bad row with this reason."""
    text = message(OMM, units=True)
    plain, with_units = (parse_catalog(t, file="x") for t in (message(OMM), text))
    assert list(map(state, plain.element_sets)) == list(map(state, with_units.element_sets))
    assert with_units.problems == ()
    for good, bad, keyword in (("rev/day]", "rev/h]", "MEAN_MOTION"), ("deg]", "rad]", "INCLINATION")):
        catalog = parse_catalog(text.replace(good, bad).replace(good[:-1] + '"', bad[:-1] + '"'), file="x")
        assert catalog.element_sets == ()
        assert f"{keyword} must be in {good[:-1]}, got '{bad[:-1]}" in catalog.problems[0].reason


@pytest.mark.parametrize("message", [kvn_message, xml_message])
@pytest.mark.parametrize("keyword", METADATA)
def test_other_conventions_are_bad_rows(message: Callable[..., str], keyword: str) -> None:
    """A centre, frame, time system or theory that SGP4 elements do not have is a bad row that names it."""
    catalog = parse_catalog(message({**OMM, keyword: "OTHER"}), file="x")
    assert catalog.element_sets == ()
    assert re.match(rf"{keyword} must be .*, got 'OTHER'", catalog.problems[0].reason)


def test_kvn_allows_what_the_standard_allows() -> None:
    """Comments, blank lines, tabs, no blanks, Windows line ends, and a name that ends in brackets."""
    text = (
        kvn_message({**OMM, "OBJECT_NAME": "DRAGON [+]"})
        .replace("= 25544", "=25544")
        .replace("\nEPOCH ", "\n\tEPOCH\t")
    )
    catalog = parse_catalog(f"COMMENT first\r\n\n{text}\nCOMMENT\n  \n".replace("\n", "\r\n"), file="x")
    assert [state(e) for e in catalog.element_sets] == [
        state(ElementSet.from_omm({**OMM, "OBJECT_NAME": "DRAGON [+]"}))
    ]
    assert catalog.problems == ()


@pytest.mark.parametrize(
    ("damage", "line", "reason"),
    [
        (lambda t: t.replace("\nEPOCH     ", "\nEPOCH 2   "), 27, "line 37: expected KEYWORD = value, got 'EPOCH 2"),
        (lambda t: t.replace("BSTAR     ", "EPOCH     "), 27, "line 49: EPOCH a second time"),
        (lambda t: t.replace("BSTAR", "#", 1), 27, "line 49: expected KEYWORD = value"),
    ],
)
def test_a_kvn_message_with_a_bad_line_names_the_line(damage: Callable[[str], str], line: int, reason: str) -> None:
    """A line without an assignment, or the second of a keyword, costs its own message and no other."""
    good = kvn_message(OMM)
    catalog = parse_catalog(f"{good}\n{damage(good)}\n{good}", file="x")
    assert [problem.line for problem in catalog.problems] == [line]
    assert catalog.problems[0].reason.startswith(reason)
    assert len(catalog.element_sets) == 2


def test_kvn_lines_before_the_first_message_are_reported() -> None:
    """Lines before the first CCSDS_OMM_VERS are not skipped silently."""
    catalog = parse_catalog(f"OBJECT_NAME = LOST\n{kvn_message(OMM)}", file="x")
    assert [str(problem) for problem in catalog.problems] == [
        "x:1: expected CCSDS_OMM_VERS first, got 'OBJECT_NAME = LOST'"
    ]
    assert len(catalog.element_sets) == 1


def test_a_single_omm_is_a_document() -> None:
    """<omm> needs no <ndm> around it; namespaces, comments, CDATA and repeated comments are read."""
    message = xml_message({**OMM, "OBJECT_NAME": "X"})
    rewritten = (
        message.replace("<omm ", '<n:omm xmlns:n="urn:ccsds:schema:ndmxml" ')
        .replace("</omm>", "</n:omm>")
        .replace(">X<", "><![CDATA[A & B]]><")
        .replace("<meanElements>", "<meanElements><COMMENT>a</COMMENT><COMMENT>b</COMMENT><!-- <omm> -->")
    )
    for text, name in ((message, "X"), (rewritten, "A & B")):
        catalog = parse_catalog(f"\n\n{text}", file="x")
        assert [e.name for e in catalog.element_sets] == [name]
        assert catalog.problems == ()


def test_xml_with_a_document_type_is_rejected_unread() -> None:
    """Entities that expand to gigabytes, or to a file's content, are rejected with the whole document."""
    laughs = "".join(f"<!ENTITY l{n} '{10 * f'&l{n - 1};'}'>" for n in range(1, 30))
    for declaration in (
        f'<!DOCTYPE ndm [<!ENTITY l0 "ha">{laughs}]>',
        '<!DOCTYPE ndm SYSTEM "file:///etc/passwd">',
        "<!DOCTYPE omm>",
    ):
        with pytest.raises(ValueError, match=r"^x: a document type declaration \(<!DOCTYPE \w+>\), which is not read$"):
            parse_catalog(f"{declaration}<ndm>{xml_message({**OMM, 'OBJECT_NAME': 'X'})}</ndm>", file="x")


def test_xml_of_another_kind_is_rejected() -> None:
    """The error names the root element of the other message."""
    with pytest.raises(ValueError, match=r"^x: expected <ndm> or <omm>, got <tdm>$"):
        parse_catalog("<tdm></tdm>", file="x")


@pytest.mark.parametrize(
    ("damage", "lines", "reason"),
    [
        (lambda t: t.replace("</EPOCH>", "</EPOCHS>"), [4], "not XML: mismatched tag in line 4"),
        (lambda t: t.replace("</omm>", ""), [4], "not closed before the next message"),
        (lambda t: t.replace("ISS (ZARYA)", "A & B"), [4], "not XML: not well-formed (invalid token) in line 4"),
        (lambda t: t.replace("ISS (ZARYA)", "&nbsp;"), [4], "not XML: undefined entity in line 4"),
        (lambda t: t.replace("</BSTAR>", "</BSTAR><BSTAR>9</BSTAR>"), [4], "BSTAR twice, as '-1.1606e-05' and as '9'"),
        (lambda t: t.replace("<BSTAR>", "<BSTAR>\n\n</BSTAR><BSTAR>"), [], ""),
    ],
)
def test_an_xml_message_that_is_not_well_formed_costs_only_itself(
    damage: Callable[[str], str], lines: list[int], reason: str
) -> None:
    """Reading continues with the next message, and line numbers are still the file's."""
    good = xml_message(OMM)
    text = f"<ndm>\n{good}\n\n{damage(good)}\n{good}\n{xml_message({**OMM, 'EPOCH': 'x'})}\n</ndm>\n"
    catalog = parse_catalog(text, file="x")
    at_last = text[: text.index("<EPOCH>x<")].count("\n") + 1
    assert [problem.line for problem in catalog.problems if "closing" not in problem.reason][: len(lines) + 1] == [
        *lines,
        at_last,
    ]
    assert catalog.problems[0].reason.startswith(reason)
    assert len(catalog.element_sets) == 3 - len(lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[{},,GOOD]", [1]),
        ("[17,\nGOOD]", [1]),
        ('[{"A": },\nGOOD]', [1]),
        ('[{"A": "unclosed},\nGOOD]', [1]),
        ('[{"A": [1, 2},\n\nGOOD,\n[[1]]]', [1, 4]),
        ("[GOOD\nGOOD]", []),
        ("GOOD\nGOOD\n17", [3]),
        ("GOOD\n{", [2]),
        ('[{"NORAD_CAT_ID": ' + "9" * 5000 + "},\nGOOD]", [1]),
        ('[{"A": ' + "[" * 200_000 + "},\nGOOD]", [1]),
    ],
)
def test_invalid_json_costs_only_its_object(text: str, lines: list[int]) -> None:
    """Reading continues with the next object, and every skipped part is reported."""
    catalog = parse_catalog(text.replace("GOOD", json.dumps(OMM)), file="x")
    assert len(catalog.element_sets) == text.count("GOOD")
    assert sorted({problem.line for problem in catalog.problems}) == lines


def test_csv_lines_of_the_wrong_length_or_quoting_cost_only_themselves() -> None:
    """A truncated line, one too long, and one with an unclosed quote are reported; a quoted comma is read."""
    header, row = csv_of([{**OMM, "OBJECT_NAME": "A, B"}]).split("\n")
    lines = [header, row, row.rpartition(",")[0], f"{row},1", "", row.replace('B"', "B"), row]
    catalog = parse_catalog("\n".join(lines), file="x")
    assert [e.name for e in catalog.element_sets] == ["A, B", "A, B"]
    assert [str(problem) for problem in catalog.problems] == [
        "x:3: expected 17 fields as in the header, got 16",
        "x:4: expected 17 fields as in the header, got 18",
        "x:6: expected 17 fields as in the header, got 0",
    ]


@pytest.mark.parametrize("notation", NOTATIONS)
def test_a_text_that_ends_within_a_row_is_truncated(notation: Notation) -> None:
    """Cut anywhere in its last object, it is truncated and has the other objects; whole, it is not truncated."""
    rows = [{**OMM, "MEAN_MOTION_DDOT": "0.00000"} for _ in range(3)]
    text = notation(rows).rstrip("\n") + "\n"
    assert not parse_catalog(text, file="x").truncated
    first: dict[Notation, str] = {kvn: "CCSDS_OMM", xml: "<omm ", json_of: "{", csv_of: "\n"}
    last: dict[Notation, str] = {kvn: "BSTAR", xml: "</ndm>", json_of: "]", csv_of: ","}
    begins, ends = text.rindex(first[notation]), text.rindex(last[notation])
    # KVN's first keyword has to be whole: a shorter rest is not a message.
    for cut in range(begins + (22 if notation is kvn else 2), ends):
        catalog = parse_catalog(text[:cut], file="x")
        assert catalog.truncated, text[:cut][-60:]
        assert len(catalog.element_sets) >= 2


def test_a_two_line_set_that_is_cut_is_truncated() -> None:
    """Cut in its last line, a file of two-line sets has the other objects."""
    text = f"{LINE1}\n{LINE2}\n{LINE1}\n{LINE2}"
    assert not parse_catalog(text, file="x").truncated
    for cut in range(len(text) - 2 * len(LINE1) + 1, len(text)):
        catalog = parse_catalog(text[:cut], file="x")
        assert (len(catalog.element_sets), catalog.truncated) == (1, True), text[:cut]
