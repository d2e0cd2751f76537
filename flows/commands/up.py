"""``python -m flows up``: a Prefect server, work pool and worker on this machine, with every pipeline deployed.

They outlive the command and the terminal. Which of them run is read from the system's process table, by the mark in the
environment of each. ``up.json`` repeats it for people and scripts; this command never reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.messages import report_problems
from flows.commands.options import INSTALLATION, add_folder_argument, tcp_port
from flows.local_prefect.processes import (
    POOL,
    RUNS,
    SERVER,
    SERVER_START_S,
    WORKER,
    LocalServer,
    MarkedProcess,
    ProcessFailed,
    answers,
    default_worker_name,
    environment_of,
    exit_of,
    free_ports,
    is_free,
    last_lines,
    marked_processes,
    start_detached,
    wait_for,
)
from flows.local_prefect.stopping import locked, stop
from flows.output import print_line, print_problem
from orchestrator_adapter.process import ExitCode

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

DEFAULT_PORT = 4200
_CHECKOUT = Path(__file__).resolve().parents[2]
_DEPLOY_S = 120.0
_WORKER_START_S = 90.0
_RUN = "sda-ingest/sda-ingest"

# 30 s is Prefect's minimum: the automation for flow runs without a heartbeat can then act after 90 s.
_WORKER_SETTINGS = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_WORKER_QUERY_SECONDS": "5",  # a requested run starts sooner; this server has no other clients
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``up``."""
    add_folder_argument(parser)
    parser.add_argument(
        "--port", type=tcp_port, metavar="N", help=f"the server's port (default: the one it runs on, or {DEFAULT_PORT})"
    )
    parser.add_argument("--free-port", action="store_true", help="if the port is taken, take any that is free")
    parser.add_argument(
        "--run", dest="with_run", action="store_true", help=f"start a run of {_RUN} too, with its default settings"
    )


def run(args: argparse.Namespace) -> int:
    """Start what does not run yet and print the addresses. If it fails, stop what this call has started."""
    folder: Path = args.folder.resolve()
    try:
        with locked(folder):
            before = {process.pid for process in marked_processes(folder)}
            try:
                _up(folder, args)
            except BaseException:
                stop(lambda: [each for each in marked_processes(folder) if each.pid not in before], _say)
                raise
    except (ProcessFailed, OSError) as error:
        return report_problems("up", [str(error)])
    return ExitCode.OK


def _up(folder: Path, args: argparse.Namespace) -> None:
    running = {process.role: process for process in marked_processes(folder)}
    server = _server(folder, args, running.get(SERVER))
    os.environ.update(server.environment())  # before Prefect is imported here
    os.environ.pop("PREFECT_PROFILE", None)
    asyncio.run(_make_pool(server))
    worker, since = _worker(folder, server, running.get(WORKER))
    _deploy(folder, server)
    wait_for(
        lambda: asyncio.run(_is_online(server, since)),
        timeout_s=_WORKER_START_S,
        what="the worker",
        ended=lambda: exit_of(worker) if worker is not None else None,
        hint=partial(last_lines, folder / "worker.log"),
        report=_say,
    )
    deployments = asyncio.run(_deployments(server))
    _record(folder, server)
    print_line(_addresses(folder, server, deployments))
    if args.with_run:
        print_line(f"  this run     {asyncio.run(_start_run(server))}")


def _server(folder: Path, args: argparse.Namespace, running: MarkedProcess | None) -> LocalServer:
    """The server, once it answers: the one that runs already, or a new one."""
    log = folder / "server.log"
    if running is not None:
        server = LocalServer(folder, running.port)
        if args.port not in {None, server.port}:
            raise ProcessFailed(
                f"the server of {folder} runs on port {server.port}, not {args.port}; `{_command('down', folder)}` first"
            )
        _say(f"the Prefect server runs already on {server.url} (process {running.pid})")
        process = None
    else:
        server = LocalServer(folder, _port(args))
        _say(f"starting a Prefect server on {server.url} (5 to 20 s) …")
        process = start_detached(server.command(), environment_of(server, folder, SERVER), cwd=folder, log=log)
    wait_for(
        lambda: answers(server.api_url),
        timeout_s=SERVER_START_S,
        what="the Prefect server",
        ended=lambda: exit_of(process) if process is not None else None,
        hint=partial(last_lines, log),
        report=_say,
    )
    return server


def _port(args: argparse.Namespace) -> int:
    port: int = DEFAULT_PORT if args.port is None else args.port
    if is_free(port):
        return port
    if args.free_port:
        (free,) = free_ports(1)
        _say(f"port {port} is taken; taking {free}")
        return free
    who = "a Prefect server of another folder" if answers(LocalServer(Path(), port).api_url) else "another process"
    raise ProcessFailed(f"port {port} is taken by {who}; --port N takes another one, --free-port any that is free")


