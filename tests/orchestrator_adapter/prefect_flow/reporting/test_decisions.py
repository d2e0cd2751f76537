"""The supervisor's decisions as Prefect events and log lines: every one there is, and whatever its fields hold."""

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
"""Everything that ``runtime`` decides; ``test_what_the_runtime_decides_is_told`` holds it to that."""


def resources(item: ReportItem) -> dict[str, str]:
    """Of the related ones, role to id."""
    return {other["prefect.resource.role"]: other["prefect.resource.id"] for other in item["related"]}


@pytest.mark.parametrize("decided", DECISIONS, ids=lambda decided: decided.decision)
def test_every_decision_is_an_event_and_a_line_that_prefect_accepts(decided: Decided) -> None:
    """Both validate as Prefect's own models, keep every field, and are JSON as strict as the client's."""
    item, line = decision_event(IDENTITY, decided, NOON), log_line(IDENTITY, decided, NOON)
    event = Event.model_validate(item)
    assert event.model_dump(mode="json")["payload"] == item["payload"]
    assert set(item["payload"]) == set(decided.fields)
    assert LogCreate.model_validate(line).message == line["message"]
    for told in (item, line):
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()
        assert len(json.dumps(told)) < 100_000


@pytest.mark.parametrize("decided", DECISIONS, ids=lambda decided: decided.decision)
def test_an_event_has_the_name_the_resource_and_the_relations_that_automations_match(decided: Decided) -> None:
    """An operator's is its operator's, related to its task run; the pipeline's own is the pipeline's. Names are stable."""
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


def test_an_instance_that_is_no_number_is_no_task_run() -> None:
    """It stays a field among others."""
    decided = Decided("abort", {"operator": "poll", "instance": "the last"})
    item, line = decision_event(IDENTITY, decided, NOON), log_line(IDENTITY, decided, NOON)
    assert "task-run" not in resources(item)
    assert "task_run_id" not in line
    assert item["payload"]["instance"] == "the last"
    assert line["message"] == "abort poll"


def test_two_decisions_that_are_alike_are_two_events() -> None:
    """Each has an id of its own, or the server would keep one."""
    assert len({decision_event(IDENTITY, DECISIONS[0], NOON)["id"] for _ in range(3)}) == 3


@pytest.mark.parametrize("decided", DECISIONS, ids=lambda decided: decided.decision)
def test_a_log_line_has_the_level_the_run_and_the_task_run(decided: Decided) -> None:
    """What a person should look at is an error; an operator's line is shown with its instance, if it names one."""
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
def test_a_line_is_a_sentence_for_people(decided: Decided, expected: str) -> None:
    """What, of which instance, and then the fields; of a ledger what is not zero."""
    assert sentence(decided) == expected


def test_a_long_stack_loses_its_middle_and_keeps_the_line_that_hangs() -> None:
    """20,000 characters of it, in the event and in the line: the last frame is the one that matters."""
    decided = Decided("stalled", {"operator": "poll", "instance": 1, "stack": STACK})
    for told in (decision_event(IDENTITY, decided, NOON)["payload"]["stack"], sentence(decided)):
        assert 20_000 < len(told) < 20_100
        assert "line 0, in poll" in told
        assert told.endswith("line 2999, in poll\n")
        assert "additional characters" in told


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
def test_what_json_does_not_know_is_told_as_text(value: object, expected: object) -> None:
    """NaN and infinity, paths and enumerations, keys that are no strings, characters that nobody could store."""
    assert decision_event(IDENTITY, Decided("ended", {"value": value}), NOON)["payload"] == {"value": expected}


ANY_VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), ANY_VALUE, max_size=4))
def test_whatever_a_decision_holds_travels(fields: Mapping[str, object]) -> None:
    """One that could not be sent would hold up everything behind it, for good."""
    decided = Decided("ended", {**fields, "operator": "poll"})
    for told in (decision_event(IDENTITY, decided, NOON), log_line(IDENTITY, decided, NOON)):
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(("operator", "expected"), [("poll", "poll"), ("", None), (None, None), (7, None)])
def test_a_decision_is_about_an_operator_if_it_names_one(operator: object, expected: str | None) -> None:
    """A stall that nobody can be blamed for names an empty one: it is about the graph."""
    assert Decided("loop_stall", {"operator": operator}).operator == expected
    assert Decided("ended", {}).operator is None
