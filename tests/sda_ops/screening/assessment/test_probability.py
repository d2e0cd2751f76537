"""Probabilities of collision: published values, independent integrals, limits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad
from scipy.optimize import minimize_scalar

from sda_ops.astro.frames import EARTH_ROTATION_RAD_S
from sda_ops.astro.time import Floats
from sda_ops.screening.assessment.encounter import EncounterPlane, orbit_axes, rotated_covariance
from sda_ops.screening.assessment.probability import collision_probability, max_probability
from sda_ops.wire.cdm import read_cdm
from tests.helpers.sizes import examples
from tests.helpers.support import SDA_DATA_DIR

CDMS = SDA_DATA_DIR / "ccsds/cdm"

# S. Alfano, "Satellite Conjunction Monte Carlo Analysis", AAS 09-233, test cases, as NASA computes them by Foster's method:
# CARA_Analysis_Tools, DistributedMatlab/ProbabilityOfCollision/UnitTests/Pc2D_Foster_UnitTest.m, AlfanoExpSolution, with
# its relative tolerance of 0.001. The message of case 10 is not among the data: it is case 9 with another span of time.
NASA_ALFANO = {
    1: 1.46749549e-01,
    2: 6.22226700e-03,
    3: 1.00351176e-01,
    4: 4.93234060e-02,
    5: 4.44873860e-02,
    6: 4.33545500e-03,
    7: 1.58147000e-04,
    8: 3.69480080e-02,
    9: 2.90146291e-01,
    11: 2.67202600e-03,
}
NASA_TOLERANCE = 1e-3

# K. Chan's test cases, messages, and two of Alfano's: miss x, miss y, sigma x, sigma y, radius, probability. Orekit computes
# them by a method with strict bounds (R. Serra et al. 2016): src/test/java/org/orekit/ssa/collision/shorttermencounter/
# probability/twod/Laas2015Test.java, within one unit of the last digit as there. (Its value of the last case is the
# "initial expected result": that of its method is 4.4507e-2, "numerically unstable".)
OREKIT = (
    (0.0, 10.0, 25.0, 50.0, 5.0, "9.742e-3"),
    (10.0, 0.0, 25.0, 50.0, 5.0, "9.181e-3"),
    (0.0, 10.0, 25.0, 75.0, 5.0, "6.571e-3"),
    (10.0, 0.0, 25.0, 75.0, 5.0, "6.125e-3"),
    (0.0, 1000.0, 1000.0, 3000.0, 10.0, "1.577e-5"),
    (1000.0, 0.0, 1000.0, 3000.0, 10.0, "1.011e-5"),
    (0.0, 10000.0, 1000.0, 3000.0, 10.0, "6.443e-8"),
    (10000.0, 0.0, 1000.0, 3000.0, 10.0, "3.219e-27"),
    (0.0, 10000.0, 1000.0, 10000.0, 10.0, "3.033e-6"),
    (10000.0, 0.0, 1000.0, 10000.0, 10.0, "9.656e-28"),
    (0.0, 5000.0, 1000.0, 3000.0, 50.0, "1.039e-4"),
    (5000.0, 0.0, 1000.0, 3000.0, 50.0, "1.564e-9"),
    (84.875546, 60.583685, 57.918666, 152.8814468, 10.3, "1.9002e-3"),
    (-81.618369, 115.055899, 15.988242, 5756.840725, 1.3, "2.0553e-11"),
    (102.177247, 693.405893, 94.230921, 643.409272, 5.3, "7.2003e-5"),
    (-752.672701, 644.939441, 445.859950, 6095.858688, 3.5, "5.3904e-7"),
    (-692.362272, 4475.456261, 193.454603, 562.027293, 13.2, "2.2796e-20"),
    (-3.8872073, 0.1591646, 1.4101830, 114.2585190, 15.0, "1.0038e-1"),
    (-1.2217895, 2.1230067, 0.0373279, 177.8109003, 10.0, "4.4509e-2"),
)

# Omitron's test case 1 (D. Plakalovic) in the same unit test of CARA_Analysis_Tools, testCircularHBR: km, km/s, km².
OMITRON_R_KM = np.array([[378.39559, 4305.721887, 5752.767554], [374.5180598, 4307.560983, 5751.130418]])
OMITRON_V_KM_S = np.array([[2.360800244, 5.580331936, -4.322349039], [-5.388125081, -3.946827739, 3.322820358]])
OMITRON_COVARIANCE_KM2 = np.array(
    [
        [
            [44.5757544811362, 81.6751751052616, -67.8687662707124],
            [81.6751751052616, 158.453402956163, -128.616921644857],
            [-67.8687662707124, -128.616921644858, 105.490542562701],
        ],
        [
            [2.31067077720423, 1.69905293875632, -1.4170164577661],
            [1.69905293875632, 1.24957388457206, -1.04174164279599],
            [-1.4170164577661, -1.04174164279599, 0.869260558223714],
        ],
    ]
)


def foster(
    r_m: Floats, v_m_s: Floats, covariance_m2: Floats, radius_m: float, *, in_own_axes: bool
) -> npt.NDArray[np.float64]:
    """For one pair: ``(2, 3)`` states and ``(2, 3, 3)`` covariances."""
    if in_own_axes:
        covariance_m2 = rotated_covariance(orbit_axes(r_m, v_m_s), covariance_m2)
    plane = EncounterPlane.of(np.diff(r_m, axis=0), np.diff(v_m_s, axis=0))
    projected_m2 = plane.projected(covariance_m2.sum(axis=0, keepdims=True))
    # CARA takes the whole distance for that in the plane; at a closest approach they are the same.
    miss_m = np.array([[np.linalg.norm(r_m[1] - r_m[0]), 0.0]])
    return collision_probability(miss_m, projected_m2, np.array([radius_m]))


@pytest.mark.parametrize("case", NASA_ALFANO)
def test_alfanos_cases_have_the_probability_that_nasa_computes(case: int) -> None:
    """From messages with states and covariances, to NASA's own tolerance."""
    path = CDMS / f"AlfanoTestCase{case:02}.cdm"
    if not path.exists():
        pytest.skip(f"real data absent: no {path} (set SDA_DATA_DIR)")
    message = read_cdm(path.read_bytes(), file=path.name)
    assert message.hard_body_radius_m is not None
    computed = foster(
        np.array([each.position_m for each in message.objects]),
        np.array([each.velocity_m_s for each in message.objects]),
        np.array([each.covariance.matrix()[:3, :3] for each in message.objects]),
        message.hard_body_radius_m,
        in_own_axes=True,
    )
    assert computed == pytest.approx(NASA_ALFANO[case], rel=NASA_TOLERANCE)


