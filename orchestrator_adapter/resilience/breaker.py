"""``CircuitBreaker``: stop calling a downstream that fails, and detect by a single request when it answers again.

It counts and decides. It never waits and never calls the downstream. A caller asks for a ``Permit`` before each call and
reports the outcome to the permit; ``retry.with_retry`` does both. Everything runs on one event loop.

::

           failures ≥ threshold of ≥ min_calls in the window
    CLOSED ────────────────────────────────────────────────▶ OPEN ◀─────┐
       ▲                                                      │ cooldown │ the probe fails
       │                    the probe succeeds                ▼          │
       └────────────────────────────────────────────────── HALF_OPEN ────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Literal, Self

from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.primitives.clock import Clock, SystemClock
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.event_log import DecisionLog, call_hook

_MAX_OUTCOMES = 10_000  # kept of a window; older outcomes do not count, even if they are within the window


class BreakerState(IntEnum):
    """Whether calls go through; the values are those of the metric ``circuit_breaker_state``."""

    CLOSED = 0
    """All calls go through."""
    OPEN = 1
    """All calls are rejected, until the cooldown is over."""
    HALF_OPEN = 2
    """One probe goes through and decides; all other calls are rejected."""

    @property
    def label(self) -> Literal["closed", "open", "half-open"]:
        """For people and logs."""
        return _LABELS[self]


_LABELS: Mapping[BreakerState, Literal["closed", "open", "half-open"]] = {
    BreakerState.CLOSED: "closed",
    BreakerState.OPEN: "open",
    BreakerState.HALF_OPEN: "half-open",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long.

    Attributes:
        threshold: The share of failures among the outcomes in the window at which it opens, in (0, 1].
        window: The time for which outcomes count. An outcome of exactly this age does not count.
        cooldown: The time from opening to the first probe.
        min_calls: It does not open on fewer outcomes in the window.
        max_probe_wait: A probe without a report for this long is given up at the next request, which becomes the new probe;
            a later report of the old one is ignored. ``None``: as long as the cooldown.
    """

    threshold: float = 0.5
    window: timedelta = timedelta(seconds=30)
    cooldown: timedelta = timedelta(seconds=30)
    min_calls: int = 5
    max_probe_wait: timedelta | None = None

    def __post_init__(self) -> None:
        zero = timedelta(0)
        check_fields(
            "BreakerPolicy",
            ("threshold", self.threshold, 0 < self.threshold <= 1, "> 0 and <= 1"),
            ("window", self.window, self.window > zero, "> 0"),
            ("cooldown", self.cooldown, self.cooldown > zero, "> 0"),
            ("min_calls", self.min_calls, 1 <= self.min_calls <= _MAX_OUTCOMES, f"in [1, {_MAX_OUTCOMES}]"),
            (
                "max_probe_wait",
                self.max_probe_wait,
                self.max_probe_wait is None or self.max_probe_wait > zero,
                "> 0, or None",
            ),
        )

    def trips(self, *, calls: int, failures: int) -> bool:
        """Whether this number of failures among this number of outcomes in the window opens it."""
        return calls >= self.min_calls and failures / calls >= self.threshold


@dataclass(frozen=True, slots=True)
class StateChange:
    """For listeners: ``breaker`` changed its state, or was forced or released in its state."""

    breaker: str
    was: BreakerState
    state: BreakerState
    forced: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """The answer instead of a permit: why, and when to ask again.

    Attributes:
        breaker: The breaker's name.
        state: Open or half-open.
        ask_again_in: No permit is available sooner, unless a current probe reports before that. For a breaker that is
            forced open the time is unknown; this is then its cooldown.
    """

    breaker: str
    state: BreakerState
    ask_again_in: timedelta

    def __str__(self) -> str:
        return f"breaker {self.breaker!r} is {self.state.label}: ask again in {self.ask_again_in.total_seconds():g} s"


@dataclass(frozen=True, slots=True)
class BreakerStatistics:
    """One breaker at one moment.

    Attributes:
        name: Its name.
        state: Its state.
        forced: Whether a person forced that state.
        calls: The outcomes that count now.
        failures: The failures among them.
        rejections: The calls rejected so far.
        opened: How often it opened or was forced open.
        open_s: The total time that it was open, without the time half-open, seconds.
        probe_in_s: Until its next request is a probe, seconds; ``None`` unless it is open and not forced.
    """

    name: str
    state: BreakerState
    forced: bool
    calls: int
    failures: int
    rejections: int
    opened: int
    open_s: float
    probe_in_s: float | None = None


