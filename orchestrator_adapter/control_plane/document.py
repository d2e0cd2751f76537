"""What ``GET /graph`` answers and ``/events`` sends: a run's topology and figures, as one JSON document with a version.

The live page and ``python -m flows top`` draw it, and tools of your own may read it. ``decode`` reads one. Times are UTC
seconds since the Unix epoch, durations are seconds, shares are 0 to 1, and rates are per second over the last ``window_s``
seconds. A figure that is not known is ``null``. Readers must ignore fields that they do not know: a version may add fields;
a change of a field's meaning makes a new version.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Final, Literal

import msgspec

VERSION: Final = 1


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the document."""


class Health(_Part, frozen=True, kw_only=True):
    """As ``GET /health``."""

    status: Literal["ok", "degraded", "draining", "failing"]
    reasons: tuple[str, ...] = ()


class Loop(_Part, frozen=True, kw_only=True):
    """The graph's event loop. While it does not answer, the figures are as old as ``snapshot_age_s``.

    Attributes:
        silent_s: For how long it has not answered; 0 if it answers.
        stalled: It has not answered for longer than the watchdog's threshold.
        lag_s: How late it is now.
        stalls: How often it has stalled.
        blocked_by: The operator that blocks it; empty if that is not known, or nothing blocks it.
        stack: Where in its code, one line a frame; empty if that is not known.
        snapshot_age_s: The age of the figures.
    """

    silent_s: float
    stalled: bool
    lag_s: float
    stalls: int
    blocked_by: str = ""
    stack: str = ""
    snapshot_age_s: float = 0.0


class Quantiles(_Part, frozen=True, kw_only=True):
    """Of latencies, seconds; ``count`` is how many were measured. They are exact to 5 %."""

    count: int
    p50_s: float
    p99_s: float


class LatencyPoint(_Part, frozen=True, kw_only=True):
    """The latency in one interval of the last 15 minutes, which ends at ``at``; ``None``: nothing was measured in it."""

    at: float
    quantiles: Quantiles | None


class Latency(_Part, frozen=True, kw_only=True):
    """From ingest to the acknowledgement by the sinks that measure it.

    Attributes:
        now: In the last ``window_s`` seconds.
        last_15_min: In the last 15 minutes, or since the start.
        series: The same 15 minutes in intervals, oldest first.
    """

    now: Quantiles | None
    last_15_min: Quantiles | None
    series: tuple[LatencyPoint, ...] = ()


class Shares(_Part, frozen=True, kw_only=True):
    """What an operator did with its time in the last ``window_s`` seconds. The four shares add up to 1.

    Attributes:
        busy: It worked, or waited for what it has called. For a source this includes the wait for its feed.
        idle: It waited for input.
        blocked: It waited for space in its outputs.
        down: No instance ran.
    """

    busy: float
    idle: float
    blocked: float
    down: float


class Budget(_Part, frozen=True, kw_only=True):
    """The restart budget. ``left`` is ``None`` without a limit; ``window_s`` is ``None`` if restarts are counted for ever."""

    left: int | None
    of: int | None
    window_s: float | None
    restarts: int


class LastError(_Part, frozen=True, kw_only=True):
    """The last failure of an instance, or of an item.

    Attributes:
        at: When.
        kind: The exception's type, or the kind of the dead letter.
        message: In words.
    """

    at: float
    kind: str
    message: str


