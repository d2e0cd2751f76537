"""Conjunction messages of real close approaches (CelesTrak's SOCRATES) and of made-up ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from skyfield.api import load
from skyfield.sgp4lib import TEME

from sda_ops.astro.time import NS_PER_S
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors
from sda_ops.screening.assessment.assess import assess
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.assessment.encounter import orbit_axes
from sda_ops.screening.assessment.sizes import Sizes
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.output.message_builder import Notation
from sda_ops.screening.output.messages import message_files, passage_messages_of
from sda_ops.screening.volumes.assets import Asset
from sda_ops.screening.volumes.passages import screen_assets
from sda_ops.screening.volumes.volumes import ScreeningVolume
from sda_ops.wire.cdm import cdm_xml, read_cdm
from tests.scenes.conjunctions import SOCRATES, AssessedScene, assessed_scene, socrates_scene, states
from tests.sda_ops.screening.orbits import EPOCH_NS, Orbit, screened
from tests.sda_ops.wire.cdm_messages import assert_other_library_agrees

ONE_MILLIMETRE = 1e-3
ONE_MILLIMETRE_PER_SECOND = 1e-3
J2000_TO_GCRS_RAD = np.deg2rad(0.1 / 3600.0)  # nutation without corrections, and the frame bias


@pytest.fixture(scope="module")
def socrates() -> AssessedScene:
    if not SOCRATES.exists():
        pytest.skip(f"real data absent: no {SOCRATES} (set SDA_DATA_DIR)")
    return socrates_scene()


CROSSING = (Orbit(perigee_km=700.0), Orbit(perigee_km=700.3, inclination_deg=97.0))
"""They meet near the node, 2 s after the epoch of both element sets, 3.7 km from each other."""


def _crossing(assumptions: Assumptions | None = None, **changes: Any) -> AssessedScene:
    objects = replace(screened(CROSSING), **changes)
    return assessed_scene(objects, np.array([0]), np.array([1]), np.array([EPOCH_NS]), assumptions)


@pytest.mark.parametrize("notation", ["kvn", "xml"])
def test_an_independent_library_and_our_reader_read_each_message(socrates: AssessedScene, notation: Notation) -> None:
    """Every message of the 20 has the same numbers for both, and one file each."""
    messages = socrates.messages()
    files = dict(message_files(messages, notation))
    assert len(files) == len(messages) == 20
    for message, text in zip(messages, files.values(), strict=True):
        assert_other_library_agrees(message, text)
        assert read_cdm(text) == message


def test_the_states_are_those_of_skyfields_rotation_out_of_teme(socrates: AssessedScene) -> None:
    """Positions and velocities, within the 0.1 arcseconds between the mean equator of J2000 and GCRS."""
    timescale = load.timescale(builtin=True)
    for message, first, second in zip(
        socrates.messages(), socrates.conjunctions.first, socrates.conjunctions.second, strict=True
    ):
        moment = timescale.utc(1970, 1, 1, 0, 0, message.tca_ns / NS_PER_S)
        for each, row in zip(message.objects, (first, second), strict=True):
            r_m, v_m_s = states(socrates.objects, np.array([row]), np.array([message.tca_ns]))
            to_gcrs = TEME.rotation_at(moment).T
            for ours, theirs in ((each.position_m, to_gcrs @ r_m[0]), (each.velocity_m_s, to_gcrs @ v_m_s[0])):
                assert np.linalg.norm(ours - theirs) < J2000_TO_GCRS_RAD * np.linalg.norm(theirs)


def test_the_relative_state_follows_from_the_two_written_states(socrates: AssessedScene) -> None:
    """Distance, speed and parts in the first object's axes: to 1 mm and 1 mm/s, computed from the message alone."""
    for message in socrates.messages():
        (r_1, v_1), (r_2, v_2) = ((np.array(each.position_m), np.array(each.velocity_m_s)) for each in message.objects)
        radial = r_1 / np.linalg.norm(r_1)
        normal = np.cross(r_1, v_1) / np.linalg.norm(np.cross(r_1, v_1))
        axes = np.stack((radial, np.cross(normal, radial), normal))
        assert message.relative_position_m is not None
        assert message.relative_velocity_m_s is not None
        assert abs(np.linalg.norm(r_2 - r_1) - message.miss_distance_m) < ONE_MILLIMETRE
        assert abs(np.linalg.norm(v_2 - v_1) - (message.relative_speed_m_s or 0.0)) < ONE_MILLIMETRE_PER_SECOND
        np.testing.assert_allclose(message.relative_position_m, axes @ (r_2 - r_1), rtol=0, atol=ONE_MILLIMETRE)
        np.testing.assert_allclose(
            message.relative_velocity_m_s, axes @ (v_2 - v_1), rtol=0, atol=ONE_MILLIMETRE_PER_SECOND
        )


