"""For tests and benchmarks of whole processes: ports, settings, bounded waits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sda_ops.wire import radar

ROOT = Path(__file__).parents[2]
SDA_DATA_DIR = Path(os.environ.get("SDA_DATA_DIR", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where one pipeline listens and polls."""

    radars: tuple[int, ...]
    archive: int
    isl: int

    @classmethod
    def free(cls, *, radars: int = 2) -> Addresses:
        """Ports that are free now."""
        from flows.local_prefect.processes import free_ports  # noqa: PLC0415 - httpx and friends only where they are needed

        ports = free_ports(radars + 2)
        return cls(tuple(ports[2:]), ports[0], ports[1])

    def settings(self, folder: Path) -> dict[str, Any]:
        """Settings for a pipeline here that keeps everything in ``folder``."""
        return {
            "radars": [{"name": f"radar-{n:02}", "port": port} for n, port in enumerate(self.radars, 1)],
            "optical": {
                "url": f"http://127.0.0.1:{self.archive}/observations",
                "poll_interval_s": 0.05,
                # A pipeline that starts before its archive must not wait half a minute for it.
                "retry": {"initial_s": 0.05, "cap_s": 0.5},
                "breaker": {"cooldown_s": 0.5},
            },
            "isl": {"port": self.isl},
            "event_log": {"directory": str(folder / "log")},
            "dead_letters": {"directory": str(folder / "dead-letters")},
            "control_plane": {"port": 0},
            "prefect": {"directory": str(folder / "prefect"), "status_every_s": 2, "look_every_s": 1},
            "report": str(folder / "report.json"),
        }

    def simulator(self) -> list[str]:
        """The simulator's options that send to these addresses."""
        radars = [word for port in self.radars for word in ("--radar", f"127.0.0.1:{port}")]
        return [*radars, "--archive", f"127.0.0.1:{self.archive}", "--isl", f"127.0.0.1:{self.isl}"]


def environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """This process's environment without Prefect's variables, and with ``settings`` as variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SDA_INGEST__"))}
    return kept | {
        f"SDA_INGEST__{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }


def flows_process(
    arguments: Sequence[str], settings: Mapping[str, Any], *, extra: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """``python -m flows …`` as a process; ``extra`` are more variables of its environment."""
    command = [sys.executable, "-m", "flows", *arguments]
    return subprocess.Popen(command, env=environment(settings) | dict(extra or {}), cwd=ROOT, **options)


def report_of(folder: Path) -> dict[str, Any]:
    """The report that a run has left there."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def listens(port: int) -> bool:
    """Whether the port accepts TCP connections."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def send_detections(port: int, count: int) -> None:
    """Send valid datagrams to a radar's port, no two the same."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            frame = radar.encode(
                array_id=1, target_track_id=number, timestamp_ns=time.time_ns(), range_m=1e6, sigma_range_m=30.0
            )
            sock.sendto(frame, ("127.0.0.1", port))


def wait_until(condition: Callable[[], bool], what: str, *, limit_s: float = 60.0) -> None:
    """``eventually`` without an event loop: block until ``condition`` holds; after ``limit_s`` it fails."""
    deadline = time.monotonic() + limit_s
    began = time.monotonic()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_s:g} s in vain: {what}")
        time.sleep(max(0.01, 3 * (time.monotonic() - began)))
        began = time.monotonic()
