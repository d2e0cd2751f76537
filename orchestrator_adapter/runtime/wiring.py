"""Passes 3 and 4 of ``build``: every channel, then every operator with its ends, in topological order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator_adapter.channels.channel import Channel, Undeliverable
from orchestrator_adapter.channels.edge import Receiver, Sender
from orchestrator_adapter.channels.ledger import OperatorAccount
from orchestrator_adapter.graph.plan import Plan, Role, Vertex
from orchestrator_adapter.operators.ends import VertexServices, WiredEnds
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.event_log import BoundedLog
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.wakeup import Wakeup
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.storage.dead_letter import DeadLetterGate, DeadLetterKind
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter
from orchestrator_adapter.supervision.events import Restarted
from orchestrator_adapter.supervision.progress import ProgressWatch
from orchestrator_adapter.supervision.task import Task
from orchestrator_adapter.supervision.task_exit import TaskExit


@dataclass(frozen=True, slots=True)
class GraphServices:
    """What every vertex of one graph shares."""

    clock: Clock
    rng: random.Random
    shutdown: ShutdownToken
    dead_letter_writer: DeadLetterWriter
    executor: Callable[[], ThreadPoolExecutor]
    breakers: Breakers


@dataclass(slots=True)
class Slot:
    """One vertex with all that belongs to it, over all its instances.

    Attributes:
        vertex: What was declared.
        ends: What its instances are handed.
        services: What the runtime lends it.
        inputs: The channels it reads.
        upstream: Who writes them, by name.
        watch: Its progress timeout, if it has one.
        task: Its latest instance.
        exit: How the latest instance to end did so.
        restart_at: When the next instance is due, if one is.
        restarted: Why it is.
        abort_by: When an instance that was aborted for making no progress is a straggler, if there is one.
        leaving: It has ended for good, and its task delivers what it had handed over.
        retired: It has ended for good, and all is settled.
    """

    vertex: Vertex
    ends: WiredEnds
    services: VertexServices
    inputs: tuple[Channel[Any], ...]
    upstream: tuple[str, ...]
    watch: ProgressWatch | None
    task: Task | None = None
    exit: TaskExit | None = None
    restart_at: float | None = None
    restarted: Restarted | None = None
    abort_by: float | None = None
    leaving: bool = False
    retired: bool = False

    @property
    def name(self) -> str:
        return self.vertex.name

    @property
    def account(self) -> OperatorAccount:
        """Its books."""
        return self.services.account


@dataclass(frozen=True, slots=True)
class Wiring:
    """A plan with every channel made and every end handed out."""

    slots: dict[str, Slot]
    channels: dict[str, Channel[Any]]
    senders: tuple[Sender[Any], ...]


def wire(plan: Plan, services: GraphServices) -> Wiring:
    """Allocate every channel, then hand every end out exactly once. What is left over is a bug and raises."""
    arrivals = {vertex.name: Wakeup() for vertex in plan.order}
    departures = {vertex.name: Wakeup() for vertex in plan.order}
    lent = {vertex.name: _services(vertex, services) for vertex in plan.order}
    receivers: dict[str, list[Receiver[Any]]] = {vertex.name: [] for vertex in plan.order}
    senders: dict[str, list[Sender[Any]]] = {vertex.name: [] for vertex in plan.order}
    upstream: dict[str, list[str]] = {vertex.name: [] for vertex in plan.order}
    joined: dict[str, list[Channel[Any]]] = {vertex.name: [] for vertex in plan.order if vertex.role is Role.FAN_IN}
    split: dict[str, list[Channel[Any]]] = {vertex.name: [] for vertex in plan.order if vertex.role is Role.FAN_OUT}
    channels: dict[str, Channel[Any]] = {}
    every_sender: list[Sender[Any]] = []
    for edge in plan.edges:
        up, down = edge.upstream.name, edge.downstream.name
        channel: Channel[Any] = Channel(edge.id, edge.capacity)
        channels[edge.id] = channel
        if down in joined:
            joined[down].append(channel)
        if up in split:
            split[up].append(channel)
        receivers[down].append(
            Receiver(
                channel,
                lent[down].account,
                arrivals=arrivals[down],
                departures=departures[up],
                siblings=joined.get(down, ()),
            )
        )
        sender = Sender(
            channel,
            edge.policy,
            lent[up].account,
            arrivals=arrivals[down],
            departures=departures[up],
            clock=services.clock,
            bury=partial(_bury_untaken, up, lent[up]),
            siblings=split.get(up, ()),
        )
        senders[up].append(sender)
        every_sender.append(sender)
        upstream[down].append(up)
    slots: dict[str, Slot] = {}
    for vertex in plan.order:
        name = vertex.name
        inputs = receivers.pop(name)
        ends = WiredEnds(
            name,
            inputs,
            senders.pop(name),
            lent[name],
            arrivals=arrivals[name],
            departures=departures[name],
        )
        timeout = vertex.progress_timeout
        slots[name] = Slot(
            vertex=vertex,
            ends=ends,
            services=lent[name],
            inputs=tuple(receiver.channel for receiver in inputs),
            upstream=tuple(upstream[name]),
            watch=ProgressWatch(timeout.total_seconds()) if timeout is not None else None,
        )
    if receivers or senders:
        raise OrchestratorError(f"ends left over after wiring: {sorted({*receivers, *senders})}")
    return Wiring(slots, channels, tuple(every_sender))


def _services(vertex: Vertex, services: GraphServices) -> VertexServices:
    return VertexServices(
        clock=services.clock,
        rng=services.rng,
        shutdown=services.shutdown,
        dead_letter_writer=services.dead_letter_writer,
        account=OperatorAccount(vertex.name, vertex.bookkeeping),
        executor=services.executor,
        breakers=services.breakers,
        gate=DeadLetterGate(vertex.dead_letter_limits),
        log=BoundedLog(vertex.name, services.clock),
        latency=LatencyHistogram(),
    )


def _bury_untaken(operator: str, services: VertexServices, why: str, items: Sequence[Undeliverable[Any]]) -> None:
    """What an edge's flow policy gave up on, or what is for a branch that is done: too frequent for a decision's line each."""
    services.log.note(str(DeadLetterKind.UNDELIVERED), why)
    services.account.dead_lettered += len(items)
    services.dead_letter_writer.write_unlogged(operator, items, DeadLetterKind.UNDELIVERED, why)
