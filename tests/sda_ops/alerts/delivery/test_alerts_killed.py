"""``kill -9`` of the process that delivers, before, during and after a delivery: each revision arrives once, the last one is true."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeAlias, assert_never

import pytest

from sda_ops.alerts.outbox.values import Depth
from sda_ops.alerts.subscriber.table import SubscriberTable
from tests.helpers.alert_process import CONJUNCTIONS, STEPS, Run, run, statements
from tests.helpers.alerts import conjunction, outbox_in
from tests.helpers.faulty_subscriber import FaultySubscriber

SCRIPTS = ("ok", "ok,lose", "lose,503,ok", "slow", "500,cut,lose,ok", "ok,redirect")

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.helpers.alert_process"])


@dataclass(frozen=True, slots=True)
class AtRequest:
    """When the subscriber has ``received``, ``stored`` or ``answered`` a request: number ``number`` of the process, or a later one."""

    stage: str
    number: int


@dataclass(frozen=True, slots=True)
class AtOutbox:
    """``before`` or ``after`` the call of ``record`` or ``acknowledge`` that has item number ``number`` of the process."""

    when: str
    method: str
    number: int


@dataclass(frozen=True, slots=True)
class AtTime:
    """So many seconds after the start."""

    delay_s: float


Point: TypeAlias = AtRequest | AtOutbox | AtTime

EACH_KIND: tuple[Point, ...] = (
    AtRequest("received", 2),
    AtRequest("stored", 3),  # stored by the subscriber, and not acknowledged
    AtRequest("answered", 2),
    AtOutbox("after", "record", 25),  # committed, and the batch is not acknowledged
    AtOutbox("before", "acknowledge", 2),  # acknowledged by the subscriber, and not in the outbox
    AtTime(0.02),
)


def drawn(rng: random.Random) -> Point:
    """A point by chance."""
    match rng.choice(("request", "record", "acknowledge", "time")):
        case "request":
            return AtRequest(rng.choice(("received", "stored", "answered")), rng.randint(1, 6))
        case "record":
            return AtOutbox(rng.choice(("before", "after")), "record", rng.randint(1, 30))
        case "acknowledge":
            return AtOutbox(rng.choice(("before", "after")), "acknowledge", rng.randint(1, 4))
        case _:
            return AtTime(rng.uniform(0.0, 0.25))


async def _killed(start: Run, point: Point, subscriber: FaultySubscriber) -> bool:
    """Run a process and kill it at ``point``. Returns whether it was killed: it may have delivered everything before."""
    begun = len(subscriber.requests)
    match point:
        case AtRequest(stage, number):
            process = _process(start)

            def kill(now: str, at: int) -> None:
                if now == stage and at >= begun + number:
                    process.kill()

            subscriber.on_stage = kill
            process.start()
        case AtOutbox(when, method, number):
            process = _process(replace(start, die_at=(when, method, number)))
            process.start()
        case AtTime(delay_s):
            process = _process(start)
            process.start()
            await asyncio.sleep(delay_s)  # the point is a time
            process.kill()
        case _:
            assert_never(point)
    await _ended(process)
    subscriber.on_stage = lambda now, at: None
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


async def _scene(script: str, points: Sequence[Point], folder: Path, mutant: str | None = None) -> int:
    """Kill a process at each point, and let a last one deliver everything. Returns the number of kills."""
    table = SubscriberTable(folder / "subscriber.sqlite")
    async with FaultySubscriber(table, script) as subscriber:
        start = Run(folder=folder, url=subscriber.url, mutant=mutant)
        killed = sum([await _killed(start, point, subscriber) for point in points])
        assert not await _killed(start, AtOutbox("before", "record", 10**9), subscriber)
    table.close()
    return killed


async def _ended(process: BaseProcess) -> None:
    """Wait for the end of the process, which frees its sentinel."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(process.sentinel, ended.set)
    try:
        async with asyncio.timeout(120.0):
            await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()


def _process(start: Run) -> BaseProcess:
    return _PROCESSES.Process(target=run, args=(start,))


def _check(folder: Path) -> None:
    """Each revision once, in order, and the last one is the last statement; the outbox agrees."""
    table = SubscriberTable(folder / "subscriber.sqlite")
    stored = table.keys()
    assert sorted(stored) == [(conjunction(number), step) for number in range(CONJUNCTIONS) for step in range(STEPS)]
    for number in range(CONJUNCTIONS):
        assert [revision for identity, revision in stored if identity == conjunction(number)] == list(range(STEPS))
    said = dict(zip(stored, table.bodies(), strict=True))
    for statement in statements()[-CONJUNCTIONS:]:
        last = said[statement.conjunction_id, STEPS - 1].decode()
        assert f'{statement.estimate.revision}, "{statement.status}"' in last
    outbox = outbox_in(folder, "a")
    outbox.open(0)
    assert outbox.depth() == {"a": Depth(0, 0, None, configured=True)}
    outbox.close()


async def test_kills_of_every_kind_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    assert await _scene("ok,lose,503", EACH_KIND, tmp_path) == len(EACH_KIND)
    _check(tmp_path)


@pytest.mark.long
async def test_a_hundred_kills_at_seeded_points_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """Five in each scene, each with a subscriber that misbehaves in another way."""
    killed = 0
    for seed in range(25):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed += await _scene(rng.choice(SCRIPTS), [drawn(rng) for _ in range(5)], folder)
        _check(folder)
    assert killed >= 100


@pytest.mark.long
@pytest.mark.parametrize("mutant", ["acknowledge first", "key without revision", "order ignored"])
async def test_a_defect_of_the_delivery_is_found(tmp_path: Path, mutant: str) -> None:
    await _scene("ok,lose,503", EACH_KIND, tmp_path, mutant)
    with pytest.raises(AssertionError):
        _check(tmp_path)
