"""``EventLog``, ``DecisionLog``, ``JsonFormatter`` and ``RateLimiter``: what every JSON log line has, and how many there are."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from contextvars import copy_context
from typing import Any

import pytest

from orchestrator_adapter.primitives.decision import Decision, is_alarming
from orchestrator_adapter.primitives.event_log import (
    DecisionLog,
    EventLog,
    JsonFormatter,
    RateLimiter,
    current_run,
    enter_instance,
    in_run,
    new_run_id,
)
from orchestrator_adapter.testing import ManualClock

LOGGER = logging.getLogger("orchestrator_adapter.test_event_log")
START = "2026-01-01T00:00:00.000000Z"  # of a ManualClock


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "orchestrator_adapter")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(message) for message in caplog.messages]


def raised(error: Exception) -> Exception:
    """The error with a traceback."""
    try:
        raise error  # noqa: TRY301 - it is raised for its traceback
    except Exception as same:  # noqa: BLE001 - it is the one above
        return same


def test_a_line_has_the_common_fields_first_then_the_logs_and_the_events(caplog: pytest.LogCaptureFixture) -> None:
    """Time, level, event and run; then the fields of the log, and those of the event."""
    clock = ManualClock()
    log = EventLog(LOGGER, clock=clock, run="run-1", operator="poll", instance=2)
    clock.advance(1.25)
    log("catalog_rejected", level=logging.WARNING, reason="empty")
    assert list(lines(caplog)[0].items()) == [
        *(
            ("time", "2026-01-01T00:00:01.250000Z"),
            ("level", "WARNING"),
            ("event", "catalog_rejected"),
            ("run", "run-1"),
        ),
        *(("operator", "poll"), ("instance", 2), ("reason", "empty")),
    ]


def test_an_exception_is_two_fields_of_the_line(caplog: pytest.LogCaptureFixture) -> None:
    """Its type and text, and its traceback; the line stays one line."""
    EventLog(LOGGER)("settling_failed", level=logging.ERROR, exc=raised(KeyError("x")))
    (message,) = caplog.messages
    line = json.loads(message)
    assert line["cause"] == "KeyError: 'x'"
    assert "in raised" in line["traceback"]
    assert "\n" not in message


def test_a_line_below_the_loggers_level_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    """Its fields are not formatted either."""

    class Unprintable:
        def __str__(self) -> str:
            raise AssertionError("formatted")

    EventLog(LOGGER)("quiet", level=logging.DEBUG, value=Unprintable())
    assert not caplog.messages


async def test_a_log_created_outside_a_run_writes_the_run_of_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    """Also in tasks that the run starts. Outside a run the field is empty."""
    log = EventLog(LOGGER)
    log("before")
    with in_run("run-1"):
        await asyncio.create_task(asyncio.to_thread(log, "within"))
    log("after")
    assert [(line["event"], line["run"]) for line in lines(caplog)] == [
        ("before", ""),
        ("within", "run-1"),
        ("after", ""),
    ]


def test_a_log_created_within_a_run_writes_that_run_from_any_thread(caplog: pytest.LogCaptureFixture) -> None:
    """A thread that the run did not start has no current run."""
    with in_run("run-1"):
        log = EventLog(LOGGER)
    thread = threading.Thread(target=log, args=("loop_stall",))
    thread.start()
    thread.join()
    assert [line["run"] for line in lines(caplog)] == ["run-1"]
    assert not current_run()


def test_a_new_run_id_has_the_graphs_name_and_the_time() -> None:
    """Two runs of one graph have different ids."""
    first, second = new_run_id("sda-ingest"), new_run_id("sda-ingest")
    assert first.startswith("sda-ingest-20")
    assert len(first) == len("sda-ingest-20260102T030405.678901Z")
    assert first <= second


@pytest.mark.parametrize("decision", Decision)
def test_a_decision_is_logged_by_its_level_and_reported(decision: Decision, caplog: pytest.LogCaptureFixture) -> None:
    """Alarming decisions are errors, the others information; the listener receives the event's own fields."""
    reported: list[tuple[Decision, Mapping[str, object]]] = []
    log = DecisionLog("radar-net", clock=ManualClock(), run="run-1")
    log.listener = lambda decision, fields: reported.append((decision, fields))
    log(decision, operator="poll")
    level = "ERROR" if is_alarming(decision) else "INFO"
    assert lines(caplog) == [
        {
            "time": START,
            "level": level,
            "event": str(decision),
            "run": "run-1",
            "graph": "radar-net",
            "operator": "poll",
        }
    ]
    assert reported == [(decision, {"operator": "poll"})]


