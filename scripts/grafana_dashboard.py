#!/usr/bin/env python3
"""Writes ``deploy/grafana/sda-pipelines.json``: ``python scripts/grafana_dashboard.py``. A test holds the file to this script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "deploy" / "grafana" / "sda-pipelines.json"

_HERE = 'job="$pipeline",instance=~"$instance"'
_WIDTH = 24


def series(name: str, matchers: str = "") -> str:
    """A selector of the pipeline and the instances that the dashboard's variables choose."""
    return f"{name}{{{_HERE}{',' if matchers else ''}{matchers}}}"


def rate(name: str, matchers: str = "") -> str:
    """Per second."""
    return f"rate({series(name, matchers)}[$__rate_interval])"


def quantiles(histogram: str, label: str, matchers: str = "") -> list[tuple[str, str]]:
    """Median and 99th percentile of each value of ``label``."""
    buckets = f"sum by ({label}, le) ({rate(f'{histogram}_bucket', matchers)})"
    return [
        (f"histogram_quantile({quantile}, {buckets})", f"{{{{{label}}}}} {name}")
        for quantile, name in ((0.5, "p50"), (0.99, "p99"))
    ]


def panel(title: str, unit: str, *queries: tuple[str, str], help_: str = "", **options: Any) -> dict[str, Any]:
    """A time series panel: queries with their legends. ``maximum`` bounds the axis, ``stacked`` stacks, ``kind`` is another panel type."""
    custom: dict[str, Any] = {"fillOpacity": 10, "showPoints": "never"}
    if options.get("stacked"):
        custom |= {"fillOpacity": 60, "stacking": {"mode": "normal"}}
    defaults: dict[str, Any] = {"unit": unit, "min": 0, "custom": custom}
    if "maximum" in options:
        defaults["max"] = options["maximum"]
    if "mappings" in options:
        defaults["mappings"] = [
            {"type": "value", "options": {str(value): {"text": text} for value, text in options["mappings"].items()}}
        ]
    if "thresholds" in options:
        steps = [{"color": color, "value": value} for color, value in options["thresholds"]]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    kind = options.get("kind", "timeseries")
    return {
        "title": title,
        "type": kind,
        "description": help_,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": options.get("height", 7), "w": options.get("width", 8)},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[kind],
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend, "instant": kind == "stat"}
            for number, (expression, legend) in enumerate(queries)
        ],
    }


_OPTIONS: dict[str, Any] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"},
}


def row(title: str) -> dict[str, Any]:
    """A heading."""
    return {"title": title, "type": "row", "collapsed": False, "gridPos": {"h": 1, "w": _WIDTH}, "panels": []}


_UNDER_PRESSURE = f"{series('edge:pressure:ratio_rate1m')} > 0.1"
_LIMITS = (
    f"{series('operator:time_not_waiting:ratio_rate1m')} and on (job, instance, operator) "
    f'label_replace({_UNDER_PRESSURE}, "operator", "$1", "downstream", "(.+)")'
)

BAD_ABOVE_0 = (("green", None), ("red", 1))
BAD_BELOW_1 = (("red", None), ("green", 1))

