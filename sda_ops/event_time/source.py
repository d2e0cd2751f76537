"""``watermarked``: makes a source that sends watermarks of any source.

The marks are sent in the same edge as the items and right behind those that they speak of: in the task of the source, without a
suspension after the items (or after the contact that it reports). So nothing overtakes anything, also while the edge is
full. Only a timer sends a mark from outside that task, and never while the task waits within a send; it sends what was
promised before, or that the source is idle, which is true in any place.

What is promised is decided in ``promises``. It outlives the instances of the source, so a restart repeats and loses no mark.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import sub
from typing import Any, TypeAlias, cast

from orchestrator_adapter import Control, EventLog, Factory, Timer, WiredEnds
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.promises import PromiseRules, SourcePromises

logger = logging.getLogger(__name__)

OnContact: TypeAlias = Callable[[int], object]
"""A source calls it with a time (UTC ns): everything that had arrived before that time has been emitted."""

TimesOf: TypeAlias = Callable[[Any], tuple[int, int]]
"""The event time and the arrival of an item, UTC ns."""


def watermarked(
    make: Callable[[OnContact], Factory],
    rules: PromiseRules,
    *,
    times_of: TimesOf,
    metrics: EventTimeMetrics | None = None,
) -> Factory:
    """The source that ``make`` makes, with watermarks. It emits the same items in the same order.

    ``make`` gets the function by which the source reports a contact::

        watermarked(lambda on_contact: radar_source(feed, on_contact=on_contact), rules, times_of=...)

    A source without contacts is made by ``lambda _: source``. It may use ``emit``, ``ingest`` or its senders.

    Figures: ``late_at_source`` (items that were earlier than a mark that had been sent: ``max_lateness`` or ``clock_error``
    is too small for this feed) and ``watermark_regressions``.

    Args:
        make: Makes the source; called at the start of each instance.
        rules: What is known of the feed.
        times_of: The event time and the arrival of an item. The event time must be the one that windows will use: with
            known clock offsets already subtracted.
        metrics: Marks, regressions and lags of the source, under the operator's name.
    """

    async def run(ends: WiredEnds) -> None:
        now_s = ends.clock.monotonic()
        promises = ends.keep("event time", lambda: SourcePromises(rules, ends.name, now_s=now_s))
        marks = _Marks(ends, promises, rules, times_of, metrics)
        with marks.ticking():
            await make(marks.contact)(cast("WiredEnds", _ObservedEnds(ends, marks)))
        if metrics is not None:
            metrics.source_ended(ends.name)

    return run


class _Marks:
    """Sends the marks of one instance of a source."""

    def __init__(
        self,
        ends: WiredEnds,
        promises: SourcePromises,
        rules: PromiseRules,
        times_of: TimesOf,
        metrics: EventTimeMetrics | None,
    ) -> None:
        self._ends = ends
        self._promises = promises
        self._interval_s = rules.interval.total_seconds()
        self._times_of = times_of
        self._metrics = metrics
        self._sends = 0  # that wait for space now
        self._timer: Timer | None = None

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """The time of one instance."""
        self._promises.restarted(now_s=self._ends.clock.monotonic())
        self._send_due()
        self._timer = self._ends.clock.call_later(self._interval_s, self._tick)
        try:
            yield
        finally:
            self._timer.cancel()
            self._promises.tick(now_s=self._ends.clock.monotonic(), waiting=self._sends > 0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The source may wait for space."""
        self._sends += 1
        try:
            yield
        finally:
            self._sends -= 1
            if not self._sends:
                self._promises.tick(now_s=self._ends.clock.monotonic(), waiting=True)

    def contact(self, at_ns: int) -> None:
        """See ``OnContact``."""
        now_s = self._ends.clock.monotonic()
        if not self._promises.contact(at_ns, now_s=now_s):
            self._regressed(at_ns, now_s)
        self._send_due()

    def emitted(self, items: Sequence[Any]) -> None:
        """These items were sent just now."""
        if any(issubclass(kind, Control) for kind in set(map(type, items))):
            items = [item for item in items if not isinstance(item, Control)]
        if not items:
            return
        # By columns: this runs for every observation.
        events_ns, arrived_at_ns = zip(*map(self._times_of, items), strict=True)
        late_before = self._promises.late
        self._promises.emitted(events_ns, arrived_at_ns, now_s=self._ends.clock.monotonic())
        if late := self._promises.late - late_before:
            self._ends.count("late_at_source", late)
        if self._metrics is not None:
            self._metrics.source_lag(self._ends.name, list(map(sub, arrived_at_ns, events_ns)))
        self._send_due(behind_items=True)

    def _tick(self) -> None:
        self._timer = self._ends.clock.call_later(self._interval_s, self._tick)
        self._promises.tick(now_s=self._ends.clock.monotonic(), waiting=self._waits_for_space)
        self._send_due()

    def _send_due(self, *, behind_items: bool = False) -> None:
        """Send the mark that is due. Marks alone never queue in the outbox: the next one replaces them."""
        if not behind_items and (self._waits_for_space or self._has_pending):
            return
        if (mark := self._promises.due(now_s=self._ends.clock.monotonic())) is not None:
            for sender in self._ends.senders:
                sender.offer_control(mark)
            if self._metrics is not None:
                self._metrics.source_mark(mark)

    @property
    def _waits_for_space(self) -> bool:
        """A source that a person has paused does not: it counts as one without contact, and becomes idle."""
        return self._sends > 0 and (self._has_pending or not self._ends.paused)

    @property
    def _has_pending(self) -> bool:
        return any(sender.pending for sender in self._ends.senders)

    def _regressed(self, at_ns: int, now_s: float) -> None:
        self._ends.count("watermark_regressions")
        if self._metrics is not None:
            self._metrics.regression(self._ends.name)
        if self._promises.persistent_regression(now_s=now_s):
            log = EventLog(logger, clock=self._ends.clock, operator=self._ends.name, instance=self._ends.instance)
            log(
                "watermark_regression",
                level=logging.WARNING,
                contact_ns=at_ns,
                promised_ns=self._promises.promised_ns,
                message="the source's time has gone back, and its watermark stands; was this machine's clock set?",
            )


