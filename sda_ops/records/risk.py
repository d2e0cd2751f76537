"""The risk of a conjunction: its newest estimate, with the evidence for it.

Frozen, slotted values. No I/O and no orchestrator; `sda_ops.alerts.risk` gathers the evidence, and the outbox numbers the
revisions.
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

from sda_ops.records.conjunction import ConjunctionUpdate

RiskStatus: TypeAlias = Literal["provisional", "final", "retracted"]
"""``provisional``: more evidence from before this moment may follow. ``final``: the watermark has passed the evidence, so that
all of it is in. ``retracted``: the conjunction is withdrawn; the estimate has the reason."""

RiskCause: TypeAlias = Literal["screened", "observed", "settled", "amended", "withdrawn", "recovered"]
"""What a risk comes from. ``screened``: a screening has a new estimate. ``observed``: the first observation of one of its
objects. ``settled``: the watermark has passed. ``amended``: late evidence. ``withdrawn``: the newest screening does not have the
approach; the estimate has the reason. ``recovered``: the process has started again, and the table of conjunctions has it."""

MAX_OBSERVATION_IDS = 64
"""Of each object in one risk. ``ObjectEvidence.observations`` counts all."""


class ObjectEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one of the two objects.

    Attributes:
        catalog_number: The object.
        epoch_timestamp: Epoch of the element set of the estimate, UTC nanoseconds.
        observations: How many observations were associated with it.
        observation_ids: The newest of them by event time, in ascending order of (event time, id); at most
            `MAX_OBSERVATION_IDS`.
        sensors: Their sensors, sorted, each once.
        first_observation_timestamp: Event time of the first one, UTC nanoseconds; ``None`` without observations.
        last_observation_timestamp: Event time of the last one.
        mean_square_residual: Mean of the squared Mahalanobis distance from the element set, over the number of measured
            components. About 1 if the element set and its assumed errors are right; ``None`` without observations.
    """

    catalog_number: int
    epoch_timestamp: int
    observations: int = 0
    observation_ids: tuple[UUID, ...] = ()
    sensors: tuple[str, ...] = ()
    first_observation_timestamp: int | None = None
    last_observation_timestamp: int | None = None
    mean_square_residual: float | None = None


class ConjunctionRisk(msgspec.Struct, frozen=True, kw_only=True):
    """One statement about a conjunction. A later one of the same conjunction replaces it.

    Attributes:
        estimate: The newest estimate, with the conjunction's id.
        status: How much is known.
        cause: What this statement comes from.
        evidence: Of the first object, and of the second.
        evidence_timestamp: When the evidence that caused it came into the pipeline, UTC nanoseconds (ingest time).
        complete_until_timestamp: The watermark: every observation with an earlier event time is in the evidence, UTC
            nanoseconds; ``None`` before the first watermark.
    """

    estimate: ConjunctionUpdate
    status: RiskStatus
    cause: RiskCause
    evidence: tuple[ObjectEvidence, ObjectEvidence]
    evidence_timestamp: int
    complete_until_timestamp: int | None = None

    @property
    def conjunction_id(self) -> UUID:
        """The conjunction."""
        return self.estimate.conjunction_id

    @property
    def ingest_timestamp(self) -> int:
        """When the evidence that caused it came into the pipeline."""
        return self.evidence_timestamp
