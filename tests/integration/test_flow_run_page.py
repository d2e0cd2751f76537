"""The flow-run page of a running pipeline: what it draws, and that a browser shows it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from matplotlib.image import imread

from bench.flow_run_page import photograph, restarted_ingest
from flows.settings.ingest import IngestSettings
from flows.topologies.ingest import build_topology
from tests.helpers.browser import chromium, headless
from tests.helpers.prefect_server import PrefectServer

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]

RUNNING, FAILED = (9, 67, 155), (222, 5, 41)  # the bars of Prefect's page, RGB
SHORTEST_BAR = 3  # pixels


def test_the_page_of_a_running_pipeline_shows_every_operator_its_edges_and_a_restart(
    shared_prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """The graph that the page draws is the topology, plus the failed instance, which leads to the one that took over."""
    with restarted_ingest(shared_prefect_server, tmp_path) as (flow_run, settings):
        plan = build_topology(IngestSettings.model_validate(settings)).validate()
        now = {vertex.name: "optical #2" if vertex.name == "optical" else vertex.name for vertex in plan.order}
        states = {**dict.fromkeys(now.values(), "RUNNING"), "optical": "FAILED"}
        graph = graph_that_shows(states, f"{shared_prefect_server.api_url}/flow_runs/{flow_run}/graph-v2")
        if chromium() is not None:
            page = f"{shared_prefect_server.api_url.removesuffix('/api')}/runs/flow-run/{flow_run}"
            with headless() as browser:
                photograph(browser, page, tmp_path / "page.png")
    nodes: dict[str, dict[str, Any]] = dict(graph["nodes"])
    label = {key: node["label"] for key, node in nodes.items()}
    assert sorted(label.values()) == sorted([*now.values(), "optical"])
    drawn = {(label[parent["id"]], label[key]) for key, node in nodes.items() for parent in node["parents"]}
    assert drawn == {(now[edge.upstream.name], now[edge.downstream.name]) for edge in plan.edges} | {
        ("optical", "optical #2")
    }
    assert {label[key]: node["state_type"] for key, node in nodes.items()} == states
    if chromium() is None:
        pytest.skip("no Chromium to look with (scripts/debian-packages.sh installs it); the graph itself is right")
    running, failed = bars(tmp_path / "page.png", RUNNING), bars(tmp_path / "page.png", FAILED)
    assert running >= len(plan.order)
    assert failed == 1


def graph_that_shows(states: dict[str, str], address: str) -> dict[str, Any]:
    """The graph as soon as it has these states: the server records task runs in any order. After a minute, the graph as it is."""
    deadline = time.monotonic() + 60
    while True:
        graph: dict[str, Any] = httpx.get(address, timeout=60).json()
        shown = {node["label"]: node["state_type"] for _, node in graph["nodes"]}
        if shown == states or time.monotonic() > deadline:
            return graph
        time.sleep(0.1)


def bars(picture: Path, colour: tuple[int, int, int]) -> int:
    """How many bars of a colour there are, one below the other."""
    pixels = np.rint(imread(picture)[:, :, :3] * 255).astype(int)
    rows = (np.abs(pixels - colour).max(axis=2) < 3).sum(axis=1) >= SHORTEST_BAR
    return int(np.count_nonzero(rows[1:] & ~rows[:-1]))
