"""The association of an observation: correlated, ambiguous, an uncorrelated track, or unpredicted."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.special import expit

from sda_ops.astro.frames import sidereal_angle
from sda_ops.astro.sites import teme_sites
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, Floats, julian_date
from sda_ops.correlate.associate import AssociationRules, Associator
from sda_ops.correlate.sensors import DEFAULT_SIGMA, Sensor
from sda_ops.propagation.interval import STEP_NS, CatalogInterval, Placed
from sda_ops.propagation.uncertainty import AxisErrors, ElementSetErrors
from sda_ops.records.correlation import Correlation, Residuals
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, SourceKind, Target, Uncertainty
from tests.helpers.running import NOON_NS
from tests.scenes.correlation import (
    SIGMA,
    TEIDE,
    TROMSO,
    Moment,
    beacon,
    echo,
    elevations_rad,
    flying_straight,
    interval_at,
    noon,
    observation,
    risen,
    sighting,
    sky,
)

SENSORS = {"radar-1": Sensor(TROMSO), "radar-2": Sensor(TEIDE), "optical-1": Sensor(TEIDE), "isl-1": Sensor(None)}
NOW_NS = NOON_NS + 12_345
A_MICROMETRE, A_NANORADIAN = 1e-6, 1e-9

ROUND_ERRORS = ElementSetErrors(
    near_earth=AxisErrors(
        radial_m=100.0,
        in_track_m=100.0,
        cross_track_m=100.0,
        radial_m_per_day=0.0,
        in_track_m_per_day=0.0,
        cross_track_m_per_day=0.0,
    )
)
"""The same error in every direction and at every age."""

NO_VELOCITY = Uncertainty(sigma_position_m=1e-3, sigma_velocity_m_s=1e9)
"""A beacon with a precise position and no useful velocity."""


def correlated(
    *observations: Observation,
    interval: CatalogInterval | None = None,
    sensors: dict[str, Sensor] | None = None,
    rules: AssociationRules | None = None,
) -> list[Correlation]:
    associator = Associator(SENSORS if sensors is None else sensors, rules)
    placed = [Placed(each, interval or noon()) for each in observations]
    return associator.correlate(placed, now_ns=NOW_NS)


def high_over(site_name: str = "radar-1", *, low: bool = True) -> tuple[int, Moment]:
    """The row and state of the object with the highest elevation five seconds past noon, in low orbit or not."""
    site = SENSORS[site_name].site
    assert site is not None
    time_ns = NOON_NS + 5 * NS_PER_S
    elevation_rad = elevations_rad(site, noon(), time_ns)
    near = np.array([(each.satrec.method == "n") is low for each in sky()])
    row = int(np.argmax(np.where(near, elevation_rad, -np.pi)))
    return row, Moment.of(noon(), row, time_ns)


def number_of(row: int) -> int:
    return sky()[row].catalog_number


REPORTS: dict[str, tuple[Callable[[Moment], Observation], str, int]] = {
    "radar": (lambda moment: echo(TROMSO, moment), "radar-1", 4),
    "radar without angles": (lambda moment: echo(TROMSO, moment, only=("range_m", "range_rate_m_s")), "radar-1", 2),
    "telescope": (lambda moment: sighting(TEIDE, moment), "optical-1", 2),
    "beacon": (beacon, "radar-1", 6),
}
"""For each kind of sensor: its observation, the site that the object must be over, and the number of components."""

FIELDS = {
    "radar": {"range_m", "range_rate_m_s", "azimuth_rad", "elevation_rad"},
    "radar without angles": {"range_m", "range_rate_m_s"},
    "telescope": {"right_ascension_rad", "declination_rad"},
    "beacon": {"radial_m", "in_track_m", "cross_track_m", "speed_m_s"},
}


def measured(residuals: Residuals | None) -> dict[str, float]:
    """The residuals that are not ``None``."""
    assert residuals is not None
    return {name: value for name, value in msgspec.structs.asdict(residuals).items() if value is not None}


# Correlated.


@pytest.mark.parametrize("kind", REPORTS)
@pytest.mark.parametrize("low", [True, False])
def test_an_observation_of_a_catalogued_object_is_correlated_with_it(kind: str, *, low: bool) -> None:
    """Holds for every kind of sensor, in low and high orbits. The observation's own fields are passed on."""
    report, over, components = REPORTS[kind]
    row, moment = high_over(over, low=low)
    seen = report(moment)
    (found,) = correlated(seen)
    assert found.association == "correlated"
    assert (found.catalog_number, found.candidates[0]) == (number_of(row), number_of(row))
    assert found.components == components
    assert found.probability is not None
    assert 0.99 <= found.probability <= 1.0
    assert found.mahalanobis_squared == pytest.approx(0.0, abs=1e-9)
    assert found.reference_orbit_id == f"{number_of(row)}@{NOON_NS}"
    assert found.correlated_timestamp == NOW_NS
    for name in ("observation_id", "source_id", "source_kind", "sensor_timestamp", "ingest_timestamp", "track_id"):
        assert getattr(found, name) == getattr(seen, name)