def test_a_real_message_has_the_probability_that_orekit_computes() -> None:
    """Laas2015Test.java, testComputeProbabilityFromACdm: radii of 5 m each, from the message's comments.

    The message itself says 0.00445, which is 4/pi times as much: that of a square around the disc.
    """
    path = CDMS / "ION_SCV8_vs_STARLINK_1233.txt"
    if not path.exists():
        pytest.skip(f"real data absent: no {path} (set SDA_DATA_DIR)")
    message = read_cdm(path.read_bytes(), file=path.name)
    r_m = np.array([each.position_m for each in message.objects])
    v_fixed_m_s = np.array([each.velocity_m_s for each in message.objects])  # relative to the rotating Earth
    v_m_s = v_fixed_m_s + np.cross([0.0, 0.0, EARTH_ROTATION_RAD_S], r_m)
    covariance_m2 = np.array([each.covariance.matrix()[:3, :3] for each in message.objects])
    plane = EncounterPlane.of(np.diff(r_m, axis=0), np.diff(v_m_s, axis=0))
    projected_m2 = plane.projected(rotated_covariance(orbit_axes(r_m, v_m_s), covariance_m2).sum(axis=0, keepdims=True))
    computed = collision_probability(plane.miss_m, projected_m2, np.array([10.0]))
    assert computed == pytest.approx(0.0034965176443840897, rel=1e-6)


def test_omitrons_case_has_the_probability_that_nasa_computes() -> None:
    computed = foster(OMITRON_R_KM * 1e3, OMITRON_V_KM_S * 1e3, OMITRON_COVARIANCE_KM2 * 1e6, 20.0, in_own_axes=False)
    assert computed == pytest.approx(2.70601573490125e-05, rel=NASA_TOLERANCE)


@pytest.mark.parametrize("turn_rad", [0.0, 1.1])
def test_chans_and_other_published_cases_agree_to_a_unit_of_the_last_digit(turn_rad: float) -> None:
    """The probability does not depend on the axes of the encounter plane."""
    x, y, sigma_x, sigma_y, radius = np.array([row[:5] for row in OREKIT]).T
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    turn = np.array([[cos, -sin], [sin, cos]])
    covariance = turn @ (np.stack((sigma_x, sigma_y), axis=1)[:, :, np.newaxis] ** 2 * np.eye(2)) @ turn.T
    computed = collision_probability(np.stack((x, y), axis=1) @ turn.T, covariance, radius)
    for value, row in zip(computed, OREKIT, strict=True):
        mantissa, _, exponent = row[5].partition("e")
        unit = 10.0 ** (int(exponent) - len(mantissa) + 2)
        assert value == pytest.approx(float(row[5]), rel=0.0, abs=unit), row


