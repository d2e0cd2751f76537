"""Interpolation of states between the middle two of four equidistant times (knots).

Positions and velocities are interpolated separately, by the cubic through four values. A Hermite cubic through both would
be off by centimetres, because SGP4's velocity differs from the derivative of its position by about 1 cm/s. The error is at
most 9/16 h^4/24 times the fourth derivative (about n^4 r), for knots h apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import Floats

KNOTS_BEFORE, KNOTS_AFTER = 1, 2
"""The knots before and after the first of the middle two: the four are at -1, 0, 1 and 2 steps from it."""


def between_knots(r_m: Floats, v_m_s: Floats, objects: npt.NDArray[np.intp], steps: Floats) -> tuple[Floats, Floats]:
    """Positions and velocities ``(n, 3)`` of object i at ``steps[i]``, in [0, 1], from knots ``(4, catalogue, 3)``."""
    s = steps
    # Lagrange polynomials through s = -1, 0, 1, 2.
    weights = np.stack(
        (
            -s * (s - 1.0) * (s - 2.0) / 6.0,
            (s + 1.0) * (s - 1.0) * (s - 2.0) / 2.0,
            -(s + 1.0) * s * (s - 2.0) / 2.0,
            (s + 1.0) * s * (s - 1.0) / 6.0,
        )
    )
    r_between_m: Floats = np.einsum("kn,kni->ni", weights, r_m[:, objects])
    v_between_m_s: Floats = np.einsum("kn,kni->ni", weights, v_m_s[:, objects])
    return r_between_m, v_between_m_s
