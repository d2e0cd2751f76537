"""Alerts as conjunction messages: read by an independent library and by our reader, and equal to the screening's message."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from sda_ops.alerts.formats.cdm import alert_cdm, alert_message
from sda_ops.astro.time import NS_PER_S
from sda_ops.propagation.uncertainty import AxisErrors, ElementSetErrors
from sda_ops.records.alert import Alert
from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence, RiskStatus
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.assessment.sizes import Sizes
from sda_ops.screening.conjunctions.estimates import estimates_of
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.output.message_builder import Notation
from sda_ops.wire.cdm import ConjunctionMessage, read_cdm
from tests.helpers.mixed_objects import rows_of
from tests.helpers.sizes import examples
from tests.scenes.conjunctions import SOCRATES, AssessedScene, assessed_scene, socrates_scene
from tests.sda_ops.screening.orbits import EPOCH_NS, Orbit, screened
from tests.sda_ops.wire.cdm_messages import NAMES, assert_other_library_agrees

NOTATIONS: tuple[Notation, ...] = ("kvn", "xml")
ID = UUID("e1179a29-2b68-894b-aac7-7c2f2ad70596")
CROSSING = (Orbit(perigee_km=700.0), Orbit(perigee_km=700.3, inclination_deg=97.0))
OBSERVED = ObjectEvidence(
    catalog_number=700_001,
    epoch_timestamp=EPOCH_NS,
    observations=3,
    observation_ids=tuple(UUID(int=n) for n in range(3)),
    sensors=("optical-4172", "radar-1"),
    first_observation_timestamp=EPOCH_NS - 60 * NS_PER_S,
    last_observation_timestamp=EPOCH_NS - 20 * NS_PER_S,
    mean_square_residual=1.25,
)


def crossing(assumptions: Assumptions | None = None) -> tuple[AssessedScene, ConjunctionEstimate]:
    """Two objects that meet near a node, 2 s after the epoch of both element sets, 3.7 km from each other."""
    scene = assessed_scene(screened(CROSSING), np.array([0]), np.array([1]), np.array([EPOCH_NS]), assumptions)
    (estimate,) = estimates_of(scene.objects, scene.conjunctions)
    return scene, estimate


ESTIMATE = crossing()[1]


def alert_of(
    estimate: ConjunctionEstimate = ESTIMATE,
    *,
    status: RiskStatus = "provisional",
    evidence: ObjectEvidence = OBSERVED,
    reason: Any = None,
    complete_until: int | None = None,
    **changes: Any,
) -> Alert:
    update = ConjunctionUpdate(
        **asdict(estimate),
        conjunction_id=ID,
        revision=2,
        sequence=9,
        status="withdrawn" if status == "retracted" else "active",
        screened_timestamp=EPOCH_NS - 3_600 * NS_PER_S,
        reason=reason,
    )
    nothing = ObjectEvidence(
        catalog_number=estimate.catalog_number_second, epoch_timestamp=estimate.epoch_second_timestamp
    )
    risk = ConjunctionRisk(
        estimate=update,
        status=status,
        cause="withdrawn" if status == "retracted" else "observed",
        evidence=(evidence, nothing),
        evidence_timestamp=EPOCH_NS - 10 * NS_PER_S,
        complete_until_timestamp=complete_until,
    )
    values = {"revision": 3, "severity": "medium", "recorded_timestamp": EPOCH_NS - 5 * NS_PER_S + 123_456_789}
    return Alert(conjunction_id=ID, risk=risk, **values | changes)  # type: ignore[arg-type] # of mixed types


def message_of(alert: Alert, **options: Any) -> ConjunctionMessage:
    """The alert's message, if an independent library and our reader read the same from both notations."""
    message = alert_message(alert, originator="SDA", **options)
    for notation in NOTATIONS:
        text = alert_cdm(alert, notation=notation, originator="SDA", **options)
        assert_other_library_agrees(message, text)
        assert read_cdm(text) == message
    return message


