"""Makes the ``Document`` of a running graph: for ``/graph``, ``/events``, the live page and ``python -m flows top``.

``make_document`` is a pure function of a view and what the history has. ``Documents`` takes the views, samples the history
once a second, and hands the same encoded document to all who ask within a moment.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from orchestrator_adapter.control_plane import document as doc
from orchestrator_adapter.control_plane.bottleneck import EdgeFigures, OperatorFigures, find_bottlenecks
from orchestrator_adapter.control_plane.collectors import Collectors
from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.control_plane.headline import with_headline
from orchestrator_adapter.control_plane.health import health_of
from orchestrator_adapter.control_plane.history import WINDOW_S, History, Sample, Window, quantiles
from orchestrator_adapter.control_plane.layout import places
from orchestrator_adapter.control_plane.links import Links
from orchestrator_adapter.control_plane.panels import panels
from orchestrator_adapter.control_plane.snapshot import Snapshots, View
from orchestrator_adapter.graph.plan import DeclaredEdge, Plan, Role, Vertex
from orchestrator_adapter.primitives.event_log import EventLog
from orchestrator_adapter.primitives.metrics import difference
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.runtime.loop_usage import LoopUsage
from orchestrator_adapter.runtime.status import GraphStatus, OperatorStatus
from orchestrator_adapter.runtime.timeline import Entry

logger = logging.getLogger("orchestrator_adapter.control_plane")

SAMPLE_EVERY_S: Final = 1.0
_REUSE_FOR_S: Final = 0.2
_LOOK_EVERY_S: Final = 0.05  # at what the graph's loop runs
_INSTANCE: Final = re.compile(r" #\d+$")  # of the label of an operator's later instances
_ENTERED: Final = 3  # the first terms of the ledger are what came in


class Documents:
    """The documents of one run. Use it on the control plane's loop."""

    def __init__(
        self,
        built: BuiltGraph,
        snapshots: Snapshots,
        settings: ControlPlane,
        collectors: Collectors,
        *,
        links: Links | None = None,
    ) -> None:
        self._built = built
        self._snapshots = snapshots
        self._settings = settings
        self._collectors = collectors
        self._links = links
        self._log = EventLog(logger, clock=built.clock, run=built.run_id, graph=built.plan.name)
        self._history = History()
        self._places = places(built.plan)
        self._started_at = time.time()
        self._encoded: tuple[float, bytes] = (float("-inf"), b"")
        self._making = asyncio.Lock()
        self._usage = LoopUsage(snapshots.graph_loop)
        self._cpu: deque[tuple[float, float]] = deque()  # monotonic seconds, processor time so far; also during a stall
        self._add(snapshots.latest())

    async def sample(self) -> None:
        """Add a sample to the history once a second, until it is cancelled. While documents are read, watch the graph's loop."""
        failed, sampled_at = False, time.monotonic()
        while True:
            is_read = time.monotonic() - self._encoded[0] < WINDOW_S
            await asyncio.sleep(_LOOK_EVERY_S if is_read else SAMPLE_EVERY_S)
            now = time.monotonic()
            try:
                if is_read:
                    self._usage.look(now)
                if now - sampled_at < SAMPLE_EVERY_S:
                    continue
                sampled_at = now
                self._add(await self._snapshots.view())
                failed = False
            except Exception as error:  # noqa: BLE001 - foreign figures may raise; the next sample may succeed
                if not failed:
                    self._log("sample_failed", level=logging.ERROR, exc=error)
                failed = True

    async def current(self) -> bytes:
        """The document now, as JSON: a new one, or one of the last 0.2 s. Raises what taking the status raises."""
        async with self._making:  # requests that arrive together share one
            made_at, encoded = self._encoded
            if time.monotonic() - made_at >= _REUSE_FOR_S:
                view = await self._snapshots.view()
                self._add(view)
                encoded = msgspec.json.encode(with_headline(self._make(view)))
                self._encoded = (time.monotonic(), encoded)
        return encoded

    def expire(self) -> None:
        """The next document is a new one."""
        self._encoded = (float("-inf"), b"")

    def _add(self, view: View) -> None:
        now = time.monotonic()
        self._cpu.append((now, view.process.cpu_s))
        while len(self._cpu) > 1 and now - self._cpu[1][0] >= WINDOW_S:
            self._cpu.popleft()
        if not view.silent_s:
            self._history.add(Sample(now - view.age_s, time.time() - view.age_s, view.status))

    def _cores(self) -> float:
        """Processor time per second."""
        (began, before), (ended, now) = self._cpu[0], self._cpu[-1]
        return (now - before) / (ended - began) if ended > began else 0.0

    def _make(self, view: View) -> doc.Document:
        now_s = time.time()
        families = [family for each in self._collectors.each(list) for family in each] if self._settings.panels else []
        watchdog = self._built.watchdog
        stall = watchdog.current_stall if watchdog is not None else None
        return make_document(
            self._built.plan,
            view,
            self._history,
            places=self._places,
            on_loop=self._usage.shares(time.monotonic()),
            cores=self._cores(),
            run=self._built.run_id,
            started_at=self._started_at,
            at=now_s,
            stack=stall.stack if stall is not None else "",
            timeline=self._built.timeline.entries(),
            panels=panels(self._settings.panels, families, now_s=now_s),
            actions=self._settings.actions,
            links=self._links,
        )


