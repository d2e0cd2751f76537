"""Conjunction messages for tests: one with every field, generated ones, the real files, and what another library reads."""

from __future__ import annotations

from dataclasses import replace
from math import pi
from pathlib import Path
from typing import Any

import ccsds_ndm
import numpy as np
import pytest
from hypothesis import strategies as st

from sda_ops.wire.cdm import (
    ConjunctionMessage,
    ConjunctionObject,
    OrbitDetermination,
    PhysicalParameters,
    RtnCovariance,
)
from tests.helpers.support import SDA_DATA_DIR

CDM_FOLDER = SDA_DATA_DIR / "ccsds" / "cdm"

NOON_NS = 1_473_163_200_000_000_000  # 2016-09-06T12:00:00Z

FIRST = ConjunctionObject(
    comments=("Object1 Metadata",),
    designator="25544",
    catalog_name="SATCAT",
    name="ISS (ZARYA)",
    international_designator="1998-067A",
    object_type="PAYLOAD",
    operator_contact_position="Flight director",
    operator_organization="NASA",
    operator_phone="+1 281 483 0123",
    operator_email="fd@example.org",
    ephemeris_name="NONE",
    covariance_method="CALCULATED",
    maneuverable="YES",
    orbit_center="EARTH",
    ref_frame="EME2000",
    gravity_model="EGM-96: 36D 36O",
    atmospheric_model="JBH09",
    n_body_perturbations="MOON, SUN",
    solar_radiation_pressure="YES",
    earth_tides="NO",
    in_track_thrust="NO",
    orbit_determination=OrbitDetermination(
        comments=("Object1 OD Parameters",),
        last_observation_from_ns=NOON_NS - 10**9,
        last_observation_until_ns=NOON_NS,
        recommended_span_s=680_832.0,
        actual_span_s=475_200.0,
        observations_available=592,
        observations_used=579,
        tracks_available=123,
        tracks_used=119,
        residuals_accepted_percent=97.8,
        weighted_rms=0.864,
    ),
    physical=PhysicalParameters(
        comments=("Apogee Altitude=420 km",),
        area_for_probability_m2=pi * 100.0,
        drag_area_m2=3.0,
        solar_radiation_area_m2=10.0,
        mass_kg=420_000.0,
        drag_area_over_mass_m2_kg=0.045663,
        solar_radiation_area_over_mass_m2_kg=0.0,
        thrust_acceleration_m_s2=0.0,
        energy_dissipation_rate_w_kg=4.5457e-5,
    ),
    state_comments=("Object1 State Vector",),
    position_m=(2_570_097.065, 2_244_654.904, 6_281_497.978),
    velocity_m_s=(4_418.769571, 4_833.547743, -3_526.774282),
    covariance=RtnCovariance(
        comments=("Object1 Covariance",),
        state=tuple(float(n) + 0.25 for n in range(21)),
        drag=tuple(-1e-5 * n for n in range(7)),
        solar_radiation=tuple(1.5e-7 * n for n in range(8)),
        thrust=tuple(2e6 * n for n in range(9)),
    ),
)
"""Every field of the standard, all of them different."""

SECOND = ConjunctionObject(
    designator="799500123",
    catalog_name="SATCAT",
    name="FENGYUN 1C DEB",
    international_designator="UNKNOWN",
    ephemeris_name="NONE",
    covariance_method="DEFAULT",
    maneuverable="N/A",
    ref_frame="EME2000",
    position_m=(2_569_540.8, 2_245_093.614, 6_281_599.946),
    velocity_m_s=(-2_888.6125, -6_007.247516, 3_328.770172),
    covariance=RtnCovariance(state=tuple(100.0 - n for n in range(21))),
)
"""Only what the standard demands."""

MESSAGE = ConjunctionMessage(
    header_comments=("A comment of the header",),
    creation_date_ns=NOON_NS,
    originator="SDA",
    message_for="NASA",
    message_id="25544_conj_799500123_2016251120000_1",
    comments=("Relative Metadata/Data", "HBR = 15.0"),
    tca_ns=NOON_NS + 86_400_123_456_789,
    miss_distance_m=715.123456,
    relative_speed_m_s=14_762.0,
    relative_position_m=(27.4, -70.2, 711.8),
    relative_velocity_m_s=(-7.2, -14_692.0, -1_437.2),
    screen_from_ns=NOON_NS - 1,
    screen_until_ns=NOON_NS + 7 * 86_400 * 10**9,
    screen_volume_frame="RTN",
    screen_volume_shape="ELLIPSOID",
    screen_volume_m=(200.0, 1_000.0, 2_000.0),
    screen_entry_ns=NOON_NS + 1,
    screen_exit_ns=NOON_NS + 2,
    collision_probability=4.835e-05,
    collision_probability_method="FOSTER-1992",
    objects=(FIRST, SECOND),
)


def real_file(name: str) -> Path:
    path = CDM_FOLDER / name
    if not path.exists():
        pytest.skip(f"real data absent: no {path} (set SDA_DATA_DIR)")
    return path


# Generated messages. The other library wants ASCII in KVN, and values of the enumerations.

