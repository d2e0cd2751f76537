"""A small pipeline that counts, as a deployable flow; it fails on request, for tests of whole processes.

``numbers ── work ── keep``. It reads orders from the file ``<folder>/order`` (see ``ORDERS``); a parameter makes it fail
periodically. Its record of what happened does not depend on Prefect: ``kept`` has every number that arrived, in order,
``instances.jsonl`` when each instance of ``work`` failed and began, ``decisions.jsonl`` the supervisor's log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from orchestrator_adapter import Factory, OperatorGraph, RestartPolicy, SupervisionPolicy, WiredEnds, source_of
from orchestrator_adapter.prefect_flow import Reporting, compile_flow, run_flow
from orchestrator_adapter.process.pipeline import Pipeline

ORDERS = ("fail", "panic", "exhaust", "hang", "spin", "end")
"""One fault; a bug; a fault in every instance from now on; work that never ends, or that never awaits; the stream's end."""


class Toy(BaseModel):
    """What the toy does; all its files are in ``folder``."""

    folder: Path = Path("run/toy")  # Prefect's form wants a default
    fail_every: int | None = None
    restarts: int | None = None
    grace_s: float = 5.0
    pause_s: float = 0.01
    look_every_s: float = 0.5
    patience_s: float = 60.0
    patience_when_stopped_s: float = 10.0


class _Work:
    """Passes numbers on, and follows the orders."""

    def __init__(self, toy: Toy) -> None:
        self._toy = toy
        self._done: set[int] = set()
        self._exhausted = False

    async def __call__(self, ends: WiredEnds) -> None:
        self._note(ends, "began")
        try:
            self._need_port()
            async for batch in ends.receiver.batches(1):
                for number, order in batch:
                    if number not in self._done:
                        self._done.add(number)
                        await self._obey(number, order)
                ends.commit(batch, acknowledge=len(batch))
                await ends.flush()
        except OSError:
            self._note(ends, "failed")
            raise

    def _need_port(self) -> None:
        if self._exhausted:
            raise OSError("the port is taken, for good")

    async def _obey(self, number: int, order: str) -> None:
        every = self._toy.fail_every
        if order == "fail" or (every is not None and number % every == every - 1):
            raise OSError(f"a fault at {number}")
        if order == "exhaust":
            self._exhausted = True
            raise OSError("the port is taken")
        if order == "panic":
            raise KeyError("a bug")
        if order == "hang":
            await asyncio.Event().wait()
        while order == "spin":
            pass

    def _note(self, ends: WiredEnds, what: str) -> None:
        line = json.dumps({"instance": ends.instance, "what": what, "at_ns": time.monotonic_ns()})
        with (self._toy.folder / "instances.jsonl").open("a") as file:
            file.write(line + "\n")


def _keep(toy: Toy) -> Factory:
    async def run(ends: WiredEnds) -> None:
        with (toy.folder / "kept").open("a") as file:
            async for batch in ends.receiver.batches():
                file.writelines(f"{number}\n" for number, _ in batch)
                file.flush()
                os.fsync(file.fileno())
                ends.receiver.acknowledge(len(batch))

    return run


async def _numbers(toy: Toy) -> AsyncIterator[tuple[int, str]]:
    number = 0
    while (order := _order(toy.folder)) != "end":
        yield number, order
        number += 1
        await asyncio.sleep(toy.pause_s)


def _order(folder: Path) -> str:
    try:
        path = folder / "order"
        order = path.read_text()
        path.unlink()
    except FileNotFoundError:
        return ""
    assert order in ORDERS, f"expected one of {ORDERS}, got {order!r}"
    return order


def give(folder: Path, order: str) -> None:
    """Give a running toy an order. It takes the order with its next number."""
    draft = folder / "order.new"
    draft.write_text(order)
    draft.replace(folder / "order")


def toy_pipeline(toy: Toy) -> Pipeline:
    toy.folder.mkdir(parents=True, exist_ok=True)
    decisions = logging.getLogger("orchestrator_adapter.supervisor")
    decisions.addHandler(logging.FileHandler(toy.folder / "decisions.jsonl"))
    decisions.setLevel(logging.INFO)
    policy = RestartPolicy.always(backoff=None)  # a random delay would hide what a restart costs
    if toy.restarts is not None:
        policy = RestartPolicy.bounded(toy.restarts, timedelta(minutes=10))
    graph = OperatorGraph("toy")
    source = graph.add_source("numbers", source_of(_numbers(toy)))
    work = graph.add_operator("work", _Work(toy), restart_policy=policy)
    sink = graph.add_sink("keep", _keep(toy), restart_policy=RestartPolicy.never())
    graph.connect(source, work, 64)
    graph.connect(work, sink, 64)
    return Pipeline(
        graph,
        policy=SupervisionPolicy(grace=timedelta(seconds=toy.grace_s)),
        report=toy.folder / "report.json",
        claims=(f"file://{toy.folder / 'kept'}",),
    )


def reporting(toy: Toy) -> Reporting:
    return Reporting(
        directory=toy.folder / "prefect",
        status_every=timedelta(seconds=1),
        look_every=timedelta(seconds=toy.look_every_s),
        patience=timedelta(seconds=toy.patience_s),
        patience_when_stopped=timedelta(seconds=toy.patience_when_stopped_s),
    )


toy = compile_flow("toy-stream", Toy, toy_pipeline, reporting=reporting, description="Counts, and fails on request.")


def main() -> int:
    """Run it in this process, with the settings given as JSON; its exit code is the process's."""
    settings = Toy.model_validate_json(sys.argv[1])
    return asyncio.run(run_flow(toy, settings)).exit_code


if __name__ == "__main__":
    sys.exit(main())
