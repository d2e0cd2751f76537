"""``python -m flows conjunctions``: list the conjunctions of ``sda-fusion``'s table, and show one with its history.

It reads the table, also while a run writes it, and changes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from flows.commands.messages import report_problems
from flows.commands.options import add_settings_argument
from flows.commands.tables import (
    SHORT_ID,
    Columns,
    NotOneId,
    catalog_number,
    fitting,
    minute_text,
    object_text,
    objects_text,
    one_id,
    pair_text,
    probability_text,
    table,
    time_text,
)
from flows.output import print_line
from flows.pipelines import FUSION
from flows.settings.load import SettingsError
from orchestrator_adapter import MissingExtra
from orchestrator_adapter.process import ExitCode
from sda_ops.records.conjunction import WITHDRAWN_BECAUSE, ConjunctionStatus, ConjunctionUpdate
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionReader, ConjunctionTableError

EPILOG = """\
probabilities:
  max P is the greatest probability of a collision over all sizes of the assumed covariance. P needs covariances, which
  public element sets do not have.

examples:
  python -m flows conjunctions list --object 25544
  python -m flows conjunctions show 3f2a --plot history.svg
"""

_M_PER_KM = 1_000.0
_S_PER_DAY = 86_400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``conjunctions``."""
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the conjunctions, by time of closest approach")
    which = listing.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="of every status (default: active)")
    which.add_argument("--status", choices=get_args(ConjunctionStatus), help="of this status (default: active)")
    listing.add_argument("--object", type=catalog_number, metavar="ID", help="of the object with this catalogue number")
    listing.add_argument(
        "--fleets",
        action="store_true",
        help="pairs within one fleet and in formation, too (default: as screening.exclude_fleets says)",
    )
    add_settings_argument(listing, FUSION.prefix)
    show = actions.add_parser("show", help="one conjunction, with every estimate of it")
    show.add_argument("id", metavar="ID", help="the conjunction's id, or its beginning")
    show.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.svg",
        help="draw miss distance and probability over the estimates (SVG, PNG or PDF; needs the extra plot)",
    )
    add_settings_argument(show, FUSION.prefix)


def run(args: argparse.Namespace) -> int:
    """List or show. The exit code is 1, with one line, if there is no table, no such conjunction, or no plot."""
    try:
        settings = FUSION.load(args.config).screening
        reader = ConjunctionReader(settings.table)
    except SettingsError as error:
        return report_problems("conjunctions", error.problems)
    except ConjunctionTableError as error:
        return report_problems("conjunctions", [str(error)])
    try:
        if args.action == "show":
            return _show(reader, args)
        return _list(reader, args, fleets=args.fleets or not settings.exclude_fleets)
    except (ConjunctionTableError, MissingExtra, NotOneId) as error:
        return report_problems("conjunctions", [str(error)])
    except OSError as error:
        return report_problems("conjunctions", [f"{args.plot}: {error.strerror or error}"])
    finally:
        reader.close()


def _list(reader: ConjunctionReader, args: argparse.Namespace, *, fleets: bool) -> int:
    status = None if args.all else args.status or "active"
    found = reader.listed(status=status, catalog_number=args.object)
    listed = [each for each in found if fleets or not (each.last.same_fleet or each.last.formation)]
    updates = [each.last for each in listed]
    if listed:
        print_line(
            "\n".join(
                fitting(
                    table(_LISTED, updates, text=_TEXT), table(_LISTED_NARROW, updates, text=_TEXT, below=_below_listed)
                )
            )
        )
    else:
        of_object = "" if args.object is None else f" of object {args.object}"
        print_line(f"no {'' if status is None else f'{status} '}conjunctions{of_object} in {reader.path}")
    if left_out := len(found) - len(listed):
        print_line(f"not listed: {left_out} within one fleet or in formation (--fleets lists them)")
    return ExitCode.OK


def _show(reader: ConjunctionReader, args: argparse.Namespace) -> int:
    found = one_id(
        args.id,
        reader.ids,
        what="conjunction",
        none=f"the table {reader.path} is empty",
        listing="conjunctions list --all --fleets",
    )
    history = reader.history(found)
    last = history[-1]
    approach = (
        f"  time of closest approach {time_text(last.tca_timestamp)}, {last.miss_m / _M_PER_KM:.3f} km, "
        f"{last.relative_speed_m_s / _M_PER_KM:.3f} km/s"
    )
    lines = [
        f"conjunction {last.conjunction_id}: {last.status}{_reason(last)}",
        *(f"  {text}" for text in objects_text(last)),
        approach,
        f"  max P {last.max_probability:.2E}{_dilution(last)}",
        "",
        *fitting(
            table(_HISTORY, history, text=_TEXT), table(_HISTORY_NARROW, history, text=_TEXT, below=_below_estimate)
        ),
    ]
    print_line("\n".join(lines))
    if args.plot is not None:
        _plot(history, args.plot)
        print_line(f"plot: {args.plot}")
    return ExitCode.OK


def _reason(last: ConjunctionUpdate) -> str:
    return f": {WITHDRAWN_BECAUSE[last.reason]}" if last.status == "withdrawn" else ""


