"""Recording risks: which of them are new revisions, and who receives each. It works within one transaction of the caller."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, assert_never

import msgspec

from sda_ops.alerts.outbox.changes import known_by, may_know
from sda_ops.alerts.outbox.file import ALERT_COLUMNS, alert_from
from sda_ops.alerts.outbox.rules import (
    AlertRules,
    Known,
    Notify,
    Quiet,
    QuietReason,
    SubscriberRules,
    becomes_alert,
    decide,
    known_from,
    severity,
)
from sda_ops.records.alert import Alert
from sda_ops.records.risk import ConjunctionRisk, RiskStatus

_DEFAULTS = SubscriberRules(name="")
_ENCODER = msgspec.json.Encoder()
_CONTENT = msgspec.msgpack.Encoder(uuid_format="bytes")
_KNOWN = msgspec.json.Decoder(Known)
_AT_ONCE = 500  # ids in one statement; SQLite's limit of variables is far above


@dataclass(slots=True)
class _Head:
    """A conjunction, as it is in the file or will be after the transaction; ``estimate``: revision and screening of the newest."""

    number: int
    revision: int
    estimate: tuple[int, int]
    known: Known
    is_new: bool
    repeats: int = 0
    newest: Alert | None = None
    newest_number: int = 0


class Recording:
    """One call of `AlertOutbox.record`: give it each risk in order, then `write`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        general: AlertRules,
        subscribers: Sequence[tuple[int, SubscriberRules]],
        now_ns: int,
    ) -> None:
        self.alerts: list[Alert] = []
        self.material: list[Alert] = []
        self.quiet: Counter[QuietReason] = Counter()
        self.repeats = self.stale = self.below = self.pending = 0
        self._db = db
        self._general = general
        self._subscribers = subscribers
        self._now_ns = now_ns
        self._heads: dict[str, _Head] = {}
        self._contents: set[tuple[int, bytes]] = set()
        self._known: dict[tuple[int, int], Known | None] = {}
        self._alert_rows: list[tuple[Any, ...]] = []
        self._delivery_rows: list[tuple[Any, ...]] = []
        self._next_head = _one(db, "SELECT coalesce(max(number), 0) + 1 FROM conjunctions")
        self._next_alert = _one(db, "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'alerts'")

    def add_all(self, risks: Sequence[ConjunctionRisk]) -> None:
        """Decide about each risk, in order."""
        names = [str(risk.conjunction_id) for risk in risks]
        self._load_heads(list(dict.fromkeys(names)))
        for name, risk in zip(names, risks, strict=True):
            self._add(name, risk)

    def write(self) -> None:
        """Write what was decided."""
        new = [head for head in self._heads.values() if head.is_new and head.newest is not None]
        self._db.executemany(
            "INSERT INTO conjunctions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(head.number, *_objects(head), self._now_ns, *_state(head)) for head in new],
        )
        self._db.executemany(
            "INSERT INTO alerts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._alert_rows,
        )
        self._db.executemany(
            """INSERT INTO deliveries (subscriber, alert, conjunction, state, reason, since_timestamp, changed_timestamp)
            VALUES (?, ?, ?, ?, ?, ?, ?)""",
            self._delivery_rows,
        )
        self._db.executemany(
            """UPDATE conjunctions SET tca_timestamp = ?, status = ?, severity = ?, revision = ?, estimate_revision = ?,
            estimate_screened = ?, repeats = repeats + ?, newest = ?, known = ? WHERE number = ?""",
            [
                (*_state(head), head.number)
                for head in self._heads.values()
                if not head.is_new and head.newest is not None
            ],
        )
        self._db.executemany(
            "UPDATE conjunctions SET repeats = repeats + ? WHERE number = ?",
            [(head.repeats, head.number) for head in self._heads.values() if head.newest is None and head.repeats],
        )

    def _load_heads(self, names: list[str]) -> None:
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            for name, number, revision, *estimate, known in self._db.execute(
                "SELECT id, number, revision, estimate_revision, estimate_screened, known FROM conjunctions "  # noqa: S608 - marks only
                f"WHERE id IN ({marks})",
                some,
            ):
                self._heads[name] = _Head(
                    number, revision, (estimate[0], estimate[1]), _KNOWN.decode(known), is_new=False
                )

    def _add(self, name: str, risk: ConjunctionRisk) -> None:
        head = self._heads.get(name)
        estimate = (risk.estimate.revision, risk.estimate.screened_timestamp)
        if head is None:
            if not becomes_alert(risk, self._general):
                self.below += 1
                return
            head = _Head(self._next_head, -1, (0, 0), _KNOWS_NOTHING, is_new=True)
            self._heads[name] = head
            self._next_head += 1
        elif risk.estimate.is_older_than(*head.estimate):
            self.stale += 1
            head.repeats += 1
            return
        content = _content(risk)
        known = (risk.cause == "recovered" and estimate == head.estimate) or self._has(head, content)
        if not known and estimate == head.estimate and (newest := self._newest(head)) is not None:
            with_all = _with_all_evidence(risk, newest)
            if with_all is not risk:
                risk, content = with_all, _content(with_all)
                known = self._has(head, content)
        if known:
            self.repeats += 1
            head.repeats += 1
            return
        self._revise(head, risk, content)

    def _newest(self, head: _Head) -> ConjunctionRisk | None:
        """The statement of the newest revision, if it is in the file."""
        if head.newest is not None:
            return head.newest.risk
        row = self._db.execute(
            f"SELECT {ALERT_COLUMNS} FROM conjunctions c JOIN alerts a ON a.number = c.newest WHERE c.number = ?",  # noqa: S608 - names of our own
            (head.number,),
        ).fetchone()
        return None if row is None else alert_from(row).risk

    def _has(self, head: _Head, content: bytes) -> bool:
        if (head.number, content) in self._contents:
            return True
        if head.is_new:
            return False
        found = self._db.execute("SELECT 1 FROM alerts WHERE conjunction = ? AND content = ?", (head.number, content))
        return found.fetchone() is not None

    def _revise(self, head: _Head, risk: ConjunctionRisk, content: bytes) -> None:
        alert = Alert(
            conjunction_id=risk.conjunction_id,
            revision=head.revision + 1,
            severity=severity(risk.estimate),
            recorded_timestamp=self._now_ns,
            risk=risk,
        )
        known = known_from(alert)
        number = self._next_alert
        self._next_alert += 1
        is_first = head.revision < 0
        head.revision = alert.revision
        head.estimate = (risk.estimate.revision, risk.estimate.screened_timestamp)
        head.newest, head.newest_number = alert, number
        self._contents.add((head.number, content))
        self.alerts.append(alert)
        if isinstance(decide(self._general, _DEFAULTS, None if is_first else head.known, risk), Notify):
            self.material.append(alert)
            head.known = known
        row = (head.number, alert.revision, self._now_ns, known.status, known.severity, known.miss_m, known.probability)
        self._alert_rows.append((number, *row, known.tca_ns, content, _ENCODER.encode(risk).decode()))
        for subscriber, rules in self._subscribers:
            self._decide_for(subscriber, rules, head, number, alert, known)

    def _decide_for(
        self, subscriber: int, rules: SubscriberRules, head: _Head, number: int, alert: Alert, known: Known
    ) -> None:
        key = (subscriber, head.number)
        if key not in self._known:
            self._known[key] = None if head.is_new else known_by(self._db, subscriber, head.number)
        decision = decide(self._general, rules, self._known[key], alert.risk)
        if decision == Quiet("not_known") and not head.is_new and may_know(self._db, subscriber, head.number):
            decision = Notify(
                "retracted"
            )  # it must not act on what it may know, and a retraction of the unknown does no harm
        match decision:
            case Notify(reason):
                state, why = "pending", str(reason)
                self.pending += 1
                self._known[key] = known
            case Quiet(reason):
                state, why = "quiet", str(reason)
                self.quiet[reason] += 1
            case other:
                assert_never(other)
        self._delivery_rows.append((subscriber, number, head.number, state, why, self._now_ns, self._now_ns))


