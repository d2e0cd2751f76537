"""``sda-fusion`` with workers killed by SIGKILL, real processes and sockets; results are compared with the simulator's record."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from flows.settings.fusion import FusionSettings
from flows.topologies.fusion import fusion_pipeline
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.supervision.events import ShutDown
from tests.helpers.fusion import FusionPlace, all_listen, conducted, fusion_process, go, stopped_at_work
from tests.helpers.running import eventually
from tests.helpers.support import wait_until

SEED = 6
FRAMES = 3_000
"""The number of frames that the simulator sends."""


def sensors(place: FusionPlace, *, duplicates: float) -> subprocess.Popen[bytes]:
    """A simulator with radars, archives and ISL beacons that sends `FRAMES` frames, some of them invalid, and this share twice."""
    return place.simulator(
        *("--rate-radar", "150", "--rate-optical", "50", "--rate-isl", "100", "--seed", str(SEED)),
        *("--malformed", "0.01", "--impossible", "0.01", "--duplicates", str(duplicates)),
        *("--count", str(FRAMES), "--linger", "60", "--truth", str(place.truth)),
    )


async def kill_the_worker(pool: Bulkhead, rng: random.Random, *, at_work: bool) -> None:
    """Kill the worker after a random number of calls; with ``at_work`` certainly during a call.

    Returns when its replacement has answered a call.
    """
    due = pool.statistics().answered + rng.randint(1, 25)
    await eventually(lambda: pool.statistics().answered >= due, "more answers")
    pid = await stopped_at_work(pool) if at_work else next(iter(pool.statistics().pids.values()))
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: pid not in pool.statistics().pids.values(), "its end")
    answered = pool.statistics().answered
    await eventually(lambda: pool.statistics().answered > answered, "an answer of its replacement")


def test_results_are_complete_although_workers_are_killed_at_random(tmp_path: Path) -> None:
    """With as many kills as the budget allows, each observation is in the audit once and has one correlation."""
    place = FusionPlace.free(tmp_path)
    settings, tracked = place.prepare_a_busy_worker(seed=SEED)
    pipeline = fusion_pipeline(FusionSettings.model_validate(settings | {"propagator": {"max_rebuilds": 4}}))
    (pool,) = pipeline.bulkheads
    simulator = sensors(place, duplicates=0.01)

    async def conduct(graph: BuiltGraph) -> None:
        await all_listen(graph)
        go(simulator)
        rng = random.Random(SEED)
        for at_work in rng.sample([True, True, False, False], 4):
            await kill_the_worker(pool, rng, at_work=at_work)
        await eventually(lambda: graph.ledger().ingested == FRAMES + tracked, "every sent observation")

    try:
        outcome = asyncio.run(conducted(pipeline, conduct))
    finally:
        simulator.terminate()
        simulator.wait(30)

    sent = [json.loads(line) for line in place.truth.read_text().splitlines()]
    good = Counter(row["observation_id"] for row in sent if row["fault"] is None)
    faults = Counter(row["fault"] for row in sent)
    assert {row["kind"] for row in sent} == {"radar", "optical", "isl"}
    figures, statistics = outcome.event.figures, pool.statistics()
    assert (type(outcome.event), outcome.exit_code, outcome.problems) == (ShutDown, ExitCode.OK, ())
    assert (figures.ledger_holds, figures.ledger.in_flight, dict(figures.restarts)) == (True, 0, {})
    assert (statistics.restarts, statistics.lost, statistics.balanced) == (4, 0, True)
    assert statistics.resubmitted >= 2  # one for each worker that was certainly killed during a call
    observed = place.observed()
    replayed = observed - good
    assert (good - observed, len(replayed), replayed.total()) == (Counter(), tracked, tracked)
    assert place.correlated() == observed
    assert Counter(letter["operator"] for letter in place.dead_letters() if letter["kind"] != "Deserialization") == {
        "validate": faults["impossible"]
    }


# `long`: test_blocking has the exhausted pool that loses nothing in `make test`, and test_losses the budget for rebuilds.
@pytest.mark.long
def test_more_kills_than_the_budget_end_the_run_without_losing_an_observation(tmp_path: Path) -> None:
    """The exit code is 3. Each observation has a correlation or a dead letter, and none is taken for a poison pill."""
    place = FusionPlace.free(tmp_path)
    settings, _ = place.prepare_a_busy_worker(seed=SEED)
    simulator = sensors(place, duplicates=0.0)  # a duplicate could become a second dead letter before it is recognised
    try:
        code, killed = _killed_each_time(place, simulator, settings | {"propagator": {"max_rebuilds": 2}})
    finally:
        simulator.terminate()
        simulator.wait(30)

    report = json.loads((tmp_path / "report.json").read_text())
    ledger = report["ledger"]
    assert (code, report["event"], killed) == (3, "BudgetExhausted", 3)
    assert report["cause"].startswith("propagate: BulkheadExhausted: bulkhead 'propagator': the budget for rebuilds")
    assert (report["ledger_holds"], ledger["in_flight"], report["stragglers"]) == (True, 0, [])
    of_bad_frames = {"Deserialization", "ValidationFailed"}
    dead_lettered = [letter for letter in place.dead_letters() if letter["kind"] not in of_bad_frames]
    assert {letter["kind"] for letter in dead_lettered} == {"Undelivered"}
    assert report["undelivered"] == len(dead_lettered) > 0
    ended = place.correlated() + Counter(map(_observation_of, dead_lettered))
    assert ended == Counter(dict.fromkeys(ended, 1))
    assert place.observed().keys() <= ended.keys()
    bad = ledger["dead_lettered"] - len(dead_lettered) + ledger["rejected"] + ledger["duplicates"]
    assert ended.total() == ledger["ingested"] - bad


def _killed_each_time(
    place: FusionPlace, simulator: subprocess.Popen[bytes], settings: dict[str, Any]
) -> tuple[int, int]:
    """Run the pipeline and kill each worker once it is ready, the first one after the first correlation.

    Returns the exit code and the number of kills.
    """
    killed = 0
    command = ["fusion", "--no-api", "--quiet"]
    with fusion_process(command, settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        never = Timer(150.0, process.kill)
        never.start()
        assert process.stderr is not None
        for line in process.stderr:
            logged = json.loads(line) if line.startswith(b"{") else {}
            if (logged.get("event"), logged.get("operator")) == ("spawn", "correlations"):
                go(simulator)
            if logged.get("event") == "worker_ready":
                if not killed:
                    wait_until((place.folder / "audit/correlations/correlations").is_dir, "a correlation")
                os.kill(logged["pid"], signal.SIGKILL)
                killed += 1
        never.cancel()
    return process.returncode, killed


def _observation_of(letter: dict[str, Any]) -> str:
    """The observation's id of a dead-lettered observation, `Placed` observation or correlation."""
    payload = letter["payload"]
    return str((payload[0] if isinstance(payload, list) else payload)["observation_id"])
