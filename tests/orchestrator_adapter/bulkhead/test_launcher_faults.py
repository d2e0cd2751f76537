from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from orchestrator_adapter.bulkhead import BulkheadExhausted, Invitation, LocalProcesses
from orchestrator_adapter.bulkhead.launchers.local import LocalWorker
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead, numbers


async def test_a_worker_whose_kill_fails_is_still_reaped() -> None:
    """An exception in ``kill`` exhausts the bulkhead with that error, and ``stopped`` is called all the same."""
    stopped: list[str | None] = []

    class Worker(LocalWorker):
        def kill(self, pid: int | None) -> None:
            super().kill(pid)
            raise RuntimeError("no such method there")

        def stopped(self, crashed: str | None) -> None:
            super().stopped(crashed)
            stopped.append(crashed)

    class Launcher(LocalProcesses):
        def launch(self, invitation: Invitation) -> LocalWorker:
            return Worker(super().launch(invitation)._process)

    async with bulkhead(launcher=Launcher()) as pool:
        os.kill(pool.statistics().pids[1], signal.SIGKILL)
        await eventually(lambda: pool.statistics().exhausted, "the bulkhead is exhausted")
        with pytest.raises(BulkheadExhausted, match="RuntimeError: no such method there"):
            await pool.call("double", numbers(1))
    await eventually(lambda: stopped == ["its connection ended"], "the launcher has reaped the worker")


async def test_a_worker_launched_while_the_bulkhead_closes_is_ended_and_reaped() -> None:
    """The launch has succeeded on its thread, and the loop has not processed that yet."""
    launching, launched, handles = threading.Event(), threading.Event(), list[LocalWorker]()

    class Launcher(LocalProcesses):
        def launch(self, invitation: Invitation) -> LocalWorker:
            if handles:
                launching.set()
            handles.append(super().launch(invitation))
            if len(handles) > 1:
                launched.set()
            return handles[-1]

    async with bulkhead(launcher=Launcher()) as pool:
        os.kill(pool.statistics().pids[1], signal.SIGKILL)
        await eventually(launching.is_set, "the successor is being launched")
        assert launched.wait(60)
        time.sleep(0.05)  # noqa: ASYNC251 - the thread must finish while the loop is blocked
    await eventually(lambda: all(handle._process.returncode is not None for handle in handles), "both are reaped")
    assert len(handles) == 2