@pytest.mark.parametrize("kind", REPORTS)
def test_only_measured_components_have_residuals(kind: str) -> None:
    """A radar has residuals of range and angles, a telescope of direction, a beacon in the orbit's axes."""
    report, over, _ = REPORTS[kind]
    (found,) = correlated(report(high_over(over)[1]))
    assert set(measured(found.residuals)) == FIELDS[kind]
    assert all(abs(value) < 1e-5 for value in measured(found.residuals).values())


def test_a_beacons_residuals_are_position_in_orbit_axes_and_the_speed_difference() -> None:
    """30 m too high, 40 m behind, 50 m across; velocity errors of 3 and 4 cm/s make 5."""
    moment = high_over()[1].moved(np.array([30.0, -40.0, 50.0]), np.array([0.0, 0.03, 0.04]))
    (found,) = correlated(beacon(moment))
    expected = {"radial_m": 30.0, "in_track_m": -40.0, "cross_track_m": 50.0, "speed_m_s": 0.05}
    assert measured(found.residuals) == pytest.approx(expected, abs=A_MICROMETRE)


def test_a_radars_residuals_are_measured_minus_predicted() -> None:
    """20 m too far and 0.2 m/s too fast."""
    (found,) = correlated(echo(TROMSO, high_over()[1], noise=np.array([20.0, 0.2, 0.0, -1e-5])))
    assert found.residuals is not None
    assert found.residuals.range_m == pytest.approx(20.0, abs=A_MICROMETRE)
    assert found.residuals.range_rate_m_s == pytest.approx(0.2, abs=A_MICROMETRE)
    assert found.residuals.elevation_rad == pytest.approx(-1e-5, abs=A_NANORADIAN)


@pytest.mark.parametrize("angle", ["azimuth_rad", "elevation_rad"])
def test_a_radar_with_a_single_angle_is_treated_as_one_without_angles(angle: str) -> None:
    """The result is the same as without the angle, which does not count as measured."""
    moment = high_over()[1]
    one_angle = echo(TROMSO, moment, only=("range_m", "range_rate_m_s", angle))
    (found,) = correlated(one_angle)
    (without,) = correlated(echo(TROMSO, moment, only=("range_m", "range_rate_m_s")))
    assert found.components == 2
    for name in ("association", "candidates", "mahalanobis_squared", "probability", "residuals", "components"):
        assert getattr(found, name) == getattr(without, name)


def test_a_range_alone_identifies_the_only_object_above_the_horizon() -> None:
    """There is one component and one residual."""
    alone = interval_at([sky()[high_over()[0]]])
    (found,) = correlated(echo(TROMSO, high_over()[1], only=("range_m",)), interval=alone)
    assert (found.association, found.components, set(measured(found.residuals))) == ("correlated", 1, {"range_m"})


