"""The demo of each pipeline: ports, files, the simulator's command line, and the check of the output."""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from flows.commands.demo_alerts import HORIZON_S, DemoAlerts
from flows.local_prefect.processes import HOST, LocalServer
from flows.output import print_line
from flows.pipelines import FUSION, INGEST, PipelineKind
from flows.settings.fusion import FusionSettings, SensorSettings
from flows.settings.ingest import IngestSettings
from flows.settings.simulated import simulated_sensors
from orchestrator_adapter.process import ExitCode, RunOutcome
from sda_ops.catalog import synthetic_catalog
from sda_ops.simulate.catalog_file import omm_json, usable_element_sets
from sda_ops.simulate.config import Noise
from sda_ops.simulate.places import RADAR_SITES
from sda_ops.simulate.tracks import track_tdm
from sda_ops.simulate.world import World
from sda_ops.sinks.event_log import read_event_log

NS_PER_S = 1_000_000_000
LINGER_S = 1.0  # after the last observation, so that the poller can fetch the rest
ARCHIVE_LINGER_S = 16.0  # longer than the pipeline runs


@dataclass(frozen=True)
class Stage(ABC):
    """The folder and the ports of one demo."""

    folder: Path
    radar_ports: tuple[int, ...]
    archive_ports: tuple[int, ...]
    isl_ports: tuple[int, ...]
    server_port: int
    control_port: int
    subscriber_port: int

    archives = 1
    rings = 1

    @property
    @abstractmethod
    def kind(self) -> PipelineKind:
        """The pipeline."""

    @property
    def server(self) -> LocalServer:
        """The demo's own Prefect server."""
        return LocalServer(self.folder / "prefect", self.server_port)

    @abstractmethod
    def prepare(self, args: argparse.Namespace) -> None:
        """Write the files that the pipeline reads. May take seconds."""

    @abstractmethod
    def settings(self) -> Any:
        """The pipeline's settings."""

    @property
    def alerts(self) -> DemoAlerts | None:
        """The alerts; ``None`` if the pipeline makes none."""
        return None

    def replayed(self) -> int:
        """The number of observations that come from a file, not from the simulator."""
        return 0

    def screened(self) -> int:
        """The number of items that come from the screening of the catalogue."""
        return 0

    @abstractmethod
    def check_output(self, outcome: RunOutcome) -> int:
        """Compare the output with what was sent, print the result, and return the exit code."""

    def catalog(self, args: argparse.Namespace) -> list[str]:
        """The arguments for the simulator's catalogue."""
        return ["--catalog", str(args.catalog)] if args.catalog is not None else []

    def simulator_arguments(self, args: argparse.Namespace) -> list[str]:
        """The simulator's arguments."""
        targets = (("--radar", self.radar_ports), ("--archive", self.archive_ports), ("--isl", self.isl_ports))
        return [
            "--hold",
            *(word for option, ports in targets for port in ports for word in (option, f"{HOST}:{port}")),
            *("--rate-radar", str(args.rate_radar), "--rate-optical", "50", "--rate-isl", "100", *self.catalog(args)),
            *("--malformed", "0.005", "--impossible", "0.005", "--duplicates", "0.005"),
            *("--duration", str(args.seconds), "--linger", str(ARCHIVE_LINGER_S)),
            *("--truth", str(self.truth), "--summary", str(self.folder / "simulator.json")),
        ]

    @property
    def truth(self) -> Path:
        """The file of all frames that the simulator has sent."""
        return self.folder / "truth.jsonl"

    def _common_settings(self) -> dict[str, Any]:
        radars = [
            {"name": f"radar-{number:02}", "host": HOST, "port": port}
            for number, port in enumerate(self.radar_ports, 1)
        ]
        return {
            "radars": radars,
            "dead_letters": {"directory": self.folder / "dead-letters"},
            "control_plane": {"host": HOST, "port": self.control_port},
            "prefect": {"directory": self.folder / "prefect-runs"},
            "report": self.folder / "report.json",
        }


class IngestStage(Stage):
    """``sda-ingest``."""

    @property
    def kind(self) -> PipelineKind:
        return INGEST

    def prepare(self, args: argparse.Namespace) -> None:
        """Nothing: the simulator generates its own catalogue."""

    def settings(self) -> IngestSettings:
        return IngestSettings.model_validate(
            {
                **self._common_settings(),
                "optical": {"url": f"http://{HOST}:{self.archive_ports[0]}/observations"},
                "isl": {"host": HOST, "port": self.isl_ports[0]},
                "event_log": {"directory": self.folder / "log"},
            }
        )

    def check_output(self, outcome: RunOutcome) -> int:
        observations = sum(1 for _ in read_event_log(self.folder / "log"))
        written = outcome.event.figures.ledger.written
        print_line(f"  read     {observations:,} lines of the log parse back; the ledger says {written:,} were written")
        if observations != written:
            print_line("demo: the log and the ledger disagree")
            return ExitCode.LEDGER_VIOLATION
        return outcome.exit_code


