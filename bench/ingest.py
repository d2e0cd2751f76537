"""``sda-ingest`` from real sockets to the fsynced log, with simulator and pipeline in separate processes; then SIGTERM under load.

It only prints figures, because those of a shared machine vary too much to be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator_adapter.storage.jsonl import read_lines
from sda_ops.sinks.event_log import STEM
from tests.helpers.support import Addresses, flows_process, listens, wait_until


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=10_000.0, help="observations/s in total (default: 10000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the sustained run (default: 60)")
    parser.add_argument("--radars", type=int, default=4, help="radar arrays (default: 4)")
    args = parser.parse_args()
    print(f"cores: {os.cpu_count()}; {args.radars} radar arrays over UDP, one archive over HTTP, beacons over TCP")
    _sustained(args)
    _sigterm(args)


def _sustained(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report, summary, cpu_s = _run(args, folder, seconds=args.seconds, stop_after=None)
        sent = sum(sum(faults.values()) for faults in summary["sent"].values())
        drops = sum(counters.get("kernel_drops", 0) for counters in report["counters"].values())
        ingested, written = report["ledger"]["ingested"], report["ledger"]["written"]
        latency = report["latency_ms"]
        print(f"sustained: {sent:,} sent at {summary['rate_per_s']:,.0f}/s for {summary['elapsed_s']:.0f} s")
        print(f"  ingested {ingested:,}, written and fsynced {written:,}, lines in the log {_lines(folder):,}")
        print(f"  lost before ingest: {sent - ingested:,} (kernel drops: {drops:,})")
        print(f"  ingest to log: p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms, max {latency['max']:.1f} ms")
        print(f"  pipeline CPU: {cpu_s:.1f} s, {cpu_s / max(written, 1) * 1e6:.1f} us an observation")
        print(f"  {report['event']}, restarts {report['restarts'] or 'none'}, ledger holds: {report['ledger_holds']}")


def _sigterm(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report, _, _ = _run(args, folder, seconds=30.0, stop_after=5.0)
        print(f"SIGTERM under the same load: exit code {report['exit_code']} after {report['stopped_in_s']:.2f} s")
        print(
            f"  {report['event']} ({report['cause']}); written {report['ledger']['written']:,}, lines in the log"
            f" {_lines(folder):,}; undelivered {report['undelivered']}; ledger holds: {report['ledger_holds']}"
        )


def _run(
    args: argparse.Namespace, folder: Path, *, seconds: float, stop_after: float | None
) -> tuple[dict[str, Any], dict[str, Any], float]:
    addresses = Addresses.free(radars=args.radars)
    settings = addresses.settings(folder)
    optical, isl = 0.01 * args.rate, 0.02 * args.rate
    radar = (args.rate - optical - isl) / args.radars
    rates = ["--rate-radar", f"{radar}", "--rate-optical", f"{optical}", "--rate-isl", f"{isl}"]
    bounds = ["--duration", f"{seconds}", "--linger", "60", "--summary", str(folder / "simulator.json"), "--hold"]
    with (folder / "stderr").open("wb") as log:
        simulator = flows_process(
            ["simulate", *addresses.simulator(), *rates, *bounds],
            {},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        wait_until(lambda: listens(addresses.archive), "the archive")
        pipeline = flows_process(["ingest", "--no-api", "--quiet"], settings, stdout=log, stderr=subprocess.PIPE)
        assert simulator.stdin is not None
        assert pipeline.stderr is not None
        spawned = 0
        while spawned < args.radars + 6 and (line := pipeline.stderr.readline()):
            spawned += b'"spawn"' in line
        wait_until(lambda: listens(addresses.isl), "the ISL listener, which is opened last")
        simulator.stdin.write(b"go\n")
        simulator.stdin.close()
        time.sleep(seconds + 1.0 if stop_after is None else stop_after)
        stopping = time.monotonic()
        pipeline.send_signal(signal.SIGTERM)
        pipeline.stderr.read()
        _, _, usage = os.wait4(pipeline.pid, 0)
        stopped_in_s = time.monotonic() - stopping
        simulator.terminate()
        simulator.wait()
    wait_until((folder / "simulator.json").is_file, "the simulator's summary")
    report = json.loads((folder / "report.json").read_text())
    summary = json.loads((folder / "simulator.json").read_text())
    return report | {"stopped_in_s": stopped_in_s}, summary, usage.ru_utime + usage.ru_stime


def _lines(folder: Path) -> int:
    return sum(1 for _ in read_lines(folder / "log", STEM))


if __name__ == "__main__":
    main()