def test_a_range_alone_among_many_objects_lists_all_candidates() -> None:
    """With an uncertainty of 3 km many ranges fit several objects; the right one is always among the candidates."""
    interval, time_ns = noon(2_000), NOON_NS + 5 * NS_PER_S
    rows = risen(TROMSO, interval, time_ns)
    vague = Uncertainty(sigma_range_m=3_000.0)
    found = correlated(
        *[echo(TROMSO, Moment.of(interval, row, time_ns), sigma=vague, only=("range_m",)) for row in rows.tolist()],
        interval=interval,
    )
    assert all(
        sky(2_000)[row].catalog_number in each.candidates for row, each in zip(rows.tolist(), found, strict=True)
    )
    assert sum(each.association == "ambiguous" and len(each.candidates) > 1 for each in found) > rows.size // 3
    assert "uct" not in {each.association for each in found}


# Uncorrelated tracks.


@pytest.mark.parametrize("kind", REPORTS)
def test_an_observation_far_from_every_object_is_an_uncorrelated_track(kind: str) -> None:
    """At 50 km off in every direction there is no object and no candidate."""
    report, over, components = REPORTS[kind]
    row, moment = high_over(over)
    off = moment.moved(np.full(3, 50_000.0))
    (found,) = correlated(report(off), interval=interval_at([sky()[row]]))
    assert (found.association, found.components, found.correlated_timestamp) == ("uct", components, NOW_NS)
    assert (found.catalog_number, found.candidates, found.reference_orbit_id) == (None, (), None)
    assert (found.mahalanobis_squared, found.probability, found.residuals) == (None, None, None)


@pytest.mark.parametrize("kind", REPORTS)
def test_an_observation_of_an_object_missing_from_the_catalogue_is_an_uncorrelated_track(kind: str) -> None:
    """It is not associated with a neighbour, except by a radar without angles."""
    report, over, _ = REPORTS[kind]
    row, moment = high_over(over)
    rest = interval_at([each for number, each in enumerate(sky()) if number != row])
    (found,) = correlated(report(moment), interval=rest)
    assert number_of(row) not in found.candidates
    assert kind == "radar without angles" or found.association == "uct"


# Unpredicted.


@pytest.mark.parametrize("kind", ["radar", "radar without angles", "telescope"])
@pytest.mark.parametrize("sensors", [{}, {"radar-1": Sensor(None), "optical-1": Sensor(None)}])
def test_an_observation_without_a_known_site_is_unpredicted(kind: str, sensors: dict[str, Sensor]) -> None:
    """This holds for an unknown sensor and for one without a site. It is not an uncorrelated track."""
    report, over, _ = REPORTS[kind]
    seen = report(high_over(over)[1])
    (found,) = correlated(seen, sensors=sensors)
    assert (found.association, found.components, found.correlated_timestamp) == ("unpredicted", 0, NOW_NS)
    assert (found.catalog_number, found.candidates, found.residuals) == (None, (), None)
    assert (found.observation_id, found.track_id) == (seen.observation_id, seen.track_id)


@pytest.mark.parametrize("target", [RadarTarget(1e6), RadarTarget(1e6, 0.0, 1.0, 1.0), OpticalTarget(1.0, 0.5)])
@pytest.mark.parametrize("kind", ["isl", "radar", "optical"])
def test_a_range_or_direction_without_a_site_is_unpredicted_for_every_kind_of_sensor(
    target: Target, kind: SourceKind
) -> None:
    """A satellite that reports a range or a direction has no site either."""
    (found,) = correlated(observation(kind, "isl-1", NOON_NS, target))
    assert found.association == "unpredicted"


def test_a_state_needs_neither_a_site_nor_a_known_sensor() -> None:
    """A state vector is complete by itself."""
    row, moment = high_over()
    (found,) = correlated(beacon(moment, source_id="isl-70007"), sensors={})
    assert (found.association, found.catalog_number) == ("correlated", number_of(row))


@pytest.mark.parametrize("kind", REPORTS)
def test_without_any_usable_object_every_observation_is_unpredicted(kind: str) -> None:
    """A catalogue that is too old as a whole does not make observations uncorrelated tracks."""
    report, over, _ = REPORTS[kind]
    (found,) = correlated(report(high_over(over)[1]), interval=interval_at(()))
    assert found.association == "unpredicted"


# Ambiguous.


