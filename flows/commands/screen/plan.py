"""What ``screen`` does, decided from its options, the settings and the catalogue, before anything takes long or is written."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from flows.commands.messages import announce
from flows.commands.screen.catalog import Selection, read_source, rows_of, select, utc
from flows.commands.screen.files import Output, list_files, list_names, problems_of
from flows.commands.screen.report import distance
from flows.commands.screen.values import compact
from flows.settings.load import load_settings
from flows.settings.screening import ScreeningSettings
from flows.settings.sections import Section
from orchestrator_adapter import MissingExtra, SystemClock
from sda_ops.astro.propagation import DEFAULT_MAX_AGE
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog.reader import decode_text
from sda_ops.regular_file import read_regular_file
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.output.pictures import require_matplotlib
from sda_ops.screening.volumes.assets import Asset, read_assets


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, decided from the options and the settings.

    Attributes:
        selection: The objects and the start.
        horizon: How long.
        miss_distance_m: The miss distance.
        max_age: The oldest element sets that are screened.
        rows: Screen only these objects against all; ``None``: all against all.
        assets: Screen the boxes of these objects instead.
        plots: For each picture the two rows (``None``: of the most probable conjunction), and its file.
        workers: How many worker processes.
        apart: Whether approaches inside one fleet or formation have a list of their own.
        settings: The settings.
    """

    selection: Selection
    horizon: timedelta
    miss_distance_m: float
    max_age: timedelta
    rows: Rows | None
    assets: tuple[Asset, ...]
    plots: tuple[tuple[tuple[int, int] | None, Path], ...]
    workers: int
    apart: bool
    settings: ScreeningSettings

    @property
    def objects(self) -> ScreenedObjects:
        """What is screened."""
        return self.selection.objects

    @property
    def end_ns(self) -> int:
        """The end of the horizon, UTC."""
        return self.selection.start_ns + self.horizon // timedelta(microseconds=1) * 1_000


class _Settings(Section):
    """The settings of ``screen``."""

    screening: ScreeningSettings = ScreeningSettings()


class Unusable(Exception):
    """Wrong options; ``problems`` has a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def make_plan(args: argparse.Namespace) -> Plan:
    """Raises ``SettingsError``, ``CatalogUnusable`` or ``Unusable``, before anything takes long or is written."""
    settings = load_settings(_Settings, args.config, prefix="SDA_SCREEN__").screening
    apart = _apart(args, settings)
    problems = list(problems_of(_outputs(args, apart=apart), overwrite=args.overwrite))
    try:
        if args.plot:
            require_matplotlib()
    except MissingExtra as error:
        problems.append(f"--plot: {error}")
    problems += [
        f"--assets: {option} cannot be given with it; the boxes of the assets are screened"
        for option, given in (
            ("--against", args.against),
            ("--miss", args.miss),
            ("--plot", args.plot),
            ("--resume", args.resume),
        )
        if args.assets and given
    ]
    if problems:
        raise Unusable(problems)
    horizon = args.horizon or settings.horizon
    miss_m = args.miss or settings.miss_distance_m
    max_age = args.max_age or DEFAULT_MAX_AGE
    selection = select(
        read_source(args.catalog), args.start, horizon=horizon, max_age=max_age, now_ns=SystemClock().now_ns()
    )
    rows: list[int] | None = None
    plots: list[tuple[tuple[int, int] | None, Path]] = []
    try:
        if args.against:
            rows = rows_of(selection.objects, args.against, too_old=selection.too_old)
    except ValueError as error:
        problems.append(f"--against: {error}")
    assets: tuple[Asset, ...] = ()
    if args.assets is not None:
        try:
            text = decode_text(read_regular_file(args.assets))
            assets = read_assets(text, selection.objects, file=str(args.assets))
        except OSError as error:
            problems.append(f"--assets: {args.assets}: {error.strerror or error}")
        except ValueError as error:
            problems.append(f"--assets: {error}")
    for pair, path in args.plot:
        try:
            found = None if pair is None else rows_of(selection.objects, pair, too_old=selection.too_old)
            if found is not None and len(found) < len(("first", "second")):
                raise ValueError(f"{' and '.join(pair)} are the same object")  # noqa: TRY301 - reported with the others
            plots.append((None if found is None else (min(found), max(found)), path))
        except ValueError as error:
            problems.append(f"--plot: {error}")
    if problems:
        raise Unusable(problems)
    return Plan(
        selection,
        horizon,
        miss_m,
        max_age,
        None if rows is None else np.array(sorted(rows), dtype=np.intp),
        assets,
        tuple(plots),
        args.workers or settings.workers or len(os.sched_getaffinity(0)),
        apart,
        settings,
    )


def _outputs(args: argparse.Namespace, *, apart: bool) -> Iterator[Output]:
    if args.out is not None:
        for path in list_files(args.out, list_names(apart=apart)).values():
            yield Output("--out", path)
    for _, path in args.plot:
        yield Output("--plot", path)
    if args.cdm is not None:
        yield Output("--cdm", args.cdm, is_folder=True)
    if args.resume is not None:
        yield Output("--resume", args.resume, is_folder=True, may_have_files=True)


def announce_start(plan: Plan) -> None:
    """Say what is screened."""
    count, against = len(plan.objects), plan.rows
    what, within, workers = f"{count:,} objects", f", within {distance(plan.miss_distance_m)}", plan.workers
    if against is not None:
        what = f"{len(against):,} of {count:,} objects against all"
    if plan.assets:
        what, within, workers = f"the boxes of {len(plan.assets):,} assets, {count:,} objects", "", 0
    by = f", {workers} worker process{'es' if workers > 1 else ''}" if workers else ""
    announce(
        "screen",
        "screening",
        f"screening {what}, {compact(plan.horizon)} from {utc(plan.selection.start_ns)}{within}{by}",
        objects=count,
        against=None if against is None else len(against),
        assets=len(plan.assets),
        start=iso(plan.selection.start_ns),
        horizon_s=plan.horizon.total_seconds(),
        miss_distance_m=None if plan.assets else plan.miss_distance_m,
        workers=workers,
    )


def _apart(args: argparse.Namespace, settings: ScreeningSettings) -> bool:
    """Whether fleets and formations have a list of their own."""
    return settings.exclude_fleets if args.fleet_pairs is None else bool(args.fleet_pairs == "apart")


def iso(at_ns: int) -> str:
    """A time in ISO 8601, to the second."""
    return f"{datetime.fromtimestamp(at_ns // NS_PER_S, UTC):%Y-%m-%dT%H:%M:%SZ}"
