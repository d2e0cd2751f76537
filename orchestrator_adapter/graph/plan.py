"""From declared vertices and edges to a ``Plan``: passes 1 and 2 of ``build``, as pure functions.

Checks the roles, then orders by Kahn's algorithm. Reports every problem in one ``GraphError``. Knows no channel or task.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.operators.blocking import BlockingPool
from orchestrator_adapter.operators.ends import Factory
from orchestrator_adapter.primitives.check_fields import is_duration
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.storage.dead_letter import DeadLetterLimits
from orchestrator_adapter.supervision.restart import RestartPolicy


class Role(Enum):
    """The kind of a vertex. It determines how many inputs and outputs the vertex must have."""

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
        restart_policy: What happens when an instance fails operationally.
        bookkeeping: How its account must balance.
        expected_errors: Exception types that count as operational besides ``OperatorError`` and ``OSError``.
        max_deliveries: An item delivered this often without acknowledgement is a poison pill.
        progress_timeout: With input waiting and room for its output, it must acknowledge an item within this time.
            Otherwise it is aborted and counts as failed with ``Stalled``. ``None`` for no limit.
        dead_letter_limits: Beyond these limits the operator itself counts as faulty; ``None`` for no limit.
        blocking_pool: The threads for its blocking calls; ``None``: a pool of its own, with the operator's name.
        endless: It is a source that never ends by itself: if it ends before a shutdown, that is a fault.
        note: Why this policy, in one line.
    """

    id: VertexId
    role: Role
    factory: Factory
    restart_policy: RestartPolicy
    bookkeeping: Bookkeeping
    expected_errors: tuple[type[BaseException], ...] = ()
    max_deliveries: int = 2
    progress_timeout: timedelta | None = None
    dead_letter_limits: DeadLetterLimits | None = None
    blocking_pool: BlockingPool | None = None
    endless: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        return self.id.name


@dataclass(frozen=True, slots=True)
class DeclaredEdge:
    """One declared edge: its writer, its reader, its capacity and what happens when it is full."""

    id: str
    upstream: VertexId
    downstream: VertexId
    capacity: int
    policy: FlowPolicy
    note: str


class ProblemKind(Enum):
    """What is wrong with a graph, as a stable name."""

    EMPTY_GRAPH = "empty_graph"
    BAD_NAME = "bad_name"
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
    """One problem: its kind, the vertices or the edge at fault, what is wrong, and the call that corrects it."""

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
    edges: tuple[DeclaredEdge, ...]


def make_plan(name: str, vertices: Sequence[Vertex], edges: Sequence[DeclaredEdge]) -> Plan:
    """Validate and order. Raises ``GraphError`` with every problem."""
    problems = [*_declaration_problems(name, vertices, edges), *_arity_problems(vertices, edges)]
    links = _known_links(vertices, edges)
    levels, left_over = _kahn(len(vertices), links)
    problems += _cycle_problems(vertices, left_over, links)
    if problems:
        raise GraphError(problems)
    level_vertices = tuple(tuple(vertices[index] for index in level) for level in levels)
    order = tuple(vertex for level in level_vertices for vertex in level)
    return Plan(name, order, level_vertices, tuple(edges))


def _known(vertices: Sequence[Vertex], vertex_id: VertexId) -> bool:
    return vertex_id.index < len(vertices) and vertices[vertex_id.index].id is vertex_id  # `is`: not another graph's


def _known_links(vertices: Sequence[Vertex], edges: Sequence[DeclaredEdge]) -> list[tuple[int, int]]:
    return [
        (edge.upstream.index, edge.downstream.index)
        for edge in edges
        if _known(vertices, edge.upstream) and _known(vertices, edge.downstream)
    ]


