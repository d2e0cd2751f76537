"""One schedule: the scenario of a seed, run in the order of that seed, and checked. ``python -m tests.chaos.schedule SEED``.

``run_seed`` returns the broken promises, with the trace of the supervisor's decisions. The seed determines everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator_adapter.channels.flow_policy import Spill
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.graph.plan import Role, VertexId
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.supervision.events import Exited, SupervisionHooks
from orchestrator_adapter.supervision.helpers import TASK_NAME_PREFIX
from orchestrator_adapter.testing import LoopClock, ScheduleFault, run_schedule
from tests.chaos.behaviour import make
from tests.chaos.faulty import Declared, World
from tests.chaos.mutants import MUTANTS, Mutant
from tests.chaos.record import RunRecord, Store
from tests.chaos.scenario import Move, Part, Scenario, make_scenario
from tests.chaos.verdict import check_promises

LIMIT = timedelta(minutes=5)
"""In virtual time. The longest scenario, with every backoff and every slow call, takes about a minute."""

MAX_CALLBACKS = 300_000


@dataclass(frozen=True, slots=True)
class ScheduleResult:
    """A schedule and its problems, if there are any."""

    seed: int
    event: str
    problems: tuple[str, ...]
    trace: tuple[str, ...]
    scenario: str

    def __str__(self) -> str:
        verdict = [f"FAILED: {problem}" for problem in self.problems] or ["every promise was kept"]
        return "\n".join([self.scenario, *self.trace, f"ended as {self.event}", *verdict])


def run_seed(seed: int) -> ScheduleResult:
    """Run and check the schedule of this seed."""
    scenario = make_scenario(seed)
    text = str(scenario)
    event, problems = "no event", []
    with _decisions() as trace:
        try:
            with TemporaryDirectory() as folder:
                record = run_schedule(
                    seed, lambda: _run(scenario, Path(folder)), limit=LIMIT, max_callbacks=MAX_CALLBACKS
                )
        except ScheduleFault as fault:
            problems = [f"{type(fault).__name__}: {fault}"]
        except Exception as error:  # noqa: BLE001 - a failure of the orchestrator itself is a problem, too
            problems = [f"raised {error!r}"]
        else:
            event = record.built.event.name if record.built.event is not None else "None"
            problems = [*record.problems, *check_promises(record)]
        problems += [f"logged an exception: {line}" for line in trace if line.startswith("exception")]
    return ScheduleResult(seed, event, tuple(problems), tuple(trace), text)


async def _run(scenario: Scenario, spill: Path) -> RunRecord:
    world = World()
    store = Store(random.Random(f"store {scenario.seed}"), scenario.store_fails)
    built = _build(scenario, world, store, spill)
    record = RunRecord(scenario, world, store, built)
    clock = LoopClock()

    def stop(reason: str) -> None:
        if built.event is None:
            record.requests.append(clock.monotonic())
        built.request_shutdown(reason)

    world.stop = stop
    if scenario.before_run:
        stop("before the run")
    policy = SupervisionPolicy(grace=scenario.grace, patience=scenario.patience, done_when=scenario.done_when)

    async def run() -> None:
        try:
            await built.run(policy, hooks=_hooks(record))
        finally:  # a copy, in this step: what a straggler does after the end must not be recorded
            record.world = deepcopy(world, {id(world.released): world.released, id(world.stop): world.stop})

    running = asyncio.create_task(run(), name="run")
    others = [asyncio.create_task(_move(move, record, running), name=f"move {move}") for move in scenario.moves]
    others.append(asyncio.create_task(_audit(record, running), name="audit"))
    await asyncio.wait({running})
    record.ended_at = clock.monotonic()
    record.edges = built.status().edges
    for other in others:
        other.cancel()
    for result in await asyncio.gather(*others, return_exceptions=True):
        if isinstance(result, Exception):
            record.problems.append(f"a helper task raised {result!r}")
    if running.cancelled():
        if not any(move.kind == "cancel run" for move in scenario.moves):
            record.problems.append("run() was cancelled, although the scenario does not cancel it")
    elif running.exception() is not None:
        record.problems.append(f"run() raised {running.exception()!r}")
    await _end_stragglers(record)
    return record


async def _end_stragglers(record: RunRecord) -> None:
    """Record the tasks that still run, then let the stragglers end, so that no task outlives the schedule."""
    for _ in range(50):  # let tasks that were cancelled together with an operator end
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.get_name().startswith(TASK_NAME_PREFIX):
            record.alive_at_end.add(task.get_name().removeprefix(TASK_NAME_PREFIX).split(" #")[0])
        elif not record.scenario.parts or not any(part.swallow for part in record.scenario.parts):
            record.problems.append(f"still running after the run: {task!r}")
    record.world.released.set()
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=30)


async def _move(move: Move, record: RunRecord, running: asyncio.Task[Any]) -> None:
    for _ in range(move.turns):
        await asyncio.sleep(0)
    if move.seconds:
        await asyncio.sleep(move.seconds)
    match move.kind:
        case "request":
            record.world.stop(str(move))
        case "cancel run":
            record.requests.append(asyncio.get_running_loop().time())
            running.cancel()
        case _:
            operators = sorted(
                (task for task in asyncio.all_tasks() if task.get_name().startswith(TASK_NAME_PREFIX)),
                key=asyncio.Task.get_name,
            )
            if operators:
                operators[move.pick % len(operators)].cancel()


async def _audit(record: RunRecord, running: asyncio.Task[Any]) -> None:
    """Check the running graph at random moments: the ledger balances, and no edge exceeds its capacity."""
    rng = random.Random(f"audit {record.scenario.seed}")
    for _ in range(12):
        for _ in range(rng.randrange(30)):
            await asyncio.sleep(0)
        if rng.random() < 0.3:
            await asyncio.sleep(rng.uniform(0, 0.5))
        if running.done():
            return
        status = record.built.status()
        if (not status.ledger.balanced and not record.world.leaked) or status.ledger.in_flight < 0:
            raise AssertionError(f"in the middle of the run: {status.ledger}")
        for edge, figures in status.edges.items():
            if not 0 <= figures.leased <= figures.occupancy <= figures.capacity:
                raise AssertionError(f"in the middle of the run: edge {edge!r}: {figures}")


def _build(scenario: Scenario, world: World, store: Store, spill: Path) -> BuiltGraph:
    graph = OperatorGraph(f"chaos-{scenario.seed}")
    ids = {part.name: _add(graph, part, world) for part in scenario.parts}
    for link in scenario.links:
        policy = link.policy
        if isinstance(policy.when_full, Spill):
            policy = replace(policy, when_full=replace(policy.when_full, folder=spill))
        graph.connect(ids[link.upstream], ids[link.downstream], link.capacity, policy=policy)
    rng = random.Random(f"graph {scenario.seed}")
    return graph.build(clock=LoopClock(), rng=rng, dead_letters=store)


def _add(graph: OperatorGraph, part: Part, world: World) -> VertexId:
    factory = make(part, world)
    expected: tuple[type[BaseException], ...] = (Declared,) if part.expected else ()
    if part.role is Role.SOURCE:
        return graph.add_source(
            part.name, factory, restart_policy=part.restart_policy, expected_errors=expected, note=part.kind
        )
    options: dict[str, Any] = {
        "restart_policy": part.restart_policy,
        "expected_errors": expected,
        "max_deliveries": part.max_deliveries,
        "progress_timeout": part.progress_timeout,
    }
    match part.role:
        case Role.OPERATOR:
            expanding = part.kind in {"flat_map", "group", "burst"}
            return graph.add_operator(
                part.name, factory, expanding=expanding, dead_letter_limits=part.limits, **options
            )
        case Role.SINK:
            return graph.add_sink(part.name, factory, **options)
        case Role.FAN_IN:
            return graph.add_fan_in(part.name, factory, **options)
        case _:
            return graph.add_fan_out(part.name, factory, **options)


def _hooks(record: RunRecord) -> SupervisionHooks:
    def now() -> float:
        return record.built.clock.monotonic()

    def exited(exited: Exited) -> None:
        record.exits.append((now(), exited))
        if isinstance(exited.exit, task_exit.Errored) and exited.operator in record.world.last:
            record.world.at_fault[exited.operator].add(record.world.last[exited.operator])

    return SupervisionHooks(
        on_spawn=lambda spawned: record.spawns.append((now(), spawned)),
        on_exit=exited,
        on_restart=record.restarts.append,
        on_escalate=lambda escalated: record.escalated.append((now(), escalated)),
        on_shutdown=lambda phase: record.phases.append((now(), phase)),
    )


@contextmanager
def _decisions() -> Iterator[list[str]]:
    """Collect every line that the adapter logs, with its virtual time."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            now = asyncio.get_running_loop().time()
            if record.exc_info is not None:
                lines.append(f"exception {record.getMessage()}: {record.exc_info[1]!r}")
            else:
                lines.append(f"{now:9.4f} {_short(record.getMessage())}")

    logger, handler = logging.getLogger("orchestrator_adapter"), Collect()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        logger.setLevel(before[0])


