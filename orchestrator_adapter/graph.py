"""``OperatorGraph``: declare the vertices and edges, validate them together, draw them.

A declaration only. ``validate()`` makes a ``Plan`` of it without a running loop; ``build()`` hands the plan to
``runtime``, which wires and runs it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from orchestrator_adapter.channel import FlowPolicy
from orchestrator_adapter.clock import Clock
from orchestrator_adapter.dead_letter import DeadLetterLimits, DeadLetterStore
from orchestrator_adapter.ends import Factory
from orchestrator_adapter.errors import OrchestratorError
from orchestrator_adapter.ledger import Bookkeeping
from orchestrator_adapter.restart import (
    SINK_DEFAULT,
    SOURCE_DEFAULT,
    STATEFUL_DEFAULT,
    STATELESS_DEFAULT,
    RestartPolicy,
)
from orchestrator_adapter.routers import broadcast, merge

if TYPE_CHECKING:
    from orchestrator_adapter.runtime import BuiltGraph


class Role(Enum):
    """What a vertex is, and with it how many inputs and outputs it must have."""

    SOURCE = "source"
    OPERATOR = "operator"
    SINK = "sink"
    FAN_IN = "fan-in"
    FAN_OUT = "fan-out"


_MANY = 1_000_000
_ARITY: dict[Role, tuple[range, range]] = {  # inputs, outputs
    Role.SOURCE: (range(1), range(1, 2)),
    Role.OPERATOR: (range(1, 2), range(1, 2)),
    Role.SINK: (range(1, 2), range(1)),
    Role.FAN_IN: (range(2, _MANY), range(1, 2)),
    Role.FAN_OUT: (range(1, 2), range(2, _MANY)),
}


@dataclass(frozen=True, slots=True)
class VertexId:
    """Names one vertex of one graph. Made by the ``add_…`` calls, used by ``connect``."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Vertex:
    """One declared vertex.

    Attributes:
        id: Its id in this graph.
        role: What it is.
        factory: Makes its instances.
        restart_policy: What is done when an instance fails operationally.
        bookkeeping: How its books must close.
        expected_errors: Exception types that count as operational besides ``OperatorError`` and ``OSError``.
        max_deliveries: An item delivered this often without acknowledgement is a poison pill.
        dead_letter_limits: Beyond these the operator itself is taken to be at fault; ``None`` for no limit.
        note: Why this policy, in one line.
    """

    id: VertexId
    role: Role
    factory: Factory
    restart_policy: RestartPolicy
    bookkeeping: Bookkeeping
    expected_errors: tuple[type[BaseException], ...]
    max_deliveries: int
    dead_letter_limits: DeadLetterLimits | None
    note: str

    @property
    def name(self) -> str:
        return self.id.name


@dataclass(frozen=True, slots=True)
class Edge:
    """One declared edge: who writes it, who reads it, how much it holds and what happens when it is full."""

    id: str
    upstream: VertexId
    downstream: VertexId
    capacity: int
    policy: FlowPolicy
    note: str


class ProblemKind(Enum):
    """What is wrong with a graph, as a stable name."""

    EMPTY_GRAPH = "empty_graph"
    DUPLICATE_NAME = "duplicate_name"
    UNKNOWN_VERTEX = "unknown_vertex"
    BAD_CAPACITY = "bad_capacity"
    BAD_OPTION = "bad_option"
    MISSING_INPUT = "missing_input"
    SURPLUS_INPUT = "surplus_input"
    MISSING_OUTPUT = "missing_output"
    SURPLUS_OUTPUT = "surplus_output"
    CYCLE = "cycle"


@dataclass(frozen=True, slots=True)
class GraphProblem:
    """One problem: its kind, the vertices or edge it is about, what is wrong, and the call that would mend it."""

    kind: ProblemKind
    where: tuple[str, ...]
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


