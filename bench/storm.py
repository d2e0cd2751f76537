"""The retry storm in virtual time: 100 pollers, one archive with a rate limit, an outage of 30 s, and six ways to retry.

It simulates an incident: an optical poller retried at a fixed delay, and a partner's outage of 30 s became one of 90
minutes, because every instance returned at the same instant and kept the recovering server down. The retries are the
product's code (``with_retry``, ``RetryPolicy``, ``CircuitBreaker``, ``RetryBudget``); the rest is a model:

- **The archive** serves 50 requests/s: a bucket of tokens, 50 more each second, 25 at most. A request without a token
  brings it down: every pending request is reset, and it rejects all requests for 5 s of restart. A rejection takes a
  token, too, and one without a token makes the restart begin again. During the outage it cannot be reached: requests fail
  and take no token. After the outage it is up and its bucket is full.
- **A poller** has its own breaker and its own budget, as a separate process has. The archive answers at once if there is
  something new for this poller, and otherwise keeps the request until there is (a long poll), 2 to 10 s after its last
  answer. The poller asks again 0.2 s after an answer, and 0.2 s after it has given up. A healthy fleet sends 16 requests a
  second, a third of what the archive can serve. Nearly all of them are pending when the outage begins: a hundred pollers
  fail in the same instant.
- **The network** takes 5 to 25 ms each way, at random; a poller's timers are up to 2 ms late. The pollers do not differ in
  anything else.

The fleet has *recovered* when the archive is no longer overloaded and every poller has had an answer since the last
overload. A run ends when that has lasted for 2 minutes, or at the horizon.
Equal seeds give equal runs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean, median

from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.primitives.errors import RetriesExhausted
from orchestrator_adapter.resilience.breaker import BreakerPolicy, CircuitBreaker
from orchestrator_adapter.resilience.retry import Retry, RetryDisposition, RetryOk, RetryPolicy, with_retry
from orchestrator_adapter.resilience.retry_budget import RetryBudget
from orchestrator_adapter.testing import LoopClock, run_schedule

POLLERS = 100
POLL_INTERVAL_S = 0.2
RATE_PER_S = 50.0
NETWORK_S = (0.005, 0.025)
LATEST_TIMER_S = 0.002
OUTAGE_AT_S = 60.0
SETTLED_S = 120.0
BIN_S = 0.1  # requests are counted by tenths of a second
DRAWN_S, TALLEST = 120.0, 125  # the picture's edges: seconds after the outage, requests in a second


@dataclass(frozen=True, slots=True)
class World:
    """The model apart from the pollers; see the module.

    Attributes:
        outage_s: How long the archive is out of reach.
        burst: Tokens that its bucket holds.
        restart_s: How long it is down after a collapse.
        begins_again: Whether requests during a restart take tokens, and make it begin again if the bucket is empty.
        next_after_s: Least and greatest time from one answer until the same poller has new data.
    """

    outage_s: float = 30.0
    burst: float = 25.0
    restart_s: float = 5.0
    begins_again: bool = True
    next_after_s: tuple[float, float] = (2.0, 10.0)

    @property
    def outage_ends_s(self) -> float:
        return OUTAGE_AT_S + self.outage_s


THE_WORLD = World()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.storm", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="the first; its run is the one in the picture (default: 0)")
    parser.add_argument("--seeds", type=int, default=20, help="how many, one after the other (default: 20)")
    parser.add_argument(
        "--horizon-s", type=float, default=5_400.0, help="watch so long after the outage at most (default: 5400)"
    )
    parser.add_argument("--outage-s", type=float, default=30.0, help="how long the outage is (default: 30)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the first seed's runs: .svg or .png")
    parser.add_argument("--variants", action="store_true", help="other delays, limits and breakers instead of the six")
    args = parser.parse_args()
    chosen = VARIANTS if args.variants else STRATEGIES
    runs: dict[str, list[Storm]] = {}
    print(
        f"outage of {args.outage_s:g} s; {args.seeds} seeds from {args.seed}; watched for {args.horizon_s:g} s after the outage at most\n"
    )
    print(_HEADING)
    with ProcessPoolExecutor() as pool:
        for name in chosen:
            run = partial(_simulate_named, name, args.horizon_s, World(outage_s=args.outage_s))
            runs[name] = []
            for storm in pool.map(run, range(args.seed, args.seed + args.seeds)):
                runs[name].append(storm)
                print(f"\r{name}: seed {len(runs[name])} of {args.seeds}\033[K", end="\r", file=sys.stderr, flush=True)
            print(_row(name, runs[name], args.horizon_s), flush=True)
    if args.picture is not None:
        draw({name: storms[0] for name, storms in runs.items()}, args.picture)


# Ways to retry.


@dataclass(frozen=True, slots=True)
class FixedDelay(RetryPolicy):
    """Always ``initial``."""

    def next_delay_s(self, previous_s: float, rng: random.Random) -> float:
        return self.initial.total_seconds()


@dataclass(frozen=True, slots=True)
class PlainExponential(RetryPolicy):
    """Twice the previous delay, up to the cap; not random."""

    def next_delay_s(self, previous_s: float, rng: random.Random) -> float:
        return min(self.cap.total_seconds(), 2 * previous_s)


@dataclass(frozen=True, slots=True)
class FullJitter(RetryPolicy):
    """Between zero and the delay of plain exponential backoff. It counts the failures, so each call needs its own."""

    failures: count[int] = field(default_factory=lambda: count(1))

    def next_delay_s(self, previous_s: float, rng: random.Random) -> float:
        longest_s = self.initial.total_seconds() * 2.0 ** min(next(self.failures), 100)
        return rng.uniform(0.0, min(self.cap.total_seconds(), longest_s))


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to retry: ``policy`` makes a policy for each poll, ``budget`` a budget for each poller."""

    policy: Callable[[], RetryPolicy]
    breaker: BreakerPolicy | None = None
    budget: Callable[[], RetryBudget] | None = None


