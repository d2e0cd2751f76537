"""How far a pair of objects can move within a slice: the bounds that make the screening complete.

A slice is an interval of time of length 2S. For each object there are a position p, a velocity u and its distance from the
Earth's centre, rho, at the middle of the slice. For a pair, d and w are the relative position and velocity there. The
screening looks for pairs that come within the miss distance D of each other at any time in the slice. Each bound below is
an inequality that such a pair obeys at the middle of the slice. A pair that violates one of them cannot come within D and is
dropped; no other pair is. No bound depends on a slice being "short enough": a longer slice makes the bounds wider.

Assumptions, each checked in every run (`sda_ops.screening.geometry.ephemeris`):

- *eps*: the interpolated position is within eps of SGP4's. The eighth differences of the knots measure it for each object,
  and the refinement compares the interpolated distance with SGP4's for each candidate.
- *beta*: the acceleration of the interpolated orbit differs from gravity (point mass and J2) by at most beta. For 14,683
  real objects at 40 times the greatest difference was 1.15e-5 km/s2, the median 5.5e-8. The second differences of the knots
  measure it for each object. An object beyond `BETA_KM_S2` gets twice its measured value as its own beta.
- *G*: the norm of the gradient of gravity is at most `GRADIENT_S2` wherever SGP4 has a position, which is above the Earth's
  surface. For a point mass it is 2 mu / r3 (Montenbruck and Gill, *Satellite Orbits*, 2000, section 7.2). J2 adds 0.3 %. Two
  objects differ in gravity by at most 2 mu / R3 times their distance also where the chord between them passes through the
  Earth: with radii a, b >= R and x = 2 - 2 cos of the angle between them, the squared difference is mu2 times
  (1/a2 - 1/b2)2 + x / (a2 b2), the squared distance is (a - b)2 + a b x, and both terms have a ratio of at most 4 mu2 / R6.
  Hence 2.1 mu / R3 has room.

The bounds, in the order of their derivation:

(0) *Separation.* If the pair is within D at some time in the slice, it is within sep during the whole slice. Its relative
    speed is at most |w| + S (G sep + beta), because gravity at two points sep apart differs by at most G sep. So
    sep <= D + 2 S (|w| + S (G sep + beta)), and therefore sep <= (D + 2 S |w| + 2 S2 beta) / (1 - 2 S2 G).
    Here and below, beta of a pair is the sum of both.
(c) *Straight line.* The relative motion leaves the straight line d + w s by at most s2/2 times the greatest relative
    acceleration: E = S2/2 (G sep + beta) + 2 eps. So the least distance of that line from zero in the slice is at most D + E.
(a) *Distance.* It follows that |d| <= D + E + |w| S.
(d) *Parabola.* With the difference of gravity at the middle, a, the motion leaves the parabola d + w s + a s2/2 by at most
    E' = S3/6 G (v1 + v2) + S2/2 beta + 2 eps, because gravity along an orbit changes by at most G v a second. v1 and v2 are
    the greatest speeds in the slice.
(b) *Radius.* |rho1 - rho2| is at most the distance. rho of an object changes in half a slice by at most
    q = |rho'| S + S2/2 |rho''| + S3 m (|rho'| + |rho''| S) + beta S2, with rho'' = (u2 - rho'2)/rho - mu/rho2 up to J2 and
    beta, and m = max(mu/rho3, vt2/rho2) for the speed vt across the radius: |rho'''| <= 4 m |rho'| follows from the
    derivative of vt2/rho - mu/rho2 at constant angular momentum; the factor 1 instead of 4/6 covers the change of rho and
    rho' within the slice. So |rho1 - rho2| <= D + q1 + q2. The geocentric distance as an additional axis is the idea of
    cascade (ESA, github.com/esa/cascade).
(e) *One minimum.* The second derivative of half the squared distance is w2 + d a. Above the speed
    `slow_km_s` it is positive as long as the pair is within reach, so there is one minimum at most, and Newton's method
    finds it. Slower pairs are sampled within the slice instead.

What is not claimed: SGP4's positions have steps, of up to 12 m (among other causes, it holds the mean eccentricity above 1e-6);
in deep space, where the inclination passes 0.2 rad, of kilometres. Objects with a step beyond the bound have no knots.
Where a pair passes such a step, the distance may have a minimum that is only as deep as the step. The interpolated
distance does not have it, and the range-rate has no root there. Such a minimum may therefore be missing: one shallower than
2 eps between two slow maxima, or, in deep space at 0.2 rad, one at the time of the step itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sda_ops.astro.time import Floats

MU_KM3_S2 = 398600.8
"""Gravitational parameter of WGS-72, which SGP4 uses (AIAA 2006-6753)."""

EARTH_RADIUS_KM = 6378.135
"""WGS-72, equatorial. SGP4 reports an object nearer to the centre as decayed."""

J2 = 1.082616e-3
"""WGS-72."""

GRADIENT_S2 = 2.1 * MU_KM3_S2 / EARTH_RADIUS_KM**3
"""The greatest norm of the gradient of gravity outside the Earth: 3.2e-6 1/s2."""

BETA_KM_S2 = 2e-5
"""The acceleration that an object may have beyond gravity before it gets a bound of its own."""

OBLATE_KM_S2 = 3.0 * J2 * MU_KM3_S2 / EARTH_RADIUS_KM**2
"""The greatest radial acceleration by J2: 3.2e-5 km/s2, above the poles at the surface."""

ROUNDING_KM = 0.04
"""Room for single precision, which is accurate to 16 m up to 500,000 km."""

SLOWEST_KM_S = 0.1
"""Pairs below this relative speed are always sampled within the slice."""


def gravity(r_km: Floats) -> Floats:
    """Acceleration by the Earth as a point mass with J2, km/s2: ``(3, n)`` -> ``(3, n)``; z is the Earth's axis.

    Source: Vallado, *Fundamentals of Astrodynamics and Applications*, section 8.7.1.
    """
    x, y, z = r_km
    inverse2 = 1.0 / (x * x + y * y + z * z)
    oblate = 1.5 * J2 * EARTH_RADIUS_KM**2 * inverse2
    axial = 5.0 * z * z * inverse2
    central = -MU_KM3_S2 * inverse2 * np.sqrt(inverse2)
    across = central * (1.0 - oblate * (axial - 1.0))
    return np.stack((across * x, across * y, central * (1.0 - oblate * (axial - 3.0)) * z))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of one slice. All methods take and return arrays of one shape, in km, km/s and km/s2.

    Attributes:
        miss_km: The miss distance D.
        half_s: Half the length of a slice, S.
        interpolation_km: eps.
    """

    miss_km: float
    half_s: float
    interpolation_km: float

    def __post_init__(self) -> None:
        if not 2.0 * self.half_s**2 * GRADIENT_S2 < 1.0:
            raise ValueError(
                f"an interval of {2.0 * self.half_s:g} s is too long for bound 0: use shorter knots or slices"
            )

    @property
    def near_km(self) -> float:
        """The greatest interpolated distance of a pair whose distance by SGP4 is at most the miss distance."""
        return self.miss_km + 2.0 * self.interpolation_km

    def separation_km(self, speed_km_s: Floats, beta_km_s2: Floats) -> Floats:
        """Bound 0, of pairs with this relative speed and sum of betas."""
        half_s = self.half_s
        moved_km = 2.0 * half_s * (speed_km_s + half_s * beta_km_s2)
        return (self.near_km + moved_km) / (1.0 - 2.0 * half_s * half_s * GRADIENT_S2)

    def line_km(self, speed_km_s: Floats, beta_km_s2: Floats) -> Floats:
        """Bound c, D + E."""
        curved = GRADIENT_S2 * self.separation_km(speed_km_s, beta_km_s2) + beta_km_s2
        return self.near_km + 0.5 * self.half_s**2 * curved

    def distance_km(self, speed_km_s: Floats, beta_km_s2: Floats) -> Floats:
        """Bound a."""
        return self.line_km(speed_km_s, beta_km_s2) + speed_km_s * self.half_s

    def parabola_km(self, speeds_km_s: Floats, beta_km_s2: Floats) -> Floats:
        """Bound d, D + E', of pairs with this sum of both objects' speeds in the middle."""
        half_s = self.half_s
        surface_gravity_km_s2 = 1.01 * MU_KM3_S2 / EARTH_RADIUS_KM**2
        greatest_km_s = speeds_km_s + half_s * (2.0 * surface_gravity_km_s2 + beta_km_s2)
        return self.near_km + half_s**3 / 6.0 * GRADIENT_S2 * greatest_km_s + 0.5 * half_s**2 * beta_km_s2

    def radial_km(self, r_km: Floats, v_km_s: Floats, beta_km_s2: Floats) -> tuple[Floats, Floats]:
        """Bound b, of objects: rho and q. Positions and velocities are ``(..., 3, n)``, betas ``(n,)``."""
        half_s = self.half_s
        rho = np.sqrt(_dot(r_km, r_km))
        inverse = 1.0 / rho
        rate = np.abs(_dot(r_km, v_km_s)) * inverse
        across2 = _dot(v_km_s, v_km_s) - rate * rate
        second = np.abs(across2 - MU_KM3_S2 * inverse) * inverse + (OBLATE_KM_S2 + beta_km_s2)
        third = np.maximum(across2, MU_KM3_S2 * inverse) * (inverse * inverse)
        q = rate * half_s + second * (0.5 * half_s**2) + third * (rate + second * half_s) * half_s**3
        return rho, q + (beta_km_s2 * half_s**2 + self.interpolation_km)

    def slow_km_s(self, beta_km_s2: Floats) -> Floats:
        """The relative speed of bound e: five times that at which the squared distance stops to be convex at D + 5 km."""
        reach_km = self.near_km + 5.0
        convex = np.maximum(math.sqrt(GRADIENT_S2) * reach_km, np.sqrt(beta_km_s2 * reach_km))
        return np.maximum(SLOWEST_KM_S, 5.0 * convex)


def _dot(a: Floats, b: Floats) -> Floats:
    """The scalar product over the axis of three, the last but one."""
    result: Floats = a[..., 0, :] * b[..., 0, :] + a[..., 1, :] * b[..., 1, :] + a[..., 2, :] * b[..., 2, :]
    return result
