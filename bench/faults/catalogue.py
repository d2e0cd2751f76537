"""The twelve faults: how each one is injected, and how to recognise it on the page, in the metrics and in the log."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.faults.observers import Samples, read_metrics
from bench.faults.runs import Run, fusion, ingest
from tests.helpers.support import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        name: For the command line and the table.
        how: How it is injected, in words.
        inject: Injects it; returns when it happened, Unix time in seconds.
        on_page: JavaScript that gives the text by which the page shows it, and nothing before.
        in_metrics: The samples before it and now, to what shows it.
        in_log: Whether a line shows it.
        fragment: Of the page's address: whose details are open.
        run: The pipeline.
        prepare: What must be so before.
        for_alerts_s: How long to wait for alerts after it.
        repair: Ends it, so that the run can drain.
    """

    name: str
    how: str
    inject: Callable[[Run], float]
    on_page: str
    in_metrics: Callable[[Samples, Samples], str | None]
    in_log: Callable[[dict[str, Any]], object]
    fragment: str = ""
    run: Callable[[Path], AbstractContextManager[Run]] = ingest
    prepare: Callable[[Run], object] = lambda _: None
    for_alerts_s: float = 12.0
    repair: Callable[[Run], object] = lambda _: None


# The page, in JavaScript.


def _text(selector: str) -> str:
    return f"(document.querySelector(`{selector}`)?.textContent ?? '')"


def _timeline(decision: str, operator: str = "") -> str:
    """The timeline's entry."""
    of = f'[data-operator="{operator}"]' if operator else ""
    return _text(f'[data-decision="{decision}"]{of} span')


def _finding(*words: str) -> str:
    """The sentence at the head of the page that has all these words."""
    has = " && ".join(f"it.textContent.includes({word!r})" for word in words)
    return f"([...document.querySelectorAll('[data-headline], [data-finding]')].find(it => {has})?.textContent ?? '')"


def _pool(*words: str) -> str:
    """The pool whose line has all these words."""
    has = " && ".join(f"it.textContent.includes({word!r})" for word in words)
    return f"([...document.querySelectorAll('.pool')].find(it => {has})?.textContent ?? '')"


# The metrics.


def grows(*names: str) -> Callable[[Samples, Samples], str | None]:
    """The first of these samples that has grown. A name stands for all its labels unless it has some."""

    def found(before: Samples, now: Samples) -> str | None:
        return next(
            (
                f"`{key}` +{value - before.get(key, 0.0):g}"
                for key, value in now.items()
                for name in names
                if (key == name or key.startswith(f"{name}{{")) and value > before.get(key, 0.0)
            ),
            None,
        )

    return found


def over(name: str, limit: float) -> Callable[[Samples, Samples], str | None]:
    """This sample is greater than the limit."""
    return lambda _, now: f"`{name}` {now[name]:.3g}" if now.get(name, 0.0) > limit else None


def at_least(name: str, value: float) -> Callable[[Samples, Samples], str | None]:
    """This sample has at least this value, and had less before."""
    return lambda before, now: (
        f"`{name}` {now[name]:g}" if now.get(name, 0.0) >= value > before.get(name, 0.0) else None
    )


def _pressed(edge: str, operator: str) -> Callable[[Samples, Samples], str | None]:
    """The edge has been under pressure for a second in all."""
    key = f'edge_pressure_seconds_total{{edge="{edge}"}}'

    def found(before: Samples, now: Samples) -> str | None:
        grown = now.get(key, 0.0) - before.get(key, 0.0)
        return f"`{key}` +{grown:.2g} s (input of `{operator}`)" if grown > 1.0 else None

    return found


def _event(event: str, **fields: str) -> Callable[[dict[str, Any]], object]:
    return lambda line: line["event"] == event and all(line.get(name) == value for name, value in fields.items())


# Injections.


def _answers(kind: str) -> Callable[[Run], float]:
    def inject(run: Run) -> float:
        run.given.archive.answers = kind
        return time.time()

    return inject


def _silence(run: Run) -> float:
    run.given.radar.silent = True
    return time.time()


def _garbage(run: Run) -> float:
    run.given.radar.garbage_per_s = 500.0
    return time.time()


def _kill_a_worker(run: Run) -> float:
    ready = run.log.wait(_event("worker_ready"), "a worker")
    os.kill(ready.fields["pid"], signal.SIGKILL)
    return time.time()


def _disk_full(run: Run) -> float:
    """No file of the process may grow any more: each write fails, as on a full disk (EFBIG)."""
    _, hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (_size_now(run), hard))
    return time.time()


def _size_now(run: Run) -> int:
    return max(1, *(file.stat().st_size for file in (run.folder / "log").rglob("*") if file.is_file()))


def _disk_freed(run: Run) -> None:
    if run.process.poll() is None:
        _, hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def _kill_prefect(run: Run) -> float:
    assert run.server is not None
    run.server.kill()
    return time.time()


def _loaded(rate_per_s: float) -> Callable[[Run], None]:
    def prepare(run: Run) -> None:
        run.given.load(rate_per_s)
        key = 'source_ingest_rate{source="radar-02"}'
        wait_until(lambda: read_metrics(run.url)[key] > rate_per_s / 4, "the load")

    return prepare


