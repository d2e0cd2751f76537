"""The alert: one revision of what is reported to subscribers about a conjunction. The outbox makes and numbers them."""

from __future__ import annotations

from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

from sda_ops.records.risk import ConjunctionRisk

Severity: TypeAlias = Literal["low", "medium", "high"]
"""By probability of collision: below 1e-7, below 1e-4, and from 1e-4 on. NASA's limits for manoeuvres and for attention (NASA
Spacecraft Conjunction Assessment and Collision Avoidance Best Practices Handbook, NASA/SP-20230002470)."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One revision. ``(conjunction_id, revision)`` is its key: a second one with that key is a repeat.

    Attributes:
        conjunction_id: The same for all revisions.
        revision: 0 for the first one, then 1, 2, and so on, without gaps; assigned once, when it is stored.
        severity: From the probability, or from the maximum probability without one.
        recorded_timestamp: When it was stored, UTC nanoseconds.
        risk: What it says.
    """

    conjunction_id: UUID
    revision: int
    severity: Severity
    recorded_timestamp: int
    risk: ConjunctionRisk

    @property
    def key(self) -> str:
        """``<conjunction id>/<revision>``, for the header ``Idempotency-Key``."""
        return f"{self.conjunction_id}/{self.revision}"
