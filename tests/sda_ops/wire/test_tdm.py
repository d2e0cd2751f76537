"""TDM entries to observations: times, units, corrections, angles and ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, Uncertainty
from sda_ops.wire.tdm import TdmConventions, decode
from tests.sda_ops.wire.tdm_texts import (
    C_M_S,
    DATA,
    DIRECTION,
    INGEST,
    NOON_NS,
    PLAIN,
    RADAR,
    SIGMAS,
    TELESCOPE,
    decode_one,
    good,
    kvn,
    radar_of,
    reasons_of,
    xml,
)


@pytest.mark.parametrize("notation", [kvn, xml])
def test_the_entries_of_a_time_tag_are_one_observation(notation: Callable[..., bytes]) -> None:
    """Range, rate and angles are converted to SI units, with their sigmas; the object's name is in no field."""
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
    """With the same ids, if times and numbers have the same text."""
    assert good(kvn(RADAR, *DATA)) == good(xml(RADAR, *DATA))


def test_a_component_that_was_not_measured_is_absent_with_its_sigma() -> None:
    """A range alone is an observation."""
    observation = decode_one(kvn(RADAR, DATA[0]))
    assert observation.target == RadarTarget(C_M_S * 0.005)
    assert observation.uncertainty == Uncertainty(sigma_range_m=30.0)


def test_entries_are_grouped_by_time_in_any_order() -> None:
    """Files with all ranges first and all rates after them give the same pairs, in the order of each time's first entry."""
    times = ["2016-09-06T12:00:02", "2016-250T12:00:01.000"]
    ranges = [f"RANGE = {time} 0.01" for time in times]
    rates = [f"DOPPLER_INSTANTANEOUS = {time} {n}" for n, time in enumerate(reversed(times), 1)]
    observations = good(kvn(RADAR, *ranges, *rates))
    assert [o.sensor_timestamp - NOON_NS for o in observations] == [2_000_000_000, 1_000_000_000]
    assert [o.target.range_rate_m_s for o in observations if isinstance(o.target, RadarTarget)] == [2_000.0, 1_000.0]


def test_right_ascension_and_declination_are_a_telescopes_observation() -> None:
    """Source kind optical, radians, the sigma of the angle and no other; the site is at the end of the path."""
    observation = decode_one(kvn(TELESCOPE, *DIRECTION))
    assert (observation.source_kind, observation.source_id) == ("optical", "tdm-HILL")
    assert observation.target == OpticalTarget(math.radians(200), math.radians(-30))
    assert observation.uncertainty == Uncertainty(sigma_angle_rad=0.001)


def test_a_site_may_be_any_participant() -> None:
    """It is the participant at the end of the path."""
    swapped = RADAR | {"PATH": "2,1,2", "PARTICIPANT_1": "2002-009A", "PARTICIPANT_2": "HILL"}
    assert decode_one(kvn(swapped, *DATA)).source_id == "tdm-HILL"


