from __future__ import annotations

import logging

import pytest

from orchestrator_adapter.bulkhead import BatchLost, BulkheadEvent
from tests.helpers.log_lines import event_of
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead, numbers


async def test_every_decision_is_one_json_line_and_one_event(caplog: pytest.LogCaptureFixture) -> None:
    """The line has the event's fields; a lost worker is a warning, a lost batch an error."""
    events: list[BulkheadEvent] = []
    with caplog.at_level(logging.INFO, "orchestrator_adapter.bulkhead"):
        async with bulkhead(on_event=events.append) as pool:
            with pytest.raises(BatchLost):
                await pool.call("die", {})
    records = [record for record in caplog.records if record.name == "orchestrator_adapter.bulkhead"]
    lines = [event_of(record.message) for record in records]
    assert lines == [{"event": e.decision, "bulkhead": e.bulkhead, **e.fields} for e in events]
    levels = {line["event"]: record.levelno for line, record in zip(lines, records, strict=True)}
    assert levels["batch_lost"] == logging.ERROR
    assert levels["worker_lost"] == logging.WARNING
    assert levels["worker_ready"] == logging.INFO


async def test_an_on_event_that_raises_changes_nothing() -> None:
    """Its exception is logged, and calls are answered."""

    def on_event(event: BulkheadEvent) -> None:
        raise RuntimeError("no pen")

    async with bulkhead(on_event=on_event) as pool:
        assert (await pool.call("double", numbers(1)))["x"] == 2
