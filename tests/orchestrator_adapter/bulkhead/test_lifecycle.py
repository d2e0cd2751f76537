from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator_adapter.bulkhead import (
    Bulkhead,
    BulkheadCannotStart,
    BulkheadClosed,
    Invitation,
    LocalProcesses,
    Network,
)
from orchestrator_adapter.bulkhead.launchers.local import LocalWorker
from orchestrator_adapter.primitives.errors import DuplicateRun
from orchestrator_adapter.supervision.restart import RestartPolicy
from tests.helpers.running import eventually
from tests.helpers.support import ROOT
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import NeverReady, at, bulkhead, numbers
from tests.orchestrator_adapter.bulkhead.waiting import in_flight, process_ended


def test_every_invalid_setting_is_reported_at_once() -> None:
    """Counts below one, durations of zero, and a target that is not ``module:name``."""
    nothing = timedelta(0)
    with pytest.raises(ValueError, match="bulkhead 'b': ") as raised:
        Bulkhead(
            "b",
            "module",
            workers=0,
            in_flight=0,
            answer_within=nothing,
            rebuilds=RestartPolicy.never(),
            start_within=nothing,
            drain_within=nothing,
            max_bytes=0,
        )
    assert str(raised.value) == (
        "bulkhead 'b': workers must be >= 1, got 0; bulkhead 'b': in_flight must be >= 1, got 0; "
        "bulkhead 'b': max_bytes must be >= 1, got 0; "
        "bulkhead 'b': answer_within must be > 0, got datetime.timedelta(0); "
        "bulkhead 'b': start_within must be > 0, got datetime.timedelta(0); "
        "bulkhead 'b': drain_within must be > 0, got datetime.timedelta(0); "
        "bulkhead 'b': target must be 'module:name', got 'module'"
    )


async def test_a_bulkhead_is_entered_once_and_its_launcher_cannot_change_afterwards() -> None:
    """A call before is rejected; afterwards it can neither be entered again nor get another launcher."""
    pool = bulkhead()
    with pytest.raises(BulkheadClosed, match="bulkhead 'toy' is not open yet"):
        await pool.call("double", numbers(1))
    async with pool:
        pass
    with pytest.raises(DuplicateRun):
        await pool.__aenter__()
    with pytest.raises(DuplicateRun):
        pool.launch_with(None)  # type: ignore[arg-type] # it raises before it uses the launcher


# Starting.


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (f"{NeverReady.__module__}:NeverReady", "RuntimeError: no library for that"),
        ("no.such.module:Handler", "ModuleNotFoundError: No module named 'no'"),
        (f"{NeverReady.__module__}:Missing", "AttributeError: "),
    ],
)
async def test_a_handler_that_cannot_be_made_is_an_oserror_with_the_reason(target: str, reason: str) -> None:
    """It names bulkhead, worker, target and the remote error; no worker remains."""
    pool = bulkhead(target=target, workers=2)
    with pytest.raises(BulkheadCannotStart) as raised:
        await pool.__aenter__()
    assert isinstance(raised.value, OSError)
    assert str(raised.value).startswith("bulkhead 'toy': worker-")
    assert f"did not start: the handler {target!r} could not be made: {reason}" in str(raised.value)
    assert pool.statistics().alive == 0
    with pytest.raises(BulkheadClosed):
        await pool.call("double", numbers(1))


async def test_an_address_that_cannot_be_bound_is_an_oserror() -> None:
    """Entering raises the system's error, and no worker is launched (192.0.2.1 is reserved: RFC 5737)."""
    pool = bulkhead(launcher=LocalProcesses(network=Network("127.0.0.1", bind="192.0.2.1")))
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        await pool.__aenter__()
    assert pool.statistics().alive == 0


async def test_an_exception_of_the_launcher_is_raised_when_entering() -> None:
    """It is raised unchanged, and entering does not wait for ``start_within``."""

    class Broken:
        network = None

        def launch(self, invitation: object) -> Any:
            raise KeyError("no such cluster")

    with pytest.raises(KeyError, match="no such cluster"):
        await bulkhead(launcher=Broken()).__aenter__()


async def test_a_worker_that_never_connects_is_killed_after_start_within() -> None:
    """The error states the limit."""

    class Sleeper:
        """A launcher whose process ignores the invitation."""

        network = None
        process: subprocess.Popen[bytes]

        def launch(self, invitation: object) -> Sleeper:
            self.process = subprocess.Popen(["sleep", "3600"])
            return self

        def is_alive(self) -> bool:
            return self.process.poll() is None

        def kill(self, pid: int | None) -> None:
            self.process.kill()

        def stopped(self, crashed: str | None) -> None:
            self.process.wait()

    sleeper = Sleeper()
    with pytest.raises(BulkheadCannotStart, match=r"worker-1 did not start: it was not ready within 0\.2 s"):
        await bulkhead(launcher=sleeper, start_within=timedelta(seconds=0.2)).__aenter__()
    assert sleeper.process.returncode == -signal.SIGKILL