def _code(line: str) -> Callable[[Run], float]:
    return lambda run: run.code(line)


def catalogue() -> Iterator[Fault]:
    """The twelve."""
    yield Fault(
        name="operator fails",
        how="the archive answers one poll with a page that is no JSON; `optical` fails and is restarted",
        inject=_answers("rubbish"),
        on_page=_timeline("restart", "optical"),
        in_metrics=grows('operator_restart_total{operator="optical"}'),
        in_log=_event("restart", operator="optical"),
    )
    yield Fault(
        name="operator panics",
        how="a bug in `validate`: `KeyError` at one observation",
        inject=_code("bug"),
        on_page="(" + _timeline("escalate", "validate") + " || " + _finding("The run has ended") + ")",
        in_metrics=lambda _, now: next(
            (f"`{key}` {now[key]:g}" for key in ('pipeline_health{status="failing"}',) if now.get(key)), None
        ),
        in_log=_event("escalate", operator="validate"),
    )
    yield Fault(
        name="poison pill",
        how="`validate` fails at one observation, each time that it gets it",
        inject=_code("pill"),
        on_page=_timeline("dead_letter", "validate"),
        in_metrics=grows("dead_letters_total"),
        in_log=_event("dead_letter", operator="validate"),
    )
    yield Fault(
        name="slow disk",
        how="each fsync of the event log takes 3 s, under 4,000 observations/s",
        prepare=_loaded(4_000),
        inject=_code("sync 3"),
        on_page=_finding("event-log", "bottleneck"),
        in_metrics=_pressed("dedup -> event-log", "event-log"),
        in_log=lambda _: False,
        for_alerts_s=40.0,
        repair=_code("sync 0"),
    )
    yield Fault(
        name="slow operator",
        how="`validate` waits for 0.25 s with each batch, as for another service, under 4,000 observations/s",
        prepare=_loaded(4_000),
        inject=_code("work 0.25"),
        on_page=_finding("validate", "bottleneck"),
        in_metrics=_pressed("normalize -> validate", "validate"),
        in_log=lambda _: False,
        for_alerts_s=30.0,
        repair=_code("work 0"),
    )
    yield Fault(
        name="archive answers 500",
        how="the archive answers each poll with 500",
        inject=_answers("500"),
        on_page=_finding("optical", "open"),
        in_metrics=at_least('circuit_breaker_state{breaker="optical"}', 1.0),
        in_log=_event("circuit_breaker", state="open"),
        repair=_answers("pages"),
    )
    yield Fault(
        name="feed goes silent",
        how="`radar-01` sends nothing any more; the rule waits for two minutes of silence",
        inject=_silence,
        fragment="#operator=radar-01",
        on_page="([...document.querySelectorAll('[data-details] dl div')].map(it => it.innerText)"
        ".find(it => /Last item\\s+[2-9]/.test(it)) ?? '')",
        in_metrics=over('source_last_item_age_seconds{source="radar-01"}', 1.0),
        in_log=lambda _: False,
        for_alerts_s=130.0,
    )
    yield Fault(
        name="malformed frames",
        how="500 datagrams a second to `radar-01` that are no detections",
        inject=_garbage,
        fragment="#operator=radar-01",
        on_page=_text("[data-details] [data-letter]"),
        in_metrics=grows('source_decode_errors_total{source="radar-01"}'),
        in_log=_event("dead_letter", operator="radar-01"),
    )
    yield Fault(
        name="worker killed",
        how="`kill -9` of the propagator's worker process (`sda-fusion`)",
        run=fusion,
        inject=_kill_a_worker,
        on_page=_pool("propagator", "1 restart"),
        in_metrics=grows("bulkhead_worker_restarts_total"),
        in_log=_event("worker_lost"),
    )
    yield Fault(
        name="event loop blocked",
        how="`validate` blocks the event loop for 5 s",
        inject=_code("block 5"),
        on_page=_finding("event loop", "validate"),
        in_metrics=over("event_loop_lag_seconds", 0.25),
        in_log=_event("loop_stall"),
    )
    yield Fault(
        name="disk full",
        how="no file of the process may grow any more (`prlimit --fsize`): each write of the event log fails",
        inject=_disk_full,
        on_page="(" + _timeline("budget_exhausted", "event-log") + " || " + _finding("The run has ended") + ")",
        in_metrics=lambda _, now: next(
            (f"`{key}` {now[key]:g}" for key in ('pipeline_health{status="failing"}',) if now.get(key)), None
        ),
        in_log=_event("budget_exhausted", operator="event-log"),
        repair=_disk_freed,
    )
    yield Fault(
        name="Prefect server killed",
        how="`kill -9` of the Prefect server, which is not a fault of the stream: nothing may show",
        run=partial(ingest, on_prefect=True),
        inject=_kill_prefect,
        on_page="(" + _text("[data-banner]") + " || " + _text('[data-state="restarting"]') + ")",
        in_metrics=grows("operator_restart_total", 'pipeline_health{status="failing"}'),
        in_log=lambda line: line["event"] in {"restart", "escalate"} or "prefect" in str(line).lower(),
    )
