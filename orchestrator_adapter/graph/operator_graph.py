"""``OperatorGraph``: declare the vertices and edges, validate them together, draw them.

A declaration only. ``validate()`` makes a ``Plan`` from it (see ``plan``) without a running loop; ``build()`` passes the plan
to ``runtime``, which wires and runs it.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict, Unpack

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.graph import drawing
from orchestrator_adapter.graph.plan import DeclaredEdge, Plan, Role, Vertex, VertexId, make_plan
from orchestrator_adapter.operators.blocking import BlockingPool
from orchestrator_adapter.operators.ends import Factory
from orchestrator_adapter.operators.routers import broadcast, merge
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.storage.dead_letter import DeadLetterLimits, DeadLetterStore
from orchestrator_adapter.supervision.restart import (
    SINK_DEFAULT,
    SOURCE_DEFAULT,
    STATEFUL_DEFAULT,
    STATELESS_DEFAULT,
    RestartPolicy,
)

if TYPE_CHECKING:
    from orchestrator_adapter.runtime.built_graph import BuiltGraph


class VertexOptions(TypedDict, total=False):
    """Options of every vertex; see ``Vertex`` for what they mean."""

    expected_errors: tuple[type[BaseException], ...]
    blocking_pool: BlockingPool | None
    note: str


class SourceOptions(VertexOptions, total=False):
    """Options of a source."""

    dead_letter_limits: DeadLetterLimits | None


class RouterOptions(VertexOptions, total=False):
    """Options of a fan-in or a fan-out."""

    max_deliveries: int
    progress_timeout: timedelta | None


class OperatorOptions(RouterOptions, SourceOptions, total=False):
    """Options of an operator or a sink."""


class _AllOptions(OperatorOptions, total=False):
    endless: bool


class OperatorGraph:
    """A streaming pipeline, declared. ``validate()`` and ``build()`` check it and report every problem together.

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
        self._edges: list[DeclaredEdge] = []
        self._edges_between = Counter[str]()

    @property
    def vertices(self) -> tuple[Vertex, ...]:
        """Every vertex, in the order in which it was added."""
        return tuple(self._vertices)

    @property
    def edges(self) -> tuple[DeclaredEdge, ...]:
        """Every edge, in the order in which it was connected."""
        return tuple(self._edges)

    def add_source(
        self,
        name: str,
        factory: Factory,
        *,
        restart_policy: RestartPolicy = SOURCE_DEFAULT,
        endless: bool = False,
        **options: Unpack[SourceOptions],
    ) -> VertexId:
        """A vertex without input and with one output. Malformed input never stops it unless limits are given.

        ``endless`` says that the source never ends by itself, such as the listener of a feed. If it ends although no
        shutdown was requested, the control plane's ``/health`` reports it. The run goes on.
        """
        return self._add(name, Role.SOURCE, factory, restart_policy, Bookkeeping.SOURCE, endless=endless, **options)

    def add_operator(
        self,
        name: str,
        factory: Factory,
        *,
        restart_policy: RestartPolicy | None = None,
        stateful: bool = False,
        expanding: bool = False,
        **options: Unpack[OperatorOptions],
    ) -> VertexId:
        """A vertex with one input and one output.

        ``stateful`` chooses the stricter default policy. ``expanding`` says that it derives or absorbs items; otherwise
        it must conserve them exactly.
        """
        policy = restart_policy or (STATEFUL_DEFAULT if stateful else STATELESS_DEFAULT)
        bookkeeping = Bookkeeping.EXPANDING if expanding else Bookkeeping.CONSERVING
        return self._add(name, Role.OPERATOR, factory, policy, bookkeeping, **options)

    def add_sink(
        self,
        name: str,
        factory: Factory,
        *,
        restart_policy: RestartPolicy = SINK_DEFAULT,
        **options: Unpack[OperatorOptions],
    ) -> VertexId:
        """A vertex with one input and no output: the items that it acknowledges are written."""
        return self._add(name, Role.SINK, factory, restart_policy, Bookkeeping.SINK, **options)

    def add_fan_in(
        self,
        name: str,
        factory: Factory | None = None,
        *,
        restart_policy: RestartPolicy = STATELESS_DEFAULT,
        **options: Unpack[RouterOptions],
    ) -> VertexId:
        """A router with two or more inputs and one output. By default it merges them, each served in turn.

        Your own factory distinguishes the inputs by ``Receiver.edge``. If it fails while it has items of several inputs
        on lease, all of these are suspects, and a sound one can be dead-lettered as a poison pill together with the
        item at fault.
        """
        return self._add(name, Role.FAN_IN, factory or merge(), restart_policy, Bookkeeping.CONSERVING, **options)

    def add_fan_out(
        self,
        name: str,
        factory: Factory | None = None,
        *,
        restart_policy: RestartPolicy = STATELESS_DEFAULT,
        **options: Unpack[RouterOptions],
    ) -> VertexId:
        """A router with one input and two or more outputs. By default it broadcasts; see also ``partition``."""
        return self._add(name, Role.FAN_OUT, factory or broadcast(), restart_policy, Bookkeeping.EXPANDING, **options)

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

        A second edge between the same two routers is ``upstream -> downstream (2)``. ``policy`` is backpressure by
        default; ``note`` says why this capacity.
        """
        edge_id = f"{upstream.name} -> {downstream.name}"
        self._edges_between[edge_id] += 1
        if self._edges_between[edge_id] > 1:
            edge_id += f" ({self._edges_between[edge_id]})"
        self._edges.append(
            DeclaredEdge(edge_id, upstream, downstream, capacity, policy or FlowPolicy.backpressure(), note)
        )
        return edge_id

    def validate(self) -> Plan:
        """Passes 1 and 2: roles and order. Needs no running loop. Raises ``GraphError`` with every problem."""
        return make_plan(self.name, self._vertices, self._edges)

    def build(
        self,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        dead_letters: DeadLetterStore | None = None,
    ) -> BuiltGraph:
        """All four passes: validate, order, allocate every channel, wire every operator in topological order.

        Needs no running loop: ``run()`` starts the instances, because every running task must be awaited.
        ``clock``, ``rng`` and ``dead_letters`` default to the system's clock, a fresh generator and a bounded in-memory
        store.
        """
        # The only import from a room above, so that users can write graph.build().
        from orchestrator_adapter.runtime.built_graph import BuiltGraph  # noqa: PLC0415 - would be circular at import

        return BuiltGraph(self.validate(), clock=clock, rng=rng, dead_letters=dead_letters)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart, with capacities, flow policies and restart policies. Works for invalid graphs."""
        return drawing.to_mermaid(self._vertices, self._edges)

    def describe(self) -> str:
        """The graph as text for a terminal: every vertex and edge with its policy or capacity, and the reason."""
        return drawing.describe(self.name, self._vertices, self._edges)

    def _add(
        self,
        name: str,
        role: Role,
        factory: Factory,
        restart_policy: RestartPolicy,
        bookkeeping: Bookkeeping,
        **options: Unpack[_AllOptions],
    ) -> VertexId:
        vertex_id = VertexId(len(self._vertices), name)
        self._vertices.append(Vertex(vertex_id, role, factory, restart_policy, bookkeeping, **options))
        return vertex_id
