"""``sda-fusion`` as deployed: a Prefect worker runs it, and the propagator's process is a task run, which may be killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType

from flows.local_prefect.processes import free_ports
from sda_ops.catalog import synthetic_catalog
from sda_ops.simulate.catalog_file import omm_json
from tests.helpers.prefect_runs import FUSION, Installation, start, until, until_over
from tests.helpers.support import send_detections

# `long`: test_workers has the task run of a killed worker in `make test`, test_fusion_workers_killed the pipeline that continues, and
# test_runs_of_a_worker the cancelled run of a deployment.
pytestmark = [pytest.mark.prefect, pytest.mark.long, pytest.mark.timeout(300)]

OPERATORS = 18
WORKER = "propagator worker-1"


def settings(folder: Path) -> dict[str, Any]:
    """Three radars, two archives that do not answer, and two ISL listeners, on free ports."""
    ports = free_ports(7)
    catalog = folder / "catalog.json"
    catalog.write_bytes(omm_json(synthetic_catalog(objects=200, epoch_ns=time.time_ns())))
    return {
        "radars": [{"name": f"radar-{n:02}", "port": port} for n, port in enumerate(ports[:3], 1)],
        "opticals": [
            {"name": f"optical-{n:02}", "url": f"http://127.0.0.1:{port}/observations"}
            for n, port in enumerate(ports[3:5], 1)
        ],
        "isls": [{"name": f"isl-{n:02}", "port": port} for n, port in enumerate(ports[5:], 1)],
        "catalog": {"file": str(catalog)},
        "audit": {"directory": str(folder / "audit"), "commit_every_s": 0.2},
        "spill": {"directory": str(folder / "spill")},
        "screening": {"enabled": False},
        "dead_letters": {"directory": str(folder / "dead-letters")},
        "control_plane": {"port": 0},
        "prefect": {"directory": str(folder / "prefect"), "look_every_s": 1},
        "report": str(folder / "report.json"),
    }


def worker_process(flow_run_id: str) -> int:
    """The process of the run's only propagation worker: a child of the process that runs the flow."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and b"spawn_main" in (process / "cmdline").read_bytes():
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if flow_run_id.encode() in Path("/proc", parent, "environ").read_bytes():
                    found.append(int(process.name))
        except OSError:  # the process has ended
            continue
    (pid,) = found
    return pid


async def test_a_killed_propagator_is_a_crashed_task_run_and_the_pipeline_continues(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """The worker's task run is Running; after the kill it is Crashed and its replacement Running. The run ends Cancelled."""
    assert installation.worker_lives
    options = settings(tmp_path)
    run_id = await start(client, FUSION, options)
    running = await until(
        client,
        run_id,
        # The replay has nothing to replay and has ended.
        lambda seen: len(seen.states) == OPERATORS + 1 and set(seen.states.values()) <= {"RUNNING", "COMPLETED"},
        "operators and worker run",
    )
    assert running.states[WORKER] == "RUNNING"
    assert {name for name, state in running.states.items() if state == "COMPLETED"} <= {"replay"}
    os.kill(worker_process(str(run_id)), signal.SIGKILL)
    await until(
        client,
        run_id,
        lambda seen: (
            (seen.states[WORKER], seen.states.get(f"{WORKER} #2")) == ("CRASHED", "RUNNING")
            and {state for name, state in seen.states.items() if WORKER not in name} <= {"RUNNING", "COMPLETED"}
        ),
        "the worker is replaced, and the operators still run",
    )
    send_detections(options["radars"][0]["port"], 10)
    await client.set_flow_run_state(run_id, State[None](type=StateType.CANCELLING, name="Cancelling"))
    over = await until_over(client, run_id)
    assert over.state == "CANCELLED"
    assert {name for name, state in over.states.items() if state != "COMPLETED"} == {WORKER}
    assert over.states[WORKER] == "CRASHED"
