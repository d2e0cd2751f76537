"""``python -m flows simulate``: simulated sensors that send real bytes to a pipeline.

Standard output has one JSON line, the summary, at the end. All messages go to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar, cast, get_args

from flows.output import print_line, print_problem
from sda_ops.astro.time import NS_PER_S
from sda_ops.records.observation import SourceKind
from sda_ops.simulate import (
    Burst,
    ConfigurationError,
    Endpoint,
    Outage,
    Ready,
    SimulationSummary,
    SimulatorConfig,
    Staged,
    StagingPlan,
    simulate,
)
from sda_ops.simulate.config import OutageStyle

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option, with its unit and default."""
    targets = parser.add_argument_group("targets")
    targets.add_argument(
        "--radar",
        action="append",
        metavar="HOST:PORT",
        help="UDP target of one radar array; repeatable (default: 127.0.0.1:9201 and 127.0.0.1:9202)",
    )
    targets.add_argument(
        "--archive",
        action="append",
        metavar="HOST:PORT",
        help="where an optical archive listens, port 0 for any; repeatable, the telescopes are divided among them "
        "(default: 127.0.0.1:9300)",
    )
    targets.add_argument(
        "--isl",
        action="append",
        metavar="HOST:PORT",
        help="TCP target of one ring of beacons; repeatable (default: 127.0.0.1:9400)",
    )
    targets.add_argument(
        "--isl-connections", type=int, default=4, metavar="N", help="connections of each ring (default: %(default)s)"
    )
    targets.add_argument(
        "--isl-satellites", type=int, default=40, metavar="N", help="satellites with a beacon (default: %(default)s)"
    )

    rates = parser.add_argument_group("rates (0 leaves out a kind of sensor)")
    rates.add_argument(
        "--rate-radar",
        type=float,
        default=250.0,
        metavar="HZ",
        help="detections/s of each array (default: %(default)s)",
    )
    rates.add_argument(
        "--rate-optical", type=float, default=20.0, metavar="HZ", help="observations/s in total (default: %(default)s)"
    )
    rates.add_argument(
        "--rate-isl", type=float, default=50.0, metavar="HZ", help="beacons/s in total (default: %(default)s)"
    )
    rates.add_argument(
        "--duration", type=float, metavar="S", help="stop sending after so many seconds (default: never)"
    )
    rates.add_argument(
        "--count", type=int, metavar="N", help="stop sending after so many frames in total, bad ones included"
    )
    rates.add_argument(
        "--linger",
        type=float,
        default=2.0,
        metavar="S",
        help="seconds that the archive stays up after --duration or --count, so that the poller can fetch the rest "
        "(default: %(default)s; SIGTERM and Ctrl-C end it at once)",
    )

    rates.add_argument(
        "--hold", action="store_true", help="wait for a line on standard input before sending, once the archive listens"
    )

    content = parser.add_argument_group("content")
    content.add_argument(
        "--catalog",
        type=Path,
        metavar="FILE",
        help="TLE, 3LE, or OMM in CSV, JSON, XML or KVN (default: a generated catalogue)",
    )
    content.add_argument(
        "--objects", type=int, default=2000, metavar="N", help="size of the generated catalogue (default: %(default)s)"
    )
    content.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all randomness (default: %(default)s)"
    )
    content.add_argument(
        "--start-time",
        metavar="ISO8601",
        help="the first timestamp, UTC unless it has an offset; time runs at its real pace (default: the real clock)",
    )

    staging = parser.add_argument_group(
        "staging", "made-up objects, each with a beacon, that pass objects of the catalogue in low orbit"
    )
    staging.add_argument(
        "--stage",
        metavar="N:M",
        help="N conjunctions and M near misses; every second near miss differs from a conjunction in time only",
    )
    staging.add_argument(
        "--stage-into",
        type=Path,
        metavar="FILE",
        help="replace this catalogue file by one with the made-up objects (OMM in JSON): a pipeline that reads it gets them",
    )
    staging.add_argument(
        "--stage-after",
        type=float,
        default=0.0,
        metavar="S",
        help="replace it so many seconds after the first frame (default: 0)",
    )
    staging.add_argument(
        "--stage-threshold",
        type=float,
        default=1_000.0,
        metavar="M",
        help="conjunctions miss by 5 to 80 %% of it, near misses by 105 to 400 %%, metres (default: 1000)",
    )
    staging.add_argument(
        "--stage-passages",
        default="3600:21600",
        metavar="FROM_S:TO_S",
        help="when the objects pass each other, seconds from the start (default: %(default)s)",
    )
    staging.add_argument(
        "--stage-truth",
        type=Path,
        metavar="FILE",
        help="write the passages, with time and distance, to this JSON Lines file",
    )

    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--malformed",
        type=float,
        default=0.0,
        metavar="P",
        help="extra frames that do not decode, per good frame, 0..1",
    )
    faults.add_argument(
        "--impossible",
        type=float,
        default=0.0,
        metavar="P",
        help="extra frames with impossible values, per good frame, 0..1",
    )
    faults.add_argument(
        "--duplicates", type=float, default=0.0, metavar="P", help="frames sent twice, per good frame, 0..1"
    )
    faults.add_argument(
        "--burst",
        action="append",
        default=[],
        metavar="KIND:FACTOR:FOR_S:EVERY_S",
        help="radar, optical or isl at FACTOR times its rate for the last FOR_S of every EVERY_S seconds; repeatable",
    )
    faults.add_argument(
        "--outage",
        action="append",
        default=[],
        metavar="KIND:FOR_S:EVERY_S",
        help="radar silent, isl disconnected or the optical archive down for the last FOR_S of every EVERY_S seconds; "
        "repeatable",
    )
    faults.add_argument(
        "--archive-outage",
        choices=get_args(OutageStyle),
        default="503",
        help="what an archive that is down does: answer 503, reject connections, accept requests and never answer, or answer"
        " with a body that never ends (default: %(default)s)",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--truth", type=Path, metavar="FILE", help="write every frame sent to this JSON Lines file")
    output.add_argument("--summary", type=Path, metavar="FILE", help="write the summary to this file as well")
    output.add_argument("--progress", action="store_true", help="one line a second on standard error")


def run(args: argparse.Namespace) -> int:
    """Simulate. The exit code is 0 at the end, 2 for invalid options (all are named), 1 if a file or an address fails."""
    try:
        config = _config(args)
        summary = asyncio.run(_until_stopped(config, progress=args.progress, hold=args.hold))
        if args.summary is not None:
            args.summary.write_text(summary.to_json() + "\n", encoding="utf-8")
    except ConfigurationError as error:
        for problem in error.problems:
            print_problem(f"simulate: {problem}")
        return EXIT_CONFIGURATION
    except OSError as error:
        print_problem(f"simulate: {error}")
        return EXIT_FAILED
    print_line(summary.to_json())
    return EXIT_OK


def _config(args: argparse.Namespace) -> SimulatorConfig:
    """The configuration of these arguments. Raises ``ConfigurationError`` with every problem."""
    problems: list[str] = []

    def parsed(option: str, text: str, parse: Callable[[str], T], fallback: T) -> T:
        try:
            return parse(text)
        except ValueError as error:
            problems.append(f"{option}: {error}")
            return fallback

    paths = {
        "--truth": args.truth,
        "--summary": args.summary,
        "--stage-into": args.stage_into,
        "--stage-truth": args.stage_truth,
    }
    for option, path in paths.items():
        if path is not None and not path.parent.is_dir():
            problems.append(f"{option}: no such folder: {path.parent}")
    if args.catalog is not None and not os.path.exists(args.catalog):  # noqa: PTH110 - Path.exists raises for a long name
        problems.append(f"--catalog: no such file: {args.catalog}")
    defaults = SimulatorConfig()

    def endpoints(option: str, given: list[str] | None, fallback: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        return tuple(parsed(option, text, Endpoint.parse, fallback[0]) for text in given or ()) or fallback

    radar_targets = endpoints("--radar", args.radar, defaults.radar_targets)
    bursts = [parsed("--burst", text, _burst, None) for text in args.burst]
    outages = [parsed("--outage", text, _outage, None) for text in args.outage]
    if args.stage is None and (args.stage_into or args.stage_truth):
        problems.append("--stage-into and --stage-truth need --stage N:M")
    staged = args.stage and parsed("--stage", args.stage, partial(_staged, args), None)
    start_time_ns = args.start_time and parsed("--start-time", args.start_time, _utc_ns, None)
    try:
        config = SimulatorConfig(
            radar_targets=radar_targets,
            radar_rate_hz=args.rate_radar,
            archives=endpoints("--archive", args.archive, defaults.archives),
            optical_rate_hz=args.rate_optical,
            isl_targets=endpoints("--isl", args.isl, defaults.isl_targets),
            isl_rate_hz=args.rate_isl,
            isl_connections=args.isl_connections,
            isl_satellites=args.isl_satellites,
            catalog=args.catalog,
            objects=args.objects,
            seed=args.seed,
            start_time_ns=start_time_ns,
            duration_s=args.duration,
            count=args.count,
            linger_s=args.linger,
            truth=args.truth,
            malformed=args.malformed,
            impossible=args.impossible,
            duplicates=args.duplicates,
            bursts=tuple(burst for burst in bursts if burst is not None),
            outages=tuple(outage for outage in outages if outage is not None),
            archive_outage=args.archive_outage,
            staged=staged or None,
        )
    except ConfigurationError as error:
        raise ConfigurationError([*problems, *error.problems]) from None
    if problems:
        raise ConfigurationError(problems)
    return config


def _burst(text: str) -> Burst | None:
    kind, factor, for_s, every_s = _parts(text, "KIND:FACTOR:FOR_S:EVERY_S")
    return Burst(cast("SourceKind", kind), float(factor), float(for_s), float(every_s))


def _outage(text: str) -> Outage | None:
    kind, for_s, every_s = _parts(text, "KIND:FOR_S:EVERY_S")
    return Outage(cast("SourceKind", kind), float(for_s), float(every_s))


def _staged(args: argparse.Namespace, text: str) -> Staged:
    counts = _parts(text, "N:M")
    if not all(count.isdecimal() for count in counts):
        raise ValueError(f"expected two whole numbers N:M, got {text!r}")
    try:
        first_s, last_s = map(float, _parts(args.stage_passages, "FROM_S:TO_S"))
    except ValueError as error:
        raise ValueError(f"--stage-passages: {error}") from None
    plan = StagingPlan(
        conjunctions=int(counts[0]),
        near_misses=int(counts[1]),
        threshold_m=args.stage_threshold,
        first_after_s=first_s,
        last_after_s=last_s,
    )
    return Staged(plan=plan, into=args.stage_into, after_s=args.stage_after, truth=args.stage_truth)


def _parts(text: str, form: str) -> list[str]:
    parts = text.split(":")
    if len(parts) != len(form.split(":")):
        raise ValueError(f"expected {form}, got {text!r}")
    return parts


def _utc_ns(text: str) -> int | None:
    moment = datetime.fromisoformat(text)
    since_epoch = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_epoch.days * 86_400 + since_epoch.seconds) * NS_PER_S + since_epoch.microseconds * 1000


async def _until_stopped(config: SimulatorConfig, *, progress: bool, hold: bool) -> SimulationSummary:
    """Simulate until SIGTERM, SIGINT or SIGHUP, or until it ends by itself."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(signum, stop.set)
    go = asyncio.Event() if hold else None
    if go is not None:
        loop.add_reader(sys.stdin, _on_line, go)
    return await simulate(config, stop=stop, on_ready=_announce, on_progress=_show if progress else None, go=go)


def _on_line(go: asyncio.Event) -> None:
    """Standard input has a line, or has ended."""
    sys.stdin.readline()
    asyncio.get_running_loop().remove_reader(sys.stdin)
    go.set()


def _announce(ready: Ready) -> None:
    archives = "".join(f", archive at http://{each.host}:{each.port}/observations" for each in ready.archives)
    print_problem(f"simulate: sending, {ready.objects} objects{archives}")


def _show(summary: SimulationSummary) -> None:
    kinds = ", ".join(f"{kind} {sum(by_fault.values())}" for kind, by_fault in summary.sent.items())
    skipped = sum(summary.skipped.values())
    print_problem(f"simulate: {summary.elapsed_s:.0f} s: {kinds}, skipped {skipped}")
