from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from orchestrator_adapter.bulkhead import (
    BatchLost,
    Bulkhead,
    BulkheadCannotStart,
    BulkheadClosed,
    BulkheadEvent,
    BulkheadExhausted,
    HandlerFailed,
    Invitation,
    LocalProcesses,
)
from orchestrator_adapter.bulkhead.launchers.local import LocalWorker
from orchestrator_adapter.primitives.errors import DuplicateRun, OperatorError
from orchestrator_adapter.supervision.restart import RestartPolicy
from tests.helpers.log_lines import event_of
from tests.helpers.running import eventually
from tests.helpers.support import ROOT
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import NeverReady, at, bulkhead, numbers


def gone(pid: int) -> bool:
    """Whether there is no such process (a zombie is none)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def waits(pool: Bulkhead, calls: int) -> Callable[[], bool]:
    """Whether so many of its calls are with workers."""
    return lambda: pool.statistics().in_flight == calls


async def until_ready(pool: Bulkhead, pid: int) -> None:
    """Its only worker is another one than the process ``pid``, and ready."""
    await eventually(lambda: pool.statistics().pids.get(1, pid) != pid, "another worker is ready")


async def test_calls_are_answered_by_other_processes() -> None:
    """Ten calls at once, two workers: every answer is right, and the books balance."""
    async with bulkhead(workers=2) as pool:
        answers = await asyncio.gather(*(pool.call("double", numbers(n, n + 1)) for n in range(10)))
        figures = pool.statistics()
    assert [list(answer["x"]) for answer in answers] == [[2 * n, 2 * n + 2] for n in range(10)]
    assert (figures.alive, figures.calls, figures.answered, figures.in_flight) == (2, 10, 10, 0)
    assert figures.balanced
    assert os.getpid() not in figures.pids.values()
    await eventually(lambda: all(gone(pid) for pid in figures.pids.values()), "the workers have ended")


async def test_what_the_handler_raises_comes_back_as_text_and_its_worker_lives_on() -> None:
    """Type, message and remote traceback; an answer that cannot travel is the handler's failure, too."""
    async with bulkhead() as pool:
        with pytest.raises(HandlerFailed) as raised:
            await pool.call("raise", {})
        assert str(raised.value) == "bulkhead 'toy': raise: the handler raised LookupError: no such object: 25544"
        assert (raised.value.error_type, raised.value.error_message) == ("LookupError", "no such object: 25544")
        assert 'raise LookupError("no such object: 25544")' in raised.value.remote_traceback
        assert not isinstance(raised.value, OperatorError)
        with pytest.raises(HandlerFailed, match="TypeError: answer '': array 'text': expected little-endian"):
            await pool.call("bad answer", {})
        assert (await pool.call("double", numbers(1)))["x"] == 2
        figures = pool.statistics()
    assert (figures.failed, figures.answered, figures.restarts) == (2, 1, 0)
    assert figures.balanced


async def test_a_call_waits_while_every_place_is_taken(tmp_path: Path) -> None:
    """One worker with two places: of four calls two wait, and all are answered in the order of their making."""
    ended: list[int] = []

    async def call(number: int) -> None:
        await pool.call("wait for", at(tmp_path / "gate")) if not number else await pool.call("double", numbers(1))
        ended.append(number)

    async with bulkhead() as pool:
        calls = [asyncio.create_task(call(number)) for number in range(4)]
        await eventually(waits(pool, 2), "two calls are with the worker")
        assert pool.statistics().waiting == 2
        (tmp_path / "gate").touch()
        await asyncio.gather(*calls)
    assert ended == [0, 1, 2, 3]


