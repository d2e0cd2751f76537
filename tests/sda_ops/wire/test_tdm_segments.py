"""TDM files: segments, KVN and XML notation, damaged and truncated content, and the real messages."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sda_ops.records.observation import RadarTarget, Uncertainty
from sda_ops.wire.tdm import TdmConventions, decode, is_tdm
from tests.sda_ops.wire.tdm_texts import (
    A_HUNDRED_METRES_PER_SECOND,
    C_M_S,
    DATA,
    DIRECTION,
    EISCAT,
    INGEST,
    PLAIN,
    RADAR,
    TELESCOPE,
    good,
    kvn,
    radar_of,
    real,
    reasons_of,
    segment,
    xml,
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"MODE": "SINGLE_DIFF"}, "expected MODE SEQUENTIAL, got SINGLE_DIFF"),
        ({"PATH": "1,2,3"}, "expected a PATH of one site and one object, such as 1,2,1 or 2,1, got 1,2,3"),
        ({"PATH": "1,2,3,2,1"}, "expected a PATH of one site and one object, such as 1,2,1 or 2,1, got 1,2,3,2,1"),
        ({"PATH": "1,1"}, "expected a PATH of one site and one object, such as 1,2,1 or 2,1, got 1,1"),
        ({"PATH": "1"}, "expected a PATH of one site and one object, such as 1,2,1 or 2,1, got 1"),
        ({"PATH": "3,2,3"}, "expected PARTICIPANT_3, the site at the end of PATH, got none"),
        ({"TIME_SYSTEM": "TDB"}, "expected TIME_SYSTEM UTC, TAI or GPS, got TDB"),
        ({"TIMETAG_REF": "BOUNCE"}, "expected TIMETAG_REF RECEIVE or TRANSMIT, got BOUNCE"),
    ],
)
def test_a_segment_with_other_metadata_is_rejected_whole(changes: dict[str, str], reason: str) -> None:
    """With one reason and all its bytes; the segments around it are read, and each is a track of its own."""
    parts = [segment(RADAR, DATA[0]), segment(RADAR | changes, *DATA), segment(RADAR, *DATA)]
    content = ("CCSDS_TDM_VERS = 2.0\n" + "\n".join(parts)).encode()
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert malformed.reason == f"TDM line 15: segment 2: {reason}"
    assert malformed.frame == parts[1].encode()
    assert [o.track_id for o in observations] == [f"tdm-HILL@2016-09-06T12:00:00#{n}" for n in (1, 3)]


@pytest.mark.parametrize("missing", ["PATH", "PARTICIPANT_1", "TIME_SYSTEM"])
def test_required_metadata_must_be_present(missing: str) -> None:
    """There are no defaults for it."""
    (reason,) = reasons_of(kvn({k: v for k, v in RADAR.items() if k != missing}, *DATA))
    assert missing in reason
    assert reason.endswith("got none")


def test_data_without_metadata_are_rejected() -> None:
    """They do not belong to the segment before them either."""
    content = kvn(RADAR, DATA[0]) + f"DATA_START\n{DATA[1]}\nDATA_STOP\n".encode()
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 1
    assert malformed.reason == "TDM line 14: segment 2: expected MODE SEQUENTIAL, got none"


def test_a_segment_without_usable_entries_is_rejected() -> None:
    """The reason lists its keywords."""
    assert reasons_of(kvn({}, "CLOCK_BIAS = 2016-09-06T12:00:00 1e-6")) == [
        "TDM line 2: no usable entries in segment 1: CLOCK_BIAS"
    ]
    assert reasons_of(kvn(RADAR)) == ["TDM line 2: no usable entries in segment 1: no data"]


def test_comments_tabs_and_line_ends_do_not_matter() -> None:
    """A byte-order mark does not matter either."""
    plain = kvn(RADAR, *DATA)
    variant = b"\xef\xbb\xbf" + plain.replace(b"DATA_START\n", b"\r\nDATA_START\r\n\tCOMMENT RANGE = 7\r\n\r\n")
    variant = variant.replace(b"RANGE = 2016-09-06T12:00:00 ", b"\tRANGE\t=\t2016-09-06T12:00:00\t  ")
    assert good(variant) == good(plain)
    assert is_tdm(variant)


def test_a_line_without_an_assignment_costs_only_itself() -> None:
    """In the data, and in the metadata."""
    content = kvn(RADAR, *DATA).replace(b"MODE =", b"what is this\nMODE =").replace(b"ANGLE_1", b"and this\nANGLE_1")
    observations, malformed = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 1
    assert [(each.reason, each.frame) for each in malformed] == [
        ("TDM line 6: expected KEYWORD = value, got 'what is this'", b"what is this\n"),
        ("TDM line 15: expected KEYWORD = value, got 'and this'", b"and this\n"),
    ]


def test_a_truncated_file_keeps_its_complete_entries() -> None:
    """A last number without a line end may have lost digits, and is not read."""
    content = kvn(RADAR, *(f"RANGE = 2016-09-06T12:00:0{n} 0.0123" for n in range(3)))
    cut = content[: content.index(b"DATA_STOP")]
    for truncated, whole in ((cut, 3), (cut[:-1], 2), (cut[:-3], 2)):
        observations, malformed = decode(truncated, PLAIN, ingest_timestamp=INGEST)
        assert len(observations) == whole
        assert [each.reason for each in malformed] == ["TDM line 14: the file ends within the data of a segment"]
    observations, _ = decode(cut + b"COMMENT truncated he", PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 3


def test_truncated_xml_keeps_its_complete_observations() -> None:
    """The reason is expat's, at its line."""
    content = xml(RADAR, *(f"RANGE = 2016-09-06T12:00:0{n} 0.01" for n in range(3)))
    observations, (malformed,) = decode(content[: content.rindex(b"</observation>")], PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 2
    assert malformed.reason == "TDM line 16: not XML: no element found"
    assert malformed.frame.startswith(b"<observation>")


def test_xml_that_declares_entities_is_rejected() -> None:
    """So that they cannot expand to gigabytes."""
    content = b'<!DOCTYPE tdm [<!ENTITY a "ha">]>' + xml(RADAR, *DATA)
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == "TDM: a document type declaration is not allowed"
    assert malformed.frame == content


def test_an_xml_observation_with_a_bad_number_is_kept_whole() -> None:
    """The frame is its element; two values under one epoch are two entries."""
    content = xml(RADAR, "RANGE = 2016-09-06T12:00:00 x")
    _, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert malformed.frame == b"<observation><EPOCH>2016-09-06T12:00:00</EPOCH><RANGE>x</RANGE></observation>"
    both = content.replace(b"<RANGE>x</RANGE>", b"<RANGE>0.01</RANGE><DOPPLER_INSTANTANEOUS>1</DOPPLER_INSTANTANEOUS>")
    assert radar_of(both) == RadarTarget(C_M_S * 0.005, 1_000.0)
    without_a_range = both.replace(b"<RANGE>0.01</RANGE>", b"<ANGLE_1>90</ANGLE_1><ANGLE_2>45</ANGLE_2>")
    _, (malformed,) = decode(without_a_range, PLAIN, ingest_timestamp=INGEST)
    assert malformed.frame.count(b"<observation>") == 1


def test_an_xml_observation_without_an_epoch_is_malformed() -> None:
    """It does not have the time of the one before it."""
    content = xml(RADAR, *DATA[:2]).replace(b"<EPOCH>2016-09-06T12:00:00</EPOCH><DOPPLER", b"<DOPPLER")
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005)]
    assert malformed.reason.endswith("or 2016-250T08:27:08.66, got ''")


