from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import chain

import pytest

from orchestrator_adapter.graph.plan import Role
from tests.chaos.mutants import MUTANTS
from tests.chaos.scenario import MAX_VERTICES, make_scenario
from tests.chaos.schedule import run_seed
from tests.helpers.sizes import small_and_long
from tests.helpers.support import ROOT

SEEDS, MORE_SEEDS = 300, int(os.environ.get("CHAOS_SEEDS", "2000"))
CHUNK = 100
ENOUGH_FOR_ANY_MUTANT = 1_500
FOUND_AT = {
    "stalls-go-unseen": 770,
    "budget-never-recovers": 218,
}  # tried first; the other mutants fail before seed 100

pytestmark = pytest.mark.usefixtures("_many_schedules")


@pytest.mark.parametrize(
    "first",
    [
        *range(0, SEEDS, CHUNK),
        *(pytest.param(first, marks=pytest.mark.long) for first in range(SEEDS, MORE_SEEDS, CHUNK)),
    ],
)
def test_every_schedule_keeps_every_promise(first: int) -> None:
    """Random graphs, faults and orders of callbacks: the ledger, ids, order, tasks, budgets and times are all correct."""
    for seed in range(first, first + CHUNK):
        outcome = run_seed(seed)
        if outcome.problems:
            pytest.fail(f"repeat with: .venv/bin/python -m tests.chaos.schedule {seed}\n{outcome}", pytrace=False)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_orchestrator_is_detected(mutant: str) -> None:
    """For every mutant of tests.chaos.mutants, at least one schedule finds the broken promise."""
    with MUTANTS[mutant]():
        seeds = chain([FOUND_AT.get(mutant, 0)], range(ENOUGH_FOR_ANY_MUTANT))
        assert any(run_seed(seed).problems for seed in seeds)


@small_and_long("seeds", 25, 100)
def test_the_same_seed_gives_the_same_trace_in_every_process(seeds: int) -> None:
    """Trace and result of every seed are the same here and in a process with another hash seed, line by line."""
    code = f"from tests.chaos.schedule import run_seed\nfor seed in range({seeds}): print(run_seed(seed))"
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout == "".join(f"{run_seed(seed)}\n" for seed in range(seeds))


def test_the_command_prints_the_whole_schedule_of_a_seed() -> None:
    """The graph, the faults, the supervisor's decisions with their times, and the result; exit code 0 if no promise was broken."""
    command = [sys.executable, "-m", "tests.chaos.schedule", "3"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in ("seed 3: ", " spawn ", " ended ", "ended as ", "every promise was kept"):
        assert part in output


def test_the_command_fails_for_a_seed_that_fails() -> None:
    """With a mutant it exits with 1 and prints the broken promise."""
    command = [sys.executable, "-m", "tests.chaos.schedule", "0", "--mutant", "outbox-is-dropped"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.returncode == 1
    assert "FAILED: the ledger does not balance" in output.stdout


@small_and_long("seeds", 200, 1_000)
def test_many_schedules_repeat_items(seeds: int) -> None:
    """Enough runs repeat items (also after an expanding operator), write them twice, and have stragglers."""
    seen = Counter[str]()
    for seed in range(seeds):
        outcome = run_seed(seed)
        repeated = sum(int(count) for line in outcome.trace for count in re.findall(r"'repeated': (\d+)", line))
        seen["repeated"] += repeated > 0
        seen["repeated after an expanding operator"] += repeated > 0 and "-burst (" in outcome.scenario
        seen["a hasty sink failed"] += any(" restart " in line and "-hasty " in line for line in outcome.trace)
        seen["straggler"] += any(" straggler " in line for line in outcome.trace)
        seen[outcome.event] += 1
    wanted = {"repeated": 50, "repeated after an expanding operator": 20, "a hasty sink failed": 10, "straggler": 8}
    assert not {what: seen[what] for what, count in wanted.items() if seen[what] < count * seeds // 1_000}
    assert all(seen[event] * 10 >= seeds for event in ("AllOk", "ShutDown", "BudgetExhausted", "Panicked")), seen


def test_the_scenarios_cover_every_trait() -> None:
    """Of 1,000 seeds every shape, kind of operator, fault, flow policy, restart policy and move from outside occurs often."""
    seen = Counter[str]()
    for seed in range(1_000):
        scenario = make_scenario(seed)
        assert len(scenario.parts) <= MAX_VERTICES
        traits = {f"{part.role.value}: {part.kind}" for part in scenario.parts}
        traits |= {f"fault {fault.kind}" for part in scenario.parts for fault in part.faults.values()}
        traits |= {f"swallow {part.swallow}" for part in scenario.parts}
        traits |= {f"restart {part.restart_policy.rule.name}" for part in scenario.parts}
        traits |= {f"max_deliveries {part.max_deliveries}" for part in scenario.parts}
        traits |= {"poison" for part in scenario.parts if part.poison}
        traits |= {"backoff" for part in scenario.parts if part.restart_policy.backoff is not None}
        traits |= {"progress timeout" for part in scenario.parts if part.progress_timeout is not None}
        traits |= {f"edge {link.policy.name}" for link in scenario.links}
        traits |= {f"move {move.kind}" for move in scenario.moves}
        traits |= {"capacity 1" for link in scenario.links if link.capacity == 1}
        traits |= {"end rule"} if scenario.done_when else set()
        traits |= {"failing store"} if scenario.store_fails else set()
        traits |= {"twelve vertices"} if len(scenario.parts) == MAX_VERTICES else set()
        splits = {part.name for part in scenario.parts if part.role is Role.FAN_OUT}
        joins = {part.name for part in scenario.parts if part.role is Role.FAN_IN}
        traits |= {"fan-out and fan-in"} if splits and joins else set()
        seen.update(traits)
    rare = {trait: count for trait, count in seen.items() if count < 15}
    assert not rare
    assert len(seen) >= 60