async def test_a_killed_worker_costs_a_restart_and_no_call(tmp_path: Path) -> None:
    """Its call and the one behind it are answered by its successor; the decisions are told, in order."""
    told: list[BulkheadEvent] = []
    async with bulkhead(on_event=told.append) as pool:
        before = pool.statistics().pids[1]
        first = asyncio.create_task(pool.call("wait for", at(tmp_path / "gate")))
        second = asyncio.create_task(pool.call("double", numbers(4)))
        await eventually(waits(pool, 2), "both calls are with the worker")
        os.kill(before, signal.SIGKILL)
        (tmp_path / "gate").touch()
        await first
        assert (await second)["x"] == 8
        figures = pool.statistics()
    assert (figures.restarts, figures.resubmitted, figures.answered, figures.lost) == (1, 1, 2, 0)
    assert figures.pids[1] != before
    assert [event.decision for event in told] == [
        *("worker_launched", "worker_ready", "bulkhead_ready", "batch_resubmitted", "worker_lost", "worker_restart"),
        *("worker_launched", "worker_ready", "worker_stopped", "bulkhead_closed"),
    ]
    restart = told[5]
    assert (restart.bulkhead, restart.fields["worker"], restart.fields["instance"]) == ("toy", 1, 2)
    assert told[3].fields["requeued"] == 1


async def test_a_batch_that_kills_twice_is_lost_and_those_behind_it_are_not() -> None:
    """``BatchLost`` names the method; three calls behind it in its pipe and its line are answered."""
    async with bulkhead() as pool:
        killer = asyncio.create_task(pool.call("die", numbers(1)))
        others = [asyncio.create_task(pool.call("double", numbers(n))) for n in range(3)]
        with pytest.raises(BatchLost, match="die: two workers were lost with it") as raised:
            await killer
        assert [float((await other)["x"][0]) for other in others] == [0, 2, 4]
        figures = pool.statistics()
    assert (raised.value.method, raised.value.losses) == ("die", 2)
    assert isinstance(raised.value, OperatorError)
    assert (figures.lost, figures.resubmitted, figures.restarts) == (1, 1, 2)
    assert figures.balanced


async def test_a_batch_that_kills_once_is_answered_the_second_time(tmp_path: Path) -> None:
    """The caller notices nothing."""
    async with bulkhead(workers=2) as pool:
        assert (await pool.call("die once", at(tmp_path / "died")))["survived"]
        assert pool.statistics().resubmitted == 1


async def test_a_worker_that_hangs_is_killed_and_its_batch_lost_the_second_time() -> None:
    """No answer within the limit: the process is ended, and again; then the next call is answered."""
    async with bulkhead(answer_within=timedelta(seconds=0.2)) as pool:
        before = pool.statistics().pids[1]
        with pytest.raises(BatchLost, match=r"the second because: it hung: no answer within 0\.2 s"):
            await pool.call("hang", {})
        pool._dispatcher.answer_within_s = 60.0  # a successor may be slow: it is niced, and the machine is shared
        await eventually(lambda: pool.statistics().alive, "a worker is ready")
        assert (await pool.call("double", numbers(1)))["x"] == 2
        figures = pool.statistics()
    assert (figures.hung, figures.restarts, figures.lost) == (2, 2, 1)
    assert gone(before)


async def test_a_stopped_process_is_a_hung_one() -> None:
    """SIGSTOP: it keeps its connection and says nothing; it is killed all the same, and its call answered elsewhere."""
    async with bulkhead(answer_within=timedelta(seconds=0.3)) as pool:
        before = pool.statistics().pids[1]
        os.kill(before, signal.SIGSTOP)
        call = asyncio.create_task(pool.call("double", numbers(1)))
        await eventually(lambda: pool.statistics().hung, "it is found to hang")
        pool._dispatcher.answer_within_s = 60.0  # its successor may be slow: it is niced, and the machine is shared
        assert (await call)["x"] == 2
        assert pool.statistics().hung == 1
        await eventually(lambda: gone(before), "the stopped process is gone")


