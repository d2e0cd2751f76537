"""Helpers for tests and benchmarks of the whole ``sda-fusion``: ports and folders, a simulator, a track to replay, the audit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from flows.local_prefect.processes import free_ports
from flows.pipelines import FUSION
from flows.settings.fusion import SensorSettings
from flows.settings.simulated import simulated_sensors
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.process import Pipeline, RunOutcome, StopRequests, run_pipeline
from orchestrator_adapter.storage.jsonl import read_lines
from sda_ops.catalog import synthetic_catalog
from sda_ops.simulate.catalog_file import omm_json
from sda_ops.simulate.config import Noise
from sda_ops.simulate.places import RADAR_SITES
from sda_ops.simulate.tracks import track_tdm
from sda_ops.simulate.world import World
from tests.helpers.running import counter, eventually
from tests.helpers.support import flows_process, listens, wait_until

Conduct: TypeAlias = Callable[[BuiltGraph], Coroutine[Any, Any, None]]
"""Acts on a graph while it runs."""

TRACKER = "CAVALIER"
"""The participant in the file of the replayed track. Its site is that of the simulator's ``radar-4``."""

_OBJECTS = 1_000
_TRACK_S, _TRACK_HZ, _PACE = 3_000.0, 0.2, 600.0


@dataclass(frozen=True, slots=True)
class FusionPlace:
    """Free ports, and a folder for the catalogue and all output."""

    folder: Path
    radars: tuple[int, ...]
    archives: tuple[int, ...]
    isls: tuple[int, ...]

    @classmethod
    def free(cls, folder: Path, *, radars: int = 3, archives: int = 2, isls: int = 2) -> FusionPlace:
        """Find the ports, and create the folder if it is missing."""
        ports = free_ports(radars + archives + isls)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            folder,
            radars=tuple(ports[:radars]),
            archives=tuple(ports[radars : radars + archives]),
            isls=tuple(ports[radars + archives :]),
        )

    @property
    def catalog(self) -> Path:
        """The catalogue for simulator and pipeline."""
        return self.folder / "catalog.json"

    @property
    def track(self) -> Path:
        """The replayed track."""
        return self.folder / "track.tdm"

    @property
    def truth(self) -> Path:
        """The simulator's record of sent frames."""
        return self.folder / "truth.jsonl"

    def settings(self, **others: Any) -> dict[str, Any]:
        """Settings of a pipeline at this place, updated with ``others``."""
        stations = [dict(sensor) for sensor in simulated_sensors()]
        tracker = next(station for station in stations if station["source_id"] == "radar-4")
        archive = {"poll_interval_s": 0.05, "retry": {"initial_s": 0.05, "cap_s": 0.5}, "breaker": {"cooldown_s": 0.5}}
        return {
            "radars": [{"name": f"radar-{n:02}", "port": port} for n, port in enumerate(self.radars, 1)],
            "opticals": [
                {"name": f"optical-{n:02}", "url": f"http://127.0.0.1:{port}/observations", **archive}
                for n, port in enumerate(self.archives, 1)
            ],
            "isls": [{"name": f"isl-{n:02}", "port": port} for n, port in enumerate(self.isls, 1)],
            "sensors": [
                *stations,
                dict(SensorSettings(**{**tracker, "source_id": f"tdm-{TRACKER}", "replayed": True})),
            ],
            "catalog": {"file": str(self.catalog)},
            "audit": {"directory": str(self.folder / "audit"), "commit_every_s": 0.1},
            "spill": {"directory": str(self.folder / "spill")},
            "screening": {"enabled": False, "directory": str(self.folder / "screening")},
            "alerts": {"directory": str(self.folder / "alerts")},
            "dead_letters": {"directory": str(self.folder / "dead-letters")},
            "control_plane": {"enabled": False},
            "prefect": {"directory": str(self.folder / "prefect")},
            "shutdown": {"grace_s": 60.0},  # a busy machine also drains to the end
            "report": str(self.folder / "report.json"),
            **others,
        }

    def prepare_a_busy_worker(self, *, seed: int) -> tuple[dict[str, Any], int]:
        """Write a catalogue, and a long track that is replayed so fast that it needs orbits thirty times a second.

        Returns the settings of the pipeline, and the number of observations of the track.
        """
        now_ns = time.time_ns()
        element_sets = synthetic_catalog(objects=_OBJECTS, epoch_ns=now_ns)
        self.catalog.write_bytes(omm_json(element_sets))
        track = track_tdm(
            World(element_sets),
            site=RADAR_SITES[3],
            participant=TRACKER,
            start_ns=now_ns,
            seconds=_TRACK_S,
            rate_hz=_TRACK_HZ,
            noise=Noise(),
            seed=seed,
        )
        self.track.write_text(track, encoding="utf-8")
        replay = {
            "files": [str(self.track)],
            "pace": _PACE,
            "sigma_range_m": 30.0,
            "sigma_range_rate_m_s": 0.3,
        }
        return self.settings(replay=replay), track.count("\nRANGE = ")

    def simulator(self, *options: str) -> subprocess.Popen[bytes]:
        """Start ``python -m flows simulate`` with the sensors of this pipeline. It sends after `go`."""
        targets = (("--radar", self.radars), ("--archive", self.archives), ("--isl", self.isls))
        where = [word for option, ports in targets for port in ports for word in (option, f"127.0.0.1:{port}")]
        process = flows_process(
            ["simulate", *where, "--catalog", str(self.catalog), "--hold", *options],
            {},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: all(map(listens, self.archives)), "the archives")
        return process

    def correlated(self) -> Counter[str]:
        """The number of correlations of each observation in the audit."""
        return self._ids("correlations/correlations")

    def observed(self) -> Counter[str]:
        """The number of rows of each observation in the audit."""
        return self._ids("observations/observations")

    def _ids(self, table: str) -> Counter[str]:
        # It takes a third of a second to import, and not every test reads the audit.
        import pyarrow.dataset as ds  # noqa: PLC0415

        rows = ds.dataset(self.folder / "audit" / table, partitioning="hive").to_table(columns=["observation_id"])
        return Counter(rows.column("observation_id").to_pylist())

    def dead_letters(self) -> list[dict[str, Any]]:
        """All dead letters, oldest first."""
        return [json.loads(line) for line in read_lines(self.folder / "dead-letters", "dead-letters")]


