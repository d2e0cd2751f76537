"""A child that an operator forks keeps nothing that belongs to the run: locks, claims and ports are free when the run ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator_adapter import OperatorGraph, events, for_each, source_of
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.process import Pipeline, run_pipeline
from orchestrator_adapter.storage.dead_letter import DeadLetterFile
from tests.helpers.support import ROOT

PROGRAM = """
import asyncio, logging, multiprocessing, sys, threading
from pathlib import Path
from tests.orchestrator_adapter.process.test_forked_children import pipeline

def fork_once(number, forked=[]):
    if not forked:
        forked.append(multiprocessing.get_context("fork").Process(target=threading.Event().wait))
        forked[0].start()
        print(forked[0].pid, flush=True)

async def numbers():
    number = 0
    while True:
        yield number
        await asyncio.sleep(0.01)

from orchestrator_adapter.process import run_pipeline
asyncio.run(run_pipeline(pipeline(Path(sys.argv[1]), int(sys.argv[2]), numbers(), fork_once)))
"""


def pipeline(folder: Path, port: int, items: object, sink: object) -> Pipeline:
    """A pipeline with a dead-letter store, a claim and a control plane."""
    graph = OperatorGraph("forking")
    source = graph.add_source("source", source_of(items))  # type: ignore[arg-type] # any iterable
    graph.connect(source, graph.add_sink("sink", for_each(sink)), 8)  # type: ignore[arg-type] # any function
    return Pipeline(
        graph,
        dead_letters=lambda: DeadLetterFile(folder),
        control_plane=ControlPlane(port=port),
        claims=(f"file://{folder}", f"http://127.0.0.1:{port}"),
    )


@pytest.fixture
def killed(tmp_path: Path, unused_tcp_port: int) -> Iterator[tuple[Path, int]]:
    """Folder and port of a run that was killed after it had forked a child, which still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(unused_tcp_port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        try:
            process.kill()
            process.wait()
            assert child.is_running()
            yield tmp_path, unused_tcp_port
        finally:
            child.kill()


async def test_the_next_run_starts_while_a_forked_child_of_a_killed_run_lives(killed: tuple[Path, int]) -> None:
    """It gets the store's lock, the claims and the control plane's port."""
    folder, port = killed
    outcome = await run_pipeline(pipeline(folder, port, [1, 2], lambda _: None))
    assert isinstance(outcome.event, events.AllOk)
