"""The outbox: which risks become revisions, who gets them, in which order, and what restarts and changed settings do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from sda_ops.alerts.outbox.rules import SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.outbox.values import Depth, Opened
from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.records.risk import ConjunctionRisk
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable, Recorded, Screened
from tests.sda_ops.alerts.risks import DAY, HOUR, T0, TCA, S, risk

DYNAMICS = SubscriberRules(name="dynamics")
FINALS = SubscriberRules(name="finals", finals=True)


def outbox_of(path: Path, *subscribers: SubscriberRules, **options: Any) -> AlertOutbox:
    return AlertOutbox(path / "alerts.sqlite", subscribers=subscribers, **options)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[AlertOutbox]:
    opened = outbox_of(tmp_path, DYNAMICS)
    assert opened.open(T0) == Opened(("dynamics",), {}, 0)
    yield opened
    opened.close()


def test_a_second_opening_returns_what_the_first_one_has_found(outbox: AlertOutbox) -> None:
    """The topology opens it before the run, so that a damaged file is found; the sink reports what has changed."""
    assert outbox.open(T0 + S) == Opened(("dynamics",), {}, 0)


def reopened(outbox: AlertOutbox, *subscribers: SubscriberRules, now_ns: int = T0) -> tuple[AlertOutbox, Opened]:
    """The file, opened by another process with these subscribers."""
    outbox.close()
    again = outbox_of(outbox.path.parent, *subscribers)
    return again, again.open(now_ns)


def pending(outbox: AlertOutbox, subscriber: str = "dynamics") -> list[tuple[int, int, str]]:
    """First object, revision and reason of what is due."""
    return [
        (each.alert.risk.estimate.catalog_number_first, each.alert.revision, each.reason)
        for each in outbox.due(subscriber, T0, 100)
    ]


def deliver_all(outbox: AlertOutbox, subscriber: str = "dynamics") -> list[tuple[int, int]]:
    """Acknowledge what is due until nothing is. Returns first object and revision of each, in the order of delivery."""
    delivered = []
    while due := outbox.due(subscriber, T0, 100):
        delivered += [(each.alert.risk.estimate.catalog_number_first, each.alert.revision) for each in due]
        outbox.acknowledge(due, T0)
    return delivered


def test_the_first_risk_of_a_conjunction_is_revision_0_and_is_pending_as_it_was_recorded(outbox: AlertOutbox) -> None:
    first = risk(observations=(2, 70))
    recorded = outbox.record([first], T0)
    (alert,) = recorded.alerts
    assert (alert.conjunction_id, alert.revision, alert.severity) == (first.conjunction_id, 0, "medium")
    assert (alert.recorded_timestamp, alert.risk) == (T0, first)
    assert recorded.material == recorded.alerts
    assert (recorded.pending, recorded.repeats, recorded.below) == (1, 0, 0)
    (delivery,) = outbox.due("dynamics", T0, 10)
    assert delivery.alert == alert
    assert (delivery.subscriber, delivery.reason, delivery.attempts, delivery.pending_since_ns) == (
        *("dynamics", "first", 0, T0),
    )


def test_each_content_is_one_revision_in_any_number_of_repeats_and_orders(outbox: AlertOutbox) -> None:
    """A batch that is delivered again, in part and in another order, changes nothing."""
    risks = [risk(), risk(observations=(1, 0)), risk(status="final", observations=(1, 0)), risk(estimate=2)]
    assert [alert.revision for alert in outbox.record(risks, T0).alerts] == [0, 1, 2, 3]
    again = outbox.record([*risks, *risks[:2]], T0 + S)
    assert (again.alerts, again.repeats + again.stale) == ((), 6)
    assert [alert.revision for alert in outbox.record([risk(estimate=3)], T0).alerts] == [4]


def test_the_same_content_from_later_evidence_of_another_cause_is_a_repeat(outbox: AlertOutbox) -> None:
    outbox.record([risk()], T0)
    repeat = outbox.record([risk(cause="observed", evidence_ns=T0 + S)], T0)
    assert (repeat.repeats, repeat.alerts) == (1, ())


def test_a_risk_with_an_older_estimate_is_stale(outbox: AlertOutbox) -> None:
    outbox.record([risk(estimate=5)], T0)
    late = outbox.record([risk(estimate=4, miss_m=10.0), risk(estimate=3, status="retracted")], T0)
    assert (late.stale, late.alerts) == (2, ())


def test_an_estimate_of_a_table_that_was_lost_and_made_anew_is_newer(outbox: AlertOutbox) -> None:
    """It has the same id, and its revisions begin with 1 again: the time of the screening decides."""
    outbox.record([risk(estimate=5)], T0)
    (alert,) = outbox.record([risk(estimate=1, miss_m=10.0, screened_timestamp=T0)], T0).alerts
    assert (alert.revision, alert.risk.estimate.miss_m) == (1, 10.0)
    assert outbox.record([risk(estimate=1, miss_m=10.0, screened_timestamp=T0, cause="recovered")], T0).repeats == 1
    (retracted,) = outbox.record([risk(estimate=2, status="retracted", screened_timestamp=T0 + S)], T0).alerts
    assert (retracted.revision, retracted.risk.status) == (2, "retracted")


def test_after_a_restart_that_gathers_evidence_anew_no_revision_has_less_of_it(outbox: AlertOutbox) -> None:
    """The same estimate with fewer observations says less than what is stored. That it is final is new."""
    outbox.record([risk(), risk(observations=(3, 2), cause="observed")], T0)
    restarted = [
        risk(cause="recovered"),
        risk(observations=(1, 0), cause="observed"),
        risk(observations=(1, 0), status="final", cause="settled"),
    ]
    (alert,) = outbox.record(restarted, T0).alerts
    assert (alert.revision, alert.risk.status) == (2, "final")
    assert [each.observations for each in alert.risk.evidence] == [3, 2]
    assert outbox.record([*restarted, risk(observations=(2, 0), cause="observed")], T0).repeats == 4
    (more,) = outbox.record([risk(observations=(6, 0), cause="observed")], T0).alerts
    assert (more.revision, more.risk.status) == (3, "provisional")
    (newer,) = outbox.record([risk(estimate=2, screened_timestamp=T0)], T0).alerts
    assert [each.observations for each in newer.risk.evidence] == [0, 0], "another estimate has evidence of its own"


def test_a_recovered_risk_with_nothing_newer_is_a_repeat(outbox: AlertOutbox) -> None:
    """The process that has started again has no evidence: it does not know more than the outbox."""
    outbox.record([risk(estimate=2, observations=(3, 0)), risk(6, 7)], T0)
    outbox.record([risk(6, 7, estimate=2, status="retracted")], T0)
    recovered = [
        risk(estimate=2, cause="recovered"),
        risk(6, 7, estimate=2, status="retracted", cause="recovered"),
        risk(8, 9, status="retracted", cause="recovered"),
    ]
    again = outbox.record(recovered, T0)
    assert (again.repeats, again.below, again.alerts) == (2, 1, ())
    newer = outbox.record([risk(estimate=3, status="retracted", cause="recovered")], T0)
    assert [(alert.revision, alert.risk.status) for alert in newer.alerts] == [(1, "retracted")]


def test_nothing_is_stored_of_a_conjunction_outside_the_thresholds_or_retracted_before_it_was_an_alert(
    outbox: AlertOutbox,
) -> None:
    recorded = outbox.record([risk(miss_m=1_001.0), risk(6, 7, status="retracted")], T0)
    assert (recorded.below, recorded.alerts) == (2, ())
    assert [alert.revision for alert in outbox.record([risk(estimate=2)], T0).alerts] == [0]


def test_immaterial_revisions_are_stored_and_quiet(outbox: AlertOutbox) -> None:
    recorded = outbox.record([risk(), risk(estimate=2, miss_m=800.0), risk(estimate=3, miss_m=300.0)], T0)
    assert [alert.revision for alert in recorded.alerts] == [0, 1, 2]
    assert [alert.revision for alert in recorded.material] == [0, 2]
    assert (recorded.pending, recorded.quiet) == (2, {"not_material": 1})
    assert deliver_all(outbox) == [(5, 0), (5, 2)]


def test_changes_are_compared_with_what_the_subscriber_was_sent_and_not_with_the_last_revision(
    outbox: AlertOutbox,
) -> None:
    """A slow drift becomes an update when it is material in sum; in several calls as in one."""
    for n in range(1, 7):
        outbox.record([risk(estimate=n, miss_m=900.0 - 50.0 * n)], T0)
    assert deliver_all(outbox) == [(5, 0), (5, 4)]  # 850 m, and 650 m: below 80 % of it


def test_each_subscriber_has_its_own_rules_and_its_own_deliveries(tmp_path: Path) -> None:
    mine = SubscriberRules(name="mine", objects=frozenset({6}))
    outbox = outbox_of(tmp_path, DYNAMICS, mine, FINALS)
    outbox.open(T0)
    recorded = outbox.record([risk(), risk(6, 7), risk(6, 7, status="final")], T0)
    assert (recorded.pending, recorded.quiet) == (6, {"other_objects": 1, "not_material": 2})
    assert deliver_all(outbox) == [(5, 0), (6, 0)]
    assert deliver_all(outbox, "mine") == [(6, 0)]
    assert deliver_all(outbox, "finals") == [(5, 0), (6, 0), (6, 1)]
    outbox.close()


def test_of_each_conjunction_only_the_oldest_pending_revision_is_due_in_order_of_recording(outbox: AlertOutbox) -> None:
    outbox.record([risk(), risk(6, 7), risk(estimate=2, miss_m=100.0), risk(6, 7, estimate=2, status="retracted")], T0)
    assert pending(outbox) == [(5, 0, "first"), (6, 0, "first")]
    first, _ = outbox.due("dynamics", T0, 10)
    outbox.acknowledge([first], T0)
    assert pending(outbox) == [(6, 0, "first"), (5, 1, "miss_distance")]
    assert outbox.due("dynamics", T0, 1)[0].alert.risk.estimate.catalog_number_first == 6
    assert deliver_all(outbox) == [(6, 0), (5, 1), (6, 1)]


def test_a_failure_is_counted_and_holds_its_conjunction_until_the_time_of_the_retry(outbox: AlertOutbox) -> None:
    outbox.record([risk(), risk(estimate=2, miss_m=100.0), risk(6, 7)], T0)
    failed = outbox.due("dynamics", T0, 10)[0]
    outbox.note_failure(failed, "HTTP 503", T0, retry_at_ns=T0 + 10 * S)
    assert pending(outbox) == [(6, 0, "first")]
    (again, _) = outbox.due("dynamics", T0 + 10 * S, 10)
    assert (again.alert, again.attempts) == (failed.alert, 1)


def test_a_retry_is_due_at_once_if_the_clock_was_set_back_since_it_was_noted(outbox: AlertOutbox) -> None:
    """The clock was a day ahead when the attempt failed. The retraction behind it must not wait for a day."""
    outbox.record([risk(), risk(estimate=2, status="retracted")], T0 + DAY)
    (failed,) = outbox.due("dynamics", T0 + DAY, 10)
    outbox.note_failure(failed, "HTTP 503", T0 + DAY, retry_at_ns=T0 + DAY + 10 * S)
    assert outbox.due("dynamics", T0 + DAY, 10) == []
    assert deliver_all(outbox) == [(5, 0), (5, 1)]


def test_a_parked_revision_is_not_due_and_does_not_hold_the_next_one(outbox: AlertOutbox) -> None:
    """The subscriber does not know it: the next revision is compared with what it knows."""
    outbox.record([risk()], T0)
    deliver_all(outbox)
    outbox.record([risk(estimate=2, miss_m=400.0)], T0)
    (delivery,) = outbox.due("dynamics", T0, 10)
    outbox.park(delivery, "HTTP 422", T0)
    assert pending(outbox) == []
    assert outbox.depth() == {"dynamics": Depth(pending=0, parked=1, oldest_pending_ns=None, configured=True)}
    outbox.record([risk(estimate=3, miss_m=410.0)], T0)
    assert pending(outbox) == [(5, 2, "miss_distance")]


def test_when_a_revision_is_parked_the_newest_that_was_quiet_beside_it_is_pending_in_its_place(
    outbox: AlertOutbox,
) -> None:
    """Otherwise the subscriber would believe 812 m until a further revision comes, perhaps never."""
    outbox.record([risk()], T0)
    deliver_all(outbox)
    assert outbox.record([risk(estimate=2, miss_m=400.0), risk(estimate=3, miss_m=405.0)], T0).quiet == {
        "not_material": 1
    }
    (delivery,) = outbox.due("dynamics", T0, 10)
    outbox.park(delivery, "HTTP 422", T0)
    assert pending(outbox) == [(5, 2, "miss_distance")]
    (newest,) = outbox.due("dynamics", T0, 10)
    outbox.park(newest, "HTTP 422", T0)
    assert pending(outbox) == [], "a revision that was rejected is not sent again"


def test_a_retraction_is_sent_although_the_revision_before_is_parked_because_the_subscriber_may_have_it(
    outbox: AlertOutbox,
) -> None:
    """The answer to the first attempt was lost, and the subscriber answers 400 to the repeat: it must not manoeuvre for nothing."""
    outbox.record([risk()], T0)
    (delivery,) = outbox.due("dynamics", T0, 10)
    outbox.park(delivery, "HTTP 400", T0)
    outbox.record([risk(estimate=2, status="retracted")], T0)
    assert pending(outbox) == [(5, 1, "retracted")]
    assert deliver_all(outbox) == [(5, 1)]
    outbox.record([risk(estimate=3), risk(estimate=4, status="retracted")], T0)
    assert [reason for *_, reason in pending(outbox)] == ["again_active"]


def test_when_a_revision_is_too_old_the_newest_that_was_quiet_beside_it_is_pending_unless_it_is_over(
    outbox: AlertOutbox,
) -> None:
    outbox.record([risk(tca_timestamp=T0 + 9 * DAY), risk(6, 7)], T0)
    outbox.record([risk(estimate=2, tca_timestamp=T0 + 9 * DAY), risk(6, 7, estimate=2)], T0)
    assert outbox.prune(T0 + 8 * DAY).parked == {"dynamics": 2}
    assert pending(outbox) == [(5, 1, "first")]


def test_a_retraction_follows_what_was_sent_and_is_quiet_for_who_does_not_know_the_conjunction(tmp_path: Path) -> None:
    strict = SubscriberRules(name="strict", min_severity="high")
    outbox = outbox_of(tmp_path, DYNAMICS, strict)
    outbox.open(T0)
    outbox.record([risk()], T0)
    recorded = outbox.record([risk(estimate=2, status="retracted")], T0)
    assert (recorded.pending, recorded.quiet) == (1, {"not_known": 1})
    assert deliver_all(outbox) == [(5, 0), (5, 1)]
    again = outbox.record([risk(estimate=3)], T0)
    assert [(each.revision, each.risk.status) for each in again.alerts] == [(2, "provisional")]
    assert pending(outbox) == [(5, 2, "again_active")]
    outbox.close()


def test_a_subscriber_that_is_added_gets_the_newest_revision_of_each_active_conjunction_once(
    outbox: AlertOutbox,
) -> None:
    """Not of those that are retracted, over, or outside its thresholds."""
    outbox.record(
        [risk(), risk(estimate=2, miss_m=400.0), risk(6, 7), risk(8, 9), risk(10, 11, miss_m=900.0)],
        T0,
    )
    outbox.record([risk(6, 7, estimate=2, status="retracted"), risk(12, 13, tca_timestamp=T0 - 1)], T0)
    later = SubscriberRules(name="later", miss_distance_m=850.0)
    again, opened = reopened(outbox, DYNAMICS, later)
    assert opened == Opened(("later",), {}, 2)
    assert pending(again, "later") == [(5, 1, "first"), (8, 0, "first")]
    deliver_all(again, "later")
    once_more, opened = reopened(again, DYNAMICS, later)
    assert opened == Opened((), {}, 0)
    assert pending(once_more, "later") == []
    once_more.close()


def test_a_subscriber_whose_thresholds_are_wider_now_gets_what_fits_them(outbox: AlertOutbox) -> None:
    outbox.close()
    narrow = SubscriberRules(name="dynamics", miss_distance_m=300.0)
    outbox, _ = reopened(outbox, narrow)
    outbox.record([risk(), risk(6, 7, miss_m=200.0)], T0)
    assert deliver_all(outbox) == [(6, 0)]
    outbox, opened = reopened(outbox, DYNAMICS)
    assert opened == Opened((), {}, 1)
    assert pending(outbox) == [(5, 0, "first")]
    outbox.close()


def test_what_is_pending_for_a_removed_subscriber_is_kept_and_reported_until_it_is_too_old(outbox: AlertOutbox) -> None:
    outbox.record([risk(), risk(6, 7)], T0)
    outbox, opened = reopened(outbox, FINALS)
    assert opened == Opened(("finals",), {"dynamics": 2}, 2)
    outbox.record([risk(8, 9)], T0)
    assert outbox.depth()["dynamics"] == Depth(pending=2, parked=0, oldest_pending_ns=T0, configured=False)
    assert outbox.prune(T0 + 7 * DAY + 1).parked == {"dynamics": 2, "finals": 3}
    assert outbox.depth()["dynamics"].parked == 2
    outbox.close()


def test_a_subscriber_that_comes_again_continues_and_receives_what_has_changed(outbox: AlertOutbox) -> None:
    """Also of a retraction from the time in which it was not in the settings."""
    outbox.record([risk(), risk(6, 7)], T0)
    assert deliver_all(outbox) == [(5, 0), (6, 0)]
    outbox, _ = reopened(outbox)
    outbox.record([risk(estimate=2, status="retracted"), risk(6, 7, estimate=2, miss_m=810.0)], T0)
    outbox, opened = reopened(outbox, DYNAMICS)
    assert opened == Opened(("dynamics",), {}, 1)
    assert pending(outbox) == [(5, 1, "retracted")]
    outbox.close()


def test_what_stands_as_an_alert_is_added_to_a_table_of_conjunctions_that_was_lost(
    outbox: AlertOutbox, tmp_path: Path
) -> None:
    """Else a conjunction that the first screening of a new table does not find would be an alert until its time is over."""
    found, gone, retracted, over = risk(5, 9, estimate=4), risk(6, 9), risk(7, 9), risk(8, 9, tca_timestamp=T0 - 1)
    outbox.record([found, gone, retracted, risk(7, 9, estimate=2, status="retracted"), over], T0)
    table = ConjunctionTable(tmp_path / "conjunctions.sqlite")
    table.open()
    assert [each.conjunction_id for each in outbox.standing(T0)] == [found.conjunction_id, gone.conjunction_id]
    assert (table.adopt(outbox.standing(T0)), table.adopt(outbox.standing(T0))) == (2, 0)
    estimates = [msgspec.structs.replace(each, sequence=0) for each in table.newest(T0)]
    assert estimates == [msgspec.structs.replace(each.estimate, sequence=0) for each in (found, gone)]
    seen_again = [figures_of(found.estimate, epoch_first_timestamp=T0)]
    whole = Screened(T0 - HOUR, T0 + DAY)
    assert table.record(seen_again, whole, T0 + S) == Recorded(new=0, updated=1, unchanged=0, withdrawn=1)
    after = {each.conjunction_id: (each.status, each.revision) for each in table.newest(T0)}
    assert after == {found.conjunction_id: ("active", 5), gone.conjunction_id: ("withdrawn", 2)}
    table.close()


def figures_of(update: ConjunctionUpdate, **changed: Any) -> ConjunctionEstimate:
    fields = {name: getattr(update, name) for name in ConjunctionEstimate.__struct_fields__}
    return ConjunctionEstimate(**fields | changed)


def test_what_is_pending_is_the_same_after_the_file_was_closed_and_opened(outbox: AlertOutbox) -> None:
    outbox.record([risk(), risk(6, 7), risk(estimate=2, miss_m=100.0)], T0)
    before = outbox.due("dynamics", T0, 10)
    outbox, _ = reopened(outbox, DYNAMICS)
    assert outbox.due("dynamics", T0, 10) == before
    assert outbox.record([risk(estimate=2, miss_m=100.0)], T0).repeats == 1
    outbox.close()


def test_a_number_is_not_used_again_after_the_revisions_were_removed(outbox: AlertOutbox) -> None:
    outbox.record([risk(), risk(estimate=2, miss_m=100.0)], T0)
    deliver_all(outbox)
    assert outbox.prune(TCA + 30 * DAY).removed == 0
    assert outbox.prune(TCA + 30 * DAY + 1).removed == 2
    assert outbox.record([risk(estimate=2, cause="recovered")], T0).repeats == 1
    (alert,) = outbox.record([risk(estimate=3)], T0).alerts
    assert alert.revision == 2


def test_a_pending_alert_is_not_removed_with_age_but_parked_and_listed_for_a_while(outbox: AlertOutbox) -> None:
    outbox.record([risk()], TCA + 30 * DAY)
    results = [outbox.prune(TCA + days * DAY) for days in (31, 40, 69, 71)]
    assert [(each.removed, each.parked) for each in results] == [(0, {}), (0, {"dynamics": 1}), (0, {}), (1, {})]


def last_revisions(risks: Sequence[ConjunctionRisk], path: Path) -> dict[int, tuple[int, str, float]]:
    outbox = outbox_of(path, DYNAMICS)
    outbox.open(T0)
    for start in range(0, len(risks), 7):
        outbox.record(risks[start : start + 7], T0)
    state: dict[int, tuple[int, str, float]] = {}
    while due := outbox.due("dynamics", T0, 3):
        for each in due:
            estimate = each.alert.risk.estimate
            state[estimate.catalog_number_first] = (estimate.revision, each.alert.risk.status, estimate.miss_m)
        outbox.acknowledge(due, T0)
    outbox.close()
    return state


def test_repeats_and_disorder_leave_the_subscriber_with_the_same_last_state(tmp_path: Path) -> None:
    """Each risk comes up to three times, up to a batch late. The truth is each conjunction's newest estimate."""
    random = Random(5)
    ordered = [
        risk(
            first, 100, estimate=n, miss_m=100.0 * 1.5**n, status="retracted" if n == 5 and first % 2 else "provisional"
        )
        for n in range(1, 6)
        for first in range(1, 9)
    ]
    expected = last_revisions(ordered, tmp_path / "ordered")
    assert expected == {
        first: (5, "retracted" if first % 2 else "provisional", 100.0 * 1.5**5) for first in range(1, 9)
    }
    for attempt in range(5):
        repeated = [each for each in ordered for _ in range(random.randint(1, 3))]
        places = sorted(range(len(repeated)), key=lambda place: place + random.uniform(0, 10))
        assert last_revisions([repeated[place] for place in places], tmp_path / str(attempt)) == expected