def _declaration_problems(
    name: str, vertices: Sequence[Vertex], edges: Sequence[DeclaredEdge]
) -> Iterable[GraphProblem]:
    if problem := _name_problem(name):
        yield GraphProblem(ProblemKind.BAD_NAME, (name,), f"the graph's name {name!r} {problem}", _NAME_REMEDY)
    if not vertices:
        yield GraphProblem(ProblemKind.EMPTY_GRAPH, (), f"graph {name!r} has no vertices", "call add_source(...) first")
    seen: set[str] = set()
    pools: dict[str, BlockingPool] = {}
    for vertex in vertices:
        name = vertex.name
        pool = vertex.blocking_pool or BlockingPool(name or "blocking")
        if pools.setdefault(pool.name, pool) != pool:
            yield GraphProblem(
                ProblemKind.BAD_OPTION,
                (name,),
                f"{vertex.role.value} {name!r}: there are two different blocking pools with the name {pool.name!r}",
                "pass the same BlockingPool to both, or give each a name of its own; a pool without options has its "
                "operator's name",
            )
        if name in seen:
            yield GraphProblem(
                ProblemKind.DUPLICATE_NAME,
                (name,),
                f"the name {name!r} is given to more than one vertex",
                f"give this {vertex.role.value} a name of its own",
            )
        seen.add(name)
        yield from _vertex_problems(vertex)
    for edge in edges:
        for vertex_id in (edge.upstream, edge.downstream):
            if not _known(vertices, vertex_id):
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


def _vertex_problems(vertex: Vertex) -> Iterable[GraphProblem]:
    """What is wrong with one vertex by itself."""
    role, name = vertex.role.value, vertex.name
    if problem := _name_problem(name):
        yield GraphProblem(ProblemKind.BAD_NAME, (name,), f"{role}: the name {name!r} {problem}", _NAME_REMEDY)
    deliveries, timeout = vertex.max_deliveries, vertex.progress_timeout
    expected: object = vertex.expected_errors
    options = (
        (
            type(deliveries) is int and deliveries >= 1,
            f"max_deliveries must be >= 1, got {deliveries!r}",
            "an item must be delivered once at least",
        ),
        (
            timeout is None or is_duration(timeout, above=timedelta(0)),
            f"progress_timeout must be a timedelta > 0, got {timeout!r}",
            "leave it out for no limit",
        ),
        (
            isinstance(expected, tuple) and all(isinstance(it, type) and issubclass(it, Exception) for it in expected),
            f"expected_errors must be a tuple of exception types, got {expected!r}",
            "write expected_errors=(SomeError,) with a comma",
        ),
    )
    for good, problem, remedy in options:
        if not good:
            yield GraphProblem(ProblemKind.BAD_OPTION, (name,), f"{role} {name!r}: {problem}", remedy)


_NAME_REMEDY = "names appear in edge ids, metrics, logs and Prefect: choose one such as 'radar-north'"


def _name_problem(name: object) -> str | None:
    """Why ``name`` cannot be a vertex's or a graph's name. An edge's id must say which vertices it connects."""
    if not isinstance(name, str):
        return "is not a string"
    if not name.strip():
        return "is empty"
    if name != name.strip() or not name.isprintable():
        return "has white space around it, or a character that cannot be printed"
    if "->" in name:
        return "contains '->', as the id of an edge does"
    if re.search(r" \(\d+\)$", name):
        return "ends with a number in parentheses, as the id of a second edge between two vertices does"
    return None


def _arity_problems(vertices: Sequence[Vertex], edges: Sequence[DeclaredEdge]) -> Iterable[GraphProblem]:
    inputs: list[list[str]] = [[] for _ in vertices]
    outputs: list[list[str]] = [[] for _ in vertices]
    for edge in edges:
        if _known(vertices, edge.upstream):
            outputs[edge.upstream.index].append(edge.downstream.name)
        if _known(vertices, edge.downstream):
            inputs[edge.downstream.index].append(edge.upstream.name)
    for vertex in vertices:
        for direction, allowed, present in zip(
            ("input", "output"),
            _ARITY[vertex.role],
            (inputs[vertex.id.index], outputs[vertex.id.index]),
            strict=True,
        ):
            if len(present) not in allowed:
                yield _arity_problem(vertex, direction, allowed, present)


def _cycle_problems(
    vertices: Sequence[Vertex], left_over: Sequence[int], known_links: Sequence[tuple[int, int]]
) -> Iterable[GraphProblem]:
    unplaced = set(left_over)
    links = [(up, down) for up, down in known_links if up in unplaced and down in unplaced]
    for path in _one_cycle_per_component(left_over, links):
        names = tuple(vertices[index].name for index in path)
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
    """Topological levels by Kahn's algorithm (CACM 5 (1962) 558), ties in insertion order; and the nodes that have no level."""
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
    """The nodes that can be reached from ``start`` by one link or more (``start`` itself only over a cycle)."""
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