INITIAL, CAP = timedelta(milliseconds=200), timedelta(seconds=15)  # SPEC section 7's example for such an archive


def fixed(delay_s: float) -> Callable[[], RetryPolicy]:
    """Always the same delay, without a limit."""
    delay = timedelta(seconds=delay_s)
    return partial(FixedDelay, delay, delay, None)


decorrelated = partial(RetryPolicy, INITIAL, CAP, None)
plain, full = partial(PlainExponential, INITIAL, CAP, None), partial(FullJitter, INITIAL, CAP, None)
eight = partial(RetryPolicy, INITIAL, CAP, 8)
drawn = partial(RetryPolicy, INITIAL, CAP, None, "draw")
SHORT = BreakerPolicy(window=timedelta(seconds=15), cooldown=timedelta(seconds=15), min_calls=3)  # the optical source's

STRATEGIES = {
    "fixed delay, 1 s": Strategy(fixed(1.0)),
    "plain exponential": Strategy(plain),
    "full jitter": Strategy(full),
    "decorrelated jitter": Strategy(decorrelated),
    "decorrelated + breaker": Strategy(decorrelated, SHORT),
    "decorrelated + breaker + budget": Strategy(decorrelated, SHORT, RetryBudget),
}

VARIANTS = {
    "fixed delay, 2 s": Strategy(fixed(2.0)),
    "fixed delay, 5 s": Strategy(fixed(5.0)),
    "fixed delay, 15 s": Strategy(fixed(15.0)),
    "fixed delay, 30 s": Strategy(fixed(30.0)),
    "fixed delay, 1 s + breaker": Strategy(fixed(1.0), SHORT),
    "plain exponential + breaker": Strategy(plain, SHORT),
    "full jitter + breaker": Strategy(full, SHORT),
    "decorrelated, 8 attempts": Strategy(eight),
    "decorrelated, 8 attempts + breaker": Strategy(eight, SHORT),
    'decorrelated, clamp="draw"': Strategy(drawn),
    'decorrelated, clamp="draw" + breaker': Strategy(drawn, SHORT),
    "decorrelated + breaker of 30 s (default)": Strategy(decorrelated, BreakerPolicy()),
    "decorrelated + budget, no breaker": Strategy(decorrelated, None, RetryBudget),
}


