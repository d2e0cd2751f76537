"""What a seed means: a random graph, what goes wrong in it and when, and when it is asked to stop. Values only."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.operators.from_functions import DeadLetterAs, Discard, Duplicate, Reject, Verdict
from orchestrator_adapter.storage.dead_letter import DeadLetterKind, DeadLetterLimits
from orchestrator_adapter.supervision.restart import Backoff, RestartPolicy

MAX_VERTICES = 12
SPILL_FOLDER = Path("spill")
"""A schedule has another one, of its own."""


class Item(NamedTuple):
    """One item: the ``number``-th of its source, or a part of a part of it. All fields together are its id."""

    source: str
    number: int
    parts: tuple[int, ...] = ()

    @property
    def everywhere(self) -> bool:
        """Like a watermark, it concerns every reader of a partition."""
        return self.number % 11 == 10

    def __str__(self) -> str:
        return "/".join([f"{self.source}:{self.number}", *map(str, self.parts)])


class Group(NamedTuple):
    """An aggregate, and the items that it was made from."""

    members: tuple[Item, ...]

    def __str__(self) -> str:
        return f"group({', '.join(map(str, self.members))})"


@dataclass(frozen=True, slots=True)
class Fault:
    """What an operator does at one of its calls."""

    kind: str  # "error", "panic", "cancel", "slow", "stall", "leave", "stop"
    detail: str = ""  # which exception
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kind}{f' {self.detail}' if self.detail else ''}{f' {self.seconds:.3f} s' if self.seconds else ''}"
        )


@dataclass(slots=True)
class Part:
    """One vertex of a random graph."""

    name: str
    role: Role
    kind: str
    batch: int
    count: int = 0  # of a source: how many items it has
    restart_policy: RestartPolicy = field(default_factory=RestartPolicy.never)
    max_deliveries: int = 2
    progress_timeout: timedelta | None = None
    limits: DeadLetterLimits | None = None
    faults: dict[int, Fault] = field(default_factory=dict)  # by number of call, across restarts
    poison: int = 0  # one item in so many always fails; 0 for none
    swallow: str = ""  # what a stalled one does when it is cancelled: "" heeds it, "late", "never"
    expected: bool = False  # declares its own error as operational

    def chance(self, item: Item, sides: int) -> int:
        """A die that always gives the same result for this item at this operator."""
        return crc32(f"{self.name} {item}".encode()) % sides

    def poisonous(self, item: Item) -> bool:
        return self.poison > 0 and crc32(f"poison {self.name} {item}".encode()) % self.poison == 0

    def wanted(self, item: Item) -> bool:
        return self.chance(item, 4) != 0

    def verdict(self, item: Item) -> Verdict:
        match self.chance(item, 10):
            case 0:
                return Reject("unacceptable")
            case 1:
                return Discard()
            case 2:
                return Duplicate()
            case 3:
                return DeadLetterAs(DeadLetterKind.SCHEMA_MISMATCH, "not what was agreed on")
            case _:
                return None

    def malformed(self, item: Item) -> bool:
        """For a source of kind ``emit``: rejected before it is sent."""
        return self.kind == "emit" and self.chance(item, 6) == 0

    def outputs(self, item: Item) -> list[Item]:
        """What the operator makes from this item when nothing goes wrong."""
        match self.kind:
            case "filter":
                return [item] if self.wanted(item) else []
            case "sift":
                return [item] if self.verdict(item) is None else []
            case "burst":
                return [item._replace(parts=(*item.parts, part)) for part in range(2)]
            case "flat_map":
                return [item._replace(parts=(*item.parts, part)) for part in range(self.chance(item, 4))]
            case _:
                return [item]

    def output(self, item: Item, outputs: int) -> int:
        """For a partition: the index of the output that this item goes to."""
        return crc32(repr(self.key(item)).encode()) % outputs

    def key(self, item: Item) -> tuple[str, int]:
        return (item.source, item.number % 7)

    def __str__(self) -> str:
        texts = [
            f"{self.name} ({self.role.value}: {self.kind}",
            f"batch {self.batch}",
            f"restart {self.restart_policy}",
        ]
        texts += [f"{self.count} items"] if self.role is Role.SOURCE else [f"max_deliveries {self.max_deliveries}"]
        texts += [f"progress {self.progress_timeout}"] if self.progress_timeout else []
        texts += [f"limits {self.limits}"] if self.limits else []
        texts += [f"poison 1 in {self.poison}"] if self.poison else []
        texts += [f"swallows cancellation: {self.swallow}"] if self.swallow else []
        faults = "; ".join(f"call {call}: {fault}" for call, fault in sorted(self.faults.items()))
        return ", ".join(texts) + ")" + (f" — {faults}" if faults else "")


@dataclass(frozen=True, slots=True)
class Link:
    """One edge of a random graph."""

    upstream: str
    downstream: str
    capacity: int
    policy: FlowPolicy

    def __str__(self) -> str:
        return f"{self.upstream} -> {self.downstream} ({self.capacity}, {self.policy})"


@dataclass(frozen=True, slots=True)
class Move:
    """What happens from outside, after this many turns of the loop and then this many seconds."""

    kind: str  # "request", "cancel run", "cancel operator"
    turns: int
    seconds: float
    pick: int = 0  # which operator

    def __str__(self) -> str:
        return f"{self.kind} after {self.turns} turns and {self.seconds:.3f} s" + (
            f" (pick {self.pick})" if self.pick else ""
        )


@dataclass(slots=True)
class Scenario:
    """Everything a seed decides, except the order of the callbacks."""

    seed: int
    parts: list[Part]
    links: list[Link]
    moves: list[Move]
    grace: timedelta
    patience: timedelta
    done_when: frozenset[str]
    store_fails: float  # the share of its calls that the dead-letter store fails
    before_run: bool  # a shutdown is requested before the run

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {len(self.parts)} vertices, {len(self.links)} edges"]
        lines += [f"  {part}" for part in self.parts]
        lines += [f"  {link}" for link in self.links]
        lines += [f"  {move}" for move in self.moves]
        lines += [
            f"  grace {self.grace.total_seconds():g} s, patience {self.patience.total_seconds():g} s"
            + (f", done when {sorted(self.done_when)}" if self.done_when else "")
            + (f", the store fails {self.store_fails:.0%}" if self.store_fails else "")
            + (", asked to stop before it runs" if self.before_run else "")
        ]
        return "\n".join(lines)


READY_MADE = frozenset({"map", "map_batches", "filter", "sift", "flat_map", "merge", "broadcast", "partition"})
"""They wait only for their edges: they repeat nothing, and never stall."""

_INITIALS = {Role.SOURCE: "s", Role.OPERATOR: "o", Role.SINK: "k", Role.FAN_IN: "m", Role.FAN_OUT: "x"}
_OPERATORS = (
    *("map", "map_batches", "filter", "sift", "flat_map"),
    *("relay", "recv relay", "batch relay", "commit relay", "hasty relay", "late relay", "blocking relay", "burst"),
)
_SOURCES = ("list", "stream", "emit", "paced")
_SINKS = ("for_each", "for_each async", "for_each_batch", "for_each_batch async", "durable", "hasty")
_ASYNC = frozenset(
    {
        *_OPERATORS[5:],
        *("stream", "emit", "paced", "for_each async", "for_each_batch async", "hasty", "leaky", "group"),
        *("gather", "crew"),
    }
)
_ERRORS = ("OperatorError", "OSError", "TimeoutError", "ConnectionResetError", "group", "declared")
_PANICS = ("KeyError", "AssertionError", "mixed group", "StopIteration", "SystemExit")
_SUBTASKS = frozenset({"stream", "paced", "commit relay"})  # there asyncio handles a SystemExit, and stops the loop


def make_scenario(seed: int) -> Scenario:
    """The scenario of this seed: the same in every process."""
    rng = random.Random(f"scenario {seed}")
    parts, wires = _shape(rng)
    links = [Link(up, down, rng.choice((1, 1, 2, 3, 5, 16)), _policy(rng)) for up, down in wires]
    faulty = rng.choice((0.0, 0.4, 0.6, 0.8))  # the share of vertices where something goes wrong
    for part in parts:
        _add_faults(rng, part, wires, faulty=rng.random() < faulty)
    sinks = [part.name for part in parts if part.role is Role.SINK]
    done_when = frozenset(rng.sample(sinks, rng.randint(1, len(sinks)))) if rng.random() < 0.15 else frozenset()
    moves: list[Move] = []
    if rng.random() < 0.45:
        for _ in range(rng.choice((1, 1, 2, 3))):
            kind = rng.choice(("request", "request", "request", "cancel run", "cancel operator"))
            moves.append(Move(kind, rng.randrange(120), rng.choice((0.0, 0.0, rng.uniform(0, 2))), rng.randrange(64)))
    hangs = any(_hangs(part) for part in parts)
    if hangs:
        moves.append(Move("request", 0, rng.uniform(1, 5)))  # otherwise it may correctly wait for ever
        if rng.random() < 0.5:
            moves.append(Move("request", 0, moves[-1].seconds + rng.uniform(0, 0.3)))
    return Scenario(
        seed,
        parts,
        links,
        moves,
        grace=timedelta(seconds=rng.choice((0.0, 0.05, 0.5, 5.0, 5.0) if hangs else (0.0, 0.05, 0.5, 5.0))),
        patience=timedelta(seconds=rng.choice((0.05, 0.5, 1.0))),
        done_when=done_when,
        # Not 1.0 with a source that correctly offers a malformed item again until the store accepts it.
        store_fails=rng.choice((0.0, 0.0, 0.0, 0.2, 0.6 if any(part.kind == "emit" for part in parts) else 1.0)),
        before_run=rng.random() < 0.02,
    )


def _hangs(part: Part) -> bool:
    return part.progress_timeout is None and any(fault.kind == "stall" for fault in part.faults.values())


def _shape(rng: random.Random) -> tuple[list[Part], list[tuple[str, str]]]:
    """Sources first. Then open ends are extended, joined and split while there is room. Every open end gets a sink."""
    parts: list[Part] = []
    wires: list[tuple[str, str]] = []

    def add(role: Role, kind: str) -> str:
        name = f"{_INITIALS[role]}{len(parts)}-{kind.replace(' ', '-')}"
        parts.append(Part(name, role, kind, batch=rng.choice((1, 2, 3, 7, 256))))
        return name

    ends: list[str] = []
    size = rng.randint(2, MAX_VERTICES)
    for _ in range(rng.choice((1, 1, 2, 3)) if size > 4 else 1):
        ends.append(add(Role.SOURCE, rng.choice(_SOURCES)))
        parts[-1].count = rng.choice((0, 1, 3, 10, 20, 40, 40))
    while len(parts) + len(ends) < size:
        room = size - len(parts) - len(ends)
        action = rng.choice(("operator", "operator", "fan-in", "fan-out"))
        if action == "operator":
            upstream = ends.pop(rng.randrange(len(ends)))
            ends.append(add(Role.OPERATOR, rng.choice(_OPERATORS)))
            wires.append((upstream, ends[-1]))
        elif action == "fan-in" and len(ends) >= 2:
            joined = [ends.pop(rng.randrange(len(ends))) for _ in range(rng.randint(2, min(3, len(ends))))]
            ends.append(add(Role.FAN_IN, rng.choice(("merge", "merge", "gather"))))
            wires += [(end, ends[-1]) for end in joined]
        elif action == "fan-out" and room >= 2:
            upstream = ends.pop(rng.randrange(len(ends)))
            name = add(Role.FAN_OUT, rng.choice(("broadcast", "broadcast", "partition", "partition", "crew")))
            wires.append((upstream, name))
            ends += [name] * rng.randint(2, min(3, room))  # joined again later: a diamond
    for end in ends:
        last = next(part for part in parts if part.name == end)
        if last.role is Role.OPERATOR and rng.random() < 0.15:
            last.kind = rng.choice(("group", "leaky"))
        wires.append((end, add(Role.SINK, rng.choice(_SINKS))))
    return parts, wires


def _policy(rng: random.Random) -> FlowPolicy:
    draw = rng.random()
    if draw < 0.08:
        max_bytes = (150, 600, 100_000)[int(draw * 1_000) % 3]  # a few items, some dozen, all
        return FlowPolicy.spill(SPILL_FOLDER, max_bytes=max_bytes, when_full="shed" if draw < 0.03 else "backpressure")
    if draw < 0.75:
        return FlowPolicy.backpressure()
    if draw < 0.85:
        return FlowPolicy.shed()
    return FlowPolicy.timed(timedelta(seconds=rng.choice((0.01, 0.2))), dead_letter=rng.random() < 0.7)


def _add_faults(rng: random.Random, part: Part, wires: list[tuple[str, str]], *, faulty: bool) -> None:
    backoff = None
    if rng.random() < 0.3:
        initial = timedelta(seconds=rng.uniform(0.01, 0.3))
        backoff = Backoff(initial, initial * rng.randint(1, 5), timedelta(seconds=1))
    part.restart_policy = rng.choice(
        (
            RestartPolicy.never(),
            RestartPolicy.always(backoff=backoff),
            RestartPolicy.bounded(rng.randint(1, 3), timedelta(seconds=rng.choice((0.1, 1.0, 60.0))), backoff=backoff),
            RestartPolicy.bounded(5, timedelta(seconds=60), backoff=backoff),
        )
    )
    part.max_deliveries = 1 if part.role is Role.SOURCE else rng.choice((1, 2, 2, 3))
    part.expected = rng.random() < 0.5
    if part.role is not Role.SOURCE and rng.random() < 0.4:
        part.progress_timeout = timedelta(seconds=rng.choice((0.2, 1.0)))
    if part.kind == "sift" and rng.random() < 0.2:
        part.limits = DeadLetterLimits(max_share=0.3, min_items=10, max_consecutive=4)
    is_async = part.kind in _ASYNC
    if is_async and rng.random() < 0.2:
        part.swallow = rng.choice(("late", "never"))
    if not faulty or part.kind in {"merge", "broadcast"}:
        return
    kinds = ["error", "error", "error", "panic", "cancel", "stop"]
    if is_async:
        kinds += ["slow", "slow", "slow", "stall", "stall", "leave"]
    if part.role is not Role.SOURCE and rng.random() < 0.3:
        part.poison = rng.choice((5, 10))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        kind = rng.choice(kinds)
        if kind in {"panic", "cancel", "stop", "leave"} and rng.random() < 0.5:
            kind = "error"  # those end the run; have some faults that do not
        panics = _PANICS if part.kind not in _SUBTASKS else _PANICS[:3]
        detail = rng.choice(_ERRORS) if kind == "error" else rng.choice(panics) if kind == "panic" else ""
        part.faults[rng.choice((rng.randint(1, 6), rng.randint(1, 25)))] = Fault(
            kind, detail, rng.uniform(0, 0.5) if kind == "slow" else 0.0
        )
