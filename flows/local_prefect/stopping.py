"""Stops the processes of a Prefect installation in order, and lets one command at a time work on its folder."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.local_prefect.processes import RUNS, SERVER, WORKER, MarkedProcess, ProcessFailed, send

DRAIN_S = 20.0  # for the flow runs; a pipeline's own grace is 5 s, and after that it reports its end to Prefect
SETTLE_S = 1.0  # for Prefect's worker to report the flow runs that could not report their end
END_S = 5.0  # for Prefect's worker itself
WORKER_S = DRAIN_S + SETTLE_S + END_S
_SERVER_STOP_S = 10.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class StopStep:
    """Processes that are stopped together, and the time after which they are killed."""

    what: str
    belongs: Callable[[MarkedProcess], bool]
    timeout_s: float
    note: str = ""


# In this order. Each step looks for its processes when it begins. Flow runs need the server to report how they ended.
_STEPS = (
    StopStep(
        "the worker", lambda each: each.role == WORKER, WORKER_S + 2, f"; its flow runs have {DRAIN_S:g} s to drain"
    ),
    StopStep(
        "flow runs without a worker", lambda each: each.is_flow_run, DRAIN_S, f"; they have {DRAIN_S:g} s to drain"
    ),
    StopStep("the rest of the worker", lambda each: each.role == RUNS, _SERVER_STOP_S),
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
    """Stop the processes that ``find`` returns, flow runs first, the server last. Returns whether there was one."""
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
        while left and now() - started <= step.timeout_s:
            sleep(_POLL_S)
            left = pids & {process.pid for process in find()}
        if left:
            send(signal.SIGKILL, left)
            say(f"{step.what} had not ended after {step.timeout_s:g} s and was killed")
        else:
            say(f"{step.what} ended after {now() - started:.1f} s")
    return any_found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One ``up`` or ``down`` at a time. The lock file is never removed: a lock on a removed file has no effect."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ProcessFailed(f"another `up` or `down` is working on {folder} (process {holder})") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)