def make_document(
    plan: Plan,
    view: View,
    history: History,
    *,
    places: Mapping[str, tuple[int, int]],
    run: str,
    started_at: float,
    at: float,
    on_loop: Mapping[str, float] | None = None,
    cores: float = 0.0,
    stack: str = "",
    timeline: Sequence[Entry] = (),
    panels: tuple[doc.Panel, ...] = (),
    actions: bool = False,
    links: Links | None = None,
) -> doc.Document:
    """The document of ``view``. Times are UTC seconds; ``stack`` is where the loop is blocked.

    ``on_loop`` is the share of the time for which each operator computed on the loop, as far as that is known; ``cores`` is
    the processor time per second.
    """
    status = view.status
    window = history.window() or _empty_window(view, at)
    health = health_of(status, silent_s=view.silent_s, threshold_s=view.threshold_s, blocked_by=view.blocked_by)
    by_name = {vertex.name: vertex for vertex in plan.order}
    before = window.before()
    operators = tuple(
        _operator(
            it,
            by_name[it.name],
            window,
            before=before.get(it.name, it),
            place=places[it.name],
            url=links.task_run(it.name, it.instance) if links is not None else "",
        )
        for it in status.operators
    )
    edges = tuple(_edge(edge, status, window) for edge in plan.edges)
    return doc.Document(
        graph=plan.name,
        run=run,
        at=at,
        started_at=started_at,
        shutting_down=status.shutting_down,
        window_s=window.length_s,
        health=doc.Health(status=health.status.value, reasons=health.reasons),
        loop=doc.Loop(
            silent_s=view.silent_s,
            stalled=view.silent_s >= view.threshold_s,
            lag_s=view.lag_s,
            stalls=view.stalls,
            blocked_by=_INSTANCE.sub("", view.blocked_by),
            stack=stack if view.silent_s else "",
            snapshot_age_s=view.age_s,
        ),
        operators=operators,
        edges=edges,
        bottlenecks=_bottlenecks(plan, status, history.brief_window() or window, on_loop or {}),
        breakers=_breakers(status),
        blocking_pools=tuple(
            doc.BlockingPool(
                name=name,
                threads=pool.threads,
                busy=pool.busy,
                waiting=pool.waiting,
                abandoned=pool.abandoned,
                hanging=tuple(str(call) for call in pool.hanging),
            )
            for name, pool in status.blocking_pools.items()
        ),
        worker_pools=tuple(
            doc.WorkerPool(
                name=pool.name,
                workers=pool.workers,
                ready=pool.alive,
                waiting=pool.waiting,
                in_flight=pool.in_flight,
                calls=pool.calls,
                lost=pool.lost,
                restarts=pool.restarts,
                hung=pool.hung,
                exhausted=pool.exhausted,
            )
            for pool in view.pools
        ),
        ledger=_ledger(status),
        latency=history.latency(),
        process=doc.Process(
            resident_bytes=view.process.resident_bytes,
            open_fds=view.process.open_fds,
            max_fds=view.process.max_fds,
            threads=view.process.threads,
            cpu=cores,
        ),
        timeline=tuple(
            doc.Happened(
                number=entry.number,
                at=entry.time_ns / 1e9,
                decision=entry.decision,
                alarming=entry.is_alarming,
                operator=entry.operator,
                text=entry.text,
                times=entry.times,
            )
            for entry in timeline
        ),
        panels=panels,
        actions=actions,
        url=links.flow_run if links is not None else "",
    )


def _empty_window(view: View, at: float) -> Window:
    sample = Sample(0.0, at, view.status)
    return Window(sample, sample)