# Signals and priority of workers.


async def test_workers_ignore_sigterm_and_sigint() -> None:
    """A worker that sends both to itself answers this call and the next."""
    async with bulkhead() as pool:
        assert (await pool.call("signal", {}))["pid"] == pool.statistics().pids[1]
        assert (await pool.call("double", numbers(1)))["x"] == 2


async def test_a_signal_during_a_workers_start_does_not_end_it() -> None:
    """SIGTERM and SIGINT are sent as soon as the process exists, long before it runs our code."""

    class Hasty(LocalProcesses):
        def launch(self, invitation: Invitation) -> LocalWorker:
            worker = super().launch(invitation)
            for number in (signal.SIGTERM, signal.SIGINT):
                worker._process.send_signal(number)
            return worker

    async with bulkhead(launcher=Hasty()) as pool:
        assert (await pool.call("double", numbers(1)))["x"] == 2


async def test_workers_have_lower_priority_than_the_stream() -> None:
    """Their niceness is 10 above that of the pool's process; that of a successor, too."""
    async with bulkhead() as pool:
        for _ in range(2):
            (pid,) = pool.statistics().pids.values()
            assert psutil.Process(pid).nice() == min(19, psutil.Process().nice() + 10)
            psutil.Process(pid).kill()
            assert (await pool.call("double", numbers(1)))["x"] == 2


# Closing.


async def test_closing_waits_for_calls_in_flight(tmp_path: Path) -> None:
    """A call in flight is answered; a call made during the close is rejected."""
    pool = bulkhead()
    async with pool:
        call = asyncio.create_task(pool.call("wait for", at(tmp_path / "gate")))
        await eventually(in_flight(pool, 1), "the worker has the call")
        closing = asyncio.create_task(pool.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(BulkheadClosed, match="bulkhead 'toy' is closed"):
            await pool.call("double", numbers(1))
        (tmp_path / "gate").touch()
        assert await call == {}
        await closing


async def test_closing_is_bounded_and_kills_a_worker_that_does_not_stop() -> None:
    """A handler hangs for an hour: its call raises ``BulkheadClosed`` and its process ends after ``drain_within``."""
    async with bulkhead(drain_within=timedelta(seconds=1)) as pool:
        pid = pool.statistics().pids[1]
        call = asyncio.create_task(pool.call("hang", {}))
        await eventually(in_flight(pool, 1), "the worker has the call")
    with pytest.raises(BulkheadClosed, match="was closed before it had answered"):
        await call
    await eventually(lambda: process_ended(pid), "its process has ended")
    assert pool.statistics().balanced
    assert pool.statistics().aborted == 1


async def test_a_cancelled_close_still_ends_every_process() -> None:
    """The cancellation is raised afterwards."""
    pids: dict[int, int] = {}
    entered = asyncio.Event()

    async def use() -> None:
        async with bulkhead(workers=2) as pool:
            pids.update(pool.statistics().pids)
            entered.set()
            await pool.call("double", numbers(1))
            await asyncio.get_running_loop().create_future()

    using = asyncio.create_task(use())
    await entered.wait()
    using.cancel()
    await asyncio.sleep(0)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await eventually(lambda: all(process_ended(pid) for pid in pids.values()), "their processes have ended")


ORPHANS = """
import asyncio, os, signal, sys
from datetime import timedelta
from functools import partial
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead

async def main():
    async with bulkhead(workers=2, in_flight=1) as pool:
        children = []
        if sys.argv[1] == "forked":
            if (child := os.fork()) == 0:
                os.close(1)
                signal.pause()
            children = [child]
        print(*pool.statistics().pids.values(), *children, flush=True)
        await pool.call("hang", {})

asyncio.run(main())
"""


@pytest.mark.parametrize("children", ["none", "forked"])
async def test_workers_end_when_the_pools_process_is_killed(children: str) -> None:
    """After SIGKILL of the pool's process, the idle worker and the one that hangs end by themselves.

    So they do while a child that the pool's process has forked lives.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ORPHANS, children),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=ROOT,
    )
    assert process.stdout is not None
    pids = [int(word) for word in (await process.stdout.readline()).split()]
    workers, forked = pids[:2], pids[2:]
    assert len(forked) == (children == "forked")
    process.kill()
    await process.wait()
    await eventually(lambda: all(process_ended(pid) for pid in workers), "both workers have ended")
    for pid in forked:
        assert not process_ended(pid)
        os.kill(pid, signal.SIGKILL)
