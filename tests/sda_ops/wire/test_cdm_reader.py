"""Conjunction messages from files: the real ones, and what is wrong with a bad one."""

from __future__ import annotations

import gzip
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.wire.cdm import MAX_CDM_BYTES, cdm_kvn, cdm_xml, read_cdm
from sda_ops.wire.malformed import MalformedFrame
from tests.helpers.sizes import examples
from tests.helpers.support import ROOT
from tests.sda_ops.wire.cdm_messages import CDM_FOLDER, FIRST, MESSAGE, assert_other_library_agrees, real_file

KVN = cdm_kvn(MESSAGE)
XML = cdm_xml(MESSAGE)

REAL_FILES = sorted(CDM_FOLDER.glob("*")) or [Path("absent")]
GOOD_FILES = [path for path in REAL_FILES if "Invalid" not in path.name and "issue_940" not in path.name]


def _reason(content: str | bytes) -> str:
    with pytest.raises(MalformedFrame) as caught:
        read_cdm(content, file="a.cdm")
    return caught.value.reason


def _changed(text: str, pattern: str, replacement: str) -> str:
    changed, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert count == 1
    return changed


@pytest.mark.parametrize("path", GOOD_FILES, ids=lambda path: path.name)
def test_every_real_message_is_read_and_written_with_the_values_that_an_independent_library_reads(path: Path) -> None:
    """From the file itself, and from what we write of it in both notations."""
    path = real_file(path.name)
    message = read_cdm(path.read_bytes(), file=path.name)
    for text in (path.read_text(encoding="utf-8"), cdm_kvn(message), cdm_xml(message)):
        assert_other_library_agrees(message, text)
    assert read_cdm(cdm_kvn(message)) == message == read_cdm(cdm_xml(message))


def test_a_date_that_does_not_exist_is_rejected_with_its_line() -> None:
    """31 April: other libraries accept it."""
    content = real_file("CDMExample1InvalidTca.txt").read_bytes()
    assert _reason(content) == "a.cdm line 5: TCA: expected a date that exists, got 2010-04-31"


@pytest.mark.parametrize("name", ["CDMExample_issue_940.txt", "CDMExample_issue_940.xml"])
def test_of_the_draft_of_version_2_the_keywords_of_version_1_are_read_and_the_others_are_kept(name: str) -> None:
    """The incomplete rows of its second covariance, too."""
    message = read_cdm(real_file(name).read_bytes())
    assert (message.version, message.miss_distance_m) == ("2.0", 715.0)
    assert ("CONJUNCTION_ID", "20220708T10hz SATELLITEA SATELLITEB") in message.others
    assert ("APPROACH_ANGLE", "180.0 [deg]") in message.others
    first, second = message.objects
    assert {("HBR", "2.5 [m]"), ("CDRG_DRG", "0.004 [m**4/kg**2]")} <= set(first.others)
    assert first.covariance.state[:2] == (41.42, -8.579)
    assert first.covariance.drag is None
    assert ("CSIG3EIGVEC3", "1 2 3 4 5 6 7 8 9 10 11 12") in second.others


def test_alfanos_test_case_has_states_covariances_and_the_hard_body_radius() -> None:
    """The figures as printed in case 1."""
    message = read_cdm(real_file("AlfanoTestCase01.cdm").read_bytes())
    assert message.hard_body_radius_m == 15.0
    assert message.objects[0].position_m == (153_446.765, 41_874_155.870, 0.0)
    assert message.objects[1].velocity_m_s == (3_066.864761, -11.363615, -0.000001)
    covariance = message.objects[0].covariance.matrix()
    assert (covariance[0, 0], covariance[1, 0], covariance[5, 5]) == (
        19.88970273925819,
        -352.4140813027809,
        3.3903900107678e-09,
    )
    assert message.objects[0].covariance.solar_radiation == (0.0,) * 7 + (1e-12,)


def test_an_operators_message_keeps_its_comments_in_their_parts() -> None:
    """Of the file of CSpOC: of the header, of the orbit determination, of the covariance."""
    message = read_cdm(real_file("ION_SCV8_vs_STARLINK_1233.txt").read_bytes())
    assert message.header_comments == ("=CDM_ID:519959713", "MEETS EMERGENCY CRITERIA")
    first = message.objects[0]
    assert first.comments == ("Screening Option = Covariance",)
    assert first.orbit_determination is not None
    assert first.orbit_determination.comments[1] == "Exclusion Volume Radius = 5.000000 [m]"
    assert first.covariance.comments[0].startswith("DCP Density Forecast Uncertainty")
    assert first.orbit_determination.recommended_span_s == 4.04 * 86_400


@pytest.mark.parametrize("text", [KVN, XML])
def test_text_bytes_gzip_and_other_line_ends_give_the_same_message(text: str) -> None:
    """Also with a byte order mark."""
    for content in (text, text.encode(), gzip.compress(text.encode()), "\ufeff" + text, text.replace("\n", "\r\n")):
        assert read_cdm(content) == MESSAGE


