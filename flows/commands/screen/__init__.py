"""``python -m flows screen``: every close approach of a catalogue's objects within a horizon.

This module has the options. What they need (numpy, SGP4, worker processes) is imported when a screening begins.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.commands.options import at_least_one
from flows.commands.screen.values import (
    distance_m,
    duration,
    identifiers,
    originator,
    pair_of,
    picture_file,
    start,
    table_file,
)

EPILOG = """\
examples:
  python -m flows screen active.csv --horizon 24h --miss 5km
  python -m flows screen 'https://celestrak.org/NORAD/elements/gp.php?GROUP=active&FORMAT=csv' --out today.csv
  python -m flows screen active.csv --against 25544,'CSS (TIANHE)' --horizon 7d --miss 10km --out stations.parquet
  python -m flows screen active.csv --assets mine.csv --horizon 7d --out mine-boxes.csv
  python -m flows screen old.tle --start epoch --cdm messages/ --plot top encounter.svg
  python -m flows screen active.csv --horizon 7d --resume run/screening --out week.json

output files:
  NAME.csv             conjunctions: SOCRATES' columns first, then others with their unit in the name; Parquet the same
                       with --assets: passages through the boxes, with entry and exit; the asset is the first object
  NAME.fleet.csv       conjunctions of two satellites of one fleet, or of one formation (with --fleet-pairs apart)
  NAME.slow.csv        pairs that hardly move against each other: docked, in formation, co-orbital
  NAME.unscreened.csv  objects that were not screened in a part of the time, and why
  NAME.json            all of these in one document

exit codes:
  0  screened, and everything is written
  1  no catalogue, wrong settings, no worker process, or a file that cannot be written (each problem is named); or stopped
     by Ctrl-C or SIGTERM
  2  the command line is wrong
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``screen``."""
    parser.add_argument(
        "catalog", metavar="CATALOG", help="file or URL: TLE, 3LE, or OMM in CSV, JSON, XML or KVN, plain or gzip"
    )
    what = parser.add_argument_group("what is screened")
    what.add_argument("--horizon", type=duration, metavar="TIME", help="how long: 24h, 90m, 7d, 1d12h (default: 24h)")
    what.add_argument("--miss", type=distance_m, metavar="DISTANCE", help="miss distance: 5km, 500m (default: 5km)")
    what.add_argument(
        "--start",
        type=start,
        default="now",
        metavar="TIME",
        help="now, epoch (the median epoch of the catalogue), or a time such as 2026-03-10T00:00:00Z, UTC unless it has "
        "an offset (default: %(default)s)",
    )
    what.add_argument(
        "--max-age",
        type=duration,
        metavar="TIME",
        help="element sets that are farther from the start are not screened, but listed (default and greatest: 30d)",
    )
    what.add_argument(
        "--against",
        type=identifiers,
        action="extend",
        metavar="ID[,ID…]",
        help="screen only these objects against all: catalogue numbers or names; repeatable",
    )
    what.add_argument(
        "--assets",
        type=Path,
        metavar="FILE",
        help="screen the boxes of these objects instead: CSV with catalog_number,radial_km,in_track_km,cross_track_km (half "
        "axes; the published ones of the orbit if left out), or TOML with [[assets]]",
    )
    what.add_argument(
        "--fleet-pairs",
        choices=("apart", "together"),
        help="whether approaches inside one fleet or formation have a list of their own (default: apart)",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--out", type=table_file, metavar="FILE", help="write the lists here: .csv, .parquet or .json")
    out.add_argument("--cdm", type=Path, metavar="FOLDER", help="write a Conjunction Data Message for each conjunction")
    out.add_argument(
        "--cdm-format", choices=("kvn", "xml"), default="kvn", help="the form of the messages (default: %(default)s)"
    )
    out.add_argument(
        "--originator",
        type=originator,
        default="SDA-STREAM-ORCHESTRATOR",
        metavar="NAME",
        help="who the messages are from (default: %(default)s)",
    )
    out.add_argument(
        "--plot",
        nargs=2,
        action="append",
        default=[],
        metavar=("ID,ID", "FILE"),
        help="picture of a pair (or of `top`, the most probable one): distance over time and encounter plane; .svg, .png or "
        ".pdf; repeatable",
    )
    out.add_argument(
        "--top",
        type=at_least_one,
        default=20,
        metavar="N",
        help="how many conjunctions to print (default: %(default)s)",
    )
    out.add_argument("--overwrite", action="store_true", help="replace files that exist; others in a folder stay")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings, TOML with a table [screening]; variables SDA_SCREEN__SCREENING__NAME override it "
        "(default: built-in defaults)",
    )
    how.add_argument(
        "--workers",
        type=at_least_one,
        metavar="N",
        help="worker processes (default: one for each core of this process)",
    )
    how.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="keep finished windows in this folder; the same screening continues there after it was stopped",
    )
    how.add_argument("--quiet", action="store_true", help="no progress, only warnings and problems")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Screen, write and print. ``--help`` explains the exit codes."""
    plots = []
    for pair, file in args.plot:
        try:
            plots.append((pair_of(pair), picture_file(file)))
        except argparse.ArgumentTypeError as error:
            args.parser.error(f"argument --plot: {error}")
    args.plot = plots
    # Imported here: numpy, SGP4 and pyarrow take half a second, which `--help` does not need.
    from flows.commands.screen.screening_run import run_screening  # noqa: PLC0415

    return run_screening(args)
