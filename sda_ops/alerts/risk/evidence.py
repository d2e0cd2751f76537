"""The evidence of each object: its observations, gathered by event time. Pure.

**What counts.** An observation that was correlated with the object, before a given time, and compared with the given element set
or a newer one. It does not refit an orbit: its distance from the element set confirms the element set, or does not.

**How it is held.** The windows of `sda_ops.event_time.windows` hold each observation until its window is released: until then, a
late one still finds its place. After that only a total remains for each element set: counts, sums, sensors, the newest ids. An
observation is either in a window or in a total, so none counts twice. All sums are of integers, so the evidence is the same for
every order of arrival.

Objects without a conjunction have evidence too, because a screening may find one after the observations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter
from typing import Literal, TypeAlias
from uuid import UUID

import msgspec

from orchestrator_adapter import check_fields
from sda_ops.event_time.changes import Late
from sda_ops.event_time.segmentation import Session
from sda_ops.event_time.windows import EventTimeWindows
from sda_ops.records.correlation import Correlation
from sda_ops.records.risk import MAX_OBSERVATION_IDS, ObjectEvidence

Outcome: TypeAlias = Literal["added", "amended", "late"]
"""``amended``: it was late, and has changed a closed window. ``late``: it was later than allowed, and counts nowhere."""

_UNIT = 1 << 32
"""Squared distances are summed as integers, in units of 2**-32: a sum of floats depends on their order."""

_TIME_BYTES, _ID_BYTES = 8, 16
_PACKED = _TIME_BYTES + _ID_BYTES
_OFFSET = 1 << 63  # times before 1970 are negative


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceLimits:
    """How observations are held.

    Attributes:
        gap_ns: An object that was not observed for so long, in event time, has no open window.
        longest_ns: The longest window.
        allowed_lateness_ns: How long after its window closed an observation still counts, in event time.
        max_held: How many observations the windows hold. One more closes the oldest window early.
        max_totals: How many element sets have a total. Beyond, those that were not observed for the longest time are removed.
    """

    gap_ns: int
    longest_ns: int
    allowed_lateness_ns: int
    max_held: int = 1_000_000
    max_totals: int = 50_000

    def __post_init__(self) -> None:
        check_fields("EvidenceLimits", ("max_totals", self.max_totals, self.max_totals >= 1, ">= 1"))


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is known of one object.

    Attributes:
        evidence: For a statement.
        ingest_ns: When the last of it came into the pipeline, UTC; 0 without observations.
    """

    evidence: ObjectEvidence
    ingest_ns: int


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """What counts of an observation."""

    observation_id: UUID
    source_id: str
    time_ns: int
    ingest_ns: int
    mahalanobis_squared: float
    components: int


class _Total(msgspec.Struct, gc=False):
    """The observations of one element set that are in no window any more.

    ``newest`` has the newest ids, packed, in ascending order of (event time, id).
    """

    observations: int = 0
    squared: int = 0
    components: int = 0
    sensors: frozenset[str] = frozenset()
    first_ns: int = 0
    last_ns: int = 0
    ingest_ns: int = 0
    newest: bytes = b""


