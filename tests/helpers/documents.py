"""Documents as ``/graph`` sends them, made by hand: a small chain, and parts to change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from orchestrator_adapter.control_plane.document import (
    Budget,
    Document,
    Edge,
    Health,
    Latency,
    Ledger,
    Loop,
    Operator,
    Process,
    Quantiles,
    Shares,
)

STARTED_AT = 1_767_323_045.0  # 2026-01-02T03:04:05Z
AT = STARTED_AT + 3_725.0


def operator(name: str, **changes: Any) -> Operator:
    """A running operator."""
    fields: dict[str, Any] = {
        "role": "operator",
        "column": 0,
        "row": 0,
        "state": "running",
        "instance": 1,
        "uptime_s": 3_725.0,
        "restart_in_s": None,
        "budget": Budget(left=3, of=3, window_s=60.0, restarts=0),
        "shares": Shares(busy=0.2, idle=0.8, blocked=0.0, down=0.0),
        "rate_in": 1_000.0,
        "rate_out": 990.0,
        "consumed": 3_725_000,
        "emitted": 3_687_750,
        "last_item_age_s": None,
        "latency": Quantiles(count=10_000, p50_s=0.0004, p99_s=0.0021),
        "last_error": None,
        "policy": "restart 3 times in 60 s",
    }
    return Operator(name=name, **{**fields, **changes})


def edge(upstream: str, downstream: str, **changes: Any) -> Edge:
    """An edge that is nearly empty."""
    fields: dict[str, Any] = {
        "id": f"{upstream} -> {downstream}",
        "occupancy": 3,
        "capacity": 1_000,
        "fill": 0.003,
        "outbox": 0,
        "high_water_mark": 40,
        "rate": 1_000.0,
        "sent": 3_725_000,
        "received": 3_724_997,
        "pressure": 0.0,
        "wait": Quantiles(count=1_000, p50_s=0.0002, p99_s=0.001),
        "dropped": 0,
        "policy": "backpressure",
    }
    return Edge(upstream=upstream, downstream=downstream, **{**fields, **changes})


def document(names: Sequence[str] = ("radar", "normalize", "log"), **changes: Any) -> Document:
    """A healthy chain of operators with these names: the first is a source, the last one a sink."""
    roles = {names[0]: "source", names[-1]: "sink"}
    fields: dict[str, Any] = {
        "graph": "sda-ingest",
        "run": "sda-ingest-20260102T030405.000000Z",
        "at": AT,
        "started_at": STARTED_AT,
        "shutting_down": None,
        "window_s": 10.0,
        "health": Health(status="ok"),
        "loop": Loop(silent_s=0.0, stalled=False, lag_s=0.001, stalls=0),
        "operators": tuple(
            operator(name, column=column, role=roles.get(name, "operator")) for column, name in enumerate(names)
        ),
        "edges": tuple(edge(upstream, downstream) for upstream, downstream in pairwise(names)),
        "bottlenecks": (),
        "breakers": (),
        "blocking_pools": (),
        "worker_pools": (),
        "ledger": Ledger(
            left=(("ingested", 3_725_000), ("repeated", 0)),
            right=(("written", 3_687_700), ("duplicates", 37_250), ("in flight", 50)),
            balanced=True,
            lost=0,
        ),
        "latency": Latency(
            now=Quantiles(count=9_900, p50_s=0.004, p99_s=0.021),
            last_15_min=Quantiles(count=890_000, p50_s=0.004, p99_s=0.035),
        ),
        "process": Process(resident_bytes=181_000_000, open_fds=34, max_fds=1_024, threads=9, cpu=0.42),
    }
    return Document(**{**fields, **changes})
