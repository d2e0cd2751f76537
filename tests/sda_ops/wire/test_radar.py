"""Radar datagrams: layout, absent components, batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.records.observation import Observation, RadarTarget, Uncertainty
from sda_ops.wire import radar
from sda_ops.wire.malformed import MalformedFrame

INGEST = 1_790_000_000_000_000_001
FIELDS: dict[str, Any] = {
    "array_id": 3,
    "target_track_id": 4711,
    "timestamp_ns": 1_790_000_000_000_000_000,
    "range_m": 1_234_567.25,
    "range_rate_m_s": -3_210.5,
    "azimuth_rad": 1.25,
    "elevation_rad": 0.5,
    "sigma_range_m": 30.0,
    "sigma_rate_m_s": 0.5,
}

u32 = st.integers(0, 2**32 - 1)
f64 = st.floats(allow_nan=False)
f32 = st.floats(allow_nan=False, width=32)
WIRE_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "array_id": u32,
    "target_track_id": u32,
    "timestamp_ns": st.integers(0, 2**64 - 1),
    "range_m": f64,
    "range_rate_m_s": f64,
    "azimuth_rad": f64,
    "elevation_rad": f64,
    "sigma_range_m": f32,
    "sigma_rate_m_s": f32,
}


def test_a_detection_becomes_an_observation_field_by_field() -> None:
    """Each wire field is in the record's field of the same meaning, and the envelope is complete."""
    observation = radar.decode(radar.encode(**FIELDS), ingest_timestamp=INGEST)
    assert observation == Observation(
        observation.observation_id,
        "radar-3",
        "radar",
        1_790_000_000_000_000_000,
        INGEST,
        RadarTarget(1_234_567.25, -3_210.5, 1.25, 0.5),
        Uncertainty(sigma_range_m=30.0, sigma_range_rate_m_s=0.5),
        "4711",
    )


def test_the_layout_is_the_specifications_to_the_byte() -> None:
    """A datagram assembled by hand, field by field in little-endian order, equals the result of `encode`."""
    by_hand = b"".join(
        [
            np.uint32(3).astype("<u4").tobytes(),
            np.uint32(4711).astype("<u4").tobytes(),
            np.uint64(1_790_000_000_000_000_000).astype("<u8").tobytes(),
            np.array([1_234_567.25, -3_210.5, 1.25, 0.5], dtype="<f8").tobytes(),
            np.array([30.0, 0.5], dtype="<f4").tobytes(),
            bytes(8),
        ],
    )
    assert radar.encode(**FIELDS) == by_hand
    assert len(by_hand) == radar.FRAME_SIZE


def test_the_numpy_type_has_the_same_fields_at_the_same_offsets() -> None:
    """The structured dtype and the encoder agree on every field."""
    (record,) = np.frombuffer(radar.encode(**FIELDS), dtype=radar.FRAME_DTYPE)
    assert radar.FRAME_DTYPE.itemsize == radar.FRAME_SIZE
    assert {name: record[name] for name in FIELDS} == FIELDS


@given(st.fixed_dictionaries(WIRE_FIELDS))
def test_every_measured_number_is_unchanged_by_encoding_and_decoding(sent: dict[str, Any]) -> None:
    """None is rounded, clipped or checked between encoder and record."""
    observation = radar.decode(radar.encode(**sent), ingest_timestamp=INGEST)
    assert observation.source_id == f"radar-{sent['array_id']}"
    assert observation.track_id == str(sent["target_track_id"])
    assert observation.sensor_timestamp == sent["timestamp_ns"]
    assert observation.target == RadarTarget(
        sent["range_m"],
        sent["range_rate_m_s"],
        sent["azimuth_rad"],
        sent["elevation_rad"],
    )
    assert observation.uncertainty == Uncertainty(sent["sigma_range_m"], sent["sigma_rate_m_s"])


@pytest.mark.parametrize("component", ["range_rate_m_s", "azimuth_rad", "elevation_rad"])
def test_nan_on_the_wire_means_not_measured(component: str) -> None:
    """A NaN component is absent from the record, and the other components are present."""
    observation = radar.decode(radar.encode(**FIELDS | {component: math.nan}), ingest_timestamp=INGEST)
    measured_fields = {"range_m", "range_rate_m_s", "azimuth_rad", "elevation_rad"} - {component}
    assert getattr(observation.target, component) is None
    assert {name: getattr(observation.target, name) for name in measured_fields} == {
        name: FIELDS[name] for name in measured_fields
    }


def test_a_component_omitted_from_encode_is_absent_from_the_record() -> None:
    """As for EISCAT: range and rate, no angles."""
    without_angles = {name: value for name, value in FIELDS.items() if name not in {"azimuth_rad", "elevation_rad"}}
    observation = radar.decode(radar.encode(**without_angles), ingest_timestamp=INGEST)
    assert observation.target == RadarTarget(1_234_567.25, -3_210.5)


def test_a_rate_that_was_not_measured_has_no_sigma() -> None:
    """The sigma field of an absent rate is not read."""
    observation = radar.decode(radar.encode(**FIELDS | {"range_rate_m_s": math.nan}), ingest_timestamp=INGEST)
    assert observation.uncertainty == Uncertainty(sigma_range_m=30.0)


def test_a_nan_range_is_left_to_validate() -> None:
    """The decoder checks only the structure: the NaN is in the record."""
    observation = radar.decode(radar.encode(**FIELDS | {"range_m": math.nan}), ingest_timestamp=INGEST)
    assert isinstance(observation.target, RadarTarget)
    assert math.isnan(observation.target.range_m)


def test_the_reserved_bytes_change_only_the_id() -> None:
    """Two frames that differ only there are two observations of the same measurement."""
    plain = radar.encode(**FIELDS)
    marked = plain[:-8] + b"reserved"
    one, other = (radar.decode(frame, ingest_timestamp=INGEST) for frame in (plain, marked))
    assert one.observation_id != other.observation_id
    assert (one.target, one.uncertainty, one.track_id) == (other.target, other.uncertainty, other.track_id)


def test_the_time_of_arrival_is_not_part_of_the_id() -> None:
    """A repeated frame is the same observation."""
    frame = radar.encode(**FIELDS)
    early, late = (radar.decode(frame, ingest_timestamp=at) for at in (INGEST, INGEST + 10**9))
    assert early.observation_id == late.observation_id


@pytest.mark.parametrize("size", [0, 1, 63, 65, 1500])
def test_a_datagram_of_another_size_is_malformed(size: int) -> None:
    """The error has the expected and the actual size, and the bytes."""
    with pytest.raises(MalformedFrame) as raised:
        radar.decode(bytes(size), ingest_timestamp=INGEST)
    assert str(raised.value) == f"radar datagram: expected 64 bytes, got {size}"
    assert raised.value.frame == bytes(size)


@given(st.lists(st.one_of(st.binary(min_size=64, max_size=64), st.binary(max_size=70))))
def test_a_batch_gives_the_same_as_single_decoding(datagrams: list[bytes]) -> None:
    """Good and bad datagrams may alternate: no good one is lost, moved or changed."""
    observations, malformed = radar.decode_many(datagrams, ingest_timestamp=INGEST)
    good = [datagram for datagram in datagrams if len(datagram) == 64]
    assert repr(observations) == repr([radar.decode(datagram, ingest_timestamp=INGEST) for datagram in good])
    assert [bad.frame for bad in malformed] == [datagram for datagram in datagrams if len(datagram) != 64]
