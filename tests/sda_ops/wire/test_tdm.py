from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, Uncertainty
from sda_ops.wire.tdm import TdmConventions, decode, is_tdm

INGEST = 1_790_000_000_000_000_001
C_M_S = 299_792_458.0
NOON_NS = 1_473_163_200_000_000_000  # 2016-09-06T12:00:00Z
SIGMAS = Uncertainty(sigma_range_m=30.0, sigma_range_rate_m_s=2.0, sigma_angle_rad=0.001)
PLAIN = TdmConventions(uncertainty=SIGMAS)

RADAR = {
    "TIME_SYSTEM": "UTC",
    "PARTICIPANT_1": "HILL",
    "PARTICIPANT_2": "2002-009A",
    "MODE": "SEQUENTIAL",
    "PATH": "1,2,1",
    "RANGE_UNITS": "s",
    "ANGLE_TYPE": "AZEL",
}
TELESCOPE = RADAR | {"PATH": "2,1", "ANGLE_TYPE": "RADEC", "REFERENCE_FRAME": "EME2000"}
DATA = (
    "RANGE = 2016-09-06T12:00:00 0.01",
    "DOPPLER_INSTANTANEOUS = 2016-09-06T12:00:00 -1.5",
    "ANGLE_1 = 2016-09-06T12:00:00 90",
    "ANGLE_2 = 2016-09-06T12:00:00 45",
)
DIRECTION = ("ANGLE_1 = 2016-09-06T12:00:00 200", "ANGLE_2 = 2016-09-06T12:00:00 -30")

A_HUNDRED_METRES_PER_SECOND = 100.0

EISCAT = "eiscat_envisat_2016-09-06/2002-009A-2016-09-06_08-27-08.tdm"


def real(path: str) -> Path:
    root = Path(os.environ.get("SDA_DATA_DIR", Path(__file__).parents[3] / "../shared/data"))
    if not (root / path).exists():
        pytest.skip(f"real data absent: no {root / path} (set SDA_DATA_DIR)")
    return root / path


def segment(metadata: dict[str, str], *data: str) -> str:
    head = "".join(f"{keyword} = {value}\n" for keyword, value in metadata.items())
    return f"META_START\n{head}META_STOP\nDATA_START\n" + "".join(f"{line}\n" for line in data) + "DATA_STOP\n"


def kvn(metadata: dict[str, str], *data: str) -> bytes:
    return ("CCSDS_TDM_VERS = 2.0\n" + segment(metadata, *data)).encode()


def xml(metadata: dict[str, str], *data: str) -> bytes:
    head = "".join(f"<{keyword}>{value}</{keyword}>\n" for keyword, value in metadata.items())
    split = (line.replace("=", " ").split() for line in data)
    body = "".join(f"<observation><EPOCH>{t}</EPOCH><{k}>{v}</{k}></observation>\n" for k, t, v in split)
    return (
        '<?xml version="1.0"?>\n<tdm id="CCSDS_TDM_VERS" version="2.0">\n<header><ORIGINATOR>us</ORIGINATOR></header>\n<body>'
        f"<segment>\n<metadata><COMMENT>a comment</COMMENT>\n{head}</metadata>\n<data>{body}</data>\n</segment></body></tdm>\n"
    ).encode()


def good(content: bytes, conventions: TdmConventions = PLAIN) -> list[Observation]:
    observations, malformed = decode(content, conventions, ingest_timestamp=INGEST)
    assert [str(each) for each in malformed] == []
    return observations


def decode_one(content: bytes, conventions: TdmConventions = PLAIN) -> Observation:
    (observation,) = good(content, conventions)
    return observation


def radar_of(content: bytes, conventions: TdmConventions = PLAIN) -> RadarTarget:
    target = decode_one(content, conventions).target
    assert isinstance(target, RadarTarget)
    return target


def reasons_of(content: bytes, conventions: TdmConventions = PLAIN) -> list[str]:
    _, malformed = decode(content, conventions, ingest_timestamp=INGEST)
    return [each.reason for each in malformed]


