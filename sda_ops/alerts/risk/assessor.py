"""The assessor of risks: updates, observations and watermarks in, statements about risks out. Pure.

**What a statement contains.** The newest active estimate of the conjunction, and the evidence of both objects: what
`sda_ops.alerts.risk.evidence` holds of each, up to the time of closest approach. A retracted statement has no evidence.

**Complete.** A statement is ``final`` if no observation that belongs into it can come any more, except a late one. That is so
when the watermark has reached the time of the screening and no window of either object is open, or when the watermark has
reached the time of closest approach. Otherwise it is ``provisional``. An object that is observed without a pause has an open
window until the pause, or until the closest approach.

**Order.** Updates of one conjunction must come in the order of their revisions, as the table sends them; an older one is ignored. Apart
from that, the last statement about each conjunction does not depend on the order in which updates and observations come, as
long as no observation is late.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, nlargest
from typing import assert_never
from uuid import UUID

from orchestrator_adapter import check_fields
from sda_ops.alerts.risk.evidence import EvidenceLimits, EvidenceWindows
from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.records.correlation import Correlation
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence, RiskCause, RiskStatus

Evidence = tuple[ObjectEvidence, ObjectEvidence]

_AT_ONCE = 200  # conjunctions that are settled in one step: at most 50 ms of the event loop


@dataclass(frozen=True, slots=True, kw_only=True)
class AssessorLimits:
    """The bounds of the assessor.

    Attributes:
        evidence: Those of the observations.
        max_conjunctions: How many conjunctions are watched at once. Beyond, those with the latest closest approach are forgotten:
            they get no further statement before their next estimate.
        restate_after_ns: Further observations are stated at the earliest so long after a final statement, in event time; at the
            latest when the watermark reaches the closest approach. A provisional statement may not become final before that,
            because an object is observed without a pause: it is stated again so long after it, if the observations have doubled.
    """

    evidence: EvidenceLimits
    max_conjunctions: int = 100_000
    restate_after_ns: int = 300 * 10**9

    def __post_init__(self) -> None:
        check_fields("AssessorLimits", ("max_conjunctions", self.max_conjunctions, self.max_conjunctions >= 1, ">= 1"))


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a new process finds on the disk.

    Attributes:
        updates: The newest update of each conjunction that is active or withdrawn and whose time is not over.
        alerted: The conjunctions that have an alert already. ``None``: unknown, so that every withdrawn one is retracted.
    """

    updates: Sequence[ConjunctionUpdate]
    alerted: Collection[UUID] | None = None


@dataclass(slots=True)
class _Watched:
    """A conjunction that has, or may get, a statement.

    Attributes:
        estimate: The newest one with the status ``active`` or ``withdrawn``.
        revision: The newest known; greater than that of ``estimate`` once it has passed.
        stated: Status and evidence of the last statement about ``estimate``; ``None`` without one.
        final_ns: The watermark of the last final statement about it.
        seen_ns: The watermark when its evidence was compared with the last statement.
    """

    estimate: ConjunctionUpdate
    revision: int
    stated: tuple[RiskStatus, Evidence] | None = None
    final_ns: int | None = None
    seen_ns: int | None = None


@dataclass(frozen=True, slots=True)
class _Ignored:
    """A conjunction without statements from now on: outside the thresholds, or forgotten.

    Attributes:
        revision: The newest known.
        tca_ns: Of that revision.
        stated: Whether there was a statement about it, so that its next update causes one.
    """

    revision: int
    tca_ns: int
    stated: bool


