"""What is stated of a conjunction, and when. Times are seconds after the start of the scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from sda_ops.alerts.risk.assessor import AssessorLimits, Recovery, RiskAssessor
from sda_ops.alerts.risk.evidence import EvidenceLimits
from sda_ops.records.risk import MAX_OBSERVATION_IDS, ConjunctionRisk
from tests.scenes.risks import EPOCH_NS, START_NS, S, near, observed, screened

PAIR = (101, 102)
LIMITS = AssessorLimits(
    evidence=EvidenceLimits(gap_ns=10 * S, longest_ns=60 * S, allowed_lateness_ns=5 * S), restate_after_ns=0
)
WAITING = replace(LIMITS, restate_after_ns=100 * S)


def assessor(limits: AssessorLimits = LIMITS) -> RiskAssessor:
    return RiskAssessor(limits, near)


def at(seconds: float) -> int:
    return START_NS + round(seconds * S)


def brief(risks: Sequence[ConjunctionRisk]) -> list[tuple[str | int, ...]]:
    """Cause, status, and the number of observations of both objects."""
    return [(each.cause, each.status, *(evidence.observations for evidence in each.evidence)) for each in risks]


def test_a_conjunction_is_stated_when_it_is_screened_when_it_is_first_observed_and_when_its_evidence_is_complete() -> (
    None
):
    """The second observation of the same object states nothing by itself."""
    risk = assessor()
    assert brief(risk.add([screened(PAIR, at_s=1.0)])) == [("screened", "provisional", 0, 0)]
    assert brief(risk.add([observed(101, 2.0)])) == [("observed", "provisional", 1, 0)]
    assert brief(risk.add([observed(101, 3.0)])) == []
    assert brief(risk.add([observed(102, 4.0), observed(102, 4.5)])) == [("observed", "provisional", 2, 2)]
    assert brief(risk.advance(at(14.5) - 1)) == []
    assert brief(risk.advance(at(14.5))) == [("settled", "final", 2, 2)]
    assert brief(risk.advance(at(1_000))) == []


def test_a_conjunction_without_observations_is_final_when_the_mark_reaches_the_time_of_its_screening() -> None:
    """Not a nanosecond earlier: an observation from before the screening could still come."""
    risk = assessor()
    risk.add([screened(PAIR, at_s=20.0)])
    assert brief(risk.advance(at(20) - 1)) == []
    assert brief(risk.advance(at(20))) == [("settled", "final", 0, 0)]


def test_an_update_that_comes_after_its_observations_finds_them() -> None:
    """Also those of windows that are released; and the sums are those of all of them."""
    risk = assessor()
    seen = [observed(101, second, squared=second, components=2) for second in (1.0, 2.0, 30.0)]
    assert risk.add(seen) == []
    risk.advance(at(25))
    assert risk.evidence.windows.held == 1
    (stated,) = risk.add([screened(PAIR, at_s=31.0)])
    evidence = stated.evidence[0]
    assert evidence.observations == 3
    assert evidence.observation_ids == tuple(each.observation_id for each in seen)
    assert evidence.mean_square_residual == pytest.approx((1.0 + 2.0 + 30.0) / 6)
    assert (evidence.first_observation_timestamp, evidence.last_observation_timestamp) == (at(1), at(30))
    assert evidence.sensors == ("radar-0",)
    assert stated.evidence_timestamp == at(31)
    assert stated.complete_until_timestamp == at(25)


def test_a_late_observation_within_the_allowed_lateness_amends_and_a_later_one_is_counted_only() -> None:
    """The window of [0 s, 10 s) is released when the mark is 15 s."""
    risk = assessor()
    risk.add([screened(PAIR), observed(101, 0.0)])
    assert brief(risk.advance(at(10))) == [("settled", "final", 1, 0)]
    assert brief(risk.add([observed(101, 1.0)])) == [("amended", "provisional", 2, 0)]  # the window ends at 11 s now
    assert brief(risk.advance(at(11))) == [("settled", "final", 2, 0)]
    assert brief(risk.add([observed(101, 0.5)])) == [("amended", "final", 3, 0)]
    risk.advance(at(16))
    assert brief(risk.add([observed(101, 0.7)])) == []
    assert (risk.amended, risk.evidence.windows.late) == (2, 1)


def test_observations_after_the_closest_approach_do_not_count() -> None:
    """Whether they come before or after the mark that ends its time."""
    risk = assessor()
    risk.add([screened(PAIR, tca_s=5.0), observed(101, 4.0), observed(101, 5.0), observed(101, 6.0)])
    assert brief(risk.advance(at(4.9))) == []
    assert brief(risk.advance(at(5.0))) == [("settled", "final", 1, 0)]
    assert brief(risk.add([observed(101, 7.0)])) == []
    assert risk.watched == 1
    assert brief(risk.advance(at(10.0))) == []
    assert (risk.watched, risk.known) == (0, 0)


def test_one_mark_far_beyond_the_closest_approach_settles_with_the_evidence_from_before_it() -> None:
    risk = assessor()
    risk.add([screened(PAIR, tca_s=5.0), observed(101, 4.0), observed(101, 6.0)])
    assert brief(risk.advance(at(10_000))) == [("settled", "final", 1, 0)]
    assert risk.known == 0


def test_the_end_of_the_stream_settles_everything_with_the_evidence_from_before_the_closest_approach() -> None:
    risk = assessor()
    risk.add([screened(PAIR, tca_s=5.0), observed(101, 4.0), observed(101, 6.0), screened((7, 8)), observed(7, 50.0)])
    assert sorted(brief(risk.close())) == [("settled", "final", 1, 0), ("settled", "final", 1, 0)]
    assert risk.unsettled == 0


def test_a_conjunction_that_has_passed_causes_no_statement_and_leaves_with_the_mark() -> None:
    """Its last statement is the same as without the update."""
    risk = assessor()
    update = screened(PAIR, tca_s=5.0)
    risk.add([update])
    passed = msgspec.structs.replace(update, revision=2, status="passed", screened_timestamp=at(6))
    assert brief(risk.add([passed])) == []
    assert brief(risk.add([observed(101, 4.0)])) == [("observed", "provisional", 1, 0)]
    (last,) = risk.advance(at(20))
    assert last.estimate == update
    assert brief([last]) == [("settled", "final", 1, 0)]
    assert risk.watched == 0


def test_a_withdrawn_conjunction_is_retracted_once_without_evidence_and_stated_again_when_it_returns() -> None:
    risk = assessor()
    risk.add([screened(PAIR), observed(101, 1.0)])
    assert brief(risk.add([screened(PAIR, 2, at_s=2.0, status="withdrawn")])) == [("withdrawn", "retracted", 0, 0)]
    assert risk.add([observed(101, 3.0)]) == []
    assert risk.advance(at(100)) == []
    assert brief(risk.add([screened(PAIR, 3, at_s=100.0)])) == [("screened", "final", 2, 0)]


def test_an_older_or_repeated_revision_is_ignored() -> None:
    risk = assessor()
    risk.add([screened(PAIR, 2, status="active")])
    assert risk.add([screened(PAIR, 2), screened(PAIR, 1, status="withdrawn")]) == []
    assert risk.repeated == 2


def test_a_conjunction_beyond_the_threshold_is_stated_only_if_it_was_stated_before() -> None:
    """Then its new estimate is the reason to state it."""
    risk = assessor()
    assert risk.add([screened(PAIR, miss_m=2_000.0)]) == []
    assert risk.add([screened(PAIR, 2, miss_m=2_000.0, status="withdrawn")]) == []
    assert (risk.watched, risk.known) == (0, 1)
    assert brief(risk.add([screened(PAIR, 3, miss_m=900.0)])) == [("screened", "provisional", 0, 0)]
    assert brief(risk.add([screened(PAIR, 4, miss_m=2_000.0)])) == [("screened", "provisional", 0, 0)]


def test_observations_of_an_older_element_set_do_not_count_for_a_newer_estimate() -> None:
    """Those of a newer one do."""
    risk = assessor()
    newer = EPOCH_NS + 3_600 * S
    risk.add([observed(101, 1.0), observed(101, 2.0, epoch_ns=newer)])
    (old,) = risk.add([screened(PAIR)])
    (new,) = risk.add([screened(PAIR, 2, epochs_ns=(newer, EPOCH_NS))])
    assert [each.evidence[0].observations for each in (old, new)] == [2, 1]


def test_a_statement_has_the_newest_ids_and_counts_all() -> None:
    risk = assessor()
    seen = [observed(101, n / 10) for n in range(3 * MAX_OBSERVATION_IDS)]
    half = len(seen) // 2
    risk.add(seen[:half])
    risk.advance(at(half / 10 + 20))  # these are released
    risk.add([observed(101, half / 10 + 30)])
    (stated,) = risk.add([screened(PAIR, at_s=300.0)])
    evidence = stated.evidence[0]
    assert evidence.observations == half + 1
    assert len(evidence.observation_ids) == MAX_OBSERVATION_IDS
    assert evidence.observation_ids[:-1] == tuple(
        each.observation_id for each in seen[:half][1 - MAX_OBSERVATION_IDS :]
    )


def test_further_evidence_of_a_final_statement_waits_unless_the_closest_approach_is_reached() -> None:
    """An object that is observed all day does not fill the outbox."""
    risk = assessor(WAITING)
    risk.add([screened(PAIR, tca_s=90.0), observed(101, 1.0)])
    assert brief(risk.advance(at(11))) == [("settled", "final", 1, 0)]
    risk.add([observed(101, 20.0)])
    assert risk.advance(at(80)) == []
    assert brief(risk.advance(at(90))) == [("settled", "final", 2, 0)]
    risk = assessor(WAITING)
    risk.add([screened(PAIR), observed(101, 1.0)])
    risk.advance(at(11))
    risk.add([observed(101, 20.0)])
    assert risk.advance(at(111) - 1) == []
    assert brief(risk.advance(at(111))) == [("settled", "final", 2, 0)]


def test_an_object_that_is_observed_without_a_pause_is_stated_again_before_the_closest_approach() -> None:
    """Its window is always open. Otherwise a subscriber with ``min_observations`` would receive nothing before the approach.

    Each time the observations have doubled, so that this does not fill the outbox.
    """
    risk, stated = assessor(WAITING), []
    risk.add([screened(PAIR)])
    for second in range(1, 550):
        stated += brief([*risk.add([observed(101, float(second))]), *risk.advance(at(second))])
    assert stated == [
        ("observed", "provisional", 1, 0),
        ("settled", "provisional", 100, 0),
        ("settled", "provisional", 200, 0),
        ("settled", "provisional", 400, 0),
    ]


def test_a_new_process_states_active_conjunctions_again_and_retracts_withdrawn_ones() -> None:
    """Those that have an alert, or are within the threshold. What comes again from the table is ignored."""
    updates = [
        screened((1, 2), 3),
        screened((1, 3), 1, miss_m=3_000.0),
        screened((1, 4), 2, miss_m=3_000.0),
        screened((1, 5), 2, status="withdrawn"),
        screened((1, 6), 2, status="withdrawn"),
    ]
    alerted = {updates[index].conjunction_id for index in (0, 2, 3)}
    risk = assessor()
    stated = risk.recover(Recovery(updates, alerted))
    assert [(each.estimate.catalog_number_second, each.cause, each.status) for each in stated] == [
        (2, "recovered", "provisional"),
        (4, "recovered", "provisional"),
        (5, "recovered", "retracted"),
    ]
    assert risk.add(updates) == []
    assert brief(risk.add([observed(1, 1.0)])) == [("observed", "provisional", 1, 0)] * 2


def test_without_room_the_conjunctions_with_the_latest_approach_are_forgotten_until_their_next_estimate() -> None:
    """They are counted, and a withdrawal is still stated."""
    risk = assessor(AssessorLimits(evidence=LIMITS.evidence, max_conjunctions=2))
    pairs = [(1, 2), (3, 4), (5, 6)]
    for pair, tca_s in zip(pairs, (9_000.0, 8_000.0, 7_000.0), strict=True):
        risk.add([screened(pair, tca_s=tca_s)])
    assert (risk.watched, risk.known, risk.forgotten) == (2, 3, 1)
    assert risk.add([observed(1, 1.0)]) == []
    assert brief(risk.add([screened((1, 2), 2, tca_s=9_000.0, status="withdrawn")])) == [
        ("withdrawn", "retracted", 0, 0)
    ]


def test_a_conjunction_beyond_the_threshold_that_has_passed_is_forgotten_without_any_watermark() -> None:
    """Without sources of observations no watermark comes, and what is known would grow with every screening."""
    risk = assessor()
    assert risk.add([screened(PAIR, 1, miss_m=5_000.0), screened(PAIR, 2, miss_m=5_000.0, status="passed")]) == []
    assert risk.known == 0


def test_an_update_whose_time_is_over_is_counted_only() -> None:
    risk = assessor()
    risk.advance(at(100))
    assert risk.add([screened(PAIR, tca_s=90.0)]) == []
    last_ns = at(95)  # with the allowed lateness of 5 s its time is over exactly now
    assert risk.add([msgspec.structs.replace(screened((1, 2)), tca_timestamp=last_ns)]) == []
    assert (risk.over, risk.known) == (2, 0)
    assert risk.add([msgspec.structs.replace(screened((1, 2)), tca_timestamp=last_ns + 1)]) != []


def test_totals_beyond_the_limit_are_removed_and_counted_those_observed_last_stay() -> None:
    limits = EvidenceLimits(gap_ns=S, longest_ns=S, allowed_lateness_ns=0, max_totals=20)
    risk = assessor(AssessorLimits(evidence=limits))
    for number in range(100):
        risk.add([observed(number, float(number))])
        risk.advance(at(number + 0.5))
    risk.advance(at(1_000))
    assert risk.evidence.totals <= 20
    assert risk.evidence.totals + risk.evidence.removed_totals == 100
    assert risk.evidence.of(99, EPOCH_NS, before_ns=at(5_000)).evidence.observations == 1
    assert risk.evidence.of(0, EPOCH_NS, before_ns=at(5_000)).evidence.observations == 0


def test_the_cap_closes_windows_early_and_every_observation_counts_once() -> None:
    limits = EvidenceLimits(gap_ns=10 * S, longest_ns=60 * S, allowed_lateness_ns=5 * S, max_held=50)
    risk = assessor(AssessorLimits(evidence=limits))
    risk.add([observed(number, n / 100, name=str(n)) for n in range(400) for number in (1, 2)])
    windows = risk.evidence.windows
    assert windows.held <= 50
    assert windows.closed_early > 0
    counted = sum(risk.evidence.of(number, EPOCH_NS, before_ns=at(1_000)).evidence.observations for number in (1, 2))
    assert counted + windows.late == 800