PANELS = [
    row("Is it well? Throughput, lag, errors, latency, ledger"),
    panel("Answers", "short", (series("up"), "{{instance}}"), kind="stat", width=4, height=4,
          mappings={0: "down", 1: "up"}, thresholds=BAD_BELOW_1),
    panel("Failing", "short", (series("pipeline_health", 'status="failing"'), "{{instance}}"), kind="stat", width=4,
          height=4, mappings={0: "no", 1: "FAILING"}, thresholds=BAD_ABOVE_0, help_="/health has the reasons."),
    panel("Ledger", "short", (series("ledger_balanced"), "{{instance}}"), kind="stat", width=4, height=4,
          mappings={0: "NOT BALANCED", 1: "balanced"}, thresholds=BAD_BELOW_1),
    panel("Dropped in the last hour", "short",
          (f"sum(increase({series('flow_policy_drops_total')}[1h]))", "by edges"),
          (f"sum(increase({series('source_kernel_drops_total')}[1h]))", "by the kernel"),
          kind="stat", width=4, height=4, thresholds=BAD_ABOVE_0),
    panel("Dead letters in the last hour", "short", (f"sum(increase({series('dead_letters_total')}[1h]))", "items"),
          kind="stat", width=4, height=4, thresholds=(("green", None), ("orange", 1))),
    panel("Restarts in the last hour", "short", (f"sum(increase({series('operator_restart_total')}[1h]))", "restarts"),
          kind="stat", width=4, height=4, thresholds=(("green", None), ("orange", 1))),
    panel("Ingest", "ops", (series("source_ingest_rate"), "{{source}}"), help_="Items per second, mean of 30 s."),
    panel("Source lag", "s", *quantiles("source_lag_seconds", "source"),
          help_="From the measurement to its arrival: what sensor and network need."),
    panel("Pipeline lag", "s", *quantiles("pipeline_lag_seconds", "source"),
          help_="From the arrival to the end of the processing: what this pipeline needs."),
    panel("Sink latency", "s", *quantiles("sink_latency_seconds", "sink"), help_="From ingest to acknowledgement."),
    panel("Since the last item", "s", (series("source_last_item_age_seconds"), "{{source}}")),
    panel("Ledger's terms", "short", (series("ledger_items"), "{{term}}"),
          help_="ingested + repeated + derived = the sum of all others."),
    row("Operators"),
    panel("Busy", "percentunit", (rate("operator_time_seconds_total", 'state="busy"'), "{{operator}}"), maximum=1),
    panel("Idle: waits for input", "percentunit",
          (rate("operator_time_seconds_total", 'state="idle"'), "{{operator}}"), maximum=1),
    panel("Blocked: waits for space in its outputs", "percentunit",
          (rate("operator_time_seconds_total", 'state="blocked"'), "{{operator}}"), maximum=1),
    panel("Latency of a batch", "s", *quantiles("operator_latency_seconds", "operator"),
          help_="From taking a batch to its acknowledgement."),
    panel("Restarts", "short", (f"increase({series('operator_restart_total')}[10m])", "{{operator}}"),
          help_="In ten minutes."),
    panel("Errors by kind", "short", (f"increase({series('operator_errors_total')}[10m])", "{{operator}} {{kind}}"),
          help_="Failures of instances in ten minutes, by the exception's type."),
    panel("Restarts left", "short", (series("operator_restarts_left"), "{{operator}}"),
          help_="At 0 the next failure ends the run. Operators without a limit have no series."),
    panel("Running", "short", (series("operator_up"), "{{operator}}"), maximum=1),
    panel("Retries", "ops", (rate("retry_attempts_total"), "{{operator}}")),
    row("Edges, breakers, pools, event loop, process"),
    panel("Fill of the edges", "percentunit",
          (f"{series('channel_occupancy')} / {series('channel_capacity')}", "{{edge}}"), maximum=1),
    panel("Pressure of the edges", "percentunit", (rate("edge_pressure_seconds_total"), "{{edge}}"), maximum=1,
          help_="The share of the time in which an edge held up its writer, dropped items, or had items on disk."),
    panel("Wait in the edges", "s", *quantiles("edge_wait_seconds", "edge")),
    panel("Limits the pipeline", "percentunit",
          (_LIMITS, "{{operator}}"), maximum=1,
          help_="Operators behind an edge under pressure: how much of the last minute they worked or were down. Needs the rules."),
    panel("Dropped", "short", (f"increase({series('flow_policy_drops_total')}[5m])", "{{edge}} {{policy}}"),
          (f"increase({series('source_kernel_drops_total')}[5m])", "kernel: {{source}}"), help_="In five minutes."),
    panel("On disk", "short", (series("spill_items"), "{{edge}}"), help_="Items of edges with the policy spill."),
    panel("Circuit breakers", "short", (series("circuit_breaker_state"), "{{breaker}}"),
          (series("circuit_breaker_forced"), "{{breaker}} forced"), maximum=2,
          mappings={0: "closed", 1: "open", 2: "half-open"}),
    panel("Blocking calls", "short", (series("blocking_pool_waiting"), "{{pool}} waiting"),
          (series("blocking_pool_abandoned"), "{{pool}} hang"), (series("blocking_pool_busy"), "{{pool}} busy")),
    panel("Workers", "short", (series("bulkhead_workers_ready"), "{{bulkhead}} ready"),
          (series("bulkhead_workers"), "{{bulkhead}} wanted"), (series("bulkhead_calls_waiting"), "{{bulkhead}} calls waiting")),
    panel("Event loop", "s", (series("event_loop_lag_seconds"), "{{instance}} late by"),
          (series("snapshot_age_seconds"), "{{instance}} age of the figures")),
    panel("Stalls of the loop", "short", (f"increase({series('event_loop_stalls_total')}[5m])", "{{instance}}"),
          help_="In five minutes."),
    panel("Processor", "percentunit", (rate("process_cpu_seconds_total"), "{{instance}}"), help_="1 is one core."),
    panel("Memory", "bytes", (series("process_resident_memory_bytes"), "{{instance}}")),
    panel("File descriptors", "percentunit",
          (f"{series('process_open_fds')} / {series('process_max_fds')}", "{{instance}}"), maximum=1),
    panel("Threads", "short", (series("process_threads"), "{{instance}}")),
    row("Event time, alerts, dead letters (event time and alerts: sda-fusion)"),
    panel("Behind the clock", "s", (f"time() - {series('source_watermark_seconds')}", "{{source}}"),
          (f"time() - {series('pipeline_watermark_seconds')}", "pipeline"),
          help_="How old the watermarks are. An idle source keeps its last one, and is not waited for."),
    panel("Who holds the watermark", "short", (series("pipeline_watermark_holder"), "{{source}}"), stacked=True, maximum=1),
    panel("Idle sources", "short", (series("source_idle"), "{{source}}"), (series("source_paused"), "{{source}} paused"),
          maximum=1),
    panel("Windows", "short", (series("pending_windows"), "{{operator}} {{tier}}")),
    panel("Late items", "short", (f"increase({series('late_items_total')}[10m])", "{{operator}} {{outcome}}"),
          (f"increase({series('windows_closed_early_total')}[10m])", "{{operator}} windows closed early"),
          help_="In ten minutes."),
    panel("Clocks that are wrong", "short", (f"increase({series('clock_skew_observed_total')}[10m])", "{{source}} dated in the future"),
          (f"increase({series('watermark_regressions_total')}[10m])", "{{source}} went back"), help_="In ten minutes."),
    panel("Alert latency", "s",
          *((f"histogram_quantile({quantile}, sum by (le) (rate({series('alert_latency_seconds_bucket')}[10m])))", name)
            for quantile, name in ((0.5, "p50"), (0.99, "p99"))),
          help_="From the evidence to a subscriber's acknowledgement; the objective is 30 s."),
    panel("Alert outbox", "short", (series("alert_outbox_depth"), "{{subscriber}} waiting"),
          (series("alert_outbox_parked"), "{{subscriber}} parked")),
    panel("Oldest alert that waits", "s", (series("alert_outbox_oldest_seconds"), "{{subscriber}}")),
    panel("Alerts by outcome", "short", (f"increase({series('alerts_total')}[10m])", "{{outcome}}"), help_="In ten minutes."),
    panel("Size of the outbox", "percentunit", (f"{series('alert_outbox_bytes')} / {series('alert_outbox_max_bytes')}", "{{instance}}"),
          maximum=1),
    panel("Dead letters", "short", (f"increase({series('dead_letters_total')}[10m])", "{{operator}} {{kind}}"),
          help_="In ten minutes."),
]  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole document, with the panels laid out from left to right."""
    x = y = height = 0
    placed = []
    for number, each in enumerate(PANELS, 1):
        grid = each["gridPos"]
        if x + grid["w"] > _WIDTH:
            x, y = 0, y + height
        placed.append({"id": number, **each, "gridPos": {**grid, "x": x, "y": y}})
        x, height = x + grid["w"], grid["h"]
    return {
        "uid": "sda-pipelines",
        "title": "Space-safety pipelines",
        "description": "sda-ingest and sda-fusion. docs/on-call.md says what to check first.",
        "tags": ["sda"],
        "timezone": "utc",
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "schemaVersion": 36,
        "version": 1,
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "enable": True,
                    "iconColor": "red",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "expr": 'ALERTS{alertstate="firing",job="$pipeline",instance=~"$instance"}',
                    "titleFormat": "{{alertname}}",
                }
            ]
        },
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("pipeline", "Pipeline", 'label_values(up{job=~"sda-.+"}, job)', several=False),
                _variable("instance", "Instance", 'label_values(up{job="$pipeline"}, instance)', several=True),
            ]
        },
        "panels": placed,
    }


def _variable(name: str, label: str, query: str, *, several: bool) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": several,
        "multi": several,
        **({"current": {"text": "All", "value": "$__all"}, "allValue": ".*"} if several else {}),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
