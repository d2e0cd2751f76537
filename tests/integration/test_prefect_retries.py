"""Retries of a flow run that failed, on a real server: none by default, real ones if they are wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from prefect import get_client
from prefect.settings import PREFECT_FLOWS_DEFAULT_RETRIES, temporary_settings
from pydantic import BaseModel

from orchestrator_adapter import OperatorGraph, RestartPolicy, SupervisionPolicy, WiredEnds, for_each, source_of
from orchestrator_adapter.prefect_flow import Reporting, compile_flow, run_flow
from orchestrator_adapter.process import ExitCode, Pipeline, RunOutcome
from tests.helpers.prefect_runs import Seen, newest_run_id, until
from tests.helpers.running import eventually

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

MS = timedelta(milliseconds=1)


class Script(BaseModel):
    """What fails."""

    folder: Path = Path("run/never")
    fails: int = 0
    hangs: bool = False


class Attempts:
    """Makes a pipeline whose sink fails in the first ``fails`` attempts."""

    def __init__(self) -> None:
        self.made = 0
        self.release = asyncio.Event()

    def pipeline(self, script: Script) -> Pipeline:
        self.made += 1
        fails = self.made <= script.fails

        def write(_: object) -> None:
            if fails:
                raise OSError("the disk is gone")

        async def numbers() -> AsyncIterator[int]:
            """In a retry, only once the first attempt is reconciled: that goes on beside the stream."""
            if self.made > 1:
                records = script.folder / "prefect"
                await eventually(lambda: not [*records.glob("*.1.json")], "the first attempt's record is deleted")
            for number in range(5):
                yield number

        graph = OperatorGraph("retried")
        source = graph.add_source("numbers", source_of(numbers()))
        sink = graph.add_sink("keep", for_each(write), restart_policy=RestartPolicy.never())
        graph.connect(source, sink, 8)
        if script.hangs:
            hangs = graph.add_source("hangs", self._hang)
            graph.connect(hangs, graph.add_sink("idle", for_each(lambda _: None)), 8)
        return Pipeline(
            graph,
            policy=SupervisionPolicy(grace=50 * MS, patience=50 * MS),
            claims=(f"file://{script.folder / 'place'}",),
        )

    async def _hang(self, ends: WiredEnds) -> None:
        """Does not stop when it is asked to."""
        while not self.release.is_set():
            with suppress(asyncio.CancelledError):
                await self.release.wait()


async def ran(name: str, script: Script, *, retries: int) -> tuple[RunOutcome, Seen, Attempts]:
    """How it ended, and what the server shows once it has ended there."""
    attempts = Attempts()
    with temporary_settings({PREFECT_FLOWS_DEFAULT_RETRIES: 2}):
        flow = compile_flow(
            name,
            Script,
            attempts.pipeline,
            description="Fails.",
            retries=retries,
            reporting=lambda script: Reporting(directory=script.folder / "prefect", artifacts=False),
        )
    outcome = await run_flow(flow, script)
    attempts.release.set()
    async with get_client() as client:
        run_id = await newest_run_id(client, name)
        expected = 2 * attempts.made + 2 * script.hangs
        seen = await until(client, run_id, lambda seen: seen.over and len(seen.task_runs) == expected, "it has ended")
    return outcome, seen, attempts


async def test_a_failed_run_is_failed_although_prefect_s_settings_have_retries(tmp_path: Path) -> None:
    """One attempt, Failed with its cause; it would be AwaitingRetry for ever."""
    outcome, seen, attempts = await ran("retried-not", Script(folder=tmp_path, fails=9), retries=0)
    assert (outcome.exit_code, attempts.made) == (ExitCode.BUDGET_EXHAUSTED, 1)
    assert (seen.state, seen.flow_run.run_count) == ("FAILED", 1)
    assert seen.message.startswith("BUDGET_EXHAUSTED: BudgetExhausted: keep: OSError: the disk is gone; ")


async def test_a_retry_is_a_new_pipeline_in_the_same_flow_run_and_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    """The claims are free again, both attempts have their task runs, and the first one's record is reconciled."""
    outcome, seen, attempts = await ran("retried-once", Script(folder=tmp_path, fails=1), retries=1)
    assert (outcome.exit_code, attempts.made) == (ExitCode.OK, 2)
    assert (seen.state, seen.flow_run.run_count) == ("COMPLETED", 2)
    states = {(run.name, run.flow_run_run_count): run.state_name for run in seen.task_runs}
    assert states.keys() == {("numbers", 1), ("keep", 1), ("numbers", 2), ("keep", 2)}
    assert (states["keep", 1], states["keep", 2], states["numbers", 2]) == ("Failed", "Completed", "Completed")
    (record,) = (tmp_path / "prefect").glob("*.json")  # of the last attempt: the next start deletes it
    assert record.name.endswith(".2.json")


async def test_after_the_last_retry_the_run_is_failed(tmp_path: Path) -> None:
    """Two attempts, the outcome of the second one."""
    outcome, seen, attempts = await ran("retried-in-vain", Script(folder=tmp_path, fails=9), retries=1)
    assert (outcome.exit_code, attempts.made) == (ExitCode.BUDGET_EXHAUSTED, 2)
    assert (seen.state, seen.flow_run.run_count) == ("FAILED", 2)


async def test_a_run_with_a_straggler_is_not_retried_and_not_left_awaiting_a_retry(tmp_path: Path) -> None:
    """The straggler still runs in this process, so a second pipeline beside it is not started."""
    outcome, seen, attempts = await ran("retried-never", Script(folder=tmp_path, fails=9, hangs=True), retries=1)
    assert (outcome.exit_code, attempts.made) == (ExitCode.STRAGGLERS, 1)
    assert (seen.state, seen.flow_run.run_count) == ("FAILED", 1)