class Operator(_Part, frozen=True, kw_only=True):
    """One operator.

    Attributes:
        name: Its name.
        role: ``source``, ``operator``, ``sink``, ``fan-in`` or ``fan-out``.
        column: Its place from left to right: every edge leads to a greater column. ``row``: its place in the column.
        state: ``waiting``, ``running``, ``paused``, ``restarting``, or how it ended: ``ok``, ``errored``, ``panicked``,
            ``aborted``, ``straggler``.
        restart_in_s: Until its next instance starts; ``None`` unless it is ``restarting``.
        rate_in, rate_out: Items per second, acknowledged and emitted. Of a source, ``rate_in`` is what it ingests.
        latency: From taking a batch to its acknowledgement.
        policy: Its restart policy in words; ``note``: why, as it was declared.
        errors: Failures of its instances, by the exception's type.
        dead_letters: By kind.
        counters: The figures that it counts itself.
        breakers: The circuit breakers that it uses, by name.
        url: Its task run in the Prefect UI; empty outside Prefect.
    """

    name: str
    role: Literal["source", "operator", "sink", "fan-in", "fan-out"]
    column: int
    row: int
    state: str
    instance: int
    uptime_s: float
    restart_in_s: float | None
    budget: Budget
    shares: Shares
    rate_in: float
    rate_out: float
    consumed: int
    emitted: int
    last_item_age_s: float | None
    latency: Quantiles | None
    last_error: LastError | None
    policy: str
    note: str = ""
    errors: dict[str, int] = {}
    dead_letters: dict[str, int] = {}
    counters: dict[str, int] = {}
    breakers: tuple[str, ...] = ()
    url: str = ""


class Edge(_Part, frozen=True, kw_only=True):
    """One edge.

    Attributes:
        id: ``upstream -> downstream``.
        fill: Occupancy by capacity.
        outbox: Items that its writer has offered and that wait for space.
        rate: Items per second that were sent into it.
        pressure: The share of the last ``window_s`` seconds in which it held up its writer, dropped items, or had items on disk.
        wait: How long items waited in it.
        dropped: Items that its flow policy has shed or dead-lettered.
        policy: Its flow policy in words; ``note``: why, as it was declared.
    """

    id: str
    upstream: str
    downstream: str
    occupancy: int
    capacity: int
    fill: float
    outbox: int
    high_water_mark: int
    rate: float
    sent: int
    received: int
    pressure: float
    wait: Quantiles | None
    dropped: int
    policy: str
    note: str = ""
    spilled: int = 0
    spilled_bytes: int = 0


class Bottleneck(_Part, frozen=True, kw_only=True):
    """An operator that limits the graph. ``score`` is the share of the time in which it did; ``reason`` is a sentence."""

    operator: str
    score: float
    reason: str


class Breaker(_Part, frozen=True, kw_only=True):
    """One circuit breaker. ``probe_in_s``: until it admits a probe; ``None`` unless it is open and not forced."""

    name: str
    state: Literal["closed", "open", "half-open"]
    forced: bool
    probe_in_s: float | None
    failures: int
    calls: int
    rejections: int
    opened: int
    operators: tuple[str, ...] = ()


class BlockingPool(_Part, frozen=True, kw_only=True):
    """The threads of blocking calls. ``hanging`` has a sentence for each call that is abandoned or overdue."""

    name: str
    threads: int
    busy: int
    waiting: int
    abandoned: int
    hanging: tuple[str, ...] = ()


class WorkerPool(_Part, frozen=True, kw_only=True):
    """A pool of worker processes."""

    name: str
    workers: int
    ready: int
    waiting: int
    in_flight: int
    calls: int
    lost: int
    restarts: int
    hung: int
    exhausted: bool


class Ledger(_Part, frozen=True, kw_only=True):
    """The balance: what came in (left) equals what became of it (right).

    Attributes:
        left, right: The terms with their items, in the order in which people read them.
        balanced: Both sums are equal.
        lost: The left sum minus the right one: 0 in a balanced ledger.
    """

    left: tuple[tuple[str, int], ...]
    right: tuple[tuple[str, int], ...]
    balanced: bool
    lost: int


class Process(_Part, frozen=True, kw_only=True):
    """The process in which the graph runs. ``cpu``: processor time per second, so 1 is one core."""

    resident_bytes: int
    open_fds: int
    max_fds: int
    threads: int
    cpu: float