@pytest.mark.parametrize("notation", [kvn, xml])
def test_the_entries_of_a_time_tag_are_one_observation(notation: Callable[..., bytes]) -> None:
    """Range, rate and angles arrive in SI units with their sigmas; the object's name does not arrive, in any field."""
    observation = decode_one(notation(RADAR, *DATA))
    assert observation == Observation(
        observation.observation_id,
        "tdm-HILL",
        "radar",
        NOON_NS,
        INGEST,
        RadarTarget(C_M_S * 0.005, -1_500.0, math.pi / 2, math.pi / 4),
        SIGMAS,
        "tdm-HILL@2016-09-06T12:00:00#1",
    )
    assert "2002-009A" not in repr(observation)


def test_both_notations_of_a_message_give_the_same_observations() -> None:
    """The same ids, too, where times and numbers are written alike."""
    assert good(kvn(RADAR, *DATA)) == good(xml(RADAR, *DATA))


def test_what_was_not_measured_is_absent_and_so_is_its_sigma() -> None:
    """A range alone is an observation."""
    observation = decode_one(kvn(RADAR, DATA[0]))
    assert observation.target == RadarTarget(C_M_S * 0.005)
    assert observation.uncertainty == Uncertainty(sigma_range_m=30.0)


def test_entries_are_grouped_by_time_wherever_they_stand() -> None:
    """All ranges first and all rates then, as some write them, make the same pairs; order is that of first mention."""
    times = ["2016-09-06T12:00:02", "2016-250T12:00:01.000"]
    ranges = [f"RANGE = {time} 0.01" for time in times]
    rates = [f"DOPPLER_INSTANTANEOUS = {time} {n}" for n, time in enumerate(reversed(times), 1)]
    observations = good(kvn(RADAR, *ranges, *rates))
    assert [o.sensor_timestamp - NOON_NS for o in observations] == [2_000_000_000, 1_000_000_000]
    assert [o.target.range_rate_m_s for o in observations if isinstance(o.target, RadarTarget)] == [2_000.0, 1_000.0]


def test_right_ascension_and_declination_are_a_telescopes() -> None:
    """Source kind optical, radians, the angle's sigma and no other; the site is the path's end."""
    observation = decode_one(kvn(TELESCOPE, *DIRECTION))
    assert (observation.source_kind, observation.source_id) == ("optical", "tdm-HILL")
    assert observation.target == OpticalTarget(math.radians(200), math.radians(-30))
    assert observation.uncertainty == Uncertainty(sigma_angle_rad=0.001)


def test_a_site_may_be_any_participant() -> None:
    """It is the one at the end of the path."""
    swapped = RADAR | {"PATH": "2,1,2", "PARTICIPANT_1": "2002-009A", "PARTICIPANT_2": "HILL"}
    assert decode_one(kvn(swapped, *DATA)).source_id == "tdm-HILL"


def test_a_site_has_the_name_that_the_feed_gives_it() -> None:
    """In the source and in the track; another site's is not touched."""
    observation = decode_one(kvn(RADAR, *DATA), TdmConventions(source_ids={"HILL": "radar-9", "VALLEY": "radar-8"}))
    assert observation.source_id == "radar-9"
    assert observation.track_id == "radar-9@2016-09-06T12:00:00#1"
    assert observation.uncertainty == Uncertainty()


# Times.