class FusionStage(Stage):
    """``sda-fusion``, with the simulator's catalogue; the track of one radar is replayed from a file."""

    archives = 2
    rings = 2
    _site = RADAR_SITES[3]
    _participant = "CAVALIER"

    @property
    def kind(self) -> PipelineKind:
        return FUSION

    def prepare(self, args: argparse.Namespace) -> None:
        now_ns = time.time_ns()
        if args.catalog is None:
            element_sets = synthetic_catalog(objects=args.objects, epoch_ns=now_ns)
            (self.folder / "catalog.json").write_bytes(omm_json(element_sets))
        else:
            element_sets = usable_element_sets(args.catalog, at_ns=now_ns)
            (self.folder / "catalog.json").write_bytes(args.catalog.read_bytes())
        track = track_tdm(
            World(element_sets),
            site=self._site,
            participant=self._participant,
            start_ns=now_ns,
            seconds=args.seconds,
            rate_hz=10.0,
            noise=Noise(),
            seed=0,
        )
        (self.folder / "track.tdm").write_text(track, encoding="utf-8")

    @property
    def alerts(self) -> DemoAlerts:
        return DemoAlerts(self.folder, self.subscriber_port)

    def catalog(self, args: argparse.Namespace) -> list[str]:  # `prepare` has written it
        catalog = self.folder / "catalog.json"
        return ["--catalog", str(catalog), *self.alerts.staging(catalog, args)]

    def settings(self) -> FusionSettings:
        stations = simulated_sensors()
        replayed = next(sensor for sensor in stations if sensor.source_id == "radar-4")
        track = SensorSettings(**{**dict(replayed), "source_id": f"tdm-{self._participant}", "replayed": True})
        opticals = [
            {"name": f"optical-{number:02}", "url": f"http://{HOST}:{port}/observations"}
            for number, port in enumerate(self.archive_ports, 1)
        ]
        isls = [
            {"name": f"isl-{number:02}", "host": HOST, "port": port} for number, port in enumerate(self.isl_ports, 1)
        ]
        return FusionSettings.model_validate(
            {
                **self._common_settings(),
                "opticals": opticals,
                "isls": isls,
                "replay": {"files": [self.folder / "track.tdm"], "sigma_range_m": 30.0, "sigma_range_rate_m_s": 0.3},
                "sensors": [dict(sensor) for sensor in (*stations, track)],
                "catalog": {"file": self.folder / "catalog.json", "refresh_every_s": 1},
                "audit": {"directory": self.folder / "audit"},
                "spill": {"directory": self.folder / "spill"},
                # A shorter horizon than the default one: the demo's half minute is not for the screening of a day.
                "screening": {"directory": self.folder / "screening", "horizon_s": HORIZON_S},
                "alerts": self.alerts.settings(),
            }
        )

    def replayed(self) -> int:
        entries = (self.folder / "track.tdm").read_text(encoding="utf-8").count("\nRANGE = ")
        return max(1, entries)  # a segment without data is one malformed entry

    def screened(self) -> int:
        return len(self._conjunctions())

    def _conjunctions(self) -> list[dict[str, Any]]:
        return _read(self.folder / "audit/conjunctions/conjunctions", "conjunction_id")

    def check_output(self, outcome: RunOutcome) -> int:
        observations = _read(self.folder / "audit/observations/observations", "observation_id")
        correlations = _read(
            self.folder / "audit/correlations/correlations", "observation_id", "association", "catalog_number"
        )
        updates = _read(self.folder / "audit/correlations/cross_sensor_updates", "retracted")
        conjunctions = self._conjunctions()
        written = outcome.event.figures.ledger.written
        rows = len(observations) + len(correlations) + len(updates) + len(conjunctions)
        revisions, counted = self.alerts.revisions(), outcome.event.figures.counters.get("alerts", {})
        others = sum(counted.get(name, 0) for name in ("repeats", "stale", "below"))
        read = f"{rows:,} rows of the audit and {revisions:,} revisions of alerts read back"
        print_line(f"  read     {read}; the ledger says {written:,} were written")
        print_line(
            f"           {len(observations):,} observations, {len(correlations):,} correlations, {len(updates):,} updates "
            f"({sum(row['retracted'] for row in updates):,} of them retractions), "
            f"{len(conjunctions):,} revisions of conjunctions"
            f"{f'; {others:,} risks made no revision' if others else ''}"
        )
        true_numbers = dict(_sent(self.truth))
        found = Counter(
            _outcome(row, true_numbers[row["observation_id"]])
            for row in correlations
            if row["observation_id"] in true_numbers
        )
        shares = ", ".join(f"{what} {count / found.total():.2%}" for what, count in found.most_common())
        print_line(f"  truth    of {found.total():,} simulated observations: {shares or 'none'}")
        for sentence in self.alerts.result():
            print_line(f"  alerts   {sentence}")
        if rows + revisions + others != written:
            print_line("demo: the ledger disagrees with the audit and the alerts")
            return ExitCode.LEDGER_VIOLATION
        return outcome.exit_code


STAGES: dict[str, type[Stage]] = {"sda-ingest": IngestStage, "sda-fusion": FusionStage}


def _read(folder: Path, *columns: str) -> list[dict[str, Any]]:
    if not folder.is_dir():
        return []
    # Imported here: it takes a third of a second.
    import pyarrow.dataset as ds  # noqa: PLC0415

    rows: list[dict[str, Any]] = ds.dataset(folder, partitioning="hive").to_table(columns=list(columns)).to_pylist()
    return rows


def _sent(truth: Path) -> list[tuple[str, int]]:
    lines = msgspec.json.decode(b"[" + b",".join(truth.read_bytes().splitlines()) + b"]")
    return [(line["observation_id"], line["catalog_number"]) for line in lines if line["observation_id"] is not None]


def _outcome(row: dict[str, Any], true_number: int) -> str:
    if row["association"] != "correlated":
        return str(row["association"])
    return "right" if row["catalog_number"] == true_number else "wrong"
