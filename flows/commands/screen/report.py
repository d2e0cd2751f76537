"""What ``screen`` prints at its end: the most probable conjunctions and counts, as tables. On a terminal with colours."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
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


def top_table(rows: Sequence[dict[str, object]], *, title: str) -> RenderableType:
    """Conjunctions by SOCRATES' columns: rows of ``conjunction_table``. The objects have a column or, in little space, a line each."""
    wide, narrow = _table(title), _table(title)
    for table, probability, time, objects in (
        (wide, "max. prob.", "closest approach (UTC)", ("first", "second")),
        (narrow, "max. P", "closest (UTC)", ("objects",)),
    ):
        for name in (probability, time, "distance", "km/s"):
            table.add_column(name, justify="left" if "(" in name else "right", no_wrap=True)
        for name in objects:
            table.add_column(name)
        table.add_column("ages d", justify="right", no_wrap=True)
    for row in rows:
        beginning = (
            _probability(row),
            f"{row['TCA']:%Y-%m-%d %H:%M:%S}",
            distance(float(str(row["MISS_M"]))),
            f"{row['TCA_RELATIVE_SPEED']:.3f}",
        )
        ages = [f"{row[f'DSE_{number}']:.1f}" for number in (1, 2)]
        wide.add_row(*beginning, *_objects(row), " ".join(ages))
        narrow.add_row(*beginning, "\n".join(_objects(row)), "\n".join(ages))
    return _Fitting(wide, narrow)


def passage_rows(rows: Sequence[dict[str, object]], *, title: str) -> RenderableType:
    """Passages through boxes: rows of ``passage_table``. In little space both objects and both times are below each other."""
    wide, narrow = _table(title), _table(title)
    for name in ("asset", "other object"):
        wide.add_column(name)
    for name in ("entry (UTC)", "exit (UTC)"):
        wide.add_column(name, no_wrap=True)
    narrow.add_column("asset, other object")
    narrow.add_column("entry, exit (UTC)", no_wrap=True)
    for name in ("radial", "in-track", "cross-track", "max. prob."):
        wide.add_column(name, justify="right", no_wrap=True)
    for name in ("R km", "I km", "C km", "max. P"):
        narrow.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        entry, leaves = f"{row['ENTRY']:%Y-%m-%d %H:%M:%S}", f"{row['EXIT']:%H:%M:%S}"
        miss_m = [float(str(row[f"MISS_{axis}_M"])) for axis in ("RADIAL", "IN_TRACK", "CROSS_TRACK")]
        probability = _probability(row)
        wide.add_row(*_objects(row), entry, leaves, *map(signed, miss_m), probability)
        below = f"{entry}\n{leaves:>{len(entry)}}"
        narrow.add_row("\n".join(_objects(row)), below, *(f"{part / M_PER_KM:+.3f}" for part in miss_m), probability)
    return _Fitting(wide, narrow)


class _Fitting:
    """The wide table where it fits without wrapping, otherwise the narrow one."""

    def __init__(self, wide: Table, narrow: Table) -> None:
        self._wide, self._narrow = wide, narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The table is measured as if there were room for everything.
        needed = Measurement.get(console, options.update_width(_WIDTH), self._wide).maximum
        yield self._wide if needed <= options.max_width else self._narrow


def _objects(row: dict[str, object]) -> tuple[str, str]:
    first, second = (f"{row[f'OBJECT_NAME_{n}'] or 'object'} ({row[f'NORAD_CAT_ID_{n}']})" for n in (1, 2))
    return first, second


def _probability(row: dict[str, object]) -> str:
    return f"{row['MAX_PROB']:.2E}" if row["MAX_PROB"] is not None else "-"


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
    return Table(title=title, title_justify="left", box=lines, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