@pytest.mark.parametrize(
    ("tag", "ns"),
    [
        ("2016-09-06T12:00:00", NOON_NS),
        ("2016-09-06T12:00:00.Z", NOON_NS),
        ("2016-250T12:00:00Z", NOON_NS),
        ("2016-09-06T12:00:00.1234567899", NOON_NS + 123_456_789),
        ("2016-09-06T12:00:00.00000001", NOON_NS + 10),
        ("1969-12-31T23:59:59.5", -500_000_000),
        ("2016-366T23:59:60", 1_483_228_800_000_000_000),
    ],
)
def test_a_time_is_read_to_the_nanosecond(tag: str, ns: int) -> None:
    """Calendar date or day of the year, with as many digits as there are; a leap second is the one after it."""
    assert decode_one(kvn(RADAR, f"RANGE = {tag} 0.01")).sensor_timestamp == ns


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("2016-02-30T12:00:00", "RANGE: day is out of range for month"),
        ("2015-366T12:00:00", "RANGE: expected a day of the year 2015, got 366"),
        ("2016-000T12:00:00", "RANGE: expected a day of the year 2016, got 0"),
        ("2016-09-06T24:00:00", "RANGE: expected a time of day, got 24:00:00"),
        ("2016-09-06T12:60:00", "RANGE: expected a time of day, got 12:60:00"),
        ("2016-09-06T12:00:61", "RANGE: expected a time of day, got 12:00:61"),
        ("0000-09-06T12:00:00", "RANGE: expected a year from 1678 to 2261, got 0"),
        ("noon", "RANGE: expected a time such as 2016-09-06T08:27:08.66 or 2016-250T08:27:08.66, got 'noon'"),
        ("2262-01-01T00:00:00", "RANGE: expected a year from 1678 to 2261, got 2262"),
        ("1677-01-01T00:00:00", "RANGE: expected a year from 1678 to 2261, got 1677"),
    ],
)
def test_what_is_no_time_says_why(tag: str, reason: str) -> None:
    """With the line; the entry's own bytes are kept."""
    observations, (malformed,) = decode(kvn(RADAR, f"RANGE = {tag} 0.01"), PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == f"TDM line 12: {reason}"
    assert malformed.frame == f"RANGE = {tag} 0.01\n".encode()


@pytest.mark.parametrize(
    "tag", ["1678-01-01T00:00:00", "2261-12-31T23:59:60", "2016-999T00:00:00", "9999-999T00:00:00"]
)
def test_the_ends_of_the_calendar_stop_nothing(tag: str) -> None:
    """What fits into 64 bits of nanoseconds is read, and what does not is malformed."""
    observations, malformed = decode(kvn(RADAR, f"RANGE = {tag} 0.01"), PLAIN, ingest_timestamp=INGEST)
    assert len(observations) + len(malformed) == 1
    assert all(-(2**63) <= o.sensor_timestamp < 2**63 for o in observations)
    assert bool(observations) == ("-999T" not in tag)


def test_a_range_beyond_all_times_is_refused() -> None:
    """With a tag of transmission its arrival would lie beyond 64 bits of nanoseconds."""
    content = kvn(RADAR | {"TIMETAG_REF": "TRANSMIT"}, "RANGE = 2016-09-06T12:00:00 1e300")
    assert reasons_of(content) == ["TDM line 13: expected an arrival before 2262: the range is no range"]


def test_tai_before_leap_seconds_is_refused() -> None:
    """There the difference to UTC was no whole number of seconds."""
    assert reasons_of(kvn(RADAR | {"TIME_SYSTEM": "TAI"}, "RANGE = 1971-12-31T00:00:00 0.01")) == [
        "TDM line 12: RANGE: expected TIME_SYSTEM UTC before 1972: there were no leap seconds"
    ]


@pytest.mark.parametrize(
    ("time_system", "tag", "utc_ns"),
    [
        ("TAI", "2016-09-06T12:00:36", NOON_NS),
        ("GPS", "2016-09-06T12:00:17", NOON_NS),
        ("gps", "2016-09-06T12:00:17", NOON_NS),
        # Around the leap second at the end of 2016: 36 s until it, 37 s from 2017 on.
        ("TAI", "2017-01-01T00:00:35.5", 1_483_228_799_500_000_000),
        ("TAI", "2017-01-01T00:00:37", 1_483_228_800_000_000_000),
        ("GPS", "2017-01-01T00:00:18", 1_483_228_800_000_000_000),
    ],
)
def test_tai_and_gps_become_utc(time_system: str, tag: str, utc_ns: int) -> None:
    """By the leap seconds of the tag's own day (IERS Bulletin C 52)."""
    assert decode_one(kvn(RADAR | {"TIME_SYSTEM": time_system}, f"RANGE = {tag} 0.01")).sensor_timestamp == utc_ns


def test_a_tag_of_transmission_becomes_the_time_of_arrival() -> None:
    """Later by the round trip: 10 ms here, and as long for a range in kilometres."""
    at_transmission = RADAR | {"TIMETAG_REF": "TRANSMIT"}
    assert decode_one(kvn(at_transmission, *DATA)).sensor_timestamp == NOON_NS + 10_000_000
    assert decode_one(kvn(RADAR | {"TIMETAG_REF": "RECEIVE"}, *DATA)).sensor_timestamp == NOON_NS
    in_km = at_transmission | {"RANGE_UNITS": "km"}
    (observation,) = good(kvn(in_km, f"RANGE = 2016-09-06T12:00:00 {C_M_S * 0.01 / 1000!r}"))
    assert observation.sensor_timestamp == NOON_NS + 10_000_000
    one_leg = at_transmission | {"PATH": "2,1"}
    assert decode_one(kvn(one_leg, *DATA)).sensor_timestamp == NOON_NS + 10_000_000


def test_a_tag_of_transmission_needs_a_range() -> None:
    """Without one nobody knows when the signal arrived."""
    (reason,) = reasons_of(kvn(TELESCOPE | {"TIMETAG_REF": "TRANSMIT"}, *DIRECTION))
    assert reason.endswith("TIMETAG_REF TRANSMIT without a RANGE: when the signal arrived is not known")


# Numbers.


@pytest.mark.parametrize(
    ("changes", "value", "round_trip", "range_m"),
    [
        ({"RANGE_UNITS": "s"}, "0.01", True, C_M_S * 0.005),
        ({"RANGE_UNITS": "S"}, "0.01", False, C_M_S * 0.01),
        ({"RANGE_UNITS": "s", "PATH": "2,1"}, "0.01", True, C_M_S * 0.01),
        ({"RANGE_UNITS": "km"}, "1200.5", False, 1_200_500.0),
        ({"RANGE_UNITS": "km"}, "1200.5", True, 600_250.0),
        ({"RANGE_UNITS": "km", "PATH": "2,1"}, "1200.5", True, 1_200_500.0),
        ({"RANGE_UNITS": "km", "RANGE_MODULUS": "1"}, "1200.5", False, 1_200_500.0),
        ({"RANGE_MODULUS": "2.56"}, "0.01", True, C_M_S * 0.005),
        ({"TRANSMIT_DELAY_1": "0.0"}, "0.01", True, C_M_S * 0.005),
    ],
)
def test_a_range_is_one_way_metres(changes: dict[str, str], value: str, round_trip: bool, range_m: float) -> None:  # noqa: FBT001 - a column of the table
    """Whether the numbers are of the whole path is for the feed to say; on a path of one leg there is no difference."""
    conventions = TdmConventions(range_is_round_trip=round_trip)
    target = radar_of(kvn(RADAR | changes, f"RANGE = 2016-09-06T12:00:00 {value}"), conventions)
    assert target.range_m == pytest.approx(range_m, rel=1e-15)


def test_a_range_without_units_is_in_kilometres() -> None:
    """The standard's default (3.5.2.7)."""
    metadata = {keyword: value for keyword, value in RADAR.items() if keyword != "RANGE_UNITS"}
    assert radar_of(kvn(metadata, "RANGE = 2016-09-06T12:00:00 2401")).range_m == 1_200_500.0


def test_whether_a_rate_is_of_the_whole_path_is_for_the_feed_to_say() -> None:
    """It is halved there and back, and never on a path of one leg."""
    whole_path = replace(PLAIN, doppler_is_round_trip=True)
    assert radar_of(kvn(RADAR, *DATA), whole_path).range_rate_m_s == -750.0
    assert radar_of(kvn(RADAR | {"PATH": "2,1"}, *DATA), whole_path).range_rate_m_s == -1_500.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RANGE_UNITS": "RU"}, "expected RANGE_UNITS s or km, got RU"),
        ({"RANGE_MODULUS": "0.001"}, "RANGE is ambiguous: its modulus is 149.896 km, one way"),
        ({"RANGE_UNITS": "km", "RANGE_MODULUS": "49999"}, "RANGE is ambiguous: its modulus is 24999.5 km, one way"),
        ({"RECEIVE_DELAY_1": "7e-5"}, "RANGE with RECEIVE_DELAY_1 = 7e-5: nobody says whether that has been taken off"),
        ({"TRANSMIT_DELAY_2": "7e-5"}, "RANGE with TRANSMIT_DELAY_2 = 7e-5: nobody says whether that has been taken off"),
        ({"RANGE_MODULUS": "inf"}, "expected a finite number, got 'inf'"),
        ({"CORRECTION_RANGE": "x"}, "expected a finite number, got 'x'"),
    ],
)  # fmt: skip
def test_a_range_that_would_be_a_guess_is_refused(changes: dict[str, str], reason: str) -> None:
    """Once for the whole segment, with the bytes of every range in it."""
    data = ["RANGE = 2016-09-06T12:00:00 0.01", "RANGE = 2016-09-06T12:00:01 0.01"]
    metadata = RADAR | changes
    observations, (malformed,) = decode(kvn(metadata, *data), PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == f"TDM line {5 + len(metadata)} and 1 more: {reason}"
    assert malformed.frame == "".join(f"{line}\n" for line in data).encode()


def test_the_sign_of_doppler_is_the_feeds() -> None:
    """Positive is receding, unless the feed says that it is approaching; corrections turn with it."""
    approaching = replace(PLAIN, doppler_sign=-1)
    assert radar_of(kvn(RADAR, *DATA)).range_rate_m_s == -1_500.0
    assert radar_of(kvn(RADAR, *DATA), approaching).range_rate_m_s == 1_500.0
    corrected = RADAR | {"CORRECTION_DOPPLER": "0.5", "CORRECTIONS_APPLIED": "NO"}
    assert radar_of(kvn(corrected, *DATA), approaching).range_rate_m_s == 1_000.0


def test_a_mean_rate_is_taken_where_its_time_is_that_of_the_tag() -> None:
    """In the middle of its interval, or over none; else the range stays, without it."""
    data = (DATA[0], "DOPPLER_INTEGRATED = 2016-09-06T12:00:00 2.5")
    middle = RADAR | {"INTEGRATION_INTERVAL": "1.0", "INTEGRATION_REF": "MIDDLE"}
    assert radar_of(kvn(middle, *data)).range_rate_m_s == 2_500.0
    assert radar_of(kvn(RADAR | {"INTEGRATION_REF": "END"}, *data)).range_rate_m_s == 2_500.0
    assert radar_of(kvn(middle | {"INTEGRATION_REF": "END"}, *DATA)).range_rate_m_s == -1_500.0  # not of a mean
    observations, (malformed,) = decode(kvn(middle | {"INTEGRATION_REF": "END"}, *data), PLAIN, ingest_timestamp=INGEST)
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005)]
    assert malformed.reason == (
        "TDM line 15: DOPPLER_INTEGRATED: expected INTEGRATION_REF MIDDLE, the time of its mean rate, got END"
    )