async def test_beyond_the_budget_every_call_is_told_and_no_worker_is_left() -> None:
    """One rebuild, two losses: the call with the worker, the one behind it and the one after raise ``BulkheadExhausted``."""
    once = RestartPolicy.bounded(1, timedelta(minutes=5))
    async with bulkhead(rebuilds=once, workers=2, in_flight=1) as pool:
        pids = pool.statistics().pids
        calls = [asyncio.create_task(pool.call(method, {})) for method in ("hang", "die", "hang", "double")]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        # "die" is either lost first or cut off with the others: it kills the second worker with which it runs.
        assert {type(outcome) for outcome in outcomes} <= {BulkheadExhausted, BatchLost}
        assert sum(isinstance(outcome, BulkheadExhausted) for outcome in outcomes) >= 3
        with pytest.raises(BulkheadExhausted, match=r"the budget for rebuilds is used up: worker-\d was lost: "):
            await pool.call("double", numbers(1))
        with pytest.raises(BulkheadExhausted):
            await pool.share("table", numbers(1))
        figures = pool.statistics()
        assert figures.exhausted
        assert figures.balanced
        await eventually(lambda: all(gone(pid) for pid in pids.values()), "no worker is left")
    assert figures.restarts == 1


async def test_a_cancelled_call_gives_up_its_answer_and_nothing_else(tmp_path: Path) -> None:
    """Cancelled with the worker, and cancelled in line: the others are answered, by the same process, and all is booked."""
    async with bulkhead() as pool:
        before = pool.statistics().pids
        calls = [asyncio.create_task(pool.call("wait for", at(tmp_path / "gate")))]
        calls += [asyncio.create_task(pool.call("double", numbers(n))) for n in range(4)]
        await eventually(waits(pool, 2), "two calls are with the worker")
        for cancelled in (calls[0], calls[1], calls[3]):
            cancelled.cancel()
        outcomes = await asyncio.gather(calls[0], calls[1], calls[3], return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert (pool.statistics().in_flight, pool.statistics().waiting) == (0, 2)
        (tmp_path / "gate").touch()
        assert [float((await calls[n])["x"][0]) for n in (2, 4)] == [2, 6]
        figures = pool.statistics()
    assert figures.pids == before
    assert (figures.calls, figures.answered, figures.abandoned) == (5, 2, 3)
    assert figures.balanced


async def test_a_call_cancelled_in_the_very_turn_of_its_answer_is_booked_once() -> None:
    """Whichever of the two the loop meets first, the sum is right, and no worker is lost."""
    async with bulkhead() as pool:
        for turns in range(40):
            call = asyncio.create_task(pool.call("double", numbers(1)))
            await asyncio.sleep(0)
            time.sleep(0.001)  # noqa: ASYNC251 - the answer is to be there when the loop looks next
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert pool.statistics().balanced
        figures = pool.statistics()
    assert figures.restarts == 0
    assert figures.abandoned > 0


def none_of(pool: Bulkhead, pids: set[int]) -> bool:
    """Whether none of these processes is a worker any more."""
    return not pids & set(pool.statistics().pids.values())


async def test_what_is_shared_is_seen_by_later_calls_and_by_every_successor() -> None:
    """Both workers hold it; it is replaced as a whole; a successor has it before its first call."""
    async with bulkhead(workers=2, in_flight=1) as pool:
        table = numbers(1, 2, 3)
        await pool.share("table", table)
        table["x"][0] = 99  # the caller's own again
        for _ in range(2):
            held = await asyncio.gather(*(pool.call("recall", {}) for _ in range(4)))
            assert [list(one["x"]) for one in held] == [[1, 2, 3]] * 4
            await eventually(lambda: pool.statistics().alive == 2, "both are ready")
            old = set(pool.statistics().pids.values())
            for pid in old:
                os.kill(pid, signal.SIGKILL)
            await eventually(partial(none_of, pool, old), "both are gone")
        await pool.share("table", numbers(4))
        held = await asyncio.gather(*(pool.call("recall", {}) for _ in range(4)))
    assert [list(one["x"]) for one in held] == [[4]] * 4


async def test_a_share_that_the_handler_refuses_is_raised_and_not_replayed() -> None:
    """``HandlerFailed``, and a successor starts without it."""
    async with bulkhead(workers=2) as pool:
        with pytest.raises(HandlerFailed, match="share: the handler raised ValueError: not this one"):
            await pool.share("unwelcome", numbers(1))
        pids = pool.statistics().pids
        os.kill(pids[1], signal.SIGKILL)
        await until_ready(pool, pids[1])
        await pool.share("table", numbers(1))  # answered behind whatever the newcomer was given
        assert (pool.statistics().alive, pool.statistics().restarts) == (2, 1)


async def test_what_cannot_travel_is_the_callers_bug_before_anything_is_sent() -> None:
    """A TypeError that names the array; a share of it leaves nothing behind."""
    async with bulkhead() as pool:
        with pytest.raises(TypeError, match="call 'double': array 'x': expected little-endian"):
            await pool.call("double", {"x": np.array([None])})
        with pytest.raises(TypeError, match="share 'table': array 'x'"):
            await pool.share("table", {"x": np.array([None])})
        assert await pool.call("recall", {}) == {}
        assert pool.statistics().calls == 1


async def test_leaving_waits_for_calls_that_are_under_way(tmp_path: Path) -> None:
    """A call that is being answered is, and one that is made meanwhile is refused."""
    pool = bulkhead()
    async with pool:
        call = asyncio.create_task(pool.call("wait for", at(tmp_path / "gate")))
        await eventually(waits(pool, 1), "it is with the worker")
        leaving = asyncio.create_task(pool.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(BulkheadClosed, match="bulkhead 'toy' is closed"):
            await pool.call("double", numbers(1))
        (tmp_path / "gate").touch()
        assert await call == {}
        await leaving


async def test_leaving_is_bounded_and_kills_what_does_not_stop() -> None:
    """A handler that hangs: the call is told, its process is gone, in a fraction of its hour."""
    async with bulkhead(drain_within=timedelta(seconds=1)) as pool:
        pid = pool.statistics().pids[1]
        call = asyncio.create_task(pool.call("hang", {}))
        await eventually(waits(pool, 1), "it is with the worker")
    with pytest.raises(BulkheadClosed, match="was closed before it had answered"):
        await call
    await eventually(lambda: gone(pid), "its process is gone")
    assert pool.statistics().balanced
    assert pool.statistics().aborted == 1


async def test_leaving_although_cancelled_leaves_no_process() -> None:
    """The cancellation is passed on afterwards."""
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
    await eventually(lambda: all(gone(pid) for pid in pids.values()), "their processes are gone")


async def test_a_worker_that_cannot_be_killed_is_waited_for_all_the_same() -> None:
    """A launcher with a bug there exhausts the bulkhead, by its error; it is told that its worker is over."""
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
        await eventually(lambda: pool.statistics().exhausted, "nobody is left to answer")
        with pytest.raises(BulkheadExhausted, match="RuntimeError: no such method there"):
            await pool.call("double", numbers(1))
    await eventually(lambda: stopped == ["its connection ended"], "the launcher is told")


async def test_a_worker_that_is_launched_in_the_very_moment_of_leaving_is_not_left_behind() -> None:
    """Its launch has succeeded on a thread, and the loop has not heard of it yet: its process is ended and waited for."""
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
        await eventually(launching.is_set, "its successor is being launched")
        assert launched.wait(60)
        time.sleep(0.05)  # noqa: ASYNC251 - the loop is not to hear of it, and the thread to come to its end
    await eventually(lambda: all(handle._process.returncode is not None for handle in handles), "both are waited for")
    assert len(handles) == 2


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (f"{NeverReady.__module__}:NeverReady", "RuntimeError: no library for that"),
        ("no.such.module:Handler", "ModuleNotFoundError: No module named 'no'"),
        (f"{NeverReady.__module__}:Missing", "AttributeError: "),
    ],
)
async def test_a_handler_that_cannot_be_made_is_a_clear_oserror_and_leaves_nothing(target: str, reason: str) -> None:
    """It names bulkhead, worker, target and the remote error."""
    pool = bulkhead(target=target, workers=2)
    with pytest.raises(BulkheadCannotStart) as raised:
        await pool.__aenter__()
    assert isinstance(raised.value, OSError)
    assert str(raised.value).startswith("bulkhead 'toy': worker-")
    assert f"did not start: the handler {target!r} could not be made: {reason}" in str(raised.value)
    assert pool.statistics().alive == 0
    with pytest.raises(BulkheadClosed):
        await pool.call("double", numbers(1))