def test_the_numbers_are_those_of_the_assessment_and_of_socrates(socrates: AssessedScene) -> None:
    """The closest approach to 1 µs, the distance to 1 mm, and the range that SOCRATES prints, 1 m."""
    published = json.loads((SOCRATES / "socrates_top20_maxProb.json").read_text(encoding="utf-8"))["conjunctions"]
    conjunctions = socrates.conjunctions
    for n, (message, row) in enumerate(zip(socrates.messages(), published, strict=True)):
        assert abs(message.tca_ns - conjunctions.tca_ns[n]) <= 500
        assert message.tca_ns % 1_000 == 0
        assert abs(message.miss_distance_m - conjunctions.miss_m[n]) < ONE_MILLIMETRE
        assert message.miss_distance_m == pytest.approx(row["min_range_km"] * 1e3, abs=0.501)
        assert message.collision_probability == pytest.approx(conjunctions.max_probability[n], rel=1e-5)
        assert message.collision_probability_method == "ALFANO-MAX-PROBABILITY"
        assert message.hard_body_radius_m == conjunctions.radius_first_m[n] + conjunctions.radius_second_m[n]
        assert message.relative_position_m is not None
        np.testing.assert_allclose(message.relative_position_m, conjunctions.relative_position_m[n], atol=0.01)


def test_a_probability_of_covariances_has_its_method_and_the_maximum_is_a_comment() -> None:
    """With the uncertainty of element sets, whose covariance is then the message's own."""
    errors = ElementSetErrors()
    scene = _crossing(Assumptions(errors=errors))
    (message,) = scene.messages(errors=errors)
    assert message.collision_probability_method == "FOSTER-1992"
    assert message.collision_probability == pytest.approx(scene.conjunctions.probability[0], rel=1e-5)
    maximum = f"Maximum probability (ALFANO-MAX-PROBABILITY) = {scene.conjunctions.max_probability[0]:.6g}"
    assert any(comment.startswith(maximum) for comment in message.comments)


def test_the_comment_of_a_maximum_probability_says_what_it_is_the_maximum_of(socrates: AssessedScene) -> None:
    """The shape that is assumed, and the size at which it is reached; SOCRATES' first one is closer than its radii."""
    touching, near = (message.comments[-1] for message in socrates.messages([0, 1]))
    assert touching == "COLLISION_PROBABILITY is the maximum, because MISS_DISTANCE is at most HBR"
    ratio, dilution_m = socrates.conjunctions.aspect_ratio[1], socrates.conjunctions.dilution_m[1]
    assert near == (
        f"COLLISION_PROBABILITY is the maximum, over all sizes of a covariance with the aspect ratio {ratio:.4g} in the "
        f"encounter plane, reached with a standard deviation of {dilution_m:.6g} [m] along the miss vector"
    )


