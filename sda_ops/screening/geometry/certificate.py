"""What the knots of objects say of them: how well they interpolate, and how far their acceleration is from gravity."""

from __future__ import annotations

import numpy as np

from sda_ops.astro.time import Floats
from sda_ops.screening.geometry.bounds import gravity

CERTIFICATE = 4.3e-3
"""The error of a smooth orbit is at most this times the greatest eighth difference of the knots."""

STEP_CERTIFICATE = 1.0 / 126.0
"""The error beside a step of the positions is at most the step, and that is at most this times the greatest tenth difference.

A step between the two middle knots of eleven has a tenth difference of 126 times its size. An eighth difference has 35 times
its size only, as much as the eighth difference of a smooth low orbit has anyway.
"""

_BLOCK = 512
"""Columns that are measured at a time: their knots fit into the processor's cache."""


def drop_unmeasured(knots_km: Floats) -> None:
    """Sets the knots beside missing ones to NaN: the eighth differences across them are not known."""
    missing = np.isnan(knots_km[:, 0, :])
    some = np.flatnonzero(missing.any(axis=0))
    for column in some.tolist():
        knots_km[np.flatnonzero(np.convolve(missing[:, column], [True, True, True], mode="same")), :, column] = np.nan


def measured(knots_km: Floats, knot_s: float) -> tuple[Floats, Floats]:
    """Of each object: the certificate of the interpolation error, km, and the greatest |p'' - gravity|, km/s2.

    The second derivative at a knot is that of the central differences up to the eighth (Abramowitz and Stegun 25.3.24 ff.).
    """
    count = knots_km.shape[2]
    error_km, beyond_km_s2 = np.zeros(count), np.zeros(count)
    for begin in range(0, count, _BLOCK):
        knots = knots_km[:, :, begin : begin + _BLOCK]
        second = np.diff(knots, n=2, axis=0)
        fourth = np.diff(second, n=2, axis=0)
        sixth = np.diff(fourth, n=2, axis=0)
        eighth = np.diff(sixth, n=2, axis=0)
        greatest = np.abs(eighth).max(axis=1)
        steps = np.abs(np.diff(eighth, n=2, axis=0)).max(axis=1)
        error_km[begin : begin + _BLOCK] = np.maximum(
            CERTIFICATE * np.nanmax(greatest, axis=0, initial=0.0),
            STEP_CERTIFICATE * np.nanmax(steps, axis=0, initial=0.0),
        )
        acceleration = second[3:-3] - fourth[2:-2] / 12.0 + sixth[1:-1] / 90.0 - eighth / 560.0
        acceleration /= knot_s**2
        acceleration -= gravity(knots[4:-4].transpose(1, 0, 2)).transpose(1, 0, 2)
        beyond = np.sqrt(np.einsum("kin,kin->kn", acceleration, acceleration))
        beyond_km_s2[begin : begin + _BLOCK] = np.nanmax(beyond, axis=0, initial=0.0)
    return error_km, beyond_km_s2
