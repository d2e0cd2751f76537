"""A document as a picture for the terminal: a pure function of the document, the size and what the command itself has to say.

On a terminal, the picture has its height. Rows that need attention come first, and sections that do not fit are left out, the
least important first. Without a height, everything is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from flows.commands.top.figures import (
    MISSING,
    clean,
    clock_time,
    data_size,
    duration,
    number,
    percent,
    quantiles,
    shares_bar,
    trend,
)
from orchestrator_adapter.control_plane.document import Breaker, Document, Edge, Ledger, Operator, Panel, Shares

_WIDE = 120  # columns from which on the table has last errors and latencies
_HIGH = 0.9  # a fill or pressure that is marked
_VISIBLE_PRESSURE = 0.01
_TIMELINE = 8
_TREND = 30
_LEAST_ROWS = 5  # of operators, on any terminal
_STATUS_STYLES = {"ok": "bold green", "draining": "bold yellow", "degraded": "bold yellow", "failing": "bold red"}
_STATE_STYLES = {"running": "green", "ok": "dim", "waiting": "dim", "paused": "yellow", "restarting": "yellow"}
_BREAKER_STYLES = {"closed": "green", "half-open": "yellow", "open": "red"}


@dataclass(frozen=True, slots=True)
class Banners:
    """What the command itself has to say.

    Attributes:
        lost: Why there is no newer document; empty while the control plane answers.
        lost_for_s: For how long.
        note: A line at the end, for example another address that answers.
    """

    lost: str = ""
    lost_for_s: float = 0.0
    note: str = ""


NO_BANNERS = Banners()


def picture(
    document: Document, *, width: int, height: int | None = None, banners: Banners = NO_BANNERS
) -> RenderableType:
    """The whole picture. It has at most ``height`` lines, if a few operators fit into them."""
    head: list[RenderableType] = [_title(document), *_banners(document, banners), _headline(document)]
    foot = [Text(clean(banners.note), "dim")] if banners.note else []
    sections = list(_sections(document, width))
    if height is None:
        return Group(*head, _operators(document.operators, document, width), *sections, *foot)
    left = height - _lines(Group(*head, *foot), width) - 1  # the table's headings
    rows = _chosen(document, max(_LEAST_ROWS, min(len(document.operators), left)))
    table = _operators(rows, document, width)
    left = height - _lines(Group(*head, table, *foot), width)
    shown: list[RenderableType] = []
    for section in sections:
        if (lines := _lines(section, width)) <= left:
            shown.append(section)
            left -= lines
    return Group(*head, table, *shown, *foot)


def _lines(shown: RenderableType, width: int) -> int:
    return len(Console(width=width, height=1_000).render_lines(shown, pad=False))


# Above the table.


def _title(document: Document) -> Text:
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(clean(document.graph), "bold")
    title.append(f"  {document.health.status.upper()}", _STATUS_STYLES.get(document.health.status, "bold"))
    title.append(f"  up {duration(max(0.0, document.at - document.started_at))}, {clock_time(document.at)}")
    title.append(f"  run {clean(document.run)}", "dim")
    return title


def _banners(document: Document, banners: Banners) -> Iterator[Text]:
    loop = document.loop
    if banners.lost:
        yield Text(
            f"DISCONNECTED for {duration(banners.lost_for_s)}: {clean(banners.lost)}. "
            f"The figures are those of {clock_time(document.at)}; trying again.",
            "bold white on red",
        )
    if loop.stalled:
        where = clean(loop.stack.strip().rpartition("\n")[2])
        yield Text(
            f"STALLED: the event loop has not answered for {duration(loop.silent_s)}, and the figures are "
            f"{duration(loop.snapshot_age_s)} old{f'; it is in {where}' if where else ''}.",
            "bold white on red",
        )


def _headline(document: Document) -> Text:
    health = document.health
    headline = document.headline or "; ".join((f"The run is {health.status}", *health.reasons))
    return Text(clean(headline), "bold")


# The operators.


def _chosen(document: Document, most: int) -> tuple[Operator, ...]:
    """The rows that fit: those that need attention are chosen first, and all keep their order."""
    if len(document.operators) <= most:
        return document.operators
    limits = {bottleneck.operator for bottleneck in document.bottlenecks}

    def calm(operator: Operator) -> tuple[bool, bool, float]:
        well = operator.state in {"running", "ok"}
        shares = _known_shares(operator)
        return operator.name not in limits, well, -shares.busy - shares.down

    chosen = {
        operator.name for operator in sorted(document.operators, key=calm)[: most - 1]
    }  # a line says that some are missing
    return tuple(operator for operator in document.operators if operator.name in chosen)


def _operators(rows: Sequence[Operator], document: Document, width: int) -> Group:
    wide = width >= _WIDE
    table = Table(
        Column("", width=1),
        Column("operator", no_wrap=True, overflow="ellipsis", min_width=10, max_width=28 if wide else 19),
        Column("state", no_wrap=True, min_width=7),
        Column("█busy ▒blocked" if wide else "█bus ▒blk", no_wrap=True),
        Column("busy", justify="right", no_wrap=True),
        Column("in/s", justify="right", no_wrap=True),
        Column("out/s", justify="right", no_wrap=True),
        Column("fill", justify="right", no_wrap=True),
        Column("press", justify="right", no_wrap=True),
        *([Column("p99", justify="right", no_wrap=True)] if wide else []),
        Column("restarts left" if wide else "left", justify="right", no_wrap=True),
        *([Column("last error", no_wrap=True, overflow="ellipsis", ratio=1)] if wide else []),
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        expand=wide,
        header_style="dim",
    )
    limits = {bottleneck.operator for bottleneck in document.bottlenecks}
    for operator in rows:
        inputs = [edge for edge in document.edges if edge.downstream == operator.name]
        latency = operator.latency
        table.add_row(
            Text("▶" if operator.name in limits else " ", "bold red"),
            Text(clean(operator.name), "bold red" if operator.name in limits else ""),
            _state(operator),
            shares_bar(_known_shares(operator), 14 if wide else 9),
            MISSING if operator.role == "source" else percent(operator.shares.busy),
            number(operator.rate_in),
            "" if operator.role == "sink" else number(operator.rate_out),
            _share(max((edge.fill for edge in inputs), default=None)),
            _share(max((edge.pressure for edge in inputs), default=None)),
            *([MISSING if latency is None else duration(latency.p99_s)] if wide else []),
            _budget(operator),
            *([_last_error(operator, document.at)] if wide else []),
        )
    missing = len(document.operators) - len(rows)
    others = [Text(f"… and {missing} more operators, which need less attention", "dim")] if missing else []
    return Group(table, *others)


def _known_shares(operator: Operator) -> Shares:
    """Its shares. The busy share of a source includes the wait for its feed, so it is not shown as work; its rate is beside it."""
    if operator.role != "source":
        return operator.shares
    return replace(operator.shares, busy=0.0, idle=operator.shares.idle + operator.shares.busy)


def _state(operator: Operator) -> Text:
    state = clean(operator.state)
    if operator.restart_in_s is not None:
        state = f"restart {duration(operator.restart_in_s)}"
    return Text(state, _STATE_STYLES.get(operator.state, "bold red"))


def _share(share: float | None) -> Text:
    if share is None:
        return Text("")
    return Text(percent(share), "bold red" if share >= _HIGH else "")


def _budget(operator: Operator) -> Text:
    budget = operator.budget
    if budget.of is None:
        return Text("any")
    used = budget.left is not None and budget.left < budget.of
    return Text(f"{budget.left}/{budget.of}", "yellow" if used else "")


def _last_error(operator: Operator, now: float) -> Text:
    error = operator.last_error
    if error is None:
        return Text("")
    return Text(f"{duration(max(0.0, now - error.at))} ago {clean(error.kind)}: {clean(error.message)}", "yellow")


# Below the table, the most important first.


def _sections(document: Document, width: int) -> Iterator[RenderableType]:
    for bottleneck in document.bottlenecks:
        text = Text().append("▶ ", "bold red")
        yield text.append(clean(bottleneck.operator), "bold").append(f": {clean(bottleneck.reason)}")
    yield _ledger(document.ledger)
    for breaker in document.breakers:
        if breaker.state != "closed" or breaker.forced:
            yield _breaker(breaker)
    if width < _WIDE:
        for operator in document.operators:
            if operator.last_error is not None:
                line = _label("error", one_line=True)
                yield (
                    line.append(clean(operator.name), "bold")
                    .append(" ")
                    .append_text(_last_error(operator, document.at))
                )
    latency = document.latency
    line = _label("latency", one_line=True)
    line.append(f"now {quantiles(latency.now)}   15 min {quantiles(latency.last_15_min)}")
    worst = trend([None if point.quantiles is None else point.quantiles.p99_s for point in latency.series], _TREND)
    yield line.append(f"   {worst}")
    yield from _timeline(document)
    yield from (_edge(edge) for edge in document.edges if edge.pressure >= _VISIBLE_PRESSURE or edge.dropped)
    yield from (_breaker(each) for each in document.breakers if each.state == "closed" and not each.forced)
    yield from _pools(document)
    used = document.process
    yield Text(
        f"process  {data_size(used.resident_bytes)}  {number(used.cpu)} cores  {used.threads} threads"
        f"  {used.open_fds}/{used.max_fds} files  loop lag {duration(document.loop.lag_s)}, {document.loop.stalls} {'stall' if document.loop.stalls == 1 else 'stalls'}",
        "dim",
        no_wrap=True,
        overflow="ellipsis",
    )
    yield from (_panel(panel) for panel in document.panels)


def _label(name: str, *, one_line: bool = False) -> Text:
    """The beginning of a line; with ``one_line`` it is cut at the terminal's edge."""
    line = Text(no_wrap=True, overflow="ellipsis") if one_line else Text()
    return line.append(f"{name} ", "dim")