@pytest.mark.parametrize("kind", REPORTS)
def test_an_observation_of_two_objects_at_one_position_is_ambiguous(kind: str) -> None:
    """Both are equally likely, both are candidates, and the residuals are the same for both."""
    report, over, _ = REPORTS[kind]
    row, moment = high_over(over)
    twins = (sky()[row], replace(sky()[row], catalog_number=999_999))
    (found,) = correlated(report(moment), interval=interval_at(twins))
    assert (found.association, found.catalog_number) == ("ambiguous", None)
    assert found.candidates == (number_of(row), 999_999)
    assert found.probability == pytest.approx(0.5)
    assert found.reference_orbit_id == f"{number_of(row)}@{NOON_NS}"
    assert set(measured(found.residuals)) == FIELDS[kind]


def test_each_of_three_objects_at_one_position_has_a_probability_of_one_third() -> None:
    """The candidates' probabilities add up to 1."""
    row, moment = high_over()
    triplets = [replace(sky()[row], catalog_number=number) for number in (1, 2, 3)]
    (found,) = correlated(beacon(moment), interval=interval_at(triplets))
    assert (found.association, found.candidates) == ("ambiguous", (1, 2, 3))
    assert found.probability == pytest.approx(1.0 / 3.0)


def along_track(*ahead_m: float) -> tuple[CatalogInterval, Moment]:
    """Objects 1, 2, … at these in-track distances from a position over Tromsø, with round errors; and that position."""
    there = teme_sites(TROMSO.r_fixed_m, TROMSO.horizon, sidereal_angle(*julian_date(np.array([NOON_NS]))))
    east, _, up = there.horizon_teme[0]
    r_m, v_m_s = there.r_teme_m[0] + 8e5 * up, 7_500.0 * east
    v_m_s -= (v_m_s @ r_m) / (r_m @ r_m) * r_m
    moment = Moment(NOON_NS, r_m, v_m_s)
    places = np.array([moment.moved(np.array([0.0, each, 0.0])).r_m for each in ahead_m])
    interval = flying_straight(places, np.broadcast_to(v_m_s, places.shape), errors=ROUND_ERRORS)
    return interval, moment


def test_candidates_are_sorted_by_likelihood() -> None:
    """Four objects along one track are listed by distance; a fifth, outside the gate, is not listed."""
    interval, moment = along_track(230.0, -20.0, 130.0, -110.0, 700.0)
    (found,) = correlated(beacon(moment, sigma=NO_VELOCITY), interval=interval)
    assert (found.association, found.candidates) == ("ambiguous", (2, 4, 3, 1))
    assert found.reference_orbit_id == f"2@{NOON_NS}"
    assert measured(found.residuals)["in_track_m"] == pytest.approx(20.0, abs=1e-3)
    assert found.mahalanobis_squared == pytest.approx(0.2**2, rel=1e-3)


@pytest.mark.parametrize("apart_m", [50.0, 150.0, 300.0, 400.0])
def test_probability_is_the_share_of_the_likelihood(apart_m: float) -> None:
    """With errors of 100 m, the likelihood of the farther object is exp(-d²/2) times that of the nearer one."""
    interval, moment = along_track(0.0, apart_m)
    (found,) = correlated(beacon(moment, sigma=NO_VELOCITY), interval=interval)
    share = float(expit((apart_m / 100.0) ** 2 / 2.0))
    assert found.probability == pytest.approx(share, rel=1e-6)
    assert found.association == ("correlated" if share >= 0.99 else "ambiguous")
    assert len(found.candidates) == 2


def test_at_equal_distance_the_object_with_the_smaller_uncertainty_is_likelier() -> None:
    """Of two objects at one position, the one with the newer element set has the higher density."""
    _, moment = along_track(0.0)
    both = np.array([moment.r_m] * 2), np.array([moment.v_m_s] * 2)
    interval = flying_straight(*both, ages_ns=np.array([2 * NS_PER_DAY, 0]))
    (found,) = correlated(
        beacon(moment, sigma=Uncertainty(sigma_position_m=50.0, sigma_velocity_m_s=1e9)), interval=interval
    )
    position, _ = interval.facts.errors.variances(np.arange(2), np.full(2, NOON_NS))
    old, new = np.sqrt(np.prod(position + 50.0**2, axis=1))
    assert found.candidates == (2, 1)
    assert found.probability == pytest.approx(old / (old + new), rel=1e-6)


