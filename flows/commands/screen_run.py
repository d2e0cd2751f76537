"""Carries out ``python -m flows screen``: reads, screens in worker processes, assesses, writes and prints."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from flows.commands.messages import announce, report_problems
from flows.commands.screen_catalog import (
    CatalogUnusable,
    Selection,
    read_source,
    rows_of,
    select,
    utc,
    warnings_of,
)
from flows.commands.screen_files import Output, list_files, problems_of, write_lists, write_texts, write_whole
from flows.commands.screen_progress import ScreeningProgress
from flows.commands.screen_report import distance, group_tables, text_of, top_table
from flows.commands.screen_values import compact
from flows.output import print_line
from flows.settings.load import SettingsError, load_settings
from flows.settings.screening import ScreeningSettings
from flows.settings.sections import Section
from orchestrator_adapter import MissingExtra, OperatorError, SystemClock
from orchestrator_adapter.bulkhead import BulkheadCannotStart
from orchestrator_adapter.process import ExitCode, StopRequested, StopRequests
from sda_ops.astro.propagation import DEFAULT_MAX_AGE
from sda_ops.astro.time import NS_PER_S
from sda_ops.screening.approaches import Screening
from sda_ops.screening.assess import Conjunctions, assess
from sda_ops.screening.checkpoints import CheckpointError
from sda_ops.screening.formations import AssessedSlowPairs, PairKind, assess_slow_pairs
from sda_ops.screening.messages import Notation, message_files, messages_of
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.pictures import Encounter, pair_picture, require_matplotlib
from sda_ops.screening.screen import ScreeningOptions
from sda_ops.screening.summary import most_probable_first, summarise
from sda_ops.screening.tables import Unscreened, conjunction_table, slow_pair_table, unscreened_table
from sda_ops.screening.windows import screen_in_windows, screening_bulkhead

_MS = 1_000_000

_SHORTEST_WINDOW = timedelta(hours=1)
"""The positions before and behind a window are computed for both neighbours: half an hour of them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, decided from the options and the settings.

    Attributes:
        selection: The objects and the start.
        horizon: How long.
        miss_distance_m: The miss distance.
        max_age: The oldest element sets that are screened.
        rows: Screen only these objects against all; ``None``: all against all.
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


@dataclass(frozen=True, slots=True)
class Found:
    """What the screening found, assessed.

    Attributes:
        screening: What the worker processes returned.
        conjunctions: Its approaches.
        slow_pairs: Its slow pairs.
        unscreened: Objects that were not screened in a part of the horizon, the old ones too.
        listed: Indices of the conjunctions in the main list, the most probable first.
        apart: Indices of those inside one fleet or formation, if they are apart.
    """

    screening: Screening
    conjunctions: Conjunctions
    slow_pairs: AssessedSlowPairs
    unscreened: tuple[Unscreened, ...]
    listed: Rows
    apart: Rows


def run_screening(args: argparse.Namespace) -> int:
    """Screen, write and print. Returns the exit code."""
    step = "reading the catalogue"
    try:
        try:
            plan = _plan(args)
        except (SettingsError, _Unusable) as error:
            return report_problems("screen", error.problems)
        except CatalogUnusable as error:
            return report_problems("screen", [str(error)])
        for event, text, fields in warnings_of(plan.selection, plan.max_age):
            announce("screen", event, text, **fields)
        step = "screening"
        _announce_start(plan)
        screening = asyncio.run(_screen(plan, args))
        step = "assessing and writing"
        found = _assessed(plan, screening)
        written, problems = _write(plan, found, args)
    except KeyboardInterrupt:
        return report_problems("screen", [_stopped(step, args.resume)])
    except StopRequested as request:
        return report_problems("screen", [_stopped(f"{step} ({request})", args.resume)])
    except (OperatorError, BulkheadCannotStart, CheckpointError, MissingExtra) as error:
        return report_problems("screen", [str(error)])
    terminal = sys.stdout is not None and sys.stdout.isatty()
    print_line(text_of([*_report(plan, found, args.top, listing=args.out is None)], terminal=terminal))
    for what, path in written:
        print_line(f"{what:13} {path}")
    return report_problems("screen", problems) if problems else ExitCode.OK


