"""``python -m flows up`` and ``down``: Prefect's server, work pool, worker and our deployments, for one machine.

They survive the command and the terminal. What runs is found in ``/proc``, by the mark that each of these processes
carries; ``up.json`` repeats it for people and scripts and is never read here.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.worker import DRAIN_S, STOP_S, default_name
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
    environment_of,
    exit_of,
    free_ports,
    is_free,
    last_lines,
    marked_processes,
    need_proc,
    send,
    start_detached,
    wait_for,
)
from orchestrator_adapter.process import ExitCode

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

DEFAULT_FOLDER = Path("run/prefect")
DEFAULT_PORT = 4200
_CHECKOUT = Path(__file__).resolve().parents[2]
_DEPLOY_S = 120.0
_WORKER_START_S = 90.0
_SERVER_STOP_S = 10.0
_POLL_S = 0.1
_RUN = "sda-ingest/sda-ingest"

# So that the automation that reaps flow runs without a heartbeat does it after 90 s; 30 is Prefect's minimum.
_WORKER_SETTINGS = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_WORKER_QUERY_SECONDS": "5",  # a run that is asked for starts the sooner; nobody else asks this server
}


def add_up_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``up``."""
    _add_folder(parser)
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"the server's port (default: the one it runs on, or {DEFAULT_PORT})"
    )
    parser.add_argument("--free-port", action="store_true", help="if the port is taken, take any that is free")
    parser.add_argument(
        "--run", dest="with_run", action="store_true", help=f"start a run of {_RUN} too, with its default settings"
    )


def add_down_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``down``."""
    _add_folder(parser)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help="data, logs and up.json; one installation each (default: %(default)s)",
    )


def run_up(args: argparse.Namespace) -> int:
    """Bring up what does not run yet and print where it is; what this call had started is stopped again if it fails."""
    folder: Path = args.folder.resolve()
    try:
        need_proc()
        with _locked(folder):
            before = {process.pid for process in marked_processes(folder)}
            try:
                _up(folder, args)
            except BaseException:
                stop(lambda: [each for each in marked_processes(folder) if each.pid not in before], _tell)
                raise
    except (ProcessFailed, OSError) as error:
        print(f"up: {error}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.OK


def run_down(args: argparse.Namespace) -> int:
    """Stop flow runs, worker and server, in that order; say what was stopped and where the data are."""
    folder: Path = args.folder.resolve()
    if not folder.is_dir():
        _say(f"nothing was running; there is no {folder}")
        return ExitCode.OK
    try:
        need_proc()
        with _locked(folder):
            was_running = stop(partial(marked_processes, folder), _say)
            (folder / "up.json").unlink(missing_ok=True)
    except (ProcessFailed, OSError) as error:
        print(f"down: {error}", file=sys.stderr)
        return ExitCode.FAILED
    if not was_running:
        _say("nothing was running")
    _say(f"data and logs stay in {folder}")
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
        limit_s=_WORKER_START_S,
        what="the worker",
        ended=lambda: exit_of(worker) if worker is not None else None,
        look_at=partial(last_lines, folder / "worker.log"),
        tell=_tell,
    )
    deployments = asyncio.run(_deployments(server))
    _record(folder, server)
    print(_where_it_is(folder, server, deployments))
    if args.with_run:
        print(f"  this run     {asyncio.run(_start_run(server))}")


def _server(folder: Path, args: argparse.Namespace, running: MarkedProcess | None) -> LocalServer:
    """The server, answering: the one that runs already or a new one."""
    log = folder / "server.log"
    if running is not None:
        server = LocalServer(folder, running.port)
        if args.port not in {None, server.port}:
            raise ProcessFailed(
                f"the server of {folder} runs on port {server.port}, not {args.port}; `{_command('down', folder)}` first"
            )
        _tell(f"the Prefect server runs already on {server.url} (process {running.pid})")
        process = None
    else:
        server = LocalServer(folder, _port(args))
        _tell(f"starting a Prefect server on {server.url} (5 to 20 s) …")
        process = start_detached(server.command(), environment_of(server, folder, SERVER), cwd=folder, log=log)
    wait_for(
        lambda: answers(server.api_url),
        limit_s=SERVER_START_S,
        what="the Prefect server",
        ended=lambda: exit_of(process) if process is not None else None,
        look_at=partial(last_lines, log),
        tell=_tell,
    )
    return server


def _port(args: argparse.Namespace) -> int:
    port: int = DEFAULT_PORT if args.port is None else args.port
    if is_free(port):
        return port
    if args.free_port:
        (free,) = free_ports(1)
        _tell(f"port {port} is taken; taking {free}")
        return free
    who = (
        "a Prefect server that is not this folder's" if answers(LocalServer(Path(), port).api_url) else "somebody else"
    )
    raise ProcessFailed(f"port {port} is taken by {who}; --port N takes another one, --free-port any that is free")


def _worker(
    folder: Path, server: LocalServer, running: MarkedProcess | None
) -> tuple[subprocess.Popen[bytes] | None, datetime | None]:
    """The worker's process, if it was started just now, and since when a sign of life is one of this process."""
    if running is not None:
        _tell(f"the worker {default_name()} runs already (process {running.pid})")
        return None, None
    _tell(f"starting the worker {default_name()} …")
    since = datetime.now(UTC)  # the one before, of the same name, counts as online for 90 s
    environment = environment_of(server, folder, WORKER, _WORKER_SETTINGS)
    command = [sys.executable, "-m", "flows", "worker", "--pool", POOL]
    return start_detached(command, environment, cwd=_CHECKOUT, log=folder / "worker.log"), since


