"""Many kills of the whole pipeline, while conjunctions appear and change and the subscriber loses acknowledgements.

Each round starts the pipeline, changes its catalogue, and kills it with ``SIGKILL`` at a seeded moment: a time after its start, a
time after the change, or a time after a request at the subscriber. The subscriber stores every second alert without an
answer. After the last kill the pipeline runs until nothing is pending. Then the subscriber's table is compared with the outbox,
with the table of conjunctions, and with ``python -m flows screen`` of the last catalogue.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.alerts.changing import ChangingCatalog, sensors, settings
from sda_ops.astro.time import NS_PER_S
from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable
from tests.helpers.alerting import Alerted, AlertingPlace, ended, stop
from tests.helpers.fusion import fusion_process
from tests.helpers.support import ROOT, wait_until
from tests.scenes.alert_truth import SCREENINGS, screened

THRESHOLD_M, LEAST_PROBABILITY = 1_000.0, 1e-7
SUBSCRIBER = "reference"
MOMENTS = ("start", "change", "request")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option."""
    parser.add_argument("--points", type=int, default=20, help="kills (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=400, help="of the catalogue (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and changes (default: %(default)s)")
    parser.add_argument("--script", default="ok,lose", help="what the subscriber does (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="a disk to write to (default: where temporary files go)")


def run(args: argparse.Namespace) -> int:
    """Kill, compare, and print. The exit code is 1 if something is lost, repeated or wrong."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        place = AlertingPlace.free(Path(folder), SUBSCRIBER)
        catalog = ChangingCatalog(place, objects=args.objects, pairs=args.points, seed=args.seed)
        rng = random.Random(args.seed)
        with faulty_subscriber(place, args.script) as url:
            given = settings(place, url)
            with sensors(place, catalog):
                for point in range(args.points):
                    print(f"  {point + 1:3}: {killed_once(place, given, catalog, rng)}", flush=True)
                began = time.monotonic()
                with place.pipeline(given) as pipeline:
                    wait_until(lambda: settled(place, pipeline), "a settled pipeline", limit_s=600.0)
                    print(f"  settled {time.monotonic() - began:.0f} s after the last start", flush=True)
            with place.pipeline(given) as pipeline:  # without observations: nothing changes any more
                wait_until(lambda: settled(place, pipeline), "a settled pipeline", limit_s=600.0)
                exit_code = stop(pipeline)
        problems = compared(place)
        deliveries, alerts = received(place.table(SUBSCRIBER))
        print(
            f"{args.points} kills; {alerts} alerts of {len({each.conjunction_id for each in place.alerted(SUBSCRIBER)})} "
            f"conjunctions arrived in {deliveries} deliveries; exit code {exit_code}, "
            f"ledger holds: {place.report()['ledger_holds']}; problems: {len(problems)}"
        )
        for problem in problems[:20]:
            print(f"  {problem}")
        return int(bool(problems) or exit_code != 0)


@contextmanager
def faulty_subscriber(place: AlertingPlace, script: str) -> Iterator[str]:
    """``tests.helpers.faulty_subscriber`` as a process during the context; gives its URL."""
    command = [sys.executable, "-m", "tests.helpers.faulty_subscriber", "--script", script]
    process = subprocess.Popen(
        [*command, "--table", str(place.table(SUBSCRIBER))], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def killed_once(place: AlertingPlace, given: dict[str, object], catalog: ChangingCatalog, rng: random.Random) -> str:
    """One round. Returns what was done."""
    moment, delay_s = rng.choice(MOMENTS), rng.uniform(0.0, 1.5)
    early = rng.random() < 0.5
    change = catalog.change() if early else ""
    with (
        (place.fusion.folder / "fusion.log").open("ab") as log,
        ended(fusion_process(["fusion", "--no-api", "--quiet"], given, stdout=log, stderr=log)) as process,
    ):
        if moment == "start":
            delay_s += rng.uniform(0.0, 10.0)
        else:
            wait_until(lambda: has_screened(place, process), "a screening", limit_s=120.0)
            before, _ = received(place.table(SUBSCRIBER))
            change = change or catalog.change()
            if moment == "request":
                deadline = time.monotonic() + 15.0  # a change without an alert
                while received(place.table(SUBSCRIBER))[0] == before and time.monotonic() < deadline:
                    time.sleep(0.005)
                delay_s /= 20.0
        time.sleep(delay_s)
        process.kill()
        process.wait()
    return (
        f"{change or 'no change'}, killed {delay_s:.2f} s after {moment}; {received(place.table(SUBSCRIBER))[1]} alerts"
    )


def has_screened(place: AlertingPlace, process: subprocess.Popen[bytes]) -> bool:
    """Whether this run of the pipeline has finished a screening."""
    assert process.poll() is None, (place.fusion.folder / "fusion.log").read_text()[-2_000:]
    return place.metrics().get(SCREENINGS, 0) >= 1


def settled(place: AlertingPlace, process: subprocess.Popen[bytes]) -> bool:
    """Whether a screening of the last catalogue is done and nothing is pending, for three seconds."""
    for _ in range(6):
        if not has_screened(place, process) or any(each.state == "pending" for each in place.alerted(SUBSCRIBER)):
            return False
        time.sleep(0.5)
    return True


def received(table: Path) -> tuple[int, int]:
    """Deliveries and alerts in the subscriber's table."""
    with closing(sqlite3.connect(table)) as db:
        (deliveries,) = db.execute("SELECT coalesce(sum(deliveries), 0) FROM seen").fetchone()
        (alerts,) = db.execute("SELECT count(*) FROM alerts").fetchone()
    return deliveries, alerts


def compared(place: AlertingPlace) -> list[str]:
    """What is lost, repeated or wrong, as sentences."""
    arrived = place.received(SUBSCRIBER)
    alerted = place.alerted(SUBSCRIBER)
    table = ConjunctionTable(place.fusion.folder / "screening" / "conjunctions.sqlite")
    table.open()
    with closing(table):
        newest = {str(each.conjunction_id): each for each in table.newest(time.time_ns())}
    return [
        *_each_once(arrived_keys(place), alerted),
        *_in_order(arrived_keys(place)),
        *_true(place, alerted, newest),
    ] + ([] if arrived else ["the subscriber has no alert"])


def arrived_keys(place: AlertingPlace) -> list[tuple[str, int]]:
    """(conjunction id, revision) of each alert that the subscriber has acted on, in that order."""
    return [(each.conjunction_id, each.revision) for each in place.received(SUBSCRIBER)]


def _each_once(arrived: list[tuple[str, int]], alerted: list[Alerted]) -> Iterator[str]:
    for key, count in Counter(arrived).items():
        if count > 1:
            yield f"{key} has arrived {count} times"
    acknowledged = {(each.conjunction_id, each.revision) for each in alerted if each.state == "acknowledged"}
    yield from (f"{key} is acknowledged, but did not arrive" for key in acknowledged - set(arrived))
    yield from (f"{key} has arrived, but is not acknowledged" for key in set(arrived) - acknowledged)


def _in_order(arrived: list[tuple[str, int]]) -> Iterator[str]:
    last: dict[str, int] = {}
    for identity, revision in arrived:
        if revision <= last.get(identity, -1):
            yield f"{identity}/{revision} has arrived after {last[identity]}"
        last[identity] = revision


def _true(place: AlertingPlace, alerted: list[Alerted], newest: dict[str, ConjunctionUpdate]) -> Iterator[str]:
    """The last revision that the subscriber has, against the table of conjunctions and a screening of the last catalogue."""
    last = {each.conjunction_id: each for each in alerted if each.state == "acknowledged"}
    soon_ns = time.time_ns() + 120 * NS_PER_S
    for identity, each in last.items():
        update = newest.get(identity)
        if update is None or update.tca_timestamp < soon_ns:
            continue  # over
        if (update.status == "withdrawn") != (each.risk.status == "retracted"):
            yield f"{identity} is {update.status}, but the subscriber has {each.risk.status}"
        elif update.status == "active" and abs(update.miss_m - each.risk.estimate.miss_m) > 10.0:
            yield f"{identity} misses by {update.miss_m:.0f} m, but the subscriber has {each.risk.estimate.miss_m:.0f} m"
    known = [each.risk.estimate for each in last.values() if each.risk.status != "retracted"]
    listed = screened(place.fusion.catalog, time.time_ns(), THRESHOLD_M / 1e3)
    for found in listed:
        if soon_ns < found.tca_ns < soon_ns + 3 * 3_600 * NS_PER_S and found.max_probability >= LEAST_PROBABILITY:
            same = [
                estimate
                for estimate in known
                if (estimate.catalog_number_first, estimate.catalog_number_second) == found.pair
                and abs(estimate.tca_timestamp - found.tca_ns) < NS_PER_S
            ]
            if len(same) != 1:
                yield f"{found.pair} at {found.tca_ns}, {found.miss_m:.0f} m: {len(same)} conjunctions at the subscriber"
    times = {(found.pair, round(found.tca_ns / NS_PER_S)) for found in listed}
    for estimate in known:
        second = round(estimate.tca_timestamp / NS_PER_S)
        pair = estimate.catalog_number_first, estimate.catalog_number_second
        if estimate.tca_timestamp > soon_ns and not {(pair, second + shift) for shift in (-1, 0, 1)} & times:
            yield f"{pair} at {estimate.tca_timestamp} is no conjunction any more, and not retracted at the subscriber"
