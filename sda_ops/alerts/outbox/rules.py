"""Which risks become alerts, and what each subscriber receives of them. Pure functions; the outbox stores what they decide.

A conjunction becomes an alert when it is within the general thresholds (`AlertRules`). From then on each new statement about it is a
revision. A subscriber is notified of the conjunction when it is also within the subscriber's own thresholds (`SubscriberRules`). After
that, it receives a revision only if it differs materially from what the subscriber knows; its thresholds do not matter any
more, so a value that oscillates around one of them is no stream of updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sda_ops.records.alert import Alert, Severity
from sda_ops.records.conjunction import ConjunctionEstimate
from sda_ops.records.risk import ConjunctionRisk, RiskStatus

MEDIUM_FROM = 1e-7
HIGH_FROM = 1e-4
"""NASA Spacecraft Conjunction Assessment and Collision Avoidance Best Practices Handbook, NASA/SP-20230002470: a probability of
collision from 1e-4 on calls for a manoeuvre, below 1e-7 for nothing, and between the two for attention."""

SEVERITY_HYSTERESIS = 2.0
"""A severity has fallen when the probability is below its limit by this factor. It rises at the limit, without delay."""

LEAST_MISS_CHANGE_M = 10.0
"""A smaller change of the miss distance is never material: it is a hundredth of the error of public element sets."""

LEAST_PROBABILITY = 1e-10
"""Probabilities below count as this one: a factor between two of them says nothing."""

_NS_PER_S = 1_000_000_000

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""Ascending."""

NotifyReason: TypeAlias = Literal[
    "first", "again_active", "retracted", "severity", "miss_distance", "probability", "tca", "final"
]
"""Why a subscriber receives a revision. ``first``: it does not know the conjunction. ``again_active``: the last that it
knows is a retraction. ``severity``, ``miss_distance``, ``probability`` and ``tca`` name what has changed."""

QuietReason: TypeAlias = Literal[
    "general",
    "below_severity",
    "other_objects",
    "beyond_miss_distance",
    "below_probability",
    "few_observations",
    "not_known",
    "not_material",
]
"""Why it does not. ``general``: outside the general thresholds. The next five: outside its own thresholds. ``not_known``: a
retraction of what it does not know. ``not_material``: it differs too little from what it knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRules:
    """The general thresholds: what becomes an alert at all. All must hold.

    Attributes:
        miss_distance_m: At most.
        min_severity: At least.
        fleets: Whether pairs within one fleet, docked objects and formations become alerts.
    """

    miss_distance_m: float = 1_000.0
    min_severity: Severity = "medium"
    fleets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberRules:
    """What one subscriber receives.

    The first five after the name are thresholds, beside the general ones; the others say which changes are material.

    Attributes:
        name: Unique. It is the key of what this subscriber knows: with another name it is another subscriber.
        min_severity: At least; ``None``: no threshold of its own.
        miss_distance_m: At most; ``None``: no threshold of its own.
        min_probability: The least probability, or maximum probability without covariances.
        objects: Catalogue numbers, one of which must be in the pair; empty: any.
        min_observations: The least number of observations of the two objects together.
        miss_change: The change of the miss distance, as a share of the one that it knows.
        probability_factor: The factor, in either direction, between the probability and the one that it knows.
        tca_shift_s: The shift of the time of closest approach, seconds.
        finals: Whether it is also notified that a risk has become final.
    """

    name: str
    min_severity: Severity | None = None
    miss_distance_m: float | None = None
    min_probability: float | None = None
    objects: frozenset[int] = frozenset()
    min_observations: int = 0
    miss_change: float = 0.2
    probability_factor: float = 3.0
    tca_shift_s: float = 5.0
    finals: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What a subscriber knows of a conjunction: the last revision that was, or will be, delivered to it.

    Attributes:
        status: Of the risk.
        severity: Of the alert.
        miss_m: Miss distance.
        probability: The probability, or the maximum probability without covariances.
        tca_ns: Time of closest approach, UTC.
    """

    status: RiskStatus
    severity: Severity
    miss_m: float
    probability: float
    tca_ns: int


@dataclass(frozen=True, slots=True)
class Notify:
    """The subscriber receives the revision."""

    reason: NotifyReason


