"""Carries out ``python -m flows screen``: reads, screens in worker processes, assesses, writes and prints."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from flows.commands.messages import announce, report_problems
from flows.commands.screen.assets import FoundPassages, assessed_passages, passage_report, passage_tables, screen_boxes
from flows.commands.screen.catalog import CatalogUnusable, warnings_of
from flows.commands.screen.files import MAIN, list_files, list_names, write_lists, write_texts, write_whole
from flows.commands.screen.plan import Plan, Unusable, announce_start, iso, make_plan
from flows.commands.screen.progress import ScreeningProgress
from flows.commands.screen.report import distance, group_tables, text_of, top_table
from flows.output import print_line
from flows.settings.load import SettingsError
from orchestrator_adapter import OperatorError, SystemClock
from orchestrator_adapter.bulkhead import BulkheadCannotStart
from orchestrator_adapter.process import ExitCode, StopRequested, StopRequests
from sda_ops.screening.approaches import Screening
from sda_ops.screening.assessment.assess import Conjunctions, assess
from sda_ops.screening.assessment.formations import AssessedSlowPairs, PairKind, assess_slow_pairs
from sda_ops.screening.objects import Rows
from sda_ops.screening.output.messages import message_files, messages_of, passage_messages_of
from sda_ops.screening.output.pictures import Encounter, pair_picture
from sda_ops.screening.output.summary import most_probable_first, summarise
from sda_ops.screening.output.tables import Unscreened, conjunction_table, slow_pair_table, unscreened_table
from sda_ops.screening.volumes.passages import AssetScreening
from sda_ops.screening.workers.checkpoints import CheckpointError
from sda_ops.screening.workers.windows import WorkerLimits, screen_in_windows, screening_bulkhead

_MS = 1_000_000
_WRITING = "assessing and writing"

_SHORTEST_WINDOW = timedelta(hours=1)
"""The positions before and behind a window are computed for both neighbours: half an hour of them."""


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
    # The progress says enough about worker processes that work; lost ones are warnings.
    logging.getLogger("orchestrator_adapter.bulkhead").setLevel(logging.WARNING)
    step = "reading the catalogue"
    try:
        try:
            plan = make_plan(args)
        except (SettingsError, Unusable) as error:
            return report_problems("screen", error.problems)
        except CatalogUnusable as error:
            return report_problems("screen", [str(error)])
        for event, text, fields in warnings_of(plan.selection, plan.max_age):
            announce("screen", event, text, **fields)
        for sentence in plan.settings.without_effect(plan.objects):
            announce("screen", "setting_without_effect", f"warning: {sentence}")
        step = "screening"
        if not args.quiet:
            announce_start(plan)
        screening = asyncio.run(_screen(plan, args))
        step = _WRITING
        found = _assessed(plan, screening) if isinstance(screening, Screening) else assessed_passages(plan, screening)
        written, problems = _write(plan, found, args)
    except KeyboardInterrupt:
        return report_problems("screen", [_stopped(step, args.resume)])
    except StopRequested as request:
        return report_problems("screen", [_stopped(f"{step} ({request})", args.resume)])
    except (OperatorError, BulkheadCannotStart, CheckpointError) as error:
        return report_problems("screen", [str(error)])
    terminal = sys.stdout is not None and sys.stdout.isatty()
    listing = args.out is None
    report = (
        _report(plan, found, args.top, listing=listing)
        if isinstance(found, Found)
        else passage_report(plan, found, args.top, listing=listing)
    )
    print_line(text_of([*report], terminal=terminal))
    for what, path in written:
        print_line(f"{what:13} {path}")
    return report_problems("screen", problems) if problems else ExitCode.OK


async def _screen(plan: Plan, args: argparse.Namespace) -> Screening | AssetScreening:
    """Raises ``StopRequested`` on SIGTERM, SIGINT or SIGHUP, and what ``screen_in_windows`` raises."""
    stop = StopRequests()
    with stop.listen(), ScreeningProgress(quiet=args.quiet) as progress:

        async def screen() -> Screening | AssetScreening:
            if plan.assets:
                return await screen_boxes(plan, progress)
            async with screening_bulkhead(workers=plan.workers) as pool:
                return await screen_in_windows(
                    pool,
                    plan.objects,
                    plan.selection.start_ns,
                    plan.horizon,
                    plan.miss_distance_m,
                    rows=plan.rows,
                    options=plan.settings.advanced.options(),
                    window=window_length(plan.settings.window, plan.horizon, plan.workers),
                    checkpoints=args.resume,
                    on_progress=progress,
                    limits=WorkerLimits(held_bytes=0),
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


def _write(
    plan: Plan, found: Found | FoundPassages, args: argparse.Namespace
) -> tuple[list[tuple[str, Path]], list[str]]:
    """Write every output, as far as possible. Returns what was written, and a sentence for each that was not."""
    written: list[tuple[str, Path]] = []
    problems: list[str] = []
    if args.out is not None:
        files = list_files(args.out, list_names(apart=plan.apart))
        try:
            tables = _tables(plan, found) if isinstance(found, Found) else passage_tables(plan, found)
            write_lists(files, tables, about(plan, found))
            written += files.items()
        except OSError as error:
            problems.append(_not_written("--out", error))
    if isinstance(found, Found):
        for pair, path in plan.plots:
            if pair is None and not len(found.conjunctions):
                announce(
                    "screen", "no_picture", f"{path} is not written: there is no conjunction to draw", file=str(path)
                )
                continue
            try:
                written.append(("picture", _plot(plan, found, pair, path)))
            except OSError as error:
                problems.append(_not_written("--plot", error))
    if args.cdm is not None:
        try:
            count = _write_messages(plan, found, args)
            written.append((f"{count:,} messages", args.cdm))
        except OSError as error:
            problems.append(_not_written("--cdm", error))
        except ValueError as error:
            problems.append(f"--cdm: {error}")
    return written, problems


def _tables(plan: Plan, found: Found) -> dict[str, Any]:
    tables = {MAIN: conjunction_table(plan.objects, found.conjunctions, found.listed)}
    if plan.apart:
        tables["fleet"] = conjunction_table(plan.objects, found.conjunctions, found.apart)
    tables["slow"] = slow_pair_table(plan.objects, found.slow_pairs)
    tables["unscreened"] = unscreened_table(found.unscreened)
    return tables


def about(plan: Plan, found: Found | FoundPassages) -> dict[str, Any]:
    """What was screened and how, for JSON and for Parquet's metadata."""
    selection = plan.selection
    return {
        "catalog": selection.file,
        "start": iso(selection.start_ns),
        "end": iso(plan.end_ns),
        "miss_distance_m": None if plan.assets else plan.miss_distance_m,
        "objects": len(plan.objects),
        "against": None if plan.rows is None else plan.objects.columns.catalog_number[plan.rows].tolist(),
        "assets": [
            {"catalog_number": int(plan.objects.columns.catalog_number[asset.row]), **asdict(asset.volume)}
            for asset in plan.assets
        ],
        "rows": selection.rows,
        "rows_rejected": len(selection.problems),
        "too_old": len(selection.too_old),
        "median_age_s": selection.median_age.total_seconds(),
        "max_age_s": plan.max_age.total_seconds(),
        "statistics": asdict(found.screening.statistics) if isinstance(found, Found) else None,
    }


