"""``python -m flows ingest`` with real processes, sockets and signals; the ledger is the oracle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator_adapter.storage.jsonl import read_lines
from sda_ops.sinks.event_log import STEM, read_event_log
from tests.helpers.sizes import small_and_long
from tests.helpers.support import Addresses, flows_process, listens, send_detections, wait_until


@contextmanager
def pipeline(addresses: Addresses, folder: Path, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``sda-ingest`` without a Prefect API. It listens when this yields, and is killed at the end."""
    process = flows_process(
        ["ingest", "--no-api", "--quiet"], addresses.settings(folder) | settings, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        sources = {b"isl", *(f"radar-{n:02}".encode() for n in range(1, len(addresses.radars) + 1))}
        for line in process.stderr:  # an operator logs its spawn; it listens a moment later
            sources -= {name for name in sources if b'"spawn"' in line and b'"%s"' % name in line}
            if not sources:
                break
        wait_until(lambda: listens(addresses.isl), "the ISL listener")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def stop(process: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM; returns the exit code. A process that still runs after 30 s fails the test."""
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode is not None
    return process.returncode


def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return loaded


def test_every_frame_of_three_kinds_of_sensor_is_in_the_log_or_accounted_for(tmp_path: Path) -> None:
    """Every valid id that the simulator sent is in the log once; every malformed or repeated frame has its outcome."""
    addresses = Addresses.free(radars=2)
    with pipeline(addresses, tmp_path) as process:
        simulator = flows_process(
            [
                *("simulate", *addresses.simulator(), "--truth", str(tmp_path / "truth.jsonl")),
                *("--rate-radar", "600", "--rate-optical", "100", "--rate-isl", "200", "--objects", "500"),
                *("--malformed", "0.02", "--impossible", "0.02", "--duplicates", "0.02"),
                *("--duration", "4", "--linger", "60", "--summary", str(tmp_path / "simulator.json")),
            ],
            {},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        truth = tmp_path / "truth.jsonl"
        written = tmp_path / "log" / f"{STEM}-000001.jsonl.part"
        wait_until(lambda: written.is_file() and written.stat().st_size > 1_000_000, "a megabyte of log")
        wait_until(_unchanged(written), "the sensors' end")
        simulator.terminate()
        simulator.wait(30)
        assert stop(process) == 0

    sent = [json.loads(line) for line in truth.read_text().splitlines()]
    good = Counter(row["observation_id"] for row in sent if row["fault"] is None)
    logged = Counter(str(observation.observation_id) for observation in read_event_log(tmp_path / "log"))
    faults = Counter(row["fault"] for row in sent)
    outcome = report(tmp_path)
    assert logged == good
    assert outcome["event"] == "ShutDown"
    assert outcome["ledger"] == {
        "ingested": len(sent),
        "repeated": 0,
        "derived": 0,
        "written": faults[None],
        "duplicates": faults["duplicate"],
        "rejected": faults["impossible"],
        "discarded": 0,
        "absorbed": 0,
        "shed": 0,
        "dead_lettered": faults["malformed"],
        "in_flight": 0,
    }
    assert {kind for row in sent if row["fault"] is None for kind in [row["kind"]]} == {"radar", "optical", "isl"}
    dead = [json.loads(line) for line in read_lines(tmp_path / "dead-letters", "dead-letters")]
    kinds = Counter(letter["kind"] for letter in dead)
    assert kinds == {"Deserialization": faults["malformed"], "ValidationFailed": faults["impossible"]}


def _unchanged(file: Path) -> Any:
    """A condition: the file has not grown between three hundred looks."""
    seen = Counter[int]()

    def unchanged() -> bool:
        seen[file.stat().st_size] += 1
        return seen[file.stat().st_size] > 300

    return unchanged


def test_sigterm_under_load_loses_no_ingested_observation(tmp_path: Path) -> None:
    """Stopped under load, the pipeline ends with ShutDown, and every ingested observation is in the log."""
    addresses = Addresses.free(radars=2)
    with pipeline(addresses, tmp_path) as process:
        simulator = flows_process(
            ["simulate", *addresses.simulator(), "--rate-radar", "5000", "--objects", "500", "--duration", "150"],
            {},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        written = tmp_path / "log" / f"{STEM}-000001.jsonl.part"
        wait_until(
            lambda: written.is_file() and written.stat().st_size > 5_000_000, "five megabytes of log", limit_s=120
        )
        code = stop(process)
        assert simulator.poll() is None  # it sent until the end
        simulator.terminate()
        simulator.wait(30)

    outcome = report(tmp_path)
    assert code == outcome["exit_code"] == 0
    assert (outcome["event"], outcome["cause"]) == ("ShutDown", "SIGTERM")
    assert outcome["ledger_holds"]
    assert outcome["undelivered"] == outcome["ledger"]["in_flight"] == outcome["ledger"]["dead_lettered"] == 0
    assert sum(1 for _ in read_event_log(tmp_path / "log")) == outcome["ledger"]["written"] > 0
    assert not list((tmp_path / "log").glob("*.part"))


def test_after_kill_9_the_next_run_repairs_the_log_and_continues(tmp_path: Path) -> None:
    """A run killed while it writes a line loses that line only; the next run completes its file."""
    addresses = Addresses.free(radars=1)
    part = tmp_path / "log" / f"{STEM}-000001.jsonl.part"
    with pipeline(addresses, tmp_path) as process:
        send_detections(addresses.radars[0], 50)
        wait_until(lambda: part.is_file() and part.read_bytes().count(b"\n") == 50, "fifty lines")
        process.kill()
        process.wait(30)
    with part.open("ab") as file:
        file.write(b'{"observation_id":"torn')  # what a kill inside a write leaves
    with pipeline(addresses, tmp_path) as process:
        send_detections(addresses.radars[0], 7)
        second = part.with_name(f"{STEM}-000002.jsonl.part")
        wait_until(lambda: second.is_file() and second.read_bytes().count(b"\n") == 7, "seven lines")
        assert stop(process) == 0

    assert sum(1 for _ in read_event_log(tmp_path / "log")) == 57
    assert report(tmp_path)["counters"]["event-log"]["repaired_bytes"] == len(b'{"observation_id":"torn')


# Folders in use are `long`: test_command_line has such a rejection in `make test`.
@small_and_long("same", "sockets", "folders")
def test_a_second_pipeline_on_the_same_sockets_or_folders_is_rejected_and_the_first_continues(
    tmp_path: Path, same: str
) -> None:
    """The second ends with 1 before anything runs and names the process that uses them; the first is not affected."""
    first = Addresses.free(radars=1)
    second = first if same == "sockets" else Addresses.free(radars=1)
    folder = tmp_path / "first"
    contested = (
        [f"udp://127.0.0.1:{first.radars[0]}", f"tcp://127.0.0.1:{first.isl}"]
        if same == "sockets"
        else [f"file://{folder / name}" for name in ("log", "dead-letters", "report.json")]
    )
    with pipeline(first, folder) as owner:
        send_detections(first.radars[0], 5)
        other = flows_process(
            ["ingest", "--no-api", "--quiet"],
            second.settings(tmp_path / "second" if same == "sockets" else folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        said, why = other.communicate(timeout=60)
        assert (other.returncode, said) == (1, b"")
        (line,) = why.decode().splitlines()
        what, who = line.split(" are in use by ")
        assert what == "sda-ingest: " + ", ".join(contested[:-1]) + " and " + contested[-1]
        assert who.startswith(f"pipeline 'sda-ingest', pid {owner.pid}, since ")
        assert "python -m flows ingest --no-api" in who.replace(Path(sys.executable).name, "python")
        assert not (tmp_path / "second").exists()
        assert stop(owner) == 0
    assert report(folder)["ledger"]["written"] == 5