class Permit:
    """The permission for one call. Only the first report counts.

    A context manager: at its end without a report (the caller was cancelled, or has a bug) the permit is released, and no
    outcome is counted.
    """

    __slots__ = ("_breaker", "_epoch", "_reported")

    def __init__(self, breaker: CircuitBreaker, epoch: int) -> None:
        self._breaker = breaker
        self._epoch = epoch
        self._reported = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def succeeded(self) -> None:
        """The downstream answered, also negatively: a 404 is a success of the downstream."""
        self._report(succeeded=True)

    def failed(self) -> None:
        """The downstream did not answer, or failed."""
        self._report(succeeded=False)

    def release(self) -> None:
        """There is no outcome. If this was the probe, the next request becomes the probe."""
        self._report(succeeded=None)

    def _report(self, *, succeeded: bool | None) -> None:
        if not self._reported:
            self._reported = True
            self._breaker.report(self, self._epoch, succeeded=succeeded)


class CircuitBreaker:
    """The circuit breaker of one downstream, shared by all its callers.

    Attributes:
        name: The downstream's name, for people and metrics.
        policy: When it opens, and for how long.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: float = 0.5,
        window: timedelta = timedelta(seconds=30),
        cooldown: timedelta = timedelta(seconds=30),
        min_calls: int = 5,
        max_probe_wait: timedelta | None = None,
        clock: Clock | None = None,
    ) -> None:
        """The fields of a ``BreakerPolicy``, which raises ``ValueError`` if one is out of bounds. By default the machine's clock."""
        self.name = name
        self.policy = BreakerPolicy(
            threshold=threshold, window=window, cooldown=cooldown, min_calls=min_calls, max_probe_wait=max_probe_wait
        )
        self._clock: Clock = SystemClock() if clock is None else clock
        self._state = BreakerState.CLOSED
        self._forced = False
        self._epoch = 0  # counts state changes: a report is ignored if the permit is of an earlier epoch
        self._outcomes: deque[tuple[float, bool]] = deque()  # time, and whether it succeeded
        self._failures = 0
        self._opened_at = 0.0
        self._probe: Permit | None = None
        self._probe_since = 0.0
        self._rejections = 0
        self._opened = 0
        self._open_s = 0.0
        self._listeners: list[Callable[[StateChange], object]] = []

    @classmethod
    def with_policy(cls, name: str, policy: BreakerPolicy, *, clock: Clock | None = None) -> Self:
        """From a policy as a whole."""
        return cls(name, clock=clock, **asdict(policy))

    @property
    def state(self) -> BreakerState:
        """Its state. It becomes half-open at the first request after the cooldown."""
        return self._state

    def on_change(self, listener: Callable[[StateChange], object]) -> None:
        """Call ``listener`` at every state change from now on. What it raises is logged and changes nothing."""
        self._listeners.append(listener)

    def ask(self) -> Permit | Rejection:
        """The permission for one call now, or a rejection. Never waits."""
        now = self._clock.monotonic()
        cooldown_s = self.policy.cooldown.total_seconds()
        if self._state is BreakerState.CLOSED:
            return Permit(self, self._epoch)
        if self._forced:
            return self._reject(self.policy.cooldown)
        if self._state is BreakerState.OPEN:
            if now < (until := self._opened_at + cooldown_s):
                return self._reject(_wait(now, until))
            self._change(BreakerState.HALF_OPEN, f"{cooldown_s:g} s of cooldown are over: one probe decides")
            return self.ask()  # again from the start: a listener may have forced it
        longest_s = cooldown_s if (wait := self.policy.max_probe_wait) is None else wait.total_seconds()
        if self._probe is not None and now < (until := self._probe_since + longest_s):
            return self._reject(_wait(now, until))
        self._probe = Permit(self, self._epoch)
        self._probe_since = now
        return self._probe

    def report(self, permit: Permit, epoch: int, *, succeeded: bool | None) -> None:
        """For ``Permit``: the outcome of the call; ``None`` for no outcome."""
        if permit is self._probe:
            self._probe = None
            if succeeded is True:
                self._change(BreakerState.CLOSED, "the probe succeeded")
            elif succeeded is False:
                self._change(BreakerState.OPEN, "the probe failed")
        elif succeeded is not None and epoch == self._epoch and self._state is BreakerState.CLOSED and not self._forced:
            self._count(succeeded=succeeded)

    # By hand.

    def force_open(self, reason: str = "by hand") -> None:
        """Reject every call until ``release`` or ``force_closed``."""
        self._change(BreakerState.OPEN, reason, forced=True)

    def force_closed(self, reason: str = "by hand") -> None:
        """Admit every call, whether or not it fails, until ``release`` or ``force_open``."""
        self._change(BreakerState.CLOSED, reason, forced=True)

    def release(self, reason: str = "by hand") -> None:
        """End the forcing. A breaker that was forced open becomes half-open: a probe decides. Does nothing if not forced."""
        if self._forced:
            was_open = self._state is BreakerState.OPEN
            self._change(BreakerState.HALF_OPEN if was_open else BreakerState.CLOSED, reason)

    def statistics(self) -> BreakerStatistics:
        """Its figures now."""
        now = self._clock.monotonic()
        self._drop_old(now)
        open_s = self._open_s + (now - self._opened_at if self._state is BreakerState.OPEN else 0.0)
        return BreakerStatistics(
            self.name,
            self._state,
            self._forced,
            len(self._outcomes),
            self._failures,
            self._rejections,
            self._opened,
            open_s,
            self._probe_in_s(now),
        )

    def _probe_in_s(self, now: float) -> float | None:
        if self._state is not BreakerState.OPEN or self._forced:
            return None
        return max(0.0, self._opened_at + self.policy.cooldown.total_seconds() - now)

    def _count(self, *, succeeded: bool) -> None:
        now = self._clock.monotonic()
        self._outcomes.append((now, succeeded))
        self._failures += not succeeded
        self._drop_old(now)
        calls = len(self._outcomes)
        if self.policy.trips(calls=calls, failures=self._failures):
            window_s = self.policy.window.total_seconds()
            self._change(BreakerState.OPEN, f"{self._failures} of {calls} calls in {window_s:g} s failed")

    def _drop_old(self, now: float) -> None:
        window_s = self.policy.window.total_seconds()
        outcomes = self._outcomes
        while outcomes and (outcomes[0][0] + window_s <= now or len(outcomes) > _MAX_OUTCOMES):
            _, succeeded = outcomes.popleft()
            self._failures -= not succeeded

    def _reject(self, ask_again_in: timedelta) -> Rejection:
        self._rejections += 1
        return Rejection(self.name, self._state, ask_again_in)

    def _change(self, state: BreakerState, reason: str, *, forced: bool = False) -> None:
        now = self._clock.monotonic()
        was, was_forced = self._state, self._forced
        if was is BreakerState.OPEN:
            self._open_s += now - self._opened_at
        if state is BreakerState.OPEN:
            self._opened_at = now
            self._opened += was is not BreakerState.OPEN
        self._state, self._forced = state, forced
        self._epoch += 1
        self._outcomes.clear()
        self._failures = 0
        self._probe = None
        if (state, forced) != (was, was_forced):
            change = StateChange(self.name, was, state, forced, reason)
            for listener in tuple(self._listeners):
                call_hook(listener, change)


