"""The outbox: a SQLite file with every revision of every alert, and what each subscriber knows of it.

Everything here is synchronous. Calls from several threads are made one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator_adapter import OperatorError
from sda_ops.alerts.outbox.rules import AlertRules, SubscriberRules
from sda_ops.alerts.outbox.values import Bounds, Delivery, Depth, Opened, Pruned, Recorded
from sda_ops.records.risk import ConjunctionRisk


class AlertOutboxError(OperatorError):
    """The file cannot be used; the message says why, and what to do."""


class AlertOutboxFull(AlertOutboxError):
    """The file has as many bytes as it may have, and nothing in it can be removed. Nothing of the call was recorded."""


class AlertOutbox:
    """The writer. Constructing it opens nothing. The caller sees to it that no other pipeline writes the file (a claim).

    The command line may write beside it, for a moment at a time: `resend` and `park`.
    Every method but `close` raises `AlertOutboxError` if the file is damaged, or the disk full or broken; the file is unchanged
    then.
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

    def open(self, now_ns: int) -> Opened:
        """Open the file, or make it with its folder; check it; compare the subscribers with those it knows.

        Each subscriber gets the newest revision of each conjunction that is not over, if it is new to it and fits its rules.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        raise NotImplementedError

    def record(self, risks: Sequence[ConjunctionRisk], now_ns: int) -> Recorded:
        """Store new revisions and decide who hears them, in one transaction, which is on the disk when the call returns.

        Raises `AlertOutboxFull`.
        """
        raise NotImplementedError

    def due(self, subscriber: str, now_ns: int, limit: int) -> list[Delivery]:
        """What is to be delivered next, at most ``limit``, in order of recording: of each conjunction, the oldest pending revision.

        One whose ``retry_at_ns`` (`note_failure`) is later than ``now_ns`` is left out, and its conjunction with it.
        """
        raise NotImplementedError

    def acknowledge(self, deliveries: Sequence[Delivery], now_ns: int) -> None:
        """The subscriber has them."""
        raise NotImplementedError

    def note_failure(self, delivery: Delivery, error: str, now_ns: int, *, retry_at_ns: int = 0) -> None:
        """An attempt has failed, and the delivery stays pending: count it, with the error, for `flows alerts show`."""
        raise NotImplementedError

    def park(self, delivery: Delivery, reason: str, now_ns: int) -> None:
        """Do not deliver it any more. The subscriber counts as not knowing this revision."""
        raise NotImplementedError

    def depth(self) -> Mapping[str, Depth]:
        """What waits, by subscriber; removed subscribers too, as long as something of theirs is pending or parked."""
        raise NotImplementedError

    def prune(self, now_ns: int) -> Pruned:
        """Park what is pending for too long, and remove the revisions of conjunctions that are over for long."""
        raise NotImplementedError