def _worker(
    folder: Path, server: LocalServer, running: MarkedProcess | None
) -> tuple[subprocess.Popen[bytes] | None, datetime | None]:
    """The worker's process, if this call starts it, and the time from which a heartbeat is of this process."""
    if running is not None:
        _say(f"the worker {default_worker_name()} runs already (process {running.pid})")
        return None, None
    _say(f"starting the worker {default_worker_name()} …")
    since = datetime.now(UTC)  # an earlier worker of this name counts as online for 90 s
    environment = environment_of(server, folder, WORKER, _WORKER_SETTINGS)
    command = [sys.executable, "-m", "flows", "worker", "--pool", POOL]
    return start_detached(command, environment, cwd=_CHECKOUT, log=folder / "worker.log"), since


def _deploy(folder: Path, server: LocalServer) -> None:
    _say(f"deploying the pipelines of {_CHECKOUT / 'prefect.yaml'} …")
    log = folder / "deploy.log"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = environment_of(server, folder, RUNS)
    with log.open("wb") as output:
        try:
            done = subprocess.run(  # noqa: S603 - our own command
                command, cwd=_CHECKOUT, env=environment, stdout=output, stderr=output, timeout=_DEPLOY_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"deploying took more than {_DEPLOY_S:g} s; {last_lines(log)}") from None
    if done.returncode:
        raise ProcessFailed(f"deploying failed (exit code {done.returncode}); {last_lines(log)}")


def _client(server: LocalServer) -> PrefectClient:
    # Imported here: Prefect takes a second, and reads the environment, which names the server by now.
    from prefect.client.orchestration import PrefectClient  # noqa: PLC0415

    return PrefectClient(server.api_url)


async def _make_pool(server: LocalServer) -> None:
    """Make the work pool, unless it exists; one of another type is an error."""
    from prefect.client.schemas.actions import WorkPoolCreate  # noqa: PLC0415
    from prefect.exceptions import ObjectNotFound  # noqa: PLC0415
    from prefect.workers.process import ProcessWorker  # noqa: PLC0415

    async with _client(server) as client:
        try:
            pool = await client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
            return
    if pool.type != "process":
        raise ProcessFailed(f"the work pool {POOL!r} is of type {pool.type!r}, expected 'process'")


async def _is_online(server: LocalServer, since: datetime | None) -> bool:
    async with _client(server) as client:
        workers = await client.read_workers_for_work_pool(POOL)
    return any(
        worker.name == default_worker_name()
        and worker.status.value == "ONLINE"
        and (since is None or (worker.last_heartbeat_time is not None and worker.last_heartbeat_time >= since))
        for worker in workers
    )


async def _deployments(server: LocalServer) -> dict[str, str]:
    """The page of each deployment in the pool, by ``flow/deployment``."""
    async with _client(server) as client:
        found = [each for each in await client.read_deployments() if each.work_pool_name == POOL]
        flows = {each.id: (await client.read_flow(each.flow_id)).name for each in found}
    return {
        f"{flows[each.id]}/{each.name}": f"{server.url}/deployments/deployment/{each.id}"
        for each in sorted(found, key=lambda each: each.name)
    }


async def _start_run(server: LocalServer) -> str:
    async with _client(server) as client:
        deployment = await client.read_deployment_by_name(_RUN)
        flow_run = await client.create_flow_run_from_deployment(deployment.id)
    return f"{server.url}/runs/flow-run/{flow_run.id}"


def _record(folder: Path, server: LocalServer) -> None:
    pids = {process.role: process.pid for process in marked_processes(folder) if process.role in {SERVER, WORKER}}
    record = {
        "url": server.url,
        "api_url": server.api_url,
        "port": server.port,
        "pool": POOL,
        "checkout": str(_CHECKOUT),
        **{role: {"pid": pid, "log": str(folder / f"{role}.log")} for role, pid in pids.items()},
    }
    new = folder / "up.json.new"
    new.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    new.replace(folder / "up.json")


def _addresses(folder: Path, server: LocalServer, deployments: Mapping[str, str]) -> str:
    prefect = shlex.quote(str(Path(sys.executable).with_name("prefect")))
    return "\n".join(
        [
            f"  Prefect UI   {server.url}",
            *(f"  deployment   {name}  {page}" for name, page in deployments.items()),
            f"  worker       {default_worker_name()}, of the work pool {POOL}",
            f"  data, logs   {folder}",
            "",
            f"  for a shell  export PREFECT_API_URL={server.api_url}",
            f"  start a run  {prefect} deployment run {_RUN}",
            f"  automations  {shlex.quote(sys.executable)} -m flows automations",
            f"  stop         {_command('down', folder)}",
        ]
    )


def _command(command: str, folder: Path) -> str:
    """The command line of this command for this installation."""
    if folder == (_CHECKOUT / INSTALLATION):
        return f"make {command}"
    return f"{shlex.quote(sys.executable)} -m flows {command} --folder {shlex.quote(str(folder))}"


def _say(text: str) -> None:
    print_problem(f"up: {text}")
