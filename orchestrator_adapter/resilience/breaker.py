"""``CircuitBreaker``: stop asking a downstream that fails, and find out with a single request when it answers again.

It counts and decides; it never waits and never calls the downstream itself. Whoever wants to call asks for a ``Permit`` and
reports on it what came of the call; ``retry.with_retry`` does both. All of it happens on one event loop.

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
from typing import Self

from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.primitives.clock import Clock, SystemClock
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.event_log import DecisionLog, call_hook

_MAX_OUTCOMES = 10_000  # remembered of a window; older ones no longer count, however busy the downstream is


class BreakerState(IntEnum):
    """Whether calls go through; the values are those of the metric ``circuit_breaker_state``."""

    CLOSED = 0
    """They do."""
    OPEN = 1
    """They are refused, until the cooldown is over."""
    HALF_OPEN = 2
    """One probe goes through and decides; all other calls are refused."""

    @property
    def label(self) -> str:
        """For people and logs: ``closed``, ``open``, ``half-open``."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long.

    Attributes:
        threshold: Share of failures among the outcomes in the window from which it opens, in (0, 1].
        window: How far back outcomes count. One exactly so old no longer does.
        cooldown: From opening to the first probe.
        min_calls: It does not open on fewer outcomes in the window.
        max_probe_wait: A probe that has not reported by then is written off as soon as somebody else asks, who gets one
            instead; what it reports after that is ignored. ``None``: as long as the cooldown.
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
        """Whether so many failures among so many outcomes in the window open it."""
        return calls >= self.min_calls and failures / calls >= self.threshold


@dataclass(frozen=True, slots=True)
class StateChange:
    """Told to listeners: ``breaker`` went from one state to another, or was forced or released in the one it was in."""

    breaker: str
    was: BreakerState
    state: BreakerState
    forced: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Instead of a permit: why not, and when to ask again.

    Attributes:
        breaker: Which one refuses.
        state: Open or half-open.
        ask_again_in: No permit can be had sooner, unless a probe under way reports before that. Of a breaker that is
            forced open nobody knows: its cooldown.
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
        name: Which.
        state: Its state.
        forced: Whether a person holds it there.
        calls: Outcomes that count now.
        failures: The failures among them.
        rejections: Calls ever refused.
        opened: How often it has opened, or was forced open.
        open_s: Seconds it has been open in all, the time half-open not included.
    """

    name: str
    state: BreakerState
    forced: bool
    calls: int
    failures: int
    rejections: int
    opened: int
    open_s: float


class Permit:
    """Leave to make one call. Report on it once: the first report counts.

    A context manager: left without a report (the caller was cancelled, or had a bug), it is given back, and the
    downstream is none the wiser for it.
    """

    __slots__ = ("_breaker", "_reported", "_term")

    def __init__(self, breaker: CircuitBreaker, term: int) -> None:
        self._breaker = breaker
        self._term = term
        self._reported = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def succeeded(self) -> None:
        """The downstream answered, be it with "no": a 404 is a success of the downstream."""
        self._report(succeeded=True)

    def failed(self) -> None:
        """It did not answer, or could not do what it should."""
        self._report(succeeded=False)

    def release(self) -> None:
        """Nothing can be said of the downstream. The probe's permit may be had by the next who asks."""
        self._report(succeeded=None)

    def _report(self, *, succeeded: bool | None) -> None:
        if not self._reported:
            self._reported = True
            self._breaker.report(self, self._term, succeeded=succeeded)