def test_an_xml_segment_with_other_metadata_is_rejected_whole() -> None:
    """Its frame is the element, from the first byte to the last; the segment after it is read."""
    content = xml(RADAR, *DATA)
    element = content[content.index(b"<segment>") : content.index(b"</body>")]
    other = element.replace(b"SEQUENTIAL", b"SINGLE_DIFF")
    observations, (malformed,) = decode(content.replace(element, other + element), PLAIN, ingest_timestamp=INGEST)
    assert [o.track_id for o in observations] == ["tdm-HILL@2016-09-06T12:00:00#2"]
    assert malformed.reason == "TDM line 4: segment 1: expected MODE SEQUENTIAL, got SINGLE_DIFF"
    assert malformed.frame == other


def test_a_tdm_is_detected() -> None:
    """By its first line, or its root element."""
    assert is_tdm(kvn(RADAR))
    assert is_tdm(xml(RADAR))
    assert not is_tdm(b"CCSDS_OEM_VERS = 2.0\n")
    assert not is_tdm(b"<oem></oem>")
    assert not is_tdm(b"37386 11 014A   4172 E 20190501213235845 17 25 2008223+702585 37 S")


_LINES = st.sampled_from(
    [
        *DATA,
        *DIRECTION,
        "META_START",
        "META_STOP",
        "DATA_START",
        "DATA_STOP",
        "COMMENT x",
        "",
        "RANGE = x",
        "=",
        "RANGE =",
    ]
    + [f"{keyword} = {value}" for keyword, value in (TELESCOPE | RADAR).items()]
)


@given(st.lists(_LINES | st.text(max_size=40), max_size=40))
@example(["META_STOP", "DATA_START", "RANGE = 2016-09-06T12:00:00 0.01"])
@example(["META_STOP", "DATA_START"])
def test_no_text_raises_an_error(lines: list[str]) -> None:
    """Statements in any order and any other text give observations or reasons."""
    content = "\n".join(["CCSDS_TDM_VERS = 2.0", *lines]).encode(errors="replace")
    observations, malformed = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert len({o.track_id for o in observations}) <= content.count(b"META_START") + content.count(b"DATA_START")
    assert all(each.reason.startswith("TDM line ") for each in malformed)


