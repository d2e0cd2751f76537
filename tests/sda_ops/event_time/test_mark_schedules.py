"""Watermarks under any interleaving of marks, idle sources, restarts and ends, on many schedules of the event loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest

from orchestrator_adapter import SupervisorEvent
from orchestrator_adapter.testing import run_schedule
from sda_ops.event_time.watermark import Watermark
from tests.helpers.sizes import small_and_long
from tests.sda_ops.event_time.feeds_model import FeedsRun, problems_of
from tests.sda_ops.event_time.mark_mutants import MUTANTS


@pytest.fixture(autouse=True)
def _logging_disabled() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(seed: int, *, blocks: bool = False, stops: int = 0) -> tuple[FeedsRun, SupervisorEvent, list[str]]:
    made = FeedsRun(seed, blocks=blocks, stops=stops)
    event = run_schedule(seed, made.run, limit=timedelta(minutes=10))
    return made, event, list(problems_of(made, event))


@pytest.mark.usefixtures("_many_schedules")
@small_and_long("seeds", 10, 1_500)
def test_no_item_comes_after_a_mark_that_excludes_it_and_no_dead_source_holds_the_others(seeds: int) -> None:
    """Feeds that are silent, late, stalled, restarted, ended, or have not begun; with edges of a few items."""
    idle = restarts = marked = 0
    for seed in range(seeds):
        made, event, problems = run(seed)
        assert not problems, (seed, problems)
        marks = [sent.part for tap in made.taps.values() for sent in tap.passed if isinstance(sent.part, Watermark)]
        idle += any(mark.time_ns is None for mark in marks)
        restarts += bool(event.figures.restarts)
        marked += sum(isinstance(sent.part, Watermark) for sent in made.merged.passed)
    assert min(idle, restarts) > seeds // 10  # otherwise the runs prove nothing
    assert marked > 20 * seeds


@pytest.mark.usefixtures("_many_schedules")
@small_and_long("seeds", 3, 300)
def test_a_source_that_waits_for_space_holds_the_others_and_is_never_idle(seeds: int) -> None:
    """The sink takes nothing for three times as long as a source may be out of contact."""
    for seed in range(seeds):
        _, _, problems = run(seed, blocks=True)
        assert not problems, (seed, problems)


@pytest.mark.usefixtures("_many_schedules")
@pytest.mark.parametrize("stops", [1, 2])
@small_and_long("seeds", 4, 400)
def test_when_stopped_at_any_moment_no_reading_is_lost_and_every_mark_holds(stops: int, seeds: int) -> None:
    """Drained, every reading arrives; aborted, it arrives or is a dead letter."""
    dead_lettered = 0
    for seed in range(seeds):
        made, _, problems = run(seed, stops=stops)
        assert not problems, (seed, problems)
        dead_lettered += len(made.letters.letters)
    assert dead_lettered == 0 or stops == 2


@pytest.mark.usefixtures("_many_schedules")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_promise_is_found(name: str) -> None:
    """A mark one nanosecond early, a mark in front of its items, a mark that a restart forgets, and the others."""
    with MUTANTS[name]():
        assert any(run(seed, blocks=blocks)[2] for seed in range(60) for blocks in (False, True))
