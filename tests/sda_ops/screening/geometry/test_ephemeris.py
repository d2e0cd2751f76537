"""Positions between knots against SGP4's own, and objects whose positions end."""

from __future__ import annotations

import numpy as np
import pytest

from sda_ops.astro.time import NS_PER_S
from sda_ops.screening.geometry.bounds import EARTH_RADIUS_KM, J2, MU_KM3_S2, gravity
from sda_ops.screening.geometry.direct import ended_spans
from sda_ops.screening.geometry.ephemeris import EDGE_S, Ephemeris, PreparedObjects, lagrange_weights
from tests.sda_ops.screening.orbits import EPOCH_NS, HOUR_NS, Orbit, random_orbits, screened

OBJECTS = screened(random_orbits(200, seed=3))


def test_the_weights_reproduce_every_polynomial_of_degree_seven() -> None:
    steps = np.linspace(0.0, 1.0, 11)
    knots = np.arange(-3.0, 5.0)
    for degree in range(8):
        value, slope = lagrange_weights(steps)
        assert value.T @ knots**degree == pytest.approx(steps**degree, abs=1e-10)
        derivative = degree * steps ** max(degree - 1, 0)
        assert slope.T @ knots**degree == pytest.approx(derivative, abs=1e-9)


def test_gravity_is_the_gradient_of_its_potential() -> None:
    def potential(r_km: np.ndarray) -> np.ndarray:
        # Vallado, equation 8-25 without the terms beyond J2.
        rho = np.linalg.norm(r_km, axis=0)
        oblate = J2 * (EARTH_RADIUS_KM / rho) ** 2 * 0.5 * (3.0 * (r_km[2] / rho) ** 2 - 1.0)
        return np.asarray(MU_KM3_S2 / rho * (1.0 - oblate))

    r_km = np.random.default_rng(1).normal(0.0, 5000.0, (3, 20))
    r_km *= np.maximum(1.0, 6500.0 / np.linalg.norm(r_km, axis=0))
    step_km = 0.5
    for axis in range(3):
        aside_km = np.zeros((3, 1))
        aside_km[axis] = step_km
        expected = (potential(r_km + aside_km) - potential(r_km - aside_km)) / (2.0 * step_km)
        assert gravity(r_km)[axis] == pytest.approx(expected, abs=2e-10)


@pytest.mark.parametrize("knot_s", [240.0, 480.0, 900.0])
def test_interpolated_positions_are_within_the_certified_error_of_sgp4s(knot_s: float) -> None:
    prepared = PreparedObjects(OBJECTS, engine="sgp4")
    ephemeris = Ephemeris(prepared, EPOCH_NS, EPOCH_NS + 2 * HOUR_NS, knot_s=knot_s)
    rng = np.random.default_rng(2)
    columns = rng.integers(0, len(prepared), 4000)
    timestamp_s = np.round(rng.uniform(0.0, 7200.0, 4000), 3)

    r_km, v_km_s = ephemeris.at(columns, timestamp_s)

    at_ns = ephemeris.origin_ns + np.rint(timestamp_s * NS_PER_S).astype(np.int64)
    exact_r_km, exact_v_km_s = prepared.orbits.states_km(columns, at_ns)
    error_km = np.linalg.norm(r_km - exact_r_km, axis=0)
    assert error_km.max() <= ephemeris.certified_km <= ephemeris.interpolation_km == 0.05
    assert np.linalg.norm(v_km_s - exact_v_km_s, axis=0).max() < 1e-3
    assert (ephemeris.shortened > 0) == (knot_s > 240.0)
    assert not len(ephemeris.direct.slices)


def test_positions_beside_a_step_of_sgp4_are_within_the_bound() -> None:
    # In deep space, SGP4's position has a step where the inclination passes 0.2 rad: here 113 and 96 m.
    orbits = [
        Orbit(
            perigee_km=35435.444619929585,
            eccentricity=0.0003,
            inclination_deg=11.468192773515756,
            node_deg=4.927544653231459,
            argument_deg=341.6334115926523,
            anomaly_deg=96.43961262004363,
            bstar=0.0,
        ),
        Orbit(
            perigee_km=35939.22923745501,
            eccentricity=0.0003,
            inclination_deg=11.459424620025015,
            node_deg=233.5177241753919,
            argument_deg=95.04259661471201,
            anomaly_deg=66.65032751806197,
            bstar=0.0,
        ),
    ]
    prepared = PreparedObjects(screened(orbits), engine="sgp4")
    ephemeris = Ephemeris(prepared, EPOCH_NS, EPOCH_NS + 2 * HOUR_NS, interpolation_km=0.025)
    timestamp_s = np.arange(0.5, 7200.0)
    columns = np.repeat([0, 1], len(timestamp_s))

    r_km, _ = ephemeris.at(columns, np.tile(timestamp_s, 2))

    exact_r_km, _ = prepared.orbits.states_km(
        columns, ephemeris.origin_ns + np.tile(timestamp_s * NS_PER_S, 2).astype(np.int64)
    )
    assert np.nanmax(np.linalg.norm(r_km - exact_r_km, axis=0)) <= ephemeris.interpolation_km
    assert ephemeris.shortened == 2