async def test_a_launcher_with_a_bug_is_raised_and_not_waited_for() -> None:
    """What it raises is the error, whatever it is."""

    class Broken:
        network = None

        def launch(self, invitation: object) -> Any:
            raise KeyError("no such cluster")

    with pytest.raises(KeyError, match="no such cluster"):
        await bulkhead(launcher=Broken()).__aenter__()


async def test_a_worker_that_never_comes_is_not_waited_for_for_ever() -> None:
    """Past ``start_within`` it is ended, and the error says so."""

    class Sleeper:
        """Does not accept the invitation."""

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


async def test_what_is_sent_to_the_process_group_does_not_reach_a_worker() -> None:
    """SIGTERM and SIGINT, sent to itself: it answers, and the next call, too."""
    async with bulkhead() as pool:
        assert (await pool.call("signal", {}))["pid"] == pool.statistics().pids[1]
        assert (await pool.call("double", numbers(1)))["x"] == 2


async def test_a_signal_in_its_first_moment_does_not_keep_a_worker_from_coming() -> None:
    """SIGTERM and SIGINT as soon as there is a process, long before it runs a line of ours."""

    class Hasty(LocalProcesses):
        def launch(self, invitation: Invitation) -> LocalWorker:
            worker = super().launch(invitation)
            for number in (signal.SIGTERM, signal.SIGINT):
                worker._process.send_signal(number)
            return worker

    async with bulkhead(launcher=Hasty()) as pool:
        assert (await pool.call("double", numbers(1)))["x"] == 2