@pytest.mark.parametrize(
    ("applied", "expected"),
    [
        ("NO", RadarTarget(C_M_S * 0.01, -1_000.0, math.radians(91), math.radians(43))),
        ("YES", RadarTarget(C_M_S * 0.005, -1_500.0, math.radians(90), math.radians(45))),
        ("yes", RadarTarget(C_M_S * 0.005, -1_500.0, math.radians(90), math.radians(45))),
    ],
)
def test_corrections_are_added_where_they_have_not_been(applied: str, expected: RadarTarget) -> None:
    """In the units of the data, each to its own component."""
    corrections = {
        "CORRECTION_RANGE": "0.01",
        "CORRECTION_DOPPLER": "0.5",
        "CORRECTION_ANGLE_1": "1",
        "CORRECTION_ANGLE_2": "-2",
        "CORRECTIONS_APPLIED": applied,
    }
    assert radar_of(kvn(RADAR | corrections, *DATA)) == expected


def test_a_correction_of_which_nobody_says_whether_it_was_applied_is_refused() -> None:
    """Unless it is none."""
    assert reasons_of(kvn(RADAR | {"CORRECTION_RANGE": "1"}, DATA[0])) == [
        "TDM line 13: CORRECTION_RANGE = 1: expected CORRECTIONS_APPLIED YES or NO, got none"
    ]
    assert radar_of(kvn(RADAR | {"CORRECTION_RANGE": "0.0"}, *DATA)).range_m == C_M_S * 0.005


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"REFERENCE_FRAME": "TOD"}, "ANGLE_TYPE RADEC: expected REFERENCE_FRAME EME2000 or ICRF, got TOD"),
        (
            {"CORRECTION_ABERRATION_YEARLY": "0.005", "CORRECTIONS_APPLIED": "NO"},
            "CORRECTION_ABERRATION_YEARLY is not applied to the angles, and not said for each of them",
        ),
        ({"ANGLE_TYPE": "XEYN"}, "expected ANGLE_TYPE AZEL or RADEC, got XEYN"),
    ],
)
def test_angles_of_another_kind_are_refused(changes: dict[str, str], reason: str) -> None:
    """Of date, along axes of an antenna, or with an aberration that is still to be taken off."""
    assert reasons_of(kvn(TELESCOPE | changes, *DIRECTION)) == [f"TDM line {13 + len(changes.keys() - TELESCOPE.keys())} and 1 more: {reason}"]  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "-inf", "", "1.0 2.0", "O.01"])