def test_data_after_a_second_end_of_metadata_belong_to_no_segment() -> None:
    """They are rejected because they have no metadata, and are not part of the segment before."""
    whole = kvn(RADAR, *DATA)
    second = b"META_STOP\nDATA_START\n" + whole.partition(b"DATA_START\n")[2]
    alone, _ = decode(whole, PLAIN, ingest_timestamp=INGEST)
    observations, malformed = decode(whole + second, PLAIN, ingest_timestamp=INGEST)
    assert observations == alone
    assert len(malformed) == 1


@given(st.integers(0, 2_000), st.binary(max_size=4))
def test_no_damage_to_xml_raises_an_error(at: int, damage: bytes) -> None:
    """Bytes overwritten anywhere cost their own element, and at most those after it."""
    content = xml(RADAR, *DATA)
    decode(content[:at] + damage + content[at + len(damage) :], PLAIN, ingest_timestamp=INGEST)


def test_every_real_message_gives_observations_or_reasons() -> None:
    """Orekit's 15 (CS-SI/Orekit): most are of spacecraft ranging and clocks. Both notations of a message give the same."""
    folder = real("ccsds/tdm")
    outcome = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        assert is_tdm(content)
        observations, malformed = decode(content, PLAIN, ingest_timestamp=INGEST)
        outcome[path.name] = (len(observations), [each.reason.split(": ", 1)[1] for each in malformed])
    assert all(count or reasons for count, reasons in outcome.values())
    for name in (name for name in outcome if name.endswith(".xml")):
        assert outcome[name] == outcome[name.replace(".xml", ".txt")]
    assert outcome["TDMExample8.txt"] == (
        3,
        [
            "DOPPLER_INTEGRATED: expected INTEGRATION_REF MIDDLE, the time of its mean rate, got END",
            "expected ANGLE_TYPE AZEL or RADEC, got XSYE",
            "DOPPLER_INTEGRATED: expected INTEGRATION_REF MIDDLE, the time of its mean rate, got END",
        ],
    )
    assert outcome["TDMExample4.txt"] == (0, ["expected RANGE_UNITS s or km, got RU"])
    assert outcome["TDMExample15.txt"][0] == 0
    assert len(outcome["TDMExample15.txt"][1]) == 3


def test_eiscats_track_of_envisat_is_read_with_its_signs() -> None:
    """913 points of EISCAT UHF (danielk333/SORTS): ranges of 907 to 1,365 km, and rates that are the derivative of range.

    The slope of range over half a second, with 0.15 km of scatter, is within 100 m/s of the mean rate in each of 31 windows;
    with the file's own sign the difference is kilometres per second.
    """
    conventions = TdmConventions(
        doppler_sign=-1, uncertainty=Uncertainty(sigma_range_m=100.0, sigma_range_rate_m_s=20.0)
    )
    observations = good(real(EISCAT).read_bytes(), conventions)
    assert len(observations) == len({o.observation_id for o in observations}) == 913
    targets = [o.target for o in observations if isinstance(o.target, RadarTarget)]
    time_s = np.array([(o.sensor_timestamp - observations[0].sensor_timestamp) / 1e9 for o in observations])
    range_m = np.array([t.range_m for t in targets])
    rate_m_s = np.array([t.range_rate_m_s for t in targets])
    assert all(a.sensor_timestamp < b.sensor_timestamp for a, b in pairwise(observations))
    assert {(t.azimuth_rad, t.elevation_rad) for t in targets} == {(None, None)}
    assert observations[0].uncertainty == Uncertainty(sigma_range_m=100.0, sigma_range_rate_m_s=20.0)
    assert 900_000 < range_m.min() < range_m.max() < 1_400_000
    windows = [slice(at, at + 25) for at in range(0, 900, 25) if time_s[at + 24] - time_s[at] < 1.0]
    assert len(windows) == 31
    slopes_m_s = np.array([np.polyfit(time_s[window], range_m[window], 1)[0] for window in windows])
    means_m_s = np.array([rate_m_s[window].mean() for window in windows])
    assert np.abs(slopes_m_s - means_m_s).max() < A_HUNDRED_METRES_PER_SECOND
    assert np.median(np.abs(slopes_m_s + means_m_s)) > 5_000.0
    assert observations[0].sensor_timestamp == 1_473_150_428_660_000_000 + round(0.009107743750e9)
    assert {o.track_id for o in observations} == {"tdm-EISCAT_UHF_TROMSO@2016-09-06T08:27:08.660000#1"}
    assert "009A" not in repr(observations)