def _plot(history: Sequence[ConjunctionUpdate], file: Path) -> None:
    """Raises ``MissingExtra``, ``OSError`` and `ConjunctionTableError`."""
    import numpy as np  # noqa: PLC0415 - only a plot needs it

    from sda_ops.screening.output.pictures import history_picture  # noqa: PLC0415 - matplotlib, which takes half a second

    file_format = file.suffix.lower().removeprefix(".") or "svg"
    if file_format not in _FORMATS:
        raise ConjunctionTableError(f"--plot {file}: expected a name that ends with .svg, .png or .pdf")
    estimates = [each for each in history if each.status == "active"]
    last = estimates[-1]
    content = history_picture(
        title=f"{object_text(last.catalog_number_first, last.name_first)} and "
        f"{object_text(last.catalog_number_second, last.name_second)}",
        estimated_ns=np.array([each.screened_timestamp for each in estimates], dtype=np.int64),
        miss_m=np.array([each.miss_m for each in estimates]),
        max_probability=np.array([each.max_probability for each in estimates]),
        probability=np.array([np.nan if each.probability is None else each.probability for each in estimates]),
        tca_ns=last.tca_timestamp,
        file_format=file_format,
    )
    file.write_bytes(content)


_FORMATS = ("svg", "png", "pdf")


# Tables: a heading and a function for each column.

_TEXT = (
    *("id", "closest approach (UTC)", "closest approach", "objects", "status", "screened (UTC)", "screened"),
    *("epochs (UTC)", ""),
)


def _dilution(update: ConjunctionUpdate) -> str:
    if update.dilution_m is None:
        return ""
    return f", at a standard deviation of {update.dilution_m / _M_PER_KM:.3f} km along the miss vector"


def _marker(update: ConjunctionUpdate) -> str:
    return ", ".join(word for word, holds in (("fleet", update.same_fleet), ("formation", update.formation)) if holds)


def _ages(update: ConjunctionUpdate) -> str:
    return f"{update.age_first_s / _S_PER_DAY:.2f} {update.age_second_s / _S_PER_DAY:.2f}"


_LISTED: Columns[ConjunctionUpdate] = (
    ("id", lambda update: str(update.conjunction_id)[:SHORT_ID]),
    ("closest approach (UTC)", lambda update: time_text(update.tca_timestamp)),
    ("miss km", lambda update: f"{update.miss_m / _M_PER_KM:.3f}"),
    ("km/s", lambda update: f"{update.relative_speed_m_s / _M_PER_KM:.3f}"),
    ("max P", lambda update: probability_text(update.max_probability)),
    ("P", lambda update: probability_text(update.probability)),
    ("ages d", _ages),
    ("revision", lambda update: str(update.revision)),
    ("status", lambda update: update.status),
    ("objects", pair_text),
    ("", _marker),
)
_HISTORY: Columns[ConjunctionUpdate] = (
    ("revision", lambda update: str(update.revision)),
    ("screened (UTC)", lambda update: time_text(update.screened_timestamp)[:-4]),
    ("status", lambda update: update.status),
    (
        "epochs (UTC)",
        lambda update: f"{minute_text(update.epoch_first_timestamp)} {minute_text(update.epoch_second_timestamp)}",
    ),
    ("closest approach (UTC)", lambda update: time_text(update.tca_timestamp)),
    ("miss km", lambda update: f"{update.miss_m / _M_PER_KM:.3f}"),
    ("R km", lambda update: f"{update.miss_radial_m / _M_PER_KM:.3f}"),
    ("I km", lambda update: f"{update.miss_in_track_m / _M_PER_KM:.3f}"),
    ("C km", lambda update: f"{update.miss_cross_track_m / _M_PER_KM:.3f}"),
    ("max P", lambda update: probability_text(update.max_probability)),
    ("P", lambda update: probability_text(update.probability)),
)
_LISTED_NARROW: Columns[ConjunctionUpdate] = (
    _LISTED[0],
    (_LISTED[1][0], lambda update: time_text(update.tca_timestamp)[:-4]),
    *_LISTED[2:5],
    _LISTED[6],
    ("rev", lambda update: str(update.revision)),
)
_HISTORY_NARROW: Columns[ConjunctionUpdate] = (
    ("rev", lambda update: str(update.revision)),
    ("screened", lambda update: minute_text(update.screened_timestamp)),
    _HISTORY[3],
    ("closest approach", lambda update: time_text(update.tca_timestamp)[5:]),
    _HISTORY[5],
    _HISTORY[9],
)
"""What an 80-column terminal can show."""


def _below_listed(update: ConjunctionUpdate) -> list[str]:
    parts = (pair_text(update), _marker(update), "" if update.status == "active" else update.status)
    return [f"  {', '.join(filter(None, parts))}"]


def _below_estimate(update: ConjunctionUpdate) -> list[str]:
    parts_m = (update.miss_radial_m, update.miss_in_track_m, update.miss_cross_track_m)
    parts = " ".join(f"{name} {part / _M_PER_KM:+.3f}" for name, part in zip("RIC", parts_m, strict=True))
    probability = "" if update.probability is None else f", P {probability_text(update.probability)}"
    return [f"     {parts} km{probability}{'' if update.status == 'active' else f', {update.status}'}"]