def test_what_is_no_number_costs_its_entry_only(value: str) -> None:
    """The other entries of the time tag are an observation without it."""
    observations, (malformed,) = decode(
        kvn(RADAR, DATA[0], f"DOPPLER_INSTANTANEOUS = 2016-09-06T12:00:00 {value}"), PLAIN, ingest_timestamp=INGEST
    )
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005)]
    assert malformed.reason == f"TDM line 13: DOPPLER_INSTANTANEOUS: expected a finite number, got {value!r}"


def test_a_radar_without_a_range_is_refused() -> None:
    """Rate and direction of a time tag go together to the malformed."""
    content = kvn(RADAR, *DATA[1:])
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == "TDM line 12 and 2 more: no RANGE at this time tag: a radar's observation needs one"
    assert malformed.frame == "".join(f"{line}\n" for line in DATA[1:]).encode()


def test_one_angle_is_no_direction() -> None:
    """It is malformed, and what else there is at its time stays."""
    observations, (malformed,) = decode(kvn(RADAR, DATA[0], DATA[3]), PLAIN, ingest_timestamp=INGEST)
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005)]
    assert malformed.reason == "TDM line 13: ANGLE_1 or ANGLE_2 without the other at its time tag"
    assert reasons_of(kvn(RADAR, DATA[2])) == ["TDM line 12: ANGLE_1 or ANGLE_2 without the other at its time tag"]