def test_every_line_of_kvn_has_at_most_254_ascii_characters(socrates: AssessedScene) -> None:
    """As the standard wants it; names in a catalogue are ASCII."""
    for _, text in message_files(socrates.messages(), "kvn"):
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 254


def test_no_entry_and_exit_times_where_motion_is_not_linear_until_then() -> None:
    """Here the sphere is larger than 30 s of relative motion."""
    scene = _crossing()
    (message,) = scene._replace(screening=replace(scene.screening, miss_distance_m=200_000.0)).messages()
    assert (message.screen_entry_ns, message.screen_exit_ns) == (None, None)


def test_the_covariance_is_assumed_and_says_so() -> None:
    """Variances of the error model at the closest approach in the object's own axes, nothing else; method DEFAULT."""
    scene = _crossing()
    (message,) = scene.messages()
    columns = scene.objects.columns
    model = CatalogErrors(ElementSetErrors(), epoch_ns=columns.epoch_ns, mean_motion_rad_s=columns.no_kozai / 60.0)
    position_m2, velocity_m2_s2 = model.variances(np.array([0, 1]), np.full(2, message.tca_ns))
    for n, each in enumerate(message.objects):
        expected = np.diag([*position_m2[n], *velocity_m2_s2[n]])
        np.testing.assert_allclose(each.covariance.matrix(), expected, rtol=1e-5)
        assert each.covariance_method == "DEFAULT"
        assert each.covariance.comments[0] == "Assumed, not determined: public element sets have no covariance"
        assert "round figures after Flohrer, Krag and Klinkrad" in each.covariance.comments[-1]


def test_other_errors_than_the_published_ones_are_named_as_settings() -> None:
    """No publication is cited for figures that a user has set."""
    errors = ElementSetErrors(near_earth=replace(ElementSetErrors().near_earth, radial_m=77.0))
    (message,) = _crossing().messages(errors=errors)
    assert message.objects[0].covariance.state[0] == pytest.approx(77.0**2, rel=1e-3)
    assert message.objects[0].covariance.comments[-1].endswith("settings of the screening")


def test_the_screened_volume_is_a_sphere_and_its_entry_and_exit_lie_on_it() -> None:
    """SGP4's own distance at both times is the screened distance, to the metres that 1 ms makes."""
    scene = _crossing()
    (message,) = scene.messages()
    assert (message.screen_from_ns, message.screen_until_ns) == (scene.screening.start_ns, scene.screening.end_ns)
    assert (message.screen_volume_frame, message.screen_volume_shape) == ("RTN", "ELLIPSOID")
    assert message.screen_volume_m == (5_000.0, 5_000.0, 5_000.0)
    for time_ns in (message.screen_entry_ns, message.screen_exit_ns):
        assert time_ns is not None
        (r_1, _), (r_2, _) = (states(scene.objects, np.array([row]), np.array([time_ns])) for row in (0, 1))
        assert np.linalg.norm(r_2 - r_1) == pytest.approx(5_000.0, abs=10.0)
    assert message.screen_entry_ns < message.tca_ns < message.screen_exit_ns  # type: ignore[operator] # not None


