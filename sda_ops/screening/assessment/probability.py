"""Probabilities of collision in the encounter plane: for a given covariance, and the greatest one for an unknown size of it.

The encounter is short: both objects move along straight lines, and the covariance does not change. The probability is then
the integral of a two-dimensional normal density over a disc with the sum of both radii, in the plane perpendicular to the
relative velocity (J. Foster and H. Estes, "A Parametric Analysis of Orbital Debris Collision Probability and Maneuver Rate
for Space Vehicles", NASA JSC-25898, 1992).

The integral over the disc is one-dimensional, with error functions across it (S. Alfano, "A Numerical Implementation of
Spherical Object Collision Probability", J. Astronaut. Sci. 53(1), 2005). Here it runs along the minor axis of the error
ellipse, over the part of the disc that matters: the error function is then smooth however thin the ellipse is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import erfc

from sda_ops.astro.time import Floats

_SQRT2 = np.sqrt(2.0)
_SIGMAS = 8.7
"""Beyond so many standard deviations the density is below 4e-17 of its maximum."""

_SMALL = 1e-3
"""Below this, the difference of two error functions is computed by a series, without cancellation."""


def collision_probability(miss_m: Floats, covariance_m2: Floats, radius_m: Floats) -> Floats:
    """The probability of collision after Foster and Estes (1992), ``(n,)``.

    Args:
        miss_m: ``(n, 2)``, the relative position in the encounter plane.
        covariance_m2: ``(n, 2, 2)``, the sum of both objects' covariances, projected on that plane.
        radius_m: ``(n,)``, the sum of both hard-body radii.

    The relative error is below 1e-8 for probabilities above 1e-30. A singular covariance is a limit that is computed too.
    NaN where the covariance is not finite or not positive semidefinite.

    The assumption of straight lines fails for slow encounters, which take minutes or longer: the probability is then neither
    a lower nor an upper bound.
    """
    half_trace = 0.5 * (covariance_m2[:, 0, 0] + covariance_m2[:, 1, 1])
    half_difference = 0.5 * (covariance_m2[:, 0, 0] - covariance_m2[:, 1, 1])
    product = covariance_m2[:, 0, 1]
    shift = np.hypot(half_difference, product)
    major_m2 = half_trace + shift
    # Not half_trace - shift: the determinant keeps the digits of a small minor axis.
    determinant = covariance_m2[:, 0, 0] * covariance_m2[:, 1, 1] - product**2
    minor_m2 = np.where(major_m2 > 0.0, determinant / np.where(major_m2 > 0.0, major_m2, 1.0), 0.0)
    angle = 0.5 * np.arctan2(product, half_difference)
    along_m = np.cos(angle) * miss_m[:, 0] + np.sin(angle) * miss_m[:, 1]
    across_m = np.cos(angle) * miss_m[:, 1] - np.sin(angle) * miss_m[:, 0]
    # Rounding can make the determinant of a singular covariance negative.
    usable = np.isfinite(major_m2) & (major_m2 >= 0.0) & (minor_m2 >= -1e-9 * major_m2)
    result = np.full(len(radius_m), np.nan)
    floor_m = 1e-9 * np.maximum(radius_m, np.hypot(along_m, across_m))
    sigma_major_m = np.maximum(np.sqrt(np.where(usable, major_m2, 1.0)), floor_m)
    sigma_minor_m = np.maximum(np.sqrt(np.where(usable, np.maximum(minor_m2, 0.0), 1.0)), floor_m)
    result[usable] = disc_probability(
        along_m[usable], across_m[usable], sigma_major_m[usable], sigma_minor_m[usable], radius_m[usable]
    )
    return result


def disc_probability(
    along_m: Floats, across_m: Floats, sigma_major_m: Floats, sigma_minor_m: Floats, radius_m: Floats
) -> Floats:
    """The normal density with these standard deviations, integrated over a disc; all ``(n,)``.

    Args:
        along_m: The disc's centre along the major axis.
        across_m: The disc's centre along the minor axis.
        sigma_major_m: Standard deviation along the major axis, > 0, at least ``sigma_minor_m``.
        sigma_minor_m: Standard deviation along the minor axis, > 0.
        radius_m: The disc's radius, >= 0.
    """
    along_m, across_m = np.abs(along_m), np.abs(across_m)
    nearest_m, distance = _nearest_point(along_m, across_m, sigma_major_m, sigma_minor_m, radius_m)
    # Half of the squared distance in sigmas is the exponent. It is convex across the disc and grows at least as y^2, so that
    # what matters is around its minimum.
    reach_m = _SIGMAS * sigma_minor_m
    farthest_m = sigma_minor_m * np.hypot(distance, _SIGMAS)
    lowest_m, highest_m = np.maximum(nearest_m - reach_m, -farthest_m), np.minimum(nearest_m + reach_m, farthest_m)
    # y = across - radius cos(angle): the angle makes the ends of the disc smooth.
    radius_or_one_m = np.where(radius_m > 0.0, radius_m, 1.0)
    with np.errstate(over="ignore"):  # a tiny radius: infinity is clipped, too
        low, high = (np.arccos(np.clip((across_m - y_m) / radius_or_one_m, -1.0, 1.0)) for y_m in (lowest_m, highest_m))
    # How much the exponent changes across the disc decides how many nodes are needed.
    even = radius_m * (distance + 1.0) < 0.5 * sigma_minor_m
    total = np.empty(len(radius_m))
    for rows, rule in ((even, _FEW), (~even, _MANY)):
        angle = low[rows, np.newaxis] + (high - low)[rows, np.newaxis] * rule.nodes
        half_chord_m = radius_m[rows, np.newaxis] * np.sin(angle)
        y = (across_m[rows, np.newaxis] - radius_m[rows, np.newaxis] * np.cos(angle)) / sigma_minor_m[rows, np.newaxis]
        density = np.exp(-0.5 * y**2) / (np.sqrt(2.0 * np.pi) * sigma_minor_m[rows, np.newaxis])
        scale = 1.0 / (_SQRT2 * sigma_major_m[rows, np.newaxis])
        chord = _half_difference(along_m[rows, np.newaxis] * scale, half_chord_m * scale)
        total[rows] = ((density * chord * half_chord_m) @ rule.weights) * (high - low)[rows]
    return np.minimum(total, 1.0)  # rounding


def _nearest_point(
    along_m: Floats, across_m: Floats, sigma_major_m: Floats, sigma_minor_m: Floats, radius_m: Floats
) -> tuple[Floats, Floats]:
    """The point of the disc that is nearest to the origin in standard deviations: its place across, and that distance.

    The secular equation of a quadratic form on a disc; Newton's method as for trust regions (J. Moré and D. Sorensen, 1983)
    increases the multiplier towards its root.
    """
    squares = np.stack((sigma_major_m**2, sigma_minor_m**2))
    centre = np.stack((along_m, across_m))
    multiplier = np.zeros(len(radius_m))
    outside = (np.hypot(along_m, across_m) > radius_m) & (radius_m > 0.0)
    # For a still smaller disc its centre is as good.
    radius_or_least_m = np.maximum(radius_m, 1e-12 * np.hypot(along_m, across_m))[outside]
    if outside.any():
        inner_squares, inner_centre = squares[:, outside], centre[:, outside]
        found = multiplier[outside]
        for _ in range(_NEAREST_STEPS):
            factor = 1.0 / (1.0 + found * inner_squares)
            length = np.hypot(*(inner_centre * factor))
            slope = ((inner_centre * factor / length) ** 2 * inner_squares * factor).sum(axis=0)
            found = found + (length / radius_or_least_m - 1.0) / slope
        multiplier[outside] = found
    factor = multiplier * squares / (1.0 + multiplier * squares)
    nearest = centre * factor
    return nearest[1], np.hypot(nearest[0] / sigma_major_m, nearest[1] / sigma_minor_m)


class MaximumProbability(NamedTuple):
    """The greatest probability, and where it is.

    Attributes:
        probability: ``(n,)``, in [0, 1].
        sigma_m: ``(n,)``, the standard deviation along the miss vector at which it is reached; 0 where the disc holds the
            nominal position.
    """

    probability: Floats
    sigma_m: Floats


def max_probability(miss_m: Floats, radius_m: Floats, aspect_ratio: Floats) -> MaximumProbability:
    """The greatest probability of collision over all sizes of the covariance, whose shape is given; all ``(n,)``.

    S. Alfano, "Relating Position Uncertainty to Maximum Conjunction Probability", AAS 03-548; J. Astronaut. Sci. 53(2), 2005.
    The major axis of the error ellipse lies along the miss vector, which is the worst case. For a small radius r and a miss
    d the maximum is ``aspect r² / (e d²)``, at the standard deviation ``d / sqrt(2)``. It is 1 where r >= d.

    Args:
        miss_m: The miss distance, >= 0.
        radius_m: The sum of both hard-body radii, >= 0.
        aspect_ratio: Major axis of the error ellipse by the minor axis, >= 1.
    """
    probability = np.ones(len(miss_m))
    sigma_m = np.zeros(len(miss_m))
    outside = np.flatnonzero(radius_m < miss_m)
    ratio = radius_m[outside] / miss_m[outside]
    even = ratio * aspect_ratio[outside] < _EVEN
    for part, rule in ((even, _FEW), (~even, _MANY)):
        rows = outside[part]
        # A still smaller disc has the same maximum, to rounding.
        log_sigma = _log_sigma_of_maximum(np.maximum(ratio[part], _LEAST_RATIO), aspect_ratio[rows], rule)
        probability[rows] = _at_sigma(ratio[part], aspect_ratio[rows], log_sigma, rule)[0]
        sigma_m[rows] = np.exp(log_sigma) * miss_m[rows]
    return MaximumProbability(probability, sigma_m)


def _log_sigma_of_maximum(ratio: Floats, aspect_ratio: Floats, rule: _Rule) -> Floats:
    """The logarithm of the maximising standard deviation along a miss vector of length 1, within a bracket.

    The probability has one maximum over the standard deviation, which is never above the miss distance.
    """
    count = len(ratio)
    log_sigma = np.full(count, -0.5 * np.log(2.0))  # exact for a disc without size
    low, high = np.full(count, _LOG_LEAST), np.full(count, 0.1)
    active = np.arange(count)
    for step in range(_MOST_STEPS):
        if not len(active):
            break
        here = log_sigma[active]
        value, slope = _at_sigma(ratio[active], aspect_ratio[active], here, rule)
        # The derivative of the logarithm; where the probability underflows, the maximum is above.
        relative = np.where(value > 0.0, slope / np.where(value > 0.0, value, 1.0), np.inf)
        rising = relative > 0.0
        low[active] = np.where(rising, here, low[active])
        high[active] = np.where(rising, high[active], here)
        # For a small disc the logarithm's derivative is nearly 1 / sigma^2 - 2, whose root this step finds at once. For a disc
        # that nearly reaches the other object it is not, and the bracket is halved.
        square = np.exp(-2.0 * here) - relative
        with np.errstate(invalid="ignore", divide="ignore"):
            proposed = -0.5 * np.log(square)
        inside = (proposed > low[active]) & (proposed < high[active]) & (step < _QUICK_STEPS)
        ahead = np.where(inside, proposed, 0.5 * (low[active] + high[active]))
        log_sigma[active] = ahead
        active = active[np.abs(ahead - here) > _TOLERANCE]
    return log_sigma


def _at_sigma(ratio: Floats, aspect_ratio: Floats, log_sigma: Floats, rule: _Rule) -> tuple[Floats, Floats]:
    """The probability with the miss along the major axis and of length 1, and its derivative by the sigma's logarithm."""
    sigma = np.exp(log_sigma)
    # The disc from its centre across: y = ratio sin(angle), as far as the density matters, on both sides alike.
    with np.errstate(divide="ignore", over="ignore"):
        end = np.arcsin(np.minimum(1.0, _SIGMAS * sigma / (aspect_ratio * np.maximum(ratio, 1e-300))))[:, np.newaxis]
    angle = end * rule.nodes
    half_chord = ratio[:, np.newaxis] * np.cos(angle)
    y = (aspect_ratio / sigma * ratio)[:, np.newaxis] * np.sin(angle)
    density = np.exp(-0.5 * y**2) * (np.sqrt(2.0 / np.pi) * aspect_ratio / sigma)[:, np.newaxis]
    scale = 1.0 / (_SQRT2 * sigma[:, np.newaxis])
    chord = _half_difference(scale, half_chord * scale)
    near, far = (1.0 - half_chord) * scale, (1.0 + half_chord) * scale
    chord_slope = (near * np.exp(-(near**2)) - far * np.exp(-(far**2))) / np.sqrt(np.pi)
    width = half_chord * end * density
    return (width * chord) @ rule.weights, (width * ((y**2 - 1.0) * chord + chord_slope)) @ rule.weights