@pytest.mark.parametrize(("least", "association"), [(0.7, "correlated"), (0.8, "ambiguous")])
def test_min_probability_decides_between_correlated_and_ambiguous(least: float, association: str) -> None:
    """At 0 deviations from one object and 1.5 from the other, the nearer has 75 % of the likelihood."""
    interval, moment = along_track(0.0, 150.0)
    rules = AssociationRules(min_probability=least)
    (found,) = correlated(beacon(moment, sigma=NO_VELOCITY), interval=interval, rules=rules)
    assert found.association == association
    assert found.catalog_number == (1 if association == "correlated" else None)


# The gate.


@pytest.mark.parametrize(
    ("only", "components", "sigmas"),
    [
        (("range_m",), 1, 3.8906),
        (("range_m", "range_rate_m_s"), 2, 4.2919),
        (("range_m", "azimuth_rad", "elevation_rad"), 3, 4.5943),
        (("range_m", "range_rate_m_s", "azimuth_rad", "elevation_rad"), 4, 4.8490),
    ],
)
def test_the_gate_is_the_chi_squared_quantile_for_the_number_of_components(
    only: tuple[str, ...], components: int, sigmas: float
) -> None:
    """The right object is outside once in 10,000 cases (Abramowitz and Stegun, 26.4: square roots of chi-squared)."""
    interval, moment = along_track(0.0)
    sigma = Uncertainty(sigma_range_m=75.0, sigma_range_rate_m_s=1.0, sigma_angle_rad=1e-3)
    for by, association in ((0.9999, "correlated"), (1.0001, "uct")):
        noise = np.array(
            [by * sigmas * np.hypot(75.0, 100.0), 0.0, 0.0, 0.0]
        )  # errors of the radar and the element set
        (found,) = correlated(echo(TROMSO, moment, noise=noise, sigma=sigma, only=only), interval=interval)
        assert (found.association, found.components) == (association, components)


@pytest.mark.parametrize(("miss", "association"), [(1e-2, "uct"), (1e-6, "correlated")])
def test_gate_miss_sets_the_width_of_the_gate(miss: float, association: str) -> None:
    """4.2 deviations in six components: outside the gate of 16.8 (squared), inside that of 36.9."""
    interval, moment = along_track(-420.0)
    (found,) = correlated(beacon(moment, sigma=NO_VELOCITY), interval=interval, rules=AssociationRules(gate_miss=miss))
    assert found.association == association


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"gate_miss": 0.0}, "AssociationRules: gate_miss must be in (0, 1), got 0.0"),
        ({"gate_miss": 1.0}, "AssociationRules: gate_miss must be in (0, 1), got 1.0"),
        ({"clock_error_s": {"isl": -0.1}}, "AssociationRules: clock_error_s must be >= 0, got {'isl': -0.1}"),
        ({"min_probability": 0.49}, "AssociationRules: min_probability must be in [0.5, 1), got 0.49"),
        (
            {"gate_miss": float("nan"), "min_probability": 1.0},
            (
                "AssociationRules: gate_miss must be in (0, 1), got nan; "
                "AssociationRules: min_probability must be in [0.5, 1), got 1.0"
            ),
        ),
    ],
)
def test_all_invalid_rules_are_reported_at_once(rules: dict[str, Any], message: str) -> None:
    """The message has the expected and the actual value of each."""
    with pytest.raises(ValueError, match="AssociationRules") as caught:
        AssociationRules(**rules)
    assert str(caught.value) == message


# The uncertainty of measurements.


def distance_with(stated: Uncertainty, sensor: Uncertainty) -> float:
    """The squared distance of a range with an error of 100 m from an object with an uncertainty of 100 m."""
    interval, moment = along_track(0.0)
    report = echo(TROMSO, moment, noise=np.array([100.0, 0.0, 0.0, 0.0]), sigma=stated, only=("range_m",))
    (found,) = correlated(report, interval=interval, sensors={"radar-1": Sensor(TROMSO, sensor)})
    assert found.mahalanobis_squared is not None
    return found.mahalanobis_squared


