"""Live progress of a running graph on a terminal: rates, latency, occupancy, ledger. Reads ``BuiltGraph.status()`` only.

A table that redraws itself; on a terminal that cannot move its cursor (``TERM=dumb``), one line a second.
"""

from __future__ import annotations

import asyncio
import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.output import print_problem
from orchestrator_adapter import BreakerState, BuiltGraph, GraphStatus, Role

_PERIOD_S = 1.0
_BAR = 20  # characters of an edge's occupancy bar


class Progress:
    """Shows one graph on standard error, a terminal, from ``attach`` until ``close``. ``title`` is above the table."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._task: asyncio.Task[None] | None = None

    def attach(self, built: BuiltGraph) -> None:
        """Start to show ``built``, on the running loop. If showing fails, the graph runs on."""
        self._task = asyncio.get_running_loop().create_task(self._show(built))

    async def close(self) -> None:
        """Stop showing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                print_problem(f"progress: {type(error).__name__}: {error}")

    async def _show(self, built: BuiltGraph) -> None:
        console = Terminal(stderr=True)
        started = then = time.monotonic()
        before = built.status()
        if console.is_dumb_terminal or not console.is_terminal:
            while True:
                await asyncio.sleep(_PERIOD_S)
                now, status = time.monotonic(), built.status()
                console.print(line(status, before, now - then, now - started), soft_wrap=True, highlight=False)
                then, before = now, status
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                await asyncio.sleep(_PERIOD_S)
                now, status = time.monotonic(), built.status()
                live.update(screen(self._title, status, before, now - then, now - started), refresh=True)
                then, before = now, status


class Terminal(Console):
    """Rich's console ends the process when its output is closed; this one raises, and what it shows runs on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError("the terminal of the progress is closed")


def line(status: GraphStatus, before: GraphStatus, period_s: float, elapsed_s: float) -> str:
    """The progress as one line."""
    ledger = status.ledger
    rate = (ledger.written - before.ledger.written) / period_s
    latency = status.latency
    timing = f"p50 {latency.p50_ms:.1f} ms  p99 {latency.p99_ms:.1f} ms" if latency is not None else "p50 -  p99 -"
    fullest = max(status.edges.items(), key=lambda edge: edge[1].occupancy / edge[1].capacity)
    return (
        f"{elapsed_s:5.0f} s  {rate:8,.0f} obs/s  {timing}"
        f"  fullest edge {fullest[0]} {fullest[1].occupancy}/{fullest[1].capacity}"
        f"  restarts {status.restarts}{_not_closed(status)}  ledger {'balanced' if ledger.balanced else 'NOT BALANCED'}:"
        f" ingested {ledger.ingested:,} written {ledger.written:,} duplicates {ledger.duplicates:,}"
        f" rejected {ledger.rejected:,}"
        f" dead-lettered {ledger.dead_lettered:,} in flight {ledger.in_flight:,}"
    )


def screen(title: str, status: GraphStatus, before: GraphStatus, period_s: float, elapsed_s: float) -> Group:
    """The progress as tables: operators, edges, latency and ledger."""
    emitted_before = {operator.name: operator for operator in before.operators}
    operators = Table("operator", "state", "run", "in/s", "out/s", "counters", title=title, title_justify="left")
    for operator in status.operators:
        was = emitted_before[operator.name]
        consumed, emitted = operator.consumed - was.consumed, operator.emitted - was.emitted
        counters = "  ".join(
            f"{name} {value}" if name == "port" else f"{name} {value:,}" for name, value in operator.counters.items()
        )
        colour = {"running": "green", "restarting": "yellow", "paused": "yellow"}.get(operator.state, "red")
        operators.add_row(
            operator.name,
            Text(operator.state, style=colour),
            f"#{operator.instance}",
            "" if operator.role is Role.SOURCE else f"{consumed / period_s:,.0f}",
            "" if operator.role is Role.SINK else f"{emitted / period_s:,.0f}",
            Text(counters, style="dim"),
        )
    edges = Table("edge", "occupancy", "", "peak", "shed")
    for name, edge in status.edges.items():
        full = round(_BAR * edge.occupancy / edge.capacity)
        bar = Text("█" * full + "·" * (_BAR - full), style="red" if full > _BAR // 2 else "cyan")
        edges.add_row(name, bar, f"{edge.occupancy:,}/{edge.capacity:,}", f"{edge.high_water_mark:,}", f"{edge.shed:,}")
    latency = status.latency
    timing = (
        f"ingest to log: p50 {latency.p50_ms:.2f} ms, p99 {latency.p99_ms:.2f} ms, max {latency.max_ms:.1f} ms"
        if latency is not None
        else "ingest to log: nothing measured yet"
    )
    rate = (status.ledger.written - before.ledger.written) / period_s
    return Group(
        operators,
        edges,
        Text(f"{elapsed_s:.0f} s   {rate:,.0f} obs/s written   {timing}   restarts {status.restarts}"),
        *([Text(text.strip(), style="yellow")] if (text := _not_closed(status)) else []),
        Text(str(status.ledger), style="green" if status.ledger.balanced else "bold red"),
    )


def _not_closed(status: GraphStatus) -> str:
    """The circuit breakers that reject calls now; usually empty."""
    return "".join(
        f"  breaker {name} {breaker.state.label}"
        for name, breaker in status.breakers.items()
        if breaker.state is not BreakerState.CLOSED
    )