def test_no_record_holds_right_ascension_and_a_range() -> None:
    """Nor a rate. It is refused rather than torn apart."""
    for other in DATA[:2]:
        (reason,) = reasons_of(kvn(TELESCOPE, other, *DIRECTION))
        assert "expected right ascension and declination and nothing else" in reason


def test_a_second_value_for_the_same_time_is_refused() -> None:
    """The first stands; an instantaneous and a mean rate are two of one kind."""
    data = (*DATA[:2], "DOPPLER_INTEGRATED = 2016-09-06T12:00:00.000 7")
    observations, (malformed,) = decode(kvn(RADAR, *data), PLAIN, ingest_timestamp=INGEST)
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005, -1_500.0)]
    assert malformed.reason == "TDM line 14: DOPPLER_INTEGRATED: its time tag has a rate already"


def test_other_keywords_are_passed_over_and_unknown_ones_told() -> None:
    """A signal-to-noise ratio beside a range is no one's mistake; a keyword that the standard does not have is."""
    data = (DATA[0], "PC_N0 = 2016-09-06T12:00:00 30", "RCS = 2016-09-06T12:00:00 1")
    assert good(kvn(RADAR, *data))
    (reason,) = reasons_of(kvn(RADAR, *data, "RANGEE = 2016-09-06T12:00:00 0.01"))
    assert reason == "TDM line 15: 'RANGEE' is no data keyword of the standard"


# Segments.


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
def test_a_segment_that_is_not_ours_is_refused_whole(changes: dict[str, str], reason: str) -> None:
    """Its reason once, its bytes whole; the segments around it are read, and each is a track of its own."""
    parts = [segment(RADAR, DATA[0]), segment(RADAR | changes, *DATA), segment(RADAR, *DATA)]
    content = ("CCSDS_TDM_VERS = 2.0\n" + "\n".join(parts)).encode()
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert malformed.reason == f"TDM line 15: segment 2: {reason}"
    assert malformed.frame == parts[1].encode()
    assert [o.track_id for o in observations] == [f"tdm-HILL@2016-09-06T12:00:00#{n}" for n in (1, 3)]