def test_a_site_has_the_name_that_the_feed_gives_it() -> None:
    """In the source and in the track; another site's name has no effect."""
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
    ],
)
def test_a_time_is_read_to_the_nanosecond(tag: str, ns: int) -> None:
    """Calendar date or day of the year, with any number of digits."""
    assert decode_one(kvn(RADAR, f"RANGE = {tag} 0.01")).sensor_timestamp == ns


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("2016-02-30T12:00:00", "RANGE: expected a date that exists, got 2016-02-30"),
        ("2015-366T12:00:00", "RANGE: expected a day of the year 2015, got 366"),
        ("2016-000T12:00:00", "RANGE: expected a day of the year 2016, got 0"),
        ("2016-09-06T24:00:00", "RANGE: expected a time of day, got 24:00:00"),
        ("2016-09-06T12:60:00", "RANGE: expected a time of day, got 12:60:00"),
        ("2016-09-06T12:00:61", "RANGE: expected a time of day, got 12:00:61"),
        (
            "2016-09-06T12:00:60.5",
            "RANGE: expected a time of day, got 12:00:60, and there is no leap second at that time",
        ),
        (
            "2016-09-06T23:59:60",
            "RANGE: expected a time of day, got 23:59:60, and there is no leap second at that time",
        ),
        (
            "2016-366T23:59:60",
            "RANGE: the time is within a leap second, which a timestamp without leap seconds cannot express",
        ),
        ("0000-09-06T12:00:00", "RANGE: expected a year from 1678 to 2261, got 0"),
        ("noon", "RANGE: expected a time such as 2016-09-06T08:27:08.66 or 2016-250T08:27:08.66, got 'noon'"),
        ("2262-01-01T00:00:00", "RANGE: expected a year from 1678 to 2261, got 2262"),
        ("1677-01-01T00:00:00", "RANGE: expected a year from 1678 to 2261, got 1677"),
    ],
)
def test_an_invalid_time_is_rejected_with_the_reason(tag: str, reason: str) -> None:
    """The reason has the line; the entry's own bytes are kept."""
    observations, (malformed,) = decode(kvn(RADAR, f"RANGE = {tag} 0.01"), PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == f"TDM line 12: {reason}"
    assert malformed.frame == f"RANGE = {tag} 0.01\n".encode()


@pytest.mark.parametrize(
    "tag", ["1678-01-01T00:00:00", "2261-12-31T23:59:59.999999999", "2016-999T00:00:00", "9999-999T00:00:00"]
)
def test_the_ends_of_the_calendar_raise_no_error(tag: str) -> None:
    """A time that fits into 64 bits of nanoseconds is read; another one is malformed."""
    observations, malformed = decode(kvn(RADAR, f"RANGE = {tag} 0.01"), PLAIN, ingest_timestamp=INGEST)
    assert len(observations) + len(malformed) == 1
    assert all(-(2**63) <= o.sensor_timestamp < 2**63 for o in observations)
    assert bool(observations) == ("-999T" not in tag)


@pytest.mark.parametrize(
    ("time_system", "tags"),
    [
        ("UTC", ["2016-12-31T23:59:59.5", "2016-12-31T23:59:60.5", "2017-01-01T00:00:00.5"]),
        ("TAI", ["2017-01-01T00:00:35.5", "2017-01-01T00:00:36.5", "2017-01-01T00:00:37.5"]),
        ("GPS", ["2017-01-01T00:00:16.5", "2017-01-01T00:00:17.5", "2017-01-01T00:00:18.5"]),
    ],
)
def test_a_measurement_in_a_leap_second_is_rejected_and_the_next_one_keeps_its_time(
    time_system: str, tags: list[str]
) -> None:
    """At 1 Hz over the leap second at the end of 2016 (IERS Bulletin C 52), the first and the third are observations."""
    content = kvn(RADAR | {"TIME_SYSTEM": time_system}, *(f"RANGE = {tag} 0.01{n}" for n, tag in enumerate(tags, 1)))
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert [o.sensor_timestamp - 1_483_228_800_000_000_000 for o in observations] == [-500_000_000, 500_000_000]
    assert [radar.range_m for o in observations if isinstance(radar := o.target, RadarTarget)] == [
        pytest.approx(C_M_S * 0.011 / 2),
        pytest.approx(C_M_S * 0.013 / 2),
    ]
    assert malformed.reason.startswith("TDM line 13: RANGE: the time is within a leap second")
    assert malformed.frame == f"RANGE = {tags[1]} 0.012\n".encode()


@pytest.mark.parametrize("time_system", ["TAI", "GPS"])
def test_a_time_system_without_leap_seconds_has_no_60th_second(time_system: str) -> None:
    """Only UTC has one."""
    (reason,) = reasons_of(kvn(RADAR | {"TIME_SYSTEM": time_system}, "RANGE = 2016-12-31T23:59:60 0.01"))
    assert reason.endswith(f"expected a time of day in {time_system}, got 23:59:60")


def test_a_range_with_an_impossible_arrival_is_rejected() -> None:
    """With a tag of transmission its arrival would not fit into 64 bits of nanoseconds."""
    content = kvn(RADAR | {"TIMETAG_REF": "TRANSMIT"}, "RANGE = 2016-09-06T12:00:00 1e300")
    assert reasons_of(content) == ["TDM line 13: expected an arrival before 2262: the range is impossible"]


def test_tai_before_1972_is_rejected() -> None:
    """Its difference from UTC was not a whole number of seconds."""
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
def test_tai_and_gps_are_converted_to_utc(time_system: str, tag: str, utc_ns: int) -> None:
    """By the leap seconds of the tag's own day (IERS Bulletin C 52)."""
    assert decode_one(kvn(RADAR | {"TIME_SYSTEM": time_system}, f"RANGE = {tag} 0.01")).sensor_timestamp == utc_ns


def test_a_tag_of_transmission_becomes_the_time_of_arrival() -> None:
    """The round trip is added: 10 ms here, also for a range in kilometres."""
    at_transmission = RADAR | {"TIMETAG_REF": "TRANSMIT"}
    assert decode_one(kvn(at_transmission, *DATA)).sensor_timestamp == NOON_NS + 10_000_000
    assert decode_one(kvn(RADAR | {"TIMETAG_REF": "RECEIVE"}, *DATA)).sensor_timestamp == NOON_NS
    in_km = at_transmission | {"RANGE_UNITS": "km"}
    (observation,) = good(kvn(in_km, f"RANGE = 2016-09-06T12:00:00 {C_M_S * 0.01 / 1000!r}"))
    assert observation.sensor_timestamp == NOON_NS + 10_000_000
    one_leg = at_transmission | {"PATH": "2,1"}
    assert decode_one(kvn(one_leg, *DATA)).sensor_timestamp == NOON_NS + 10_000_000


def test_a_tag_of_transmission_needs_a_range() -> None:
    """Without one the time of arrival is unknown."""
    (reason,) = reasons_of(kvn(TELESCOPE | {"TIMETAG_REF": "TRANSMIT"}, *DIRECTION))
    assert reason.endswith("TIMETAG_REF TRANSMIT without a RANGE: the time of arrival is unknown")


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
    """The feed says whether numbers are of the whole path; on a path of one leg there is no difference."""
    conventions = TdmConventions(range_is_round_trip=round_trip)
    target = radar_of(kvn(RADAR | changes, f"RANGE = 2016-09-06T12:00:00 {value}"), conventions)
    assert target.range_m == pytest.approx(range_m, rel=1e-15)


def test_a_range_without_units_is_in_kilometres() -> None:
    """The standard's default (3.5.2.7)."""
    metadata = {keyword: value for keyword, value in RADAR.items() if keyword != "RANGE_UNITS"}
    assert radar_of(kvn(metadata, "RANGE = 2016-09-06T12:00:00 2401")).range_m == 1_200_500.0


def test_the_feed_says_whether_a_rate_is_of_the_whole_path() -> None:
    """Such a rate is halved on a two-way path, and never on a path of one leg."""
    whole_path = replace(PLAIN, doppler_is_round_trip=True)
    assert radar_of(kvn(RADAR, *DATA), whole_path).range_rate_m_s == -750.0
    assert radar_of(kvn(RADAR | {"PATH": "2,1"}, *DATA), whole_path).range_rate_m_s == -1_500.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RANGE_UNITS": "RU"}, "expected RANGE_UNITS s or km, got RU"),
        ({"RANGE_MODULUS": "0.001"}, "RANGE is ambiguous: its modulus is 149.896 km, one way"),
        ({"RANGE_UNITS": "km", "RANGE_MODULUS": "49999"}, "RANGE is ambiguous: its modulus is 24999.5 km, one way"),
        ({"RECEIVE_DELAY_1": "7e-5"}, "RANGE with RECEIVE_DELAY_1 = 7e-5: the format does not say whether that has been subtracted"),
        ({"TRANSMIT_DELAY_2": "7e-5"}, "RANGE with TRANSMIT_DELAY_2 = 7e-5: the format does not say whether that has been subtracted"),
        ({"RANGE_MODULUS": "inf"}, "expected a finite number, got 'inf'"),
        ({"CORRECTION_RANGE": "x"}, "expected a finite number, got 'x'"),
    ],
)  # fmt: skip
def test_an_ambiguous_range_is_rejected(changes: dict[str, str], reason: str) -> None:
    """Once for the whole segment, with the bytes of all its ranges."""
    data = ["RANGE = 2016-09-06T12:00:00 0.01", "RANGE = 2016-09-06T12:00:01 0.01"]
    metadata = RADAR | changes
    observations, (malformed,) = decode(kvn(metadata, *data), PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == f"TDM line {5 + len(metadata)} and 1 more: {reason}"
    assert malformed.frame == "".join(f"{line}\n" for line in data).encode()


def test_the_feed_says_the_sign_of_doppler() -> None:
    """Positive is receding, unless the feed says that it is approaching; the sign of corrections follows."""
    approaching = replace(PLAIN, doppler_sign=-1)
    assert radar_of(kvn(RADAR, *DATA)).range_rate_m_s == -1_500.0
    assert radar_of(kvn(RADAR, *DATA), approaching).range_rate_m_s == 1_500.0
    corrected = RADAR | {"CORRECTION_DOPPLER": "0.5", "CORRECTIONS_APPLIED": "NO"}
    assert radar_of(kvn(corrected, *DATA), approaching).range_rate_m_s == 1_000.0


def test_a_mean_rate_is_used_if_the_tag_is_in_the_middle_of_its_interval() -> None:
    """Or if it has no interval. Otherwise the range is kept, without the rate."""
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
def test_corrections_are_added_unless_already_applied(applied: str, expected: RadarTarget) -> None:
    """In the units of the data, each to its own component."""
    corrections = {
        "CORRECTION_RANGE": "0.01",
        "CORRECTION_DOPPLER": "0.5",
        "CORRECTION_ANGLE_1": "1",
        "CORRECTION_ANGLE_2": "-2",
        "CORRECTIONS_APPLIED": applied,
    }
    assert radar_of(kvn(RADAR | corrections, *DATA)) == expected


def test_a_correction_without_corrections_applied_is_rejected() -> None:
    """Unless the correction is zero."""
    assert reasons_of(kvn(RADAR | {"CORRECTION_RANGE": "1"}, DATA[0])) == [
        "TDM line 13: CORRECTION_RANGE = 1: expected CORRECTIONS_APPLIED YES or NO, got none"
    ]
    assert radar_of(kvn(RADAR | {"CORRECTION_RANGE": "0.0"}, *DATA)).range_m == C_M_S * 0.005


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"REFERENCE_FRAME": "TOD_EARTH"},
            "ANGLE_TYPE RADEC: expected REFERENCE_FRAME EME2000, GCRF, ICRF, ICRF1, ICRF2, ICRF3, got TOD_EARTH",
        ),
        (
            {"CORRECTION_ABERRATION_YEARLY": "0.005", "CORRECTIONS_APPLIED": "NO"},
            "CORRECTION_ABERRATION_YEARLY is not applied to the angles, and not given for each of them",
        ),
        ({"ANGLE_TYPE": "XEYN"}, "expected ANGLE_TYPE AZEL or RADEC, got XEYN"),
    ],
)
def test_angles_of_another_kind_are_rejected(changes: dict[str, str], reason: str) -> None:
    """Angles of date, along an antenna's axes, or with an aberration that still has to be subtracted."""
    assert reasons_of(kvn(TELESCOPE | changes, *DIRECTION)) == [f"TDM line {13 + len(changes.keys() - TELESCOPE.keys())} and 1 more: {reason}"]  # fmt: skip