async def test_a_bulkhead_is_entered_once_and_its_launcher_is_settled_then() -> None:
    """Before, a call is refused; afterwards it can be neither entered nor launched otherwise."""
    pool = bulkhead()
    with pytest.raises(BulkheadClosed, match="bulkhead 'toy' is not open yet"):
        await pool.call("double", numbers(1))
    async with pool:
        pass
    with pytest.raises(DuplicateRun):
        await pool.__aenter__()
    with pytest.raises(DuplicateRun):
        pool.launch_with(None)  # type: ignore[arg-type] # it does not get that far


def test_every_wrong_setting_is_named_at_once() -> None:
    """Counts below one, spans of nothing, a target that is none."""
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
        "bulkhead 'b': workers must be >= 1, got 0; in_flight must be >= 1, got 0; max_bytes must be >= 1, got 0; "
        "answer_within must be > 0, got 0:00:00; start_within must be > 0, got 0:00:00; "
        "drain_within must be > 0, got 0:00:00; target must be 'module:name', got 'module'"
    )


async def test_every_decision_is_one_json_line(caplog: pytest.LogCaptureFixture) -> None:
    """The line has the event's fields; a loss is a warning, a batch given up an error."""
    told: list[BulkheadEvent] = []
    with caplog.at_level(logging.INFO, "orchestrator_adapter.bulkhead"):
        async with bulkhead(on_event=told.append) as pool:
            with pytest.raises(BatchLost):
                await pool.call("die", {})
    records = [record for record in caplog.records if record.name == "orchestrator_adapter.bulkhead"]
    lines = [event_of(record.message) for record in records]
    assert lines == [{"event": e.decision, "bulkhead": e.bulkhead, **e.fields} for e in told]
    levels = {line["event"]: record.levelno for line, record in zip(lines, records, strict=True)}
    assert levels["batch_lost"] == logging.ERROR
    assert levels["worker_lost"] == logging.WARNING
    assert levels["worker_ready"] == logging.INFO


