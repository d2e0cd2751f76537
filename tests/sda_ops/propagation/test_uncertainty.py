"""The assumed errors of element sets: position and velocity, by kind of orbit and age."""

from __future__ import annotations

import numpy as np
import pytest

from sda_ops.astro.time import NS_PER_DAY
from sda_ops.propagation.uncertainty import AxisErrors, ElementSetErrors
from tests.helpers.running import NOON_NS
from tests.scenes.correlation import interval_at, noon, sky


def test_the_error_of_an_element_set_grows_before_and_after_its_epoch() -> None:
    """Near-Earth: 120, 500 and 140 m at the epoch, and 30, 1,000 and 30 m more for each day before or after it."""
    errors = noon().facts.errors
    for days, expected_m in ((0.0, [120.0, 500.0, 140.0]), (2.0, [180.0, 2_500.0, 200.0]), (-0.5, [135.0, 1e3, 155.0])):
        sigmas_m = errors.sigmas_m(np.array([0]), np.array([NOON_NS + round(days * NS_PER_DAY)]))
        np.testing.assert_allclose(sigmas_m, [expected_m], rtol=1e-9)


def test_deep_space_element_sets_have_separate_errors() -> None:
    """For periods of 225 minutes or more: 500, 1,000 and 200 m for a geostationary object a day after its epoch."""
    slow = max(range(600), key=lambda row: 1.0 / sky()[row].satrec.no_kozai)
    sigmas_m = noon().facts.errors.sigmas_m(np.array([slow]), np.array([NOON_NS + NS_PER_DAY]))
    np.testing.assert_allclose(sigmas_m, [[500.0, 1_000.0, 200.0]], rtol=1e-9)


def test_velocity_errors_are_position_errors_times_the_mean_motion() -> None:
    """Radial velocity from the in-track error, in-track velocity from the radial error, cross-track from cross-track."""
    position, velocity = noon().facts.errors.variances(np.array([0]), np.array([NOON_NS]))
    n_rad_s = sky()[0].satrec.no_kozai / 60.0
    np.testing.assert_allclose(np.sqrt(velocity[0]), n_rad_s * np.sqrt(position[0])[[1, 0, 2]], rtol=1e-9)


def test_all_invalid_errors_are_reported_at_once() -> None:
    """Zero at the epoch would make the covariance singular; a negative growth has no meaning."""
    with pytest.raises(ValueError, match="AxisErrors") as caught:
        AxisErrors(
            radial_m=0.0,
            in_track_m=float("inf"),
            cross_track_m=1.0,
            radial_m_per_day=0.0,
            in_track_m_per_day=-1.0,
            cross_track_m_per_day=float("nan"),
        )
    assert str(caught.value) == (
        "AxisErrors: radial_m must be > 0 and finite, got 0.0; AxisErrors: in_track_m must be > 0 and finite, got inf; "
        "AxisErrors: in_track_m_per_day must be >= 0 and finite, got -1.0; "
        "AxisErrors: cross_track_m_per_day must be >= 0 and finite, got nan"
    )


def test_errors_are_settings() -> None:
    """Here those of near-Earth objects are set; the others keep their defaults."""
    good = AxisErrors(
        radial_m=1.0,
        in_track_m=2.0,
        cross_track_m=3.0,
        radial_m_per_day=4.0,
        in_track_m_per_day=5.0,
        cross_track_m_per_day=6.0,
    )
    errors = interval_at(sky(), errors=ElementSetErrors(near_earth=good)).facts.errors
    slow = max(range(600), key=lambda row: 1.0 / sky()[row].satrec.no_kozai)
    sigmas_m = errors.sigmas_m(np.array([0, slow]), np.full(2, NOON_NS + NS_PER_DAY))
    np.testing.assert_allclose(sigmas_m, [[5.0, 7.0, 9.0], [500.0, 1_000.0, 200.0]], rtol=1e-9)