def go(simulator: subprocess.Popen[bytes]) -> None:
    """Let the simulator's sensors send."""
    assert simulator.stdin is not None
    simulator.stdin.write(b"go\n")
    simulator.stdin.close()


async def all_listen(graph: BuiltGraph) -> None:
    """Wait until every source listens, so that nothing sent is lost."""
    sources = [f"{kind}-{n:02}" for kind, count in (("radar", 3), ("isl", 2)) for n in range(1, count + 1)]
    await eventually(lambda: all(counter(graph, "port", source) for source in sources), "every source listens")


async def stopped_at_work(pool: Bulkhead) -> int:
    """Stop the only worker (SIGSTOP); returns its pid as soon as it has a call that it does not answer."""
    (pid,) = pool.statistics().pids.values()
    os.kill(pid, signal.SIGSTOP)
    checks = Counter[int]()

    def stuck() -> bool:
        # An answer that it sent before may still be in transit.
        statistics = pool.statistics()
        checks[statistics.answered] += statistics.in_flight > 0
        return checks[statistics.answered] > 20

    await eventually(stuck, "a call that is not answered")
    return pid


async def conducted(pipeline: Pipeline, conduct: Conduct) -> RunOutcome:
    """Run the pipeline without Prefect, as in `conducted_run`."""
    return await conducted_run(partial(run_pipeline, pipeline, stop=StopRequests()), conduct)


async def conducted_run(run: Callable[..., Awaitable[RunOutcome]], conduct: Conduct) -> RunOutcome:
    """Run ``run(on_built=…)`` until ``conduct``, which runs beside it, returns. An error of ``conduct`` is raised at the end."""
    conducting: list[asyncio.Task[None]] = []

    async def to_the_end(graph: BuiltGraph) -> None:
        try:
            await conduct(graph)
        finally:
            graph.request_shutdown("the test is over")

    def built(graph: BuiltGraph) -> None:
        conducting.append(asyncio.get_running_loop().create_task(to_the_end(graph)))

    outcome = await run(on_built=built)
    await asyncio.gather(*conducting)
    return outcome


def fusion_process(arguments: Sequence[str], settings: Mapping[str, Any], **options: Any) -> subprocess.Popen[bytes]:
    """Start ``python -m flows …`` with settings of ``sda-fusion`` in its environment."""
    variables = {f"{FUSION.prefix}{name.upper()}": _variable(value) for name, value in settings.items()}
    return flows_process(arguments, {}, extra=variables, **options)


def _variable(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
