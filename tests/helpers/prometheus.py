"""A real Prometheus for tests: started with a configuration, asked by its HTTP API, stopped at the end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its stubs do not

from flows.local_prefect.processes import free_ports
from tests.helpers.support import ROOT, wait_until

DEPLOYED = ROOT / "deploy" / "prometheus"
AS_DEPLOYED: Callable[[str], str] = str

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (Debian: make debian-packages)",
)


def shortened(rules: str) -> str:
    """The rules for a test of seconds: ranges of 5 s instead of minutes, ``for`` one second at most, and silence after 4 s.

    Rules of hours stay as they are. Scrapes are frequent as well.
    """
    rules = re.sub(r"\[\d+m\]", "[5s]", rules)
    rules = re.sub(r"for: \d+[ms]", "for: 1s", rules)
    assert "> 120" in rules
    return rules.replace("> 120", "> 4")


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API. An error of a query fails the test with its text."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def alerts(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Those that fire, by name and what they concern: an operator, a source, a breaker, or nothing."""
        found = {}
        for alert in self.get("alerts")["alerts"]:
            labels = alert["labels"]
            concerns = next((labels[each] for each in ("operator", "source", "breaker") if each in labels), "")
            if alert["state"] == "firing":
                found[labels["alertname"], concerns] = alert
        return found

    def up(self) -> dict[str, str]:
        """The health of each target, by job."""
        return {each["labels"]["job"]: each["health"] for each in self.get("targets")["activeTargets"]}


@contextmanager
def prometheus(
    folder: Path,
    targets: Mapping[str, str],
    *,
    rules: Callable[[str], str] = AS_DEPLOYED,
    extra: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Prometheus]:
    """Scrape ``targets`` (job: address) and the jobs ``extra`` with the deployed rules, changed by ``rules``; yields when it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"] = [
        *({"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()),
        *extra,
    ]
    (folder / "rules.yml").write_text(rules((DEPLOYED / "rules.yml").read_text()))
    (folder / "prometheus.yml").write_text(json.dumps(config))
    checked = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # Also a target that does not listen yet keeps its port.
    taken = {
        address.rpartition(":")[2]
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for address in group["targets"]
    }
    port = next(port for port in free_ports(1 + len(taken)) if str(port) not in taken)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    server = Prometheus(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            return httpx.get(f"{server.url}/-/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, "Prometheus answers")
        yield server
    finally:
        process.kill()
        process.wait(30)
