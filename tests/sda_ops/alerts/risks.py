"""Risks for tests: of made-up conjunctions, with chosen figures, status and evidence."""

from __future__ import annotations

from uuid import UUID, uuid5

import msgspec

from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.records.ids import conjunction_id
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence, RiskCause, RiskStatus

S = 10**9
HOUR = 3_600 * S
DAY = 24 * HOUR
T0 = 1_772_000_000 * S
TCA = T0 + 6 * HOUR
OBSERVATIONS = UUID("6f4b2a1e-0000-4000-8000-000000000000")

PLAIN = ConjunctionUpdate(
    conjunction_id=UUID(int=0),
    revision=1,
    sequence=1,
    status="active",
    screened_timestamp=T0 - HOUR,
    catalog_number_first=5,
    catalog_number_second=9,
    name_first="VANGUARD 1",
    tca_timestamp=TCA,
    miss_m=812.5,
    miss_radial_m=-100.0,
    miss_in_track_m=500.0,
    miss_cross_track_m=632.6,
    relative_speed_m_s=14_000.0,
    max_probability=1.5e-6,
    dilution_m=574.0,
    epoch_first_timestamp=T0 - 10 * HOUR,
    epoch_second_timestamp=T0 - 3 * HOUR,
    age_first_s=57_600.0,
    age_second_s=32_400.0,
    radius_first_m=1.0,
    radius_second_m=10.0,
    orbit_class_first="LEO",
    orbit_class_second="LEO",
    fleet_second="Starlink",
)


def risk(
    first: int = 5,
    second: int = 9,
    *,
    estimate: int = 1,
    status: RiskStatus = "provisional",
    cause: RiskCause = "screened",
    observations: tuple[int, int] = (0, 0),
    evidence_ns: int = T0,
    **figures: object,
) -> ConjunctionRisk:
    """A statement about the conjunction of two objects. ``figures`` are fields of the estimate."""
    update = msgspec.structs.replace(
        PLAIN,
        conjunction_id=conjunction_id(first, second, TCA),
        catalog_number_first=first,
        catalog_number_second=second,
        revision=estimate,
        sequence=estimate,
        status="withdrawn" if status == "retracted" else "active",
        **figures,
    )
    return ConjunctionRisk(
        estimate=update,
        status=status,
        cause="withdrawn" if status == "retracted" and cause == "screened" else cause,
        evidence=(evidence(first, observations[0]), evidence(second, observations[1])),
        evidence_timestamp=evidence_ns,
    )


def evidence(number: int, observations: int) -> ObjectEvidence:
    """So many observations of an object, one a second from `T0` on."""
    if not observations:
        return ObjectEvidence(catalog_number=number, epoch_timestamp=T0 - 3 * HOUR)
    return ObjectEvidence(
        catalog_number=number,
        epoch_timestamp=T0 - 3 * HOUR,
        observations=observations,
        observation_ids=tuple(uuid5(OBSERVATIONS, f"{number} {n}") for n in range(observations))[-64:],
        sensors=("radar-1",),
        first_observation_timestamp=T0,
        last_observation_timestamp=T0 + (observations - 1) * S,
        mean_square_residual=1.25,
    )