def test_an_alert_has_the_numbers_of_the_screenings_own_message_of_the_conjunction() -> None:
    """The states, the relative state, the probability, the radii; the assumed variances of the velocity to 1 %."""
    scene, estimate = crossing()
    (theirs,) = scene.messages()
    ours = message_of(alert_of(estimate))
    assert_same_conjunction(ours, theirs)


def assert_same_conjunction(ours: ConjunctionMessage, theirs: ConjunctionMessage) -> None:
    assert ours.tca_ns == theirs.tca_ns
    assert ours.miss_distance_m == pytest.approx(theirs.miss_distance_m, abs=2e-4)
    assert ours.relative_speed_m_s == pytest.approx(theirs.relative_speed_m_s, abs=1e-3)
    assert ours.relative_position_m == pytest.approx(theirs.relative_position_m, abs=1e-3)
    assert ours.relative_velocity_m_s == pytest.approx(theirs.relative_velocity_m_s, abs=1e-3)
    assert ours.collision_probability == theirs.collision_probability
    assert ours.collision_probability_method == theirs.collision_probability_method
    assert ours.hard_body_radius_m == theirs.hard_body_radius_m
    for one, other in zip(ours.objects, theirs.objects, strict=True):
        assert one.position_m == pytest.approx(other.position_m, abs=1e-3)
        assert one.velocity_m_s == pytest.approx(other.velocity_m_s, abs=1e-3)
        np.testing.assert_allclose(one.covariance.matrix(), other.covariance.matrix(), rtol=1e-2)
        np.testing.assert_allclose(one.covariance.matrix()[:3, :3], other.covariance.matrix()[:3, :3], rtol=1e-5)
        assert one.covariance.comments == other.covariance.comments
        assert one.covariance_method == "DEFAULT"
        assert one.comments[0] == other.comments[0]
        assert (one.name, one.designator, one.international_designator, one.ref_frame, one.physical) == (
            other.name,
            other.designator,
            other.international_designator,
            other.ref_frame,
            other.physical,
        )


def test_alerts_of_real_close_approaches_have_the_numbers_of_the_screenings_messages() -> None:
    """SOCRATES' 20, each read by the independent library in both notations."""
    if not SOCRATES.exists():
        pytest.skip(f"real data absent: no {SOCRATES} (set SDA_DATA_DIR)")
    scene = sorted_by_number(socrates_scene())
    estimates = estimates_of(scene.objects, scene.conjunctions)
    for estimate, theirs in zip(estimates, scene.messages(), strict=True):
        assert_same_conjunction(message_of(alert_of(estimate)), theirs)


def sorted_by_number(scene: AssessedScene) -> AssessedScene:
    order = np.argsort(scene.objects.columns.catalog_number)
    place = np.argsort(order)
    objects: ScreenedObjects = rows_of(scene.objects, order)
    found = scene.screening.approaches
    pairs = np.sort(np.stack((place[found.first], place[found.second])), axis=0)
    return assessed_scene(objects, pairs[0], pairs[1], found.tca_ns)


def test_the_header_names_the_revision_and_the_time_at_which_it_was_stored() -> None:
    message = message_of(alert_of())
    assert message.message_id == f"{ID}_3"
    assert message.creation_date_ns == EPOCH_NS - 5 * NS_PER_S + 123_456_000
    assert message.originator == "SDA"
    assert message.header_comments[:5] == (
        "STATUS = PROVISIONAL",
        f"CONJUNCTION_ID = {ID}",
        "REVISION = 3",
        "SEVERITY = MEDIUM",
        "CAUSE = OBSERVED",
    )


@pytest.mark.parametrize(
    ("options", "meaning"),
    [
        ({"status": "provisional"}, "Provisional: observations from before CREATION_DATE may follow"),
        ({"status": "final"}, "Final: all observations are counted"),
        (
            {"status": "final", "complete_until": 1_772_000_000 * NS_PER_S + 5},
            "Final: all observations from before 2026-02-25T06:13:20.000 are counted",
        ),
        (
            {"status": "retracted", "reason": "left_catalog"},
            "Retracted: an object is not in the catalogue any more. All figures are those of the last estimate",
        ),
        (
            {"status": "retracted"},
            "Retracted: the newest screening does not have this approach. All figures are those of the last estimate",
        ),
    ],
)
def test_a_sentence_says_what_the_status_means(options: dict[str, Any], meaning: str) -> None:
    assert message_of(alert_of(**options)).header_comments[5] == meaning