@pytest.mark.parametrize("frame", ["ICRF", "ICRF1", "ICRF2", "ICRF3", "GCRF", "gcrf"])
def test_directions_in_the_celestial_reference_frames_are_used_as_they_are(frame: str) -> None:
    """They differ from EME2000 by 0.023 arcseconds at most, which is far below what any sensor here measures."""
    assert good(kvn(TELESCOPE | {"REFERENCE_FRAME": frame}, *DIRECTION)) == good(kvn(TELESCOPE, *DIRECTION))


# Notes.


def notes_of(content: bytes) -> list[str]:
    notes: list[str] = []
    decode(content, PLAIN, ingest_timestamp=INGEST, note=notes.append)
    return notes


def test_a_segment_without_a_mode_is_sequential_if_it_has_one_path() -> None:
    """MODE is optional, and PATH without an index belongs to SEQUENTIAL (503.0-B-2, table 3-3); a note says it."""
    without = {keyword: value for keyword, value in RADAR.items() if keyword != "MODE"}
    assert good(kvn(without, *DATA)) == good(kvn(RADAR, *DATA))
    assert notes_of(kvn(without, *DATA)) == [
        "TDM line 2: segment 1: no MODE: it is read as SEQUENTIAL, to which its PATH belongs"
    ]
    differenced = {k: v for k, v in without.items() if k != "PATH"} | {"PATH_1": "1,2,1", "PATH_2": "3,2,1"}
    (reason,) = reasons_of(kvn(differenced, *DATA))
    assert reason.endswith("segment 1: expected MODE SEQUENTIAL, got none")


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        ({"DATA_QUALITY": "DEGRADED"}, "DATA_QUALITY is DEGRADED: its data are used with the feed's uncertainties"),
        (
            {"CORRECTION_RECEIVE": "-0.145", "CORRECTIONS_APPLIED": "NO"},
            "CORRECTION_RECEIVE = -0.145 is not applied: no RECEIVE value is used",
        ),
        ({"CORRECTION_MAG": "0.5"}, "CORRECTION_MAG = 0.5 is not applied: no MAG value is used"),
        ({"DATA_QUALITY": "VALIDATED"}, None),
        ({"CORRECTION_RECEIVE": "-0.145", "CORRECTIONS_APPLIED": "YES"}, None),
        ({"CORRECTION_RECEIVE": "-0.00", "CORRECTIONS_APPLIED": "NO"}, None),
    ],
)
def test_what_is_not_applied_to_a_segment_is_noted_once(metadata: dict[str, str], note: str | None) -> None:
    """The observations are those of the segment without it."""
    assert notes_of(kvn(RADAR | metadata, *DATA)) == ([] if note is None else [f"TDM line 2: segment 1: {note}"])
    assert good(kvn(RADAR | metadata, *DATA)) == good(kvn(RADAR, *DATA))


