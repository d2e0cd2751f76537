"""Changes of single deliveries, each within a transaction of the caller: what a subscriber knows, enqueue, park, send again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from sda_ops.alerts.outbox.file import ALERT_COLUMNS, alert_from
from sda_ops.alerts.outbox.rules import AlertRules, Known, Notify, SubscriberRules, decide

RESENT = "resent"
"""The reason of a delivery that is sent again on request."""


def known_by(db: sqlite3.Connection, subscriber: int, conjunction: int) -> Known | None:
    """What a subscriber knows of a conjunction, or will know: its last revision that is pending or acknowledged."""
    row = db.execute(
        """SELECT a.status, a.severity, a.miss_m, a.probability, a.tca_timestamp
        FROM deliveries d INDEXED BY known CROSS JOIN alerts a ON a.number = d.alert
        WHERE d.subscriber = ? AND d.conjunction = ? AND d.state IN ('pending', 'acknowledged')
        ORDER BY d.alert DESC LIMIT 1""",
        (subscriber, conjunction),
    ).fetchone()
    return None if row is None else Known(*row)


def may_know(db: sqlite3.Connection, subscriber: int, conjunction: int) -> bool:
    """Whether a revision of the conjunction is parked: the subscriber may have it, and its answer was lost or was a rejection of a repeat."""
    return (
        db.execute(
            "SELECT 1 FROM deliveries INDEXED BY parked WHERE subscriber = ? AND state = 'parked' AND conjunction = ?",
            (subscriber, conjunction),
        ).fetchone()
        is not None
    )


def active_conjunctions(db: sqlite3.Connection, now_ns: int) -> list[int]:
    """Every conjunction with an alert whose time of closest approach is not over, in the order in which they were recorded."""
    return [
        number
        for (number,) in db.execute(
            "SELECT number FROM conjunctions WHERE tca_timestamp >= ? AND newest IS NOT NULL ORDER BY newest", (now_ns,)
        )
    ]


def enqueue_newest(
    db: sqlite3.Connection,
    subscriber: int,
    rules: tuple[AlertRules, SubscriberRules],
    conjunctions: Iterable[int],
    now_ns: int,
) -> int:
    """The subscriber gets the newest revision of each conjunction, if it differs from what it knows. Returns how many.

    One that is pending, acknowledged or parked is not touched.
    """
    enqueued = 0
    for conjunction in conjunctions:
        row = db.execute(
            f"""SELECT a.number, d.state, {ALERT_COLUMNS} FROM conjunctions c JOIN alerts a ON a.number = c.newest
            LEFT JOIN deliveries d ON d.subscriber = ? AND d.alert = a.number WHERE c.number = ?""",  # noqa: S608 - names of our own
            (subscriber, conjunction),
        ).fetchone()
        if row is None or row[1] in ("pending", "acknowledged", "parked"):
            continue
        decision = decide(*rules, known_by(db, subscriber, conjunction), alert_from(row[2:]).risk)
        if isinstance(decision, Notify):
            db.execute(
                """INSERT INTO deliveries (subscriber, alert, conjunction, state, reason, since_timestamp, changed_timestamp)
                VALUES (?, ?, ?, 'pending', ?, ?, ?)
                ON CONFLICT DO UPDATE SET state = 'pending', reason = excluded.reason,
                since_timestamp = excluded.since_timestamp, changed_timestamp = excluded.changed_timestamp""",
                (subscriber, row[0], conjunction, decision.reason, now_ns, now_ns),
            )
            enqueued += 1
    return enqueued


def park(db: sqlite3.Connection, subscriber: int, alert: int, reason: str, now_ns: int) -> bool:
    """Park a pending delivery. Returns whether it was pending."""
    return bool(
        db.execute(
            """UPDATE deliveries SET state = 'parked', reason = ?, changed_timestamp = ?
            WHERE subscriber = ? AND alert = ? AND state = 'pending'""",
            (reason, now_ns, subscriber, alert),
        ).rowcount
    )


def enqueue_after_parking(
    db: sqlite3.Connection,
    subscriber: int,
    rules: tuple[AlertRules, SubscriberRules],
    conjunctions: Iterable[int],
    now_ns: int,
) -> int:
    """What was parked is not known: a newer revision that was quiet beside it may be material now. Conjunctions that are over stay."""
    to_come = [
        conjunction
        for conjunction in conjunctions
        if db.execute(
            "SELECT 1 FROM conjunctions WHERE number = ? AND tca_timestamp >= ?", (conjunction, now_ns)
        ).fetchone()
    ]
    return enqueue_newest(db, subscriber, rules, to_come, now_ns)


def send_again(
    db: sqlite3.Connection, subscriber: int, rules: tuple[AlertRules, SubscriberRules], alert: int, now_ns: int
) -> bool:
    """Make a delivery pending, with attempts from 0 on, and after it the newest revision if the subscriber must know that, too.

    Returns whether it was parked or acknowledged.
    """
    row = db.execute(
        """UPDATE deliveries SET state = 'pending', reason = ?, attempts = 0, retry_timestamp = 0, since_timestamp = ?,
        changed_timestamp = ? WHERE subscriber = ? AND alert = ? AND state IN ('parked', 'acknowledged')
        RETURNING conjunction""",
        (RESENT, now_ns, now_ns, subscriber, alert),
    ).fetchone()
    if row is None:
        return False
    enqueue_newest(db, subscriber, rules, row, now_ns)
    return True
