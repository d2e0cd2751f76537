"""`Normalizer`: wrapped angles and clock offsets."""

from __future__ import annotations

import math
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.normalize import Normalizer
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget, Target, Uncertainty


def observation(target: Target, *, source_id: str = "radar-3") -> Observation:
    return Observation(UUID(int=1), source_id, "radar", 1_000, 2_000, target, Uncertainty(), "t")


IN_CONVENTION: list[Target] = [
    RadarTarget(1e6, 1.0, 0.0, -0.5),
    RadarTarget(1e6, 1.0, math.nextafter(math.tau, 0.0), 0.5),
    RadarTarget(1e6),
    RadarTarget(math.nan, math.inf, math.nan, 99.0),
    RadarTarget(1e6, azimuth_rad=math.inf),
    OpticalTarget(3.0, -99.0),
    OpticalTarget(math.nan, 0.0),
    OpticalTarget(-math.inf, 0.0),
    StateTarget((-1.0, 7.0, 99.0), (math.nan, 0.0, 0.0)),
]


@pytest.mark.parametrize("target", IN_CONVENTION, ids=repr)
def test_an_observation_that_needs_no_change_is_returned_itself(target: Target) -> None:
    """This holds for angles in their interval, absent angles and non-finite numbers."""
    given_observation = observation(target)
    assert Normalizer(clock_offset_ns={"radar-4": 5, "radar-3": 0})(given_observation) is given_observation


@pytest.mark.parametrize(
    ("angle_rad", "wrapped_rad"),
    [
        (math.tau, 0.0),
        (-1e-20, 0.0),  # the remainder rounds up to the full circle
        (-math.pi / 2, 3 * math.pi / 2),
        (5 * math.pi, math.pi),
    ],
)
def test_azimuth_and_right_ascension_are_wrapped_into_one_circle(angle_rad: float, wrapped_rad: float) -> None:
    """A full circle becomes zero."""
    normalize = Normalizer()
    radar = normalize(observation(RadarTarget(1e6, 2.0, angle_rad, 0.5)))
    optical = normalize(observation(OpticalTarget(angle_rad, 0.5)))
    assert radar == observation(RadarTarget(1e6, 2.0, wrapped_rad, 0.5))
    assert optical == observation(OpticalTarget(wrapped_rad, 0.5))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_wrapped_angle_is_the_same_direction_and_is_not_changed_again(angle_rad: float) -> None:
    """For any finite angle the result is in [0, 2 pi), has the same direction, and is a fixed point."""
    normalize = Normalizer()
    once = normalize(observation(OpticalTarget(angle_rad, 0.0)))
    assert isinstance(once.target, OpticalTarget)
    wrapped_rad = once.target.right_ascension_rad
    assert 0.0 <= wrapped_rad < math.tau
    assert normalize(once) is once
    if abs(angle_rad) < 1e6:
        ten_nanoradians = 1e-8
        assert math.dist(
            (math.cos(angle_rad), math.sin(angle_rad)),
            (math.cos(wrapped_rad), math.sin(wrapped_rad)),
        ) == pytest.approx(0.0, abs=ten_nanoradians)


def test_a_known_clock_offset_is_subtracted_from_the_sensor_timestamp() -> None:
    """300 ns are subtracted for a clock that is 300 ns ahead; nothing else of the observation changes."""
    normalize = Normalizer(clock_offset_ns={"radar-3": 300, "radar-4": -5})
    ahead, behind, other = (normalize(observation(RadarTarget(1e6), source_id=f"radar-{n}")) for n in (3, 4, 5))
    assert (ahead.sensor_timestamp, behind.sensor_timestamp, other.sensor_timestamp) == (700, 1_005, 1_000)
    assert ahead.ingest_timestamp == 2_000
    assert ahead.observation_id == UUID(int=1)


def test_one_observation_may_need_both_wrapping_and_a_clock_offset() -> None:
    """Both are applied."""
    changed = Normalizer(clock_offset_ns={"radar-3": 1})(observation(RadarTarget(1e6, azimuth_rad=-math.pi)))
    assert changed.sensor_timestamp == 999
    assert changed.target == RadarTarget(1e6, azimuth_rad=math.pi)