_KNOWS_NOTHING = Known("retracted", "low", 0.0, 0.0, 0)
"""Of a conjunction without a revision; it is never compared."""


def _content(risk: ConjunctionRisk) -> bytes:
    return blake2b(_CONTENT.encode((risk.status, risk.estimate, risk.evidence)), digest_size=16).digest()


def _with_all_evidence(risk: ConjunctionRisk, newest: ConjunctionRisk) -> ConjunctionRisk:
    """The statement, if it has not less evidence than the newest one about the same estimate.

    Less means that a process has started again, which gathers anew. Then what is stored stays, and only becomes final.
    """
    if "retracted" in {risk.status, newest.status} or _observations(risk) >= _observations(newest):
        return risk
    status: RiskStatus = "final" if "final" in {risk.status, newest.status} else newest.status
    return msgspec.structs.replace(risk, status=status, evidence=newest.evidence)


def _observations(risk: ConjunctionRisk) -> int:
    return sum(each.observations for each in risk.evidence)


def _objects(head: _Head) -> tuple[str, int, int]:
    assert head.newest is not None
    estimate = head.newest.risk.estimate
    return str(estimate.conjunction_id), estimate.catalog_number_first, estimate.catalog_number_second


def _state(head: _Head) -> tuple[Any, ...]:
    """The columns of a conjunction that change, from ``tca_timestamp`` to ``known``."""
    alert = head.newest
    assert alert is not None
    risk = alert.risk
    figures = (risk.estimate.tca_timestamp, risk.status, alert.severity)
    known = _ENCODER.encode(head.known).decode()
    return (*figures, head.revision, *head.estimate, head.repeats, head.newest_number, known)


def _one(db: sqlite3.Connection, query: str) -> int:
    value: int = db.execute(query).fetchone()[0]
    return value