def test_a_day_of_the_year_is_a_date() -> None:
    """Both forms of CCSDS time."""
    assert read_cdm(_changed(KVN, r"^(TCA +=) .*$", r"\1 2016-251T12:00:00.123456789Z")).tca_ns == MESSAGE.tca_ns


def test_an_optional_number_without_a_value_is_absent() -> None:
    """With or without its unit's brackets missing. Its comment belongs to the next part."""
    message = read_cdm(_changed(KVN, r"^RELATIVE_SPEED +=.*$", "RELATIVE_SPEED ="))
    assert message.relative_speed_m_s is None
    assert message.relative_position_m == MESSAGE.relative_position_m


def test_unknown_keywords_are_kept_with_their_units() -> None:
    """In the object or the relative data in which they are, the same in both notations."""
    kvn = _changed(KVN, r"^(AREA_PC .*)$", r"\1\nHBR    = 2.5    [m]")
    xml = _changed(XML, r"^( *<AREA_PC .*)$", r'\1<HBR units="m">2.5</HBR>')
    assert read_cdm(kvn) == read_cdm(xml)
    assert read_cdm(kvn).objects[0].others == (("HBR", "2.5 [m]"),)


def test_an_incomplete_vector_is_kept_as_texts() -> None:
    """A field of the value is whole or None."""
    message = read_cdm(_changed(KVN, r"^RELATIVE_POSITION_T .*\n", ""))
    assert message.relative_position_m is None
    assert message.others == (("RELATIVE_POSITION_R", "27.4 [m]"), ("RELATIVE_POSITION_N", "711.8 [m]"))
    assert read_cdm(cdm_kvn(message)) == message == read_cdm(cdm_xml(message))


def _line(pattern: str, text: str = KVN) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if re.match(pattern, line))


TCA_LINE = _line("TCA ")
XML_TCA_LINE = _line(" *<TCA>", XML)


@pytest.mark.parametrize(
    ("pattern", "replacement", "reason"),
    [
        (r"^TCA .*", "TCA = 2016-12-31T23:59:60.5", f"line {TCA_LINE}: TCA: the time is within a leap second"),
        (r"^TCA .*", "TCA = 2016-13-01", f"line {TCA_LINE}: TCA: expected a time such as 2016-09-06T08:27:08.66"),
        (r"^TCA .*", "TCA =", f"line {TCA_LINE}: TCA: expected a time such as"),
        (r"^(MISS_DISTANCE .*)\[m\]", r"\1[km]", "MISS_DISTANCE: expected the unit m, got [km]"),
        (r"^MISS_DISTANCE .*", "MISS_DISTANCE = 7_15", "MISS_DISTANCE: expected a finite number, got '7_15'"),
        (r"^MISS_DISTANCE .*", "MISS_DISTANCE = nan", "MISS_DISTANCE: expected a finite number, got 'nan'"),
        (r"^MISS_DISTANCE .*", "MISS_DISTANCE = 1e999", "MISS_DISTANCE: expected a finite number, got '1e999'"),
        (r"^MISS_DISTANCE .*", "MISS_DISTANCE = -1 [m]", "MISS_DISTANCE: expected a number from 0 to inf, got -1"),
        (r"^COLLISION_PROBABILITY .*", "COLLISION_PROBABILITY = 4.8", "expected a number from 0 to 1, got 4.8"),
        (r"^OBS_USED .*", "OBS_USED = 1.5", "OBS_USED: expected a whole number, got '1.5'"),
        (r"^X .*", "X = 1e308 [km]", "X: expected a finite number, got '1e308'"),
        (
            r"^MISS_DISTANCE (.*)",
            r"MIS_DISTANCE \1",
            "no MISS_DISTANCE in the message; unknown are MIS_DISTANCE in line 10",
        ),
        (r"^CN_T .*\n", "", "no CN_T in OBJECT1"),
        (r"^(TCA .*)$", r"\1\n\1", f"line {TCA_LINE + 1}: TCA is there twice, first in line {TCA_LINE}"),
        (r"^OBJECT .*", "OBJECT = OBJECT2", "expected OBJECT = OBJECT1, got OBJECT = OBJECT2"),
        (r"^OBJECT .*\n", "", "OBJECT_DESIGNATOR does not belong to the message"),
        (r"^(X .*)$", r"\1\nTCA = 2016-09-07T12:00:00", "TCA does not belong to OBJECT1"),
        (r"^CCSDS_CDM_VERS .*", "CCSDS_CDM_VERS = 3.0", "line 1: CCSDS_CDM_VERS: expected 1.0 or 2.0, got '3.0'"),
        (r"^CCSDS_CDM_VERS .*\n", "", "expected CCSDS_CDM_VERS as the first keyword"),
        (
            r"^TCA .*",
            "TCA 2016-09-07T12:00:00",
            f"line {TCA_LINE}: expected KEYWORD = value, got 'TCA 2016-09-07T12:00:00'",
        ),
        (
            r"^ORIGINATOR .*",
            "ORIGINATOR = \x07",
            "ORIGINATOR: a text must be one line of printable characters, got '\\x07'",
        ),
    ],
)
def test_a_bad_line_is_rejected_with_its_number_and_the_reason(pattern: str, replacement: str, reason: str) -> None:
    """One sentence that begins with the file."""
    found = _reason(_changed(KVN, pattern, replacement))
    assert found.startswith("a.cdm line ")
    assert reason in found


