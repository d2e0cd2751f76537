"""``screen --assets``: the passages of other objects through the boxes of a list of assets, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
from rich.console import RenderableType

from flows.commands.screen.files import MAIN, list_names
from flows.commands.screen.plan import Plan, iso
from flows.commands.screen.report import group_tables, passage_rows
from sda_ops.screening.approaches import SLOW_M_S
from sda_ops.screening.assessment.assess import Conjunctions, assess
from sda_ops.screening.geometry.ephemeris import PreparedObjects
from sda_ops.screening.geometry.screen import held_positions
from sda_ops.screening.objects import Rows
from sda_ops.screening.output.summary import most_probable_first, summarise
from sda_ops.screening.output.tables import Unscreened, passage_table, unscreened_table
from sda_ops.screening.volumes.passages import AssetScreening, merged, screen_assets
from sda_ops.screening.workers.windows import DEFAULT_WINDOW, windows_of


@dataclass(frozen=True, slots=True)
class FoundPassages:
    """What a screening of boxes found, assessed.

    Attributes:
        screening: The passages, and the times that were screened.
        conjunctions: Their closest approaches, in the order of the passages.
        unscreened: Objects that were not screened in a part of the horizon, the old ones too.
        listed: Indices of the passages in the main list, the most probable first.
        apart: Indices of those inside one fleet, if they are apart.
        slow: Indices of those of objects that hardly move against the asset: docked, in formation.
    """

    screening: AssetScreening
    conjunctions: Conjunctions
    unscreened: tuple[Unscreened, ...]
    listed: Rows
    apart: Rows
    slow: Rows


async def screen_boxes(plan: Plan, on_progress: Callable[[int, int, float | None], object]) -> AssetScreening:
    """Screen the boxes of ``plan.assets``, one window after the other in a thread. Cancelled, it ends after its window."""
    options = plan.settings.advanced.options()
    windows = windows_of(plan.selection.start_ns, plan.horizon, DEFAULT_WINDOW)
    prepared = await asyncio.to_thread(PreparedObjects, plan.objects, engine=options.engine)

    def screen(start_ns: int, end_ns: int) -> AssetScreening:
        return screen_assets(held_positions(prepared, start_ns, end_ns, options), plan.assets, start_ns, end_ns)

    began, parts = monotonic(), []
    on_progress(0, len(windows), None)
    for window in windows:
        parts.append(await asyncio.to_thread(screen, *window))
        left = len(windows) - len(parts)
        on_progress(len(parts), len(windows), (monotonic() - began) / len(parts) * left)
    return merged(parts)


def assessed_passages(plan: Plan, screening: AssetScreening) -> FoundPassages:
    """Assess the closest approach of each passage."""
    conjunctions = assess(plan.objects, screening.passages.approaches(), assumptions=plan.settings.assumptions())
    apart = conjunctions.same_fleet if plan.apart else np.zeros(len(conjunctions), dtype=np.bool_)
    slow = conjunctions.relative_speed_m_s < SLOW_M_S
    return FoundPassages(
        screening,
        conjunctions,
        (*plan.selection.too_old, *(Unscreened.of(plan.objects, ended) for ended in screening.ended)),
        most_probable_first(conjunctions, ~apart & ~slow),
        most_probable_first(conjunctions, apart & ~slow),
        most_probable_first(conjunctions, slow),
    )


def passage_tables(plan: Plan, found: FoundPassages) -> dict[str, Any]:
    """The lists of a screening of boxes, by name."""
    parts = {MAIN: found.listed, "fleet": found.apart, "slow": found.slow}
    tables = {
        name: passage_table(plan.objects, found.conjunctions, found.screening.passages, rows)
        for name, rows in parts.items()
    }
    tables["unscreened"] = unscreened_table(found.unscreened)
    return {name: tables[name] for name in (MAIN, *list_names(apart=plan.apart))}


def passage_report(plan: Plan, found: FoundPassages, top: int, *, listing: bool) -> Iterator[RenderableType]:
    """What is printed at the end."""
    yield (
        f"{len(plan.assets):,} assets, {len(plan.objects):,} objects, {iso(plan.selection.start_ns)} to "
        f"{iso(plan.end_ns)}: {len(found.listed):,} passages through their boxes"
        + (f", {len(found.apart):,} more inside fleets" if len(found.apart) else "")
        + f", {len(found.slow):,} slow ones, {len(found.unscreened):,} objects not screened in a part of the time"
    )
    if not len(found.listed):
        return
    if listing:
        first = found.listed[:top]
        rows = passage_table(plan.objects, found.conjunctions, found.screening.passages, first).to_pylist()
        yield ""
        yield passage_rows(rows, title=f"The most probable {len(first):,} of {len(found.listed):,} passages")
    yield from group_tables(summarise(found.conjunctions, found.listed))
