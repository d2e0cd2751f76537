"""A small run that gets stuck in a chosen way, as a process: ``python -m tests.helpers.stuck_run WHERE REPORT GRACE_S``.

It prints ``stuck`` once it is. Each way blocks the event loop for ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from orchestrator_adapter import DeadLetterList, OperatorGraph, SupervisionPolicy, WiredEnds, for_each, source_of
from orchestrator_adapter.process import Pipeline, RunOutcome, StopRequests, run_pipeline

_ITEMS = 20  # before it gets stuck
_DAY_S = 86_400.0


def say(text: str) -> None:
    print(text, flush=True)


def spin() -> NoReturn:
    """Compute without awaiting."""
    say("stuck")
    while True:
        pass


def sleep() -> None:
    """A blocking call that Python continues after each signal."""
    say("stuck")
    time.sleep(_DAY_S)


def in_c() -> None:
    """A call of C code that no signal interrupts: no Python handler runs. It does not hold the interpreter lock."""
    lock = (ctypes.c_char * 64)()  # a POSIX mutex that is locked twice
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(lock)
    say("stuck")
    libc.pthread_mutex_lock(lock)


def regex() -> None:
    """C code that holds the interpreter lock, and calls the handlers of signals."""
    say("stuck")
    re.match(r"(a+)+$", "a" * 60 + "b")


def spin_without_wakeup() -> NoReturn:
    """Compute, after asyncio has taken the signals' wakeup descriptor for a handler of its own."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say, "another signal")
    spin()


WAYS: dict[str, Callable[[], None]] = {
    "spin": spin,
    "sleep": sleep,
    "in_c": in_c,
    "regex": regex,
    "spin_without_wakeup": spin_without_wakeup,
    "other_thread": spin,
}


async def numbers() -> AsyncIterator[int]:
    for number in itertools.count():
        yield number
        await asyncio.sleep(0)


def main(where: str, report: Path, grace_s: float) -> int:
    async def work(ends: WiredEnds) -> None:
        if where == "close":
            ends.keep("resource", object, lambda _: sleep())
        if where.startswith("close"):
            say("running")
        async for number in ends.receiver:
            if number == _ITEMS and where in WAYS:
                WAYS[where]()
            ends.commit([number], acknowledge=1)
            await ends.flush()

    async def prepare() -> None:
        if where in {"prepare", "asked"}:
            sleep()
        if where == "after":
            stop.request("enough")

    graph = OperatorGraph("stuck")
    source = graph.add_source("numbers", source_of(numbers(), batch=1))
    operator = graph.add_operator("work", work)
    graph.connect(source, operator, 8)
    graph.connect(operator, graph.add_sink("sink", for_each(lambda _: None)), 8)
    policy = SupervisionPolicy(grace=timedelta(seconds=grace_s), patience=timedelta(seconds=0.1))

    stop = StopRequests()

    async def run() -> int:
        if where == "asked":  # another thread asks it to stop, while the loop is blocked
            threading.Timer(0.1, stop.noticed, ["asked by a thread"]).start()
        with stop.listen():
            outcome = await run_pipeline(pipeline, stop=stop, on_forced_end=ended)
            if where == "after":  # its caller goes on, for example to report the outcome elsewhere
                sleep()
            return outcome.exit_code

    async def run_beside() -> int:
        """The run that gets stuck is on another thread. The one on the main thread ends as it should."""
        thread = threading.Thread(target=asyncio.run, args=(run_pipeline(pipeline),))
        beside, sink = OperatorGraph("beside"), for_each(lambda _: None)
        beside.connect(beside.add_source("numbers", source_of(numbers())), beside.add_sink("sink", sink), 8)
        return (await run_pipeline(Pipeline(beside), on_built=lambda _: thread.start())).exit_code

    def ended(outcome: RunOutcome) -> None:
        say(f"ended by force: {outcome.event.name} {int(outcome.exit_code)}")
        for problem in outcome.problems:
            say(problem)

    class Store(DeadLetterList):
        """A store whose close hangs, as an fsync on a disk that does not answer."""

        def close(self) -> None:
            if where == "close_store":
                sleep()

    pipeline = Pipeline(graph, report=report, policy=policy, preparations=(prepare,), dead_letters=Store)
    return asyncio.run(run_beside() if where == "other_thread" else run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
