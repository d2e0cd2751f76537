"""Which operators limit the graph, and why: a pure function of what operators and edges did in the last seconds.

It rests on two laws of operational analysis (Denning & Buzen, *The Operational Analysis of Queueing Network Models*, ACM
Computing Surveys 10(3), 1978). The utilisation law: an operator is busy for the share ``X * D`` of the time, where ``X`` is
the throughput of the graph and ``D`` the time that the operator needs for one item of the graph. The bottleneck law: the
operator with the greatest ``D`` limits ``X``. So among operators with a common throughput, the busiest one is the
bottleneck, for any sizes of edges and batches, and however irregular their times are. ``docs/bottleneck.md`` has
the proof by experiment.

Operators have a common throughput where one makes the other wait: they are connected by edges under pressure that hold their
writers up. Where no edge is under pressure, nothing is held up and nothing is marked. A source counts as well: if it is the
busiest one, the feed limits the graph, and nothing is marked.

Knows only figures: nothing of channels, tasks or the document's other parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator_adapter.control_plane.document import Bottleneck, Shares

LEAST_PRESSURE: Final = 0.05
"""An edge is under pressure from this share of the window on; less is a burst."""

TIE: Final = 0.03
"""Shares of time that differ by less are equal: the rule's resolution."""

SATURATED: Final = 0.95
"""An operator that is busy for this share of the window can take no more, wherever its items come from."""