def test_uncertainty_comes_from_the_observation_then_the_sensor_then_the_default() -> None:
    """They are 200 m, 300 m and the default of 100 m."""
    own, sensors, neither = Uncertainty(sigma_range_m=200.0), Uncertainty(sigma_range_m=300.0), Uncertainty()
    assert distance_with(own, sensors) == pytest.approx(1e4 / (1e4 + 4e4))
    assert distance_with(neither, sensors) == pytest.approx(1e4 / (1e4 + 9e4))
    assert DEFAULT_SIGMA.sigma_range_m == 100.0
    assert distance_with(neither, neither) == pytest.approx(0.5)


def test_every_component_has_a_default_uncertainty() -> None:
    """So no measurement is used with an uncertainty of zero."""
    assert all(value is not None and value > 0.0 for value in msgspec.structs.asdict(DEFAULT_SIGMA).values())


# Batches.


def mixed_batch() -> list[Placed]:
    """Every kind of observation, of objects and of empty space, by known and unknown sensors, in four intervals; shuffled."""
    placed: list[Placed] = []
    for later_ns in (0, STEP_NS, 5 * STEP_NS):
        interval = interval_at(sky(), NOON_NS + later_ns)
        for name, site in (("radar-1", TROMSO), ("radar-2", TEIDE)):
            for row in risen(site, interval, NOON_NS + later_ns)[:8].tolist():
                time_ns = NOON_NS + later_ns + row * STEP_NS // 600
                moment = Moment.of(interval, row, time_ns)
                off = moment.moved(np.array([0.0, 30_000.0, 0.0]))
                reports = [
                    echo(site, moment, source_id=name),
                    echo(site, off, source_id=name, only=("range_m", "range_rate_m_s")),
                    echo(site, moment, source_id="radar-unknown"),
                    echo(site, moment, source_id=name, only=("range_m",), sigma=Uncertainty(sigma_range_m=20_000.0)),
                    beacon(off if row % 2 else moment),
                ]
                if site is TEIDE:
                    reports.append(sighting(TEIDE, moment))
                placed += [Placed(report, interval) for report in reports]
    placed.append(Placed(echo(TROMSO, Moment.of(noon(), 0, NOON_NS)), interval_at(())))
    random.Random(7).shuffle(placed)
    return placed


def test_a_mixed_batch_gives_the_same_correlations_in_order_as_one_observation_at_a_time() -> None:
    """The batch mixes kinds, sensors and intervals."""
    placed = mixed_batch()
    associator = Associator(SENSORS)
    together = associator.correlate(placed, now_ns=NOW_NS)
    assert [each.observation_id for each in together] == [each.observation.observation_id for each in placed]
    assert {each.association for each in together} == {"correlated", "ambiguous", "uct", "unpredicted"}
    alone = [associator.correlate([each], now_ns=NOW_NS)[0] for each in placed]
    for batch, single in zip(together, alone, strict=True):
        assert without_figures(batch) == without_figures(single)
        assert figures(batch) == pytest.approx(figures(single), rel=1e-6, abs=1e-9)


def without_figures(found: Correlation) -> dict[str, Any]:
    fields = msgspec.structs.asdict(found)
    return {
        name: value for name, value in fields.items() if name not in {"mahalanobis_squared", "probability", "residuals"}
    }


def figures(found: Correlation) -> Floats:
    residuals = [] if found.residuals is None else list(measured(found.residuals).values())
    return np.array([found.mahalanobis_squared or 0.0, found.probability or 0.0, *residuals])


def test_an_empty_batch_gives_no_correlations() -> None:
    """It does not fail either."""
    assert correlated() == []


def test_the_scenes_state_the_uncertainty_of_every_component() -> None:
    """So no test here uses a default by accident."""
    assert None not in msgspec.structs.asdict(SIGMA).values()
