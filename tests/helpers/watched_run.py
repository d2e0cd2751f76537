"""Runs to watch, each as a process of its own, with faults on demand, for the tests of the live page.

``python -m tests.helpers.watched_run faults FOLDER ARCHIVE_URL`` runs ``feed -> work -> call -> compute -> store`` with
``run_pipeline``; ``... scenes FOLDER`` runs the ten topologies of ``tests.scenes.bottlenecks``, each with a control plane.
Commands are lines on standard input. A line on standard output says when a fault happened, Unix time in seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np

from orchestrator_adapter import (
    Backoff,
    BlockingPool,
    BreakerPolicy,
    BuiltGraph,
    JsonFormatter,
    OperatorGraph,
    RestartPolicy,
    RetryPolicy,
    SupervisionPolicy,
    WiredEnds,
    source_of,
)
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.process import Pipeline, run_pipeline
from orchestrator_adapter.resilience.http import exchange
from tests.helpers.support import ROOT, environment, wait_until
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead
from tests.scenes.bottlenecks import scenes

TOKEN = "a-token-for-the-tests"
COOLDOWN_S = 3.0

_PAUSE_S = 0.005  # between two items of the feed
_RETRY = RetryPolicy(timedelta(milliseconds=20), timedelta(milliseconds=100), max_attempts=None)
_BREAKER = BreakerPolicy(window=timedelta(seconds=0.5), cooldown=timedelta(seconds=COOLDOWN_S), min_calls=3)
_RESTARTS = RestartPolicy.bounded(
    10, timedelta(minutes=5), backoff=Backoff(timedelta(milliseconds=800), timedelta(seconds=1))
)


# In the process.


@dataclass(slots=True)
class Faults:
    """What is to go wrong: set by commands, used by the operators."""

    fail: bool = False
    block_s: float = 0.0
    write_s: float = 0.0

    def command(self, line: str) -> None:
        """``fail``, ``block SECONDS`` (the event loop) or ``write SECONDS`` (each write of the sink)."""
        match line.split():
            case ["fail"]:
                self.fail = True
            case ["block", seconds]:
                self.block_s = float(seconds)
            case ["write", seconds]:
                self.write_s = float(seconds)
                say("write")
            case _:
                raise ValueError(f"no such command: {line!r}")


def say(what: str, **fields: Any) -> None:
    """Report a moment to the test."""
    print(json.dumps({"did": what, "at": time.time(), **fields}), flush=True)


async def _feed() -> AsyncIterator[int]:
    for number in itertools.count():
        yield number
        await asyncio.sleep(_PAUSE_S)


def _work(faults: Faults) -> Any:
    async def work(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            if faults.fail:
                faults.fail = False
                say("fail")
                raise OSError("the antenna is gone")
            if faults.block_s:
                seconds, faults.block_s = faults.block_s, 0.0
                say("block")
                time.sleep(seconds)  # noqa: ASYNC251 - it is the fault
            ends.commit([item], acknowledge=1)
            await ends.flush()

    return work


def _call(url: str) -> Any:
    async def call(ends: WiredEnds) -> None:
        breaker = ends.breaker("archive", _BREAKER)
        async with httpx.AsyncClient(timeout=5) as client:
            request = client.build_request("GET", url)
            once = partial(exchange, client, request, decode=bytes, now_ns=time.time_ns)
            async for items in ends.receiver.batches():
                await ends.with_retry(_RETRY, once, breaker=breaker)
                ends.commit(items, acknowledge=len(items))
                await ends.flush()

    return call


def _compute(pool: Bulkhead) -> Any:
    async def compute(ends: WiredEnds) -> None:
        async for items in ends.receiver.batches():
            answer = await pool.call("double", {"x": np.array(items)})
            ends.commit(answer["x"].tolist(), acknowledge=len(items))
            await ends.flush()

    return compute


def _store(faults: Faults) -> Any:
    async def store(ends: WiredEnds) -> None:
        async for _ in ends.receiver.batches(4):
            if faults.write_s:
                await ends.run_blocking(time.sleep, faults.write_s)

    return store


def faulty_pipeline(folder: Path, archive: str, faults: Faults) -> Pipeline:
    """``feed -> work -> call -> compute -> store``: each can be made to fail in its own way."""
    pool = bulkhead("numbers", workers=2)
    graph = OperatorGraph("watched")
    feed = graph.add_source("feed", source_of(_feed()))
    work = graph.add_operator("work", _work(faults), restart_policy=_RESTARTS)
    call = graph.add_operator("call", _call(archive))
    compute = graph.add_operator("compute", _compute(pool))
    store = graph.add_sink("store", _store(faults), blocking_pool=BlockingPool("disk", 1))
    for upstream, downstream in itertools.pairwise((feed, work, call, compute, store)):
        graph.connect(upstream, downstream, 32)
    plane = ControlPlane(port=0, token=TOKEN, actions=True)
    return Pipeline(graph, report=folder / "report.json", control_plane=plane, bulkheads=(pool,))


def _run_faulty(folder: Path, archive: str) -> int:
    faults = Faults()

    def obey() -> None:
        for line in sys.stdin:
            faults.command(line)

    def listen(_: BuiltGraph) -> None:
        threading.Thread(target=obey, daemon=True).start()

    return asyncio.run(run_pipeline(faulty_pipeline(folder, archive, faults), on_built=listen)).exit_code


async def _run_scenes(folder: Path) -> None:
    with ExitStack() as stack:
        running = []
        for scene in scenes():
            built = scene.graph(folder).build()
            url = stack.enter_context(ControlPlaneServer(built, ControlPlane(port=0))).url
            running.append(
                (
                    built,
                    asyncio.create_task(built.run(SupervisionPolicy(timedelta(seconds=0.5), timedelta(seconds=0.5)))),
                )
            )
            say("scene", name=scene.name, url=url)
        await asyncio.to_thread(sys.stdin.readline)
        for built, _ in running:
            built.request_shutdown("the test is over")
        ended = [await task for _, task in running]
        say("ended", balanced=[event.figures.ledger_holds for event in ended])


def main() -> int:
    """The process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    match sys.argv[1:]:
        case ["faults", folder, archive]:
            return _run_faulty(Path(folder), archive)
        case ["scenes", folder]:
            asyncio.run(_run_scenes(Path(folder)))
            return 0
        case _:
            raise SystemExit(__doc__)


