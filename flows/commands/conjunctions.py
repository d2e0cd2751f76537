"""``python -m flows conjunctions``: list the conjunctions of ``sda-fusion``'s table, and show one with its history.

It reads the table, also while a run writes it, and changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from shutil import get_terminal_size
from typing import get_args

from flows.commands.messages import report_problems
from flows.commands.options import add_settings_argument
from flows.output import print_line
from flows.pipelines import FUSION
from flows.settings.load import SettingsError
from orchestrator_adapter import MissingExtra
from orchestrator_adapter.process import ExitCode
from sda_ops.records.conjunction import WITHDRAWN_BECAUSE, ConjunctionStatus, ConjunctionUpdate
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionReader, ConjunctionTableError, ListedConjunction

EPILOG = """\
probabilities:
  max P is the greatest probability of a collision over all sizes of the assumed covariance. P needs covariances, which
  public element sets do not have.

examples:
  python -m flows conjunctions list --object 25544
  python -m flows conjunctions show 3f2a --plot history.svg
"""

_SHORT_ID = 13  # characters: 48 bits, enough for any table
_M_PER_KM = 1_000.0
_S_PER_DAY = 86_400.0
_NS_PER_S = 10**9
_IDS_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``conjunctions``."""
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the conjunctions, by time of closest approach")
    which = listing.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="of every status (default: active)")
    which.add_argument("--status", choices=get_args(ConjunctionStatus), help="of this status (default: active)")
    listing.add_argument(
        "--object", type=_catalog_number, metavar="ID", help="of the object with this catalogue number"
    )
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
    except (ConjunctionTableError, MissingExtra) as error:
        return report_problems("conjunctions", [str(error)])
    except OSError as error:
        return report_problems("conjunctions", [f"{args.plot}: {error.strerror or error}"])
    finally:
        reader.close()


def _list(reader: ConjunctionReader, args: argparse.Namespace, *, fleets: bool) -> int:
    status = None if args.all else args.status or "active"
    found = reader.listed(status=status, catalog_number=args.object)
    listed = [each for each in found if fleets or not (each.last.same_fleet or each.last.formation)]
    if listed:
        print_line("\n".join(_fitting(_table(_LISTED, listed), _table(_LISTED_NARROW, listed, _below_listed))))
    else:
        of_object = "" if args.object is None else f" of object {args.object}"
        print_line(f"no {'' if status is None else f'{status} '}conjunctions{of_object} in {reader.path}")
    if left_out := len(found) - len(listed):
        print_line(f"not listed: {left_out} within one fleet or in formation (--fleets lists them)")
    return ExitCode.OK


def _show(reader: ConjunctionReader, args: argparse.Namespace) -> int:
    wanted = args.id.strip().lower()
    ids = reader.ids(wanted, _IDS_NAMED + 1) if wanted else []
    if len(ids) != 1:
        return report_problems("conjunctions", [_not_one(reader, args.id, wanted, ids)])
    history = reader.history(ids[0])
    last = history[-1]
    approach = (
        f"  time of closest approach {_time(last.tca_timestamp)}, {last.miss_m / _M_PER_KM:.3f} km, "
        f"{last.relative_speed_m_s / _M_PER_KM:.3f} km/s"
    )
    lines = [
        f"conjunction {last.conjunction_id}: {last.status}{_reason(last)}",
        *(f"  {text}" for text in _objects(last)),
        approach,
        f"  max P {last.max_probability:.2E}{_dilution(last)}",
        "",
        *_fitting(_table(_HISTORY, history), _table(_HISTORY_NARROW, history, _below_estimate)),
    ]
    print_line("\n".join(lines))
    if args.plot is not None:
        _plot(history, args.plot)
        print_line(f"plot: {args.plot}")
    return ExitCode.OK


def _reason(last: ConjunctionUpdate) -> str:
    return f": {WITHDRAWN_BECAUSE[last.reason]}" if last.status == "withdrawn" else ""


def _not_one(reader: ConjunctionReader, given: str, wanted: str, ids: Sequence[str]) -> str:
    """Why the text is not the beginning of exactly one id, with the nearest ones."""
    if ids:
        more = ", …" if len(ids) > _IDS_NAMED else ""
        return f"{given!r} is the beginning of several ids: {', '.join(ids[:_IDS_NAMED])}{more}"
    if not wanted:
        return "expected the beginning of an id, got an empty one"
    nearest: list[str] = []
    beginning = wanted
    while beginning and not nearest:
        beginning = beginning[:-1]
        nearest = reader.ids(beginning, _IDS_NAMED)
    if not nearest:
        return f"no conjunction {given!r}: the table {reader.path} is empty"
    near = ", ".join(name[:_SHORT_ID] for name in nearest)
    return f"no conjunction begins with {given!r}; the nearest ids: {near} (`conjunctions list --all --fleets` has all)"


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
        title=f"{_object(last.catalog_number_first, last.name_first)} and "
        f"{_object(last.catalog_number_second, last.name_second)}",
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

_Columns = Sequence[tuple[str, Callable[[ConjunctionUpdate], str]]]