def _operator(
    now: OperatorStatus, vertex: Vertex, window: Window, *, before: OperatorStatus, place: tuple[int, int], url: str
) -> doc.Operator:
    is_source = vertex.role is Role.SOURCE
    return doc.Operator(
        name=now.name,
        role=vertex.role.value,
        column=place[0],
        row=place[1],
        state=now.state,
        instance=now.instance,
        uptime_s=now.uptime_s,
        restart_in_s=now.restart_in_s,
        budget=doc.Budget(left=now.budget.left, of=now.budget.of, window_s=now.budget.window_s, restarts=now.restarts),
        shares=window.shares(before, now),
        rate_in=window.rate(_taken_in(before, is_source=is_source), _taken_in(now, is_source=is_source)),
        rate_out=window.rate(before.emitted, now.emitted),
        consumed=now.consumed,
        emitted=now.emitted,
        last_item_age_s=now.idle_s,
        latency=quantiles(difference(now.batch_latency, before.batch_latency)),
        last_error=None
        if now.last_error is None
        else doc.LastError(at=now.last_error.time_ns / 1e9, kind=now.last_error.kind, message=now.last_error.message),
        policy=str(vertex.restart_policy),
        note=vertex.note,
        errors=dict(now.errors),
        dead_letters={kind.value: count for kind, count in now.dead_letters.items() if count},
        counters=dict(now.counters),
        breakers=now.breakers,
        url=url,
    )


def _taken_in(operator: OperatorStatus, *, is_source: bool) -> int:
    """What it has acknowledged; of a source, what it has sent or dead-lettered."""
    return operator.emitted + sum(operator.dead_letters.values()) if is_source else operator.consumed


def _edge(edge: DeclaredEdge, status: GraphStatus, window: Window) -> doc.Edge:
    now = status.edges[edge.id]
    before = window.oldest.status.edges[edge.id]
    return doc.Edge(
        id=edge.id,
        upstream=edge.upstream.name,
        downstream=edge.downstream.name,
        occupancy=now.occupancy,
        capacity=now.capacity,
        fill=now.occupancy / now.capacity,
        outbox=status.outboxes[edge.id],
        high_water_mark=now.high_water_mark,
        rate=window.rate(before.sent, now.sent),
        sent=now.sent,
        received=now.received,
        pressure=_pressure(edge.id, window),
        wait=quantiles(difference(now.wait, before.wait)),
        dropped=now.policy_drops,
        policy=str(edge.policy),
        note=edge.note,
        spilled=now.spilled,
        spilled_bytes=now.spilled_bytes,
    )


def _bottlenecks(
    plan: Plan, status: GraphStatus, window: Window, on_loop: Mapping[str, float]
) -> tuple[doc.Bottleneck, ...]:
    """What holds the graph up in ``window``, which is brief."""
    is_open = {name for name, breaker in status.breakers.items() if breaker.state.label == "open"}
    waiting = {name: pool.waiting for name, pool in status.blocking_pools.items() if pool.waiting}
    before, edges_before = window.before(), window.oldest.status.edges
    return find_bottlenecks(
        (
            OperatorFigures(
                name=it.name,
                shares=window.shares(before[it.name], it),
                state=it.state,
                is_source=it.role is Role.SOURCE,
                restart_in_s=it.restart_in_s,
                open_breakers=tuple(name for name in it.breakers if name in is_open),
                notes=(f"{waiting[it.name]} blocking calls wait for a thread",) if it.name in waiting else (),
                on_loop=on_loop.get(it.name, 0.0),
            )
            for it in window.newest.status.operators
        ),
        (
            EdgeFigures(
                id=edge.id,
                upstream=edge.upstream.name,
                downstream=edge.downstream.name,
                pressure=_pressure(edge.id, window),
                policy=edge.policy.name,
                dropped=now.policy_drops - edges_before[edge.id].policy_drops,
                spilled=now.spilled,
            )
            for edge in plan.edges
            for now in (window.newest.status.edges[edge.id],)
        ),
        window_s=window.length_s,
    )


def _pressure(edge: str, window: Window) -> float:
    before, now = window.oldest.status.edges[edge], window.newest.status.edges[edge]
    return min(1.0, max(0.0, window.rate(before.pressure_s, now.pressure_s)))


def _breakers(status: GraphStatus) -> tuple[doc.Breaker, ...]:
    return tuple(
        doc.Breaker(
            name=breaker.name,
            state=breaker.state.label,
            forced=breaker.forced,
            probe_in_s=breaker.probe_in_s,
            failures=breaker.failures,
            calls=breaker.calls,
            rejections=breaker.rejections,
            opened=breaker.opened,
            operators=tuple(it.name for it in status.operators if breaker.name in it.breakers),
        )
        for breaker in status.breakers.values()
    )


def _ledger(status: GraphStatus) -> doc.Ledger:
    terms = tuple(status.ledger.as_dict().items())
    left, right = terms[:_ENTERED], terms[_ENTERED:]
    return doc.Ledger(
        left=left,
        right=right,
        balanced=status.ledger.balanced,
        lost=sum(items for _, items in left) - sum(items for _, items in right),
    )
