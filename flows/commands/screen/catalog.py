"""The catalogue of a screening: read from a file or a URL, one element set of each object, none too far from the start."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import numpy as np

from flows.commands.messages import announce
from flows.commands.screen.values import Start, compact
from orchestrator_adapter import Attempt, RetryDiscard, RetryDisposition, RetryOk, RetryPolicy, SystemClock, with_retry
from sda_ops.astro.propagation import DEFAULT_MAX_AGE
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import Catalog, ElementColumns, ElementSet, nearest_of_each, parse_catalog, without_usable_rows
from sda_ops.catalog.fetch import CatalogFile, CatalogLocation, CatalogUnavailable, CatalogUrl, Content, fetch
from sda_ops.catalog.reader import decode_text
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.output.tables import Unscreened

_T = TypeVar("_T")
_OLD = timedelta(days=7)
"""A median age above this is worth a warning: in low orbit the error grows by 1 to 3 km a day (sgp4's documentation)."""

_SHOWN_PROBLEMS = 3
_MINUTE_NS = 60 * NS_PER_S


class CatalogUnusable(Exception):
    """The catalogue cannot be read, or has nothing to screen. The message is one line."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is screened from when.

    Attributes:
        file: The file, or the address without user, password and query.
        objects: One element set of each object, the one that is nearest to the start.
        start_ns: The start, UTC.
        too_old: Objects whose element set is too far from the start, with the reason.
        median_age: Start minus the median epoch of the objects.
        rows: How many rows the catalogue has.
        problems: The rows that cannot be used.
    """

    file: str
    objects: ScreenedObjects
    start_ns: int
    too_old: tuple[Unscreened, ...]
    median_age: timedelta
    rows: int
    problems: tuple[str, ...]


def read_source(text: str) -> Catalog:
    """The catalogue of a file or a URL. Raises ``CatalogUnusable``."""
    try:
        source = _location(text)
        content = asyncio.run(fetch(source, {}, clock=SystemClock(), retrying=_retrying))
        assert isinstance(content, Content)  # without validators there is no other answer
        catalog = parse_catalog(decode_text(content.body), file=str(source))
    except CatalogUnavailable as error:
        raise CatalogUnusable(str(error)) from error
    except ValueError as error:
        message = str(error)
        raise CatalogUnusable(message if message.startswith(text) else f"{text}: {message}") from error
    if (why := without_usable_rows(catalog)) is not None:
        raise CatalogUnusable(f"{catalog.file}: {why}")
    if catalog.truncated:
        raise CatalogUnusable(f"{catalog.file}: the file ends within a row; is it still being written?")
    return catalog


def select(catalog: Catalog, start: Start, *, horizon: timedelta, max_age: timedelta, now_ns: int) -> Selection:
    """The element set of each object that is nearest to the start, without those beyond ``max_age``.

    Raises ``CatalogUnusable`` if none is left.
    """
    start_ns = _start_ns(catalog, start, now_ns)
    nearest = nearest_of_each(catalog, start_ns)
    epochs_ns = ElementColumns.of(nearest.element_sets).epoch_ns
    ages_ns = start_ns - epochs_ns
    median_age = timedelta(microseconds=int(np.median(ages_ns)) // 1_000)
    limit_ns = round(max_age.total_seconds() * NS_PER_S)
    kept = np.abs(ages_ns) <= limit_ns
    end_ns = start_ns + round(horizon.total_seconds() * NS_PER_S)
    if not kept.any():
        longer = ", or a greater --max-age" if max_age < DEFAULT_MAX_AGE else ""
        raise CatalogUnusable(
            f"{catalog.file}: all {len(kept):,} element sets are more than {compact(max_age)} from the start {utc(start_ns)} "
            f"(the median epoch is {_before(median_age)} it), and SGP4's positions are meaningless there; "
            f"give --start epoch or --start TIME{longer}"
        )
    too_old = tuple(
        Unscreened(
            catalog_number=nearest.element_sets[row].catalog_number,
            name=nearest.element_sets[row].name,
            from_ns=start_ns,
            until_ns=end_ns,
            reason=f"the epoch of its element set is {_before(timedelta(microseconds=int(ages_ns[row]) // 1_000))} the start, "
            f"more than {compact(max_age)}",
        )
        for row in np.flatnonzero(~kept).tolist()
    )
    chosen: list[ElementSet] = [nearest.element_sets[row] for row in np.flatnonzero(kept).tolist()]
    return Selection(
        catalog.file,
        ScreenedObjects.of(chosen),
        start_ns,
        too_old,
        median_age,
        catalog.rows,
        tuple(map(str, nearest.problems)),
    )


def warnings_of(selection: Selection, max_age: timedelta) -> Iterable[tuple[str, str, dict[str, object]]]:
    """What a user should know before trusting the result: event, text and fields of each message."""
    problems = selection.problems
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        more = f" (and {len(problems) - _SHOWN_PROBLEMS} more)" if len(problems) > _SHOWN_PROBLEMS else ""
        yield (
            "rows_rejected",
            f"{len(problems):,} of {selection.rows:,} rows cannot be used: {shown}{more}",
            {"rejected": len(problems), "rows": selection.rows, "first": list(problems[:_SHOWN_PROBLEMS])},
        )
    if selection.too_old:
        yield (
            "too_old",
            (
                f"warning: {len(selection.too_old):,} of {len(selection.too_old) + len(selection.objects):,} objects are not "
                f"screened: their element sets are more than {compact(max_age)} from the start (--max-age)"
            ),
            {"objects": len(selection.too_old), "max_age_s": max_age.total_seconds()},
        )
    if abs(selection.median_age) > _OLD:
        yield (
            "element_sets_far",
            (
                f"warning: the median epoch of the catalogue is {_before(selection.median_age)} the start {utc(selection.start_ns)}; "
                "in low orbit the error of a position grows by 1 to 3 km a day (--start epoch screens from that epoch)"
            ),
            {"median_age_s": selection.median_age.total_seconds()},
        )


def rows_of(objects: ScreenedObjects, identifiers: Sequence[str], *, too_old: Sequence[Unscreened]) -> list[int]:
    """The rows of objects that are given by catalogue number or name, without repetition.

    Raises ``ValueError`` with every problem in one line: unknown ones, with the nearest name, and names of several objects.
    """
    by_number = {number: row for row, number in enumerate(objects.columns.catalog_number.tolist())}
    by_name: dict[str, list[int]] = {}
    for row, name in enumerate(objects.names):
        by_name.setdefault(name.casefold(), []).append(row)
    rows: dict[int, None] = {}
    problems = []
    for each in identifiers:
        found = (
            [by_number[int(each)]] if _is_number(each) and int(each) in by_number else by_name.get(each.casefold(), [])
        )
        match found:
            case [row]:
                rows[row] = None
            case []:
                problems.append(_unknown(each, objects, by_name, too_old))
            case several:
                numbers = ", ".join(str(objects.columns.catalog_number[row]) for row in several[:5])
                problems.append(f"{len(several)} objects are named {each!r}: give a catalogue number ({numbers})")
    if problems:
        raise ValueError("; ".join(problems))
    return list(rows)


def utc(at_ns: int) -> str:
    """A time for people, to the second."""
    return f"{datetime.fromtimestamp(at_ns // NS_PER_S, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _unknown(text: str, objects: ScreenedObjects, by_name: dict[str, list[int]], too_old: Sequence[Unscreened]) -> str:
    for each in too_old:
        if (_is_number(text) and int(text) == each.catalog_number) or text.casefold() == each.name.casefold():
            return f"object {text} is not screened: {each.reason}"
    if _is_number(text):
        return f"the catalogue has no object {text}"
    folded = text.casefold()
    near = [name for name in by_name if folded in name] or get_close_matches(folded, by_name, n=3)
    hints = " or ".join(
        f"{objects.names[by_name[name][0]]} ({objects.columns.catalog_number[by_name[name][0]]})" for name in near[:3]
    )
    return f"the catalogue has no object named {text!r}" + (f"; did you mean {hints}?" if hints else "")


def _before(age: timedelta) -> str:
    days = age.total_seconds() / 86_400.0
    return f"{abs(days):.1f} days {'before' if days >= 0 else 'after'}"


def _start_ns(catalog: Catalog, start: Start, now_ns: int) -> int:
    match start:
        case "now":
            return now_ns // NS_PER_S * NS_PER_S
        case "epoch":
            median_ns = int(np.median(ElementColumns.of(catalog.element_sets).epoch_ns))
            return median_ns // _MINUTE_NS * _MINUTE_NS
        case _:
            return start


def _location(text: str) -> CatalogLocation:
    scheme, separator, _ = text.partition("://")
    if not separator:
        return CatalogFile(Path(text))
    if scheme.lower() not in {"http", "https"}:
        raise ValueError(
            f"expected a file, or an address that begins with http:// or https://, got one with {scheme}://"
        )
    return CatalogUrl(text)


async def _retrying(
    policy: RetryPolicy, op: Callable[[], Awaitable[RetryDisposition[_T]]]
) -> RetryOk[_T] | RetryDiscard:
    return await with_retry(policy, op, clock=SystemClock(), rng=random.Random(), on_attempt=_announce)


def _announce(attempt: Attempt) -> None:
    if attempt.delay is not None:
        delay_s = attempt.delay.total_seconds()
        text = f"the catalogue's server: {attempt.error}; next attempt in {delay_s:.0f} s"
        announce("screen", "catalog_failing", text, error=str(attempt.error), retry_in_s=round(delay_s, 1))