_NEGLIGIBLE: Final = 0.005  # less than this is shown as "no output made it wait"
_IN_TURN: Final = 0.5  # of the greatest pressure at a fan-in: an input with less gets all that it offers
_FULL_LOOP: Final = (
    0.75  # of the time operators compute on the event loop; a hog leaves some of it to what it waits for
)
_MOST: Final = 0.5
_ENDED: Final = frozenset({"ok", "errored", "panicked", "aborted", "straggler"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorFigures:
    """What one operator did in the window.

    Attributes:
        name: Its name.
        shares: What it did with its time.
        state: As in the document.
        is_source: It is a source.
        restart_in_s: Until its next instance starts; ``None`` unless it is restarting.
        open_breakers: The names of its circuit breakers that are open.
        notes: What else slows it down, in words that can follow a semicolon: ``2 calls wait for a thread``.
        on_loop: The share of the time for which it computed on the event loop; 0 if that is not known.
    """

    name: str
    shares: Shares
    state: str = "running"
    is_source: bool = False
    restart_in_s: float | None = None
    open_breakers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    on_loop: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeFigures:
    """What one edge did in the window.

    Attributes:
        id: ``upstream -> downstream``.
        upstream: The operator that writes it; ``downstream``: the one that reads it.
        pressure: The share of the window in which it held up its writer, dropped items, or had items on disk.
        policy: The name of its flow policy: ``backpressure``, ``shed``, ``timed`` or ``spill``.
        dropped: Items that the policy has dropped in the window.
        spilled: Items on disk now.
    """

    id: str
    upstream: str
    downstream: str
    pressure: float
    policy: str = "backpressure"
    dropped: int = 0
    spilled: int = 0


def find_bottlenecks(
    operators: Iterable[OperatorFigures], edges: Iterable[EdgeFigures], *, window_s: float
) -> tuple[Bottleneck, ...]:
    """The operators that limit the graph, the worst first; empty if nothing is held up. Takes linear time.

    An operator is marked if an input of it is under pressure, no operator that shares its throughput is busy (or down) for
    more of the time, and it makes others wait more than it waits itself. A fan-in that waits for one input while another
    one is full is not marked; what that input waits for is. An operator that takes the event loop from the others is marked
    alone.
    """
    running = {it.name: it for it in operators}
    graph = _Graph(running, tuple(edges))
    if hogs := tuple(_by_the_loop(graph, window_s)):
        return hogs
    found = {it.operator: it for it in _by_utilisation(graph, window_s)}
    for starving in _by_starvation(graph, window_s):
        found.setdefault(starving.operator, starving)
    return tuple(sorted(found.values(), key=lambda it: -it.score))


class _Graph:
    """The figures, by operator."""

    def __init__(self, operators: dict[str, OperatorFigures], edges: tuple[EdgeFigures, ...]) -> None:
        self.operators = operators
        self.edges = edges
        self.inputs: dict[str, list[EdgeFigures]] = {name: [] for name in operators}
        self.outputs: dict[str, list[EdgeFigures]] = {name: [] for name in operators}
        for edge in edges:
            self.inputs[edge.downstream].append(edge)
            self.outputs[edge.upstream].append(edge)
        self._worst_inputs = {name: worst for name in operators if (worst := _worst(self.inputs[name]))}
        self._held_by_backpressure = dict.fromkeys(operators, 0.0)
        for edge in edges:
            if edge.policy == "backpressure":
                self._held_by_backpressure[edge.upstream] += edge.pressure

    def worst_input(self, name: str) -> EdgeFigures | None:
        """The input under the greatest pressure, if any is under pressure."""
        return self._worst_inputs.get(name)

    def holds_writer(self, edge: EdgeFigures) -> bool:
        """Whether its writer and its reader have a common throughput, because the writer waits for the reader.

        A fan-in serves its inputs in turn. An input that waits much less than another one gets all that it offers: what
        limits it is upstream of it.
        """
        worst = self.worst_input(edge.downstream)
        in_turn = _IN_TURN * worst.pressure if worst is not None and worst is not edge else 0.0
        return self._holding(edge) >= max(LEAST_PRESSURE, in_turn)

    def _holding(self, edge: EdgeFigures) -> float:
        """The share of the time for which it held its writer up. Pressure is more than that if the edge drops or spills."""
        blocked = self.operators[edge.upstream].shares.blocked
        match edge.policy:
            case "shed":
                return 0.0
            case "spill":  # only while its files are full: what the other outputs do not explain
                return min(edge.pressure, blocked - self._held_by_backpressure[edge.upstream])
            case _:
                return min(edge.pressure, blocked)

    def is_pushed(self, name: str) -> bool:
        """Whether more comes to it than it takes: it is a source, or an input of it drops or spills.

        If it waits for input for longer than that input is under pressure, only bursts are dropped or spilled.
        """
        operator = self.operators[name]
        least = max(LEAST_PRESSURE, operator.shares.idle)
        return operator.is_source or any(
            it.policy != "backpressure" and it.pressure >= least for it in self.inputs[name]
        )

    def starves(self, name: str) -> bool:
        """Whether it is a fan-in that waits for an input while another one is full."""
        worst, idle = self.worst_input(name), self.operators[name].shares.idle
        return len(self.inputs[name]) > 1 and worst is not None and worst.pressure + idle > 1 + LEAST_PRESSURE


def _worst(edges: Sequence[EdgeFigures]) -> EdgeFigures | None:
    worst = max(edges, key=lambda edge: edge.pressure, default=None)
    return worst if worst is not None and worst.pressure >= LEAST_PRESSURE else None


def _by_the_loop(graph: _Graph, window_s: float) -> Iterable[Bottleneck]:
    """The operator that computes on the event loop, if that leaves the others no time.

    While it computes, every await of another operator returns late, so that the other one seems to work as well: then shares
    say nothing.
    """
    hog = max(graph.operators.values(), key=lambda it: it.on_loop, default=None)
    worst = _worst(graph.edges)
    if hog is None or worst is None or hog.on_loop < _MOST:
        return
    if sum(it.on_loop for it in graph.operators.values()) >= _FULL_LOOP:
        reason = (
            f"computed on the event loop for {_percent(hog.on_loop)} of {_last(window_s)}, so that every other operator "
            f"waited for it and '{worst.id}' {_held_up(worst)}; what it computes belongs into a thread or a worker process"
        )
        yield Bottleneck(operator=hog.name, score=hog.on_loop, reason=reason)


def _by_utilisation(graph: _Graph, window_s: float) -> Iterable[Bottleneck]:
    for group in _groups_with_a_common_throughput(graph):
        least = LEAST_PRESSURE if any(graph.is_pushed(name) for name in group) else SATURATED
        busiest = max(_utilisation(graph.operators[name]) for name in group)
        for name in group:
            operator, worst = graph.operators[name], graph.worst_input(name)
            used = _utilisation(operator)
            if operator.is_source or worst is None or used < max(busiest - TIE, least):
                continue
            if used >= operator.shares.blocked and not graph.starves(name):
                outputs = max(graph.outputs[name], key=lambda edge: edge.pressure, default=None)
                reason = _reason(operator, worst, outputs, window_s)
                yield Bottleneck(operator=name, score=min(worst.pressure, used), reason=reason)


def _utilisation(operator: OperatorFigures) -> float:
    """The share of the time in which it worked or could not work. An operator that has ended needs no time."""
    return 0.0 if operator.state in _ENDED else operator.shares.busy + operator.shares.down


def _groups_with_a_common_throughput(graph: _Graph) -> Iterable[Sequence[str]]:
    """The operators, connected by the edges that hold their writers."""
    neighbours: dict[str, list[str]] = {name: [] for name in graph.operators}
    for edge in graph.edges:
        if graph.holds_writer(edge):
            neighbours[edge.upstream].append(edge.downstream)
            neighbours[edge.downstream].append(edge.upstream)
    seen: set[str] = set()
    for first in graph.operators:
        if first in seen:
            continue
        seen.add(first)
        group = [first]
        for name in group:  # it grows
            group += (new := [it for it in dict.fromkeys(neighbours[name]) if it not in seen])
            seen.update(new)
        yield group


def _by_starvation(graph: _Graph, window_s: float) -> Iterable[Bottleneck]:
    """What makes a fan-in wait for one of its inputs while another one is full."""
    for fan_in in graph.operators:
        worst = graph.worst_input(fan_in)
        if worst is None or not graph.starves(fan_in):
            continue
        for slow in _slow_upstream(graph, fan_in):
            idle = graph.operators[fan_in].shares.idle
            is_paused = graph.operators[slow].state == "paused"
            reason = (
                f"{'it is paused' if is_paused else 'it is slow'}: '{fan_in}' waited for its items for {_percent(idle)} of {_last(window_s)}, "
                f"while its other input '{worst.id}' was full for {_percent(worst.pressure)} of it"
            )
            yield Bottleneck(operator=slow, score=min(idle, worst.pressure), reason=reason)


def _slow_upstream(graph: _Graph, fan_in: str) -> Iterable[str]:
    """Upstream of its empty inputs, the first operators that do not wait for input themselves."""
    seen = {fan_in}
    to_see = [fan_in]
    for name in to_see:  # it grows
        for edge in graph.inputs[name]:
            writer = graph.operators[edge.upstream]
            if edge.pressure >= LEAST_PRESSURE or edge.upstream in seen or writer.state in _ENDED:
                continue
            seen.add(edge.upstream)
            if writer.is_source or _utilisation(writer) > max(writer.shares.idle, writer.shares.blocked):
                yield edge.upstream
            elif writer.shares.idle >= writer.shares.blocked:
                to_see.append(edge.upstream)


# The reason in words.


def _reason(operator: OperatorFigures, edge: EdgeFigures, output: EdgeFigures | None, window_s: float) -> str:
    shares, last = operator.shares, _last(window_s)
    if shares.down > shares.busy:
        what = f"down for {_percent(shares.down)} of {last}"
    else:
        what = f"busy for {_percent(shares.busy)} of {last}"
        if shares.down >= _NEGLIGIBLE:
            what += f" and down for {_percent(shares.down)}"
    parts = [f"{what} while its input '{edge.id}' {_held_up(edge)}"]
    if operator.restart_in_s is not None:
        parts.append(f"it has failed, and its next instance starts in {_seconds(operator.restart_in_s)}")
    parts += (f"its circuit breaker '{name}' is open" for name in operator.open_breakers)
    parts += operator.notes
    if output is not None and shares.blocked < _NEGLIGIBLE:
        parts.append("no output made it wait")
    elif output is not None:
        parts.append(f"its outputs made it wait for {_percent(shares.blocked)}, most of all '{output.id}'")
    return "; ".join(parts)


def _held_up(edge: EdgeFigures) -> str:
    share = _percent(edge.pressure)
    if edge.policy == "spill" and edge.spilled:
        return f"had items on disk for {share} of it (now {edge.spilled:,})"
    if edge.dropped:
        return f"was full for {share} of it and dropped {edge.dropped:,} {'item' if edge.dropped == 1 else 'items'}"
    return f"was full for {share} of it"


def _last(window_s: float) -> str:
    return f"the last {_seconds(window_s)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004 - digits that people read


def _percent(share: float) -> str:
    return f"{min(share, 1.0):.0%}".replace("%", " %")