def _fitting(wide: list[str], narrow: list[str]) -> list[str]:
    """The narrow table if standard output is a terminal that is too narrow for the wide one."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return narrow if is_terminal and max(map(len, wide)) > get_terminal_size().columns else wide


def _table(
    columns: _Columns,
    rows: Iterable[ConjunctionUpdate | ListedConjunction],
    below: Callable[[ConjunctionUpdate], str] | None = None,
) -> list[str]:
    """Lines with aligned columns; text to the left, numbers to the right. ``below`` makes a second line of each row."""
    updates = [row.last if isinstance(row, ListedConjunction) else row for row in rows]
    cells = [[heading for heading, _ in columns], *([cell(update) for _, cell in columns] for update in updates)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [heading in _TEXT for heading, _ in columns]
    heading, *lines = [
        "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in cells
    ]
    if below is None:
        return [heading, *lines]
    return [heading, *(part for line, update in zip(lines, updates, strict=True) for part in (line, below(update)))]


_TEXT = (
    *("id", "closest approach (UTC)", "closest approach", "objects", "status", "screened (UTC)", "screened"),
    *("epochs (UTC)", ""),
)


def _time(timestamp_ns: int) -> str:
    whole, rest = divmod(timestamp_ns, _NS_PER_S)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03}"


def _minute(timestamp_ns: int) -> str:
    return f"{datetime.fromtimestamp(timestamp_ns // _NS_PER_S, UTC):%m-%d %H:%M}"


def _object(number: int, name: str) -> str:
    return f"{number} {name}".rstrip()


def _objects(update: ConjunctionUpdate) -> list[str]:
    return [
        f"{_object(number, name)} ({', '.join(filter(None, (orbit, fleet, f'assumed radius {radius_m:g} m')))})"
        for number, name, orbit, fleet, radius_m in (
            (
                update.catalog_number_first,
                update.name_first,
                update.orbit_class_first,
                update.fleet_first,
                update.radius_first_m,
            ),
            (
                update.catalog_number_second,
                update.name_second,
                update.orbit_class_second,
                update.fleet_second,
                update.radius_second_m,
            ),
        )
    ]


def _dilution(update: ConjunctionUpdate) -> str:
    if update.dilution_m is None:
        return ""
    return f", at a standard deviation of {update.dilution_m / _M_PER_KM:.3f} km along the miss vector"


def _marker(update: ConjunctionUpdate) -> str:
    return ", ".join(word for word, holds in (("fleet", update.same_fleet), ("formation", update.formation)) if holds)


def _probability(value: float | None) -> str:
    return "-" if value is None else f"{value:.2E}"


def _ages(update: ConjunctionUpdate) -> str:
    return f"{update.age_first_s / _S_PER_DAY:.2f} {update.age_second_s / _S_PER_DAY:.2f}"


def _pair(update: ConjunctionUpdate) -> str:
    first = _object(update.catalog_number_first, update.name_first)
    return f"{first} | {_object(update.catalog_number_second, update.name_second)}"


_LISTED: _Columns = (
    ("id", lambda update: str(update.conjunction_id)[:_SHORT_ID]),
    ("closest approach (UTC)", lambda update: _time(update.tca_timestamp)),
    ("miss km", lambda update: f"{update.miss_m / _M_PER_KM:.3f}"),
    ("km/s", lambda update: f"{update.relative_speed_m_s / _M_PER_KM:.3f}"),
    ("max P", lambda update: _probability(update.max_probability)),
    ("P", lambda update: _probability(update.probability)),
    ("ages d", _ages),
    ("revision", lambda update: str(update.revision)),
    ("status", lambda update: update.status),
    ("objects", _pair),
    ("", _marker),
)
_HISTORY: _Columns = (
    ("revision", lambda update: str(update.revision)),
    ("screened (UTC)", lambda update: _time(update.screened_timestamp)[:-4]),
    ("status", lambda update: update.status),
    (
        "epochs (UTC)",
        lambda update: f"{_minute(update.epoch_first_timestamp)} {_minute(update.epoch_second_timestamp)}",
    ),
    ("closest approach (UTC)", lambda update: _time(update.tca_timestamp)),
    ("miss km", lambda update: f"{update.miss_m / _M_PER_KM:.3f}"),
    ("R km", lambda update: f"{update.miss_radial_m / _M_PER_KM:.3f}"),
    ("I km", lambda update: f"{update.miss_in_track_m / _M_PER_KM:.3f}"),
    ("C km", lambda update: f"{update.miss_cross_track_m / _M_PER_KM:.3f}"),
    ("max P", lambda update: _probability(update.max_probability)),
    ("P", lambda update: _probability(update.probability)),
)
_LISTED_NARROW: _Columns = (
    _LISTED[0],
    (_LISTED[1][0], lambda update: _time(update.tca_timestamp)[:-4]),
    *_LISTED[2:5],
    _LISTED[6],
    ("rev", lambda update: str(update.revision)),
)
_HISTORY_NARROW: _Columns = (
    ("rev", lambda update: str(update.revision)),
    ("screened", lambda update: _minute(update.screened_timestamp)),
    _HISTORY[3],
    ("closest approach", lambda update: _time(update.tca_timestamp)[5:]),
    _HISTORY[5],
    _HISTORY[9],
)
"""What an 80-column terminal can show."""


def _below_listed(update: ConjunctionUpdate) -> str:
    return "  " + ", ".join(
        filter(None, (_pair(update), _marker(update), "" if update.status == "active" else update.status))
    )


def _below_estimate(update: ConjunctionUpdate) -> str:
    parts_m = (update.miss_radial_m, update.miss_in_track_m, update.miss_cross_track_m)
    parts = " ".join(f"{name} {part / _M_PER_KM:+.3f}" for name, part in zip("RIC", parts_m, strict=True))
    probability = "" if update.probability is None else f", P {_probability(update.probability)}"
    return f"     {parts} km{probability}{'' if update.status == 'active' else f', {update.status}'}"


def _catalog_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a catalogue number, got {text!r}")
    return int(text)