@pytest.mark.parametrize("missing", ["MODE", "PATH", "PARTICIPANT_1", "TIME_SYSTEM"])
def test_what_a_segment_must_say_is_missed(missing: str) -> None:
    """Nothing is assumed for it."""
    (reason,) = reasons_of(kvn({k: v for k, v in RADAR.items() if k != missing}, *DATA))
    assert missing in reason
    assert reason.endswith("got none")


def test_data_without_metadata_are_refused() -> None:
    """They do not belong to the segment before, either."""
    content = kvn(RADAR, DATA[0]) + f"DATA_START\n{DATA[1]}\nDATA_STOP\n".encode()
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 1
    assert malformed.reason == "TDM line 14: segment 2: expected MODE SEQUENTIAL, got none"


def test_a_segment_without_anything_for_us_says_what_it_has() -> None:
    """Clocks, or nothing at all."""
    assert reasons_of(kvn({}, "CLOCK_BIAS = 2016-09-06T12:00:00 1e-6")) == [
        "TDM line 2: nothing to observe in segment 1: CLOCK_BIAS"
    ]
    assert reasons_of(kvn(RADAR)) == ["TDM line 2: nothing to observe in segment 1: no data"]


# Notation.


def test_comments_tabs_and_line_ends_do_not_matter() -> None:
    """Nor does a byte-order mark."""
    plain = kvn(RADAR, *DATA)
    dressed = b"\xef\xbb\xbf" + plain.replace(b"DATA_START\n", b"\r\nDATA_START\r\n\tCOMMENT RANGE = 7\r\n\r\n")
    dressed = dressed.replace(b"RANGE = 2016-09-06T12:00:00 ", b"\tRANGE\t=\t2016-09-06T12:00:00\t  ")
    assert good(dressed) == good(plain)
    assert is_tdm(dressed)


def test_a_line_that_is_no_statement_costs_only_itself() -> None:
    """In the data, and in the metadata."""
    content = kvn(RADAR, *DATA).replace(b"MODE =", b"what is this\nMODE =").replace(b"ANGLE_1", b"and this\nANGLE_1")
    observations, malformed = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 1
    assert [(each.reason, each.frame) for each in malformed] == [
        ("TDM line 6: expected KEYWORD = value, got 'what is this'", b"what is this\n"),
        ("TDM line 15: expected KEYWORD = value, got 'and this'", b"and this\n"),
    ]


def test_a_file_that_was_cut_off_keeps_what_is_certain() -> None:
    """A last number without its line's end may have lost digits, and is not read."""
    content = kvn(RADAR, *(f"RANGE = 2016-09-06T12:00:0{n} 0.0123" for n in range(3)))
    cut = content[: content.index(b"DATA_STOP")]
    for cut_off, whole in ((cut, 3), (cut[:-1], 2), (cut[:-3], 2)):
        observations, malformed = decode(cut_off, PLAIN, ingest_timestamp=INGEST)
        assert len(observations) == whole
        assert [each.reason for each in malformed] == ["TDM line 14: the file ends within the data of a segment"]
    observations, _ = decode(cut + b"COMMENT cut off he", PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 3


def test_xml_that_was_cut_off_keeps_what_is_certain() -> None:
    """Every observation that was closed; the reason is expat's, at its line."""
    content = xml(RADAR, *(f"RANGE = 2016-09-06T12:00:0{n} 0.01" for n in range(3)))
    observations, (malformed,) = decode(content[: content.rindex(b"</observation>")], PLAIN, ingest_timestamp=INGEST)
    assert len(observations) == 2
    assert malformed.reason == "TDM line 16: no XML: no element found"
    assert malformed.frame.startswith(b"<observation>")


def test_xml_is_refused_with_entities_of_its_own() -> None:
    """No billion laughs."""
    content = b'<!DOCTYPE tdm [<!ENTITY a "ha">]>' + xml(RADAR, *DATA)
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == "TDM: a document type declaration has no place in one"
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


def test_an_xml_observation_without_an_epoch_has_no_time() -> None:
    """Least of all that of the one before it."""
    content = xml(RADAR, *DATA[:2]).replace(b"<EPOCH>2016-09-06T12:00:00</EPOCH><DOPPLER", b"<DOPPLER")
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005)]
    assert malformed.reason.endswith("or 2016-250T08:27:08.66, got ''")