def _ledger(ledger: Ledger) -> Text:
    def side(terms: Sequence[tuple[str, int]]) -> str:
        return " + ".join(f"{clean(name)} {items:,}" for name, items in terms if items) or "0"

    text = _label("ledger").append(f"{side(ledger.left)} = {side(ledger.right)}  ")
    if ledger.balanced:
        return text.append("balanced", "green")
    return text.append(f"NOT BALANCED by {ledger.lost:,}", "bold red")


def _breaker(breaker: Breaker) -> Text:
    forced = ", forced" if breaker.forced else ""
    probe = f", admits a probe in {duration(breaker.probe_in_s)}" if breaker.probe_in_s is not None else ""
    users = f"  used by {', '.join(map(clean, breaker.operators))}" if breaker.operators else ""
    text = _label("breaker").append(clean(breaker.name), "bold")
    text.append(f" {breaker.state}{forced}{probe}", _BREAKER_STYLES.get(breaker.state, "red"))
    return text.append(f"  {breaker.failures:,} failures, {breaker.rejections:,} calls rejected{users}")


def _edge(edge: Edge) -> Text:
    text = _label("edge", one_line=True).append(clean(edge.id), "bold")
    text.append(f" {percent(edge.fill)} full, under pressure {percent(edge.pressure)} of the time")
    text.append(f", {number(edge.rate)} items/s, wait {quantiles(edge.wait)}")
    return text.append(f", {edge.dropped:,} dropped" if edge.dropped else "", "yellow")