def test_a_passage_through_an_assets_box_has_the_box_and_its_own_entry_and_exit() -> None:
    """OBJECT1 is the asset, here the second row; at both times the other object is on a face of the box, by SGP4."""
    objects = screened(CROSSING)
    asset = Asset(row=1, volume=ScreeningVolume(radial_m=4_000.0, in_track_m=20_000.0, cross_track_m=30_000.0))
    start_ns, end_ns = EPOCH_NS - 600 * NS_PER_S, EPOCH_NS + 600 * NS_PER_S
    ephemeris = Ephemeris(PreparedObjects(objects, engine="sgp4"), start_ns, end_ns)
    screening = screen_assets(ephemeris, [asset], start_ns, end_ns)
    conjunctions = assess(objects, screening.passages.approaches())
    given: dict[str, Any] = {"assets": [asset], "originator": "SDA", "creation_date_ns": EPOCH_NS}
    (message,) = passage_messages_of(objects, conjunctions, np.array([0]), screening=screening, **given)
    assert [each.designator for each in message.objects] == ["700002", "700001"]
    assert (message.screen_from_ns, message.screen_until_ns) == (start_ns, end_ns)
    assert (message.screen_volume_shape, message.screen_volume_m) == ("BOX", (4_000.0, 20_000.0, 30_000.0))
    np.testing.assert_allclose(
        message.relative_position_m or (), screening.passages.relative_position_m[0], rtol=0, atol=0.02
    )
    for time_ns in (message.screen_entry_ns, message.screen_exit_ns):
        assert time_ns is not None
        (r_1, v_1), (r_2, _) = (states(objects, np.array([row]), np.array([time_ns])) for row in (1, 0))
        inside = np.abs(orbit_axes(r_1, v_1)[0] @ (r_2 - r_1)[0]) / np.array([4_000.0, 20_000.0, 30_000.0])
        assert inside.max() == pytest.approx(1.0, abs=1e-5)
    assert_other_library_agrees(message, cdm_xml(message))


def test_a_passage_that_is_longer_than_the_window_has_no_entry_and_exit() -> None:
    """The window's ends are not times at which the object crosses a face."""
    objects = screened((CROSSING[0], replace(CROSSING[0], anomaly_deg=0.2)))
    asset = Asset(row=0, volume=ScreeningVolume(radial_m=4_000.0, in_track_m=50_000.0, cross_track_m=30_000.0))
    start_ns, end_ns = EPOCH_NS - 600 * NS_PER_S, EPOCH_NS + 600 * NS_PER_S
    ephemeris = Ephemeris(PreparedObjects(objects, engine="sgp4"), start_ns, end_ns)
    screening = screen_assets(ephemeris, [asset], start_ns, end_ns)
    conjunctions = assess(objects, screening.passages.approaches())
    given: dict[str, Any] = {"assets": [asset], "originator": "SDA", "creation_date_ns": EPOCH_NS}
    (message,) = passage_messages_of(objects, conjunctions, np.array([0]), screening=screening, **given)
    assert (message.screen_entry_ns, message.screen_exit_ns) == (None, None)


def test_an_object_of_ones_own_is_the_first_one() -> None:
    """The relative state is then in its axes, and the assumed radii change places, too."""
    scene = _crossing(Assumptions(sizes=Sizes(by_number={700_002: 3.0})))
    (as_screened,) = scene.messages()
    (own,) = scene.messages(assets=np.array([1]))
    assert own.objects == as_screened.objects[::-1]
    assert own.miss_distance_m == as_screened.miss_distance_m
    r_1, r_2 = (np.array(each.position_m) for each in own.objects)
    assert own.relative_position_m is not None
    assert own.relative_position_m[0] == pytest.approx((r_2 - r_1) @ r_1 / np.linalg.norm(r_1), abs=ONE_MILLIMETRE)
    assert own.relative_position_m != as_screened.relative_position_m
    assert own.comments[1] == "HBR is the sum of the assumed radii: OBJECT1 3 [m], OBJECT2 1 [m]"
    assert scene.messages(assets=np.array([0, 1])) == [as_screened]


def test_an_element_sets_epoch_and_age_are_in_a_comment(socrates: AssessedScene) -> None:
    """The fields of the orbit determination are of observations: an element set has none."""
    found = socrates.conjunctions
    for n, message in enumerate(socrates.messages()):
        epochs_ns = (found.epoch_first_ns[n], found.epoch_second_ns[n])
        for each, epoch_ns, age_s in zip(
            message.objects, epochs_ns, (found.age_first_s[n], found.age_second_s[n]), strict=True
        ):
            epoch = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(epoch_ns) // 1_000)
            (comment,) = each.comments
            match = re.fullmatch(r"Element set epoch = (\S+), age at TCA = (\S+) \[d\]", comment)
            assert match is not None
            assert datetime.fromisoformat(f"{match[1]}Z") == epoch
            assert float(match[2]) == pytest.approx(age_s / 86_400, abs=1e-6)
            assert each.orbit_determination is None


