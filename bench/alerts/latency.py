"""From the observation to the acknowledged alert, in the whole pipeline with the real catalogue.

The conjunctions are staged as in ``tests.scenes.alert_truth``. An alert is caused by an observation, or by the screening of a new
element set if that comes later. The time ends when the subscriber's HTTP answer has arrived. For staged conjunctions it begins with
the first observation of the made-up object after the catalogue has it, so that the screening is in it. Other load on the
machine affects every figure.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from sda_ops.catalog import synthetic_catalog
from tests.helpers.alerting import AlertingPlace, of_time
from tests.scenes.alert_truth import ALL, OBSERVED, figures, truth_run
from tests.scenes.truth import catalog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option."""
    parser.add_argument("--seconds", type=float, default=60.0, help="after the staged alerts (default: %(default)s)")
    parser.add_argument("--staged", type=int, default=12, help="conjunctions, and as many near misses (default: 12)")
    parser.add_argument("--objects", type=int, help="a generated catalogue of so many objects (default: the real one)")
    parser.add_argument("--folder", type=Path, help="a disk to write to (default: where temporary files go)")


def run(args: argparse.Namespace) -> int:
    """Run the pipeline, and print the figures."""
    now_ns = time.time_ns()
    if args.objects is None:
        found, description = catalog()
        element_sets = of_time(found, now_ns)
    else:
        element_sets = list(synthetic_catalog(objects=args.objects, epoch_ns=now_ns))
        description = f"{args.objects:,} generated objects"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {description}", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        place = AlertingPlace.free(Path(folder), ALL, OBSERVED)
        result = truth_run(
            place, element_sets, conjunctions=args.staged, near_misses=args.staged, observe_s=args.seconds
        )
        for line in figures(result):
            print(f"  {line}")
        near = sum(bool(result.of(each, ALL)) for each in result.passages if each.kind != "conjunction")
        print(f"  near misses alerted: {near} of {args.staged}; ledger holds: {result.report['ledger_holds']}")
    return result.exit_code