class _Settings(Section):
    """The settings of ``screen``."""

    screening: ScreeningSettings = ScreeningSettings()


class _Unusable(Exception):
    """Wrong options; ``problems`` has a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _plan(args: argparse.Namespace) -> Plan:
    """Raises ``SettingsError``, ``CatalogUnusable`` or ``_Unusable``, before anything takes long or is written."""
    settings = load_settings(_Settings, args.config, prefix="SDA_SCREEN__").screening
    apart = _apart(args, settings)
    problems = list(problems_of(_outputs(args, apart=apart), overwrite=args.overwrite))
    try:
        if args.plot:
            require_matplotlib()
    except MissingExtra as error:
        problems.append(f"--plot: {error}")
    if problems:
        raise _Unusable(problems)
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
    for pair, path in args.plot:
        try:
            found = None if pair is None else rows_of(selection.objects, pair, too_old=selection.too_old)
            if found is not None and len(found) < len(("first", "second")):
                raise ValueError(f"{' and '.join(pair)} are the same object")  # noqa: TRY301 - reported with the others
            plots.append((None if found is None else (min(found), max(found)), path))
        except ValueError as error:
            problems.append(f"--plot: {error}")
    if problems:
        raise _Unusable(problems)
    return Plan(
        selection,
        horizon,
        miss_m,
        max_age,
        None if rows is None else np.array(sorted(rows), dtype=np.intp),
        tuple(plots),
        args.workers or settings.workers or len(os.sched_getaffinity(0)),
        apart,
        settings,
    )


def _outputs(args: argparse.Namespace, *, apart: bool) -> Iterator[Output]:
    if args.out is not None:
        for path in list_files(args.out, apart=apart).values():
            yield Output("--out", path)
    for _, path in args.plot:
        yield Output("--plot", path)
    if args.cdm is not None:
        yield Output("--cdm", args.cdm, is_folder=True)
    if args.resume is not None:
        yield Output("--resume", args.resume, is_folder=True, may_have_files=True)


def _announce_start(plan: Plan) -> None:
    count, against = len(plan.objects), plan.rows
    what = f"{count:,} objects" if against is None else f"{len(against):,} of {count:,} objects against all"
    text = (
        f"screening {what}, {compact(plan.horizon)} from {utc(plan.selection.start_ns)}, "
        f"within {distance(plan.miss_distance_m)}, {plan.workers} worker process{'es' if plan.workers > 1 else ''}"
    )
    announce(
        "screen",
        "screening",
        text,
        objects=count,
        against=None if against is None else len(against),
        start=_iso(plan.selection.start_ns),
        horizon_s=plan.horizon.total_seconds(),
        miss_distance_m=plan.miss_distance_m,
        workers=plan.workers,
    )


async def _screen(plan: Plan, args: argparse.Namespace) -> Screening:
    """Raises ``StopRequested`` on SIGTERM, SIGINT or SIGHUP, and what ``screen_in_windows`` raises."""
    stop = StopRequests()
    with stop.listen(), ScreeningProgress(quiet=args.quiet) as progress:

        async def screen() -> Screening:
            async with screening_bulkhead(workers=plan.workers) as pool:
                return await screen_in_windows(
                    pool,
                    plan.objects,
                    plan.selection.start_ns,
                    plan.horizon,
                    plan.miss_distance_m,
                    rows=plan.rows,
                    options=ScreeningOptions(**dict(plan.settings.advanced)),
                    window=window_length(plan.settings.window, plan.horizon, plan.workers),
                    checkpoints=args.resume,
                    on_progress=progress,
                )

        return await stop.unless_requested("the screening", screen)


def window_length(longest: timedelta, horizon: timedelta, workers: int) -> timedelta:
    """A part of the horizon for each worker, in half hours: at least `_SHORTEST_WINDOW`, at most ``longest``."""
    half_hour = timedelta(minutes=30)
    return min(longest, max(_SHORTEST_WINDOW, -(-horizon // workers // half_hour) * half_hour))


def _assessed(plan: Plan, screening: Screening) -> Found:
    assumptions = plan.settings.assumptions()
    slow_pairs = assess_slow_pairs(plan.objects, screening.slow_pairs, assumptions=assumptions)
    conjunctions = assess(plan.objects, screening.approaches, assumptions=assumptions, slow_pairs=slow_pairs)
    is_listed_apart = ~conjunctions.listed if plan.apart else np.zeros(len(conjunctions), dtype=np.bool_)
    return Found(
        screening,
        conjunctions,
        slow_pairs,
        (*plan.selection.too_old, *(Unscreened.of(plan.objects, ended) for ended in screening.ended)),
        most_probable_first(conjunctions, ~is_listed_apart),
        most_probable_first(conjunctions, is_listed_apart),
    )


def _apart(args: argparse.Namespace, settings: ScreeningSettings) -> bool:
    """Whether fleets and formations have a list of their own."""
    return settings.exclude_fleets if args.fleet_pairs is None else bool(args.fleet_pairs == "apart")


def _write(plan: Plan, found: Found, args: argparse.Namespace) -> tuple[list[tuple[str, Path]], list[str]]:
    """Write every output, as far as possible. Returns what was written, and a sentence for each that was not."""
    written: list[tuple[str, Path]] = []
    problems: list[str] = []
    if args.out is not None:
        files = list_files(args.out, apart=plan.apart)
        try:
            write_lists(files, _tables(plan, found), about(plan, found, args.catalog))
            written += files.items()
        except OSError as error:
            problems.append(_not_written("--out", error))
    for pair, path in plan.plots:
        if pair is None and not len(found.conjunctions):
            announce("screen", "no_picture", f"{path} is not written: there is no conjunction to draw", file=str(path))
            continue
        try:
            written.append(("picture", _plot(plan, found, pair, path)))
        except OSError as error:
            problems.append(_not_written("--plot", error))
    if args.cdm is not None:
        try:
            count = _write_messages(plan, found, args.cdm, args.cdm_format, args.originator)
            written.append((f"{count:,} messages", args.cdm))
        except OSError as error:
            problems.append(_not_written("--cdm", error))
        except ValueError as error:
            problems.append(f"--cdm: {error}")
    return written, problems


def _tables(plan: Plan, found: Found) -> dict[str, Any]:
    tables = {"conjunctions": conjunction_table(plan.objects, found.conjunctions, found.listed)}
    if plan.apart:
        tables["fleet"] = conjunction_table(plan.objects, found.conjunctions, found.apart)
    tables["slow"] = slow_pair_table(plan.objects, found.slow_pairs)
    tables["unscreened"] = unscreened_table(found.unscreened)
    return tables


def about(plan: Plan, found: Found, catalog: str) -> dict[str, Any]:
    """What was screened and how, for JSON and for Parquet's metadata."""
    selection = plan.selection
    return {
        "catalog": catalog,
        "start": _iso(selection.start_ns),
        "end": _iso(plan.end_ns),
        "miss_distance_m": plan.miss_distance_m,
        "objects": len(plan.objects),
        "against": None if plan.rows is None else plan.objects.columns.catalog_number[plan.rows].tolist(),
        "rows": selection.rows,
        "rows_rejected": len(selection.problems),
        "too_old": len(selection.too_old),
        "median_age_s": selection.median_age.total_seconds(),
        "max_age_s": plan.max_age.total_seconds(),
        "statistics": asdict(found.screening.statistics),
    }


