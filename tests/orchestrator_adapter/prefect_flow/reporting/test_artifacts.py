"""The text of a run's artifacts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prefect.client.schemas.actions import ArtifactCreate

from orchestrator_adapter import FlowPolicy, OperatorGraph, RestartPolicy, map_items, source_of
from orchestrator_adapter.channels.ledger import LedgerSnapshot
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.prefect_flow.reporting import artifacts
from orchestrator_adapter.primitives.metrics import LatencySummary
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import ExitCode, exit_code
from orchestrator_adapter.runtime.status import GraphStatus
from orchestrator_adapter.testing import CollectSink
from tests.helpers.figures import BALANCED, FIGURES, STUCK, UNBALANCED, VIOLATED, all_ok, exhausted, shut_down

NOTHING = LedgerSnapshot(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
UNESCAPED_PIPE = re.compile(r"(?<!\\)(?:\\\\)*\|")


def a_graph() -> OperatorGraph:
    graph = OperatorGraph("radar-net")
    poll = graph.add_source("poll", source_of([]), note="every 5 s")
    work = graph.add_operator("work", map_items(lambda n: n), restart_policy=RestartPolicy.never())
    graph.connect(poll, work, 1_000, policy=FlowPolicy.shed(), note="fresh | or nothing")
    graph.connect(work, graph.add_sink("log", CollectSink()), 64)
    return graph


def now(**changes: Any) -> GraphStatus:
    return replace(a_graph().build().status(), **changes)


def view(status: GraphStatus, *, silent_s: float = 0.0, blocked_by: str = "") -> View:
    return View(status, 0.0, silent_s=silent_s, threshold_s=0.5, lag_s=0.0, stalls=0, blocked_by=blocked_by)


def operators(**changes: Any) -> GraphStatus:
    """The status with its first operator changed."""
    status = now()
    first, *others = status.operators
    return replace(status, operators=(replace(first, **changes), *others))


def row(text: str, first: str) -> list[str]:
    """The cells of the table line whose first cell is ``first``."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


# The topology.


def test_the_topology_is_a_diagram_and_two_tables() -> None:
    """The fenced Mermaid block has the graph and nothing of the tables."""
    graph = a_graph()
    text = artifacts.topology(graph)
    before, picture, after = text.split("```")
    assert before == "# radar-net\n\n"
    assert picture == f"mermaid\n{graph.to_mermaid()}"
    assert after.startswith("\n\n| channel |")


def test_the_topology_has_capacity_policy_and_reason_of_every_channel_and_operator() -> None:
    """A pipe in a note does not end its cell."""
    text = artifacts.topology(a_graph())
    assert f"| poll -> work | 1,000 | {FlowPolicy.shed()} | fresh \\| or nothing |" in text
    assert row(text, "work -> log") == ["work -> log", "64", str(FlowPolicy.backpressure()), ""]
    assert row(text, "work") == ["work", "operator", str(RestartPolicy.never()), ""]
    assert row(text, "poll")[1::2] == ["source", "every 5 s"]
    assert "| --- | ---: | --- | --- |" in text


# The status.


@pytest.mark.parametrize(
    ("shown", "headline"),
    [
        (view(now()), "running: 0 items/s in, 0 in flight, 0 restarts"),
        (view(now(restarts=1)), "running: 0 items/s in, 0 in flight, 1 restart"),
        (view(now(restarts=1_000)), "running: 0 items/s in, 0 in flight, 1,000 restarts"),
        (view(operators(ingest_rate_per_s=1_234.4)), "running: 1,234 items/s in, 0 in flight, 0 restarts"),
        (view(now(shutting_down="SIGTERM")), "draining: SIGTERM"),
        (view(now(shutting_down="SIGTERM", verdict="Panicked: map")), "stopping: Panicked: map"),
        (view(now(), silent_s=0.5), "running: 0 items/s in, 0 in flight, 0 restarts"),
        (view(now(verdict="x"), silent_s=0.6), "the event loop has not answered for 0.6 s"),
        (view(now(), silent_s=12.3, blocked_by="map #1"), "the event loop has not answered for 12.3 s (map #1)"),
    ],
)
def test_the_headline_is_the_most_severe_condition(shown: View, headline: str) -> None:
    """A silent loop comes before a verdict, a verdict before a drain, a drain before figures."""
    assert artifacts.status(shown).splitlines()[0] == f"**{headline}**"