@pytest.mark.parametrize(
    ("name", "written", "object_type"),
    [
        ("FENGYUN 1C DEB", "FENGYUN 1C DEB", "DEBRIS"),
        ("SL-3 R/B", "SL-3 R/B", "ROCKET BODY"),
        ("ARIANE 42P DEB (R/B)", "ARIANE 42P DEB (R/B)", "DEBRIS"),
        ("DEBUT (ORIZURU)", "DEBUT (ORIZURU)", None),
        ("", "UNKNOWN", None),
        (" \t\n", "UNKNOWN", None),
        ("A\nTCA = B", "A TCA = B", None),
        ("Σ = [km]", "Σ = [km]", None),
        ("X" * 300, "X" * 200, None),
    ],
)
def test_a_catalogues_name_is_one_line_and_shows_the_type(name: str, written: str, object_type: str | None) -> None:
    """Blank names and names with other characters, too; each is read by the other library."""
    (message,) = _crossing(names=(name, "B")).messages()
    assert (message.objects[0].name, message.objects[0].object_type) == (written, object_type)
    for notation in ("kvn", "xml"):
        ((_, text),) = message_files([message], notation)
        assert_other_library_agrees(message, text)
        assert read_cdm(text) == message


@pytest.mark.parametrize(
    ("designator", "written"),
    [
        ("98067A", "1998-067A"),
        ("57001B", "1957-001B"),
        ("56001AAB", "2056-001AAB"),
        ("1998-067A", "1998-067A"),
        ("", "UNKNOWN"),
        ("T2021", "UNKNOWN"),
    ],
)
def test_an_international_designator_has_the_standards_form(designator: str, written: str) -> None:
    """From that of a TLE."""
    (message,) = _crossing(designators=(designator, "")).messages()
    assert message.objects[0].international_designator == written


def test_catalogue_numbers_have_up_to_nine_digits() -> None:
    """In the designator and in the message's id, with which the file is named."""
    objects = screened(CROSSING)
    columns = replace(objects.columns, catalog_number=np.array([5, 799_500_123]))
    scene = assessed_scene(replace(objects, columns=columns), np.array([0]), np.array([1]), np.array([EPOCH_NS]))
    (message,) = scene.messages()
    assert [each.designator for each in message.objects] == ["5", "799500123"]
    assert message.message_id.startswith("000000005_conj_799500123_2026069000001_")
    ((name, _),) = message_files([message], "kvn")
    assert name == f"{message.message_id}.cdm"
    ((name, _),) = message_files([replace(message, message_id="../a b/é")], "xml")
    assert name == "___a_b__.xml"


def test_the_message_id_is_the_same_in_every_run_and_another_for_other_content(socrates: AssessedScene) -> None:
    """It does not depend on the time of creation, the order, or the other messages."""
    ids = [message.message_id for message in socrates.messages()]
    assert len(set(ids)) == 20
    assert [message.message_id for message in socrates.messages([7, 3], creation_date_ns=1)] == [ids[7], ids[3]]
    other = replace(socrates.screening, miss_distance_m=10_000.0)
    (changed,) = socrates._replace(screening=other).messages([7])
    assert changed.message_id != ids[7]
    assert changed.message_id[:-14] == ids[7][:-14]


def test_an_originator_that_is_no_line_of_text_is_an_error() -> None:
    """Named by its field."""
    with pytest.raises(ValueError, match="originator: a text must be one line of printable characters"):
        _crossing().messages(originator="A\nB")


def test_no_conjunctions_are_no_messages() -> None:
    """An empty list of indices."""
    assert _crossing().messages([]) == []
