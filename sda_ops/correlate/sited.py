"""Where sensors are in TEME, and their local horizons there: what turns with the Earth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sda_ops.astro.frames import EARTH_ROTATION_RAD_S
from sda_ops.astro.time import Floats


class Sited(NamedTuple):
    """Sites at their times.

    Attributes:
        r_teme_m: ``(n, 3)``.
        v_teme_m_s: ``(n, 3)``, the Earth's rotation.
        horizon_teme: ``(n, 3, 3)``: rows east, north, up.
    """

    r_teme_m: Floats
    v_teme_m_s: Floats
    horizon_teme: Floats

    def take(self, rows: np.typing.NDArray[np.intp]) -> Sited:
        """One for each row."""
        return Sited(self.r_teme_m[rows], self.v_teme_m_s[rows], self.horizon_teme[rows])


def place(r_fixed_m: Floats, horizon: Floats, sidereal_rad: Floats) -> Sited:
    """Earth-fixed positions ``(3,)`` or ``(n, 3)`` and horizons ``(3, 3)`` or ``(n, 3, 3)`` at sidereal angles ``(n,)``."""
    cos, sin = np.cos(sidereal_rad), np.sin(sidereal_rad)
    r_teme_m = _turned(r_fixed_m, cos, sin)
    v_teme_m_s = np.zeros_like(r_teme_m)
    v_teme_m_s[:, 0] = -EARTH_ROTATION_RAD_S * r_teme_m[:, 1]
    v_teme_m_s[:, 1] = EARTH_ROTATION_RAD_S * r_teme_m[:, 0]
    return Sited(r_teme_m, v_teme_m_s, _turned(horizon, cos[:, np.newaxis], sin[:, np.newaxis]))


def _turned(fixed: Floats, cos: Floats, sin: Floats) -> Floats:
    x = cos * fixed[..., 0] - sin * fixed[..., 1]
    y = sin * fixed[..., 0] + cos * fixed[..., 1]
    return np.stack((x, y, np.broadcast_to(fixed[..., 2], x.shape)), axis=-1)
