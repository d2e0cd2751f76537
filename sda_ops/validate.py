"""Validation: physically impossible observations are rejected with a reason. Nothing is corrected here.

Pure: the reference time is passed in. The bounds are physical ones for objects around the Earth, wider than the noise of
any real sensor. So they find broken sensors and decoders, not poor measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from math import hypot, inf, isfinite, pi, sin, sqrt

import msgspec

from orchestrator_adapter import Reject, Verdict, check_fields
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget, Uncertainty

EARTH_POLAR_RADIUS_M = 6_356_752.3142
"""WGS-84 semi-minor axis (NIMA TR8350.2, table 3.1): no point of the surface is nearer to the centre."""

EARTH_EQUATORIAL_RADIUS_M = 6_378_137.0
"""WGS-84 semi-major axis (NIMA TR8350.2, table 3.1)."""

ESCAPE_SPEED_M_S = 11_186.0
"""At the Earth's surface, sqrt(2 GM / R) (NASA Earth Fact Sheet: 11.186 km/s): nothing in orbit is faster."""

LUNAR_APOGEE_M = 406_700_000.0
"""The Moon's greatest distance (Meeus, Astronomical Algorithms, ch. 50): the far end of cislunar traffic."""

_HALF_PI = pi / 2


class RejectionReason(StrEnum):
    """Why an observation was rejected: stable codes, for counters and dead letters."""

    CLOCK_SKEW = "clock_skew"
    NON_FINITE = "non_finite"
    RANGE = "range"
    RANGE_RATE = "range_rate"
    ANGLE = "angle"
    BELOW_SURFACE = "below_surface"
    DISTANCE = "distance"
    SPEED = "speed"
    SIGMA = "sigma"


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """The first invalid value of an observation.

    Attributes:
        reason: The stable code.
        field: The path of the value in the observation, e.g. ``target.range_m``.
        expected: The valid values, with the unit.
        actual: The value.
    """

    reason: RejectionReason
    field: str
    expected: str
    actual: float

    @property
    def message(self) -> str:
        """One sentence for people."""
        return f"{self.field}: expected {self.expected}, got {self.actual!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationLimits:
    """The bounds of plausible observations.

    Attributes:
        max_clock_skew: How far a sensor's timestamp may lie ahead of the reference time, and behind it unless `max_age`
            says otherwise.
        max_age: How far it may lie behind the reference time, if that is more: the backlog of an archive after an outage is
            old but valid.
        max_distance_m: Greatest slant range, and greatest distance from the Earth's centre.
        max_speed_m_s: Greatest speed, and greatest range rate. The default is twice the escape speed.
        surface_tolerance_m: How far below the surface (of the polar radius) noise may put a position.
        max_clock_skew_ns: `max_clock_skew` in the unit of the check.
        max_age_ns: `max_age` in the unit of the check.
    """

    max_clock_skew: timedelta = timedelta(minutes=5)
    max_distance_m: float = 500_000_000.0  # LUNAR_APOGEE_M and a quarter
    max_speed_m_s: float = 2 * ESCAPE_SPEED_M_S
    surface_tolerance_m: float = 1_000.0
    max_age: timedelta | None = None
    max_clock_skew_ns: int = field(init=False, repr=False)
    max_age_ns: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(
            "ValidationLimits",
            ("max_clock_skew", self.max_clock_skew, self.max_clock_skew > timedelta(0), "> 0"),
            ("max_age", self.max_age, self.max_age is None or self.max_age > timedelta(0), "> 0"),
            ("max_distance_m", self.max_distance_m, 0 < self.max_distance_m < inf, "finite and > 0"),
            ("max_speed_m_s", self.max_speed_m_s, 0 < self.max_speed_m_s < inf, "finite and > 0"),
            ("surface_tolerance_m", self.surface_tolerance_m, 0 <= self.surface_tolerance_m < inf, "finite, >= 0"),
        )
        max_age = self.max_clock_skew if self.max_age is None else self.max_age
        object.__setattr__(self, "max_clock_skew_ns", self.max_clock_skew // timedelta(microseconds=1) * 1000)
        object.__setattr__(self, "max_age_ns", max_age // timedelta(microseconds=1) * 1000)


def validate(observation: Observation, *, reference_time_ns: int, limits: ValidationLimits) -> Rejection | None:
    """``None`` if the observation is plausible, otherwise its first invalid value.

    The order is fixed: the sensor's timestamp; then the target's numbers in the record's order, each for being finite and
    then for its bound; then checks of several numbers together; last the stated sigmas. Absent components pass.

    Args:
        observation: In the convention of `sda_ops.normalize`.
        reference_time_ns: UTC nanoseconds: the current time for a live source, the recorded time for a replay.
        limits: The bounds.
    """
    timestamp_ns = observation.sensor_timestamp
    if not -limits.max_age_ns <= timestamp_ns - reference_time_ns <= limits.max_clock_skew_ns:
        behind_s, ahead_s = limits.max_age_ns / 1e9, limits.max_clock_skew_ns / 1e9
        expected = f"at most {behind_s:g} s before and {ahead_s:g} s after {reference_time_ns} ns"
        return Rejection(RejectionReason.CLOCK_SKEW, "sensor_timestamp", expected, timestamp_ns)
    target = observation.target
    if type(target) is RadarTarget:
        rejection = _radar(target, limits)
    elif type(target) is OpticalTarget:
        rejection = _optical(target)
    else:
        assert type(target) is StateTarget
        rejection = _state(target, limits)
    return _sigmas(observation.uncertainty) if rejection is None else rejection


def validator(
    *, max_clock_skew: timedelta, max_archive_age: timedelta, uses_own_time: Callable[[str], bool] = lambda _: False
) -> Callable[[Observation], Verdict]:
    """The function for ``sift``: it returns ``None`` for a plausible observation, otherwise a ``Reject`` with the reason.

    Args:
        max_clock_skew: How far a sensor's timestamp may lie from the reference time.
        max_archive_age: How far the timestamp of an optical observation may lie behind it.
        uses_own_time: True for the ``source_id`` of a replayed sensor: its own timestamp is the reference time. For every
            other source this is the time of arrival.
    """
    live = ValidationLimits(max_clock_skew=max_clock_skew)
    archived = ValidationLimits(max_clock_skew=max_clock_skew, max_age=max_archive_age)

    def verdict(observation: Observation) -> Verdict:
        own_time = uses_own_time(observation.source_id)
        reference_ns = observation.sensor_timestamp if own_time else observation.ingest_timestamp
        limits = archived if observation.source_kind == "optical" else live
        rejection = validate(observation, reference_time_ns=reference_ns, limits=limits)
        return None if rejection is None else Reject(f"{rejection.reason}: {rejection.message}")

    return verdict


# Every bound is a chained comparison that also fails for NaN and infinities. So a valid number costs one comparison, and
# only `_rejected` distinguishes the two failures.


def _radar(target: RadarTarget, limits: ValidationLimits) -> Rejection | None:
    range_m, rate_m_s = target.range_m, target.range_rate_m_s
    azimuth, elevation = target.azimuth_rad, target.elevation_rad
    if not 0.0 < range_m <= limits.max_distance_m:
        expected = f"> 0 m and <= {limits.max_distance_m:g} m"
        return _rejected(RejectionReason.RANGE, "target.range_m", expected, range_m)
    if rate_m_s is not None and not -limits.max_speed_m_s <= rate_m_s <= limits.max_speed_m_s:
        expected = f"within +-{limits.max_speed_m_s:g} m/s"
        return _rejected(RejectionReason.RANGE_RATE, "target.range_rate_m_s", expected, rate_m_s)
    if azimuth is not None and not -inf < azimuth < inf:
        return _rejected(RejectionReason.ANGLE, "target.azimuth_rad", "a finite number", azimuth)
    if elevation is not None:
        if not -_HALF_PI <= elevation <= _HALF_PI:
            return _rejected(RejectionReason.ANGLE, "target.elevation_rad", "within +-pi/2 rad", elevation)
        if elevation < 0.0:
            return _below_horizon(range_m, elevation, limits)
    return None


def _below_horizon(range_m: float, elevation_rad: float, limits: ValidationLimits) -> Rejection | None:
    """Reject a target that is inside the Earth; one below the horizon but above the surface is valid.

    Law of cosines from a site on a spherical Earth. The site is unknown here, so the equatorial radius is used: the largest
    radius rejects the fewest targets.
    """
    site_m = EARTH_EQUATORIAL_RADIUS_M
    radius_m = sqrt(max(0.0, site_m**2 + range_m**2 + 2 * site_m * range_m * sin(elevation_rad)))
    return _below_surface("target.elevation_rad", radius_m, limits)


def _optical(target: OpticalTarget) -> Rejection | None:
    ascension, declination = target.right_ascension_rad, target.declination_rad
    if not -inf < ascension < inf:
        return _rejected(RejectionReason.ANGLE, "target.right_ascension_rad", "a finite number", ascension)
    if not -_HALF_PI <= declination <= _HALF_PI:
        return _rejected(RejectionReason.ANGLE, "target.declination_rad", "within +-pi/2 rad", declination)
    return None


def _state(target: StateTarget, limits: ValidationLimits) -> Rejection | None:
    radius_m, speed_m_s = hypot(*target.r_teme_m), hypot(*target.v_teme_m_s)
    if not radius_m <= limits.max_distance_m:
        expected = f"<= {limits.max_distance_m:g} m from the Earth's centre"
        return _rejected_vector(RejectionReason.DISTANCE, "target.r_teme_m", expected, radius_m, target.r_teme_m)
    if rejection := _below_surface("target.r_teme_m", radius_m, limits):
        return rejection
    if not speed_m_s <= limits.max_speed_m_s:
        expected = f"<= {limits.max_speed_m_s:g} m/s"
        return _rejected_vector(RejectionReason.SPEED, "target.v_teme_m_s", expected, speed_m_s, target.v_teme_m_s)
    return None


def _below_surface(name: str, radius_m: float, limits: ValidationLimits) -> Rejection | None:
    least_m = EARTH_POLAR_RADIUS_M - limits.surface_tolerance_m
    if radius_m >= least_m:
        return None
    expected = f">= {least_m:g} m from the Earth's centre (above its surface)"
    return Rejection(RejectionReason.BELOW_SURFACE, name, expected, radius_m)


def _sigmas(uncertainty: Uncertainty) -> Rejection | None:
    # No loop over the names: it would take twice as long, and this runs for every observation.
    if (sigma := uncertainty.sigma_range_m) is not None and not 0.0 < sigma < inf:
        return _rejected(RejectionReason.SIGMA, "uncertainty.sigma_range_m", "> 0", sigma)
    if (sigma := uncertainty.sigma_range_rate_m_s) is not None and not 0.0 < sigma < inf:
        return _rejected(RejectionReason.SIGMA, "uncertainty.sigma_range_rate_m_s", "> 0", sigma)
    if (sigma := uncertainty.sigma_angle_rad) is not None and not 0.0 < sigma < inf:
        return _rejected(RejectionReason.SIGMA, "uncertainty.sigma_angle_rad", "> 0", sigma)
    if (sigma := uncertainty.sigma_position_m) is not None and not 0.0 < sigma < inf:
        return _rejected(RejectionReason.SIGMA, "uncertainty.sigma_position_m", "> 0", sigma)
    if (sigma := uncertainty.sigma_velocity_m_s) is not None and not 0.0 < sigma < inf:
        return _rejected(RejectionReason.SIGMA, "uncertainty.sigma_velocity_m_s", "> 0", sigma)
    return None


def _rejected(reason: RejectionReason, name: str, expected: str, actual: float) -> Rejection:
    """The rejection of one number: as non-finite, or for its bound."""
    if isfinite(actual):
        return Rejection(reason, name, expected, actual)
    return Rejection(RejectionReason.NON_FINITE, name, "a finite number", actual)


def _rejected_vector(
    reason: RejectionReason,
    name: str,
    expected: str,
    norm: float,
    components: tuple[float, float, float],
) -> Rejection:
    """The rejection of a vector: for its first non-finite component, or for its norm."""
    for index, component in enumerate(components):
        if not isfinite(component):
            return Rejection(RejectionReason.NON_FINITE, f"{name}[{index}]", "a finite number", component)
    return Rejection(reason, name, expected, norm)