class GraphError(OrchestratorError):
    """Every problem that validation found, together: ``problems`` is the list."""

    def __init__(self, problems: Sequence[GraphProblem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in the operator graph"
        super().__init__("\n".join([f"{count}:", *(f"  - {problem}" for problem in problems)]))


@dataclass(frozen=True, slots=True)
class Plan:
    """A valid graph in topological order, ready to be wired.

    Attributes:
        name: The graph's name.
        order: Every vertex, upstream before downstream, level by level, ties in insertion order.
        levels: The same, one tuple a level; a vertex's level is the length of the longest path to it.
        edges: Every edge, in the order of its ``connect`` call.
    """

    name: str
    order: tuple[Vertex, ...]
    levels: tuple[tuple[Vertex, ...], ...]
    edges: tuple[Edge, ...]


class OperatorGraph:
    """A streaming pipeline, declared. Nothing is checked before ``validate()`` or ``build()``, which report everything.

    Example::

        graph = OperatorGraph("sums")
        numbers = graph.add_source("numbers", source_of(range(10)))
        double = graph.add_operator("double", map_items(lambda n: 2 * n))
        total = graph.add_sink("print", for_each(print))
        graph.connect(numbers, double, 64, note="a screenful")
        graph.connect(double, total, 64)
        event = await graph.build().run()
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self._vertices: list[Vertex] = []
        self._edges: list[Edge] = []

    @property
    def vertices(self) -> tuple[Vertex, ...]:
        """Every vertex, in the order in which it was added."""
        return tuple(self._vertices)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge, in the order in which it was connected."""
        return tuple(self._edges)

    def add_source(
        self,
        name: str,
        factory: Factory,
        *,
        restart_policy: RestartPolicy = SOURCE_DEFAULT,
        expected_errors: tuple[type[BaseException], ...] = (),
        dead_letter_limits: DeadLetterLimits | None = None,
        note: str = "",
    ) -> VertexId:
        """A vertex without input and with one output. Malformed input never stops it unless limits are given."""
        return self._add(
            name, Role.SOURCE, factory, restart_policy, Bookkeeping.SOURCE, expected_errors, 1, dead_letter_limits, note
        )

    def add_operator(
        self,
        name: str,
        factory: Factory,
        *,
        restart_policy: RestartPolicy | None = None,
        stateful: bool = False,
        expanding: bool = False,
        expected_errors: tuple[type[BaseException], ...] = (),
        max_deliveries: int = 2,
        dead_letter_limits: DeadLetterLimits | None = None,
        note: str = "",
    ) -> VertexId:
        """A vertex with one input and one output.

        ``stateful`` chooses the stricter default policy. ``expanding`` says that it derives or absorbs items;
        otherwise it must conserve them, to the item. ``max_deliveries``: see ``Vertex``.
        """
        policy = restart_policy or (STATEFUL_DEFAULT if stateful else STATELESS_DEFAULT)
        books = Bookkeeping.EXPANDING if expanding else Bookkeeping.CONSERVING
        return self._add(
            name, Role.OPERATOR, factory, policy, books, expected_errors, max_deliveries, dead_letter_limits, note
        )

    def add_sink(
        self,
        name: str,
        factory: Factory,
        *,
        restart_policy: RestartPolicy = SINK_DEFAULT,
        expected_errors: tuple[type[BaseException], ...] = (),
        max_deliveries: int = 2,
        dead_letter_limits: DeadLetterLimits | None = None,
        note: str = "",
    ) -> VertexId:
        """A vertex with one input and no output: what it acknowledges is written."""
        return self._add(
            name,
            Role.SINK,
            factory,
            restart_policy,
            Bookkeeping.SINK,
            expected_errors,
            max_deliveries,
            dead_letter_limits,
            note,
        )

    def add_fan_in(
        self,
        name: str,
        factory: Factory | None = None,
        *,
        restart_policy: RestartPolicy = STATELESS_DEFAULT,
        note: str = "",
    ) -> VertexId:
        """A router with two or more inputs and one output. By default it merges them, each served in turn."""
        factory = factory or merge()
        return self._add(name, Role.FAN_IN, factory, restart_policy, Bookkeeping.CONSERVING, (), 2, None, note)

    def add_fan_out(
        self,
        name: str,
        factory: Factory | None = None,
        *,
        restart_policy: RestartPolicy = STATELESS_DEFAULT,
        note: str = "",
    ) -> VertexId:
        """A router with one input and two or more outputs. By default it broadcasts; see also ``partition``."""
        factory = factory or broadcast()
        return self._add(name, Role.FAN_OUT, factory, restart_policy, Bookkeeping.EXPANDING, (), 2, None, note)

    def connect(
        self,
        upstream: VertexId,
        downstream: VertexId,
        capacity: int,
        *,
        policy: FlowPolicy | None = None,
        note: str = "",
    ) -> str:
        """An edge that holds at most ``capacity`` items; returns its id, ``upstream -> downstream``.

        ``policy`` is backpressure unless told otherwise; ``note`` says why this capacity.
        """
        edge_id = f"{upstream.name} -> {downstream.name}"
        self._edges.append(Edge(edge_id, upstream, downstream, capacity, policy or FlowPolicy.backpressure(), note))
        return edge_id

    def validate(self) -> Plan:
        """Passes 1 and 2: roles and order. Needs no running loop. Raises ``GraphError`` with every problem there is."""
        problems = [*self._declaration_problems(), *self._arity_problems()]
        levels, left_over = _kahn(len(self._vertices), self._known_links())
        problems += self._cycle_problems(left_over)
        if problems:
            raise GraphError(problems)
        level_vertices = tuple(tuple(self._vertices[index] for index in level) for level in levels)
        order = tuple(vertex for level in level_vertices for vertex in level)
        return Plan(self.name, order, level_vertices, tuple(self._edges))

    def build(
        self,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        dead_letters: DeadLetterStore | None = None,
    ) -> BuiltGraph:
        """All four passes: validate, order, allocate every channel, wire every operator in topological order.

        Needs no running loop: the instances are started by ``run()``, because no task may run that nobody awaits.
        ``clock``, ``rng`` and ``dead_letters`` default to the system's clock, a fresh generator and a bounded in-memory
        store.
        """
        # The declaration's one look upwards, so that users write graph.build(); nothing here depends on it.
        from orchestrator_adapter.runtime import BuiltGraph  # noqa: PLC0415 - would be circular at import

        return BuiltGraph(self.validate(), clock=clock, rng=rng, dead_letters=dead_letters)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart, with capacities, flow policies and restart policies; invalid graphs too."""
        shapes = {
            Role.SOURCE: ("([", "])"),
            Role.OPERATOR: ("[", "]"),
            Role.SINK: ("[(", ")]"),
            Role.FAN_IN: ("{{", "}}"),
            Role.FAN_OUT: ("{{", "}}"),
        }
        lines = ["flowchart LR"]
        for vertex in self._vertices:
            left, right = shapes[vertex.role]
            label = f"{_escape(vertex.name)}<br/><small>{vertex.role.value} · {vertex.restart_policy}</small>"
            lines.append(f'    v{vertex.id.index}{left}"{label}"{right}')
        for edge in self._edges:
            label = f"{edge.capacity}" + ("" if edge.policy == FlowPolicy.backpressure() else f" · {edge.policy}")
            lines.append(f'    v{edge.upstream.index} -->|"{_escape(label)}"| v{edge.downstream.index}')
        return "\n".join(lines) + "\n"

    def describe(self) -> str:
        """The graph as text for a terminal: every vertex and edge with its policy or capacity, and why."""
        rows = [
            (vertex.name, vertex.role.value, f"restart {vertex.restart_policy}", vertex.note) for vertex in self._vertices
        ]
        rows += [(edge.id, "edge", f"{edge.capacity} items, {edge.policy}", edge.note) for edge in self._edges]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [f"{self.name}: {len(self._vertices)} vertices, {len(self._edges)} edges"]
        for *cells, note in rows:
            text = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append(f"  {text}  {note}".rstrip())
        return "\n".join(lines)

    def _add(
        self,
        name: str,
        role: Role,
        factory: Factory,
        restart_policy: RestartPolicy,
        bookkeeping: Bookkeeping,
        expected_errors: tuple[type[BaseException], ...],
        max_deliveries: int,
        dead_letter_limits: DeadLetterLimits | None,
        note: str,
    ) -> VertexId:
        vertex_id = VertexId(len(self._vertices), name)
        self._vertices.append(
            Vertex(
                id=vertex_id,
                role=role,
                factory=factory,
                restart_policy=restart_policy,
                bookkeeping=bookkeeping,
                expected_errors=expected_errors,
                max_deliveries=max_deliveries,
                dead_letter_limits=dead_letter_limits,
                note=note,
            )
        )
        return vertex_id

    def _known(self, vertex_id: VertexId) -> bool:
        return vertex_id.index < len(self._vertices) and self._vertices[vertex_id.index].id == vertex_id

    def _known_links(self) -> list[tuple[int, int]]:
        return [
            (edge.upstream.index, edge.downstream.index)
            for edge in self._edges
            if self._known(edge.upstream) and self._known(edge.downstream)
        ]

    def _declaration_problems(self) -> Iterable[GraphProblem]:
        if not self._vertices:
            yield GraphProblem(
                ProblemKind.EMPTY_GRAPH, (), f"graph {self.name!r} has no vertices", "call add_source(...) first"
            )
        seen: set[str] = set()
        for vertex in self._vertices:
            name = vertex.name
            if name in seen:
                yield GraphProblem(
                    ProblemKind.DUPLICATE_NAME,
                    (name,),
                    f"the name {name!r} is given to more than one vertex",
                    f"give this {vertex.role.value} a name of its own",
                )
            seen.add(name)
            if vertex.max_deliveries < 1:
                yield GraphProblem(
                    ProblemKind.BAD_OPTION,
                    (name,),
                    f"{vertex.role.value} {name!r}: max_deliveries must be >= 1, got {vertex.max_deliveries}",
                    "an item must be delivered once at least",
                )
        for edge in self._edges:
            for vertex_id in (edge.upstream, edge.downstream):
                if not self._known(vertex_id):
                    yield GraphProblem(
                        ProblemKind.UNKNOWN_VERTEX,
                        (edge.id, vertex_id.name),
                        f"edge {edge.id!r}: vertex {vertex_id.name!r} is not of this graph",
                        "connect only ids that this graph's add_… calls returned",
                    )
            if type(edge.capacity) is not int or edge.capacity < 1:
                yield GraphProblem(
                    ProblemKind.BAD_CAPACITY,
                    (edge.id,),
                    f"edge {edge.id!r}: capacity must be a positive integer, got {edge.capacity!r}",
                    "there are no unbounded edges: say how many items it may hold",
                )

    def _arity_problems(self) -> Iterable[GraphProblem]:
        inputs: list[list[str]] = [[] for _ in self._vertices]
        outputs: list[list[str]] = [[] for _ in self._vertices]
        for edge in self._edges:
            if self._known(edge.upstream):
                outputs[edge.upstream.index].append(edge.downstream.name)
            if self._known(edge.downstream):
                inputs[edge.downstream.index].append(edge.upstream.name)
        for vertex in self._vertices:
            for direction, allowed, present in zip(
                ("input", "output"),
                _ARITY[vertex.role],
                (inputs[vertex.id.index], outputs[vertex.id.index]),
                strict=True,
            ):
                if len(present) not in allowed:
                    yield _arity_problem(vertex, direction, allowed, present)

    def _cycle_problems(self, left_over: Sequence[int]) -> Iterable[GraphProblem]:
        unplaced = set(left_over)
        links = [(up, down) for up, down in self._known_links() if up in unplaced and down in unplaced]
        for path in _one_cycle_per_component(left_over, links):
            names = tuple(self._vertices[index].name for index in path)
            yield GraphProblem(
                ProblemKind.CYCLE,
                names,
                f"the graph has a cycle: {' -> '.join(names)}",
                f"remove one of its edges, e.g. connect({names[-2]}, {names[-1]}, …)",
            )


def _arity_problem(vertex: Vertex, direction: str, allowed: range, present: Sequence[str]) -> GraphProblem:
    role, name = vertex.role.value, vertex.name
    missing = len(present) < allowed.start
    kind = ProblemKind(f"{'missing' if missing else 'surplus'}_{direction}")
    if allowed.stop == _MANY:
        expected = f"{allowed.start} or more {direction}s"
    else:
        expected = f"one {direction}" if allowed.stop > 1 else f"no {direction}"
    got = f"{len(present)} ({', '.join(present)})" if present else "none"
    other = "upstream" if direction == "input" else "downstream"
    call = f"connect({other}, {name}, capacity)" if direction == "input" else f"connect({name}, {other}, capacity)"
    if missing:
        remedy = f"add {call}"
    elif allowed == range(1):
        remedy = f"remove the edge, or declare {name!r} with another role"
    elif direction == "input":
        remedy = "merge them first with add_fan_in(...)"
    else:
        remedy = "split them with add_fan_out(...)"
    return GraphProblem(kind, (name,), f"{role} {name!r}: expected {expected}, got {got}", remedy)


def _kahn(count: int, links: Sequence[tuple[int, int]]) -> tuple[list[list[int]], list[int]]:
    """Topological levels by Kahn's algorithm (CACM 5 (1962) 558), ties in insertion order; and what is left over."""
    downstream: list[list[int]] = [[] for _ in range(count)]
    waiting_for = [0] * count
    for up, down in links:
        downstream[up].append(down)
        waiting_for[down] += 1
    level = [index for index in range(count) if not waiting_for[index]]
    levels: list[list[int]] = []
    placed = [False] * count
    while level:
        levels.append(level)
        following: list[int] = []
        for index in level:
            placed[index] = True
            for down in downstream[index]:
                waiting_for[down] -= 1
                if not waiting_for[down]:
                    following.append(down)
        level = sorted(following)
    return levels, [index for index in range(count) if not placed[index]]


def _one_cycle_per_component(nodes: Sequence[int], links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """One shortest cycle through the first node of each strongly connected component, as a closed path."""
    downstream: dict[int, list[int]] = {node: [] for node in nodes}
    upstream: dict[int, list[int]] = {node: [] for node in nodes}
    for up, down in links:
        downstream[up].append(down)
        upstream[down].append(up)
    cycles: list[list[int]] = []
    done: set[int] = set()
    for node in nodes:
        if node in done:
            continue
        component = _reachable(node, downstream) & _reachable(node, upstream)
        done |= component | {node}
        if node in component:
            cycles.append(_shortest_cycle(node, downstream))
    return cycles


def _reachable(start: int, neighbours: dict[int, list[int]]) -> set[int]:
    """What can be reached from ``start`` by one link or more (so ``start`` itself only over a cycle)."""
    seen: set[int] = set()
    stack = list(neighbours[start])
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(neighbours[node])
    return seen


def _shortest_cycle(start: int, downstream: dict[int, list[int]]) -> list[int]:
    came_from: dict[int, int] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for down in downstream[node]:
            if down == start:
                path = [start, node]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if down not in came_from:
                came_from[down] = node
                queue.append(down)
    raise AssertionError("a strongly connected component without a cycle through its first node")


def _escape(text: str) -> str:
    return text.replace('"', "#quot;")
