"""An outage of the optical archive: another process serves it over HTTP and then fails in one of four ways.

The whole ``sda-ingest`` runs here, while radars and beacons send. It prints what the outage cost and asserts nothing;
``tests/integration/test_outage.py`` asserts it for a shorter outage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from flows.settings.ingest import IngestSettings
from flows.topologies.ingest import ingest_pipeline
from orchestrator_adapter import BreakerState, BuiltGraph
from orchestrator_adapter.process import run_pipeline
from orchestrator_adapter.supervision.events import RunFigures
from sda_ops.simulate.config import OutageStyle
from sda_ops.sinks.event_log import read_event_log
from tests.helpers.running import counter, eventually
from tests.helpers.support import ROOT, Addresses, environment

_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """The phases, in seconds from the moment the archive listens, and the optical settings for them."""

    before_s: float
    outage_s: float
    after_s: float
    limit_s: float
    optical: dict[str, Any]


FULL = Timing(before_s=10.0, outage_s=30.0, after_s=5.0, limit_s=60.0, optical={})
"""Thirty seconds, with the default settings."""

SHORT = Timing(
    before_s=3.0,
    outage_s=3.0,
    after_s=0.5,
    limit_s=60.0,
    optical={
        "timeout_s": 0.3,
        "retry": {"initial_s": 0.02, "cap_s": 0.5},
        "breaker": {"window_s": 1.0, "cooldown_s": 0.5},  # 1.0 >= 3 * 0.3: three time-outs
    },
)
"""A tenth of the time, with settings to match."""


@dataclass(frozen=True, slots=True)
class Performance:
    """What an outage cost.

    Attributes:
        figures: Of the pipeline's run.
        sent: How often the sensors sent each id.
        logged: How often each id is in the event log.
        requests_in_outage: Requests that the archive received in the outage; where it does not accept connections, only
            those that were pending when it began.
        attempts_in_outage: Attempts of the pipeline in the outage, also those without a connection.
        recovery_s: From the end of the outage to the first page.
        opened_after_s: From its beginning until the breaker opened; ``None`` if it did not.
    """

    figures: RunFigures
    sent: Counter[str]
    logged: Counter[str]
    requests_in_outage: int
    attempts_in_outage: int
    recovery_s: float
    opened_after_s: float | None


async def perform(style: OutageStyle, timing: Timing, folder: Path) -> Performance:
    """Run it once, in ``folder``. Raises ``TimeoutError`` if the archive's backlog is not in within the limit."""
    addresses = Addresses.free(radars=1)
    settings = addresses.settings(folder)
    settings["optical"] = {"url": settings["optical"]["url"]} | timing.optical
    every_s = timing.before_s + timing.outage_s
    simulator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flows", "simulate", *addresses.simulator(), "--objects", "300"),
        *("--rate-radar", "200", "--rate-optical", "50", "--rate-isl", "50"),
        *("--outage", f"optical:{timing.outage_s}:{every_s}", "--archive-outage", style),
        *("--duration", str(every_s + timing.after_s), "--linger", "600"),
        *("--truth", str(folder / "truth.jsonl"), "--summary", str(folder / "simulator.json"), "--hold"),
        cwd=ROOT,
        env=environment({}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    watching: list[asyncio.Task[tuple[int, float, float | None]]] = []

    async def watch(graph: BuiltGraph) -> tuple[int, float, float | None]:
        assert simulator.stdin is not None
        await eventually(lambda: _every_source_runs(graph), "every source runs")
        simulator.stdin.write(b"go\n")
        try:
            async with asyncio.timeout(every_s + timing.after_s + timing.limit_s):
                return await _watch(graph, began, timing)
        finally:
            graph.request_shutdown("the outage is over")

    def built(graph: BuiltGraph) -> None:
        watching.append(asyncio.get_running_loop().create_task(watch(graph)))

    try:
        assert simulator.stderr is not None
        await simulator.stderr.readline()  # it listens, and its time runs from now
        began = time.monotonic() + timing.before_s
        outcome = await run_pipeline(ingest_pipeline(IngestSettings.model_validate(settings)), on_built=built)
        attempts, recovery_s, opened_after_s = await watching[0]
    finally:
        if simulator.returncode is None:
            simulator.terminate()
        await simulator.communicate()
    truth = (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    return Performance(
        figures=outcome.event.figures,
        sent=Counter(json.loads(line)["observation_id"] for line in truth),
        logged=Counter(str(observation.observation_id) for observation in read_event_log(folder / "log")),
        requests_in_outage=json.loads((folder / "simulator.json").read_text())["archive_requests_in_outage"],
        attempts_in_outage=attempts,
        recovery_s=recovery_s,
        opened_after_s=opened_after_s,
    )


async def _watch(graph: BuiltGraph, began: float, timing: Timing) -> tuple[int, float, float | None]:
    """From the outage's beginning until the backlog is in: attempts in it, time to recovery, time to the open breaker."""
    ended = began + timing.outage_s
    await asyncio.sleep(began - time.monotonic())
    before, opened_after_s = _optical(graph), None
    while time.monotonic() < ended:
        if opened_after_s is None and graph.status().breakers["optical"].state is not BreakerState.CLOSED:
            opened_after_s = time.monotonic() - began
        await asyncio.sleep(_LOOK_EVERY_S)
    during = _optical(graph)
    while _optical(graph)["polls"] == during["polls"]:  # noqa: ASYNC110 - what the graph shows has nothing to await
        await asyncio.sleep(_LOOK_EVERY_S)
    recovery_s = time.monotonic() - ended
    quiet_from, seen = time.monotonic(), -1
    while time.monotonic() - quiet_from < timing.after_s + 1.0:  # the sensors have ended and everything is in
        if (ingested := graph.ledger().ingested) != seen:
            quiet_from, seen = time.monotonic(), ingested
        await asyncio.sleep(_LOOK_EVERY_S)
    return during["retry_attempts"] - before["retry_attempts"], recovery_s, opened_after_s


def _every_source_runs(graph: BuiltGraph) -> bool:
    """Whether nothing that is sent from now on is lost: sockets are bound, and the poller knows from when on it wants all."""
    listening = [counter(graph, "port", source) for source in ("radar-01", "isl")]
    return None not in listening and counter(graph, "retry_attempts", "optical") is not None


def _optical(graph: BuiltGraph) -> dict[str, int]:
    return {"polls": 0, "retry_attempts": 0} | next(
        dict(operator.counters) for operator in graph.status().operators if operator.name == "optical"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--style", choices=get_args(OutageStyle), action="append", help="default: all four")
    parser.add_argument("--short", action="store_true", help="three seconds instead of thirty, as in the tests")
    args = parser.parse_args()
    timing = SHORT if args.short else FULL
    print(f"an outage of {timing.outage_s:g} s each; poller's settings: {timing.optical or 'the defaults'}")
    for style in args.style or get_args(OutageStyle):
        with tempfile.TemporaryDirectory() as folder:
            _print(style, asyncio.run(perform(style, timing, Path(folder))))


def _print(style: str, result: Performance) -> None:
    figures = result.figures
    breaker = figures.breakers["optical"]
    lost = result.sent - result.logged
    opened = "never" if result.opened_after_s is None else f"after {result.opened_after_s:.1f} s"
    print(f"{style}:")
    print(f"  sent {result.sent.total():,}, logged {result.logged.total():,}, lost {lost.total()}; {figures.ledger}")
    print(f"  restarts {dict(figures.restarts) or 'none'}; ledger holds: {figures.ledger_holds}")
    print(
        f"  attempts in the outage {result.attempts_in_outage}, requests that arrived {result.requests_in_outage};"
        f" recovered {result.recovery_s:.1f} s after it"
    )
    print(
        f"  breaker opened {opened}, {breaker.opened} times, for {breaker.open_s:.1f} s in all,"
        f" rejected {breaker.rejections} calls, is {breaker.state.label}"
    )


if __name__ == "__main__":
    main()
