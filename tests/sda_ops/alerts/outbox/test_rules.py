"""The rules of alerts: severities, thresholds, and of which changes a subscriber is notified. Pure; no file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.alerts.outbox.rules import (
    AlertRules,
    Decision,
    Known,
    Notify,
    Quiet,
    SubscriberRules,
    becomes_alert,
    decide,
    severity,
)
from sda_ops.records.alert import Severity
from sda_ops.records.risk import ConjunctionRisk
from tests.sda_ops.alerts.risks import TCA, S, risk

GENERAL = AlertRules()
ANY = SubscriberRules(name="any")
KNOWN = Known(status="provisional", severity="medium", miss_m=812.5, probability=1.5e-6, tca_ns=TCA)


def after(known: Known | None, new: ConjunctionRisk, subscriber: SubscriberRules = ANY) -> Decision:
    return decide(GENERAL, subscriber, known, new)


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0.0, "low"), (9.99e-8, "low"), (1e-7, "medium"), (9.99e-5, "medium"), (1e-4, "high"), (1.0, "high")],
)
def test_the_severity_is_that_of_the_probability_and_without_one_of_the_maximum(
    probability: float, expected: Severity
) -> None:
    """The limits are those of NASA/SP-20230002470."""
    assert severity(risk(max_probability=probability).estimate) == expected
    assert severity(risk(max_probability=0.5, probability=probability).estimate) == expected


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, True),
        ({"miss_m": 1_000.0}, True),
        ({"miss_m": 1_000.1}, False),
        ({"max_probability": 1e-8}, False),
        ({"same_fleet": True}, False),
        ({"formation": True}, False),
        ({"status": "final"}, True),
        ({"status": "retracted"}, False),
    ],
)
def test_a_conjunction_becomes_an_alert_within_every_general_threshold(
    figures: dict[str, Any], *, expected: bool
) -> None:
    assert becomes_alert(risk(**figures), GENERAL) is expected
    assert becomes_alert(risk(same_fleet=True, formation=True), AlertRules(fleets=True))


@pytest.mark.parametrize(
    ("threshold", "inside", "outside", "reason"),
    [
        ({"min_severity": "high"}, {"max_probability": 1e-4}, {"max_probability": 9e-5}, "below_severity"),
        ({"miss_distance_m": 500.0}, {"miss_m": 500.0}, {"miss_m": 501.0}, "beyond_miss_distance"),
        ({"min_probability": 1e-5}, {"probability": 1e-5}, {"probability": 9e-6}, "below_probability"),
        ({"objects": frozenset({9, 77})}, {}, {"second": 10}, "other_objects"),
        ({"min_observations": 3}, {"observations": (1, 2)}, {"observations": (0, 2)}, "few_observations"),
        ({}, {}, {"miss_m": 1_500.0}, "general"),
    ],
)
def test_a_subscriber_is_notified_of_a_conjunction_within_its_thresholds(
    threshold: dict[str, Any], inside: dict[str, Any], outside: dict[str, Any], reason: str
) -> None:
    """The general thresholds hold as well."""
    subscriber = SubscriberRules(name="a", **threshold)
    assert after(None, risk(**inside), subscriber) == Notify("first")
    assert after(None, risk(**outside), subscriber) == Quiet(reason)  # type: ignore[arg-type] # parametrized


@pytest.mark.parametrize(
    ("figures", "decision"),
    [
        ({}, Quiet("not_material")),
        ({"miss_m": 812.5 * 0.81}, Quiet("not_material")),
        ({"miss_m": 812.5 * 0.8}, Notify("miss_distance")),
        ({"miss_m": 812.5 * 1.2}, Notify("miss_distance")),
        ({"max_probability": 4.4e-6}, Quiet("not_material")),
        ({"max_probability": 4.5e-6}, Notify("probability")),
        ({"max_probability": 5e-7}, Notify("probability")),
        ({"tca_timestamp": TCA + 5 * S - 1}, Quiet("not_material")),
        ({"tca_timestamp": TCA - 5 * S}, Notify("tca")),
        ({"max_probability": 1e-4}, Notify("severity")),
        ({"observations": (9, 9)}, Quiet("not_material")),
        ({"status": "final"}, Quiet("not_material")),
        ({"status": "retracted"}, Notify("retracted")),
    ],
)
def test_an_update_is_sent_if_it_differs_materially_from_what_the_subscriber_knows(
    figures: dict[str, Any], decision: Decision
) -> None:
    assert after(KNOWN, risk(estimate=2, **figures)) == decision


def test_a_final_risk_is_sent_on_request_and_once() -> None:
    subscriber = SubscriberRules(name="a", finals=True)
    assert after(KNOWN, risk(status="final"), subscriber) == Notify("final")
    final = Known("final", "medium", 812.5, 1.5e-6, TCA)
    assert after(final, risk(status="final", observations=(1, 1)), subscriber) == Quiet("not_material")


def test_thresholds_do_not_matter_for_a_conjunction_that_the_subscriber_knows() -> None:
    """It is notified that the miss distance has grown beyond all of them, and of the retraction."""
    strict = SubscriberRules(name="a", miss_distance_m=900.0, min_observations=99, objects=frozenset({77}))
    assert after(KNOWN, risk(miss_m=4_000.0, max_probability=1.6e-6), strict) == Notify("miss_distance")
    assert after(KNOWN, risk(status="retracted"), strict) == Notify("retracted")


def test_a_retraction_is_sent_once_and_only_by_a_subscriber_that_knows_the_conjunction() -> None:
    retracted = Known("retracted", "medium", 812.5, 1.5e-6, TCA)
    assert after(None, risk(status="retracted")) == Quiet("not_known")
    assert after(retracted, risk(status="retracted", estimate=3)) == Quiet("not_material")


def test_a_conjunction_that_is_active_again_is_sent_within_the_thresholds() -> None:
    """After a retraction the subscriber counts as not knowing it, with all thresholds."""
    retracted = Known("retracted", "medium", 812.5, 1.5e-6, TCA)
    assert after(retracted, risk(estimate=3)) == Notify("again_active")
    assert after(retracted, risk(estimate=3, miss_m=999.0), SubscriberRules(name="a", miss_distance_m=900.0)) == Quiet(
        "beyond_miss_distance"
    )


def sent_of(subscriber: SubscriberRules, risks: list[ConjunctionRisk]) -> int:
    """How many of successive risks the subscriber receives."""
    known, count = None, 0
    for each in risks:
        if isinstance(after(known, each, subscriber), Notify):
            estimate = each.estimate
            value = estimate.max_probability
            known = Known(each.status, severity(estimate), estimate.miss_m, value, estimate.tca_timestamp)
            count += 1
    return count


@pytest.mark.parametrize(
    ("subscriber", "low", "high"),
    [
        (ANY, {"max_probability": 9.9e-5}, {"max_probability": 1.01e-4}),  # the limit of high severity
        (ANY, {"miss_m": 999.0}, {"miss_m": 1_001.0}),  # the general miss distance
        (SubscriberRules(name="a", miss_distance_m=500.0), {"miss_m": 499.0}, {"miss_m": 501.0}),
        (
            SubscriberRules(name="a", min_probability=1e-6),
            {"max_probability": 9.9e-7},
            {"max_probability": 1.1e-6},
        ),
    ],
)
def test_a_value_that_oscillates_around_a_limit_is_no_stream_of_updates(
    subscriber: SubscriberRules, low: dict[str, Any], high: dict[str, Any]
) -> None:
    risks = [risk(estimate=n, **(low if n % 2 else high)) for n in range(1, 101)]
    assert 1 <= sent_of(subscriber, risks) <= 2


@given(
    st.lists(st.floats(700.0, 799.0), min_size=2, max_size=30),
    st.lists(st.floats(1e-6, 2.9e-6), min_size=30, max_size=30),
)
def test_values_that_stay_within_the_material_change_are_one_alert(misses: list[float], values: list[float]) -> None:
    """As long as no two of them differ by the share of the miss distance or the factor of the probability."""
    risks = [risk(estimate=n, miss_m=miss, max_probability=values[n]) for n, miss in enumerate(misses)]
    assert sent_of(ANY, risks) == 1


def test_tiny_figures_do_not_make_material_changes() -> None:
    """A miss distance of 4 m instead of 12 m is the same to public element sets, and so are 1e-30 and 1e-12."""
    near = Known("provisional", "low", 12.0, 1e-30, TCA)
    assert after(near, risk(miss_m=4.0, max_probability=1e-12)) == Quiet("not_material")