def test_a_retracted_alert_states_no_probability_and_keeps_the_last_estimates_figures() -> None:
    active, retracted = message_of(alert_of()), message_of(alert_of(status="retracted", reason="moved_away"))
    assert active.collision_probability is not None
    assert (retracted.collision_probability, retracted.collision_probability_method) == (None, None)
    assert retracted.comments[-1] == "No COLLISION_PROBABILITY: the conjunction is retracted"
    assert retracted.header_comments[0] == "STATUS = RETRACTED"
    assert retracted.miss_distance_m == active.miss_distance_m
    assert [each.position_m for each in retracted.objects] == [each.position_m for each in active.objects]
    for notation in NOTATIONS:
        assert "<COLLISION_PROBABILITY>" not in (
            text := alert_cdm(alert_of(status="retracted"), notation=notation, originator="SDA")
        )
        assert re.search(r"^COLLISION_PROBABILITY ", text, re.MULTILINE) is None


def test_the_evidence_is_in_comments_because_no_orbit_was_fitted_to_it() -> None:
    first, second = message_of(alert_of()).objects
    assert first.comments[1:] == (
        "Observations of it, compared with this element set or a newer one = 3",
        "Sensors (2): optical-4172, radar-1",
        "First and last observation = 2026-03-09T23:59:00.000, 2026-03-09T23:59:40.000",
        "Mean square residual from the element set, in standard deviations = 1.25",
    )
    assert second.comments[1:] == ("Observations of it, compared with this element set or a newer one = 0",)
    assert (first.orbit_determination, second.orbit_determination) == (None, None)


def test_an_object_of_the_receivers_own_is_the_first_one() -> None:
    """The message is the screening's own for that asset, and the evidence changes places, too."""
    scene, estimate = crossing(Assumptions(sizes=Sizes(by_number={700_002: 3.0})))
    (theirs,) = scene.messages(assets=np.array([1]))
    ours = message_of(alert_of(estimate), own={700_002, 5})
    assert_same_conjunction(ours, theirs)
    assert [each.designator for each in ours.objects] == ["700002", "700001"]
    assert ours.objects[1].comments[1] == "Observations of it, compared with this element set or a newer one = 3"
    assert message_of(alert_of(estimate), own={700_001, 700_002}) == message_of(alert_of(estimate))


def test_many_sensors_fit_into_a_line_of_the_standard() -> None:
    many = replace(OBSERVED, sensors=tuple(f"sensor-{n:05}" for n in range(500)))
    text = alert_cdm(alert_of(evidence=many), notation="kvn", originator="SDA")
    assert max(map(len, text.splitlines())) <= 254
    assert "Sensors (500): sensor-00000, " in text


def test_the_covariance_and_its_source_are_those_of_the_given_errors() -> None:
    near_earth = replace_errors(radial_m=77.0)
    (estimate,) = (crossing(Assumptions(errors=near_earth))[1],)
    message = message_of(alert_of(estimate), errors=near_earth)
    assert message.objects[0].covariance.state[0] == pytest.approx(77.0**2, rel=1e-3)
    assert message.objects[0].covariance.comments[-1].endswith("settings of the screening")
    assert message.collision_probability_method == "FOSTER-1992"
    assert message.collision_probability == pytest.approx(estimate.probability, rel=1e-5)
    assert message.comments[-1].startswith("Maximum probability (ALFANO-MAX-PROBABILITY) = ")


def replace_errors(**changes: float) -> ElementSetErrors:
    default = ElementSetErrors().near_earth
    names = default.__slots__
    return ElementSetErrors(near_earth=AxisErrors(**{name: getattr(default, name) for name in names} | changes))


