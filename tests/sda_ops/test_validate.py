"""`validate`: plausible observations pass, others are rejected with a reason."""

from __future__ import annotations

import math
from datetime import timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget, Target, Uncertainty
from sda_ops.validate import (
    EARTH_POLAR_RADIUS_M,
    ESCAPE_SPEED_M_S,
    LUNAR_APOGEE_M,
    Rejection,
    RejectionReason,
    ValidationLimits,
    validate,
)

NOW = 1_790_000_000_000_000_000
LIMITS = ValidationLimits()
GOOD = RadarTarget(1_000_000.0, -3_000.0, 1.0, 0.5)
ORBIT = StateTarget((7_000_000.0, 0.0, 0.0), (0.0, 7_546.0, 0.0))


def observation(
    target: Target = GOOD,
    uncertainty: Uncertainty = Uncertainty(),  # noqa: B008 -- frozen
    at: int = NOW,
) -> Observation:
    return Observation(UUID(int=1), "radar-3", "radar", at, NOW + 1, target, uncertainty)


def rejection(target: Target = GOOD, uncertainty: Uncertainty = Uncertainty(), at: int = NOW) -> Rejection | None:  # noqa: B008
    return validate(observation(target, uncertainty, at), reference_time_ns=NOW, limits=LIMITS)


PLAUSIBLE: list[Target] = [
    GOOD,
    RadarTarget(1_000_000.0),
    RadarTarget(LUNAR_APOGEE_M, ESCAPE_SPEED_M_S, 0.0, math.pi / 2),
    RadarTarget(1_000_000.0, elevation_rad=-math.radians(4.0)),  # from a mountain, past the horizon
    OpticalTarget(6.0, -math.pi / 2),
    OpticalTarget(0.0, math.pi / 2),
    ORBIT,
    StateTarget((0.0, 0.0, EARTH_POLAR_RADIUS_M), (0.0, 0.0, 0.0)),
    StateTarget((LUNAR_APOGEE_M, 0.0, 0.0), (0.0, 970.0, 0.0)),
    StateTarget((EARTH_POLAR_RADIUS_M, 0.0, 0.0), (0.0, ESCAPE_SPEED_M_S, 0.0)),
]


@pytest.mark.parametrize("target", PLAUSIBLE, ids=repr)
def test_plausible_observations_pass(target: Target) -> None:
    """From the surface at the pole to the Moon, up to escape speed, with or without angles."""
    assert rejection(target) is None


REJECTED: list[tuple[Target, RejectionReason, str]] = [
    (RadarTarget(math.nan), RejectionReason.NON_FINITE, "target.range_m: expected a finite number, got nan"),
    (RadarTarget(math.inf), RejectionReason.NON_FINITE, "target.range_m: expected a finite number, got inf"),
    (RadarTarget(0.0), RejectionReason.RANGE, "target.range_m: expected > 0 m and <= 5e+08 m, got 0.0"),
    (RadarTarget(-5.0), RejectionReason.RANGE, "target.range_m: expected > 0 m and <= 5e+08 m, got -5.0"),
    (RadarTarget(6e8), RejectionReason.RANGE, "target.range_m: expected > 0 m and <= 5e+08 m, got 600000000.0"),
    (
        RadarTarget(1e6, -3e4),
        RejectionReason.RANGE_RATE,
        "target.range_rate_m_s: expected within +-22372 m/s, got -30000.0",
    ),
    (
        RadarTarget(1e6, -math.inf),
        RejectionReason.NON_FINITE,
        "target.range_rate_m_s: expected a finite number, got -inf",
    ),
    (
        RadarTarget(1e6, azimuth_rad=math.inf),
        RejectionReason.NON_FINITE,
        "target.azimuth_rad: expected a finite number, got inf",
    ),
    (
        RadarTarget(1e6, elevation_rad=1.6),
        RejectionReason.ANGLE,
        "target.elevation_rad: expected within +-pi/2 rad, got 1.6",
    ),
    (
        OpticalTarget(math.nan, 0.0),
        RejectionReason.NON_FINITE,
        "target.right_ascension_rad: expected a finite number, got nan",
    ),
    (
        OpticalTarget(1.0, -1.6),
        RejectionReason.ANGLE,
        "target.declination_rad: expected within +-pi/2 rad, got -1.6",
    ),
    (
        OpticalTarget(1.0, math.nan),
        RejectionReason.NON_FINITE,
        "target.declination_rad: expected a finite number, got nan",
    ),
    (
        StateTarget((6e6, 0.0, 0.0), (0.0, 7e3, 0.0)),
        RejectionReason.BELOW_SURFACE,
        "target.r_teme_m: expected >= 6.35575e+06 m from the Earth's centre (above its surface), got 6000000.0",
    ),
    (
        StateTarget((6e8, 0.0, 0.0), (0.0, 7e3, 0.0)),
        RejectionReason.DISTANCE,
        "target.r_teme_m: expected <= 5e+08 m from the Earth's centre, got 600000000.0",
    ),
    (
        StateTarget((7e6, math.nan, 0.0), (0.0, 7e3, 0.0)),
        RejectionReason.NON_FINITE,
        "target.r_teme_m[1]: expected a finite number, got nan",
    ),
    (
        StateTarget((7e6, math.nan, -math.inf), (0.0, 7e3, 0.0)),
        RejectionReason.NON_FINITE,
        "target.r_teme_m[1]: expected a finite number, got nan",
    ),
    (
        StateTarget((7e6, 0.0, 0.0), (0.0, 0.0, math.inf)),
        RejectionReason.NON_FINITE,
        "target.v_teme_m_s[2]: expected a finite number, got inf",
    ),
    (
        StateTarget((7e6, 0.0, 0.0), (0.0, 3e4, 0.0)),
        RejectionReason.SPEED,
        "target.v_teme_m_s: expected <= 22372 m/s, got 30000.0",
    ),
]