def _half_difference(centre: Floats, half_width: Floats) -> Floats:
    """``(erfc(centre - half_width) - erfc(centre + half_width)) / 2`` for ``centre >= 0``, without cancellation."""
    small = half_width * np.maximum(centre, 1.0) < _SMALL
    square = half_width**2
    series = 2.0 / np.sqrt(np.pi) * np.exp(-(centre**2)) * half_width * (1.0 + square * (2.0 * centre**2 - 1.0) / 3.0)
    difference: Floats = np.where(small, series, 0.5 * (erfc(centre - half_width) - erfc(centre + half_width)))
    return difference


class _Rule(NamedTuple):
    """Gauss and Legendre's nodes and weights on [0, 1]."""

    nodes: Floats
    weights: Floats

    @classmethod
    def of(cls, count: int, *, panels: int = 1) -> _Rule:
        nodes, weights = np.polynomial.legendre.leggauss(count)
        first = np.arange(panels)[:, np.newaxis]
        return cls(((first + 0.5 * (nodes + 1.0)) / panels).ravel(), np.tile(0.5 * weights / panels, panels))


_FEW, _MANY = _Rule.of(10), _Rule.of(24, panels=2)
_EVEN = 0.3
_LEAST_RATIO = 1e-6
_LOG_LEAST = -40.0
_NEAREST_STEPS = 12
_TOLERANCE = 1e-8
_QUICK_STEPS = 8
_MOST_STEPS = 100