def test_a_truncated_message_names_what_it_lacks() -> None:
    """Within the second object, and before it."""
    assert "in OBJECT2" in _reason(KVN[: KVN.rindex("CT_T")])
    assert "expected OBJECT = OBJECT1 and OBJECT = OBJECT2, got 1 of them" in _reason(KVN[: KVN.rindex("OBJECT  ")])


@pytest.mark.parametrize(
    ("pattern", "replacement", "reason"),
    [
        (
            r"^<cdm",
            '<!DOCTYPE cdm [<!ENTITY a "b">]>\n<cdm',
            "line 2: a document type declaration (<!DOCTYPE cdm>) is not allowed",
        ),
        (r"</TCA>", "</TCB>", f"line {XML_TCA_LINE}: not XML: mismatched tag"),
        (r"</TCA>", "", "expected an element, got '2016-09-07T12:00:00.123456789' before <MISS_DISTANCE>"),
        (r"</TCA>", "</TCA>text", f"line {XML_TCA_LINE + 1}: expected an element, got 'text' before <MISS_DISTANCE>"),
        (r"</relativeMetadataData>", "text</relativeMetadataData>", "expected an element, got 'text'"),
        (r'units="m">715', 'units="km">715', "MISS_DISTANCE: expected the unit m, got [km]"),
        (r"</cdm>", "</cdm><cdm/>", "not XML: junk after document element"),
        (r"version=\"1.0\">$", 'version="1.1">', "CCSDS_CDM_VERS: expected 1.0 or 2.0, got '1.1'"),
    ],
)
def test_bad_xml_is_rejected_with_its_line_and_the_reason(pattern: str, replacement: str, reason: str) -> None:
    """A document type declaration is not processed: there are no entities to expand."""
    found = _reason(_changed(XML, pattern, replacement))
    assert reason in found


def test_xml_of_another_message_is_rejected() -> None:
    """By its root element; two messages in one file, too: a message is read alone."""
    assert _reason("<omm/>") == "a.cdm line 1: expected <cdm>, got <omm>"
    body = XML[XML.index("<cdm") :]
    assert read_cdm(f"\n<ndm>{body}</ndm>") == MESSAGE
    assert "expected one message, got a second one" in _reason(f"<ndm>{body}{body}</ndm>")


def test_content_beyond_the_bound_is_rejected_before_it_is_parsed() -> None:
    """Also what a small gzip file inflates to; a broken gzip file is named as such."""
    large = KVN + "COMMENT a\n" * (MAX_CDM_BYTES // 10)
    for content in (large, gzip.compress(large.encode())):
        assert _reason(content).startswith(f"a.cdm: expected one message of at most {MAX_CDM_BYTES} bytes, got ")
    assert _reason(gzip.compress(KVN.encode())[:-9]).startswith("a.cdm: the gzip file is ")
    assert _reason(b"") == "a.cdm line 1: expected CCSDS_CDM_VERS as the first keyword"
    assert _reason(b"\xff\xfe") == "a.cdm line 1: not UTF-8: invalid start byte"


def test_the_rejected_content_is_in_the_error() -> None:
    """Whole, for the dead-letter store."""
    with pytest.raises(MalformedFrame) as caught:
        read_cdm(b"nonsense")
    assert caught.value.frame == b"nonsense"
    assert FIRST.name in KVN


@pytest.mark.parametrize("encoding", ["nonsense", "utf-7", "shift_jis", "base64"])
def test_an_encoding_that_is_not_read_is_a_plain_error(encoding: str) -> None:
    """Which the document declares; Latin 1 is read."""
    assert "not XML" in _reason(XML.replace("UTF-8", encoding, 1).encode())
    assert read_cdm(XML.replace("UTF-8", "ISO-8859-1", 1).replace("NASA", "Å", 1).encode("latin-1")).message_for == "Å"


@given(data=st.data())
@settings(max_examples=examples(200))
def test_damaged_content_is_a_message_or_malformed_and_no_other_error(data: st.DataObject) -> None:
    """Bytes replaced, removed and repeated in either notation."""
    content = bytearray(data.draw(st.sampled_from([KVN, XML])).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.integers(0, 40))
        content[start:end] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"<", b"=", b"1e400", b"[m]", b"&#x0;"])
        )
    with suppress(MalformedFrame):
        read_cdm(bytes(content))


def test_the_example_of_the_page_reads_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs as it is printed there."""
    page = (ROOT / "docs" / "cdm.md").read_text(encoding="utf-8")
    (tmp_path / "message.cdm").write_text(KVN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert f"{MESSAGE.tca_ns} 715.123456 15.0\nISS (ZARYA) EME2000 (2570097.065, " in capsys.readouterr().out