def over_the_disc(x: float, y: float, sigma_x: float, sigma_y: float, radius: float) -> float:
    """The density integrated in polar coordinates around the disc's centre, by an adaptive rule that knows nothing of ours."""

    def density(rho: float, angle: float) -> float:
        u, v = (x + rho * np.cos(angle)) / sigma_x, (y + rho * np.sin(angle)) / sigma_y
        return float(rho * np.exp(-0.5 * (u * u + v * v)) / (2.0 * np.pi * sigma_x * sigma_y))

    return float(dblquad(density, 0.0, 2.0 * np.pi, 0.0, radius, epsabs=0.0, epsrel=1e-9)[0])


@pytest.mark.parametrize(
    ("x", "y", "sigma_x", "sigma_y", "radius"),
    [
        (0.0, 0.0, 3.0, 1.0, 1.0),  # in the middle
        (20.0, 0.0, 30.0, 3.0, 10.0),
        (9.0, 4.0, 3.0, 2.0, 12.0),  # the disc is larger than the errors
        (3.0, 12.0, 4.0, 1.0, 12.5),  # its edge is near
        (80.0, 30.0, 11.0, 9.0, 20.0),  # far away: 1e-10
        (5_000.0, 800.0, 900.0, 400.0, 11.0),
        (-40.0, 90.0, 70.0, 6.0, 75.0),  # reaches the density from aside
        (100.0, 0.0, 60.0, 60.0, 1e-6),
    ],
)
def test_the_probability_is_the_integral_over_the_disc(
    x: float, y: float, sigma_x: float, sigma_y: float, radius: float
) -> None:
    computed = collision_probability(
        np.array([[x, y]]), np.array([np.diag([sigma_x**2, sigma_y**2])]), np.array([radius])
    )
    assert computed == pytest.approx(over_the_disc(x, y, sigma_x, sigma_y, radius), rel=1e-8)


def test_a_thin_ellipse_is_the_limit_of_a_line() -> None:
    """All errors along x: what counts is the chord of the disc, whose probability is a difference of normal distributions."""
    computed = collision_probability(
        np.array([[8.0, 3.0], [8.0, 3.0], [8.0, 6.0]]),
        np.array([np.diag([100.0, 0.0]), np.diag([100.0, 1e-14]), np.diag([100.0, 0.0])]),
        np.array([5.0, 5.0, 5.0]),
    )
    # A chord from 4 to 12, in units of sigma 0.4 to 1.2: Phi(1.2) - Phi(0.4). The third disc does not reach the line.
    line = 0.884930329778292 - 0.655421741610324
    assert computed == pytest.approx([line, line, 0.0], abs=1e-8)


def test_an_impossible_covariance_has_no_probability() -> None:
    """NaN, not a number that looks like one."""
    wrong = np.array([np.diag([1.0, -1.0]), [[1.0, 2.0], [2.0, 1.0]], np.diag([np.nan, 1.0])])
    assert np.isnan(collision_probability(np.ones((3, 2)), wrong, np.ones(3))).all()


@settings(max_examples=examples(400))
@given(
    miss=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    sigma=st.floats(1e-3, 1e6),
    aspect=st.floats(1.0, 1e6),
    turn_rad=st.floats(-np.pi, np.pi),
    radius=st.floats(0.0, 1e4),
)
def test_a_probability_is_between_0_and_1_and_grows_with_the_radius(
    miss: tuple[float, float], sigma: float, aspect: float, turn_rad: float, radius: float
) -> None:
    """For any ellipse and any place, also where it is 0 or 1 to rounding."""
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    turn = np.array([[cos, -sin], [sin, cos]])
    covariance = turn @ np.diag([sigma**2, (sigma / aspect) ** 2]) @ turn.T
    smaller, larger = collision_probability(
        np.array([miss, miss]), np.array([covariance, covariance]), np.array([radius, radius * 1.5])
    )
    assert 0.0 <= smaller <= 1.0
    assert smaller * (1.0 - 1e-6) <= larger <= 1.0


