"""The content of a run's artifacts: topology, live status, settled share, final report. Pure: text only."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator_adapter.channels.ledger import LedgerSnapshot
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import cause
from orchestrator_adapter.runtime.status import GraphStatus, OperatorStatus

_LONGEST_CELL = 100  # characters; the whole text is in the operator's task run and in the log
_BAR = 10  # characters of an occupancy bar


def artifact_key(pipeline: str, what: str) -> str:
    """A key that Prefect accepts: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{pipeline}-{what}".lower()).strip("-")


def topology(graph: OperatorGraph) -> str:
    """The graph as a diagram; every edge with its capacity, policy and reason; every operator with its restart policy."""
    plan = graph.validate()
    edges = [(edge.id, f"{edge.capacity:,}", str(edge.policy), edge.note) for edge in plan.edges]
    vertices = [(vertex.name, vertex.role.value, str(vertex.restart_policy), vertex.note) for vertex in plan.order]
    return "\n".join(
        [
            f"# {graph.name}",
            "",
            "```mermaid",
            graph.to_mermaid().rstrip(),
            "```",
            "",
            *_table(("channel", "capacity", "when full", "why"), edges, right=frozenset({1})),
            "",
            *_table(("operator", "role", "restarts", "why"), vertices),
        ]
    )


def status(view: View) -> str:
    """The run now: a headline, one line per operator, one per channel, the ledger, the latency."""
    now = view.status
    return "\n".join(
        [
            f"**{_headline(view)}**",
            "",
            *_table(
                ("operator", "state", "instance", "up", "consumed", "emitted", "restarts", "last exit"),
                [_operator_row(operator) for operator in now.operators],
                right=frozenset({2, 3, 4, 5, 6}),
            ),
            "",
            *_table(
                ("channel", "occupancy", "", "high water", "sent", "dropped"),
                [
                    (
                        edge,
                        f"{channel.occupancy:,} of {channel.capacity:,}",
                        _bar(channel.occupancy, channel.capacity),
                        f"{channel.high_water_mark:,}",
                        f"{channel.sent:,}",
                        f"{channel.policy_drops:,}",
                    )
                    for edge, channel in now.edges.items()
                ],
                right=frozenset({1, 3, 4, 5}),
            ),
            "",
            _ledger(now.ledger),
            *_latency(now),
        ]
    )


def settled_percent(ledger: LedgerSnapshot) -> float:
    """The share of entered items that has left, in percent: 100 if nothing is in flight."""
    return 100.0 if ledger.entered == 0 else 100.0 * (1.0 - ledger.in_flight / ledger.entered)


def settled_text(ledger: LedgerSnapshot) -> str:
    """The description beside the progress figure."""
    return f"settled: {ledger.entered - ledger.in_flight:,} of {ledger.entered:,} items, {ledger.in_flight:,} in flight"


def report(outcome: RunOutcome) -> str:
    """How the run ended: event, ledger, restarts, latency, dead letters, and every problem."""
    event, figures = outcome.event, outcome.event.figures
    ledger, latency = figures.ledger, figures.latency
    rows = [
        ("event", event.name),
        ("cause", cause(event) or "-"),
        ("exit code", f"{int(outcome.exit_code)} ({outcome.exit_code.name})"),
        ("elapsed", _duration(figures.elapsed_s)),
        ("throughput", f"{ledger.written / figures.elapsed_s:,.1f} written/s" if figures.elapsed_s > 0 else "-"),
        ("latency p50 / p99", f"{latency.p50_ms:.1f} / {latency.p99_ms:.1f} ms" if latency is not None else "-"),
        ("dead letters", f"{ledger.dead_lettered + ledger.rejected:,} ({ledger.rejected:,} of them rejected)"),
        ("undelivered", f"{figures.undelivered:,}"),
        ("restarts", ", ".join(f"{name} {history.total}" for name, history in figures.restarts.items()) or "none"),
        ("stragglers", ", ".join(straggler.operator for straggler in figures.stragglers) or "none"),
    ]
    problems = [str(violation) for violation in figures.violations]
    problems += [*figures.problems, *outcome.problems]
    return "\n".join(
        [
            *_table(("how it ended", ""), rows),
            "",
            _ledger(ledger),
            *(["", "**Problems**", "", *(f"- {problem}" for problem in problems)] if problems else []),
        ]
    )


def _headline(view: View) -> str:
    now = view.status
    if view.silent_s > view.threshold_s:
        return f"the event loop has not answered for {view.silent_s:.1f} s{f' ({view.blocked_by})' if view.blocked_by else ''}"
    if now.verdict is not None:
        return f"stopping: {now.verdict}"
    if now.shutting_down is not None:
        return f"draining: {now.shutting_down}"
    rate = sum(operator.ingest_rate_per_s or 0.0 for operator in now.operators)
    restarts = "1 restart" if now.restarts == 1 else f"{now.restarts:,} restarts"
    return f"running: {rate:,.0f} items/s in, {now.ledger.in_flight:,} in flight, {restarts}"


def _operator_row(operator: OperatorStatus) -> tuple[str, ...]:
    return (
        operator.name,
        operator.state,
        str(operator.instance),
        _duration(operator.uptime_s),
        f"{operator.consumed:,}",
        f"{operator.emitted:,}",
        f"{operator.restarts:,}",
        _short(operator.exit or ""),
    )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def _ledger(ledger: LedgerSnapshot) -> str:
    balance = "" if ledger.balanced else " **(does not balance)**"
    return f"ledger: {ledger}{balance}"


def _latency(now: GraphStatus) -> list[str]:
    if now.latency is None:
        return []
    return ["", f"latency, ingest to acknowledgement: p50 {now.latency.p50_ms:.1f} ms, p99 {now.latency.p99_ms:.1f} ms"]


def _bar(occupancy: int, capacity: int) -> str:
    full = -(-occupancy * _BAR // capacity)
    return "█" * full + "░" * (_BAR - full)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> list[str]:
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return [_row(head), _row(tuple(rule)), *map(_row, rows)]


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Escape text for a table cell: it ends neither the cell nor the line, and is not markup."""
    line = " ".join(text.splitlines()).replace("\\", "\\\\").replace("|", "\\|")
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", line)
