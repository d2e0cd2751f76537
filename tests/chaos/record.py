"""What is recorded of a schedule, to be checked after it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrator_adapter.channels.channel import EdgeStatistics
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.storage.dead_letter import DeadLetter
from orchestrator_adapter.storage.spill import spilled_items
from orchestrator_adapter.supervision.events import Escalated, Exited, Restarted, ShuttingDown, Spawned
from tests.chaos.faulty import World
from tests.chaos.scenario import Scenario


@dataclass(slots=True)
class Store:
    """A dead-letter store that fails at random. ``rejected`` has the letters that it failed to keep.

    A letter for a file of spilled items is kept as one letter for each of its items.
    """

    rng: random.Random
    fails: float
    kept: list[DeadLetter] = field(default_factory=list)
    rejected: list[DeadLetter] = field(default_factory=list)

    def append(self, letters: Sequence[DeadLetter]) -> None:
        letters = [letter for each in letters for letter in _of_items(each)]
        if self.rng.random() < self.fails:
            self.rejected.extend(letters)
            raise OSError("the store is full")
        self.kept.extend(letters)

    def close(self) -> None:
        pass


def _of_items(letter: DeadLetter) -> Iterator[DeadLetter]:
    match letter.payload:
        case {"spill_file": path}:
            for item in spilled_items(Path(path)):
                yield msgspec.structs.replace(letter, payload=item)
        case _:
            yield letter


@dataclass(slots=True)
class RunRecord:
    """What was observed of one run from outside."""

    scenario: Scenario
    world: World
    store: Store
    built: BuiltGraph
    spawns: list[tuple[float, Spawned]] = field(default_factory=list)
    exits: list[tuple[float, Exited]] = field(default_factory=list)
    restarts: list[Restarted] = field(default_factory=list)
    escalated: list[tuple[float, Escalated]] = field(default_factory=list)
    phases: list[tuple[float, ShuttingDown]] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    edges: Mapping[str, EdgeStatistics] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    alive_at_end: set[str] = field(default_factory=set)
    ended_at: float = 0.0
