"""A small pipeline as a process: scripted risks into the sink of alerts, with its outbox, until it is killed or done."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from orchestrator_adapter import BreakerPolicy, RetryPolicy, SystemClock
from orchestrator_adapter.testing import ListSource, Pause, Step, chain, run_graph
from sda_ops.alerts.delivery.deliver import DeliveryPolicy
from sda_ops.alerts.delivery.sink import alerts_sink
from sda_ops.alerts.delivery.webhook import Webhook
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.outbox.values import Delivery, Recorded
from sda_ops.records.alert import Alert
from sda_ops.records.risk import ConjunctionRisk
from tests.helpers.alerts import outbox_in, risk

CONJUNCTIONS, STEPS = 5, 8
MS = timedelta(milliseconds=1)
IMPATIENT = DeliveryPolicy(
    retry=RetryPolicy(MS, 5 * MS, max_attempts=100),
    breaker=BreakerPolicy(threshold=1.0, min_calls=20, cooldown=5 * MS),
    slow=5 * MS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One start of the process.

    Attributes:
        folder: Of the outbox.
        url: Of the subscriber.
        die_at: The process kills itself ``before`` or ``after`` the call of ``record`` or ``acknowledge`` with which this many
            risks, or deliveries, are recorded or acknowledged. ``None``: it does not.
        mutant: A defect that the test must find: ``acknowledge first``, ``key without revision`` or ``order ignored``.
    """

    folder: Path
    url: str
    die_at: tuple[str, str, int] | None = None
    mutant: str | None = None


def statements() -> list[ConjunctionRisk]:
    """What the source says, in order; the last statement about each conjunction is that it is retracted, or final."""
    return [
        risk(
            number,
            step,
            status="provisional" if step < STEPS - 1 else ("retracted" if number % 2 else "final"),
            cause="screened" if step < STEPS - 1 else ("withdrawn" if number % 2 else "settled"),
        )
        for step in range(STEPS)
        for number in range(CONJUNCTIONS)
    ]


def body(alert: Alert) -> bytes:
    """Names the estimate and the status, so that a subscriber's last revision can be compared with the last statement."""
    return json.dumps([alert.key, alert.risk.estimate.revision, alert.risk.status]).encode()


def run(start: Run) -> None:
    """The process. It begins from the first statement each time, as a pipeline that has lost what it had in memory."""
    asyncio.run(_run(start))


async def _run(start: Run) -> None:
    outbox = _Mortal(start)
    _apply(start.mutant)
    script: list[Step] = []
    for each in statements():
        script += [[each], Pause(2 * MS)]
    sink = alerts_sink(
        outbox,
        [Webhook(name="a", url=start.url, body=body, max_per_s=None)],
        policy=IMPATIENT,
        last_deliveries=timedelta(seconds=30),
    )

    await run_graph(chain(ListSource(*script), sink), clock=SystemClock())


class _Mortal(AlertOutbox):
    """An outbox that kills its process before or after a call."""

    def __init__(self, start: Run) -> None:
        model = outbox_in(start.folder, "a")
        super().__init__(model.path, subscribers=model.subscribers)
        self._die_at = start.die_at
        self._count = dict.fromkeys(("record", "acknowledge"), 0)

    def record(self, risks: Sequence[ConjunctionRisk], now_ns: int) -> Recorded:
        self._count["record"] += len(risks)
        self._die("before", "record")
        recorded = super().record(risks, now_ns)
        self._die("after", "record")
        return recorded

    def acknowledge(self, deliveries: Sequence[Delivery], now_ns: int) -> None:
        self._count["acknowledge"] += len(deliveries)
        self._die("before", "acknowledge")
        super().acknowledge(deliveries, now_ns)
        self._die("after", "acknowledge")

    def _die(self, when: str, method: str) -> None:
        if self._die_at is not None and self._die_at[:2] == (when, method) and self._count[method] >= self._die_at[2]:
            os.kill(os.getpid(), signal.SIGKILL)


def _apply(mutant: str | None) -> None:
    """Put the defect into the code of this process."""
    match mutant:
        case "acknowledge first":
            from sda_ops.alerts.delivery.deliver import SubscriberDelivery  # noqa: PLC0415 - only this mutant has it

            one = SubscriberDelivery._one

            async def acknowledged_first(self: SubscriberDelivery, client: object, delivery: Delivery) -> None:
                self._outbox.acknowledge([delivery], 0)
                await one(self, client, delivery)  # type: ignore[arg-type] # as it is called

            SubscriberDelivery._one = acknowledged_first  # type: ignore[method-assign]
        case "key without revision":
            Alert.key = property(lambda alert: f"{alert.conjunction_id}/0")  # type: ignore[assignment,method-assign] # the defect
        case "order ignored":
            from sda_ops.alerts.outbox import store  # noqa: PLC0415 - only this mutant has it

            before, _, rest = store._DUE.partition("AND NOT EXISTS")
            after = rest[rest.rindex("ORDER BY") :].replace("d.alert", "d.alert DESC")
            store._DUE = before + after
        case _:
            assert mutant is None
