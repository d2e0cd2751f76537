"""Risks of made-up conjunctions, and an outbox for tests of alerts."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from sda_ops.alerts.outbox.rules import AlertRules, SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence, RiskCause, RiskStatus
from tests.helpers.running import NOON_NS

_TEN_YEARS_NS = 3_650 * 86_400 * 10**9  # tests with the machine's clock are earlier


def conjunction(number: int) -> UUID:
    """The id of a made-up conjunction."""
    return UUID(int=number + 1)


def risk(
    number: int,
    step: int = 0,
    *,
    status: RiskStatus = "provisional",
    cause: RiskCause = "screened",
    evidence_timestamp: int = NOON_NS,
    tca_timestamp: int = NOON_NS + _TEN_YEARS_NS,
) -> ConjunctionRisk:
    """Statement number ``step`` about conjunction ``number``. It differs materially from the one before."""
    estimate = ConjunctionUpdate(
        conjunction_id=conjunction(number),
        revision=step + 1,
        sequence=number * 1_000 + step,
        status="active",
        screened_timestamp=evidence_timestamp,
        catalog_number_first=2 * number + 1,
        catalog_number_second=2 * number + 2,
        tca_timestamp=tca_timestamp,
        miss_m=300.0 * (1 + step % 2),
        miss_radial_m=100.0,
        miss_in_track_m=200.0,
        miss_cross_track_m=200.0,
        relative_speed_m_s=14_000.0,
        max_probability=1e-3,
        dilution_m=100.0,
        epoch_first_timestamp=NOON_NS,
        epoch_second_timestamp=NOON_NS,
        age_first_s=86_400.0,
        age_second_s=86_400.0,
        radius_first_m=1.0,
        radius_second_m=1.0,
        orbit_class_first="LEO",
        orbit_class_second="LEO",
    )
    return ConjunctionRisk(
        estimate=estimate,
        status=status,
        cause=cause,
        evidence=(
            ObjectEvidence(catalog_number=2 * number + 1, epoch_timestamp=NOON_NS),
            ObjectEvidence(catalog_number=2 * number + 2, epoch_timestamp=NOON_NS),
        ),
        evidence_timestamp=evidence_timestamp,
    )


def outbox_in(folder: Path, *names: str) -> AlertOutbox:
    """An outbox whose subscribers receive every statement of `risk`."""
    subscribers = [SubscriberRules(name=name, finals=True) for name in names]
    return AlertOutbox(folder / "alerts.sqlite", rules=AlertRules(), subscribers=subscribers)
