"""What ``screen`` prints at its end: the most probable conjunctions and counts, as tables. On a terminal with colours."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.table import Table

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.screening.output.summary import Group, Summary

_WIDTH = 150  # of plain text
_MOST_GROUPS = 8


def text_of(parts: Sequence[RenderableType], *, terminal: bool, width: int | None = None) -> str:
    """Tables and texts as one text: with colours for a terminal, otherwise plain."""
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=width or (None if terminal else _WIDTH),
        highlight=False,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))


def top_table(rows: Sequence[dict[str, object]], *, title: str) -> Table:
    """Conjunctions by SOCRATES' columns: rows of ``conjunction_table``."""
    table = _table(title)
    for name, justify in (
        ("max. prob.", "right"),
        ("closest approach (UTC)", "left"),
        ("distance", "right"),
        ("speed km/s", "right"),
        ("first", "left"),
        ("second", "left"),
        ("ages d", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=name not in {"first", "second"})  # type: ignore[arg-type] # two literals
    for row in rows:
        table.add_row(
            f"{row['MAX_PROB']:.2E}" if row["MAX_PROB"] is not None else "-",
            f"{row['TCA']:%Y-%m-%d %H:%M:%S}",
            distance(float(str(row["MISS_M"]))),
            f"{row['TCA_RELATIVE_SPEED']:.3f}",
            f"{row['OBJECT_NAME_1'] or 'object'} ({row['NORAD_CAT_ID_1']})",
            f"{row['OBJECT_NAME_2'] or 'object'} ({row['NORAD_CAT_ID_2']})",
            f"{row['DSE_1']:.1f} {row['DSE_2']:.1f}",
        )
    return table


def passage_rows(rows: Sequence[dict[str, object]], *, title: str) -> Table:
    """Passages through boxes: rows of ``passage_table``."""
    table = _table(title)
    for name in ("asset", "other object"):
        table.add_column(name)
    for name in ("entry (UTC)", "exit (UTC)"):
        table.add_column(name, no_wrap=True)
    for name in ("radial", "in-track", "cross-track", "max. prob."):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row['OBJECT_NAME_1'] or 'object'} ({row['NORAD_CAT_ID_1']})",
            f"{row['OBJECT_NAME_2'] or 'object'} ({row['NORAD_CAT_ID_2']})",
            f"{row['ENTRY']:%Y-%m-%d %H:%M:%S}",
            f"{row['EXIT']:%H:%M:%S}",
            *(signed(float(str(row[f"MISS_{axis}_M"]))) for axis in ("RADIAL", "IN_TRACK", "CROSS_TRACK")),
            f"{row['MAX_PROB']:.2E}" if row["MAX_PROB"] is not None else "-",
        )
    return table


def group_tables(summary: Summary) -> Iterator[RenderableType]:
    """The groups of conjunctions, two tables beside each other."""
    pairs = (
        (("orbit classes", summary.by_class), ("fleets", summary.by_fleet)),
        (("distance", summary.by_distance), ("relative speed", summary.by_speed)),
    )
    for left, right in pairs:
        yield ""
        yield Columns([_groups(*left), _groups(*right)], padding=(0, 4))


def distance(metres: float) -> str:
    """For people: metres below one kilometre."""
    return f"{metres / M_PER_KM:.3f} km" if metres >= M_PER_KM else f"{metres:.0f} m"


def signed(metres: float) -> str:
    """A part of a distance, with its sign."""
    return f"{'-' if metres < 0.0 else '+'}{distance(abs(metres))}"


def _groups(title: str, groups: Sequence[Group]) -> Table:
    table = _table()
    table.add_column(title, no_wrap=True)
    for name in ("count", "smallest", "max. prob."):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups[:_MOST_GROUPS]:
        table.add_row(group.label, f"{group.count:,}", distance(group.smallest_m), f"{group.max_probability:.2E}")
    if rest := groups[_MOST_GROUPS:]:
        table.add_row(
            f"{len(rest)} others",
            f"{sum(group.count for group in rest):,}",
            distance(min(group.smallest_m for group in rest)),
            f"{max(group.max_probability for group in rest):.2E}",
        )
    return table


def _table(title: str | None = None) -> Table:
    """With a line below the header, if standard output can show it."""
    lines = box.SIMPLE_HEAD if (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf") else None
    return Table(title=title, title_justify="left", box=lines, pad_edge=False, show_edge=False)
