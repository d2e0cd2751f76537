"""``deploy/prometheus/rules.yml``: which alerts fire for which series. Prometheus' own tool evaluates the rules.

Each case changes some series of a healthy run, and says which alerts fire at one moment: these, and no other. All cases are
evaluated together, each as an instance of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its stubs do not

from tests.helpers.support import ROOT

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
EVERY_S = 15

HEALTHY: Mapping[str, str] = {
    "up": "1x*",
    'pipeline_health{status="ok"}': "1x*",
    'pipeline_health{status="degraded"}': "0x*",
    'pipeline_health{status="draining"}': "0x*",
    'pipeline_health{status="failing"}': "0x*",
    "event_loop_lag_seconds": "0.01x*",
    "event_loop_stalls_total": "2x*",
    "process_open_fds": "50x*",
    "process_max_fds": "1024x*",
    "process_resident_memory_bytes": "200000000x*",
    'operator_restart_total{operator="dedup"}': "1x*",
    'operator_restarts_left{operator="dedup"}': "3x*",
    'operator_restart_total{operator="audit"}': "0x*",
    'operator_restarts_left{operator="audit"}': "0x*",  # its policy admits none, and it has not failed
    'circuit_breaker_state{breaker="optical"}': "0x*",
    'circuit_breaker_forced{breaker="optical"}': "0x*",
    'bulkhead_workers{bulkhead="propagate"}': "2x*",
    'bulkhead_workers_ready{bulkhead="propagate"}': "2x*",
    'bulkhead_exhausted{bulkhead="propagate"}': "0x*",
    'bulkhead_calls_lost_total{bulkhead="propagate"}': "0x*",
    **{
        f'operator_time_seconds_total{{operator="{name}",state="{state}"}}': f"0+{share * EVERY_S}x*"
        for name, shares in {"merge": (0.1, 0.9, 0), "dedup": (0.3, 0.7, 0), "audit": (0.1, 0.9, 0)}.items()
        for state, share in zip(("busy", "idle", "blocked"), shares, strict=True)
    },
    'edge_pressure_seconds_total{edge="merge -> dedup"}': "0x*",
    'edge_pressure_seconds_total{edge="dedup -> audit"}': "0x*",
    'channel_occupancy{edge="optical -> merge"}': "1x*",
    'channel_capacity{edge="optical -> merge"}': "2048x*",
    'sink_latency_seconds_bucket{sink="audit",le="2"}': "0+100x*",
    'sink_latency_seconds_bucket{sink="audit",le="5"}': "0+100x*",
    'sink_latency_seconds_bucket{sink="audit",le="30"}': "0+100x*",
    'sink_latency_seconds_bucket{sink="audit",le="+Inf"}': "0+100x*",
    'pipeline_lag_seconds_bucket{source="radar",le="10"}': "0+100x*",
    'pipeline_lag_seconds_bucket{source="radar",le="60"}': "0+100x*",
    'pipeline_lag_seconds_bucket{source="radar",le="+Inf"}': "0+100x*",
    'source_lag_seconds_bucket{source="optical",le="60"}': "0+100x*",
    'source_lag_seconds_bucket{source="optical",le="120"}': "0+100x*",
    'source_lag_seconds_bucket{source="optical",le="+Inf"}': "0+100x*",
    'source_last_item_age_seconds{source="optical"}': "20x*",
    'source_ingest_rate{source="optical"}': "3x*",
    'source_paused{source="optical"}': "0x*",
    'source_last_item_age_seconds{source="screen"}': "0+15x*",  # it sends after a screening only
    'source_ingest_rate{source="screen"}': "0x*",
    "ledger_balanced": "1x*",
    'flow_policy_drops_total{edge="tee -> propagate",policy="spill"}': "0x*",
    'source_kernel_drops_total{source="radar-01"}': "0x*",
    'dead_letters_total{operator="validate",kind="ValidationFailed"}': "0+1x*",
    "pipeline_watermark_seconds": "1000+15x*",
    'pipeline_watermark_holder{source="optical"}': "1x*",
    'source_watermark_seconds{source="optical"}': "1001+15x*",
    'source_watermark_seconds{source="radar-01"}': "1030+15x*",
    'source_watermark_seconds{source="isl"}': "500x*",
    'source_idle{source="isl"}': "1x*",
    'source_idle{source="optical"}': "0x*",
    'watermark_regressions_total{source="optical"}': "0x*",
    'windows_closed_early_total{operator="fuse"}': "0x*",
    'alert_latency_seconds_bucket{le="10"}': "0+1x*",
    'alert_latency_seconds_bucket{le="30"}': "0+1x*",
    'alert_latency_seconds_bucket{le="60"}': "0+1x*",
    'alert_latency_seconds_bucket{le="+Inf"}': "0+1x*",
    'alert_outbox_oldest_seconds{subscriber="ops"}': "0x*",
    'alert_outbox_parked{subscriber="ops"}': "0x*",
    "alert_outbox_bytes": "100x*",
    "alert_outbox_max_bytes": "1000x*",
    'operator_figure{operator="screen",name="last_screening_age_s"}': "600x*",
}

AT_A_START: Mapping[str, str] = {
    "up": "0x1 1x*",  # the first scrapes come before the process listens
    'source_ingest_rate{source="optical"}': "_ _ 0x3 3x*",  # no item in the first minute
    'source_last_item_age_seconds{source="optical"}': "_x6 1x*",
    'operator_restart_total{operator="dedup"}': "_ _ 0x*",
    "event_loop_stalls_total": "_ _ 2x*",  # while the modules are loaded
    "process_resident_memory_bytes": "_ _ 50000000+10000000x20 250000000x*",
    'operator_time_seconds_total{operator="dedup",state="idle"}': "_ _ 0x2 0+15x*",
    **{name: f"_ _ {values}" for name, values in HEALTHY.items() if "_bucket" in name},
    "pipeline_watermark_seconds": "_x6 1000+15x*",
    'pipeline_watermark_holder{source="optical"}': "_x6 1x*",
    'source_watermark_seconds{source="optical"}': "_x4 1001+15x*",
    'source_watermark_seconds{source="radar-01"}': "_x2 1030+15x*",
    'operator_figure{operator="screen",name="last_screening_age_s"}': "_x4 0+15x*",
    "alert_outbox_bytes": "_ _ 0x*",
}


@dataclass(frozen=True, slots=True)
class Case:
    """Changes of `HEALTHY`, and what fires after ``at``: the alert with its labels, but ``severity``, ``job``, ``instance``.

    ``at`` may have several times. ``x*`` in values means that they go on to the end. Samples and evaluations are ``every_s``
    apart: hours are slow to evaluate otherwise.
    """

    name: str
    at: str
    changes: Mapping[str, str] = field(default_factory=dict)
    fires: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    every_s: int = EVERY_S


def busy(operator: str, busy: float, idle: float, blocked: float) -> dict[str, str]:
    return {
        f'operator_time_seconds_total{{operator="{operator}",state="{state}"}}': f"0+{share * EVERY_S}x*"
        for state, share in {"busy": busy, "idle": idle, "blocked": blocked}.items()
    }


def pressure(edge: str, share: float) -> dict[str, str]:
    return {f'edge_pressure_seconds_total{{edge="{edge}"}}': f"0+{share * EVERY_S}x*"}


NO_WATERMARKS = {"pipeline_watermark_seconds": "_x*"}
NOTHING_COMES = {
    'source_watermark_seconds{source="optical"}': "1000x*",
    "pipeline_watermark_seconds": "1000x*",
}
DRAIN = {
    'pipeline_health{status="ok"}': "1 0x*",
    'pipeline_health{status="draining"}': "0 1x*",
    'source_ingest_rate{source="optical"}': "3 0x*",
    'source_last_item_age_seconds{source="optical"}': "0+15x*",
    **NOTHING_COMES,
}
DEPLOYMENT = {  # 45 s without an answer; then counters begin again at 0
    name: values.replace("x*", "x12") + " _ _ _ " + AT_A_START.get(name, values).removeprefix("_ _ ")
    for name, values in {**HEALTHY, **DRAIN}.items()
    if name != "up"
} | {"up": "1x12 0x2 1x*"}
RESTARTS = 'operator_restart_total{operator="dedup"}'
LEFT = 'operator_restarts_left{operator="dedup"}'
AGE = 'source_last_item_age_seconds{source="optical"}'
SILENT = {"SourceSilent": {"source": "optical"}}
OPTICAL, DEDUP, OPS = {"source": "optical"}, {"operator": "dedup"}, {"subscriber": "ops"}
BREAKER, POOL = {"breaker": "optical"}, {"bulkhead": "propagate"}

CASES = [
    Case("healthy", "1m 5m 11m"),
    Case("after a start", "0s 15s 30s 1m 2m 3m 5m 10m", AT_A_START),
    Case("the target is gone", "2m", {"up": "1x3 0x*"}, {"PipelineDown": {}}),
    Case("the target is gone for half a minute", "1m15s", {"up": "1x2 0x1 1x*"}),
    Case(
        "health is failing", "1m", {'pipeline_health{status="failing"}': "0 1x*"}, {"PipelineFailing": {"status": "failing"}}
    ),
    Case(
        "a call hangs",
        "6m",
        {'pipeline_health{status="degraded"}': "1x*"},
        {"PipelineDegraded": {"status": "degraded"}},
    ),
    Case(
        "a source is paused, which is degraded too, and sends nothing",
        "20m",
        {'pipeline_health{status="degraded"}': "1x*", 'source_paused{source="optical"}': "1x*", AGE: "0+15x*"},
        {"SourcePaused": OPTICAL}, every_s=60,
    ),
    Case("a source was paused for ten minutes", "11m", {'source_paused{source="optical"}': "1x40 0x*"}),
    Case("the loop is late", "1m", {"event_loop_lag_seconds": "0 2 17 32 47"}, {"EventLoopStalled": {}}),
    Case("one stall of two seconds", "1m", {"event_loop_lag_seconds": "0 0 2 0x*", "event_loop_stalls_total": "2 2 3x*"}),
    Case("a stall every half minute", "5m", {"event_loop_stalls_total": "0+0.5x*"}, {"EventLoopStalled": {}}),
    Case("descriptors run out", "6m", {"process_open_fds": "900x*"}, {"ProcessLimits": {}}),
    Case("memory leaks", "3h10m", {"process_resident_memory_bytes": "200000000+4000000x*", **NO_WATERMARKS}, {"MemoryGrows": {}}, every_s=300),
    Case(
        "memory of a cache that fills, and is full after an hour",
        "3h10m",
        {"process_resident_memory_bytes": "200000000+20000000x12 440000000x*", **NO_WATERMARKS},
        every_s=300,
    ),
    Case("a restart every minute", "10m", {RESTARTS: "0+0.25x*", LEFT: "4x*"}, {"OperatorRestarting": DEDUP}),
    Case("three restarts", "10m", {RESTARTS: "0x3 1x3 2x3 3x*"}),
    Case("four failures in a minute", "2m", {RESTARTS: "0x4 2 4x*", LEFT: "5x4 3 1x*"}, {"RestartBudgetLow": DEDUP}),
    Case("the budget has recovered", "5m", {RESTARTS: "0x4 2 4x*", LEFT: "5x4 3 1x3 5x*"}, {"OperatorRestarting": DEDUP}),
    Case("a downstream fails", "11m", {'circuit_breaker_state{breaker="optical"}': "1x*"}, {"CircuitBreakerOpen": BREAKER}),
    Case("a downstream answers between failures", "11m", {'circuit_breaker_state{breaker="optical"}': "1x15 0 1x15 0 1x*"}),
    Case(
        "a breaker was forced and forgotten",
        "31m",
        {'circuit_breaker_state{breaker="optical"}': "1x*", 'circuit_breaker_forced{breaker="optical"}': "1x*"},
        {"CircuitBreakerForced": BREAKER}, every_s=60,
    ),
    Case("a worker does not come back", "6m", {'bulkhead_workers_ready{bulkhead="propagate"}': "1x*"}, {"WorkersLost": POOL}),
    Case("the pool is used up", "6m", {'bulkhead_exhausted{bulkhead="propagate"}': "1x*"}, {"WorkersLost": POOL}),
    Case("calls are given up", "6m", {'bulkhead_calls_lost_total{bulkhead="propagate"}': "0+1x*"}, {"WorkersLost": POOL}),
    Case("a worker is replaced", "6m", {'bulkhead_workers_ready{bulkhead="propagate"}': "2x9 1x1 2x*"}),
    Case(
        "an operator is slow",
        "5m",
        busy("merge", 0.1, 0, 0.9) | busy("dedup", 1, 0, 0) | pressure("merge -> dedup", 0.9),
        {"Bottleneck": DEDUP},
    ),
    Case(
        "the sink behind it is slow",
        "5m",
        busy("dedup", 0.6, 0, 0.4)
        | busy("audit", 1, 0, 0)
        | pressure("merge -> dedup", 0.3)
        | pressure("dedup -> audit", 0.4),
        {"Bottleneck": {"operator": "audit"}},
    ),
    Case(
        "an operator is down, and its input is full",
        "5m",
        busy("dedup", 0, 0, 0) | pressure("merge -> dedup", 1),
        {"Bottleneck": DEDUP},
    ),
    Case("full for a moment now and then", "5m", busy("dedup", 0.9, 0.1, 0) | pressure("merge -> dedup", 0.04)),
    Case("busy, and nothing waits for it", "5m", busy("dedup", 1, 0, 0)),
    Case(
        "the disk is slow",
        "11m",
        {f'sink_latency_seconds_bucket{{sink="audit",le="{bound}"}}': "0+50x*" for bound in (2, 5)},
        {"SinkSlow": {"sink": "audit"}},
    ),
    Case(
        "the pipeline is behind",
        "11m",
        {'pipeline_lag_seconds_bucket{source="radar",le="10"}': "0+90x*"},
        {"PipelineLagging": {"source": "radar"}},
    ),
    Case("a planned drain", "1m 3m 5m 8m", DRAIN),
    Case("it drains, ends and starts again", "1m 3m 4m 5m 8m", DEPLOYMENT),
    Case("a feed is silent", "5m", {AGE: "0+15x*"}, SILENT),
    Case("a feed pauses for two minutes", "2m30s", {AGE: "0+15x9 0x*"}),
    Case("a feed has never sent", "5m", {AGE: "_x*", 'source_ingest_rate{source="optical"}': "0x*"}, SILENT),
    Case(
        "an archive is slow",
        "16m",
        {'source_lag_seconds_bucket{source="optical",le="60"}': "0+40x*"},
        {"SourceLagging": OPTICAL}, every_s=60,
    ),
    Case("the ledger does not balance", "5m", {"ledger_balanced": "1x9 0 0 1x*"}, {"LedgerUnbalanced": {}}),
    Case(
        "an edge sheds",
        "5m",
        {'flow_policy_drops_total{edge="tee -> propagate",policy="spill"}': "0x9 5x*"},
        {"ItemsDropped": {"edge": "tee -> propagate"}},
    ),
    Case(
        "the kernel drops",
        "5m",
        {'source_kernel_drops_total{source="radar-01"}': "0x9 5x*"},
        {"ItemsDropped": {"source": "radar-01"}},
    ),
    Case(
        "items are dead-lettered",
        "5m",
        {'dead_letters_total{operator="validate",kind="ValidationFailed"}': "0+10x*"},
        {"DeadLetters": {"operator": "validate", "kind": "ValidationFailed"}},
    ),
    Case("a source stalls", "5m", NOTHING_COMES, {"WatermarkHeldBySource": OPTICAL}),
    Case("the pipeline stalls behind merge", "5m", {"pipeline_watermark_seconds": "1000x*"}, {"WatermarkHeldByPipeline": {}}),
    Case(
        "the holder waits for space",
        "5m",
        {**NOTHING_COMES, 'channel_occupancy{edge="optical -> merge"}': "2048x*"},
        {"WatermarkHeldByPipeline": {}},
    ),
    Case(
        "no source is in contact",
        "5m",
        {
            "pipeline_watermark_seconds": "1000x*",
            'pipeline_watermark_holder{source="optical"}': "_x*",
            'source_watermark_seconds{source="optical"}': "1010x*",
            'source_watermark_seconds{source="radar-01"}': "_x*",
            'source_idle{source="optical"}': "1x*",
        },
        {"AllSourcesIdle": {}},
    ),
    Case("a clock was set back", "20m", {'watermark_regressions_total{source="optical"}': "0+1x*"}, {"WatermarkGoesBack": OPTICAL}, every_s=60,
    ),
    Case(
        "windows are closed early",
        "5m",
        {'windows_closed_early_total{operator="fuse"}': "0x9 3x*"},
        {"WindowsClosedEarly": {"operator": "fuse"}},
    ),
    Case(
        "alerts are late",
        "5m",
        {f'alert_latency_seconds_bucket{{le="{bound}"}}': "0+0.9x*" for bound in (10, 30)},
        {"AlertsLate": {}},
    ),
    Case("a subscriber does not answer", "5m", {'alert_outbox_oldest_seconds{subscriber="ops"}': "0+15x*"}, {"AlertsNotDelivered": OPS}),
    Case("a subscriber rejects", "1m", {'alert_outbox_parked{subscriber="ops"}': "1x*"}, {"AlertsParked": OPS}),
    Case("the outbox fills", "6m", {"alert_outbox_bytes": "900x*"}, {"AlertOutboxNearlyFull": {}}),
    Case(
        "nothing is screened",
        "6m",
        {'operator_figure{operator="screen",name="last_screening_age_s"}': "11000+15x*"},
        {"ScreeningStale": {"operator": "screen", "name": "last_screening_age_s"}},
    ),
]  # fmt: skip


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_every_alert_has_a_severity_a_text_and_a_page_of_the_runbook() -> None:
    """And exactly one case or more in which it fires."""
    assert {name for case in CASES for name in case.fires} == set(alerts())
    for name, rule in alerts().items():
        assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"}), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert "$labels.job" in rule["annotations"]["summary"], name
        assert "$labels.instance" in rule["annotations"]["description"], name
        assert rule["annotations"]["runbook_url"] == f"docs/runbook/{name}.md"


def test_the_alerts_fire_when_they_should_and_no_other_does(tmp_path: Path) -> None:
    """In a healthy run and after a start none fires."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: make debian-packages)")
    severities = {name: rule["labels"]["severity"] for name, rule in alerts().items()}
    files = []
    for every_s in sorted({case.every_s for case in CASES}):
        cases = [case for case in CASES if case.every_s == every_s]
        document = {
            "rule_files": [str(RULES)],
            "evaluation_interval": f"{every_s}s",
            "tests": [as_test(cases, every_s, severities)],
        }
        files.append(f"every_{every_s}_s.yml")
        (tmp_path / files[-1]).write_text(json.dumps(document))
    done = subprocess.run(
        [promtool, "test", "rules", *files], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def as_test(cases: Sequence[Case], every_s: int, severities: Mapping[str, str]) -> dict[str, Any]:
    """For promtool."""
    steps = round(max(_seconds(at) for case in cases for at in case.at.split()) / every_s) + 1
    return {
        "interval": f"{every_s}s",
        "input_series": [
            {"series": of_target(series, case), "values": values.replace("x*", f"x{steps}")}
            for case in cases
            for series, values in {**HEALTHY, **case.changes}.items()
        ],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertstate="firing", instance="{case.name}"}}',
                "eval_time": at,
                "exp_samples": [
                    {
                        "labels": of_target(
                            "ALERTS"
                            + _braces(
                                {"alertname": name, "alertstate": "firing", "severity": severities[name], **labels}
                            ),
                            case,
                        ),
                        "value": 1,
                    }
                    for name, labels in case.fires.items()
                ],
            }
            for case in cases
            for at in case.at.split()
        ],
    }


def of_target(series: str, case: Case) -> str:
    name, _, labels = series.removesuffix("}").partition("{")
    return name + _braces({"job": "sda-fusion", "instance": case.name}).removesuffix("}") + f",{labels}}}"


def _braces(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def _seconds(duration: str) -> int:
    return sum(
        int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)
    )
