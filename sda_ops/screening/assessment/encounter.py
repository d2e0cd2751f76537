"""The geometry of an encounter: an orbit's own axes, and the plane perpendicular to the relative velocity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sda_ops.astro.time import Floats


def orbit_axes(r_m: Floats, v_m_s: Floats) -> Floats:
    """Rotations ``(n, 3, 3)`` from the frame of the states to radial, in-track, cross-track: ``ric = matrix @ vector``.

    Radial is away from the Earth's centre, cross-track along the angular momentum, in-track completes the triad: the axes of
    a conjunction data message (CCSDS 508.0-B-1, its RTN). The frame must not rotate.
    """
    radial = r_m / np.linalg.norm(r_m, axis=-1, keepdims=True)
    momentum = np.cross(r_m, v_m_s)
    cross_track = momentum / np.linalg.norm(momentum, axis=-1, keepdims=True)
    return np.stack((radial, np.cross(cross_track, radial), cross_track), axis=-2)


class EncounterPlane(NamedTuple):
    """The plane perpendicular to the relative velocity, in which the probability of collision is an integral over a disc.

    Attributes:
        axes: ``(n, 2, 3)``, unit vectors in the frame of the relative state. The first lies along the miss vector.
        miss_m: ``(n, 2)``, the relative position in the plane; its second component is 0 to rounding.
    """

    axes: Floats
    miss_m: Floats

    @classmethod
    def of(cls, relative_position_m: Floats, relative_velocity_m_s: Floats) -> EncounterPlane:
        """The planes of ``(n, 3)`` relative states. Without a miss vector, or without a velocity, an axis is arbitrary."""
        speed_m_s = np.linalg.norm(relative_velocity_m_s, axis=-1, keepdims=True)
        along = np.where(speed_m_s > 0.0, relative_velocity_m_s / np.where(speed_m_s > 0.0, speed_m_s, 1.0), _Z)
        in_plane_m = relative_position_m - _dot(relative_position_m, along) * along
        length_m = np.linalg.norm(in_plane_m, axis=-1, keepdims=True)
        # Where rounding is all that is left of the miss vector, any perpendicular of the velocity does.
        other = np.eye(3)[np.abs(along).argmin(axis=-1)]
        other = other - _dot(other, along) * along
        usable = length_m > _ROUNDING_M
        vector = np.where(usable, in_plane_m, other)
        first = vector / np.linalg.norm(vector, axis=-1, keepdims=True)
        axes = np.stack((first, np.cross(along, first)), axis=-2)
        return cls(axes, np.einsum("nij,nj->ni", axes, relative_position_m))

    def projected(self, covariance_m2: Floats) -> Floats:
        """Covariances ``(n, 3, 3)`` of positions, projected on the planes: ``(n, 2, 2)``."""
        result: Floats = self.axes @ covariance_m2 @ np.swapaxes(self.axes, -1, -2)
        return result


def rotated_covariance(axes: Floats, covariance_m2: Floats) -> Floats:
    """Covariances ``(n, 3, 3)`` given in an orbit's axes (`orbit_axes`), in the frame of the states."""
    result: Floats = np.swapaxes(axes, -1, -2) @ covariance_m2 @ axes
    return result


def aspect_ratio(covariance_m2: Floats) -> Floats:
    """Major axis by minor axis of the error ellipses ``(n, 2, 2)``: ``(n,)``, >= 1."""
    half_trace = 0.5 * (covariance_m2[:, 0, 0] + covariance_m2[:, 1, 1])
    shift = np.hypot(0.5 * (covariance_m2[:, 0, 0] - covariance_m2[:, 1, 1]), covariance_m2[:, 0, 1])
    determinant = covariance_m2[:, 0, 0] * covariance_m2[:, 1, 1] - covariance_m2[:, 0, 1] ** 2
    ratio: Floats = (half_trace + shift) / np.sqrt(determinant)
    return ratio


def _dot(first: Floats, second: Floats) -> Floats:
    product: Floats = np.sum(first * second, axis=-1, keepdims=True)
    return product


_ROUNDING_M = 1e-9
_Z = np.array([0.0, 0.0, 1.0])