async def test_a_listener_that_raises_changes_nothing() -> None:
    """It is logged."""

    def listener(event: BulkheadEvent) -> None:
        raise RuntimeError("no pen")

    async with bulkhead(on_event=listener) as pool:
        assert (await pool.call("double", numbers(1)))["x"] == 2


@pytest.fixture
async def killing() -> AsyncIterator[Callable[[Bulkhead], None]]:
    """Kills workers at random, again and again, never the second with the same batch."""
    rng = random.Random(20261125)
    tasks: list[asyncio.Task[None]] = []

    def settled(pool: Bulkhead, worker: int, killed: int) -> bool:
        # Until what it had has been answered, another kill might hit that again, and it would rightly be lost.
        return pool.statistics().pids.get(worker) != killed and not any(pool._dispatcher._scheduler._losses.values())

    async def kill(pool: Bulkhead) -> None:
        while True:
            await asyncio.sleep(rng.uniform(0.0, 0.05))
            if len(pids := pool.statistics().pids) > 1:
                worker, pid = rng.choice(list(pids.items()))
                os.kill(pid, signal.SIGKILL)
                await eventually(
                    partial(settled, pool, worker, pid), "its loss is noticed, and what it had is answered"
                )

    yield lambda pool: tasks.append(asyncio.create_task(kill(pool)))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_kill_9_at_random_during_calls_costs_no_answer(killing: Callable[[Bulkhead], None]) -> None:
    """Three workers, calls of up to 80 kB, workers killed all the while: every answer is there once, and right."""
    rng = random.Random(1)
    async with bulkhead(workers=3) as pool:
        killing(pool)

        async def caller(number: int) -> int:
            calls = 0
            while pool.statistics().restarts < 4:
                sent = np.full(rng.randrange(10_000), float(number + calls))
                received = (await pool.call("double", {"x": sent}))["x"]
                assert np.array_equal(received, 2 * sent)
                calls += 1
            return calls

        calls = sum(await asyncio.gather(*(caller(1_000 * n) for n in range(6))))
        figures = pool.statistics()
    assert figures.resubmitted > 0
    assert (figures.calls, figures.answered, figures.lost) == (calls, calls, 0)
    assert figures.balanced


ORPHANS = """
import asyncio, sys
from datetime import timedelta
from functools import partial
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead

async def main():
    async with bulkhead(workers=2, in_flight=1) as pool:
        print(*pool.statistics().pids.values(), flush=True)
        await pool.call("hang", {})

asyncio.run(main())
"""


async def test_no_worker_outlives_a_process_that_was_killed() -> None:
    """SIGKILL of the bulkhead's own process: the idle worker and the one that hangs end by themselves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ORPHANS), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, cwd=ROOT
    )
    assert process.stdout is not None
    pids = [int(word) for word in (await process.stdout.readline()).split()]
    assert len(pids) == 2
    process.kill()
    await process.wait()
    await eventually(lambda: all(gone(pid) for pid in pids), "both workers have ended")


async def test_workers_yield_the_processor_to_the_stream() -> None:
    """Ten steps of niceness behind the process that they work for, a replaced one, too."""
    async with bulkhead() as pool:
        for _ in range(2):
            (pid,) = pool.statistics().pids.values()
            assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
            os.kill(pid, signal.SIGKILL)
            assert (await pool.call("double", numbers(1)))["x"] == 2