class _ObservedEnds:
    """The ends of a source, with every way to send items observed. The rest is that of the ends."""

    def __init__(self, ends: WiredEnds, marks: _Marks) -> None:
        self._ends = ends
        self._marks = marks
        self.senders = tuple(_ObservedSender(sender, marks) for sender in ends.senders)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ends, name)

    @property
    def sender(self) -> _ObservedSender:
        """See ``WiredEnds.sender``."""
        self._ends.sender  # noqa: B018 - raises if there are several
        return self.senders[0]

    async def emit(self, items: Sequence[Any]) -> None:
        """See ``WiredEnds.emit``."""
        self.ingest(items)
        await self.flush()

    def ingest(self, items: Sequence[Any]) -> None:
        """See ``WiredEnds.ingest``."""
        self._ends.ingest(items)
        self._marks.emitted(items)

    async def flush(self) -> None:
        """See ``WiredEnds.flush``."""
        with self._marks.waiting():
            await self._ends.flush()

    async def emit_control(self, control: Control) -> None:
        """See ``WiredEnds.emit_control``."""
        with self._marks.waiting():
            await self._ends.emit_control(control)


class _ObservedSender:
    """One output of a source, observed."""

    def __init__(self, sender: Any, marks: _Marks) -> None:
        self._sender = sender
        self._marks = marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sender, name)

    def offer(self, items: Sequence[Any]) -> None:
        """See ``Sender.offer``."""
        self._sender.offer(items)
        self._marks.emitted(items)

    async def send(self, item: Any) -> None:
        """See ``Sender.send``."""
        with self._marks.waiting():
            await self._sender.send(item)
        self._marks.emitted((item,))

    async def send_many(self, items: Sequence[Any]) -> None:
        """See ``Sender.send_many``."""
        with self._marks.waiting():
            await self._sender.send_many(items)
        self._marks.emitted(items)