class CircuitBreaker:
    """One downstream's breaker, shared by all who call it.

    Attributes:
        name: The downstream, for people and metrics.
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
        """The fields of a ``BreakerPolicy``, which raises ``ValueError`` for what is out of bounds; time is the machine's."""
        self.name = name
        self.policy = BreakerPolicy(
            threshold=threshold, window=window, cooldown=cooldown, min_calls=min_calls, max_probe_wait=max_probe_wait
        )
        self._clock: Clock = SystemClock() if clock is None else clock
        self._state = BreakerState.CLOSED
        self._forced = False
        self._term = 0  # of office of the present state: reports of permits from an earlier one are ignored
        self._outcomes: deque[tuple[float, bool]] = deque()  # when, and whether it succeeded
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
        """Its state. It goes half-open when somebody asks after the cooldown, not before."""
        return self._state

    def on_change(self, listener: Callable[[StateChange], object]) -> None:
        """Call ``listener`` at every change from now on. What it raises is logged and changes nothing."""
        self._listeners.append(listener)

    def ask(self) -> Permit | Rejection:
        """Leave to make one call now, or a refusal. Never waits."""
        now = self._clock.monotonic()
        cooldown_s = self.policy.cooldown.total_seconds()
        if self._state is BreakerState.CLOSED:
            return Permit(self, self._term)
        if self._forced:
            return self._reject(self.policy.cooldown)
        if self._state is BreakerState.OPEN:
            if now < (until := self._opened_at + cooldown_s):
                return self._reject(_wait(now, until))
            self._change(BreakerState.HALF_OPEN, f"{cooldown_s:g} s of cooldown are over: one probe decides")
            return self.ask()  # afresh: a listener may have forced it meanwhile
        longest_s = cooldown_s if (wait := self.policy.max_probe_wait) is None else wait.total_seconds()
        if self._probe is not None and now < (until := self._probe_since + longest_s):
            return self._reject(_wait(now, until))
        self._probe = Permit(self, self._term)
        self._probe_since = now
        return self._probe

    def report(self, permit: Permit, term: int, *, succeeded: bool | None) -> None:
        """For ``Permit``: what came of the call; ``None`` if there is nothing to tell."""
        if permit is self._probe:
            self._probe = None
            if succeeded is True:
                self._change(BreakerState.CLOSED, "the probe succeeded")
            elif succeeded is False:
                self._change(BreakerState.OPEN, "the probe failed")
        elif succeeded is not None and term == self._term and self._state is BreakerState.CLOSED and not self._forced:
            self._count(succeeded=succeeded)

    # By hand.

    def force_open(self, reason: str = "by hand") -> None:
        """Refuse every call until ``release`` or ``force_closed``."""
        self._change(BreakerState.OPEN, reason, forced=True)

    def force_closed(self, reason: str = "by hand") -> None:
        """Let every call through, whatever comes of it, until ``release`` or ``force_open``."""
        self._change(BreakerState.CLOSED, reason, forced=True)

    def release(self, reason: str = "by hand") -> None:
        """Leave it to itself again. One that was forced open goes half-open: a probe decides. Harmless if not forced."""
        if self._forced:
            was_open = self._state is BreakerState.OPEN
            self._change(BreakerState.HALF_OPEN if was_open else BreakerState.CLOSED, reason)

    def statistics(self) -> BreakerStatistics:
        """As of now."""
        now = self._clock.monotonic()
        self._forget_old(now)
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
        )

    def _count(self, *, succeeded: bool) -> None:
        now = self._clock.monotonic()
        self._outcomes.append((now, succeeded))
        self._failures += not succeeded
        self._forget_old(now)
        calls = len(self._outcomes)
        if self.policy.trips(calls=calls, failures=self._failures):
            window_s = self.policy.window.total_seconds()
            self._change(BreakerState.OPEN, f"{self._failures} of {calls} calls in {window_s:g} s failed")

    def _forget_old(self, now: float) -> None:
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
        self._term += 1
        self._outcomes.clear()
        self._failures = 0
        self._probe = None
        if (state, forced) != (was, was_forced):
            change = StateChange(self.name, was, state, forced, reason)
            for listener in tuple(self._listeners):
                call_hook(listener, change)


def _wait(now: float, until: float) -> timedelta:
    """The least whole number of microseconds from ``now`` that does not end before ``until``, rounded as clocks round."""
    wait = timedelta(seconds=until - now)
    return wait if now + wait.total_seconds() >= until else wait + timedelta.resolution


class Breakers:
    """Every breaker of one graph, by name: operators that name the same downstream share one.

    Each change of state is a decision, and logged as one.
    """

    def __init__(self, log: DecisionLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._by_name: dict[str, CircuitBreaker] = {}

    def get(self, name: str, policy: BreakerPolicy) -> CircuitBreaker:
        """The one of that name, made at the first call. Raises ``ValueError`` if it was made with another policy."""
        breaker = self._by_name.get(name)
        if breaker is None:
            breaker = self._by_name[name] = CircuitBreaker.with_policy(name, policy, clock=self._clock)
            breaker.on_change(self._changed)
        elif breaker.policy != policy:
            raise ValueError(f"breaker {name!r}: expected the policy it was made with, {breaker.policy}, got {policy}")
        return breaker

    def statistics(self) -> Mapping[str, BreakerStatistics]:
        """Of each, as of now."""
        return {name: breaker.statistics() for name, breaker in self._by_name.items()}

    def _changed(self, change: StateChange) -> None:
        self._log(
            Decision.CIRCUIT_BREAKER,
            breaker=change.breaker,
            was=change.was.label,
            state=change.state.label,
            forced=change.forced,
            reason=change.reason,
        )