def test_a_clock_bias_beside_measurements_is_noted() -> None:
    """It concerns their time tags, and is not applied."""
    assert notes_of(kvn(RADAR, *DATA, "CLOCK_BIAS = 2016-09-06T12:00:00 0.5")) == [
        "TDM line 2: segment 1: CLOCK_BIAS is not applied to its time tags"
    ]


@pytest.mark.parametrize("value", ["nan", "-inf", "", "1.0 2.0", "O.01"])
def test_an_invalid_number_costs_only_its_entry(value: str) -> None:
    """The other entries of the time tag are an observation without it."""
    observations, (malformed,) = decode(
        kvn(RADAR, DATA[0], f"DOPPLER_INSTANTANEOUS = 2016-09-06T12:00:00 {value}"), PLAIN, ingest_timestamp=INGEST
    )
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005)]
    assert malformed.reason == f"TDM line 13: DOPPLER_INSTANTANEOUS: expected a finite number, got {value!r}"


def test_a_radar_time_tag_without_a_range_is_rejected() -> None:
    """Its rate and direction are one malformed frame."""
    content = kvn(RADAR, *DATA[1:])
    observations, (malformed,) = decode(content, PLAIN, ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.reason == "TDM line 12 and 2 more: no RANGE at this time tag: a radar's observation needs one"
    assert malformed.frame == "".join(f"{line}\n" for line in DATA[1:]).encode()


def test_a_single_angle_is_rejected() -> None:
    """It is malformed; the other components of its time tag are kept."""
    observations, (malformed,) = decode(kvn(RADAR, DATA[0], DATA[3]), PLAIN, ingest_timestamp=INGEST)
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005)]
    assert malformed.reason == "TDM line 13: ANGLE_1 or ANGLE_2 without the other at its time tag"
    assert reasons_of(kvn(RADAR, DATA[2])) == ["TDM line 12: ANGLE_1 or ANGLE_2 without the other at its time tag"]