class Happened(_Part, frozen=True, kw_only=True):
    """One decision of the supervisor, or something that it detected.

    Attributes:
        number: Counts up from 1; it identifies the entry.
        at: When; if ``times`` is more than 1, when it happened last.
        decision: A value of ``Decision``, as in the log.
        alarming: A person should check it.
        operator: Which operator; empty if it concerns the graph.
        text: A sentence for people.
        times: How often it happened without another decision in between.
    """

    number: int
    at: float
    decision: str
    alarming: bool
    operator: str
    text: str
    times: int = 1


class Row(_Part, frozen=True, kw_only=True):
    """One row of a panel: a name and its cells as text, one for each column; ``alarming``: a person should check it."""

    name: str
    cells: tuple[str, ...]
    alarming: bool = False


class Panel(_Part, frozen=True, kw_only=True):
    """Figures of the pipeline's own, for example its watermarks: a table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


class Document(_Part, frozen=True, kw_only=True):
    """A run at one moment.

    Attributes:
        version: Of this format.
        graph: The graph's name; ``run``: the run's id, as in the log.
        at: When the document was made.
        started_at: When the run began.
        shutting_down: Why it drains; ``None`` while it runs.
        headline: What a person must know first, in one or two sentences (``headline.with_headline`` sets it).
        conditions: What a person should check, the most severe first. The headline begins with the first one.
        window_s: The time over which rates, shares and present latencies are taken; shorter after the start.
        operators: In topological order. ``edges``: in the order of their declaration.
        bottlenecks: The worst first; empty if nothing is held up.
        timeline: The last decisions, oldest first.
        actions: Whether drain, pause and force may be requested (with the token).
        url: The flow run in the Prefect UI; empty outside Prefect.
    """

    version: Literal[1] = VERSION
    graph: str
    run: str
    at: float
    started_at: float
    shutting_down: str | None
    window_s: float
    health: Health
    loop: Loop
    operators: tuple[Operator, ...]
    edges: tuple[Edge, ...]
    bottlenecks: tuple[Bottleneck, ...]
    breakers: tuple[Breaker, ...]
    blocking_pools: tuple[BlockingPool, ...]
    worker_pools: tuple[WorkerPool, ...]
    ledger: Ledger
    latency: Latency
    process: Process
    timeline: tuple[Happened, ...] = ()
    panels: tuple[Panel, ...] = ()
    actions: bool = False
    url: str = ""
    headline: str = ""
    conditions: tuple[str, ...] = ()


def decode(body: bytes) -> Document:
    """Read a document. Raises ``msgspec.ValidationError`` if it is not one of this version."""
    return msgspec.json.decode(body, type=Document)


def schema() -> bytes:
    """The JSON Schema (draft 2020-12) of ``Document``; ``docs/schemas/graph-1.json`` has it."""
    (made,), parts = msgspec.json.schema_components([Document], ref_template="#/$defs/{name}")
    for part in parts.values():
        part["description"] = cleandoc(part["description"])
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "$defs": parts}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


class DeadLetterRow(_Part, frozen=True, kw_only=True):
    """One dead letter, redacted: what the item was is not shown, only its size and its type.

    Attributes:
        at: When it was written.
        number: Counts up from 1 in the run; it identifies the letter.
        payload: The type of the item and its size, for example ``Observation``, or ``bytes (212)``.
    """

    number: int
    at: float
    operator: str
    kind: str
    message: str
    attempts: int
    payload: str


class DeadLetterPage(_Part, frozen=True, kw_only=True):
    """What ``GET /dead-letters`` answers: the newest first.

    Attributes:
        total: Letters of this run, or of the operator that was asked for.
        kept: How many of them are in memory; the store has all of them.
        next_before: Ask for ``?before=`` this for the next page; ``None`` on the last one.
    """

    version: Literal[1] = VERSION
    letters: tuple[DeadLetterRow, ...]
    total: int
    kept: int
    next_before: int | None
