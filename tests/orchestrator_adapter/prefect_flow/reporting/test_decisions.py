"""The supervisor's decisions as Prefect events and log lines: every decision, with any field values."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.actions import LogCreate
from prefect.events import Event

from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.reporting.decisions import decision_event, log_line, sentence
from orchestrator_adapter.primitives.decision import is_alarming
from orchestrator_adapter.supervision.events import Decided
from tests.helpers.prefect_fakes import IDENTITY, NOON

LEDGER = {"ingested": 10, "repeated": 0, "written": 10}
STACK = "".join(f'  File "poll.py", line {n}, in poll\n' for n in range(3_000))

DECISIONS = [
    Decided("spawn", {"operator": "poll", "instance": 1}),
    Decided("clean_exit", {"operator": "poll", "instance": 1}),
    Decided("exit_while_draining", {"operator": "poll", "instance": 1, "exit": "Errored(OSError: cable)"}),
    Decided("not_wanted", {"operator": "poll", "instance": 1, "exit": "Ok"}),
    Decided("aborted", {"operator": "poll", "instance": 1, "exit": "Aborted(SIGTERM)"}),
    Decided(
        "restart", {"operator": "poll", "instance": 2, "cause": "OSError: cable", "charged": True, "backoff_s": 0.5}
    ),
    Decided("budget_exhausted", {"operator": "poll", "instance": 3, "cause": "OSError: cable"}),
    Decided("escalate", {"operator": "poll", "instance": 1, "cause": "KeyError: 'x'", "traceback": STACK}),
    Decided("stalled", {"operator": "poll", "instance": 1, "stack": STACK}),
    Decided("straggler", {"operator": "poll", "instance": 1, "stack": STACK}),
    Decided("abort", {"operator": "poll", "instance": 1, "reason": "SIGTERM"}),
    Decided("ledger_violation", {"operator": "poll", "message": "operator 'poll': ledger shortfall"}),
    Decided("loop_stall", {"operator": "poll", "instance": 1, "lag_s": 0.31, "stack": STACK}),
    Decided("loop_stall", {"operator": "", "instance": None, "lag_s": 0.31, "stack": ""}),
    Decided("shutdown", {"phase": 1, "reason": "SIGTERM", "grace_s": 5.0}),
    Decided("shutdown_again", {"reason": "SIGTERM"}),
    Decided("shutdown_under_way", {"reason": "SIGTERM"}),
    Decided(
        "ended",
        {"outcome": "AllOk", "ledger": LEDGER, "ledger_holds": True, "undelivered": 0, "problems": ("disk: full",)},
    ),
]
"""Every decision of ``runtime``."""


def resources(item: ReportItem) -> dict[str, str]:
    """The ids of the related resources, by role."""
    return {other["prefect.resource.role"]: other["prefect.resource.id"] for other in item["related"]}


@pytest.mark.parametrize("decided", DECISIONS, ids=lambda decided: decided.decision)
def test_every_decision_is_an_event_and_a_log_line_that_prefect_accepts(decided: Decided) -> None:
    """Both validate as Prefect's own models, keep every field, and are strict JSON, as the client requires."""
    item, line = decision_event(IDENTITY, decided, NOON), log_line(IDENTITY, decided, NOON)
    event = Event.model_validate(item)
    assert event.model_dump(mode="json")["payload"] == item["payload"]
    assert set(item["payload"]) == set(decided.fields)
    assert LogCreate.model_validate(line).message == line["message"]
    for sent in (item, line):
        json.dumps(sent, allow_nan=False, ensure_ascii=False).encode()
        assert len(json.dumps(sent)) < 100_000


@pytest.mark.parametrize("decided", DECISIONS, ids=lambda decided: decided.decision)
def test_an_event_has_the_name_the_resource_and_the_relations_that_automations_match(decided: Decided) -> None:
    """An operator's decision has the operator as resource and its task run as related; others have the pipeline."""
    item = decision_event(IDENTITY, decided, NOON)
    base = {
        "flow-run": f"prefect.flow-run.{IDENTITY.flow_run_id}",
        "flow": f"prefect.flow.{IDENTITY.flow_id}",
        "deployment": f"prefect.deployment.{IDENTITY.deployment_id}",
        "tag": "prefect.tag.night",
    }
    if operator := decided.fields.get("operator"):
        assert item["event"] == f"orchestrator.operator.{decided.decision}"
        assert item["resource"]["prefect.resource.id"] == f"orchestrator.operator.radar-net.{operator}"
        base["pipeline"] = "orchestrator.pipeline.radar-net"
        if isinstance(instance := decided.fields.get("instance"), int):
            base["task-run"] = f"prefect.task-run.{IDENTITY.task_run_id(str(operator), instance)}"
    else:
        assert item["event"] == f"orchestrator.pipeline.{decided.decision}"
        assert item["resource"]["prefect.resource.id"] == "orchestrator.pipeline.radar-net"
    assert resources(item) == base
    assert len(item["related"]) == len(base)
    assert item["occurred"] == "2026-01-01T12:00:00+00:00"


