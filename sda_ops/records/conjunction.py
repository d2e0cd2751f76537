"""A conjunction: one close approach of two catalogued objects, as successive screenings estimate it.

Frozen, slotted values. No I/O and no orchestrator; `sda_ops.screening` computes the estimates and assigns the ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

ConjunctionStatus: TypeAlias = Literal["active", "withdrawn", "passed"]
"""``active``: the newest element sets have the approach within the miss distance. ``withdrawn``: they do not have it any
more; it may become active again. ``passed``: its time of closest approach is over."""

WithdrawalReason: TypeAlias = Literal["moved_away", "no_position", "left_catalog"]
"""``moved_away``: the newest element sets do not have the approach within the miss distance. The others say that nothing is known of
it any more: ``no_position``: the newest element set of an object has no position at that time, for example because the object
decays before. ``left_catalog``: the catalogue does not have an object any more."""

WITHDRAWN_BECAUSE: Mapping[WithdrawalReason | None, str] = {
    "moved_away": "the newest element sets do not have this approach within the screened distance",
    "no_position": "the newest element set of an object has no position at that time",
    "left_catalog": "an object is not in the catalogue any more",
    None: "the newest screening does not have this approach",
}
"""The reason as a clause. ``None``: an earlier version has withdrawn it."""


class ConjunctionEstimate(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One close approach, computed from one element set of each of the two objects.

    Attributes:
        catalog_number_first: The smaller of the two catalogue numbers.
        catalog_number_second: The greater one.
        name_first: Empty if the catalogue has no name.
        name_second: Empty if the catalogue has no name.
        tca_timestamp: Time of closest approach, UTC nanoseconds.
        miss_m: The distance at that time.
        miss_radial_m: Second minus first, along the first's position.
        miss_in_track_m: Completes the right-handed triad.
        miss_cross_track_m: Along the first's angular momentum.
        relative_speed_m_s: At that time.
        max_probability: The greatest probability of collision over all sizes of the covariance (Alfano).
        dilution_m: The standard deviation along the miss vector at which the probability is greatest; ``None`` if
            the objects' radii reach farther than the miss distance.
        probability: With the covariances of both objects (Foster); ``None`` without covariances.
        epoch_first_timestamp: Epoch of the first's element set, UTC nanoseconds.
        epoch_second_timestamp: Epoch of the second's element set, UTC nanoseconds.
        age_first_s: Time of closest approach minus epoch; negative if the epoch is later.
        age_second_s: The same for the second.
        radius_first_m: Assumed.
        radius_second_m: Assumed.
        orbit_class_first: For example ``LEO``.
        orbit_class_second: For example ``GEO``.
        fleet_first: The fleet it belongs to; ``None`` if it belongs to no known one.
        fleet_second: The same for the second.
        same_fleet: Whether both belong to one fleet.
        formation: Whether both are docked or fly in formation.
        designator_first: International designator as the catalogue has it (``98067A``); empty if unknown.
        designator_second: The same for the second.
        first_x_m: Position of the first at the closest approach, in TEME of date. The twelve numbers of both states are
            ``None`` in records of earlier versions.
        first_y_m: The same, y.
        first_z_m: The same, z.
        first_vx_m_s: Its velocity, the derivative of the position.
        first_vy_m_s: The same, y.
        first_vz_m_s: The same, z.
        second_x_m: Position of the second.
        second_y_m: The same, y.
        second_z_m: The same, z.
        second_vx_m_s: Its velocity.
        second_vy_m_s: The same, y.
        second_vz_m_s: The same, z.
    """

    catalog_number_first: int
    catalog_number_second: int
    name_first: str = ""
    name_second: str = ""
    tca_timestamp: int
    miss_m: float
    miss_radial_m: float
    miss_in_track_m: float
    miss_cross_track_m: float
    relative_speed_m_s: float
    max_probability: float
    dilution_m: float | None
    probability: float | None = None
    epoch_first_timestamp: int
    epoch_second_timestamp: int
    age_first_s: float
    age_second_s: float
    radius_first_m: float
    radius_second_m: float
    orbit_class_first: str
    orbit_class_second: str
    fleet_first: str | None = None
    fleet_second: str | None = None
    same_fleet: bool = False
    formation: bool = False
    designator_first: str = ""
    designator_second: str = ""
    first_x_m: float | None = None
    first_y_m: float | None = None
    first_z_m: float | None = None
    first_vx_m_s: float | None = None
    first_vy_m_s: float | None = None
    first_vz_m_s: float | None = None
    second_x_m: float | None = None
    second_y_m: float | None = None
    second_z_m: float | None = None
    second_vx_m_s: float | None = None
    second_vy_m_s: float | None = None
    second_vz_m_s: float | None = None


class ConjunctionUpdate(ConjunctionEstimate, frozen=True, gc=False, kw_only=True):
    """One revision of a conjunction. ``(conjunction_id, revision)`` is its key: a second one with that key is a repeat.

    If the status is not ``active``, the figures are those of the last estimate.

    Attributes:
        conjunction_id: The same for all estimates of one approach.
        revision: 1 for the first estimate, 2 for the next one, and so on.
        sequence: Ascending over all updates of one table, in the order in which they were made.
        status: The conjunction's status from now on.
        screened_timestamp: When the screening found this, UTC nanoseconds.
        reason: Why it was withdrawn; ``None`` for another status, and in records of earlier versions.
    """

    conjunction_id: UUID
    revision: int
    sequence: int
    status: ConjunctionStatus
    screened_timestamp: int
    reason: WithdrawalReason | None = None

    @property
    def ingest_timestamp(self) -> int:
        """When it came into the pipeline: the time of the screening."""
        return self.screened_timestamp

    def is_older_than(self, revision: int, screened_timestamp: int) -> bool:
        """Whether another update of the same conjunction, of which this is known, came after this one.

        A table that was lost and made anew has the same ids, and counts the revisions from 1 again: then the later screening is
        the newer one. A clock that was set back does not matter within one table: then the greater revision is the newer one.
        """
        return self.revision < revision and self.screened_timestamp <= screened_timestamp