def _wait(now: float, until: float) -> timedelta:
    """The smallest number of whole microseconds after which a clock at ``now`` has reached ``until``, rounding included."""
    wait = timedelta(seconds=until - now)
    return wait if now + wait.total_seconds() >= until else wait + timedelta.resolution


class Breakers:
    """The circuit breakers of one graph, by name: operators that name the same downstream share one.

    Each state change is a decision, and is logged as one. While a downstream stays down, each probe changes the state twice:
    then only those of the first, second, fourth, eighth … probe are logged.
    """

    def __init__(self, log: DecisionLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._by_name: dict[str, CircuitBreaker] = {}
        self._probes: dict[str, int] = {}  # since it was closed

    def get(self, name: str, policy: BreakerPolicy) -> CircuitBreaker:
        """The breaker of that name, made at the first call. Raises ``ValueError`` if it was made with another policy."""
        breaker = self._by_name.get(name)
        if breaker is None:
            breaker = self._by_name[name] = CircuitBreaker.with_policy(name, policy, clock=self._clock)
            breaker.on_change(self._changed)
        elif breaker.policy != policy:
            raise ValueError(f"breaker {name!r}: expected the policy it was made with, {breaker.policy}, got {policy}")
        return breaker

    @property
    def by_name(self) -> Mapping[str, CircuitBreaker]:
        """Every breaker."""
        return self._by_name

    def statistics(self) -> Mapping[str, BreakerStatistics]:
        """The figures of each breaker now."""
        return {name: breaker.statistics() for name, breaker in self._by_name.items()}

    def _changed(self, change: StateChange) -> None:
        if change.state is BreakerState.CLOSED:
            self._probes.pop(change.breaker, None)
        elif change.state is BreakerState.HALF_OPEN:
            self._probes[change.breaker] = self._probes.get(change.breaker, 0) + 1
        probes = self._probes.get(change.breaker, 0)
        if probes & (probes - 1) and not change.forced:
            return
        self._log(
            Decision.CIRCUIT_BREAKER,
            breaker=change.breaker,
            was=change.was.label,
            state=change.state.label,
            forced=change.forced,
            reason=change.reason,
        )