def test_right_ascension_with_a_range_is_rejected() -> None:
    """Also with a rate. The entries are rejected together."""
    for other in DATA[:2]:
        (reason,) = reasons_of(kvn(TELESCOPE, other, *DIRECTION))
        assert "expected right ascension and declination and nothing else" in reason


def test_a_second_value_for_the_same_time_is_rejected() -> None:
    """The first is kept; an instantaneous and a mean rate are the same component."""
    data = (*DATA[:2], "DOPPLER_INTEGRATED = 2016-09-06T12:00:00.000 7")
    observations, (malformed,) = decode(kvn(RADAR, *data), PLAIN, ingest_timestamp=INGEST)
    assert [o.target for o in observations] == [RadarTarget(C_M_S * 0.005, -1_500.0)]
    assert malformed.reason == "TDM line 14: DOPPLER_INTEGRATED: its time tag has a rate already"


def test_unused_keywords_are_skipped_and_unknown_ones_are_rejected() -> None:
    """A signal-to-noise ratio beside a range is not an error; a keyword that the standard does not have is one."""
    data = (DATA[0], "PC_N0 = 2016-09-06T12:00:00 30", "RCS = 2016-09-06T12:00:00 1")
    assert good(kvn(RADAR, *data))
    (reason,) = reasons_of(kvn(RADAR, *data, "RANGEE = 2016-09-06T12:00:00 0.01"))
    assert reason == "TDM line 15: 'RANGEE' is not a data keyword of the standard"


# Ids.


def test_the_id_is_made_from_the_site_and_the_entries() -> None:
    """The same entries have the same id in any file and at any time; other digits or another site give another id."""
    first = decode_one(kvn(RADAR, *DATA))
    later, _ = decode(b"\n" + kvn(RADAR, *DATA), replace(PLAIN, doppler_sign=-1), ingest_timestamp=INGEST + 1)
    assert later[0].observation_id == first.observation_id
    others = [
        decode_one(kvn(RADAR | {"PARTICIPANT_1": "VALLEY"}, *DATA)),
        decode_one(kvn(RADAR, *DATA[:-1], DATA[-1] + "0")),
        decode_one(kvn(RADAR, *DATA[:2])),
    ]
    assert len({o.observation_id for o in [first, *others]}) == 4


def test_the_doppler_sign_must_be_1_or_minus_1() -> None:
    """Zero would make every rate zero."""
    with pytest.raises(ValueError, match="doppler_sign must be 1 or -1, got 0"):
        TdmConventions(doppler_sign=0)  # type: ignore[arg-type]