class EvidenceWindows:
    """The evidence of all objects.

    Attributes:
        windows: The windows, by element set: ``<catalogue number>@<epoch, UTC ns>``.
        removed_totals: Totals that were removed because of ``max_totals``.
    """

    def __init__(self, limits: EvidenceLimits) -> None:
        self.removed_totals = 0
        self.windows: EventTimeWindows[str, _Seen] = EventTimeWindows(
            Session(gap_ns=limits.gap_ns, longest_ns=limits.longest_ns),
            time_of=attrgetter("time_ns"),
            order=_order,
            allowed_lateness_ns=limits.allowed_lateness_ns,
            max_held=limits.max_held,
            on_release=self._release,
        )
        self._max_totals = limits.max_totals
        self._totals: dict[str, _Total] = {}
        self._sets: dict[int, dict[str, int]] = {}  # of each object: the element sets with evidence, and their epochs

    @property
    def totals(self) -> int:
        """How many element sets have a total."""
        return len(self._totals)

    def add(self, correlation: Correlation) -> Outcome:
        """Add a correlation with an object (``catalog_number``, ``reference_orbit_id``)."""
        key, number, squared = (
            correlation.reference_orbit_id,
            correlation.catalog_number,
            correlation.mahalanobis_squared,
        )
        assert key is not None
        assert number is not None
        seen = _Seen(
            correlation.observation_id,
            correlation.source_id,
            correlation.sensor_timestamp,
            correlation.ingest_timestamp,
            0.0 if squared is None else squared,
            correlation.components,
        )
        added = self.windows.add(key, seen)
        if isinstance(added, Late):
            return "late"
        of_object = self._sets.get(number)
        if of_object is None or key not in of_object:
            self._sets.setdefault(number, {})[key] = int(key.rpartition("@")[2])
        return "amended" if added.late and added.changes else "added"

    def advance(self, mark_ns: int) -> None:
        """The watermark is ``mark_ns``."""
        self.windows.advance(mark_ns)
        self._make_room()

    def close_all(self) -> None:
        """The stream has ended."""
        self.windows.close_all()
        self._make_room()

    def open_until_ns(self, catalog_number: int, epoch_ns: int) -> int:
        """The end of the object's last open window, of this element set or a newer one, UTC; 0 if none is open."""
        ends = [self.windows.open_until_ns(key) or 0 for key in self._keys(catalog_number, epoch_ns)]
        return max(ends, default=0)

    def of(self, catalog_number: int, epoch_ns: int, *, before_ns: int) -> Gathered:
        """The evidence of the object from before ``before_ns``, of the element set with this epoch and of newer ones.

        Exact as long as no window that reaches beyond ``before_ns`` was released: after that, what it had counts as well.
        """
        sums = _Total()
        for key in self._keys(catalog_number, epoch_ns):
            if (total := self._totals.get(key)) is not None:
                _add_total(sums, total)
            _add_seen(sums, [seen for seen in self.windows.items_of(key) if seen.time_ns < before_ns])
        if not sums.observations:
            return Gathered(ObjectEvidence(catalog_number=catalog_number, epoch_timestamp=epoch_ns), 0)
        evidence = ObjectEvidence(
            catalog_number=catalog_number,
            epoch_timestamp=epoch_ns,
            observations=sums.observations,
            observation_ids=tuple(
                UUID(bytes=sums.newest[at + _TIME_BYTES : at + _PACKED]) for at in range(0, len(sums.newest), _PACKED)
            ),
            sensors=tuple(sorted(sums.sensors)),
            first_observation_timestamp=sums.first_ns,
            last_observation_timestamp=sums.last_ns,
            mean_square_residual=sums.squared / _UNIT / sums.components if sums.components else None,
        )
        return Gathered(evidence, sums.ingest_ns)

    def _keys(self, catalog_number: int, epoch_ns: int) -> list[str]:
        return [key for key, its_epoch_ns in self._sets.get(catalog_number, {}).items() if its_epoch_ns >= epoch_ns]

    def _release(self, key: str, items: Sequence[_Seen]) -> None:
        """A window was released: its observations go into the total of the element set."""
        total = self._totals.get(key)
        if total is None:
            total = self._totals[key] = _Total()
        _add_seen(total, items)

    def _make_room(self) -> None:
        """Remove a tenth of the totals, if there are too many."""
        if (surplus := len(self._totals) - self._max_totals) <= 0:
            return
        oldest = nsmallest(surplus + self._max_totals // 10, self._totals, key=lambda key: self._totals[key].last_ns)
        for key in oldest:
            del self._totals[key]
            if not self.windows.items_of(key):
                number = int(key.partition("@")[0])
                of_object = self._sets[number]
                del of_object[key]
                if not of_object:
                    del self._sets[number]
        self.removed_totals += len(oldest)


def _order(seen: _Seen) -> int:
    return seen.observation_id.int


def _add_seen(total: _Total, items: Sequence[_Seen]) -> None:
    """Add observations, in ascending order of (event time, id)."""
    if not items:
        return
    first_ns, last_ns = items[0].time_ns, items[-1].time_ns
    if not total.observations:
        total.first_ns, total.last_ns = first_ns, last_ns
    total.first_ns, total.last_ns = min(total.first_ns, first_ns), max(total.last_ns, last_ns)
    total.observations += len(items)
    total.squared += sum(round(seen.mahalanobis_squared * _UNIT) for seen in items)
    total.components += sum(seen.components for seen in items)
    sensors = {seen.source_id for seen in items}
    if not sensors <= total.sensors:
        total.sensors = total.sensors.union(sensors)
    total.ingest_ns = max(total.ingest_ns, *(seen.ingest_ns for seen in items))
    total.newest = _newest(
        total.newest,
        (
            (seen.time_ns + _OFFSET).to_bytes(_TIME_BYTES, "big") + seen.observation_id.bytes
            for seen in items[-MAX_OBSERVATION_IDS:]
        ),
    )


def _add_total(total: _Total, other: _Total) -> None:
    if not total.observations:
        total.first_ns, total.last_ns = other.first_ns, other.last_ns
    total.first_ns, total.last_ns = min(total.first_ns, other.first_ns), max(total.last_ns, other.last_ns)
    total.observations += other.observations
    total.squared += other.squared
    total.components += other.components
    total.sensors |= other.sensors
    total.ingest_ns = max(total.ingest_ns, other.ingest_ns)
    total.newest = _newest(total.newest, _unpacked(other.newest))


def _unpacked(newest: bytes) -> list[bytes]:
    return [newest[at : at + _PACKED] for at in range(0, len(newest), _PACKED)]


def _newest(newest: bytes, packed: Iterable[bytes]) -> bytes:
    return b"".join(sorted([*_unpacked(newest), *packed])[-MAX_OBSERVATION_IDS:])
