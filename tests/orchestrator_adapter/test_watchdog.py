"""The loop watchdog: a real thread and a loop that really stands still, each waiting for the other, not for time."""

from __future__ import annotations

import json
import logging
import threading
from datetime import timedelta

import pytest

from orchestrator_adapter import SupervisionPolicy, events, for_each, map_items, source_of
from orchestrator_adapter.testing import chain
from orchestrator_adapter.watchdog import LoopStall, LoopWatchdog, is_new_stall


@pytest.mark.parametrize(
    ("lag_s", "reported_beat", "new"), [(0.25, None, False), (0.26, None, True), (0.26, 7.0, False), (0.26, 6.0, True)]
)
def test_a_stall_is_told_once_and_only_beyond_the_threshold(
    lag_s: float,
    reported_beat: float | None,
    new: bool,  # noqa: FBT001 - a table's column
) -> None:
    """One stall has one last beat: told for that beat, it is not told again."""
    assert is_new_stall(lag_s, 0.25, 7.0, reported_beat) is new


async def test_a_loop_that_stands_still_is_noticed_from_outside_with_its_stack() -> None:
    """The stall is told while it lasts, by the watchdog's own thread, and the stack names the function that blocks."""
    told = threading.Event()
    stalls: list[LoopStall] = []

    def tell(stall: LoopStall) -> None:
        stalls.append(stall)
        told.set()

    watchdog = LoopWatchdog(tell, threshold=timedelta(milliseconds=20))
    watchdog.start()
    try:
        block_until(told)
    finally:
        watchdog.stop()
    assert watchdog.stalls == len(stalls) == 1
    assert "block_until" in stalls[0].stack
    assert stalls[0].lag_s > 0.02


def block_until(told: threading.Event) -> None:
    """Blocks the event loop, as a computation without an await would."""
    assert told.wait(30)


async def test_the_operator_that_holds_the_loop_is_named_in_the_log_and_counted() -> None:
    """An operator that computes without awaiting is told by name, once, and the run's figures count it."""
    told = threading.Event()
    lines: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "loop_stall" in record.getMessage():
                lines.append(record.getMessage())
                told.set()

    def computes(number: int) -> int:
        if number == 3:
            block_until(told)
        return number

    handler = Listen()
    logging.getLogger("orchestrator_adapter.supervisor").addHandler(handler)
    try:
        graph = chain(source_of(range(5)), map_items(computes), for_each(lambda _: None))
        event = await graph.build().run(SupervisionPolicy(loop_stall=timedelta(milliseconds=20)))
    finally:
        logging.getLogger("orchestrator_adapter.supervisor").removeHandler(handler)
    assert isinstance(event, events.AllOk)
    assert event.figures.loop_stalls == 1
    assert event.figures.max_loop_lag_s > 0.02
    assert json.loads(lines[0])["operator"] == "op-1 #1"
    assert "computes" in json.loads(lines[0])["stack"]


async def test_a_threshold_of_nothing_is_refused() -> None:
    """Zero would take every turn of the loop for a stall."""
    with pytest.raises(ValueError, match="threshold must be > 0, got 0:00:00"):
        LoopWatchdog(lambda _: None, threshold=timedelta(0))