def _write_messages(plan: Plan, found: Found | FoundPassages, args: argparse.Namespace) -> int:
    """Write a message for each listed conjunction, and return how many. Raises ``OSError`` and ``ValueError``."""
    given: dict[str, Any] = {
        "originator": args.originator,
        "creation_date_ns": SystemClock().now_ns() // _MS * _MS,
        "errors": plan.settings.assumptions().errors,
    }
    if isinstance(found, Found):
        messages = messages_of(
            plan.objects, found.conjunctions, found.listed, screening=found.screening, assets=plan.rows, **given
        )
    else:
        messages = passage_messages_of(
            plan.objects, found.conjunctions, found.listed, screening=found.screening, assets=plan.assets, **given
        )
    return write_texts(args.cdm, message_files(messages, args.cdm_format))


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
    against = "" if plan.rows is None else f"{len(plan.rows):,} of "
    yield (
        f"{against}{statistics.objects:,} objects, {iso(plan.selection.start_ns)} to {iso(plan.end_ns)}, "
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
    if step == _WRITING:
        return f"stopped while {step}: files may be missing"
    has_windows = resume is not None and resume.is_dir() and any(resume.iterdir())
    kept = f"; finished windows are in {resume}: the same command continues there" if has_windows else ""
    return f"stopped while {step}; nothing was written{kept}"


def _not_written(option: str, error: OSError) -> str:
    return f"{option}: {error.filename}: {error.strerror}" if error.filename else f"{option}: {error}"
