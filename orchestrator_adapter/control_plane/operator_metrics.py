"""The metric families of operators, sources and sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.metrics_core import Metric

from orchestrator_adapter.control_plane.families import Samples, counter, gauge, histogram
from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.runtime.status import OperatorStatus
from orchestrator_adapter.storage.dead_letter import DeadLetterKind


def of_operators(operators: Sequence[OperatorStatus]) -> Iterator[Metric]:
    """Those of every operator, of sources, and of sinks."""
    yield from _of_all(operators)
    yield from _of_sources([operator for operator in operators if operator.role is Role.SOURCE])
    yield from _of_sinks([operator for operator in operators if operator.role is Role.SINK])


def _of_all(operators: Sequence[OperatorStatus]) -> Iterator[Metric]:
    def each(figure: Callable[[OperatorStatus], float]) -> Samples:
        return (((operator.name,), figure(operator)) for operator in operators)

    yield gauge("operator_up", "Whether an instance of the operator runs: 1, else 0", ["operator"], each(_is_up))
    yield counter(
        "operator_restart_total",
        "Restarts of the operator",
        ["operator"],
        each(lambda operator: operator.restarts),
    )
    yield gauge(
        "operator_uptime_seconds",
        "For how long the operator's present or last instance has run, seconds",
        ["operator"],
        each(lambda operator: operator.uptime_s),
    )
    yield gauge(
        "operator_restarts_left",
        "Restarts that the operator's budget still admits; absent without a limit",
        ["operator"],
        (((operator.name,), left) for operator in operators if (left := operator.budget.left) is not None),
    )
    yield counter(
        "operator_errors_total",
        "Failures of the operator's instances, by the exception's type",
        ["operator", "kind"],
        (((operator.name, kind), count) for operator in operators for kind, count in operator.errors.items()),
    )
    yield counter(
        "operator_time_seconds_total",
        "What the operator's instances did: they waited for input (idle), for space in outputs (blocked), or else (busy), seconds",
        ["operator", "state"],
        (
            sample
            for operator in operators
            for sample in (
                ((operator.name, "busy"), operator.times.busy_s),
                ((operator.name, "idle"), operator.times.idle_s),
                ((operator.name, "blocked"), operator.times.blocked_s),
            )
        ),
    )
    yield histogram(
        "operator_latency_seconds",
        "From taking a batch to its acknowledgement, sampled, seconds; absent for sources, which take none",
        ["operator"],
        (((operator.name,), operator.batch_latency) for operator in operators if operator.role is not Role.SOURCE),
    )
    yield counter(
        "operator_items_total",
        "Items that the operator has consumed (acknowledged) or emitted (sent on)",
        ["operator", "direction"],
        (
            sample
            for operator in operators
            for sample in (
                ((operator.name, "consumed"), operator.consumed),
                ((operator.name, "emitted"), operator.emitted),
            )
        ),
    )
    yield counter(
        "operator_signals_total",
        "Control items that the operator has acknowledged (in), or sent, one for each output (out); no other figure has them",
        ["operator", "direction"],
        (
            sample
            for operator in operators
            for sample in (((operator.name, "in"), operator.signals_in), ((operator.name, "out"), operator.signals_out))
        ),
    )
    yield counter(
        "retry_attempts_total",
        "Attempts that the operator made after the first, of calls with retry",
        ["operator"],
        _counted(operators, "retry_attempts"),
    )
    yield counter(
        "dead_letters_total",
        "Items of the operator that became dead letters, by kind of error",
        ["operator", "kind"],
        (
            ((operator.name, kind.value), operator.dead_letters.get(kind, 0))
            for operator in operators
            for kind in DeadLetterKind
        ),
    )
    yield gauge(
        "operator_figure",
        "A figure that the operator itself counts; the operator defines its meaning and unit",
        ["operator", "name"],
        (
            ((operator.name, name), value)
            for operator in operators
            for name, value in operator.counters.items()
            if name not in _WELL_KNOWN[operator.role]
        ),
    )


_WELL_KNOWN: dict[Role, frozenset[str]] = {
    role: frozenset({"retry_attempts"})
    | {Role.SOURCE: {"decode_errors", "kernel_drops"}, Role.SINK: {"bytes_written"}}.get(role, set())
    for role in Role
}
"""The operators' counters that have a metric family of their own; see ``WiredEnds.count``."""


def _of_sources(sources: Sequence[OperatorStatus]) -> Iterator[Metric]:
    yield gauge(
        "source_ingest_rate",
        "Items that the source takes in, malformed ones included, per second; mean weighted exponentially over 30 s",
        ["source"],
        (((source.name,), source.ingest_rate_per_s or 0.0) for source in sources),
    )
    yield counter(
        "source_decode_errors_total",
        "Frames that the source could not decode",
        ["source"],
        (((source.name,), source.counters.get("decode_errors", 0)) for source in sources),
    )
    yield counter(
        "source_kernel_drops_total",
        "Datagrams that the kernel dropped before the source could read them",
        ["source"],
        _counted(sources, "kernel_drops"),
    )
    yield gauge(
        "source_last_item_age_seconds",
        "The time since the source sent its last item, seconds; absent before the first item",
        ["source"],
        (((source.name,), source.idle_s) for source in sources if source.idle_s is not None),
    )
    yield gauge(
        "source_paused",
        "Whether a person has paused the source, so that it ingests nothing: 1, else 0",
        ["source"],
        (((source.name,), bool(source.paused)) for source in sources),
    )


def _of_sinks(sinks: Sequence[OperatorStatus]) -> Iterator[Metric]:
    yield counter(
        "sink_bytes_written_total", "What the sink has written, bytes", ["sink"], _counted(sinks, "bytes_written")
    )
    yield histogram(
        "sink_latency_seconds",
        "From ingest to the sink's acknowledgement, seconds",
        ["sink"],
        (
            ((sink.name,), sink.sink_latency)
            for sink in sinks
            if sink.sink_latency is not None and sink.sink_latency.count
        ),
    )


def _is_up(operator: OperatorStatus) -> int:
    return int(operator.state in {"running", "paused"})


def _counted(operators: Iterable[OperatorStatus], name: str) -> Samples:
    return (((operator.name,), operator.counters[name]) for operator in operators if name in operator.counters)
