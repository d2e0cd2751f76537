"""The outbox: a SQLite file with every revision of every alert, and what each subscriber knows of it.

An alert is on the disk before it is delivered, and stays pending until the subscriber has acknowledged it. So a kill at any
moment loses none, and one that is sent twice has the same id and revision. A revision's number is used once, also after its
content was removed: the row of its conjunction stays.

Everything here is synchronous. Calls from several threads are made one after the other.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from sda_ops.alerts.outbox import changes
from sda_ops.alerts.outbox.file import (
    ALERT_COLUMNS,
    SCHEMA,
    AlertOutboxFull,
    alert_from,
    outbox_file,
    rules_text,
)
from sda_ops.alerts.outbox.recording import Recording
from sda_ops.alerts.outbox.rules import AlertRules, SubscriberRules
from sda_ops.alerts.outbox.space import make_room, remove_over, used_bytes
from sda_ops.alerts.outbox.values import Bounds, Delivery, Depth, Opened, Pruned, Recorded
from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.records.risk import ConjunctionRisk
from sda_ops.sqlite_file import transaction

_LOCKED_S = 2.0
"""How long a call waits for the command line that writes the file. A shutdown cannot end this wait: it is shorter than its drain."""

_US = timedelta(microseconds=1)

LONGEST_PAUSE = timedelta(minutes=15)
"""The latest ``retry_at_ns`` of `AlertOutbox.note_failure`. A stored one that is later was written before this machine's clock was
set back; without this bound it would hold its conjunction for as long as the clock was ahead."""


class AlertOutbox:
    """The writer. Constructing it opens nothing. The caller sees to it that no other pipeline writes the file (a claim).

    The command line may write beside it, for a moment at a time (`sda_ops.alerts.outbox.beside`): what it has made pending is in the
    next answer of `due`. Every method but `close` raises `AlertOutboxError` if the file is damaged, or the disk full or broken;
    the file is unchanged then.
    """

    def __init__(
        self,
        path: Path,
        *,
        rules: AlertRules | None = None,
        subscribers: Sequence[SubscriberRules] = (),
        bounds: Bounds | None = None,
    ) -> None:
        self.path = path
        self.rules = rules or AlertRules()
        self.subscribers = tuple(subscribers)
        self.bounds = bounds or Bounds()
        self._file = outbox_file(path)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._found = Opened((), {}, 0)
        self._numbers: dict[str, int] = {}

    def open(self, now_ns: int) -> Opened:
        """Open the file, or make it with its folder; check it; compare the subscribers with those it knows.

        A subscriber that is new, or whose rules have changed, gets the newest revision of each conjunction that is not over, if it
        differs from what the subscriber knows. A second call does nothing, and returns the same.
        """
        with self._lock:
            if self._db is not None:
                return self._found
            db = self._file.open(SCHEMA, locked_s=_LOCKED_S)
            try:
                with self._file.clear_errors(), transaction(db):
                    opened = self._compare_subscribers(db, now_ns)
            except BaseException:
                db.close()
                raise
            self._db, self._found = db, opened
            return opened

    def alerted(self, now_ns: int) -> frozenset[UUID]:
        """The conjunctions that have an alert and whose time of closest approach is not over."""
        with self._lock, self._file.clear_errors():
            rows = self._opened.execute("SELECT id FROM conjunctions WHERE tca_timestamp >= ?", (now_ns,))
            return frozenset(UUID(name) for (name,) in rows)

    def standing(self, now_ns: int) -> list[ConjunctionUpdate]:
        """The newest estimate of each alert that is not retracted and whose time of closest approach is not over."""
        with self._lock, self._file.clear_errors():
            return [alert_from(row).risk.estimate for row in self._opened.execute(_STANDING, (now_ns,))]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def record(self, risks: Sequence[ConjunctionRisk], now_ns: int) -> Recorded:
        """Store new revisions and decide who receives them, in one transaction, which is on the disk when the call returns.

        A risk is a new revision if its status, its estimate or its evidence is not that of any stored revision of its conjunction.
        So the same risks again, in any order, change nothing. A risk with an older estimate than the stored one is stale.

        If the file is full, room is made first (`sda_ops.alerts.outbox.space`), in the same transaction. Raises `AlertOutboxFull`: the file
        is unchanged then.
        """
        with self._writing() as db:
            superseded = make_room(db, self.bounds.max_bytes, now_ns)
            if used_bytes(db) >= self.bounds.max_bytes:
                raise AlertOutboxFull(
                    f"outbox of alerts {self.path}: it is full ({self.bounds.max_bytes / 2**20:.0f} MiB of pending and parked "
                    "alerts); raise alerts.max_mib, or lower alerts.max_age_days and alerts.keep_days"
                )
            subscribers = [(self._numbers[each.name], each) for each in self.subscribers]
            recording = Recording(db, self.rules, subscribers, now_ns)
            recording.add_all(risks)
            recording.write()
            used = used_bytes(db)
        return Recorded(
            alerts=tuple(recording.alerts),
            material=tuple(recording.material),
            repeats=recording.repeats,
            stale=recording.stale,
            below=recording.below,
            pending=recording.pending,
            quiet=dict(recording.quiet),
            superseded=superseded,
            used_bytes=used,
        )

    def due(self, subscriber: str, now_ns: int, limit: int) -> list[Delivery]:
        """What is to be delivered next, at most ``limit``, in order of recording: of each conjunction, the oldest pending revision.

        One whose ``retry_at_ns`` (`note_failure`) is later than ``now_ns``, by `LONGEST_PAUSE` at most, is left out, and its
        conjunction with it.
        """
        latest_ns = now_ns + LONGEST_PAUSE // _US * 1_000
        with self._lock, self._file.clear_errors():
            rows = self._opened.execute(_DUE, (self._numbers.get(subscriber), now_ns, latest_ns, limit))
            return [Delivery(subscriber, alert_from(row[4:]), *row[:4]) for row in rows]

    def acknowledge(self, deliveries: Sequence[Delivery], now_ns: int) -> None:
        """The subscribers have them."""
        with self._writing() as db:
            db.executemany(
                "UPDATE deliveries SET state = 'acknowledged', changed_timestamp = ? WHERE subscriber = ? AND alert = ?",
                [(now_ns, self._numbers.get(each.subscriber), each.number) for each in deliveries],
            )

    def note_failure(self, delivery: Delivery, error: str, now_ns: int, *, retry_at_ns: int = 0) -> None:
        """An attempt has failed, and the delivery stays pending: count it, with the error, for `flows alerts show`."""
        with self._writing() as db:
            db.execute(
                """UPDATE deliveries SET attempts = attempts + 1, last_error = ?, changed_timestamp = ?, retry_timestamp = ?
                WHERE subscriber = ? AND alert = ? AND state = 'pending'""",
                (error, now_ns, retry_at_ns, self._numbers.get(delivery.subscriber), delivery.number),
            )

    def park(self, delivery: Delivery, reason: str, now_ns: int) -> None:
        """Do not deliver it any more. The subscriber counts as not knowing this revision.

        If the newest revision is quiet only because of this one, it becomes pending in its place.
        """
        with self._writing() as db:
            if changes.park(db, self._numbers.get(delivery.subscriber, 0), delivery.number, reason, now_ns):
                of = db.execute("SELECT conjunction FROM alerts WHERE number = ?", (delivery.number,)).fetchone()
                self._enqueue_after_parking(db, delivery.subscriber, of, now_ns)

    def depth(self) -> Mapping[str, Depth]:
        """What waits, by subscriber; removed subscribers too, as long as something of theirs is pending or parked."""
        configured = {each.name for each in self.subscribers}
        with self._lock, self._file.clear_errors():
            rows = self._opened.execute(_DEPTH).fetchall()
        return {
            name: Depth(pending, parked, oldest_ns, name in configured)
            for name, pending, parked, oldest_ns in rows
            if name in configured or pending or parked
        }

    def prune(self, now_ns: int) -> Pruned:
        """Park what is pending for too long, and remove the revisions of conjunctions that are over for long."""
        with self._writing() as db:
            too_old = now_ns - self.bounds.max_age // _US * 1_000
            parked = {}
            for number, name in db.execute("SELECT number, name FROM subscribers").fetchall():
                reason = f"too old: pending for longer than {self.bounds.max_age / timedelta(days=1):g} days"
                if old := [row[0] for row in db.execute(_PARK_OLD, (reason, now_ns, number, too_old))]:
                    parked[name] = len(old)
                    self._enqueue_after_parking(db, name, set(old), now_ns)
            removed = remove_over(db, now_ns - self.bounds.keep // _US * 1_000)
            used = used_bytes(db)
        return Pruned(removed, parked, used)

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._db is not None, "the outbox is not open"
        return self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._file.clear_errors(), transaction(self._opened) as db:
            yield db

    def _enqueue_after_parking(
        self, db: sqlite3.Connection, name: str, conjunctions: Iterable[int], now_ns: int
    ) -> None:
        for rules in self.subscribers:
            if rules.name == name:
                changes.enqueue_after_parking(db, self._numbers[name], (self.rules, rules), conjunctions, now_ns)

    def _compare_subscribers(self, db: sqlite3.Connection, now_ns: int) -> Opened:
        known = {
            name: row for name, *row in db.execute("SELECT name, number, rules, removed_timestamp FROM subscribers")
        }
        added, changed = [], []
        for each in self.subscribers:
            number, text, removed_ns = known.pop(each.name, (None, None, None))
            new_text = rules_text(self.rules, each)
            if number is None:
                (number,) = db.execute(
                    "INSERT INTO subscribers (name, rules, added_timestamp) VALUES (?, ?, ?) RETURNING number",
                    (each.name, new_text, now_ns),
                ).fetchone()
            else:
                db.execute(
                    "UPDATE subscribers SET rules = ?, removed_timestamp = NULL WHERE number = ?", (new_text, number)
                )
            self._numbers[each.name] = number
            if text is None or removed_ns is not None:
                added.append(each.name)
            if text != new_text or removed_ns is not None:
                changed.append(each)
        active = changes.active_conjunctions(db, now_ns) if changed else []
        enqueued = sum(
            changes.enqueue_newest(db, self._numbers[each.name], (self.rules, each), active, now_ns) for each in changed
        )
        removed = {}
        for name, (number, _, removed_ns) in known.items():
            (pending,) = db.execute(
                "SELECT count(*) FROM deliveries WHERE subscriber = ? AND state = 'pending'", (number,)
            ).fetchone()
            if removed_ns is None:
                db.execute("UPDATE subscribers SET removed_timestamp = ? WHERE number = ?", (now_ns, number))
            if removed_ns is None or pending:
                removed[name] = pending
        return Opened(tuple(added), removed, enqueued)


_DUE = f"""SELECT d.alert, d.reason, d.attempts, d.since_timestamp, {ALERT_COLUMNS}
    FROM deliveries d INDEXED BY pending_in_order CROSS JOIN alerts a ON a.number = d.alert JOIN conjunctions c ON c.number = a.conjunction
    WHERE d.subscriber = ? AND d.state = 'pending' AND (d.retry_timestamp <= ? OR d.retry_timestamp > ?) AND NOT EXISTS (
        SELECT 1 FROM deliveries e INDEXED BY pending_by_conjunction WHERE e.subscriber = d.subscriber AND e.conjunction = d.conjunction
        AND e.state = 'pending' AND e.alert < d.alert)
    ORDER BY d.alert LIMIT ?"""  # noqa: S608 - names of our own
_STANDING = f"""SELECT {ALERT_COLUMNS} FROM conjunctions c JOIN alerts a ON a.number = c.newest
    WHERE c.tca_timestamp >= ? AND c.status != 'retracted' ORDER BY c.number"""  # noqa: S608 - names of our own
_DEPTH = """SELECT s.name,
    (SELECT count(*) FROM deliveries d WHERE d.subscriber = s.number AND d.state = 'pending'),
    (SELECT count(*) FROM deliveries d WHERE d.subscriber = s.number AND d.state = 'parked'),
    (SELECT min(since_timestamp) FROM deliveries d WHERE d.subscriber = s.number AND d.state = 'pending')
    FROM subscribers s ORDER BY s.number"""
_PARK_OLD = """UPDATE deliveries SET state = 'parked', reason = ?, changed_timestamp = ?
    WHERE subscriber = ? AND state = 'pending' AND since_timestamp < ? RETURNING conjunction"""
