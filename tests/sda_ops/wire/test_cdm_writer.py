"""Conjunction messages as text: the standard's order and units, the round trip, and what an independent library reads."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from sda_ops.wire.cdm import ConjunctionMessage, OrbitDetermination, RtnCovariance, cdm_kvn, cdm_xml, read_cdm
from tests.helpers.sizes import examples
from tests.sda_ops.wire.cdm_messages import (
    FIRST,
    MESSAGE,
    SECOND,
    assert_other_library_agrees,
    messages,
    real_file,
)

Notation = Callable[[ConjunctionMessage], str]
NOTATIONS = pytest.mark.parametrize("notation", [cdm_kvn, cdm_xml])

MANDATORY = (
    "CCSDS_CDM_VERS CREATION_DATE ORIGINATOR MESSAGE_ID TCA MISS_DISTANCE "
    + 2
    * (
        "OBJECT OBJECT_DESIGNATOR CATALOG_NAME OBJECT_NAME INTERNATIONAL_DESIGNATOR EPHEMERIS_NAME COVARIANCE_METHOD "
        "MANEUVERABLE REF_FRAME X Y Z X_DOT Y_DOT Z_DOT CR_R CT_R CT_T CN_R CN_T CN_N CRDOT_R CRDOT_T CRDOT_N CRDOT_RDOT "
        "CTDOT_R CTDOT_T CTDOT_N CTDOT_RDOT CTDOT_TDOT CNDOT_R CNDOT_T CNDOT_N CNDOT_RDOT CNDOT_TDOT CNDOT_NDOT "
    )
).split()
"""508.0-B-1, tables 3-1 to 3-4: what is marked M, in their order."""

MINIMAL = ConjunctionMessage(
    creation_date_ns=MESSAGE.creation_date_ns,
    originator="SDA",
    message_id="1",
    tca_ns=MESSAGE.tca_ns,
    miss_distance_m=715.0,
    objects=(SECOND, SECOND),
)


def test_a_message_with_the_mandatory_fields_has_their_keywords_in_the_standards_order() -> None:
    """In KVN, each of them on a line, and nothing else."""
    assert [line.split(" =")[0].rstrip() for line in cdm_kvn(MINIMAL).splitlines()] == MANDATORY


def test_xml_has_the_keywords_of_kvn_in_the_same_order() -> None:
    """With every field of the standard. The version is an attribute of <cdm>."""
    root = ET.fromstring(cdm_xml(MESSAGE))
    leaves = [each.tag for each in root.iter() if len(each) == 0]
    keywords = [re.split(r"[ =]", line)[0] for line in cdm_kvn(MESSAGE).splitlines()]
    assert (root.tag, root.get("id"), root.get("version")) == ("cdm", "CCSDS_CDM_VERS", "1.0")
    assert leaves == keywords[1:]


def test_units_are_those_of_the_other_librarys_own_text() -> None:
    """Every unit in brackets, of a message with every field. Thrust it does not have."""
    other = read_units(read_by_other(cdm_kvn(MESSAGE)).to_str("kvn"))
    ours = read_units(cdm_kvn(MESSAGE))
    assert {key: ours[key] for key in other} == other
    assert len(other) > 40


def read_by_other(text: str) -> Any:
    import ccsds_ndm  # noqa: PLC0415

    return ccsds_ndm.Cdm.from_str(text)


def read_units(kvn: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^(\w+) *=.* \[(.*)\]$", kvn))


def test_the_structure_of_xml_is_that_of_the_published_example() -> None:
    """Element for element: a message read from the example is written with the example's elements and units."""
    path = real_file("CDMExample_issue_944.xml")
    text = path.read_text(encoding="utf-8")
    written = cdm_xml(read_cdm(text))
    example, ours = (_elements(ET.fromstring(each)) for each in (text, written))
    assert ours == example


def _elements(root: ET.Element) -> list[tuple[str, str | None]]:
    return [(each.tag, each.get("units")) for each in root.iter() if each.tag != "COMMENT"]


