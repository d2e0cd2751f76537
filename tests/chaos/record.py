"""What a schedule leaves behind for its judge."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator_adapter.channels.channel import EdgeStatistics
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.storage.dead_letter import DeadLetter
from orchestrator_adapter.supervision.events import Escalated, Exited, Restarted, ShuttingDown, Spawned
from tests.chaos.behaviour import World
from tests.chaos.scenario import Scenario


@dataclass(slots=True)
class Store:
    """A dead-letter store that fails now and then. ``refused`` is what it was asked to keep and did not."""

    rng: random.Random
    fails: float
    kept: list[DeadLetter] = field(default_factory=list)
    refused: list[DeadLetter] = field(default_factory=list)

    def append(self, letters: Sequence[DeadLetter]) -> None:
        if self.rng.random() < self.fails:
            self.refused.extend(letters)
            raise OSError("the store is full")
        self.kept.extend(letters)

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Record:
    """What was seen of one run from outside, for the judge."""

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