# In the test.


@dataclass(slots=True)
class WatchedRun:
    """The process, from the test's side.

    Attributes:
        url: Of its control plane.
        folder: Where its report and its log are.
    """

    process: subprocess.Popen[str]
    folder: Path
    url: str = ""
    returned: dict[str, int] = field(default_factory=dict)

    def command(self, line: str, *, wait_for: str = "") -> float:
        """Send a command. Wait until the process reports it; returns when it happened."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self.received(wait_for)["at"]) if wait_for else time.time()

    def received(self, what: str) -> dict[str, Any]:
        """The next line with this event that the process prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["did"] == what:
                return said
        raise AssertionError(f"the process has ended without {what!r}:\n{self.log()[-4000:]}")

    def logged(self, event: str, **fields: str) -> dict[str, Any]:
        """The first such line of its log that has not been returned yet; with ``at``, its Unix time in seconds."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            lines = [
                json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}")
            ]
            wanted = {"event": event, **fields}
            found[:] = [line for line in lines if wanted.items() <= line.items()]
            return len(found) > self.returned.get(str(wanted), 0) or self.process.poll() is not None

        wait_until(is_there, f"{event} in the log")
        key = str({"event": event, **fields})
        line = found[self.returned.get(key, 0)]
        self.returned[key] = self.returned.get(key, 0) + 1
        return line | {"at": datetime.fromisoformat(line["time"]).timestamp()}

    def log(self) -> str:
        """What it has logged so far."""
        return (self.folder / "log").read_text()

    def end(self) -> dict[str, Any]:
        """Wait until it has ended by itself; its report."""
        assert self.process.wait(60) == 0, self.log()[-4000:]
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report


@contextmanager
def watched_run(*arguments: str) -> Iterator[WatchedRun]:
    """``python -m tests.helpers.watched_run`` with a folder of its own; it is stopped at the end if it still runs."""
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("wb") as log:
        kind, *others = arguments
        command = [sys.executable, "-m", "tests.helpers.watched_run", kind, name, *others]
        process: subprocess.Popen[str] = subprocess.Popen(
            command, cwd=ROOT, env=environment({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        run = WatchedRun(process, Path(name))
        try:
            yield run
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
            for pipe in (process.stdin, process.stdout):
                _close(pipe)
            process.wait()


def _close(pipe: IO[str] | None) -> None:
    if pipe is not None:
        pipe.close()


if __name__ == "__main__":
    sys.exit(main())
