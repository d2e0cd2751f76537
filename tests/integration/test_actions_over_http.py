"""A real ``sda-ingest`` with a radar under load, paused, resumed and drained over HTTP; the ledger is the oracle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sda_ops.sinks.event_log import read_event_log
from tests.helpers.support import Addresses, flows_process, report_of, send_detections, wait_until

TOKEN = "only-for-this-one-test"
LOAD = 500  # datagrams in one burst


class Plane:
    """A client of the run's control plane."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def act(self, action: str, *, token: str = TOKEN) -> httpx.Response:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        return self._client.post(f"/actions/{action}", headers=headers)

    def json(self, page: str) -> Any:
        return self._client.get(page).json()

    def text(self, page: str) -> str:
        answer = self._client.get(page)
        assert answer.status_code == 200
        return answer.text

    def ingested(self) -> float:
        return self.sample("ledger_items", term="ingested")

    def sample(self, name: str, **labels: str) -> float:
        metrics = self._client.get("/metrics").text
        (found,) = (
            sample.value
            for family in text_string_to_metric_families(metrics)
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        )
        return float(found)


@pytest.mark.long
def test_a_radar_under_load_is_paused_resumed_and_drained_over_http(tmp_path: Path) -> None:
    """While it is paused the ledger stands still under load, and ``/health`` says why. Every ingested observation is in the log."""
    addresses = Addresses.free(radars=1)
    settings = addresses.settings(tmp_path)
    settings["control_plane"] |= {"actions": True, "token": "env:TOKEN_OF_THE_TEST"}
    process = flows_process(
        ["ingest", "--no-api", "--quiet"], settings, extra={"TOKEN_OF_THE_TEST": TOKEN}, stderr=subprocess.PIPE
    )
    lines: list[str] = []
    reading = threading.Thread(target=_read, args=(process, lines))
    stop_load = threading.Event()
    load = threading.Thread(target=_load, args=(addresses.radars[0], stop_load))
    try:
        reading.start()
        wait_until(lambda: bool(_address(lines)), "the address of the control plane")
        plane = Plane(_address(lines))
        load.start()
        wait_until(lambda: plane.ingested() > LOAD, "the radar ingests")

        assert plane.act("pause?source=radar-01", token=TOKEN + "x").status_code == 401
        assert plane.json("/health")["status"] == "ok"
        assert plane.act("pause?source=radar-01").json() == {"result": "source 'radar-01' is paused"}
        wait_until(lambda: plane.sample("ledger_items", term="in_flight") == 0, "what was ingested is delivered")
        stood_at = plane.ingested()
        health = plane.json("/health")
        assert health["status"] == "degraded"
        assert "source 'radar-01' is paused (requested by 127.0.0.1)" in health["reasons"][0]
        assert plane.sample("source_paused", source="radar-01") == 1
        dropped = plane.sample("source_kernel_drops_total", source="radar-01")
        wait_until(lambda: plane.sample("source_kernel_drops_total", source="radar-01") > dropped, "its buffer is full")
        assert plane.ingested() == stood_at

        for page in ("/", "/graph", "/metrics", "/health", "/dead-letters"):
            assert TOKEN not in plane.text(page)

        assert plane.act("resume?source=radar-01").json() == {"result": "source 'radar-01' is resumed"}
        wait_until(lambda: plane.ingested() > stood_at + LOAD, "it ingests again")
        assert plane.json("/health")["status"] == "ok"

        assert plane.act("pause?source=radar-01").status_code == 200  # the drain ends this pause
        assert plane.act("drain").json() == {"result": "the graph drains"}
        assert process.wait(30) == 0
    finally:
        stop_load.set()
        if process.poll() is None:
            process.kill()
            process.wait()
        reading.join()
        if load.ident is not None:
            load.join()

    outcome = report_of(tmp_path)
    assert (outcome["event"], outcome["exit_code"]) == ("ShutDown", 0)
    assert outcome["cause"] == "requested by 127.0.0.1"
    assert outcome["ledger_holds"]
    ledger = outcome["ledger"]
    assert ledger["ingested"] == ledger["written"] + ledger["duplicates"] + ledger["rejected"] > stood_at + LOAD
    assert ledger["in_flight"] == ledger["dead_lettered"] == outcome["undelivered"] == 0
    assert sum(1 for _ in read_event_log(tmp_path / "log")) == ledger["written"]
    actions = [json.loads(line) for line in lines if '"event": "action"' in line or '"event":"action"' in line]
    assert [each["action"] for each in actions] == [
        "pause source=radar-01",
        "resume source=radar-01",
        "pause source=radar-01",
        "drain",
    ]
    assert TOKEN not in "".join(lines)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []


def _read(process: subprocess.Popen[bytes], lines: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.decode())
        sys.stderr.write(line.decode())


def _address(lines: list[str]) -> str:
    for line in tuple(lines):
        if '"control_plane"' in line and (found := re.search(r"http://127\.0\.0\.1:\d+", line)):
            return found[0]
    return ""


def _load(port: int, stop: threading.Event) -> None:
    while not stop.wait(0.01):
        send_detections(port, LOAD)
