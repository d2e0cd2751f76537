"""What a source may promise, and when it sends a mark. Pure: the time is passed in.

Terms of the derivations: an item is measured at the *true time* ``T``; its *event time* ``e`` is what the sensor's clock
showed, so that ``|e - T| <= clock_error``; it *arrives* (at the socket, in the archive) at ``A`` with
``T <= A <= T + max_lateness``, on the clock of this machine.

- **Contact** at ``C``: everything that had arrived before ``C`` has been emitted. An item that follows arrived at
  ``A >= C``, so ``e >= T - clock_error >= C - max_lateness - clock_error``.
- **Data**, of a feed that is read in the order of arrival: an item that follows the item ``(e, A)`` arrived at ``A' >= A``,
  and ``A >= T >= e - clock_error``. So ``e' >= A' - max_lateness - clock_error >= e - max_lateness - 2 * clock_error``.
- **Data**, of a feed that is read in the order of event time: no item that follows is earlier than ``e``.

**A clock that is far ahead.** The data rules hold for an item that keeps ``e - clock_error <= A``. An item that breaks this
is known to have a wrong clock, and moves no mark. So no item moves the mark beyond that of a contact at its own arrival. An
item that is behind moves none, either, because the newest counts. A replay has no arrival to compare with: its items count
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from orchestrator_adapter import check_fields
from sda_ops.event_time.watermark import Watermark

_ZERO = timedelta(0)


class ReadOrder(StrEnum):
    """In which order a source emits what it reads; it decides what its data promise."""

    ANY = "any"
    """Data promise nothing: several streams are read in turn, and one of them may be behind. Only contacts do."""

    ARRIVAL = "arrival"
    """One queue, first in, first out, such as a socket of datagrams."""

    EVENT_TIME = "event_time"
    """The source never emits an item that is earlier than the newest one it has emitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseRules:
    """What is known of one feed.

    Attributes:
        max_lateness: From the measurement to the arrival, at most.
        clock_error: The largest difference between the sensors' clocks and this machine's.
        order: In which order the source emits what it reads.
        order_slack: For ``EVENT_TIME``: how far an item may still be earlier than the newest one.
        own_time: The feed is a replay: its time has nothing to do with this machine's clock. A contact promises nothing.
        idle_after: A source that has been out of contact for so long, and has emitted nothing, is idle. ``None``: never.
        start_within: The same from the start to the first contact or item; ``None``: as ``idle_after``.
        interval: A mark is sent so often while it advances.
        least_step: The least time between two marks, so that fast data do not cause a mark for each batch.
        persistent_after: Marks that have gone back for so long are logged.
    """

    max_lateness: timedelta
    clock_error: timedelta = _ZERO
    order: ReadOrder = ReadOrder.ANY
    order_slack: timedelta = _ZERO
    own_time: bool = False
    idle_after: timedelta | None = timedelta(seconds=30)
    start_within: timedelta | None = None
    interval: timedelta = timedelta(seconds=1)
    least_step: timedelta = timedelta(milliseconds=100)
    persistent_after: timedelta = timedelta(seconds=10)
    before_contact_ns: int = field(init=False, repr=False)
    before_data_ns: int = field(init=False, repr=False)
    trusted_ahead_ns: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(
            "PromiseRules",
            ("max_lateness", self.max_lateness, self.max_lateness >= _ZERO, ">= 0"),
            ("clock_error", self.clock_error, self.clock_error >= _ZERO, ">= 0"),
            ("order_slack", self.order_slack, self.order_slack >= _ZERO, ">= 0"),
            ("idle_after", self.idle_after, self.idle_after is None or self.idle_after > _ZERO, "> 0 or None"),
            ("start_within", self.start_within, self.start_within is None or self.start_within > _ZERO, "> 0 or None"),
            ("interval", self.interval, self.interval > _ZERO, "> 0"),
            ("least_step", self.least_step, _ZERO <= self.least_step <= self.interval, ">= 0 and <= interval"),
            ("persistent_after", self.persistent_after, self.persistent_after > _ZERO, "> 0"),
        )
        lateness_ns, error_ns, slack_ns = map(_ns, (self.max_lateness, self.clock_error, self.order_slack))
        in_order = self.order is ReadOrder.EVENT_TIME
        object.__setattr__(self, "before_contact_ns", lateness_ns + error_ns)
        object.__setattr__(self, "before_data_ns", slack_ns if in_order else lateness_ns + 2 * error_ns)
        object.__setattr__(self, "trusted_ahead_ns", -slack_ns if in_order else error_ns)


def _ns(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1) * 1_000


