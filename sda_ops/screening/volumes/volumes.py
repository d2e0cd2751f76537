"""Screening volumes: boxes around an asset along its radial, in-track and cross-track directions, and published ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgp4.api import Satrec

LARGEST_HALF_AXIS_M = 1_000_000.0
"""The largest accepted half axis. Published ones reach 364 km; a larger number is most often a length in metres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningVolume:
    """A box with straight sides, centred on the asset and turned with its orbit.

    Radial points away from the Earth's centre, cross-track along the angular momentum, in-track completes the two: it is
    perpendicular to radial and near the velocity. The box does not follow the orbit's curvature: 44 km ahead on the same
    circular low orbit, an object is 0.14 km below the asset's horizontal plane.

    Attributes:
        radial_m: Half axis.
        in_track_m: Half axis.
        cross_track_m: Half axis.
    """

    radial_m: float
    in_track_m: float
    cross_track_m: float

    def __post_init__(self) -> None:
        for name in ("radial_m", "in_track_m", "cross_track_m"):
            value = getattr(self, name)
            if not 0.0 < value <= LARGEST_HALF_AXIS_M:
                raise ValueError(f"ScreeningVolume: {name} must be > 0 and <= {LARGEST_HALF_AXIS_M:g}, got {value:g}")

    @property
    def half_diagonal_m(self) -> float:
        """The distance of a corner: an object in the box is not farther away than this."""
        return math.hypot(self.radial_m, self.in_track_m, self.cross_track_m)


_DEEP_SPACE_MIN = (1300.0, 1800.0)
"""Periods of the deep-space row, minutes."""

_PUBLISHED_LEO = (
    (500.0, ScreeningVolume(radial_m=400.0, in_track_m=44_000.0, cross_track_m=51_000.0)),
    (750.0, ScreeningVolume(radial_m=400.0, in_track_m=25_000.0, cross_track_m=25_000.0)),
    (1200.0, ScreeningVolume(radial_m=400.0, in_track_m=12_000.0, cross_track_m=12_000.0)),
    (2000.0, ScreeningVolume(radial_m=400.0, in_track_m=2_000.0, cross_track_m=2_000.0)),
)
"""LEO 1 to LEO 4: the greatest perigee altitude, km, and the volume."""

_PUBLISHED_DEEP_SPACE = ScreeningVolume(radial_m=10_000.0, in_track_m=10_000.0, cross_track_m=10_000.0)


def published_volume(satrec: Satrec) -> ScreeningVolume | None:
    """The half axes that 18 and 19 SDS use for an object of this orbit in the catalogue; ``None`` where they name none.

    Source: Spaceflight Safety Handbook for Satellite Operators (18 & 19 SDS), version 1.7, April 2023, table 3
    ("HAC vs HAC"): for eccentricities below 0.25, by altitude of perigee, and for periods of 1300 to 1800 minutes below
    35° of inclination.

    **Not verified with the handbook itself**, which could not be obtained. The figures are those that three public programs
    cite from it, and they agree. One of them states that the handbook's volumes are ellipsoids. The box that encloses the
    ellipsoid finds everything that the ellipsoid finds, and more near its corners. The figures are meant for the precise
    catalogue of 18 SDS; public element sets are often wrong by more than 0.4 km radially.
    """
    if satrec.ecco >= 0.25:  # noqa: PLR2004 - the table's own limits, here and below
        return None
    perigee_km = satrec.altp * satrec.radiusearthkm
    for greatest_km, volume in _PUBLISHED_LEO:
        if perigee_km <= greatest_km:
            return volume
    period_min = 2.0 * math.pi / satrec.no_kozai
    if _DEEP_SPACE_MIN[0] < period_min < _DEEP_SPACE_MIN[1] and satrec.inclo < math.radians(35.0):
        return _PUBLISHED_DEEP_SPACE
    return None
