"""The space of the outbox: how many bytes it has, what is removed with time, and what happens when it is full.

When it is full, in this order, until it is below 90 %:

1. Everything of conjunctions that are over is removed, except what is pending or parked.
2. Revisions that no subscriber receives are removed, except the newest one of each conjunction.
3. Of several pending revisions of one conjunction for one subscriber, only the newest one stays pending. The others are
   superseded: the subscriber still gets the truth, but not how it came to it.

What remains is pending or parked, and is never removed to make room: the outbox then takes no new alerts.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta

_ENOUGH = 0.9
_KEEP_CONJUNCTIONS_NS = round(timedelta(days=365) / timedelta(microseconds=1)) * 1_000
"""How long the row of a conjunction stays, after its revisions were removed: so long no number of a revision is used again."""

_HELD = "SELECT 1 FROM deliveries d WHERE d.alert = alerts.number AND d.state IN ('pending', 'parked')"


def used_bytes(db: sqlite3.Connection) -> int:
    """Of the file, without free pages, which new rows use."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def remove_over(db: sqlite3.Connection, before_ns: int) -> int:
    """Remove the revisions of conjunctions that were over before ``before_ns``. Returns how many.

    Those that are pending stay, and those that were parked after ``before_ns``.
    """
    removed = db.execute(
        """DELETE FROM alerts WHERE conjunction IN (SELECT number FROM conjunctions WHERE tca_timestamp < ?)
        AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.alert = alerts.number
            AND (d.state = 'pending' OR d.state = 'parked' AND d.changed_timestamp >= ?))""",
        (before_ns, before_ns),
    ).rowcount
    _forget_removed(db)
    db.execute(
        """DELETE FROM conjunctions WHERE tca_timestamp < ?
        AND NOT EXISTS (SELECT 1 FROM alerts a WHERE a.conjunction = conjunctions.number)""",
        (before_ns - _KEEP_CONJUNCTIONS_NS,),
    )
    db.execute(
        """DELETE FROM subscribers WHERE removed_timestamp IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.subscriber = subscribers.number)"""
    )
    return removed


def make_room(db: sqlite3.Connection, max_bytes: int, now_ns: int) -> int:
    """Remove what may be removed, if the file is full. Returns how many deliveries were superseded."""
    superseded = 0
    if used_bytes(db) < max_bytes:
        return superseded
    enough = _ENOUGH * max_bytes
    db.execute(
        f"""DELETE FROM alerts WHERE conjunction IN (SELECT number FROM conjunctions WHERE tca_timestamp < ?)
        AND NOT EXISTS ({_HELD})""",  # noqa: S608 - names of our own
        (now_ns,),
    )
    if used_bytes(db) >= enough:
        _remove_quiet(db)
    if used_bytes(db) >= enough:
        superseded = db.execute(
            """UPDATE deliveries SET state = 'superseded', reason = 'the outbox was full', changed_timestamp = ?
            WHERE state = 'pending' AND EXISTS (
                SELECT 1 FROM deliveries e INDEXED BY pending_by_conjunction WHERE e.subscriber = deliveries.subscriber
                AND e.conjunction = deliveries.conjunction AND e.state = 'pending' AND e.alert > deliveries.alert)""",
            (now_ns,),
        ).rowcount
        _remove_quiet(db)
    _forget_removed(db)
    return superseded


def _remove_quiet(db: sqlite3.Connection) -> None:
    """Remove revisions that are quiet or superseded for every subscriber, except the newest of each conjunction."""
    db.execute(
        """DELETE FROM alerts WHERE number NOT IN (SELECT newest FROM conjunctions WHERE newest IS NOT NULL)
        AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.alert = alerts.number
            AND d.state IN ('pending', 'parked', 'acknowledged'))"""
    )


def _forget_removed(db: sqlite3.Connection) -> None:
    """Conjunctions whose newest revision was removed have none."""
    db.execute(
        """UPDATE conjunctions SET newest = NULL WHERE newest IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM alerts a WHERE a.number = conjunctions.newest)"""
    )