def _write_messages(plan: Plan, found: Found, folder: Path, form: Notation, originator: str) -> int:
    """Write a message for each listed conjunction, and return how many. Raises ``OSError`` and ``ValueError``."""
    messages = messages_of(
        plan.objects,
        found.conjunctions,
        found.listed,
        screening=found.screening,
        originator=originator,
        creation_date_ns=SystemClock().now_ns() // _MS * _MS,
        errors=plan.settings.assumptions().errors,
        assets=plan.rows,
    )
    return write_texts(folder, message_files(messages, form))


def _plot(plan: Plan, found: Found, pair: tuple[int, int] | None, path: Path) -> Path:
    """Without a pair, of the most probable conjunction. Raises ``OSError``."""
    conjunctions = found.conjunctions
    if pair is None:
        best = found.listed if len(found.listed) else found.apart
        index: int | None = int(best[0])
        pair = int(conjunctions.first[best[0]]), int(conjunctions.second[best[0]])
    else:
        of_pair = np.flatnonzero((conjunctions.first == pair[0]) & (conjunctions.second == pair[1]))
        index = int(of_pair[conjunctions.miss_m[of_pair].argmin()]) if len(of_pair) else None
    content = pair_picture(
        plan.objects,
        *pair,
        None if index is None else Encounter.of(conjunctions, index),
        start_ns=plan.selection.start_ns,
        end_ns=plan.end_ns,
        miss_distance_m=plan.miss_distance_m,
        file_format=path.suffix[1:].lower(),
    )
    write_whole(path, content)
    return path


