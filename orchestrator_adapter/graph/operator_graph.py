"""``OperatorGraph``: declare the vertices and edges, validate them together, draw them.

A declaration only. ``validate()`` makes a ``Plan`` of it (see ``plan``) without a running loop; ``build()`` hands the plan
to ``runtime``, which wires and runs it.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

from orchestrator_adapter.channels.channel import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.graph.plan import Edge, Plan, Role, Vertex, VertexId, make_plan
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
        self._alike = Counter[str]()

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
        endless: bool = False,
        note: str = "",
    ) -> VertexId:
        """A vertex without input and with one output. Malformed input never stops it unless limits are given.

        ``endless`` says that it has no end of its own, as a feed's listener has none: if it ends although nobody asked the
        graph to stop, the control plane's ``/health`` says so. The run goes on all the same.
        """
        return self._add(
            name,
            Role.SOURCE,
            factory,
            restart_policy=restart_policy,
            bookkeeping=Bookkeeping.SOURCE,
            expected_errors=expected_errors,
            dead_letter_limits=dead_letter_limits,
            endless=endless,
            note=note,
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
        progress_timeout: timedelta | None = None,
        dead_letter_limits: DeadLetterLimits | None = None,
        note: str = "",
    ) -> VertexId:
        """A vertex with one input and one output.

        ``stateful`` chooses the stricter default policy. ``expanding`` says that it derives or absorbs items;
        otherwise it must conserve them, to the item. For the others see ``Vertex``.
        """
        return self._add(
            name,
            Role.OPERATOR,
            factory,
            restart_policy=restart_policy or (STATEFUL_DEFAULT if stateful else STATELESS_DEFAULT),
            bookkeeping=Bookkeeping.EXPANDING if expanding else Bookkeeping.CONSERVING,
            expected_errors=expected_errors,
            max_deliveries=max_deliveries,
            progress_timeout=progress_timeout,
            dead_letter_limits=dead_letter_limits,
            note=note,
        )

    def add_sink(
        self,
        name: str,
        factory: Factory,
        *,
        restart_policy: RestartPolicy = SINK_DEFAULT,
        expected_errors: tuple[type[BaseException], ...] = (),
        max_deliveries: int = 2,
        progress_timeout: timedelta | None = None,
        dead_letter_limits: DeadLetterLimits | None = None,
        note: str = "",
    ) -> VertexId:
        """A vertex with one input and no output: what it acknowledges is written."""
        return self._add(
            name,
            Role.SINK,
            factory,
            restart_policy=restart_policy,
            bookkeeping=Bookkeeping.SINK,
            expected_errors=expected_errors,
            max_deliveries=max_deliveries,
            progress_timeout=progress_timeout,
            dead_letter_limits=dead_letter_limits,
            note=note,
        )

    def add_fan_in(
        self,
        name: str,
        factory: Factory | None = None,
        *,
        restart_policy: RestartPolicy = STATELESS_DEFAULT,
        expected_errors: tuple[type[BaseException], ...] = (),
        max_deliveries: int = 2,
        progress_timeout: timedelta | None = None,
        note: str = "",
    ) -> VertexId:
        """A router with two or more inputs and one output. By default it merges them, each served in turn.

        One of your own tells its inputs apart by ``Receiver.edge``. If it holds items of several of them at once when it
        fails, all of those are under suspicion, and an innocent one may be taken for a poison pill with the culprit.
        """
        return self._add(
            name,
            Role.FAN_IN,
            factory or merge(),
            restart_policy=restart_policy,
            bookkeeping=Bookkeeping.CONSERVING,
            expected_errors=expected_errors,
            max_deliveries=max_deliveries,
            progress_timeout=progress_timeout,
            note=note,
        )

    def add_fan_out(
        self,
        name: str,
        factory: Factory | None = None,
        *,
        restart_policy: RestartPolicy = STATELESS_DEFAULT,
        expected_errors: tuple[type[BaseException], ...] = (),
        max_deliveries: int = 2,
        progress_timeout: timedelta | None = None,
        note: str = "",
    ) -> VertexId:
        """A router with one input and two or more outputs. By default it broadcasts; see also ``partition``."""
        return self._add(
            name,
            Role.FAN_OUT,
            factory or broadcast(),
            restart_policy=restart_policy,
            bookkeeping=Bookkeeping.EXPANDING,
            expected_errors=expected_errors,
            max_deliveries=max_deliveries,
            progress_timeout=progress_timeout,
            note=note,
        )

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

        A second edge between the same two routers is ``upstream -> downstream (2)``. ``policy`` is backpressure unless
        told otherwise; ``note`` says why this capacity.
        """
        edge_id = f"{upstream.name} -> {downstream.name}"
        self._alike[edge_id] += 1
        if self._alike[edge_id] > 1:
            edge_id += f" ({self._alike[edge_id]})"
        self._edges.append(Edge(edge_id, upstream, downstream, capacity, policy or FlowPolicy.backpressure(), note))
        return edge_id

    def validate(self) -> Plan:
        """Passes 1 and 2: roles and order. Needs no running loop. Raises ``GraphError`` with every problem there is."""
        return make_plan(self.name, self._vertices, self._edges)

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
        from orchestrator_adapter.runtime.built_graph import BuiltGraph  # noqa: PLC0415 - would be circular at import

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
            (vertex.name, vertex.role.value, f"restart {vertex.restart_policy}", vertex.note)
            for vertex in self._vertices
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
        *,
        restart_policy: RestartPolicy,
        bookkeeping: Bookkeeping,
        expected_errors: tuple[type[BaseException], ...],
        note: str,
        max_deliveries: int = 1,
        progress_timeout: timedelta | None = None,
        dead_letter_limits: DeadLetterLimits | None = None,
        endless: bool = False,
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
                progress_timeout=progress_timeout,
                dead_letter_limits=dead_letter_limits,
                endless=endless,
                note=note,
            )
        )
        return vertex_id


def _escape(text: str) -> str:
    return text.replace('"', "#quot;")