def test_an_instance_that_is_not_a_number_is_not_a_task_run() -> None:
    """It stays an ordinary field."""
    decided = Decided("abort", {"operator": "poll", "instance": "the last"})
    item, line = decision_event(IDENTITY, decided, NOON), log_line(IDENTITY, decided, NOON)
    assert "task-run" not in resources(item)
    assert "task_run_id" not in line
    assert item["payload"]["instance"] == "the last"
    assert line["message"] == "abort poll"


def test_two_equal_decisions_are_two_events() -> None:
    """Each has an id of its own. Otherwise the server would keep only one."""
    assert len({decision_event(IDENTITY, DECISIONS[0], NOON)["id"] for _ in range(3)}) == 3


@pytest.mark.parametrize("decided", DECISIONS, ids=lambda decided: decided.decision)
def test_a_log_line_has_level_flow_run_and_task_run(decided: Decided) -> None:
    """An alarming decision has level ERROR. A line with operator and instance belongs to the instance's task run."""
    line = log_line(IDENTITY, decided, NOON + timedelta(seconds=1))
    operator, instance = decided.fields.get("operator"), decided.fields.get("instance")
    assert line["level"] == (logging.ERROR if is_alarming(decided.decision) else logging.INFO)
    assert line["name"] == (f"supervisor.{operator}" if operator else "supervisor")
    assert line["flow_run_id"] == str(IDENTITY.flow_run_id)
    assert line["timestamp"] == "2026-01-01T12:00:01+00:00"
    expected = str(IDENTITY.task_run_id(str(operator), instance)) if isinstance(instance, int) else None
    assert line.get("task_run_id") == expected


@pytest.mark.parametrize(
    ("decided", "expected"),
    [
        (DECISIONS[0], "spawn poll"),
        (DECISIONS[5], "restart poll #2: cause OSError: cable, charged True, backoff_s 0.5"),
        (DECISIONS[14], "shutdown: phase 1, reason SIGTERM, grace_s 5.0"),
        (Decided("ledger_violation", {"operator": "poll", "message": "lost"}), "ledger violation poll: message lost"),
        (
            DECISIONS[17],
            (
                "ended: outcome AllOk, ledger ingested 10, written 10, ledger_holds True, undelivered 0, "
                "problems ('disk: full',)"
            ),
        ),
        (Decided("shutdown_again", {}), "shutdown again"),
    ],
)
def test_a_log_line_names_the_decision_the_instance_and_the_fields(decided: Decided, expected: str) -> None:
    """In this order. Of a ledger, only non-zero terms are listed."""
    assert sentence(decided) == expected


def test_a_long_stack_loses_its_middle_and_keeps_the_last_frame() -> None:
    """20,000 characters stay, in the event and in the log line. The last frame matters most."""
    decided = Decided("stalled", {"operator": "poll", "instance": 1, "stack": STACK})
    for text in (decision_event(IDENTITY, decided, NOON)["payload"]["stack"], sentence(decided)):
        assert 20_000 < len(text) < 20_100
        assert "line 0, in poll" in text
        assert text.endswith("line 2999, in poll\n")
        assert "additional characters" in text


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (0.5, 0.5),
        (None, None),
        (True, True),
        (Path("/tmp/x"), "/tmp/x"),
        (timedelta(seconds=5), "0:00:05"),
        (("a", 1, [float("inf")]), ["a", 1, ["inf"]]),
        ({1: {2: Colour.RED}}, {"1": {"2": "Colour.RED"}}),
        ("\udcff", "\N{REPLACEMENT CHARACTER}"),
        (["\x00"], ["\N{REPLACEMENT CHARACTER}"]),
    ],
)
def test_values_that_json_does_not_have_are_sent_as_text(value: object, expected: object) -> None:
    """NaN and infinity, paths and enumerations, keys that are not strings, characters that cannot be stored."""
    assert decision_event(IDENTITY, Decided("ended", {"value": value}), NOON)["payload"] == {"value": expected}


ANY_VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), ANY_VALUE, max_size=4))
def test_a_decision_with_any_field_values_can_be_sent(fields: Mapping[str, object]) -> None:
    """A decision that cannot be sent would block every later one for ever."""
    decided = Decided("ended", {**fields, "operator": "poll"})
    for sent in (decision_event(IDENTITY, decided, NOON), log_line(IDENTITY, decided, NOON)):
        json.dumps(sent, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(("operator", "expected"), [("poll", "poll"), ("", None), (None, None), (7, None)])
def test_a_decision_belongs_to_an_operator_if_it_names_one(operator: object, expected: str | None) -> None:
    """A loop stall without a known operator has an empty name: it belongs to the graph."""
    assert Decided("loop_stall", {"operator": operator}).operator == expected
    assert Decided("ended", {}).operator is None