def _deploy(folder: Path, server: LocalServer) -> None:
    _tell(f"deploying what {_CHECKOUT / 'prefect.yaml'} names …")
    log = folder / "deploy.log"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = environment_of(server, folder, RUNS)
    with log.open("wb") as output:
        try:
            done = subprocess.run(  # noqa: S603 - ours
                command, cwd=_CHECKOUT, env=environment, stdout=output, stderr=output, timeout=_DEPLOY_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"deploying took more than {_DEPLOY_S:g} s; {last_lines(log)}") from None
    if done.returncode:
        raise ProcessFailed(f"deploying failed (exit code {done.returncode}); {last_lines(log)}")


def _client(server: LocalServer) -> PrefectClient:
    # Importing Prefect takes a second, and only now does the environment name the server.
    from prefect.client.orchestration import PrefectClient  # noqa: PLC0415

    return PrefectClient(server.api_url)


async def _make_pool(server: LocalServer) -> None:
    """Make the work pool, unless it is there; one of another type cannot be ours."""
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
        worker.name == default_name()
        and worker.status.value == "ONLINE"
        and (since is None or (worker.last_heartbeat_time is not None and worker.last_heartbeat_time >= since))
        for worker in workers
    )


async def _deployments(server: LocalServer) -> dict[str, str]:
    """Of every deployment in the pool, as ``flow/deployment``, its page."""
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
    told = {
        "url": server.url,
        "api_url": server.api_url,
        "port": server.port,
        "pool": POOL,
        "checkout": str(_CHECKOUT),
        **{role: {"pid": pid, "log": str(folder / f"{role}.log")} for role, pid in pids.items()},
    }
    new = folder / "up.json.new"
    new.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    new.replace(folder / "up.json")


def _where_it_is(folder: Path, server: LocalServer, deployments: Mapping[str, str]) -> str:
    prefect = shlex.quote(str(Path(sys.executable).with_name("prefect")))
    return "\n".join(
        [
            f"  Prefect UI   {server.url}",
            *(f"  deployment   {name}  {page}" for name, page in deployments.items()),
            f"  worker       {default_name()}, of the work pool {POOL}",
            f"  data, logs   {folder}",
            "",
            f"  for a shell  export PREFECT_API_URL={server.api_url}",
            f"  start a run  {prefect} deployment run {_RUN}",
            f"  automations  {shlex.quote(sys.executable)} -m flows automations",
            f"  stop         {_command('down', folder)}",
        ]
    )


def _command(command: str, folder: Path) -> str:
    """How a person runs this command on this installation."""
    if folder == (_CHECKOUT / DEFAULT_FOLDER):
        return f"make {command}"
    return f"{shlex.quote(sys.executable)} -m flows {command} --folder {shlex.quote(str(folder))}"


@dataclass(frozen=True, slots=True)
class StopStep:
    """Processes that are stopped together, and how long they may take before they are killed."""

    what: str
    belongs: Callable[[MarkedProcess], bool]
    limit_s: float
    note: str = ""


# One after the other, each on what lives when its turn has come. Flow runs need the server to tell it of their end.
_STEPS = (
    StopStep(
        "the worker", lambda each: each.role == WORKER, STOP_S + 2, f"; its flow runs have {DRAIN_S:g} s to drain"
    ),
    StopStep(
        "flow runs without a worker", lambda each: each.is_flow_run, DRAIN_S, f"; they have {DRAIN_S:g} s to drain"
    ),
    StopStep("what is left of the worker", lambda each: each.role == RUNS, _SERVER_STOP_S),
    StopStep("the Prefect server", lambda each: each.role == SERVER, _SERVER_STOP_S),
)


def stop(
    find: Callable[[], list[MarkedProcess]],
    say: Callable[[str], object],
    *,
    send: Callable[[signal.Signals, Iterable[int]], object] = send,
    sleep: Callable[[float], object] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> bool:
    """Stop what ``find`` finds, flow runs before the worker, the server last; whether there was anything."""
    any_found = False
    for step in _STEPS:
        pids = {process.pid for process in find() if step.belongs(process)}
        if not pids:
            continue
        any_found = True
        started = now()
        named = f"{step.what} (process {', '.join(map(str, sorted(pids)))})"
        say(f"stopping {named}{step.note} …")
        send(signal.SIGTERM, pids)
        left = pids
        while left and now() - started <= step.limit_s:
            sleep(_POLL_S)
            left = pids & {process.pid for process in find()}
        if left:
            send(signal.SIGKILL, left)
            say(f"{step.what} had not ended after {step.limit_s:g} s and was killed")
        else:
            say(f"{step.what} ended after {now() - started:.1f} s")
    return any_found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One ``up`` or ``down`` at a time. The lock file is never removed: a lock on a removed file locks nobody out."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ProcessFailed(f"another `up` or `down` is at work on {folder} (process {holder})") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _tell(what: str) -> None:
    print(f"up: {what}", file=sys.stderr, flush=True)


def _say(what: str) -> None:
    print(f"down: {what}", flush=True)
