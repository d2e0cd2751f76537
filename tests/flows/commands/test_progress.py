from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

import pytest
from rich.console import Console

from flows.commands import progress
from flows.commands.progress import Progress, line, screen
from orchestrator_adapter import BreakerPolicy, BuiltGraph, CircuitBreaker, OperatorError, WiredEnds, map_items
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, FailAt, chain, run_graph
from tests.helpers.running import GatedSink, eventually


async def ten_and_wait(ends: WiredEnds) -> None:
    ends.count("kernel_drops", 3)
    if ends.instance == 1:
        await ends.emit(range(10))
    await ends.shutdown.wait()


def rendered(shown: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(shown)
    text: str = console.file.getvalue()  # type: ignore[attr-defined] # it is the StringIO from above
    return text


async def test_a_line_has_rate_occupancy_restarts_and_ledger() -> None:
    """The figures of the present status, and the rate since the one before."""
    sink = GatedSink()
    lines: list[str] = []

    async def during(built: BuiltGraph) -> None:
        before = built.status()
        await eventually(lambda: built.ledger().ingested == 10, "ten items")
        lines.append(line(built.status(), before, 1.0, 7.0))
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 10 and built.ledger().written >= 8, "all written")
        lines.append(line(built.status(), before, 2.0, 9.0))
        built.request_shutdown("test")

    await run_graph(chain(ten_and_wait, sink, capacity=8), during=during)
    assert lines[0].startswith(
        "    7 s         0 obs/s  p50 -  p99 -  fullest edge source -> sink 8/8  restarts 0  ledger balanced"
    )
    assert lines[0].endswith("ingested 10 written 0 duplicates 0 rejected 0 dead-lettered 0 in flight 10")
    assert "ledger balanced" in lines[1]
    assert " obs/s" in lines[1]


async def test_an_open_breaker_is_shown_and_a_closed_one_is_not() -> None:
    """During an outage the terminal shows which downstream is not called."""
    shown: list[str] = []

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: breakers, "the source's breaker")
        breaker = breakers[0]
        for change in (breaker.force_open, breaker.release, breaker.force_closed):
            change()
            status = built.status()
            shown.append(line(status, status, 1.0, 1.0))
            shown.append(rendered(screen("title", status, status, 1.0, 1.0)))
        built.request_shutdown("test")

    breakers: list[CircuitBreaker] = []

    async def source(ends: WiredEnds) -> None:
        breakers.append(ends.breaker("archive", BreakerPolicy()))
        await ends.shutdown.wait()

    await run_graph(chain(source, CollectSink()), during=during)
    assert all("breaker archive open" in text for text in shown[:2])
    assert all("breaker archive half-open" in text for text in shown[2:4])
    assert not any("breaker" in text for text in shown[4:])


async def test_the_screen_shows_every_operator_edge_and_the_ledger() -> None:
    """Names, states, counters, occupancy, restarts; also of operators that have ended."""
    pictures: list[str] = []
    operator = map_items(FailAt({2: OperatorError("once")}))
    sink = CollectSink()

    async def during(built: BuiltGraph) -> None:
        before = built.status()
        await eventually(lambda: len(sink.items) == 10, "all written")
        pictures.append(rendered(screen("the title", built.status(), before, 1.0, 3.0)))
        built.request_shutdown("test")
        await eventually(lambda: built.event, "the end")
        pictures.append(rendered(screen("the title", built.status(), before, 1.0, 3.0)))

    await run_graph(chain(ten_and_wait, operator, sink), during=during)
    for word in ("the title", "source", "op-1", "#2", "source -> op-1", "kernel_drops 3", "restarts 1", "ingested 10"):
        assert word in pictures[0]
    assert "running" in pictures[0]
    assert "nothing measured yet" in pictures[0]
    assert "running" not in pictures[1]
    assert "≠" not in pictures[1]


async def test_progress_shows_until_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal without cursor: lines on standard error; no task is left."""
    monkeypatch.setattr(progress, "_PERIOD_S", 0.0)
    shown = Progress("test")
    printed: list[str] = []

    async def during(built: BuiltGraph) -> None:
        shown.attach(built)

        def has_line() -> bool:
            printed.append(capsys.readouterr().err)
            return "ledger balanced" in "".join(printed)

        await eventually(has_line, "a line")
        await shown.close()
        assert shown._task is not None
        assert shown._task.done()
        built.request_shutdown("test")

    await run_graph(chain(ten_and_wait, CollectSink()), during=during)


async def test_closing_a_progress_that_was_never_attached_does_nothing() -> None:
    """A run that fails before its graph is built closes its progress as well."""
    await Progress("test").close()


async def test_a_progress_that_fails_is_reported_and_the_graph_runs_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its error is one line at the end."""
    monkeypatch.setattr(progress, "_PERIOD_S", 0.0)
    monkeypatch.setattr(progress, "line", lambda *_: 1 / 0)
    shown, sink = Progress("test"), CollectSink()

    async def during(built: BuiltGraph) -> None:
        shown.attach(built)
        await eventually(lambda: shown._task is not None and shown._task.done(), "the failure")
        assert built.event is None
        await shown.close()
        built.request_shutdown("test")

    event = await run_graph(chain(ten_and_wait, sink), during=during)
    assert isinstance(event, events.ShutDown)
    assert len(sink.items) == 10
    assert "progress: ZeroDivisionError: division by zero" in capsys.readouterr().err


async def test_a_closed_terminal_does_not_end_the_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Standard error is a broken pipe: the progress ends, and the graph runs on."""
    monkeypatch.setattr(progress, "_PERIOD_S", 0.0)
    reader, writer = os.pipe()
    os.close(reader)
    shown, sink = Progress("test"), CollectSink()
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)

        async def during(built: BuiltGraph) -> None:
            shown.attach(built)
            await eventually(lambda: shown._task is not None and shown._task.done(), "the broken pipe")
            await shown.close()
            built.request_shutdown("test")

        event = await run_graph(chain(ten_and_wait, sink), during=during)
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            broken.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), broken.fileno())
    assert isinstance(event, events.ShutDown)
    assert len(sink.items) == 10