@NOTATIONS
def test_an_independent_library_reads_the_values_that_were_written(notation: Notation) -> None:
    """All numbers of a message with every field, and of one with the mandatory ones."""
    assert_other_library_agrees(MESSAGE, notation(MESSAGE))
    assert_other_library_agrees(MINIMAL, notation(MINIMAL))


@NOTATIONS
@pytest.mark.parametrize("name", ["A = B", "ISS [m]", "OBJECT = OBJECT2", "<&>", "]]>", "Σπούτνικ 1", "X" * 3_000])
def test_an_independent_library_reads_odd_names(notation: Notation, name: str) -> None:
    """Characters that mean something in one of the notations, other alphabets, a very long one."""
    message = replace(MESSAGE, objects=(replace(FIRST, name=name), SECOND))
    assert_other_library_agrees(message, notation(message))


@given(message=messages())
@settings(max_examples=examples(100))
def test_what_is_written_is_read_as_an_equal_value_in_both_notations(message: ConjunctionMessage) -> None:
    """To the last bit of each number, with all comments, texts of any characters, and fields of no standard."""
    assert read_cdm(cdm_kvn(message)) == message
    assert read_cdm(cdm_xml(message)) == message


def test_a_number_has_the_standards_unit_in_the_text_and_si_in_the_value() -> None:
    """Kilometres and days, without a binary fraction's digits."""
    text = cdm_kvn(MESSAGE)
    assert re.search(r"(?m)^X += 2570\.097065 +\[km\]$", text)
    assert re.search(r"(?m)^X_DOT += 4\.418769571 +\[km/s\]$", text)
    assert re.search(r"(?m)^RECOMMENDED_OD_SPAN += 7\.88 +\[d\]$", text)


def test_another_version_than_the_standards_is_not_written() -> None:
    """The draft of version 2 is read only."""
    with pytest.raises(ValueError, match=r"only version 1\.0 is written, not 2\.0"):
        cdm_kvn(replace(MESSAGE, version="2.0"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"message_id": "a\nTCA = b"},
            "ConjunctionMessage: message_id: a text must be one line of printable characters",
        ),
        ({"message_for": " a"}, "message_for: a text must not begin or end with a blank"),
        ({"comments": ("a\x00",)}, "comments: a text must be one line"),
        ({"tca_ns": MESSAGE.tca_ns, "miss_distance_m": -1.0}, "miss_distance_m must be >= 0, got -1.0"),
        ({"miss_distance_m": float("nan")}, "miss_distance_m: expected a finite number, got nan"),
        ({"relative_position_m": (1.0, float("inf"), 0.0)}, "relative_position_m: expected a finite number, got inf"),
        ({"collision_probability": 1.5}, r"collision_probability must be in \[0, 1\], got 1.5"),
        ({"others": (("A B", "1"),)}, "others: expected a keyword, got 'A B'"),
    ],
)
def test_a_value_that_no_notation_can_hold_is_an_error_when_it_is_made(change: dict[str, Any], reason: str) -> None:
    """So that every value can be written and read again."""
    with pytest.raises(ValueError, match=reason):
        replace(MESSAGE, **change)


def test_a_part_without_a_value_is_an_error() -> None:
    """Its comments would belong to the next part when they are read."""
    with pytest.raises(ValueError, match="OrbitDetermination: without any value it must be None in its object"):
        OrbitDetermination(comments=("nothing",))


def test_a_covariance_has_21_values() -> None:
    """And its matrix is symmetric, with the rows of the lower triangle in their places."""
    with pytest.raises(ValueError, match="state must have 21 values, got 20"):
        RtnCovariance(state=(0.0,) * 20)
    matrix = RtnCovariance(state=tuple(float(n) for n in range(21))).matrix()
    assert (matrix == matrix.T).all()
    assert (matrix[2, 0], matrix[2, 2], matrix[3, 0], matrix[5, 5]) == (3.0, 5.0, 6.0, 20.0)
