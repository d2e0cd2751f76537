"""The outbox beside a pipeline that writes it: what the command line reads, and the two things that it changes.

What it makes pending is in the pipeline's next answer of `AlertOutbox.due`. A change waits a few seconds for a transaction of the
pipeline, and takes only a moment itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sda_ops.alerts.outbox import changes
from sda_ops.alerts.outbox.file import ALERT_COLUMNS, AlertOutboxError, alert_from, outbox_file, rules_from
from sda_ops.alerts.outbox.values import DeliveryState
from sda_ops.records.alert import Alert
from sda_ops.sqlite_file import transaction

_LOCKED_S = 10.0
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """What became of one revision for one subscriber.

    Attributes:
        subscriber: Its name.
        state: Where the delivery stands.
        reason: Why the subscriber receives it or not, or why it is parked.
        since_ns: When it was decided, or became pending the last time, UTC.
        changed_ns: When it was acknowledged or parked, or when the last attempt was, UTC.
        attempts: Failed ones.
        last_error: Of the last failed attempt.
    """

    subscriber: str
    state: DeliveryState
    reason: str
    since_ns: int
    changed_ns: int
    attempts: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ListedAlert:
    """A conjunction with an alert.

    Attributes:
        alert: Its newest revision that is in the file.
        repeats: How many statements said nothing new.
        pending: Deliveries of all its revisions.
        acknowledged: The same.
        parked: The same.
    """

    alert: Alert
    repeats: int
    pending: int
    acknowledged: int
    parked: int


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision, and what became of it for each subscriber, in the order in which the subscribers were added."""

    alert: Alert
    deliveries: tuple[DeliveryStatus, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """A delivery that was made pending or parked."""

    subscriber: str
    conjunction_id: str
    revision: int


class AlertReader:
    """Reads an outbox, and changes nothing. Making it, and each method, may raise `AlertOutboxError`."""

    _read_only = True

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise AlertOutboxError(f"there is no outbox of alerts {path}: a run of sda-fusion with alerts makes it")
        self._file = outbox_file(path)
        self._db = self._file.open_existing(locked_s=_LOCKED_S, read_only=self._read_only)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def subscribers(self) -> dict[str, bool]:
        """Every subscriber that the file knows, and whether it was in the settings of the last run."""
        with self._file.clear_errors():
            rows = self._db.execute("SELECT name, removed_timestamp IS NULL FROM subscribers ORDER BY number")
            return {name: bool(configured) for name, configured in rows}

    def listed(self, *, subscriber: str | None = None, catalog_number: int | None = None) -> list[ListedAlert]:
        """The alerts, by time of closest approach; the counts are of one subscriber, or of all."""
        with self._file.clear_errors():
            return [
                ListedAlert(alert_from(row[:5]), *row[5:])
                for row in self._db.execute(_LISTED, {"subscriber": subscriber, "object": catalog_number})
            ]

    def ids(self, prefix: str, limit: int = 10) -> list[str]:
        """The conjunctions' ids that begin with ``prefix``, at most ``limit``, in order."""
        with self._file.clear_errors():
            rows = self._db.execute(
                """SELECT id FROM conjunctions c WHERE substr(id, 1, ?) = ?
                AND EXISTS (SELECT 1 FROM alerts a WHERE a.conjunction = c.number) ORDER BY id LIMIT ?""",
                (len(prefix), prefix, limit),
            )
            return [row[0] for row in rows]

    def history(self, full_id: str) -> list[Revision]:
        """Every revision of a conjunction that is in the file, the first one first; empty if the id is unknown."""
        with self._file.clear_errors():
            rows = self._db.execute(_HISTORY, (full_id,)).fetchall()
            return [Revision(alert_from(row[1:]), tuple(self._deliveries(row[0]))) for row in rows]

    def _deliveries(self, alert: int) -> Iterator[DeliveryStatus]:
        for row in self._db.execute(_DELIVERIES, (alert,)):
            yield DeliveryStatus(*row)


class AlertEditor(AlertReader):
    """Reads an outbox and changes deliveries."""

    _read_only = False

    def send_again(self, *, full_id: str | None, subscriber: str | None, now_ns: int) -> list[Changed]:
        """Make deliveries pending: every parked one of the conjunction (``None``: of any) and the subscriber (``None``: of each).

        If the conjunction is given and has no parked one for a subscriber, the last revision that the subscriber has acknowledged
        is sent again. Subscribers that are not in the settings are left out.
        """
        which = {"id": full_id, "subscriber": subscriber}
        with self._file.clear_errors():
            chosen = self._db.execute(_PARKED, which).fetchall()
            if full_id is not None:
                with_parked = {row[0] for row in chosen}
                chosen += [row for row in self._db.execute(_LAST_ACKNOWLEDGED, which) if row[0] not in with_parked]
        return self._changed(
            chosen, lambda row: changes.send_again(self._db, row[0], rules_from(row[2]), row[3], now_ns)
        )

    def park(self, full_id: str, *, subscriber: str | None, reason: str, now_ns: int) -> list[Changed]:
        """Park every pending delivery of the conjunction, of the subscriber (``None``: of each)."""
        with self._file.clear_errors():
            chosen = self._db.execute(_PENDING, {"id": full_id, "subscriber": subscriber}).fetchall()
        return self._changed(chosen, lambda row: changes.park(self._db, row[0], row[3], reason, now_ns))

    def _changed(self, chosen: Sequence[Any], change: Callable[[Any], bool]) -> list[Changed]:
        """Change each row, some in one transaction: a pipeline that writes waits for no more than those."""
        changed = []
        for start in range(0, len(chosen), _AT_ONCE):
            with self._file.clear_errors(), transaction(self._db):
                for row in chosen[start : start + _AT_ONCE]:
                    _, name, _, _, identity, revision = row
                    if change(row):
                        changed.append(Changed(name, identity, revision))
        return changed


def _count(state: str) -> str:
    return f"""(SELECT count(*) FROM deliveries d JOIN alerts e ON e.number = d.alert JOIN subscribers s ON s.number = d.subscriber
        WHERE e.conjunction = c.number AND d.state = '{state}' AND (:subscriber IS NULL OR s.name = :subscriber))"""  # noqa: S608 - words of our own


_LISTED = f"""SELECT {ALERT_COLUMNS}, c.repeats, {_count("pending")}, {_count("acknowledged")}, {_count("parked")}
    FROM conjunctions c JOIN alerts a ON a.number = (SELECT max(number) FROM alerts e WHERE e.conjunction = c.number)
    WHERE :object IS NULL OR :object IN (c.catalog_number_first, c.catalog_number_second)
    ORDER BY c.tca_timestamp, c.id"""  # noqa: S608 - names of our own
_HISTORY = f"""SELECT a.number, {ALERT_COLUMNS} FROM conjunctions c JOIN alerts a ON a.conjunction = c.number
    WHERE c.id = ? ORDER BY a.revision"""  # noqa: S608 - names of our own
_DELIVERIES = """SELECT s.name, d.state, d.reason, d.since_timestamp, d.changed_timestamp, d.attempts, d.last_error
    FROM deliveries d JOIN subscribers s ON s.number = d.subscriber WHERE d.alert = ? ORDER BY s.number"""
_CHOSEN = """SELECT s.number, s.name, s.rules, d.alert, c.id, a.revision FROM deliveries d
    JOIN subscribers s ON s.number = d.subscriber JOIN alerts a ON a.number = d.alert
    JOIN conjunctions c ON c.number = a.conjunction
    WHERE (:id IS NULL OR c.id = :id) AND (:subscriber IS NULL OR s.name = :subscriber)"""
_PENDING = f"{_CHOSEN} AND d.state = 'pending' ORDER BY d.alert, s.number"
_PARKED = f"{_CHOSEN} AND s.removed_timestamp IS NULL AND d.state = 'parked' ORDER BY d.alert, s.number"
_LAST_ACKNOWLEDGED = f"""{_CHOSEN} AND s.removed_timestamp IS NULL AND d.state = 'acknowledged' AND NOT EXISTS (
    SELECT 1 FROM deliveries e WHERE e.subscriber = d.subscriber AND e.conjunction = d.conjunction
    AND e.state = 'acknowledged' AND e.alert > d.alert) ORDER BY d.alert, s.number"""  # noqa: S608 - names of our own