# The world.


class LateClock(LoopClock):
    """A machine's timers: never early, a little late. Exact timers would expire at the very end of an equal cooldown."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return super().call_later(delay_s + self._rng.uniform(0.0, LATEST_TIMER_S), callback)


class Archive:
    """See the module.

    Attributes:
        down: Start and end of each restart, seconds.
        overloaded_at: When a request last had no token.
    """

    def __init__(self, clock: LoopClock, world: World) -> None:
        self.down: list[tuple[float, float]] = []
        self.overloaded_at = 0.0
        self._clock = clock
        self._world = world
        self._tokens = world.burst
        self._filled_at = 0.0
        self._held: dict[asyncio.Future[bool], None] = {}
        if world.outage_s:
            clock.call_later(OUTAGE_AT_S, self._reset_held)

    async def serve(self, next_at: float) -> bool:
        """Handle a request: wait until there is new data for it. Returns whether it was answered with data."""
        now = self._clock.monotonic()
        if OUTAGE_AT_S <= now < self._world.outage_ends_s:
            return False
        is_up = not self.down or now >= self.down[-1][1]
        if not is_up and not self._world.begins_again:
            return False
        self._tokens = min(self._world.burst, self._tokens + (now - self._filled_at) * RATE_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            self._break_down(now, since=now if is_up else self.down.pop()[0])
            return False
        self._tokens -= 1
        return is_up and (now >= next_at or await self._hold(next_at - now))

    def _break_down(self, now: float, *, since: float) -> None:
        self.overloaded_at = now
        self.down.append((since, now + self._world.restart_s))
        self._reset_held()

    async def _hold(self, wait_s: float) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(wait_s, partial(_settle, answer, served=True))
        self._held[answer] = None
        try:
            return await answer
        finally:
            timer.cancel()
            del self._held[answer]

    def _reset_held(self) -> None:
        for answer in self._held:
            _settle(answer, served=False)


def _settle(answer: asyncio.Future[bool], *, served: bool) -> None:
    if not answer.done():
        answer.set_result(served)


class Unavailable(Exception):
    """The archive did not answer."""


class Poller:
    """One process of the fleet.

    Attributes:
        sent: When it sent its requests, seconds.
        answered: When it had its answers.
        failing: From the first failure after an answer to the next answer; the last interval may have no end yet.
    """

    def __init__(self, strategy: Strategy, world: World, archive: Archive, rng: random.Random) -> None:
        self.sent: list[float] = []
        self.answered: list[float] = []
        self.failing: list[tuple[float, float | None]] = []
        self._world = world
        self._archive = archive
        self._rng = rng
        self._clock = clock = LateClock(rng)
        self._make_policy = strategy.policy
        self._breaker = (
            None if (p := strategy.breaker) is None else CircuitBreaker.with_policy("archive", p, clock=clock)
        )
        self._budget = strategy.budget() if strategy.budget is not None else None
        self._next_at = 0.0

    async def run(self) -> None:
        clock, rng = self._clock, self._rng
        await sleep(clock, rng.uniform(0.0, self._world.next_after_s[1]))
        while True:
            policy = self._make_policy()
            with suppress(RetriesExhausted):  # this poll has failed; there is always a next one
                await with_retry(policy, self._poll, breaker=self._breaker, budget=self._budget, clock=clock, rng=rng)
            await sleep(clock, POLL_INTERVAL_S)

    async def _poll(self) -> RetryDisposition[None]:
        clock, rng = self._clock, self._rng
        self.sent.append(clock.monotonic())
        await sleep(clock, rng.uniform(*NETWORK_S))
        served = await self._archive.serve(self._next_at)
        if served:
            self._next_at = clock.monotonic() + rng.uniform(*self._world.next_after_s)
        await sleep(clock, rng.uniform(*NETWORK_S))
        now = clock.monotonic()
        is_failing = bool(self.failing) and self.failing[-1][1] is None
        if not served:
            if not is_failing:
                self.failing.append((now, None))
            return Retry(Unavailable())
        if is_failing:
            self.failing[-1] = (self.failing[-1][0], now)
        self.answered.append(now)
        return RetryOk(None)

    def first_answer(self, since: float) -> float | None:
        """The first answer from then on."""
        index = bisect_left(self.answered, since)
        return self.answered[index] if index < len(self.answered) else None

    def failing_s(self, since: float, until: float) -> float:
        """How much of that time it failed."""
        return sum(max(0.0, (until if end is None else end) - max(since, began)) for began, end in self.failing)


# A run.


@dataclass(frozen=True, slots=True)
class Storm:
    """The result of one run. Seconds and counts start at the end of the outage.

    Attributes:
        seed: The run's.
        outage_s: How long the outage was.
        watched_s: How long the run was watched after it.
        recovery_s: When the fleet had recovered; ``None`` if it had not.
        down: Start and end of the archive's restarts, before the outage too.
        sent: Requests in each tenth of a second, from the beginning of the run.
        sent_in_outage: Requests during the outage.
        sent_until_recovery: Requests from the outage's start until recovery, or until the end of the run without one.
        peak: The most requests in a tenth of a second.
        idle_s: How long a poller failed, the mean of all.
    """

    seed: int
    outage_s: float
    watched_s: float
    recovery_s: float | None
    down: tuple[tuple[float, float], ...]
    sent: tuple[int, ...]
    sent_in_outage: int
    sent_until_recovery: int
    peak: int
    idle_s: float

    @property
    def collapses(self) -> int:
        """How often the archive went down."""
        return sum(began >= 0 for began, _ in self.down)

    @property
    def down_s(self) -> float:
        """How long it was restarting."""
        return sum(min(end, self.watched_s) - began for began, end in self.down if began >= 0)


def simulate(strategy: Strategy, seed: int, *, horizon_s: float, world: World = THE_WORLD) -> Storm:
    """Run a fleet until it has recovered, or for ``horizon_s`` after the outage."""
    over_at = world.outage_ends_s

    async def run() -> Storm:
        clock = LoopClock()
        archive = Archive(clock, world)
        pollers = [Poller(strategy, world, archive, random.Random(f"{seed}/{n}")) for n in range(POLLERS)]
        recovered_at = None
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(poller.run()) for poller in pollers]
            await sleep(clock, over_at)
            while recovered_at is None and (left_s := over_at + horizon_s - clock.monotonic()) > 0:
                await sleep(clock, min(left_s, 10.0))
                quiet_since = max(over_at, archive.overloaded_at)
                if clock.monotonic() >= quiet_since + SETTLED_S:
                    recovered_at = _all_answered_at(pollers, quiet_since)
            for task in tasks:
                task.cancel()
        ended_at = clock.monotonic()
        until = ended_at if recovered_at is None else recovered_at
        sent = sorted(at for poller in pollers for at in poller.sent)
        bins = Counter(int(at / BIN_S) for at in sent)
        return Storm(
            seed=seed,
            outage_s=world.outage_s,
            watched_s=ended_at - over_at,
            recovery_s=None if recovered_at is None else recovered_at - over_at,
            down=tuple((began - over_at, end - over_at) for began, end in archive.down),
            sent=tuple(bins[number] for number in range(max(bins) + 1)),
            sent_in_outage=sum(OUTAGE_AT_S <= at < over_at for at in sent),
            sent_until_recovery=sum(OUTAGE_AT_S <= at <= until for at in sent),
            peak=max(requests for number, requests in bins.items() if number >= int(over_at / BIN_S)),
            idle_s=fmean(poller.failing_s(over_at, ended_at) for poller in pollers),
        )

    limit = timedelta(seconds=over_at + horizon_s + 60)
    return run_schedule(
        {}, run, limit=limit, max_callbacks=1_000_000_000
    )  # first in, first out: chance is in the world


def _all_answered_at(pollers: Iterable[Poller], since: float) -> float | None:
    """By when every poller has had an answer, counted from ``since``."""
    firsts = [poller.first_answer(since) for poller in pollers]
    answered = [at for at in firsts if at is not None]
    return max(answered) if len(answered) == len(firsts) else None


def _simulate_named(name: str, horizon_s: float, world: World, seed: int) -> Storm:
    return simulate((STRATEGIES | VARIANTS)[name], seed, horizon_s=horizon_s, world=world)


_HEADING = """\
| | recovered after, s: median (worst) | collapses | down, s | requests in the outage | … until recovery | most in 100 ms | a poller idle, s |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def _row(name: str, storms: Sequence[Storm], horizon_s: float) -> str:
    """One line of the table: medians, and the worst of a few."""
    times = sorted(storm.recovery_s for storm in storms if storm.recovery_s is not None)
    never = len(storms) - len(times)
    recovered = f"{median(times):.1f} ({times[-1]:.1f})" if times else ""
    if never:
        rest = f"; {len(times)} of {len(storms)} did: {recovered}" if times else ""
        recovered = f"**not within {horizon_s / 60:g} min**{rest}"

    def middle(figure: Callable[[Storm], float]) -> str:
        return f"{median(map(figure, storms)):,.0f}"

    cells = (
        name,
        recovered,
        f"{middle(lambda storm: storm.collapses)} ({max(storm.collapses for storm in storms)})",
        middle(lambda storm: storm.down_s),
        middle(lambda storm: storm.sent_in_outage),
        middle(lambda storm: storm.sent_until_recovery),
        f"{middle(lambda storm: storm.peak)} ({max(storm.peak for storm in storms)})",
        f"{median(storm.idle_s for storm in storms):,.1f}",
    )
    return f"| {' | '.join(cells)} |"