def test_an_object_without_size_is_not_hit() -> None:
    assert collision_probability(np.array([[1.0, 0.0]]), np.array([np.eye(2)]), np.zeros(1)) == 0.0
    greatest = max_probability(np.array([100.0]), np.zeros(1), np.array([2.0]))
    assert greatest.probability == 0.0
    assert greatest.sigma_m == pytest.approx(100.0 / np.sqrt(2.0), rel=1e-7)


@pytest.mark.parametrize(
    ("ratio", "aspect"), [(0.02, 1.0), (0.02, 15.0), (0.4, 1.0), (0.4, 2.5), (0.85, 1.0), (0.85, 2.5)]
)
def test_the_maximum_is_that_of_an_independent_integral_and_search(ratio: float, aspect: float) -> None:
    """Alfano 2005: the major axis along the miss vector, all sizes of the ellipse."""

    def negative(log_sigma: float) -> float:
        sigma = np.exp(log_sigma)
        return -over_the_disc(1.0, 0.0, sigma, sigma / aspect, ratio)

    found = minimize_scalar(negative, bounds=(-2.5, 0.0), method="bounded", options={"xatol": 1e-4})
    greatest = max_probability(np.array([500.0]), np.array([500.0 * ratio]), np.array([aspect]))
    assert greatest.probability == pytest.approx(-found.fun, rel=1e-7)
    assert greatest.sigma_m == pytest.approx(500.0 * np.exp(found.x), rel=1e-3)


def test_small_objects_have_alfanos_closed_form() -> None:
    """Aspect ratio times r² / (e d²), at d / sqrt(2); the next term is of the order of (aspect r / d)²."""
    miss_m = np.array([5_000.0, 300.0, 1e7])
    aspect = np.array([1.0, 3.0, 2.0])
    radius_m = np.array([0.05, 1e-3, 1e-3])
    greatest = max_probability(miss_m, radius_m, aspect)
    assert greatest.probability == pytest.approx(aspect * radius_m**2 / (math.e * miss_m**2), rel=1e-8)
    assert greatest.sigma_m == pytest.approx(miss_m / np.sqrt(2.0), rel=1e-6)


def test_a_collision_by_the_nominal_orbits_is_certain_at_worst() -> None:
    """The probability is 1 with the smallest errors, and close to 1/2 for a disc that just does not reach the other object."""
    greatest = max_probability(np.array([10.0, 11.0, 0.0, 11.00001]), np.full(4, 11.0), np.full(4, 2.0))
    assert greatest.probability[:3].tolist() == [1.0, 1.0, 1.0]
    assert greatest.sigma_m[:3].tolist() == [0.0, 0.0, 0.0]
    assert 0.499 < greatest.probability[3] < 0.5


@settings(max_examples=examples(200))
@given(
    miss_m=st.floats(1.0, 1e5),
    ratio=st.floats(1e-6, 0.999999),
    aspect=st.floats(1.0, 1e4),
    other=st.floats(0.05, 20.0),
)
def test_no_other_size_of_the_ellipse_gives_more(miss_m: float, ratio: float, aspect: float, other: float) -> None:
    """Dilution: both larger and smaller errors give a lower probability. It grows with the aspect ratio and the radius."""
    radius_m = ratio * miss_m
    greatest = max_probability(
        np.array([miss_m, miss_m, miss_m]),
        np.array([radius_m, radius_m, radius_m * 0.99]),
        np.array([aspect, aspect * 1.01, aspect]),
    )
    highest, sigma_m = greatest.probability[0], greatest.sigma_m[0]
    sigmas_m = np.array([sigma_m, sigma_m * other])
    covariance = np.stack((sigmas_m, sigmas_m / aspect), axis=1)[:, :, np.newaxis] ** 2 * np.eye(2)
    there, elsewhere = collision_probability(np.array([[miss_m, 0.0]] * 2), covariance, np.full(2, radius_m))
    assert there == pytest.approx(highest, rel=1e-8)
    assert elsewhere <= highest * (1.0 + 1e-8)
    assert 0.0 < sigma_m <= miss_m * 1.000001
    assert greatest.probability[2] < highest <= greatest.probability[1] * (1.0 + 1e-12)


def test_the_cases_are_those_of_the_data_folder() -> None:
    """The list of cases names every message of Alfano's that the data has."""
    if not CDMS.exists():
        pytest.skip(f"real data absent: no {CDMS} (set SDA_DATA_DIR)")
    cases = {int(Path(path).stem[-2:]) for path in CDMS.glob("AlfanoTestCase*.cdm")}
    assert cases == set(NASA_ALFANO)
