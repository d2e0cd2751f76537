"""``sda-fusion`` with a stuck propagator: correlations wait, everything else continues. ``bench.isolation`` measures it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from flows.settings.fusion import FusionSettings
from flows.topologies.fusion import fusion_pipeline
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.process.report import ExitCode
from tests.helpers.fusion import FusionPlace, all_listen, conducted, go, stopped_at_work
from tests.helpers.running import eventually


def test_a_propagator_that_does_not_answer_delays_only_correlations(tmp_path: Path) -> None:
    """While its only worker is stopped, 1,000 observations reach the audit and no correlation does; later all do."""
    place = FusionPlace.free(tmp_path)
    settings, _ = place.prepare_a_busy_worker(seed=1)
    settings |= {"propagator": {"answer_within_s": 300}}  # otherwise the stopped worker would be treated as hung
    pipeline = fusion_pipeline(FusionSettings.model_validate(settings))
    (pool,) = pipeline.bulkheads
    simulator = place.simulator("--rate-radar", "200", "--linger", "60")

    async def conduct(graph: BuiltGraph) -> None:
        await all_listen(graph)
        go(simulator)
        await eventually(lambda: _consumed(graph, "correlations"), "correlations")
        pid = await stopped_at_work(pool)
        try:
            await eventually(
                lambda: not graph.status().edges["propagate -> correlate"].occupancy, "earlier observations"
            )
            audited, correlated = _consumed(graph, "audit"), _consumed(graph, "correlate")
            await eventually(lambda: _consumed(graph, "audit") >= audited + 1_000, "a thousand more observations")
            assert _consumed(graph, "correlate") == correlated
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(lambda: not graph.status().edges["tee -> propagate"].spilled, "what waited on disk")

    try:
        outcome = asyncio.run(conducted(pipeline, conduct))
    finally:
        simulator.terminate()
        simulator.wait(30)

    assert (outcome.exit_code, dict(outcome.event.figures.restarts)) == (ExitCode.OK, {})
    assert (pool.statistics().restarts, outcome.event.figures.undelivered) == (0, 0)
    assert place.correlated() == place.observed()


def _consumed(graph: BuiltGraph, operator: str) -> int:
    return next(status for status in graph.status().operators if status.name == operator).consumed
