"""The file of the outbox: its tables, its errors, and how its rows become alerts.

Tables, of which other programs may read each at any time::

    conjunctions   one row each, also when its alerts are removed: id, objects, the newest revision's number and status
    alerts         one row for each revision: its figures, and the whole risk as JSON
    subscribers    one row each, those included that were removed from the settings
    deliveries     one row for each alert and subscriber: pending, acknowledged, quiet, parked or superseded; reason, attempts
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from orchestrator_adapter import OperatorError
from sda_ops.alerts.outbox.rules import AlertRules, SubscriberRules
from sda_ops.records.alert import Alert
from sda_ops.records.risk import ConjunctionRisk
from sda_ops.sqlite_file import SqliteFile

APPLICATION_ID = 0x53444141
"""In the header of every such file ("SDAA")."""

SCHEMA_VERSION = 1


class AlertOutboxError(OperatorError):
    """The file cannot be used; the message says why, and what to do."""


class AlertOutboxFull(AlertOutboxError):
    """The file has as many bytes as it may have, and nothing in it can be removed. Nothing of the call was recorded."""


def outbox_file(path: Path) -> SqliteFile:
    """The file as an outbox."""
    return SqliteFile(
        path=path,
        what="outbox of alerts",
        setting="alerts.directory",
        application_id=APPLICATION_ID,
        schema_version=SCHEMA_VERSION,
        error=AlertOutboxError,
        when_damaged="restore it from a backup; without one, see docs/alerts.md, The outbox",
    )


SCHEMA = (
    """CREATE TABLE conjunctions (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        catalog_number_first INTEGER NOT NULL, catalog_number_second INTEGER NOT NULL,
        first_recorded_timestamp INTEGER NOT NULL, tca_timestamp INTEGER NOT NULL,
        status TEXT NOT NULL, severity TEXT NOT NULL,
        revision INTEGER NOT NULL, estimate_revision INTEGER NOT NULL, estimate_screened INTEGER NOT NULL,
        repeats INTEGER NOT NULL, newest INTEGER, known TEXT NOT NULL)""",
    "CREATE INDEX conjunctions_by_time ON conjunctions (tca_timestamp)",
    """CREATE TABLE alerts (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        conjunction INTEGER NOT NULL REFERENCES conjunctions (number) ON DELETE CASCADE,
        revision INTEGER NOT NULL, recorded_timestamp INTEGER NOT NULL,
        status TEXT NOT NULL, severity TEXT NOT NULL,
        miss_m REAL NOT NULL, probability REAL NOT NULL, tca_timestamp INTEGER NOT NULL,
        content BLOB NOT NULL, risk TEXT NOT NULL,
        UNIQUE (conjunction, revision), UNIQUE (conjunction, content))""",
    """CREATE TABLE subscribers (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, rules TEXT NOT NULL,
        added_timestamp INTEGER NOT NULL, removed_timestamp INTEGER)""",
    """CREATE TABLE deliveries (
        subscriber INTEGER NOT NULL REFERENCES subscribers (number) ON DELETE CASCADE,
        alert INTEGER NOT NULL REFERENCES alerts (number) ON DELETE CASCADE,
        conjunction INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
        since_timestamp INTEGER NOT NULL, changed_timestamp INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0, retry_timestamp INTEGER NOT NULL DEFAULT 0, last_error TEXT,
        PRIMARY KEY (subscriber, alert)) WITHOUT ROWID""",
    "CREATE INDEX deliveries_by_alert ON deliveries (alert)",
    "CREATE INDEX pending_in_order ON deliveries (subscriber, alert, since_timestamp) WHERE state = 'pending'",
    "CREATE INDEX pending_by_conjunction ON deliveries (subscriber, conjunction, alert) WHERE state = 'pending'",
    "CREATE INDEX parked ON deliveries (subscriber, alert) WHERE state = 'parked'",
    # Statements name the index that they need: without statistics, SQLite takes one that begins with the subscriber only.
    """CREATE INDEX known ON deliveries (subscriber, conjunction, alert)
        WHERE state IN ('pending', 'acknowledged')""",
)

ALERT_COLUMNS = "c.id, a.revision, a.severity, a.recorded_timestamp, a.risk"
"""What `alert_from` reads, with ``alerts a`` and ``conjunctions c``."""

_DECODER = msgspec.json.Decoder(ConjunctionRisk)


def alert_from(row: Sequence[Any]) -> Alert:
    """The alert of a row of `ALERT_COLUMNS`."""
    identity, revision, severity, recorded_ns, risk = row
    return Alert(
        conjunction_id=UUID(identity),
        revision=revision,
        severity=severity,
        recorded_timestamp=recorded_ns,
        risk=_DECODER.decode(risk),
    )


def rules_text(general: AlertRules, rules: SubscriberRules) -> str:
    """Both rules that decide what a subscriber receives, as text."""
    return msgspec.json.encode([general, rules], order="sorted").decode()


def rules_from(text: str) -> tuple[AlertRules, SubscriberRules]:
    """The reverse of `rules_text`."""
    return msgspec.json.decode(text, type=tuple[AlertRules, SubscriberRules])