def test_the_status_has_a_line_for_every_operator_and_channel() -> None:
    """Its figures are in the order of the columns."""
    status = operators(
        state="errored",
        instance=2,
        uptime_s=3_725.0,
        consumed=1_000,
        emitted=2_000,
        restarts=3,
        exit="Errored(OSError)",
    )
    edge = replace(status.edges["poll -> work"], occupancy=101, high_water_mark=1_000, sent=5_000, policy_drops=7)
    text = artifacts.status(view(replace(status, edges={**status.edges, "poll -> work": edge})))
    assert row(text, "poll") == ["poll", "errored", "2", "1 h 02 min", "1,000", "2,000", "3", "Errored(OSError)"]
    assert row(text, "poll -> work") == ["poll -> work", "101 of 1,000", "██░░░░░░░░", "1,000", "5,000", "7"]
    assert row(text, "work -> log")[1:3] == ["0 of 64", "░░░░░░░░░░"]
    assert [line for line in text.splitlines() if line.startswith("ledger: ")] == [f"ledger: {NOTHING}"]
    assert "latency" not in text


def test_measured_latency_and_an_unbalanced_ledger_are_shown() -> None:
    """The two percentiles in milliseconds; the imbalance in bold."""
    text = artifacts.status(view(now(latency=LatencySummary(7, 1.54, 2.5, 3.5), ledger=UNBALANCED.ledger)))
    assert "latency, ingest to acknowledgement: p50 1.5 ms, p99 2.5 ms" in text
    assert f"ledger: {UNBALANCED.ledger} **(does not balance)**" in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60.0, "1 min 00 s"), (3_599.9, "59 min 59 s"), (90_000.0, "25 h 00 min")],
)
def test_durations_have_tenths_below_a_minute_and_seconds_below_an_hour(seconds: float, expected: str) -> None:
    """Longer ones have hours and minutes."""
    assert row(artifacts.status(view(operators(uptime_s=seconds))), "poll")[3] == expected


@given(occupancy=st.integers(0, 1_000))
def test_a_bar_is_empty_only_for_an_empty_channel_and_full_only_for_a_nearly_full_one(occupancy: int) -> None:
    """It has ten characters, and a single item is visible."""
    bar = artifacts._bar(occupancy, 1_000)
    assert len(bar) == 10
    assert ("█" in bar) is (occupancy > 0)
    assert ("░" in bar) is (occupancy <= 900)


def test_a_long_exit_is_cut_to_a_line() -> None:
    """Its beginning stays; the operator's task run has the rest."""
    (cell,) = row(artifacts.status(view(operators(exit=300 * "x"))), "poll")[7:]
    assert cell == 99 * "x" + "…"
    assert row(artifacts.status(view(operators(exit=100 * "x"))), "poll")[7:] == [100 * "x"]


@example("a \\| b")
@example("ends with \\")
@example("a\r\nb\u2028c")
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_whatever_an_exit_says_it_ends_neither_its_cell_nor_its_row(exit_: str) -> None:
    """Pipes, backslashes before them, every kind of line end: the table keeps its columns and its rows."""
    plain = artifacts.status(view(operators(exit="x"))).splitlines()
    text = artifacts.status(view(operators(exit=exit_)))
    assert len(text.splitlines()) == len(plain)
    (line,) = [line for line in text.splitlines() if line.startswith("| poll |")]
    assert len(UNESCAPED_PIPE.findall(line)) == 9


# What is settled.


