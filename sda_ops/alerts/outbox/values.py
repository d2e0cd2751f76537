"""What goes into the outbox and comes out of it, as values. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from sda_ops.alerts.outbox.rules import QuietReason
from sda_ops.records.alert import Alert

DeliveryState: TypeAlias = Literal["pending", "acknowledged", "quiet", "parked", "superseded"]
"""Of one alert for one subscriber. ``pending``: to be delivered. ``acknowledged``: the subscriber has it. ``quiet``: its rules say
that it does not receive it. ``parked``: not delivered any more, with a reason; it can be sent again. ``superseded``: the outbox was
full, and a newer revision of the conjunction is pending in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much the outbox holds, and for how long.

    Attributes:
        keep: How long the revisions of a conjunction stay after its time of closest approach. One that is pending stays longer.
        max_age: An alert that is pending for longer is parked as too old.
        max_bytes: The most bytes in the file. At 80 % the caller is warned (`Recorded.used_bytes`).
    """

    keep: timedelta = timedelta(days=30)
    max_age: timedelta = timedelta(days=7)
    max_bytes: int = 1_024 * 1_024 * 1_024


@dataclass(frozen=True, slots=True)
class Opened:
    """What `AlertOutbox.open` has found.

    Attributes:
        added: Subscribers that the file did not know, or that were removed before.
        removed: Subscribers that are no longer in the settings, with the number of their alerts that are still pending. Those are
            kept, listed, and parked when they are too old.
        enqueued: Newest revisions of active conjunctions that became pending, because a subscriber is new or its rules have
            changed.
    """

    added: tuple[str, ...]
    removed: Mapping[str, int]
    enqueued: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one call of `AlertOutbox.record` did. Each risk is in one of `alerts`, `repeats`, `stale` and `below`.

    Attributes:
        alerts: The new revisions, in order of recording.
        material: Those of them that are the first of a conjunction or differ materially from the one before, by the general
            thresholds and the defaults of `SubscriberRules`; the subscribers' rules do not matter.
        repeats: Risks with the content of a revision that is stored already.
        stale: Risks with an older estimate than the one that is stored; a restart sends them.
        below: Risks of conjunctions without an alert, outside the general thresholds or retracted. Nothing is stored of them.
        pending: Deliveries that became pending, over all subscribers.
        quiet: Deliveries that did not, by reason.
        superseded: Deliveries that ended because the outbox was full.
        used_bytes: Of the file, without free pages. Compare it with `Bounds.max_bytes`.
    """

    alerts: tuple[Alert, ...]
    material: tuple[Alert, ...]
    repeats: int
    stale: int
    below: int
    pending: int
    quiet: Mapping[QuietReason, int]
    superseded: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert that one subscriber is to receive.

    Attributes:
        subscriber: Its name.
        alert: The revision.
        number: The alert's place in the order of recording. ``(subscriber, number)`` is the delivery's key.
        reason: Why the subscriber receives it: a `NotifyReason`.
        attempts: How many attempts have failed.
        pending_since_ns: When it became pending, UTC.
    """

    subscriber: str
    alert: Alert
    number: int
    reason: str
    attempts: int
    pending_since_ns: int


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits for one subscriber.

    Attributes:
        pending: To be delivered.
        parked: Not delivered any more, with a reason each.
        oldest_pending_ns: When the oldest pending one became pending, UTC; ``None`` if none is pending.
        configured: Whether the subscriber is in the settings.
    """

    pending: int
    parked: int
    oldest_pending_ns: int | None
    configured: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `AlertOutbox.prune` did.

    Attributes:
        removed: Revisions removed, because their conjunction is over for longer than `Bounds.keep`.
        parked: Deliveries parked as too old, by subscriber.
        used_bytes: Of the file, without free pages. Compare it with `Bounds.max_bytes`.
    """

    removed: int
    parked: Mapping[str, int]
    used_bytes: int