_PRINTABLE = st.characters(exclude_categories=["Cc", "Cs", "Co"], exclude_characters="\ufffe\uffff")
NAMES = st.one_of(
    st.sampled_from(
        [
            "",
            "=",
            "A = B",
            "ISS [m]",
            "[km]",
            "COMMENT",
            "OBJECT = OBJECT2",
            "<&>",
            "]]>",
            "Σπούτνικ 1",
            "北斗",
            "X" * 3_000,
        ]
    ),
    st.text(_PRINTABLE, max_size=40).map(str.strip),
)
_FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
_VECTORS = st.tuples(_FINITE, _FINITE, _FINITE)
_TIMES = st.integers(-9_214_560_000_000_000_000, 9_214_646_400_000_000_000 - 1)
_COMMENTS = st.lists(NAMES, max_size=2).map(tuple)
_COUNTS = st.integers(-(10**17), 10**17)
_OTHERS = st.lists(
    st.tuples(st.sampled_from(["USER_DEFINED_A", "x-1", "OBJECTS"]), st.sampled_from(["", "a = b [m]", "é"])),
    max_size=2,
).map(tuple)


def _row(count: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.lists(_FINITE, min_size=count, max_size=count).map(tuple)


_OD = st.builds(
    OrbitDetermination,
    comments=_COMMENTS,
    last_observation_from_ns=st.none() | _TIMES,
    recommended_span_s=st.none() | _FINITE,
    observations_used=_COUNTS,
)
_PHYSICAL = st.builds(PhysicalParameters, comments=_COMMENTS, mass_kg=_FINITE, drag_area_m2=st.none() | _FINITE)
_COVARIANCE = st.builds(
    RtnCovariance,
    comments=_COMMENTS,
    state=_row(21),
    drag=st.none() | _row(7),
    solar_radiation=st.none() | _row(8),
    thrust=st.none() | _row(9),
)


@st.composite
def _objects(draw: st.DrawFn) -> ConjunctionObject:
    return replace(
        draw(st.sampled_from([FIRST, SECOND])),
        comments=draw(_COMMENTS),
        designator=draw(NAMES | st.integers(1, 999_999_999).map(str)),
        name=draw(NAMES),
        international_designator=draw(NAMES),
        operator_phone=draw(st.none() | NAMES),
        orbit_determination=draw(st.none() | _OD),
        physical=draw(st.none() | _PHYSICAL),
        state_comments=draw(_COMMENTS),
        position_m=draw(_VECTORS),
        velocity_m_s=draw(_VECTORS),
        covariance=draw(_COVARIANCE),
        others=draw(_OTHERS),
    )


@st.composite
def messages(draw: st.DrawFn) -> ConjunctionMessage:
    return replace(
        MESSAGE,
        header_comments=draw(_COMMENTS),
        originator=draw(NAMES),
        message_for=draw(st.none() | NAMES),
        comments=draw(_COMMENTS),
        tca_ns=draw(_TIMES),
        miss_distance_m=draw(st.floats(0.0, 1e300)),
        relative_position_m=draw(st.none() | _VECTORS),
        relative_velocity_m_s=draw(st.none() | _VECTORS),
        screen_volume_m=draw(st.none() | _VECTORS),
        collision_probability=draw(st.none() | st.floats(0.0, 1.0)),
        objects=(draw(_objects()), draw(_objects())),
        others=draw(_OTHERS),
    )


# The other library.


def read_by_other_library(text: str) -> Any:
    """``ccsds-ndm-py``, which finds out the notation itself. It raises its own error for a message that it cannot read."""
    return ccsds_ndm.Cdm.from_str(text)


def assert_other_library_agrees(message: ConjunctionMessage, text: str) -> None:
    """Every number that the other library has equals ours, and the message passes its check of the standard's rules."""
    other = read_by_other_library(text)
    other.validate()
    relative = other.body.relative_metadata_data
    assert (other.header.message_id, other.header.originator) == (message.message_id, message.originator)
    assert relative.miss_distance == message.miss_distance_m
    assert relative.relative_speed == message.relative_speed_m_s
    if message.collision_probability is None:
        assert relative.collision_probability is None
    else:  # its XML reader is one unit in the last place off for some numbers below 1e-22
        assert relative.collision_probability == pytest.approx(message.collision_probability, rel=1e-15, abs=0.0)
    vectors = [each for each in (message.relative_position_m, message.relative_velocity_m_s) if each is not None]
    state = relative.relative_state_vector
    if vectors:
        ours = [component for vector in vectors for component in vector]
        theirs = [getattr(state, f"relative_{kind}_{axis}") for kind in ("position", "velocity") for axis in "rtn"]
        assert theirs == ours
    for each, segment in zip(message.objects, other.body.segments, strict=True):
        metadata, data = segment.metadata, segment.data
        assert metadata.object_designator == each.designator
        assert metadata.object_name == each.name
        assert metadata.international_designator == each.international_designator
        km = np.array([*each.position_m, *each.velocity_m_s]) / 1_000.0
        np.testing.assert_allclose(data.state_vector_numpy, km, rtol=1e-15)
        np.testing.assert_array_equal(data.covariance_matrix_numpy[:6, :6], each.covariance.matrix())