@pytest.mark.parametrize(
    ("ledger", "percent", "text"),
    [
        (NOTHING, 100.0, "settled: 0 of 0 items, 0 in flight"),
        (BALANCED, 100.0, "settled: 10 of 10 items, 0 in flight"),
        (replace(BALANCED, written=2, in_flight=5), 50.0, "settled: 5 of 10 items, 5 in flight"),
        (
            LedgerSnapshot(3_000, 500, 500, 0, 0, 0, 0, 0, 0, 0, 4_000),
            0.0,
            "settled: 0 of 4,000 items, 4,000 in flight",
        ),
    ],
)
def test_settled_is_the_share_of_entered_items_that_has_left(ledger: LedgerSnapshot, percent: float, text: str) -> None:
    """In percent; 100 if no item has entered."""
    assert (artifacts.settled_percent(ledger), artifacts.settled_text(ledger)) == (percent, text)


# The report.


def report_of(event: Any, *problems: str) -> str:
    return artifacts.report(RunOutcome(event, exit_code(event), problems))


def test_the_report_has_outcome_cause_duration_and_losses() -> None:
    """And throughput, latency, restarts, stragglers and the ledger."""
    text = report_of(exhausted())
    assert {name: row(text, name)[1] for name in ("event", "cause", "exit code", "elapsed", "throughput")} == {
        "event": "BudgetExhausted",
        "cause": "poll: OSError: down <- ValueError: no",
        "exit code": "3 (BUDGET_EXHAUSTED)",
        "elapsed": "3.5 s",
        "throughput": "2.0 written/s",
    }
    assert row(text, "latency p50 / p99")[1] == "1.5 / 2.5 ms"
    assert row(text, "dead letters")[1] == "2 (1 of them rejected)"
    assert row(text, "undelivered")[1] == "1"
    assert row(text, "restarts")[1] == "poll 2"
    assert row(text, "stragglers")[1] == "none"
    assert f"ledger: {BALANCED}" in text


def test_a_report_of_a_run_of_zero_seconds_has_dashes() -> None:
    """A dash stands for each figure that does not exist."""
    text = report_of(all_ok(replace(FIGURES, elapsed_s=0.0, latency=None, restarts={}, problems=())))
    assert [row(text, name)[1] for name in ("cause", "throughput", "latency p50 / p99", "restarts")] == [
        *("-", "-", "-"),
        "none",
    ]
    assert "Problems" not in text


def test_the_report_names_stragglers_and_every_problem() -> None:
    """Ledger violations, then problems of the graph, then problems of the report, in this order."""
    text = report_of(shut_down(replace(STUCK, violations=VIOLATED.violations)), "writing the report failed: disk")
    assert row(text, "stragglers")[1] == "log"
    assert row(text, "exit code")[1] == f"6 ({ExitCode.LEDGER_VIOLATION.name})"
    assert text.splitlines()[-5:] == [
        "**Problems**",
        "",
        f"- {VIOLATED.violations[0]}",
        "- closing what 'log' kept: OSError",
        "- writing the report failed: disk",
    ]


# Keys.


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("radar-net", "radar-net-status"),
        ("Radar Net_02", "radar-net-02-status"),
        ("--x--", "x-status"),
        ("Übersicht/№ 1", "bersicht-1-status"),
        ("", "status"),
    ],
)
def test_an_artifact_key_has_only_characters_that_prefect_allows(pipeline: str, expected: str) -> None:
    """Lowercase letters and digits, with single dashes between them."""
    assert artifacts.artifact_key(pipeline, "status") == expected


@given(st.text(max_size=30))
def test_prefect_accepts_the_key_of_any_name(pipeline: str) -> None:
    """Prefect's own validator decides."""
    key = artifacts.artifact_key(pipeline, "status")
    assert ArtifactCreate(key=key, type="markdown", data="").key == key


def test_markup_in_a_cell_is_escaped_and_an_arrow_is_not() -> None:
    """Otherwise the page would not show ``<class 'int'>``."""
    assert artifacts._cell("TypeError: <class 'int'> <- b") == "TypeError: &lt;class 'int'> <- b"