@dataclass(frozen=True, slots=True)
class Quiet:
    """The subscriber does not receive the revision."""

    reason: QuietReason


Decision: TypeAlias = Notify | Quiet


def probability(estimate: ConjunctionEstimate) -> float:
    """The probability of collision, or the maximum probability without covariances."""
    return estimate.max_probability if estimate.probability is None else estimate.probability


def severity(estimate: ConjunctionEstimate) -> Severity:
    """The severity of an estimate."""
    return _severity_of(probability(estimate))


def becomes_alert(risk: ConjunctionRisk, rules: AlertRules) -> bool:
    """Whether a conjunction that has no alert yet gets one: it is not retracted, and within the general thresholds."""
    return risk.status != "retracted" and within(risk.estimate, rules)


def within(estimate: ConjunctionEstimate, rules: AlertRules) -> bool:
    """Whether an estimate is within the general thresholds."""
    return (
        estimate.miss_m <= rules.miss_distance_m
        and _at_least(severity(estimate), rules.min_severity)
        and (rules.fleets or not (estimate.same_fleet or estimate.formation))
    )


def known_from(alert: Alert) -> Known:
    """What a subscriber knows that has this alert."""
    estimate = alert.risk.estimate
    return Known(alert.risk.status, alert.severity, estimate.miss_m, probability(estimate), estimate.tca_timestamp)


def decide(general: AlertRules, subscriber: SubscriberRules, known: Known | None, risk: ConjunctionRisk) -> Decision:
    """Whether a subscriber receives a revision, given what it knows of the conjunction (``None``: nothing)."""
    if risk.status == "retracted":
        if known is None:
            return Quiet("not_known")
        return Quiet("not_material") if known.status == "retracted" else Notify("retracted")
    if known is None or known.status == "retracted":
        outside = _outside(general, subscriber, risk)
        if outside is not None:
            return Quiet(outside)
        return Notify("first" if known is None else "again_active")
    change = _change(subscriber, known, risk)
    return Quiet("not_material") if change is None else Notify(change)


def _outside(general: AlertRules, subscriber: SubscriberRules, risk: ConjunctionRisk) -> QuietReason | None:
    """The threshold that the risk is outside of."""
    estimate = risk.estimate
    if not becomes_alert(risk, general):
        return "general"
    if subscriber.min_severity is not None and not _at_least(severity(estimate), subscriber.min_severity):
        return "below_severity"
    pair = (estimate.catalog_number_first, estimate.catalog_number_second)
    if subscriber.objects and subscriber.objects.isdisjoint(pair):
        return "other_objects"
    if subscriber.miss_distance_m is not None and estimate.miss_m > subscriber.miss_distance_m:
        return "beyond_miss_distance"
    if subscriber.min_probability is not None and probability(estimate) < subscriber.min_probability:
        return "below_probability"
    if sum(each.observations for each in risk.evidence) < subscriber.min_observations:
        return "few_observations"
    return None


def _change(subscriber: SubscriberRules, known: Known, risk: ConjunctionRisk) -> NotifyReason | None:
    """The first material change against what the subscriber knows."""
    estimate = risk.estimate
    value = probability(estimate)
    rose = SEVERITIES.index(_severity_of(value)) > SEVERITIES.index(known.severity)
    fell = SEVERITIES.index(_severity_of(value * SEVERITY_HYSTERESIS)) < SEVERITIES.index(known.severity)
    if rose or fell:
        return "severity"
    if abs(estimate.miss_m - known.miss_m) >= max(subscriber.miss_change * known.miss_m, LEAST_MISS_CHANGE_M):
        return "miss_distance"
    low, high = sorted((max(value, LEAST_PROBABILITY), max(known.probability, LEAST_PROBABILITY)))
    if high >= subscriber.probability_factor * low:
        return "probability"
    if abs(estimate.tca_timestamp - known.tca_ns) >= subscriber.tca_shift_s * _NS_PER_S:
        return "tca"
    if subscriber.finals and risk.status == "final" and known.status != "final":
        return "final"
    return None


def _severity_of(value: float) -> Severity:
    return "high" if value >= HIGH_FROM else "medium" if value >= MEDIUM_FROM else "low"


def _at_least(value: Severity, least: Severity) -> bool:
    return SEVERITIES.index(value) >= SEVERITIES.index(least)
