"""The observers of a run: the log, ``/metrics``, Prometheus with the rules of ``deploy/``. The page has its own driver."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeAlias

import httpx
from prometheus_client.parser import text_string_to_metric_families

from flows.local_prefect.processes import free_ports
from tests.helpers.support import ROOT, wait_until

Samples: TypeAlias = Mapping[str, float]
"""``name{label="value"}``, the labels sorted, to value."""

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log: when it was written (Unix time, s), and its fields."""

    at: float
    fields: dict[str, Any]

    def __str__(self) -> str:
        """The event with the fields that say most."""
        kept = {
            name: str(value)
            for name in ("operator", "breaker", "bulkhead", "kind", "state", "cause", "error", "reason", "message")
            if (value := self.fields.get(name))
        }
        return " ".join((f"`{self.fields['event']}`", *(f"{name}={value}" for name, value in kept.items())))


class Log:
    """Reads the process's log as it is written, and keeps it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: list[Line] = []
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            with suppress(ValueError, KeyError, TypeError):
                fields = json.loads(line)
                self._lines.append(Line(datetime.fromisoformat(fields["time"]).timestamp(), fields))

    def close(self) -> None:
        """Wait for its end."""
        self._thread.join()
        self._stream.close()

    def first(self, holds: Callable[[dict[str, Any]], object], *, since: float = 0.0) -> Line | None:
        """The first line since then for which it holds."""
        return next((line for line in tuple(self._lines) if line.at >= since and holds(line.fields)), None)

    def wait(self, holds: Callable[[dict[str, Any]], object], what: str) -> Line:
        """The first such line, once it is there."""
        wait_until(lambda: self.first(holds) is not None, what)
        line = self.first(holds)
        assert line is not None
        return line


def read_metrics(url: str) -> Samples:
    """All samples of ``/metrics`` now."""
    text = httpx.get(f"{url}/metrics", timeout=5).text
    return {
        _key(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _key(name: str, labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
    return f"{name}{{{inner}}}" if inner else name


class Metrics:
    """Asks ``/metrics`` ten times a second until ``holds(before, now)`` returns what to show, or the run has ended."""

    def __init__(self, url: str, holds: Callable[[Samples, Samples], str | None]) -> None:
        self.at: float | None = None
        self.says = ""
        self._url, self._holds = url, holds
        self._before = read_metrics(url)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._closed.wait(_EVERY_S):
            try:
                found = self._holds(self._before, read_metrics(self._url))
            except httpx.ConnectError:
                found = "no answer any more: the run has ended"
            except httpx.HTTPError:
                continue
            if found:
                self.at, self.says = time.time(), found
                return

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert whose condition holds. ``since``: from when on; ``for_s``: how long it must hold until the alert fires."""

    name: str
    about: str
    since: float
    for_s: float
    severity: str


class Prometheus:
    """A real Prometheus that scrapes one pipeline once a second and evaluates the rules as often."""

    def __init__(self, url: str) -> None:
        self._url = url

    def alerts(self) -> list[Alert]:
        """The alerts that are pending or firing."""
        groups = httpx.get(f"{self._url}/api/v1/rules?type=alert", timeout=10).json()["data"]["groups"]
        return [
            Alert(
                name=rule["name"],
                about=next(
                    (
                        alert["labels"][label]
                        for label in ("operator", "breaker", "source", "sink", "edge", "bulkhead")
                        if label in alert["labels"]
                    ),
                    "",
                ),
                since=datetime.fromisoformat(alert["activeAt"]).timestamp(),
                for_s=float(rule["duration"]),
                severity=str(rule["labels"].get("severity", "")),
            )
            for group in groups
            for rule in group["rules"]
            for alert in rule["alerts"]
        ]


@contextmanager
def prometheus(pipeline_url: str, job: str, folder: Path) -> Iterator[Prometheus]:
    """Start it for one pipeline."""
    (port,) = free_ports(1)
    target = pipeline_url.removeprefix("http://")
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
        f"rule_files: ['{RULES}']\n"
        f"scrape_configs: [{{job_name: {job}, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{url}/-/ready", timeout=2).status_code == httpx.codes.OK
        return False

    try:
        wait_until(ready, f"Prometheus; see {folder / 'prometheus.log'}")
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait()