def test_an_xml_segment_that_is_not_ours_is_refused_whole() -> None:
    """Its element, from the first byte to the last; the one behind it is read."""
    content = xml(RADAR, *DATA)
    element = content[content.index(b"<segment>") : content.index(b"</body>")]
    other = element.replace(b"SEQUENTIAL", b"SINGLE_DIFF")
    observations, (malformed,) = decode(content.replace(element, other + element), PLAIN, ingest_timestamp=INGEST)
    assert [o.track_id for o in observations] == ["tdm-HILL@2016-09-06T12:00:00#2"]
    assert malformed.reason == "TDM line 4: segment 1: expected MODE SEQUENTIAL, got SINGLE_DIFF"
    assert malformed.frame == other


def test_a_tdm_is_told_from_other_files() -> None:
    """By its first line, or its root."""
    assert is_tdm(kvn(RADAR))
    assert is_tdm(xml(RADAR))
    assert not is_tdm(b"CCSDS_OEM_VERS = 2.0\n")
    assert not is_tdm(b"<oem></oem>")
    assert not is_tdm(b"37386 11 014A   4172 E 20190501213235845 17 25 2008223+702585 37 S")


# Ids.


def test_the_id_is_made_of_the_site_and_the_lines() -> None:
    """Same entries, same id, whatever surrounds them and whenever they are read; other digits or another site, another."""
    first = decode_one(kvn(RADAR, *DATA))
    later, _ = decode(b"\n" + kvn(RADAR, *DATA), replace(PLAIN, doppler_sign=-1), ingest_timestamp=INGEST + 1)
    assert later[0].observation_id == first.observation_id
    others = [
        decode_one(kvn(RADAR | {"PARTICIPANT_1": "VALLEY"}, *DATA)),
        decode_one(kvn(RADAR, *DATA[:-1], DATA[-1] + "0")),
        decode_one(kvn(RADAR, *DATA[:2])),
    ]
    assert len({o.observation_id for o in [first, *others]}) == 4


def test_only_a_sign_can_be_a_sign() -> None:
    """Zero would make every rate zero."""
    with pytest.raises(ValueError, match="doppler_sign must be 1 or -1, got 0"):
        TdmConventions(doppler_sign=0)  # type: ignore[arg-type]


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
def test_no_text_stops_the_decoder(lines: list[str]) -> None:
    """Statements in any order and any other text: observations or reasons, never an error."""
    content = "\n".join(["CCSDS_TDM_VERS = 2.0", *lines]).encode(errors="replace")
    observations, malformed = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert len({o.track_id for o in observations}) <= content.count(b"META_START") + content.count(b"DATA_START")
    assert all(each.reason.startswith("TDM line ") for each in malformed)


def test_data_after_a_stray_end_of_metadata_is_nobodys() -> None:
    """It is rejected for want of metadata, and not taken for the segment's before."""
    whole = kvn(RADAR, *DATA)
    stray = b"META_STOP\nDATA_START\n" + whole.partition(b"DATA_START\n")[2]
    alone, _ = decode(whole, PLAIN, ingest_timestamp=INGEST)
    observations, malformed = decode(whole + stray, PLAIN, ingest_timestamp=INGEST)
    assert observations == alone
    assert len(malformed) == 1


@given(st.integers(0, 2_000), st.binary(max_size=4))
def test_no_damage_to_xml_stops_the_decoder(at: int, damage: bytes) -> None:
    """Bytes overwritten anywhere cost what they hit, and what comes after at most."""
    content = xml(RADAR, *DATA)
    decode(content[:at] + damage + content[at + len(damage) :], PLAIN, ingest_timestamp=INGEST)


# Real files.


def test_every_real_message_gives_observations_or_reasons() -> None:
    """Orekit's 15 (CS-SI/Orekit): most are of spacecraft ranging and clocks; both notations of a message give as much."""
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
    with the file's own sign it is off by kilometres per second.
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
