"""What a subscriber remembers: the keys that it has seen, and the alerts that it has acted on. One SQLite file.

Key and effect are written in one transaction, which is on the disk before the subscriber answers. A kill in between repeats
neither: without the transaction the key is unknown, and the delivery is repeated; with it, the repeat is recognised.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import UUID

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    idempotency_key TEXT PRIMARY KEY, deliveries INTEGER NOT NULL, first_received_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alerts (
    number INTEGER PRIMARY KEY, conjunction_id TEXT NOT NULL, revision INTEGER NOT NULL, received_ns INTEGER NOT NULL,
    content_type TEXT NOT NULL, body BLOB NOT NULL
);
"""
# `alerts` has no unique constraint: that each (id, revision) is there once is the work of `seen`, and tests count it.

_LOCKED_S = 5.0
_MAX_DIGITS = 9  # of a revision


@dataclass(frozen=True, slots=True)
class ReceivedAlert:
    """One delivery.

    Attributes:
        conjunction_id: From the header ``Idempotency-Key``, which is ``<conjunction id>/<revision>``.
        revision: From the same header.
        content_type: ``application/json``, ``application/xml`` or ``text/plain``.
        body: As it was received.
        received_ns: UTC.
    """

    conjunction_id: UUID
    revision: int
    content_type: str
    body: bytes
    received_ns: int

    @property
    def key(self) -> str:
        """The idempotency key."""
        return f"{self.conjunction_id}/{self.revision}"

    @classmethod
    def from_key(cls, key: str, *, content_type: str, body: bytes, received_ns: int) -> Self:
        """From the header. Raises ``ValueError`` if it is not ``<conjunction id>/<revision>``."""
        identity, _, revision = key.partition("/")
        if not (revision.isascii() and revision.isdecimal() and len(revision) <= _MAX_DIGITS):
            raise ValueError("Idempotency-Key: expected <conjunction id>/<revision>")
        return cls(UUID(identity), int(revision), content_type, body, received_ns)


class SubscriberTable:
    """The file, made if it is missing. Any thread may call it. Every method may raise ``sqlite3.Error``."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError`` or ``sqlite3.Error`` if the file cannot be made or is not a SQLite file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, timeout=_LOCKED_S, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def store(self, alert: ReceivedAlert) -> bool:
        """Remember the key and act on the alert, on the disk. Returns ``False``, and acts on nothing, for a repeat."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                (deliveries,) = self._db.execute(
                    "INSERT INTO seen VALUES (?, 1, ?) ON CONFLICT DO UPDATE SET deliveries = deliveries + 1 RETURNING deliveries",
                    (alert.key, alert.received_ns),
                ).fetchone()
                if deliveries == 1:
                    self._db.execute(
                        "INSERT INTO alerts (conjunction_id, revision, received_ns, content_type, body) VALUES (?, ?, ?, ?, ?)",
                        (str(alert.conjunction_id), alert.revision, alert.received_ns, alert.content_type, alert.body),
                    )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return bool(deliveries == 1)

    def keys(self) -> list[tuple[UUID, int]]:
        """(conjunction id, revision) of every alert that was acted on, in that order."""
        with self._lock:
            rows = self._db.execute("SELECT conjunction_id, revision FROM alerts ORDER BY number").fetchall()
        return [(UUID(identity), revision) for identity, revision in rows]

    def alerts(self) -> list[ReceivedAlert]:
        """The alerts, in the same order."""
        columns = "conjunction_id, revision, content_type, body, received_ns"
        with self._lock:
            rows = self._db.execute(f"SELECT {columns} FROM alerts ORDER BY number").fetchall()  # noqa: S608 - a constant
        return [ReceivedAlert(UUID(identity), *rest) for identity, *rest in rows]

    def bodies(self) -> list[bytes]:
        """The bodies, in the same order."""
        with self._lock:
            return [body for (body,) in self._db.execute("SELECT body FROM alerts ORDER BY number")]

    def deliveries(self) -> int:
        """How many deliveries were received, repeats included."""
        with self._lock:
            return int(self._db.execute("SELECT coalesce(sum(deliveries), 0) FROM seen").fetchone()[0])