_EVERY_LINE = {"time", "level", "run", "graph", "traceback", "stack", "file", "first"}


def _short(line: str) -> str:
    record = {name: value for name, value in json.loads(line).items() if name not in _EVERY_LINE}
    return f"{record.pop('event'):16} " + " ".join(f"{name}={value}" for name, value in record.items())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.schedule",
        description="Run random graphs with random faults in random orders of events, and check each run. A seed determines "
        "all of it: a seed that fails always fails.",
        epilog="One seed prints its graph, its faults, every decision with its time, and the verdict; several print only "
        "those that failed, and a count. Exit code 0: every promise was kept; 1: one was broken. Example: "
        "python -m tests.chaos.schedule 0 --count 100000",
    )
    parser.add_argument("seed", type=int, help="the schedule to run, or the first of several")
    parser.add_argument("--count", type=int, default=1, help="how many seeds; of several only failures are printed")
    parser.add_argument(
        "--mutant",
        choices=sorted(MUTANTS),
        metavar="NAME",
        help="break the orchestrator on purpose: "
        + "; ".join(f"{name}: {_about(MUTANTS[name])}" for name in sorted(MUTANTS)),
    )
    arguments = parser.parse_args()
    failed, kinds, started = 0, dict[str, int](), time.perf_counter()
    with MUTANTS[arguments.mutant]() if arguments.mutant else nullcontext(), frozen_heap():
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            outcome = run_seed(seed)
            failed += bool(outcome.problems)
            kinds[outcome.event] = kinds.get(outcome.event, 0) + 1
            if arguments.count == 1:
                print(outcome)
            elif outcome.problems:
                print(f"seed {seed}: {outcome.problems[0][:300]}", flush=True)
    if arguments.count > 1:
        elapsed_s = time.perf_counter() - started
        print(f"{arguments.count:,} schedules in {elapsed_s:.1f} s, {failed} failed; ended as {kinds}")
        if failed:
            print("to repeat one of them, with its trace: .venv/bin/python -m tests.chaos.schedule SEED")
    return 1 if failed else 0


def _about(mutant: Mutant) -> str:
    return (mutant.__doc__ or "").rstrip(".").replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
