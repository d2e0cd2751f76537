"""Deployed runs, as Prefect's own client shows them: states, task runs and their edges, events, artifacts, log."""

from __future__ import annotations

import logging
from functools import partial
from itertools import groupby
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType, TaskRun, TaskRunResult

from orchestrator_adapter.prefect_flow.client.vocabulary import (
    operator_event,
    operator_resource,
    pipeline_event,
    pipeline_resource,
)
from tests.helpers.outages import decided
from tests.helpers.prefect_runs import TOY, Installation, artifacts_of, log_of, start, until, until_over
from tests.integration.toy_flow import give

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]


def edges(task_run: TaskRun) -> dict[str, list[str]]:
    """Where its inputs come from: task run ids, by name."""
    return {
        name: [str(source.id) for source in sources if isinstance(source, TaskRunResult)]
        for name, sources in task_run.task_inputs.items()
    }


async def history(client: PrefectClient, flow_run_id: UUID) -> list[str]:
    """The types of the states it went through, one after the other."""
    return [kind for kind, _ in groupby(state.type.value for state in await client.read_flow_run_states(flow_run_id))]


async def test_prefect_shows_each_step_of_a_run_that_restarts_and_panics_and_a_second_run_is_rejected(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """States, messages, edges, events, artifacts and log show what happened, each once."""
    assert installation.worker_lives
    folder = tmp_path / "toy"
    run_id = await start(client, TOY, {"folder": str(folder)})
    running = await until(
        client, run_id, lambda seen: list(seen.states.values()) == ["RUNNING"] * 3, "three operators run"
    )
    assert running.state == "RUNNING"
    assert set(running.states) == {"numbers", "work", "keep"}

    give(folder, "fail")
    states = {"numbers": "RUNNING", "work": "FAILED", "keep": "RUNNING", "work #2": "RUNNING"}
    restarted = await until(client, run_id, lambda seen: seen.states == states, "the operator is restarted")
    assert restarted.state == "RUNNING"
    first, second = restarted.task_run("work"), restarted.task_run("work #2")
    assert first.state is not None
    assert (first.state.message or "").startswith("OSError: a fault at ")
    assert edges(first) == {"numbers": [str(restarted.task_run("numbers").id)]}
    assert edges(second) == {
        "numbers": [str(restarted.task_run("numbers").id)],
        "restart of": [str(first.id)],
    }
    await until(
        client,
        run_id,
        lambda seen: edges(seen.task_run("keep")) == {"work": [str(second.id)]},
        "the reader has an edge to the instance that it reads from now",
    )

    rejected_id = await start(client, TOY, {"folder": str(folder)})
    rejected = await until(client, rejected_id, lambda seen: seen.over, "the second run is rejected")
    assert (rejected.state, rejected.states) == ("FAILED", {})
    assert "is in use by pipeline 'toy', pid " in rejected.message
    assert f"flow run {restarted.flow_run.name!r} ({run_id}), since " in rejected.message
    await until(client, run_id, lambda seen: seen.states == states, "nothing of the first has changed")

    give(folder, "panic")
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    # The source drains, or it is sending to a reader that has ended for good.
    states = over.states
    assert states.pop("numbers") in {"COMPLETED", "FAILED"}
    assert (over.state, states) == ("CRASHED", {"work": "FAILED", "work #2": "CRASHED", "keep": "COMPLETED"})
    assert over.message.startswith("Panicked: work: KeyError: 'a bug'; ingested ")
    panicked = over.task_run("work #2").state
    assert panicked is not None
    assert 'raise KeyError("a bug")' in (panicked.message or "")
    assert await history(client, run_id) == ["SCHEDULED", "PENDING", "RUNNING", "CRASHED"]

    decisions = decided(folder / "decisions.jsonl")
    assert over.decisions == decisions
    assert decisions["restart", "work", 2] == decisions["escalate", "work", 2] == decisions["ended", "", 0] == 1
    (restart,) = (event for event in over.events if event.event == operator_event("restart"))
    assert dict(restart.resource.root) == operator_resource("toy", "work")
    related = {(resource.role, resource.id) for resource in restart.related}
    assert related == {
        ("flow-run", f"prefect.flow-run.{run_id}"),
        ("flow", f"prefect.flow.{over.flow_run.flow_id}"),
        ("deployment", f"prefect.deployment.{over.flow_run.deployment_id}"),
        ("pipeline", pipeline_resource("toy")["prefect.resource.id"]),
        ("task-run", f"prefect.task-run.{second.id}"),
        *(("tag", f"prefect.tag.{tag}") for tag in over.flow_run.tags),
    }
    assert restart.payload["cause"].startswith("OSError: a fault at ")
    (ended,) = (event for event in over.events if event.event == pipeline_event("ended"))
    assert dict(ended.resource.root) == pipeline_resource("toy")
    assert ended.payload["outcome"] == "Panicked"

    artifacts = {artifact.key: artifact for artifact in await artifacts_of(client, run_id)}
    assert set(artifacts) == {"toy-topology", "toy-status", "toy-settled", "toy-report"}
    assert "```mermaid" in str(artifacts["toy-topology"].data)
    assert "| Panicked |" in str(artifacts["toy-report"].data)
    assert artifacts["toy-settled"].data == 100

    lines = [line for line in await log_of(client, run_id) if line.name.startswith("supervisor")]
    assert len(lines) == decisions.total()
    by_message = {line.message.split(":")[0]: line for line in lines}
    assert by_message["restart work #2"].task_run_id == second.id
    assert by_message["restart work #2"].level == logging.INFO
    assert by_message["escalate work #2"].level == logging.ERROR


async def test_an_exhausted_budget_ends_the_run_failed_with_the_operator_and_its_last_error(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """With two restarts allowed: three task runs Failed, one event `budget_exhausted`, the flow run Failed with the reason."""
    assert installation.worker_lives
    folder = tmp_path / "toy"
    run_id = await start(client, TOY, {"folder": str(folder), "restarts": 2})
    await until(client, run_id, lambda seen: len(seen.states) == 3, "it runs")
    give(folder, "exhaust")
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert over.state == "FAILED"
    assert over.message.startswith(
        "BUDGET_EXHAUSTED: BudgetExhausted: work: OSError: the port is taken, for good; ingested "
    )
    assert [over.states[name] for name in ("work", "work #2", "work #3")] == ["FAILED"] * 3
    assert over.decisions == decided(folder / "decisions.jsonl")
    assert over.decisions["budget_exhausted", "work", 3] == 1


async def test_a_run_that_was_set_to_crashed_reports_that_it_runs(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """A streaming run that is set to Crashed sets itself to Running again, and ends Completed."""
    assert installation.worker_lives
    folder = tmp_path / "toy"
    run_id = await start(client, TOY, {"folder": str(folder)})
    await until(client, run_id, lambda seen: seen.state == "RUNNING" and len(seen.states) == 3, "it runs")
    dead: State[None] = State(type=StateType.CRASHED, name="Crashed", message="no heartbeat")
    await client.set_flow_run_state(run_id, dead, force=True)
    alive = await until(client, run_id, lambda seen: seen.state == "RUNNING", "it says that it is alive")
    assert alive.message == "the run is alive, and Crashed does not stop it; cancel the run to stop it"
    give(folder, "end")
    over = await until_over(client, run_id)
    assert (over.state, set(over.states.values())) == ("COMPLETED", {"COMPLETED"})
    assert await history(client, run_id) == ["SCHEDULED", "PENDING", "RUNNING", "CRASHED", "RUNNING", "COMPLETED"]