@pytest.mark.parametrize("knot_s", [3.0, 10.0, 240.0])
def test_positions_are_defined_a_little_outside_of_the_slices(knot_s: float) -> None:
    prepared = PreparedObjects(screened(random_orbits(4, seed=3)), engine="sgp4")
    ephemeris = Ephemeris(prepared, EPOCH_NS, EPOCH_NS + 60 * NS_PER_S, knot_s=knot_s)
    timestamp_s = np.repeat([-EDGE_S, 60.0 + EDGE_S], 4)
    columns = np.tile(np.arange(4), 2)

    r_km, _ = ephemeris.at(columns, timestamp_s)

    exact_r_km, _ = prepared.orbits.states_km(columns, EPOCH_NS + (timestamp_s * NS_PER_S).astype(np.int64))
    assert np.linalg.norm(r_km - exact_r_km, axis=0).max() <= ephemeris.interpolation_km


def test_a_position_does_not_depend_on_where_the_window_begins() -> None:
    prepared = PreparedObjects(OBJECTS, engine="sgp4")
    one = Ephemeris(prepared, EPOCH_NS, EPOCH_NS + 2 * HOUR_NS)
    other = Ephemeris(prepared, EPOCH_NS + 1_234_567_890_123, EPOCH_NS + HOUR_NS)

    first = one.states(other.first_slice, other.end_slice)
    second = other.states(other.first_slice, other.end_slice)

    assert len(first) == len(second) == 40
    assert np.array_equal(first.r_km, second.r_km)
    assert np.array_equal(first.v_km_s, second.v_km_s)


@pytest.mark.parametrize("slice_s", [20.0, 50.0, 60.0, 120.0])
def test_states_of_slices_are_those_at_their_middles(slice_s: float) -> None:
    prepared = PreparedObjects(OBJECTS, engine="sgp4")
    ephemeris = Ephemeris(prepared, EPOCH_NS, EPOCH_NS + HOUR_NS, slice_s=slice_s)
    states = ephemeris.states(ephemeris.first_slice, ephemeris.end_slice)
    columns = np.arange(len(prepared))
    for index in (0, 7, len(states) - 1):
        middle_s = (ephemeris.middle_ns(np.array(states.first_slice + index)) - ephemeris.origin_ns) / NS_PER_S
        r_km, v_km_s = ephemeris.at(columns, np.full(len(prepared), middle_s))
        assert np.abs(r_km - states.r_km[index]).max() < 1e-9
        assert np.abs(v_km_s - states.v_km_s[index]).max() < 1e-11
    assert states.alive.all()


def test_an_object_that_decays_has_states_until_sgp4_fails() -> None:
    objects = screened([Orbit(perigee_km=550.0), Orbit(perigee_km=115.0, bstar=5e-3)])
    prepared = PreparedObjects(objects, engine="sgp4")
    ephemeris = Ephemeris(prepared, EPOCH_NS, EPOCH_NS + 6 * HOUR_NS)
    column = int(prepared.columns[1])

    (span,) = ended_spans(prepared.orbits, ephemeris.direct, ephemeris.slice_ns)

    assert span.column == column
    assert span.until_ns == EPOCH_NS + 6 * HOUR_NS
    assert "SGP4 error 6" in span.reason
    around_ns = span.from_ns + np.array([-2_000_000, 2_000_000])
    alive = np.isfinite(prepared.orbits.states_km(np.array([column, column]), around_ns)[0][0])
    assert alive.tolist() == [True, False]
    states = ephemeris.states(ephemeris.first_slice, ephemeris.end_slice)
    last = (span.from_ns - ephemeris.origin_ns) // ephemeris.slice_ns
    assert states.alive[: last + 1, column].all()
    assert not states.alive[last + 1 :, column].any()
    assert states.alive[:, 1 - column].all()
    whole = ephemeris.middle_ns(np.arange(last) + ephemeris.first_slice)
    exact_r_km, _ = prepared.orbits.states_km(np.full(last, column), whole)
    assert np.linalg.norm(states.r_km[:last, :, column].T - exact_r_km, axis=0).max() < ephemeris.interpolation_km