def _pools(document: Document) -> Iterator[Text]:
    idle = [
        each for each in document.blocking_pools if not (each.busy or each.waiting or each.abandoned or each.hanging)
    ]
    for threads in document.blocking_pools:
        if threads in idle:
            continue
        text = _label("threads").append(clean(threads.name), "bold")
        text.append(f" {threads.busy}/{threads.threads} busy, {threads.waiting} calls wait")
        for sentence in (
            (f"{threads.abandoned} abandoned", *threads.hanging) if threads.abandoned or threads.hanging else ()
        ):
            text.append(f"; {clean(sentence)}", "yellow")
        yield text
    if idle:
        yield _label("threads").append("1 pool is idle" if len(idle) == 1 else f"{len(idle)} pools are idle")
    for pool in document.worker_pools:
        text = _label("workers").append(clean(pool.name), "bold")
        text.append(f" {pool.ready}/{pool.workers} ready, {pool.in_flight} calls in flight, {pool.waiting} wait")
        text.append(f", {pool.restarts} restarts, {pool.hung} hung, {pool.lost} calls lost")
        yield text.append("; its budget for restarts is used up", "bold red") if pool.exhausted else text


def _timeline(document: Document) -> Iterator[Text]:
    for entry in document.timeline[-_TIMELINE:][::-1]:
        line = _label(clock_time(entry.at), one_line=True)
        line.append(clean(entry.decision), "bold red" if entry.alarming else "bold")
        times = f" ({entry.times} times)" if entry.times > 1 else ""
        yield line.append(f" {clean(entry.operator)}" if entry.operator else "").append(f" {clean(entry.text)}{times}")


def _panel(panel: Panel) -> Table:
    headings = (Column(Text(clean(title)), justify="right", no_wrap=True) for title in panel.columns)
    table = Table(
        Column(Text(clean(panel.title), "bold"), no_wrap=True, overflow="ellipsis"),
        *headings,
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for row in panel.rows:
        cells = (row.name, *row.cells)[: 1 + len(panel.columns)]
        table.add_row(*(Text(clean(cell), "bold red" if row.alarming else "") for cell in cells))
    return table
