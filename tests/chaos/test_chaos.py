"""Random graphs under random faults on random schedules: the orchestrator's promises hold, and the harness bites."""

from __future__ import annotations

import pytest

from tests.chaos.mutants import MUTANTS
from tests.chaos.schedule import Outcome, only_new_garbage, run_seed

CHUNK = 125
SEEDS = 2_000


def first_failure(seeds: range) -> Outcome | None:
    with only_new_garbage():
        return next((outcome for seed in seeds if (outcome := run_seed(seed)).problems), None)


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_every_promise_is_kept_on_every_schedule(start: int) -> None:
    """The ledger balances, every id is written or buried, nothing is left running, and the event is the right one."""
    failure = first_failure(range(start, start + CHUNK))
    if failure is not None:
        pytest.fail(
            f"seed {failure.seed}: {failure.problems[0]}\n"
            f"again, with its trace: .venv/bin/python -m tests.chaos.schedule {failure.seed}\n{failure}"
        )


@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_orchestrator_broken_on_purpose_is_found_out(mutant: str) -> None:
    """Of the same schedules at least one fails for every way of breaking a lease, an edge, a budget or a burial."""
    with MUTANTS[mutant]():
        assert first_failure(range(400)) is not None


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    """Graph, faults, every decision and its virtual time: a failing seed fails again."""
    assert str(run_seed(seed)) == str(run_seed(seed))
