"""What became of an observation: whose it is, or that it is nobody's; and what several sensors said of one object.

Frozen, slotted values, as `sda_ops.records.observation`. The fields follow the Unified Data Library's ``ObsCorrelation`` in meaning;
each says which. No I/O, no orchestrator, and nothing of how it was found (that is `sda_ops.correlate`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

from sda_ops.records.observation import SourceKind

Association: TypeAlias = Literal["correlated", "ambiguous", "uct", "unpredicted"]
"""``correlated``: one object's. ``ambiguous``: it could be one of several. ``uct``: no catalogued object was there, an
uncorrelated track. ``unpredicted``: nobody can say, because where the catalogue is at that time, or where the sensor
stands, is not known."""


class Residuals(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Measured minus predicted, for each component that was measured; angles as they are on the sky.

    Attributes:
        range_m: Slant range.
        range_rate_m_s: Its rate.
        azimuth_rad: Times the cosine of the elevation.
        elevation_rad: Above the horizon.
        right_ascension_rad: Times the cosine of the declination.
        declination_rad: Above the J2000 equator.
        radial_m: Of a state vector, along the predicted position.
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
    """One observation, and whose it is (``ObsCorrelation`` with ``corrType`` ``OBSERVATION``).

    Attributes:
        observation_id: The observation's own id, unchanged (``obId``).
        source_id: Which sensor.
        source_kind: Which kind (``obType``: RADAR, EO; a beacon is neither).
        sensor_timestamp: When the sensor measured, UTC nanoseconds.
        ingest_timestamp: When this pipeline took it in, UTC nanoseconds.
        correlated_timestamp: When this was found, UTC nanoseconds (``msgTs``).
        association: What was found.
        track_id: The sensor's own track (``trackId``).
        catalog_number: The object; only where ``association`` is ``correlated`` (``satNo``).
        candidates: Catalogue numbers of every object that it could be, the likeliest first.
        reference_orbit_id: The element set that the residuals are against, ``<catalogue number>@<epoch, UTC ns>``
            (``referenceOrbitId``, of ``referenceOrbitType`` ``ELSET``).
        mahalanobis_squared: Squared distance from the likeliest candidate, in standard deviations; chi-squared with
            ``components`` degrees of freedom if it is the right one.
        components: How many numbers were measured.
        probability: Of the likeliest candidate among all, which were equally likely before (``corrQuality``).
        residuals: Against the likeliest candidate.
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
    """What one observation adds to a cross-sensor update.

    Attributes:
        observation_id: The observation's own id.
        source_id: Which sensor.
        sensor_timestamp: When it measured, UTC nanoseconds.
        residuals: Against the object's element set.
    """

    observation_id: UUID
    source_id: str
    sensor_timestamp: int
    residuals: Residuals


class CrossSensorUpdate(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Several sensors saw one object within one window.

    Attributes:
        update_id: From the object and the contributing ids: the same contributions, the same id.
        catalog_number: The object.
        opened_timestamp: When the first contribution arrived here, UTC nanoseconds.
        closed_timestamp: When the window was closed, UTC nanoseconds.
        contributions: In order of arrival; of two sensors at the least.
        ingest_timestamp: The first contribution's.
    """

    update_id: UUID
    catalog_number: int
    opened_timestamp: int
    closed_timestamp: int
    contributions: tuple[Contribution, ...]
    ingest_timestamp: int
