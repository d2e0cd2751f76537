"""The assumed uncertainty of element sets: one standard deviation in the orbit's own axes, growing with age.

Element sets have no covariance. The defaults are round figures after Flohrer, Krag and Klinkrad, "Assessment and
Categorization of TLE Orbit Errors for the US SSN Catalogue", AMOS 2008, for the day of the epoch. After it the errors grow,
mostly in-track because of drag. All figures are settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orchestrator_adapter import check_fields
from sda_ops.astro.time import NS_PER_DAY, Floats, Nanoseconds

NEAR_EARTH_PERIOD_S = 225.0 * 60.0
"""SGP4 treats shorter periods as near-Earth (AIAA 2006-6753). Here they are the orbits with considerable drag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisErrors:
    """One standard deviation along each axis of an orbit at the epoch, and its growth per day before or after the epoch.

    Attributes:
        radial_m: Away from the Earth's centre, at the epoch.
        in_track_m: Along the motion, at the epoch.
        cross_track_m: Along the orbit's normal, at the epoch.
        radial_m_per_day: Growth of ``radial_m``.
        in_track_m_per_day: Growth of ``in_track_m``.
        cross_track_m_per_day: Growth of ``cross_track_m``.
    """

    radial_m: float
    in_track_m: float
    cross_track_m: float
    radial_m_per_day: float
    in_track_m_per_day: float
    cross_track_m_per_day: float

    def __post_init__(self) -> None:
        check_fields(
            "AxisErrors",
            *((name, getattr(self, name), 0.0 < getattr(self, name) < np.inf, "> 0 and finite") for name in _AT_EPOCH),
            *((name, getattr(self, name), 0.0 <= getattr(self, name) < np.inf, ">= 0 and finite") for name in _GROWTH),
        )


_AT_EPOCH = ("radial_m", "in_track_m", "cross_track_m")
_GROWTH = tuple(f"{name}_per_day" for name in _AT_EPOCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementSetErrors:
    """The assumed errors of element sets by kind of orbit.

    Attributes:
        near_earth: Periods below 225 minutes.
        deep_space: All others.
    """

    near_earth: AxisErrors = field(
        default_factory=lambda: AxisErrors(
            radial_m=120.0,
            in_track_m=500.0,
            cross_track_m=140.0,
            radial_m_per_day=30.0,
            in_track_m_per_day=1_000.0,
            cross_track_m_per_day=30.0,
        )
    )
    deep_space: AxisErrors = field(
        default_factory=lambda: AxisErrors(
            radial_m=400.0,
            in_track_m=500.0,
            cross_track_m=150.0,
            radial_m_per_day=100.0,
            in_track_m_per_day=500.0,
            cross_track_m_per_day=50.0,
        )
    )


class CatalogErrors:
    """`ElementSetErrors` applied to every object of a catalogue.

    Velocity errors follow from position errors. With mean motion n, an object that is ahead on its orbit by d moves inwards
    by n d relative to the predicted state, and an object that is too high by d is too slow by about n d.
    """

    def __init__(self, errors: ElementSetErrors, *, epoch_ns: Nanoseconds, mean_motion_rad_s: Floats) -> None:
        near = 2.0 * np.pi / mean_motion_rad_s < NEAR_EARTH_PERIOD_S
        self._epoch_ns = epoch_ns
        self._mean_motion_rad_s = mean_motion_rad_s
        self._at_epoch_m = _rows(errors, near, _AT_EPOCH)
        self._growth_m_per_day = _rows(errors, near, _GROWTH)

    def variances(self, objects: Objects, timestamp_ns: Nanoseconds) -> tuple[Floats, Floats]:
        """Variances of position (m^2) and velocity (m^2/s^2) of object i at time i: radial, in-track, cross-track ``(n, 3)``."""
        sigma_m = self.sigmas_m(objects, timestamp_ns)
        sigma_m_s = self._mean_motion_rad_s[objects, np.newaxis] * sigma_m[:, (1, 0, 2)]
        return sigma_m**2, sigma_m_s**2

    def sigmas_m(self, objects: Objects, timestamp_ns: Nanoseconds) -> Floats:
        """Standard deviations of the position of object i at time i: radial, in-track, cross-track ``(n, 3)``."""
        age_days = np.abs(timestamp_ns - self._epoch_ns[objects]) / NS_PER_DAY
        sigma_m: Floats = self._at_epoch_m[objects] + self._growth_m_per_day[objects] * age_days[:, np.newaxis]
        return sigma_m


def _rows(errors: ElementSetErrors, near: np.typing.NDArray[np.bool_], names: tuple[str, ...]) -> Floats:
    of_near, of_deep = (
        np.array([getattr(kind, name) for name in names]) for kind in (errors.near_earth, errors.deep_space)
    )
    rows: Floats = np.where(near[:, np.newaxis], of_near, of_deep)
    return rows


Objects = np.typing.NDArray[np.intp]
"""Row numbers of a catalogue."""
