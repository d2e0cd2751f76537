"""The sink ``alerts``: writes risks into the outbox, and delivers what the outbox says to each subscriber.

A batch is acknowledged when the outbox has it on the disk. From then on a kill loses nothing: what is not delivered is pending in
the outbox, and the next start delivers it. Delivery never holds the stream; a subscriber that is down only makes the outbox grow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from orchestrator_adapter import BoundedLog, EventLog, Factory, Timeout, Wakeup, WiredEnds
from orchestrator_adapter.process import NoticeBoard
from sda_ops.alerts.delivery.deliver import DeliveryPolicy, SubscriberDelivery
from sda_ops.alerts.delivery.webhook import Webhook
from sda_ops.alerts.metrics import AlertMetrics
from sda_ops.alerts.notice import alert_notice
from sda_ops.alerts.outbox.file import AlertOutboxError, AlertOutboxFull
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.outbox.values import Depth, Recorded
from sda_ops.records.risk import ConjunctionRisk

logger = logging.getLogger(__name__)

LAST_DELIVERIES = timedelta(seconds=1)
"""At the end of the stream, for what is under way and what was recorded last. A shutdown must be over within its grace period."""

_MAX_BATCH = 256
_LOOK_EVERY_S = 1.0
_PRUNE_EVERY_S = 3_600.0
_BACKLOG = 100  # pending deliveries of one subscriber
_ALMOST_FULL = 0.8
_NS_PER_S = 10**9


def alerts_sink(
    outbox: AlertOutbox,
    webhooks: Sequence[Webhook],
    *,
    policy: DeliveryPolicy | None = None,
    metrics: AlertMetrics | None = None,
    notices: NoticeBoard | None = None,
    last_deliveries: timedelta = LAST_DELIVERIES,
) -> Factory:
    """A sink for `ConjunctionRisk`, into ``outbox``, delivered to ``webhooks``: one for each subscriber that the outbox knows.

    ``notices`` gets the alerts that are new or have materially changed, once they are on the disk.
    When the input has ended, the deliveries have ``last_deliveries`` to end; what is pending then stays in the outbox.

    While the outbox is full, the sink waits with its batch, and deliveries go on; the log says so once. Raises `AlertOutboxError`
    if the outbox cannot be used, or is full at the shutdown: nothing of the batch is acknowledged then. A failed delivery never
    ends the sink. Raises ``ValueError`` if subscribers and webhooks do not have the same names.
    """
    known, given = sorted(each.name for each in outbox.subscribers), sorted(each.name for each in webhooks)
    if known != given:
        raise ValueError(f"alerts_sink: expected one webhook for each subscriber of the outbox, {known}, got {given}")
    policy = policy or DeliveryPolicy()

    async def run(ends: WiredEnds) -> None:
        ends.keep("outbox", lambda: _opened(outbox, ends), lambda _: outbox.close())
        deliveries = [SubscriberDelivery(ends, outbox, each, policy=policy, metrics=metrics) for each in webhooks]
        running = [ends.start(each.run(), name=f"deliver alerts to {each.name}") for each in deliveries]
        housekeeping = _Housekeeping(ends, outbox, metrics)
        running.append(ends.start(housekeeping.run(), name="look after the outbox"))
        try:
            while batch := await ends.receiver.recv_many(_MAX_BATCH):
                recorded = await _record_when_there_is_room(ends, outbox, batch)
                housekeeping.watch.recorded(recorded)
                _recorded(recorded, ends, metrics, notices)
                for each in deliveries:
                    each.wake()
            for each in deliveries:
                each.finish()
            housekeeping.finish()
            await _at_most(last_deliveries, running, ends)
        finally:  # before the instance ends: their requests are tasks of their own
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    return run


async def _at_most(limit: timedelta, running: Sequence[asyncio.Task[None]], ends: WiredEnds) -> None:
    """Wait for the end of ``running``, and no longer than the limit."""
    timeout = Timeout(ends.clock, limit.total_seconds())
    try:
        async with timeout:
            await asyncio.gather(*running)
    except TimeoutError:
        if not timeout.expired:
            raise


def _opened(outbox: AlertOutbox, ends: WiredEnds) -> AlertOutbox:
    opened = outbox.open(ends.clock.now_ns())
    if opened.added or opened.removed or opened.enqueued:
        log = EventLog(logger, clock=ends.clock, operator=ends.name, instance=ends.instance)
        log(
            "alert_subscribers_changed",
            added=list(opened.added),
            removed=dict(opened.removed),
            enqueued=opened.enqueued,
        )
    return outbox


async def _record_when_there_is_room(
    ends: WiredEnds, outbox: AlertOutbox, batch: Sequence[ConjunctionRisk]
) -> Recorded:
    """Record and acknowledge the batch."""
    is_logged = False
    while True:
        written: list[Recorded] = []
        try:
            await ends.acknowledge_after(len(batch), _record, outbox, batch, ends.clock.now_ns(), written)
        except AlertOutboxFull as error:
            if ends.shutdown.is_set:
                raise
            if not is_logged:
                log = EventLog(logger, clock=ends.clock, operator=ends.name, instance=ends.instance)
                log("alert_outbox_full", level=logging.ERROR, message=str(error))
                is_logged = True
            await ends.shutdown.wait_at_most(_LOOK_EVERY_S, ends.clock)
        else:
            return written[0]


def _record(outbox: AlertOutbox, risks: Sequence[ConjunctionRisk], now_ns: int, written: list[Recorded]) -> None:
    written.append(outbox.record(risks, now_ns))


def _recorded(recorded: Recorded, ends: WiredEnds, metrics: AlertMetrics | None, notices: NoticeBoard | None) -> None:
    """Count each risk once: what the ledger has as written is the sum of these four figures."""
    ends.count("recorded", len(recorded.alerts))
    ends.count("repeats", recorded.repeats)
    ends.count("stale", recorded.stale)
    ends.count("below", recorded.below)
    if metrics is not None:
        metrics.count("recorded", len(recorded.alerts))
        metrics.count("duplicate", recorded.repeats)
        metrics.count("quiet", sum(recorded.quiet.values()))
        metrics.count("superseded", recorded.superseded)
    if notices is not None:
        for alert in recorded.material:
            notices.post(alert_notice(alert))


# What is done once a second, and once an hour.


class _Housekeeping:
    """Reports depth and size, warns of a backlog and of an outbox that is almost full, and prunes."""

    def __init__(self, ends: WiredEnds, outbox: AlertOutbox, metrics: AlertMetrics | None) -> None:
        log = EventLog(logger, clock=ends.clock, operator=ends.name)
        self.watch = OutboxWatch(log, max_bytes=outbox.bounds.max_bytes)
        self._ends = ends
        self._outbox = outbox
        self._metrics = metrics
        self._faults = BoundedLog(ends.name, ends.clock)
        self._prune_at = float("-inf")
        self._wakeup = Wakeup()
        self._finishing = False

    def finish(self) -> None:
        """`run` is to return after one more look."""
        self._finishing = True
        self._wakeup.wake()

    async def run(self) -> None:
        """Look after the outbox until `finish`. An outbox that cannot be read is logged, at most once a second."""
        while True:
            is_last = self._finishing
            try:
                await self._look()
            except AlertOutboxError as error:
                self._faults.note("outbox", str(error), event="alert_outbox_failed")
            if is_last:
                return
            if not self._finishing:
                await self._wakeup.wait_until(self._ends.clock.monotonic() + _LOOK_EVERY_S, self._ends.clock)

    async def _look(self) -> None:
        ends, metrics, now_ns = self._ends, self._metrics, self._ends.clock.now_ns()
        if ends.clock.monotonic() >= self._prune_at:
            pruned = await ends.run_blocking(self._outbox.prune, now_ns)
            self._prune_at = ends.clock.monotonic() + _PRUNE_EVERY_S
            self.watch.pruned(pruned.parked)
            self.watch.used_bytes = pruned.used_bytes
            if metrics is not None:
                metrics.count("parked", sum(pruned.parked.values()))
        depth = await ends.run_blocking(self._outbox.depth)
        self.watch.look(depth, now_ns)
        if metrics is not None:
            metrics.size(self.watch.used_bytes, self._outbox.bounds.max_bytes)
            for name, each in depth.items():
                oldest_ns = 0 if each.oldest_pending_ns is None else max(0, now_ns - each.oldest_pending_ns)
                metrics.depth(name, each.pending, oldest_ns=oldest_ns)
                metrics.parked(name, each.parked)


class OutboxWatch:
    """Logs what a person should know of the outbox: one line a change.

    Attributes:
        used_bytes: Of the file, as the last write has said.
    """

    def __init__(self, log: EventLog, *, max_bytes: int) -> None:
        self.used_bytes = 0
        self._log = log
        self._max_bytes = max_bytes
        self._logged: dict[str, int] = {}  # by subscriber, the backlog that was logged last
        self._almost_full = False

    def look(self, depth: Mapping[str, Depth], now_ns: int) -> None:
        """Log a backlog of 100 deliveries, each doubling of it, and its end; and the outbox when it is 80 % full."""
        for name, each in depth.items():
            logged = self._logged.get(name, 0)
            if each.pending >= max(_BACKLOG, 2 * logged):
                self._logged[name] = each.pending
                oldest_s = (now_ns - (each.oldest_pending_ns or now_ns)) // _NS_PER_S
                self._log(
                    "alert_backlog", level=logging.WARNING, subscriber=name, pending=each.pending, oldest_s=oldest_s
                )
            elif logged and each.pending < _BACKLOG // 10:
                del self._logged[name]
                self._log("alert_backlog_delivered", subscriber=name)
        share = self.used_bytes / self._max_bytes
        if (share >= _ALMOST_FULL) != self._almost_full and not (self._almost_full and share > _ALMOST_FULL - 0.1):
            self._almost_full = share >= _ALMOST_FULL
            event = "alert_outbox_almost_full" if self._almost_full else "alert_outbox_has_room"
            level = logging.WARNING if self._almost_full else logging.INFO
            self._log(event, level=level, used_bytes=self.used_bytes, max_bytes=self._max_bytes)

    def recorded(self, recorded: Recorded) -> None:
        """Log what is not delivered because the outbox was full, and a newer revision is pending in its place."""
        self.used_bytes = recorded.used_bytes
        if recorded.superseded:
            self._log("alerts_superseded", level=logging.WARNING, superseded=recorded.superseded)

    def pruned(self, parked: Mapping[str, int]) -> None:
        """Log what was parked because it is too old."""
        for name, count in parked.items():
            self._log("alerts_too_old", level=logging.WARNING, subscriber=name, parked=count)