class RiskAssessor:
    """The conjunctions that are known, the evidence, and what was last stated.

    Attributes:
        repeated: Updates that were ignored, because their revision is not greater than the known one.
        over: Updates that were ignored, because the watermark has passed their time of closest approach.
        amended: Late observations that have changed a closed window.
        forgotten: Conjunctions that were forgotten because of ``max_conjunctions``.
        evidence: The observations.
        mark_ns: The last watermark, UTC; ``None`` before the first.
    """

    def __init__(self, limits: AssessorLimits, concerns: Callable[[ConjunctionEstimate], bool]) -> None:
        """``concerns`` says whether an estimate is within the general thresholds for alerts."""
        self.repeated = 0
        self.over = 0
        self.amended = 0
        self.forgotten = 0
        self.evidence = EvidenceWindows(limits.evidence)
        self.mark_ns: int | None = None
        self._limits = limits
        self._lateness_ns = limits.evidence.allowed_lateness_ns
        self._concerns = concerns
        self._ended = False
        self._known: dict[UUID, _Watched | _Ignored] = {}
        self._of_object: dict[int, dict[UUID, _Watched]] = {}
        self._watched = 0
        self._by_tca: list[tuple[int, UUID]] = []
        self._unsettled: dict[UUID, int] = {}  # and the earliest mark with which they can be settled
        self._observed: dict[int, None] = {}  # objects with observations since the last mark

    @property
    def watched(self) -> int:
        """How many conjunctions have, or may get, a statement."""
        return self._watched

    @property
    def known(self) -> int:
        """How many conjunctions are known, those outside the thresholds included."""
        return len(self._known)

    @property
    def unsettled(self) -> int:
        """How many conjunctions have a provisional statement, or evidence that is in no statement yet."""
        return len(self._unsettled)

    def recover(self, recovery: Recovery) -> list[ConjunctionRisk]:
        """Begin with what is on the disk: active conjunctions are stated again, withdrawn ones are retracted."""
        risks: list[ConjunctionRisk] = []
        for update in recovery.updates:
            alerted = recovery.alerted is not None and update.conjunction_id in recovery.alerted
            if self._is_repeated(update):
                continue
            if update.status == "active" and (alerted or self._concerns(update)):
                risks += self._state(self._watch(update), "recovered", update.screened_timestamp)
            elif update.status == "withdrawn" and (alerted or recovery.alerted is None):
                risks.append(self._retract(self._watch(update), "recovered"))
            else:
                self._ignore(update)
        return risks

    def add(self, items: Iterable[Correlation | ConjunctionUpdate]) -> list[ConjunctionRisk]:
        """Take correlations and updates, in order. Returns the statements that they cause at once.

        Correlations without an object are ignored, and so are those that are later than allowed (``evidence.late``).
        """
        risks: list[ConjunctionRisk] = []
        touched: dict[int, tuple[RiskCause, int]] = {}
        add, of_object, observed = self.evidence.add, self._of_object, self._observed
        for item in items:
            if type(item) is not Correlation:
                assert isinstance(item, ConjunctionUpdate)
                risks += self._update(item)
            elif (number := item.catalog_number) is not None:
                outcome = add(item)
                if outcome == "amended":
                    self.amended += 1
                if number in of_object and outcome != "late":
                    observed[number] = None
                    if outcome == "amended":
                        touched[number] = ("amended", item.ingest_timestamp)
                    elif number not in touched:
                        touched[number] = ("observed", item.ingest_timestamp)
        for number, (cause, ingest_ns) in touched.items():
            for watched in self._of_object.get(number, {}).values():
                if cause == "amended" or _is_first_observation(watched, number):
                    risks += self._state(watched, cause, ingest_ns)
        return risks

    def advance(self, mark_ns: int) -> list[ConjunctionRisk]:
        """The watermark is ``mark_ns``: no observation with an earlier event time follows.

        Returns the final statements that it allows. A mark that is not later than the last one changes nothing.
        """
        return [risk for risks in self.steps(mark_ns) for risk in risks]

    def steps(self, mark_ns: int) -> Iterator[list[ConjunctionRisk]]:
        """As ``advance``, in steps of about `_AT_ONCE` conjunctions. Nothing may be added between the steps.

        What is left when the steps are abandoned comes with the next mark.
        """
        if self.mark_ns is not None and mark_ns <= self.mark_ns:
            return
        self.mark_ns = mark_ns
        self._note_observed()
        # First, while the evidence up to their closest approach can still be separated from the later one.
        yield [risk for watched in self._leaving(mark_ns) for risk in self._settle(watched)]
        self.evidence.advance(mark_ns)
        yield from self._settle_all()

    def close(self) -> list[ConjunctionRisk]:
        """The stream has ended: everything is complete. Returns the final statements."""
        self._ended = True
        self._note_observed()
        risks = [risk for some in self._settle_all() for risk in some]  # before the windows are released: see `steps`
        self.evidence.close_all()
        return risks

    # Updates.

    def _update(self, update: ConjunctionUpdate) -> list[ConjunctionRisk]:
        if self._is_repeated(update):
            self.repeated += 1
            return []
        if self.mark_ns is not None and update.tca_timestamp + self._lateness_ns <= self.mark_ns:
            self.over += 1
            return []
        known = self._known.get(update.conjunction_id)
        stated = isinstance(known, _Watched) or (known is not None and known.stated)
        match update.status:
            case "active" if stated or self._concerns(update):
                return self._state(self._watch(update), "screened", update.screened_timestamp)
            case "withdrawn" if stated:
                return [self._retract(self._watch(update), "withdrawn")]
            case "passed" if isinstance(known, _Watched):
                known.revision = update.revision  # it leaves with the watermark, when its evidence is complete
            case "passed" if known is not None and not known.stated:
                self._remove(update.conjunction_id)  # at once: without sources there is no watermark that removes it
            case "active" | "withdrawn" | "passed":
                self._ignore(update)
            case _:
                assert_never(update.status)
        return []

    def _is_repeated(self, update: ConjunctionUpdate) -> bool:
        known = self._known.get(update.conjunction_id)
        return known is not None and update.revision <= known.revision

    def _watch(self, update: ConjunctionUpdate) -> _Watched:
        known = self._known.get(update.conjunction_id)
        if isinstance(known, _Watched):
            tca_ns = known.estimate.tca_timestamp
            known.estimate, known.revision, known.stated, known.final_ns = update, update.revision, None, None
        else:
            tca_ns = -1 if known is None else known.tca_ns
            self._make_room()
            known = self._known[update.conjunction_id] = _Watched(update, update.revision)
            self._watched += 1
            for number in _numbers(update):
                self._of_object.setdefault(number, {})[update.conjunction_id] = known
        if tca_ns != update.tca_timestamp:
            self._await_end(update.tca_timestamp, update.conjunction_id)
        return known

    def _ignore(self, update: ConjunctionUpdate) -> None:
        known = self._known.get(update.conjunction_id)
        assert not isinstance(known, _Watched)
        stated = known is not None and known.stated
        self._known[update.conjunction_id] = _Ignored(update.revision, update.tca_timestamp, stated)
        if known is None or known.tca_ns != update.tca_timestamp:
            self._await_end(update.tca_timestamp, update.conjunction_id)

    def _make_room(self) -> None:
        """Forget one conjunction in a hundred, those with the latest closest approach, if there is no room."""
        if self._watched < self._limits.max_conjunctions:
            return
        every = (each for each in self._known.items() if isinstance(each[1], _Watched))
        latest = nlargest(1 + self._watched // 100, every, key=lambda each: _tca_ns(each[1]))
        for conjunction_id, watched in latest:
            self._remove(conjunction_id)
            self._known[conjunction_id] = _Ignored(watched.revision, _tca_ns(watched), stated=True)
            self.forgotten += 1

    # The end of a conjunction's time.

    def _await_end(self, tca_ns: int, conjunction_id: UUID) -> None:
        heappush(self._by_tca, (tca_ns, conjunction_id))
        if len(self._by_tca) > 2 * len(self._known) + 1_000:  # estimates have moved many
            self._by_tca = sorted((_tca_ns(known), key) for key, known in self._known.items())

    def _leaving(self, mark_ns: int) -> list[_Watched]:
        """Remove the conjunctions whose time is over for longer than the allowed lateness. Returns those that were watched."""
        over: list[_Watched] = []
        while self._by_tca and self._by_tca[0][0] + self._lateness_ns <= mark_ns:
            tca_ns, conjunction_id = heappop(self._by_tca)
            known = self._known.get(conjunction_id)
            if known is not None and _tca_ns(known) == tca_ns:
                self._remove(conjunction_id)
                if isinstance(known, _Watched):
                    over.append(known)
        return over

    def _remove(self, conjunction_id: UUID) -> None:
        known = self._known.pop(conjunction_id)
        self._unsettled.pop(conjunction_id, None)
        if isinstance(known, _Watched):
            self._watched -= 1
            for number in _numbers(known.estimate):
                of_object = self._of_object.get(number, {})
                of_object.pop(conjunction_id, None)
                if not of_object:
                    self._of_object.pop(number, None)

    # Statements.

    def _note_observed(self) -> None:
        """The conjunctions of the objects that were observed since the last mark may have new evidence."""
        for number in self._observed:
            for conjunction_id in self._of_object.get(number, ()):
                self._unsettled.setdefault(conjunction_id, 0)
        self._observed.clear()

    def _settle_all(self) -> Iterator[list[ConjunctionRisk]]:
        risks: list[ConjunctionRisk] = []
        mark_ns = self.mark_ns
        possible = [
            conjunction_id
            for conjunction_id, from_ns in self._unsettled.items()
            if self._ended or (mark_ns is not None and from_ns <= mark_ns)
        ]
        for number, conjunction_id in enumerate(possible, 1):
            watched = self._known[conjunction_id]
            assert isinstance(watched, _Watched)
            from_ns = self._settled_from_ns(watched)
            if self._ended or (mark_ns is not None and from_ns <= mark_ns):
                del self._unsettled[conjunction_id]
                risks += self._settle(watched)
            else:
                self._unsettled[conjunction_id] = from_ns  # its windows can only become longer
            if number % _AT_ONCE == 0:
                yield risks
                risks = []
        yield risks

    def _settle(self, watched: _Watched) -> list[ConjunctionRisk]:
        return self._state(watched, "settled", None)

    def _is_complete(self, estimate: ConjunctionUpdate) -> bool:
        return self._ended or (self.mark_ns is not None and self._complete_from_ns(estimate) <= self.mark_ns)

    def _complete_from_ns(self, estimate: ConjunctionUpdate) -> int:
        """The mark with which its evidence is complete, as far as the observations are known."""
        ends = [self.evidence.open_until_ns(number, epoch_ns) for number, epoch_ns in _element_sets(estimate)]
        return min(estimate.tca_timestamp, max(estimate.screened_timestamp, *ends))

    def _settled_from_ns(self, watched: _Watched) -> int:
        """The mark with which evidence that is in no statement yet is stated."""
        complete_ns = self._complete_from_ns(watched.estimate)
        if watched.stated is None:
            return complete_ns
        if watched.stated[0] != "final" or watched.final_ns is None:
            seen_ns = watched.estimate.screened_timestamp if watched.seen_ns is None else watched.seen_ns
            return min(complete_ns, seen_ns + self._limits.restate_after_ns)
        again_ns = max(complete_ns, watched.final_ns + self._limits.restate_after_ns)
        return min(watched.estimate.tca_timestamp, again_ns)

    def _state(self, watched: _Watched, cause: RiskCause, caused_ns: int | None) -> list[ConjunctionRisk]:
        """The statement about a conjunction as it is now; none if it is withdrawn, or if it would repeat the last one."""
        estimate = watched.estimate
        if estimate.status != "active":
            return []
        first, second = (
            self.evidence.of(number, epoch_ns, before_ns=estimate.tca_timestamp)
            for number, epoch_ns in _element_sets(estimate)
        )
        status: RiskStatus = "final" if self._is_complete(estimate) else "provisional"
        content = status, (first.evidence, second.evidence)
        watched.seen_ns = self.mark_ns
        if status == "provisional":
            self._unsettled[estimate.conjunction_id] = 0
        if _is_known(content, watched.stated, cause):
            return []
        watched.stated = content
        if status == "final":
            watched.final_ns = self.mark_ns
        newest_ns = max(first.ingest_ns, second.ingest_ns) or estimate.screened_timestamp
        return [_risk(self.mark_ns, estimate, status, cause, content[1], newest_ns if caused_ns is None else caused_ns)]

    def _retract(self, watched: _Watched, cause: RiskCause) -> ConjunctionRisk:
        estimate = watched.estimate
        self._unsettled.pop(estimate.conjunction_id, None)
        first, second = (
            ObjectEvidence(catalog_number=number, epoch_timestamp=epoch_ns)
            for number, epoch_ns in _element_sets(estimate)
        )
        return _risk(self.mark_ns, estimate, "retracted", cause, (first, second), estimate.screened_timestamp)


def _numbers(estimate: ConjunctionEstimate) -> tuple[int, int]:
    return estimate.catalog_number_first, estimate.catalog_number_second


def _element_sets(estimate: ConjunctionEstimate) -> tuple[tuple[int, int], tuple[int, int]]:
    """The catalogue number and the epoch of both."""
    first, second = _numbers(estimate)
    return (first, estimate.epoch_first_timestamp), (second, estimate.epoch_second_timestamp)


def _is_first_observation(watched: _Watched, number: int) -> bool:
    """Whether the last statement about it has no observation of this object."""
    if watched.estimate.status != "active" or watched.stated is None:
        return False
    return any(each.catalog_number == number and not each.observations for each in watched.stated[1])


def _is_known(
    content: tuple[RiskStatus, Evidence], stated: tuple[RiskStatus, Evidence] | None, cause: RiskCause
) -> bool:
    """Whether the last statement says it already, or nearly: it is provisional, and the observations have not doubled."""
    few = _observations(content) < 2 * _observations(stated)
    return content == stated or (cause == "settled" and content[0] == "provisional" and few)


def _observations(stated: tuple[RiskStatus, Evidence] | None) -> int:
    return 0 if stated is None else sum(each.observations for each in stated[1])


def _tca_ns(known: _Watched | _Ignored) -> int:
    return known.estimate.tca_timestamp if isinstance(known, _Watched) else known.tca_ns


def _risk(
    mark_ns: int | None,
    estimate: ConjunctionUpdate,
    status: RiskStatus,
    cause: RiskCause,
    evidence: Evidence,
    caused_ns: int,
) -> ConjunctionRisk:
    return ConjunctionRisk(
        estimate=estimate,
        status=status,
        cause=cause,
        evidence=evidence,
        evidence_timestamp=caused_ns,
        complete_until_timestamp=mark_ns,
    )
