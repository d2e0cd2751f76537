"""Results of correlation: the object of an observation, and the update of one object by several sensors.

Frozen, slotted values. The fields have the meaning of the Unified Data Library's ``ObsCorrelation``; each names its
counterpart. No I/O and no orchestrator; how they are computed is `sda_ops.correlate`'s.
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

from sda_ops.records.observation import SourceKind

Association: TypeAlias = Literal["correlated", "ambiguous", "uct", "unpredicted"]
"""``correlated``: it is of one object. ``ambiguous``: it could be of one of several. ``uct``: uncorrelated track, no
catalogued object was there. ``unpredicted``: undecided, because the catalogue's positions at that time, or the sensor's
position, are unknown."""


class Residuals(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Measured minus predicted, for each component that was measured; angles as arcs on the sky.

    Attributes:
        range_m: Slant range.
        range_rate_m_s: Rate of the slant range.
        azimuth_rad: Azimuth, multiplied by the cosine of the elevation.
        elevation_rad: Elevation above the horizon.
        right_ascension_rad: Right ascension, multiplied by the cosine of the declination.
        declination_rad: Declination above the J2000 equator.
        radial_m: State vectors only: along the predicted position.
        in_track_m: Completes the right-handed triad: along the velocity of a circular orbit.
        cross_track_m: Along the predicted angular momentum.
        speed_m_s: Length of the velocity's difference.
    """

    range_m: float | None = None
    range_rate_m_s: float | None = None
    azimuth_rad: float | None = None
    elevation_rad: float | None = None
    right_ascension_rad: float | None = None
    declination_rad: float | None = None
    radial_m: float | None = None
    in_track_m: float | None = None
    cross_track_m: float | None = None
    speed_m_s: float | None = None


class Correlation(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One observation and its object (``ObsCorrelation`` with ``corrType`` ``OBSERVATION``).

    Attributes:
        observation_id: The observation's own id, unchanged (``obId``).
        source_id: The sensor.
        source_kind: The kind of sensor (``obType``: RADAR, EO; a beacon is neither).
        sensor_timestamp: When the sensor measured, UTC nanoseconds.
        ingest_timestamp: When this pipeline ingested it, UTC nanoseconds.
        correlated_timestamp: When it was correlated, UTC nanoseconds (``msgTs``).
        association: The result.
        track_id: The sensor's own track (``trackId``).
        catalog_number: The object; only if ``association`` is ``correlated`` (``satNo``).
        candidates: Catalogue numbers of every object that it could be, the most probable first.
        reference_orbit_id: The element set of the residuals, ``<catalogue number>@<epoch, UTC ns>`` (``referenceOrbitId``,
            with ``referenceOrbitType`` ``ELSET``).
        mahalanobis_squared: Squared distance from the most probable candidate, in standard deviations; chi-squared with
            ``components`` degrees of freedom if the candidate is right.
        components: How many numbers were measured.
        probability: Probability of the most probable candidate, with equal prior probabilities (``corrQuality``).
        residuals: Relative to the most probable candidate.
    """

    observation_id: UUID
    source_id: str
    source_kind: SourceKind
    sensor_timestamp: int
    ingest_timestamp: int
    correlated_timestamp: int
    association: Association
    track_id: str | None = None
    catalog_number: int | None = None
    candidates: tuple[int, ...] = ()
    reference_orbit_id: str | None = None
    mahalanobis_squared: float | None = None
    components: int = 0
    probability: float | None = None
    residuals: Residuals | None = None


class Contribution(msgspec.Struct, frozen=True, gc=False):
    """One observation's part of a cross-sensor update.

    Attributes:
        observation_id: The observation's own id.
        source_id: The sensor.
        sensor_timestamp: When the sensor measured, UTC nanoseconds.
        residuals: Relative to the object's element set.
    """

    observation_id: UUID
    source_id: str
    sensor_timestamp: int
    residuals: Residuals


class CrossSensorUpdate(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Several sensors observed one object within one window of event time, or this is not true any more.

    Those that are true are those that were inserted and not retracted, in any order.

    Attributes:
        update_id: Made from the object and the contributing ids. A retraction has the id of what it retracts, and that id
            is never inserted again.
        catalog_number: The object.
        start_timestamp: The first nanosecond of the window, event time: that of the first contribution.
        end_timestamp: The first nanosecond after the window, event time.
        contributions: In order of event time, from at least two sensors.
        ingest_timestamp: When the first of them was ingested.
        retracted: Late observations have changed the window: the update with this id is not true any more.
    """

    update_id: UUID
    catalog_number: int
    start_timestamp: int
    end_timestamp: int
    contributions: tuple[Contribution, ...]
    ingest_timestamp: int
    retracted: bool = False