def test_the_names_of_decisions_are_stable() -> None:
    """Automations and log queries depend on them: a change here breaks them."""
    assert " ".join(Decision) == (
        "spawn clean_exit exit_while_draining not_wanted restart budget_exhausted escalate ignored stalled abort "
        "aborted straggler stray_tasks shutdown shutdown_again shutdown_under_way loop_stall blocking_call_abandoned "
        "blocking_call_overdue dead_letter dead_letters_lost circuit_breaker source_paused source_resumed action "
        "spilling spill_full spill_left ledger_violation ended"
    )


def test_the_formatter_leaves_an_event_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Its line is complete."""
    EventLog(LOGGER, run="run-1")("ready")
    (record,) = caplog.records
    assert JsonFormatter().format(record) == record.getMessage()


def test_the_formatter_makes_one_json_line_of_any_other_record() -> None:
    """With the common fields, the logger's name and text, and its exception."""
    error = raised(OSError("disk"))
    record = logging.LogRecord(
        "httpx", logging.ERROR, __file__, 1, "request %s\nfailed", ("GET",), (OSError, error, error.__traceback__)
    )
    record.created = 1_767_225_600.5
    with in_run("run-1"):
        text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert "OSError: disk" in line.pop("traceback")
    assert list(line.items()) == [
        *(("time", "2026-01-01T00:00:00.500000Z"), ("level", "ERROR"), ("event", "message"), ("run", "run-1")),
        *(("logger", "httpx"), ("message", "request GET\nfailed"), ("cause", "OSError: disk")),
    ]


def test_the_limiter_admits_one_line_a_second_for_each_key() -> None:
    """The next admitted line has the number of suppressed ones; another key is not affected."""
    clock = ManualClock()
    limiter = RateLimiter(clock)
    assert [limiter.admit("a"), limiter.admit("a"), limiter.admit("b"), limiter.admit("a")] == [0, None, 0, None]
    clock.advance(0.999)
    assert limiter.admit("a") is None
    clock.advance(0.001)
    assert [limiter.admit("a"), limiter.admit("b")] == [3, 0]


def test_the_limiter_counts_keys_beyond_the_first_thousand_as_one() -> None:
    """A key that contains a text that differs each time neither fills the log nor the memory."""
    clock = ManualClock()
    limiter = RateLimiter(clock)
    assert sum(limiter.admit(f"request {number}") is not None for number in range(20_000)) == 1_001
    assert limiter.admit("request 0") is None
    clock.advance(1.0)
    assert limiter.admit("request 30000") == 18_999


def test_lines_that_name_an_operators_instance_have_its_task_run(caplog: pytest.LogCaptureFixture) -> None:
    """Also lines of the instance that do not name it, and in threads; without the ids of task runs, the field is absent."""
    caplog.set_level(logging.INFO)
    log = logging.getLogger("orchestrator_adapter.task_run")

    def within() -> None:
        enter_instance("parse", 2, "parse/2")
        EventLog(log, operator="parse")("of_the_operator")
        EventLog(log, operator="other")("of_another")
        log.info("of a library")

    with in_run("run", task_run_id=lambda operator, instance: f"{operator}/{instance}"):
        early = EventLog(log)
        EventLog(log)("decided", operator="parse", instance=1)
        EventLog(log)("not_started", operator="parse", instance=0)
        EventLog(log)("of_the_graph")
        thread = threading.Thread(target=copy_context().run, args=(within,))
        thread.start()
        thread.join()
    early("decided_later", operator="parse", instance=3)
    with in_run("run"):
        EventLog(log)("without_prefect", operator="parse", instance=1)
        log.info("of a library")

    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == log.name]
    assert [(line["event"], line.get("task_run")) for line in lines if line["event"] != "message"] == [
        ("decided", "parse/1"),
        ("not_started", None),
        ("of_the_graph", None),
        ("of_the_operator", "parse/2"),
        ("of_another", None),
        ("decided_later", "parse/3"),
        ("without_prefect", None),
    ]


def test_a_librarys_line_within_an_instance_names_it() -> None:
    """The formatter runs in the thread that logs."""
    record = logging.LogRecord("httpx", logging.INFO, "", 0, "a request", None, None)
    context = copy_context()
    context.run(enter_instance, "parse", 2, "an id")

    line = json.loads(context.run(JsonFormatter().format, record))

    assert (line["operator"], line["instance"], line["task_run"]) == ("parse", 2, "an id")
    assert "operator" not in json.loads(JsonFormatter().format(record))
