"""A whole ``sda-fusion`` that alerts real subscribers: every part is a process of its own, as a user starts them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np

from flows.local_prefect.processes import free_ports
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.records.risk import ConjunctionRisk
from sda_ops.simulate.staged import StagedPassage, read_staged
from tests.helpers.fusion import FusionPlace, fusion_process
from tests.helpers.support import flows_process, listens, wait_until

STOP_S = 60.0
_RISK = msgspec.json.Decoder(ConjunctionRisk)


class Received(NamedTuple):
    """One alert that a subscriber has acted on."""

    conjunction_id: str
    revision: int
    received_ns: int


class Alerted(NamedTuple):
    """One revision in the outbox, and when a subscriber acknowledged it.

    Attributes:
        conjunction_id: Of all its revisions.
        revision: From 0 on.
        risk: What it says.
        state: Of its delivery.
        changed_ns: When that state began: for an acknowledged delivery, the time of the acknowledgement.
    """

    conjunction_id: str
    revision: int
    risk: ConjunctionRisk
    state: str
    changed_ns: int

    @property
    def latency_s(self) -> float:
        """From the arrival of the evidence that caused it to the acknowledgement."""
        return (self.changed_ns - self.risk.evidence_timestamp) / NS_PER_S

    def is_of(self, passage: StagedPassage) -> bool:
        """Whether it is about this staged passage."""
        estimate = self.risk.estimate
        pair = estimate.catalog_number_first, estimate.catalog_number_second
        return pair == passage.numbers and abs(estimate.tca_timestamp - passage.tca_timestamp) < 5 * NS_PER_S


@dataclass(frozen=True, slots=True)
class AlertingPlace:
    """The place of a pipeline, and of its subscribers.

    Attributes:
        fusion: Ports and folder of the pipeline and its sensors.
        subscribers: The port of each, by its name.
        control_port: Of the pipeline's health and metrics.
    """

    fusion: FusionPlace
    subscribers: Mapping[str, int]
    control_port: int

    @classmethod
    def free(cls, folder: Path, *subscribers: str) -> AlertingPlace:
        """Find the ports."""
        control_port, *ports = free_ports(1 + len(subscribers))
        return cls(FusionPlace.free(folder), dict(zip(subscribers, ports, strict=True)), control_port)

    @property
    def staged(self) -> Path:
        """The truth about the staged passages."""
        return self.fusion.folder / "staged.jsonl"

    @property
    def outbox(self) -> Path:
        """The outbox of the pipeline."""
        return self.fusion.folder / "alerts" / "alerts.sqlite"

    def passages(self) -> list[StagedPassage]:
        """The staged passages; none before the simulator has made them."""
        return read_staged(self.staged) if self.staged.exists() else []

    def table(self, subscriber: str) -> Path:
        """A subscriber's table."""
        return self.fusion.folder / f"{subscriber}.sqlite"

    def settings(self, *, rules: Mapping[str, Mapping[str, Any]] | None = None, **others: Any) -> dict[str, Any]:
        """The pipeline's own settings except for places and ports, with those of ``rules`` for each subscriber."""
        folder = self.fusion.folder
        subscribers = [
            {"name": name, "url": f"http://127.0.0.1:{port}/alerts", **(rules or {}).get(name, {})}
            for name, port in self.subscribers.items()
        ]
        return self.fusion.settings(
            **{
                "catalog": {"file": str(self.fusion.catalog), "refresh_every_s": 1},
                "screening": {"directory": str(folder / "screening")},
                "alerts": {"directory": str(folder / "alerts"), "subscribers": subscribers},
                "control_plane": {"port": self.control_port},
                **others,
            }
        )

    @contextmanager
    def subscriber(self, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A subscriber that runs during the context."""
        port = self.subscribers[name]
        arguments = ["subscriber", "--port", str(port), "--table", str(self.table(name)), *options]
        with (
            (self.fusion.folder / f"{name}.log").open("ab") as log,
            ended(flows_process(arguments, {}, stdout=log, stderr=log)) as process,
        ):
            wait_until(lambda: listens(port) or process.poll() is not None, f"subscriber {name}")
            assert process.poll() is None, (self.fusion.folder / f"{name}.log").read_text()
            yield process

    @contextmanager
    def pipeline(self, settings: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        """``python -m flows fusion --no-api`` during the context, listening. Its log is appended to a file."""
        with (
            (self.fusion.folder / "fusion.log").open("ab") as log,
            ended(fusion_process(["fusion", "--no-api", "--quiet"], settings, stdout=log, stderr=log)) as process,
        ):
            wait_until(
                lambda: all(map(listens, self.fusion.isls)) or process.poll() is not None,
                "the pipeline listens",
                limit_s=120.0,
            )
            assert process.poll() is None, (self.fusion.folder / "fusion.log").read_text()[-2_000:]
            yield process

    def metrics(self) -> dict[str, float]:
        """The pipeline's metrics, by name and labels; empty while it does not answer."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self.control_port}/metrics", timeout=10.0).text
        except httpx.TransportError:
            return {}
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in samples}

    def received(self, subscriber: str) -> list[Received]:
        """Every alert that the subscriber has acted on, in that order."""
        if not self.table(subscriber).exists():
            return []
        with closing(sqlite3.connect(self.table(subscriber))) as db:
            rows = db.execute("SELECT conjunction_id, revision, received_ns FROM alerts ORDER BY number").fetchall()
        return [Received(*row) for row in rows]

    def alerted(self, subscriber: str) -> list[Alerted]:
        """Every revision in the outbox, in order of recording, with its delivery to the subscriber."""
        with closing(sqlite3.connect(self.outbox)) as db:
            rows = db.execute(
                "SELECT c.id, a.revision, a.risk, d.state, d.changed_timestamp FROM alerts a "
                "JOIN conjunctions c ON c.number = a.conjunction JOIN deliveries d ON d.alert = a.number "
                "JOIN subscribers s ON s.number = d.subscriber WHERE s.name = ? ORDER BY a.number",
                (subscriber,),
            ).fetchall()
        return [Alerted(identity, revision, _RISK.decode(risk), *rest) for identity, revision, risk, *rest in rows]

    def report(self) -> dict[str, Any]:
        """The report of the last run."""
        report: dict[str, Any] = json.loads((self.fusion.folder / "report.json").read_text())
        return report


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Stop the process at the end, if it still runs: with SIGTERM, and after `STOP_S` with SIGKILL."""
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask the process to stop, and wait for it. Returns its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def of_time(element_sets: Sequence[ElementSet], at_ns: int) -> list[ElementSet]:
    """These element sets, their epochs shifted by whole days so that their median is nearest to this UTC time."""
    columns = ElementColumns.of(element_sets)
    days = round((at_ns - int(np.median(columns.epoch_ns))) / NS_PER_DAY)
    shifted = replace(columns, jdsatepoch=columns.jdsatepoch + days, sgp4_epoch_days=columns.sgp4_epoch_days + days)
    return [
        ElementSet(each.catalog_number, each.name, satrec, epoch_days)
        for each, satrec, epoch_days in zip(
            element_sets, shifted.satrecs(), shifted.sgp4_epoch_days.tolist(), strict=True
        )
    ]
