"""The observation: the decoded measurement of any sensor, and the record of the event log.

Frozen, slotted values in SI units and radians. No I/O, no pydantic, no orchestrator.

A component that a sensor did not measure is absent (``None`` here, no key in JSON), never zero: EISCAT's track of
ENVISAT has range and range-rate but no angles.
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

SourceKind: TypeAlias = Literal["radar", "optical", "isl"]


class RadarTarget(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="radar"):
    """A radar's measurement: topocentric, at the array.

    Attributes:
        range_m: One-way slant range, metres.
        range_rate_m_s: Its rate, metres per second, positive when receding.
        azimuth_rad: Clockwise from true north, radians.
        elevation_rad: Above the local horizon, radians.
    """

    range_m: float
    range_rate_m_s: float | None = None
    azimuth_rad: float | None = None
    elevation_rad: float | None = None


class OpticalTarget(msgspec.Struct, frozen=True, gc=False, tag="optical"):
    """A telescope's measurement: topocentric direction, J2000 equator and equinox, radians."""

    right_ascension_rad: float
    declination_rad: float


class StateTarget(msgspec.Struct, frozen=True, gc=False, tag="state"):
    """A satellite's own state vector, in the TEME frame of the observation's time."""

    r_teme_m: tuple[float, float, float]
    v_teme_m_s: tuple[float, float, float]


Target: TypeAlias = RadarTarget | OpticalTarget | StateTarget


class Uncertainty(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One standard deviation for each kind of component that was measured; absent for the others."""

    sigma_range_m: float | None = None
    sigma_range_rate_m_s: float | None = None
    sigma_angle_rad: float | None = None
    sigma_position_m: float | None = None
    sigma_velocity_m_s: float | None = None


class Observation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One measurement of one object by one sensor: the thin envelope that travels the graph.

    Attributes:
        observation_id: Made once, at the source, from the frame's content: the same frame has the same id across restarts
            and replays. The idempotency key at every boundary.
        source_id: The sensor, e.g. ``radar-3``, ``optical-12``, ``isl-70007``.
        source_kind: The kind of sensor.
        sensor_timestamp: When the sensor measured, UTC nanoseconds since the Unix epoch.
        ingest_timestamp: When this pipeline ingested the frame, UTC nanoseconds since the Unix epoch.
        target: The measured components.
        uncertainty: Their standard deviations.
        track_id: The sensor's own name for the tracked object (radar track number, archive's observation id), as a
            string. Frames with the same one are of one object as the sensor sees it. Not a catalogue number.
    """

    observation_id: UUID
    source_id: str
    source_kind: SourceKind
    sensor_timestamp: int
    ingest_timestamp: int
    target: Target
    uncertainty: Uncertainty
    track_id: str | None = None
