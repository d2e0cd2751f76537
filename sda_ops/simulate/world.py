"""Where every object of the catalogue is, at any time: SGP4 every 5 s, cubic Hermite interpolation between.

Positions and velocities at both ends determine the cubic; its error in position is at most h^4/384 times the fourth
derivative, about n^4 r: 0.02 mm in low orbit for h = 5 s, and 0.02 mm/s in velocity, far below any sensor's noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sgp4.api import SatrecArray

from sda_ops.astro.frames import sidereal_angle
from sda_ops.astro.propagation import States, propagate
from sda_ops.astro.sites import Site
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds, julian_date
from sda_ops.astro.topocentric import look
from sda_ops.catalog import ElementSet

STEP_NS = 5 * NS_PER_S
"""Between knots."""


class Interval:
    """The catalogue between two knots, `STEP_NS` apart.

    Attributes:
        start_ns: UTC of the first knot.
        end_ns: UTC of the second.
    """

    def __init__(self, start_ns: int, states: States) -> None:
        self.start_ns = start_ns
        self.end_ns = start_ns + STEP_NS
        self._r_m = np.ascontiguousarray(states.r_teme_m.swapaxes(0, 1))
        self._v_m_s = np.ascontiguousarray(states.v_teme_m_s.swapaxes(0, 1))
        self._propagated = ~states.error.any(axis=1)

    def states(self, objects: npt.NDArray[np.intp], timestamp_ns: Nanoseconds) -> tuple[Floats, Floats]:
        """TEME positions (m) and velocities (m/s), ``(n, 3)`` each, of object i at time i."""
        step_s = STEP_NS / NS_PER_S
        s = ((timestamp_ns - self.start_ns) / STEP_NS)[:, np.newaxis]
        r0, r1 = self._r_m[0, objects], self._r_m[1, objects]
        v0, v1 = self._v_m_s[0, objects] * step_s, self._v_m_s[1, objects] * step_s
        # r = r0 + s v0 + s^2 a + s^3 b, with a and b such that both ends fit.
        a = 3.0 * (r1 - r0) - 2.0 * v0 - v1
        b = v0 + v1 - 2.0 * (r1 - r0)
        return r0 + s * (v0 + s * (a + s * b)), (v0 + s * (2.0 * a + 3.0 * s * b)) / step_s

    def visible(self, site: Site, *, min_elevation_rad: float, max_range_m: float) -> npt.NDArray[np.intp]:
        """The objects above ``min_elevation_rad`` and within range at both knots, hence throughout."""
        seen = self._propagated.copy()
        for r_m, v_m_s, knot_ns in zip(self._r_m, self._v_m_s, (self.start_ns, self.end_ns), strict=True):
            seen_from_site = look(site, r_m, v_m_s, sidereal_angle(*julian_date(np.array(knot_ns))))
            seen &= (seen_from_site.elevation_rad > min_elevation_rad) & (seen_from_site.range_m < max_range_m)
        return np.flatnonzero(seen)

    def propagated(self) -> npt.NDArray[np.intp]:
        """The objects that SGP4 could propagate; the others have decayed or are too far from their epoch."""
        return np.flatnonzero(self._propagated)


class World:
    """A catalogue in motion.

    Attributes:
        catalog_numbers: Of object 0, 1, ...
    """

    def __init__(self, element_sets: Sequence[ElementSet]) -> None:
        self.catalog_numbers: tuple[int, ...] = tuple(elements.catalog_number for elements in element_sets)
        self._satrecs = SatrecArray([elements.satrec for elements in element_sets])
        self._intervals: dict[int, Interval] = {}

    def interval(self, timestamp_ns: int) -> Interval:
        """The interval that contains the time. Costs a propagation of the catalogue the first time it is asked for."""
        knot = timestamp_ns // STEP_NS
        if knot not in self._intervals:
            self._intervals = {kept: interval for kept, interval in self._intervals.items() if kept >= knot - 1}
            knots_ns = np.array([knot, knot + 1], dtype=np.int64) * STEP_NS
            self._intervals[knot] = Interval(knot * STEP_NS, propagate(self._satrecs, knots_ns))
        return self._intervals[knot]
