"""From ``kill -9`` of the pipeline to the first new alert.

The pipeline is killed and started again at once, and at that moment its catalogue gets an object that it has not seen. Measured
is the time until the subscriber has acknowledged the alert about that object: start of Python, recovery, the catalogue, a
screening, the outbox, the delivery. The table of conjunctions and the outbox are those of the killed process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from bench.alerts.changing import ChangingCatalog, sensors, settings
from bench.alerts.kills import SUBSCRIBER, has_screened
from tests.helpers.alerting import AlertingPlace
from tests.helpers.support import wait_until


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option."""
    parser.add_argument("--kills", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--objects", type=int, default=2_000, help="of the catalogue (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="a disk to write to (default: where temporary files go)")


def run(args: argparse.Namespace) -> int:
    """Kill, measure, print."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {args.objects:,} generated objects", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        place = AlertingPlace.free(Path(folder), SUBSCRIBER)
        catalog = ChangingCatalog(place, objects=args.objects, pairs=args.kills + 1, seed=args.seed)
        given = settings(place, f"http://127.0.0.1:{place.subscribers[SUBSCRIBER]}/alerts")
        found: list[float] = []
        with place.subscriber(SUBSCRIBER), sensors(place, catalog):
            began = time.monotonic()
            for _ in range(args.kills + 1):
                number = int(catalog.appear())
                with place.pipeline(given) as pipeline:
                    listening_s = time.monotonic() - began
                    wait_until(partial(_arrived, place, number), "the alert", limit_s=300.0)
                    found.append(time.monotonic() - began)
                    print(f"  listening after {listening_s:5.1f} s, the alert after {found[-1]:5.1f} s", flush=True)
                    wait_until(partial(has_screened, place, pipeline), "a screening")
                    time.sleep(1.0)
                    began = time.monotonic()
                    pipeline.kill()
                    pipeline.wait()
        restarts = found[1:]
        print(
            f"  {len(restarts)} kills: p50 {median(restarts):.1f} s, max {max(restarts):.1f} s (first start {found[0]:.1f} s)"
        )
    return 0


def _arrived(place: AlertingPlace, number: int) -> bool:
    return any(
        each.state == "acknowledged" and each.risk.estimate.catalog_number_second == number
        for each in (place.alerted(SUBSCRIBER) if place.outbox.exists() else [])
    )