def test_the_states_are_those_of_the_written_time() -> None:
    """The record has nanoseconds, the message microseconds: half a microsecond is 4 mm of motion."""
    moved = replace(ESTIMATE, tca_timestamp=ESTIMATE.tca_timestamp // 1_000 * 1_000 + 400)
    message = message_of(alert_of(moved))
    whole = message_of(alert_of(replace(moved, tca_timestamp=moved.tca_timestamp - 400)))
    for later, earlier in zip(message.objects, whole.objects, strict=True):
        expected_m = np.subtract(earlier.position_m, np.multiply(earlier.velocity_m_s, 400e-9))
        np.testing.assert_allclose(later.position_m, expected_m, rtol=0, atol=2e-6)


def test_an_estimate_without_states_is_named_with_what_to_do() -> None:
    old = alert_of(replace(ESTIMATE, second_vx_m_s=None))
    with pytest.raises(
        ValueError, match=rf"conjunction {ID}: its estimate has no states, which a CDM needs; an earlier"
    ):
        alert_cdm(old, notation="kvn", originator="SDA")


def test_an_estimate_whose_state_is_no_orbit_is_named() -> None:
    fast = alert_of(replace(ESTIMATE, first_vx_m_s=1e9))
    with pytest.raises(ValueError, match="a state of its estimate is not one of a closed orbit"):
        alert_cdm(fast, notation="xml", originator="SDA")


def test_an_originator_that_is_no_line_of_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="originator: a text must be one line of printable characters"):
        alert_cdm(alert_of(), notation="kvn", originator="A\nB")


LINES = st.sampled_from(
    ["A\nTCA = 2000-01-01T00:00:00", "\t", "\ud800", "\ufffe", "a\x00b", "COMMENT\r\nSTATUS = FINAL", "-->"]
)
TEXTS = st.one_of(NAMES, LINES, st.text(max_size=30))
SIZES = st.floats(1e-6, 1e6)
MOMENTS = st.integers(-9_214_560_000_000_000_000, 9_214_646_400_000_000_000 - 1)
ESTIMATES = st.builds(
    lambda **changes: replace(ESTIMATE, **changes),
    name_first=TEXTS,
    name_second=TEXTS,
    designator_first=TEXTS,
    designator_second=TEXTS,
    catalog_number_first=st.integers(0, 999_999_999),
    max_probability=st.floats(0.0, 1.0),
    probability=st.none() | st.floats(0.0, 1.0),
    dilution_m=st.none() | st.floats(0.0, 1e9),
    radius_first_m=SIZES,
    radius_second_m=SIZES,
    epoch_first_timestamp=MOMENTS,
    tca_timestamp=st.integers(0, 9_214_646_400_000_000_000 - 1_000),
    first_x_m=st.floats(-7e6, 7e6),
    second_vz_m_s=st.floats(-7e3, 7e3),
)
EVIDENCE = st.builds(
    ObjectEvidence,
    catalog_number=st.just(1),
    epoch_timestamp=MOMENTS,
    observations=st.integers(0, 10**9),
    sensors=st.lists(TEXTS, max_size=4).map(tuple),
    first_observation_timestamp=st.none() | MOMENTS,
    last_observation_timestamp=st.none() | MOMENTS,
    mean_square_residual=st.none() | st.floats(),
)


@given(
    ESTIMATES,
    EVIDENCE,
    st.sampled_from(["provisional", "final", "retracted"]),
    st.none() | MOMENTS,
    st.integers(0, 10**6),
    MOMENTS,
)
@settings(max_examples=examples(200), deadline=None)
def test_every_alert_is_read_with_equal_numbers_by_the_independent_library_and_by_our_reader(
    estimate: ConjunctionEstimate,
    evidence: ObjectEvidence,
    status: RiskStatus,
    complete_until: int | None,
    revision: int,
    recorded: int,
) -> None:
    """With any names in the catalogue and of sensors; none of these texts makes a second line or a field."""
    alert = alert_of(
        estimate,
        status=status,
        evidence=evidence,
        complete_until=complete_until,
        revision=revision,
        recorded_timestamp=recorded,
    )
    message = message_of(alert)
    assert message.header_comments[0] == f"STATUS = {status.upper()}"
    assert message.message_id == f"{ID}_{revision}"