def _report(plan: Plan, found: Found, top: int, *, listing: bool) -> Iterator[RenderableType]:
    statistics = found.screening.statistics
    listed, apart = len(found.listed), len(found.apart)
    yield (
        f"{statistics.objects:,} objects, {_iso(plan.selection.start_ns)} to {_iso(plan.end_ns)}, "
        f"within {distance(plan.miss_distance_m)}: {listed:,} conjunctions"
        + (f", {apart:,} more inside fleets and formations" if apart else "")
        + f", {_slow_pairs(found.slow_pairs)}, {len(found.unscreened):,} objects not screened in a part of the time"
    )
    yield (
        f"interpolation error at most {statistics.interpolation_error_m:.1f} m, bound {statistics.interpolation_bound_m:g} m; "
        f"broad phase {statistics.broad_phase}, propagator {statistics.engine}, "
        f"{statistics.candidates:,} candidates of {statistics.pairs:,} pairs"
    )
    if listed:
        if listing:
            yield ""
            first = found.listed[:top]
            rows = conjunction_table(plan.objects, found.conjunctions, first).to_pylist()
            yield top_table(rows, title=f"The most probable {len(first):,} of {listed:,} conjunctions")
        yield from group_tables(summarise(found.conjunctions, found.listed))
    if apart:
        yield ""
        yield "Inside fleets and formations:"
        yield from group_tables(summarise(found.conjunctions, found.apart))


def _slow_pairs(pairs: AssessedSlowPairs) -> str:
    kinds = {
        kind.name.lower(): int((pairs.kind == kind).sum()) for kind in sorted(PairKind, reverse=True) if len(pairs)
    }
    by_kind = ", ".join(f"{count:,} {name}" for name, count in kinds.items() if count)
    return f"{len(pairs):,} slow pairs" + (f" ({by_kind})" if by_kind else "")


def _stopped(step: str, resume: Path | None) -> str:
    kept = f"; finished windows are in {resume}: the same command continues there" if resume is not None else ""
    return f"stopped while {step}; nothing was written{kept}"


def _not_written(option: str, error: OSError) -> str:
    return f"{option}: {error.filename}: {error.strerror}" if error.filename else f"{option}: {error}"


def _iso(at_ns: int) -> str:
    return f"{datetime.fromtimestamp(at_ns // NS_PER_S, UTC):%Y-%m-%dT%H:%M:%SZ}"