class SourcePromises:
    """The promises of one source. It outlives the instances of the source, so that a restart keeps the mark.

    The promise never goes back. Report what happened by ``contact``, ``emitted``, ``tick`` and ``restarted``, then ask
    ``due`` for the mark to send. Times ``now_s`` are monotonic seconds.

    Attributes:
        source: The name in the marks.
        promised_ns: No later item is earlier than this; ``None`` before the first promise.
        regressions: Contacts that were earlier than one before them. Each is ignored.
        late: Items that were earlier than a mark that had been sent: they broke ``max_lateness`` or ``clock_error``.
    """

    __slots__ = (
        "_contact_ns",
        "_idle",
        "_logged_regression",
        "_missing_s",
        "_regressing_since_s",
        "_reported",
        "_rules",
        "_seen_s",
        "_sent_at_s",
        "_sent_ns",
        "late",
        "promised_ns",
        "regressions",
        "source",
    )

    def __init__(self, rules: PromiseRules, source: str, *, now_s: float) -> None:
        self.source = source
        self.promised_ns: int | None = None
        self.regressions = 0
        self.late = 0
        self._rules = rules
        self._contact_ns: int | None = None
        self._regressing_since_s: float | None = None
        self._logged_regression = False
        self._reported = False
        self._seen_s = now_s
        self._missing_s = 0.0
        self._sent_ns: int | None = None
        self._sent_at_s = float("-inf")
        self._idle = False

    # What happened.

    def contact(self, at_ns: int, *, now_s: float) -> bool:
        """Everything that had arrived before ``at_ns`` (UTC) has been emitted. False if that is earlier than the last one."""
        self._alive(now_s)
        if self._rules.own_time:
            return True
        if self._contact_ns is not None and at_ns < self._contact_ns:
            self.regressions += 1
            if self._regressing_since_s is None:
                self._regressing_since_s = now_s
            return False
        self._contact_ns = at_ns
        self._regressing_since_s = None
        self._logged_regression = False
        self._promise(at_ns - self._rules.before_contact_ns)
        return True

    def emitted(self, events_ns: Sequence[int], arrived_at_ns: Sequence[int], *, now_s: float) -> None:
        """Items, one at least, have been emitted: the event time and the arrival (UTC) of each, in any order."""
        self._alive(now_s)
        rules, newest_ns, sent_ns = self._rules, max(events_ns), self._sent_ns
        if sent_ns is not None and min(events_ns) < sent_ns:
            self.late += sum(event_ns < sent_ns for event_ns in events_ns)
        if rules.order is ReadOrder.ANY:
            return
        ahead_ns = rules.trusted_ahead_ns
        if not rules.own_time and newest_ns - ahead_ns > min(arrived_at_ns):  # one of them may have a wrong clock
            both = zip(events_ns, arrived_at_ns, strict=True)
            trusted = [event_ns for event_ns, arrived_ns in both if event_ns - ahead_ns <= arrived_ns]
            if not trusted:
                return
            newest_ns = max(trusted)
        self._promise(newest_ns - rules.before_data_ns)

    def tick(self, *, now_s: float, waiting: bool = False) -> None:
        """Time has passed. ``waiting``: the source waits for space in its edge; it is behind, and not out of contact.

        One tick counts as one interval at most: after a stall of the event loop the source must have had its turns before
        it can be out of contact.
        """
        if not waiting:
            self._missing_s += max(0.0, min(now_s - self._seen_s, self._rules.interval.total_seconds()))
        self._seen_s = now_s

    def restarted(self, *, now_s: float) -> None:
        """An instance begins. In the time since the last one ended, the source was out of contact."""
        self._missing_s += max(0.0, now_s - self._seen_s)
        self._seen_s = now_s

    # What to do.

    def due(self, *, now_s: float) -> Watermark | None:
        """The mark to send now, if one is due; it counts as sent."""
        if self.is_missing:
            if self._idle:
                return None
            self._idle = True
            self._sent_at_s = now_s
            return Watermark(None, self.source)
        promised_ns = self.promised_ns
        if promised_ns is None:
            return None
        if self._idle:
            self._idle = False  # at once, so that the others wait for this source again
        elif self._sent_ns is not None and (
            promised_ns <= self._sent_ns or now_s - self._sent_at_s < self._rules.least_step.total_seconds()
        ):
            return None
        self._sent_ns, self._sent_at_s = promised_ns, now_s
        return Watermark(promised_ns, self.source)

    @property
    def is_missing(self) -> bool:
        """Whether the source has been out of contact for longer than its bound."""
        rules = self._rules
        bound = rules.idle_after if self._reported or rules.start_within is None else rules.start_within
        return bound is not None and self._missing_s >= bound.total_seconds()

    def persistent_regression(self, *, now_s: float) -> bool:
        """Whether contacts have been going back for so long that it must be logged. True once for each such time."""
        since_s = self._regressing_since_s
        if since_s is None or self._logged_regression:
            return False
        self._logged_regression = now_s - since_s >= self._rules.persistent_after.total_seconds()
        return self._logged_regression

    def _alive(self, now_s: float) -> None:
        self._reported = True
        self._missing_s = 0.0
        self._seen_s = now_s

    def _promise(self, at_ns: int) -> None:
        if self.promised_ns is None or at_ns > self.promised_ns:
            self.promised_ns = at_ns