def draw(storms: Mapping[str, Storm], path: Path) -> None:
    """Requests a second over time, a panel for each: the outage, what the archive serves, its restarts, the recovery."""
    import matplotlib as mpl  # noqa: PLC0415 - a test's dependency, which the table does without
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "storm", "font.family": "sans-serif", "font.size": 9})
    figure = Figure(figsize=(9, 6.6), layout="constrained", facecolor="white")
    panels = figure.subplots(-(-len(storms) // 2), 2, sharex=True, sharey=True).flat
    for panel, (name, storm) in zip(panels, storms.items(), strict=False):
        over_at = OUTAGE_AT_S + storm.outage_s
        first = int((OUTAGE_AT_S - 15) / BIN_S)
        in_second = [sum(storm.sent[at : at + 10]) for at in range(first, int((over_at + DRAWN_S) / BIN_S), 10)]
        edges = [first * BIN_S - over_at + second for second in range(len(in_second) + 1)]
        panel.axvspan(-storm.outage_s, 0, color="0.88", lw=0)
        for began, end in storm.down:
            if began < DRAWN_S:
                panel.axvspan(began, min(end, DRAWN_S), ymin=0.96, color="tab:red", lw=0, zorder=3)
        panel.stairs(in_second, edges, fill=True, color="tab:blue")
        panel.axhline(RATE_PER_S, color="tab:orange", lw=1, ls="--")
        if storm.recovery_s is not None and storm.recovery_s < DRAWN_S:
            panel.axvline(storm.recovery_s, color="tab:green", lw=1.5)
        panel.set_title(f"{name}: {_verdict(storm)}", fontsize=9, loc="left")
        panel.set_xlim(edges[0], DRAWN_S)
        panel.set_ylim(0, TALLEST)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "seconds since the end of the outage (grey); red: the archive restarts; green: all have recovered", fontsize=9
    )
    figure.supylabel("requests in a second; dashed: what the archive serves", fontsize=9)
    figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


def _verdict(storm: Storm) -> str:
    if storm.recovery_s is None:
        return f"not recovered within {storm.watched_s / 60:.0f} min"
    long = storm.recovery_s >= DRAWN_S
    return f"recovered after {storm.recovery_s / 60:.0f} min" if long else f"recovered after {storm.recovery_s:.0f} s"


if __name__ == "__main__":
    main()