@pytest.mark.parametrize(("target", "reason", "message"), REJECTED, ids=[message for _, _, message in REJECTED])
def test_implausible_observations_are_rejected_with_field_bound_and_value(
    target: Target,
    reason: RejectionReason,
    message: str,
) -> None:
    """The code is stable, and the message has the field, the expected and the actual value."""
    found = rejection(target)
    assert found is not None
    assert (found.reason, found.message) == (reason, message)


def test_a_radar_target_inside_the_earth_is_rejected() -> None:
    """1,000 km away and 30 degrees below the horizon is below the surface."""
    found = rejection(RadarTarget(1e6, elevation_rad=-math.radians(30)))
    assert found is not None
    assert (found.reason, found.field) == (RejectionReason.BELOW_SURFACE, "target.elevation_rad")
    assert found.actual == pytest.approx(5_941_590.2, abs=1.0)  # law of cosines, R = 6378137 m


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_timestamp_may_differ_from_the_reference_by_the_skew_and_no_more(sign: int) -> None:
    """Exactly five minutes before or after pass; one nanosecond more does not."""
    five_minutes_ns = 5 * 60 * 10**9
    assert rejection(at=NOW + sign * five_minutes_ns) is None
    found = rejection(at=NOW + sign * (five_minutes_ns + 1))
    assert found is not None
    assert found.reason is RejectionReason.CLOCK_SKEW
    assert found.message == (
        f"sensor_timestamp: expected at most 300 s before and 300 s after {NOW} ns, got {NOW + sign * (five_minutes_ns + 1)}"
    )


def test_a_replay_is_validated_with_its_own_time() -> None:
    """Data that are years old pass if the reference time is as old."""
    old = NOW - 10 * 365 * 86_400 * 10**9
    assert validate(observation(at=old), reference_time_ns=old, limits=LIMITS) is None


@pytest.mark.parametrize("name", Uncertainty.__struct_fields__)
@pytest.mark.parametrize(
    ("sigma", "reason"),
    [
        (0.0, RejectionReason.SIGMA),
        (-1.0, RejectionReason.SIGMA),
        (math.nan, RejectionReason.NON_FINITE),
        (math.inf, RejectionReason.NON_FINITE),
    ],
)
def test_a_stated_sigma_must_be_a_positive_number(name: str, sigma: float, reason: RejectionReason) -> None:
    """Each sigma is checked, and the rejection names it."""
    found = rejection(uncertainty=Uncertainty(**{name: sigma}))
    assert found is not None
    assert (found.reason, found.field) == (reason, f"uncertainty.{name}")


def test_the_first_failing_check_is_reported_in_the_documented_order() -> None:
    """If the reported value of an observation with many errors is corrected, the next error in order is reported."""
    bad_sigma, nan, inf = Uncertainty(sigma_range_m=-1.0), math.nan, math.inf
    all_wrong_to_all_right = [
        (0, RadarTarget(-1.0, nan, inf, 9.0), bad_sigma, "sensor_timestamp"),
        (NOW, RadarTarget(-1.0, nan, inf, 9.0), bad_sigma, "target.range_m"),
        (NOW, RadarTarget(1e6, nan, inf, 9.0), bad_sigma, "target.range_rate_m_s"),
        (NOW, RadarTarget(1e6, 0.0, inf, 9.0), bad_sigma, "target.azimuth_rad"),
        (NOW, RadarTarget(1e6, 0.0, 0.0, 9.0), bad_sigma, "target.elevation_rad"),
        (NOW, RadarTarget(1e6, 0.0, 0.0, 0.5), bad_sigma, "uncertainty.sigma_range_m"),
    ]
    for at, target, uncertainty, expected in all_wrong_to_all_right:
        found = rejection(target, uncertainty, at)
        assert found is not None
        assert found.field == expected


anything = st.floats()
maybe = st.none() | anything
vector = st.tuples(anything, anything, anything)
targets = st.one_of(
    st.builds(RadarTarget, anything, maybe, maybe, maybe),
    st.builds(OpticalTarget, anything, anything),
    st.builds(StateTarget, vector, vector),
)


@given(targets, st.builds(Uncertainty, maybe, maybe, maybe, maybe, maybe), st.integers(0, 2**64 - 1))
def test_it_never_raises_and_no_non_finite_number_passes(
    target: Target,
    uncertainty: Uncertainty,
    at: int,
) -> None:
    """An observation that passes has finite components only; a rejection has a message."""
    candidate = observation(target, uncertainty, at)
    found = validate(candidate, reference_time_ns=at, limits=LIMITS)
    if found is not None:
        assert found.field in found.message
        return
    flat: list[object] = list(msgspec.structs.astuple(uncertainty))
    for component in msgspec.structs.astuple(target):
        flat += component if isinstance(component, tuple) else [component]
    assert all(math.isfinite(number) for number in flat if isinstance(number, float))


def test_all_invalid_limits_are_reported_at_once() -> None:
    """The message has the bound and the value of each."""
    with pytest.raises(ValueError, match="ValidationLimits") as raised:
        ValidationLimits(
            max_clock_skew=timedelta(0),
            max_distance_m=math.nan,
            max_speed_m_s=-1.0,
            surface_tolerance_m=math.inf,
        )
    assert str(raised.value) == (
        "ValidationLimits: max_clock_skew must be > 0, got datetime.timedelta(0); "
        "ValidationLimits: max_distance_m must be finite and > 0, got nan; "
        "ValidationLimits: max_speed_m_s must be finite and > 0, got -1.0; "
        "ValidationLimits: surface_tolerance_m must be finite, >= 0, got inf"
    )
