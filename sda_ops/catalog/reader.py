"""Element sets from catalogue files. The format is detected from the content; a bad row costs only itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.formats.omm_csv import looks_like_omm_csv, omm_csv_rows
from sda_ops.catalog.formats.omm_json import looks_like_omm_json, omm_json_rows
from sda_ops.catalog.formats.omm_kvn import looks_like_omm_kvn, omm_kvn_rows
from sda_ops.catalog.formats.omm_xml import looks_like_omm_xml, omm_xml_rows
from sda_ops.catalog.formats.rows import Remark, Row, Unreadable, read_omm
from sda_ops.catalog.formats.tle import looks_like_tle, tle_rows
from sda_ops.catalog.history import MAX_SETS_PER_OBJECT, ElementHistory
from sda_ops.gzipped import inflated


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row without a usable element set.

    Attributes:
        file: The file's name.
        line: The line, counted from 1, at which the row begins.
        reason: What was expected, and what the row has.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """The content of a catalogue file.

    Attributes:
        file: The file's name.
        element_sets: The good rows, in file order; an object may have several.
        lines: The line at which each good row begins.
        problems: The bad rows, in file order.
        truncated: Whether the file ends within a row, as one does that is still being written.
        rows: How many rows were read, good and bad.
        remarks: What is unusual but costs no row, with the file and the line of its first occurrence; a few at most.
    """

    file: str
    element_sets: tuple[ElementSet, ...]
    lines: tuple[int, ...]
    problems: tuple[RowProblem, ...]
    truncated: bool
    rows: int = 0
    remarks: tuple[str, ...] = ()


def read_catalog(path: Path) -> Catalog:
    """Read a TLE or 3LE file, or OMM as CSV, JSON, XML or KVN (UTF-8), plain or compressed by gzip.

    Raises ``OSError`` if the file cannot be read, and ``ValueError`` if it has none of these formats.
    """
    content = path.read_bytes()
    try:
        text = decode_text(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return parse_catalog(text, file=str(path))


def decode_text(content: bytes) -> str:
    """The text of a file, which gzip may have compressed. Bytes that are not UTF-8 become U+FFFD and affect only their row.

    Raises ``ValueError`` as `inflated` does.
    """
    return inflated(content).decode("utf-8-sig", errors="replace")


def parse_catalog(text: str, *, file: str) -> Catalog:
    """The same as `read_catalog`, for text; ``file`` is its name in problems."""
    element_sets: list[ElementSet] = []
    lines: list[int] = []
    problems: list[RowProblem] = []
    remarks: dict[str, tuple[int, int]] = {}  # by text: the line of the first, and how many
    last: ElementSet | Unreadable | Remark | None = None
    try:
        for line, last in _rows(text):
            match last:
                case Unreadable():
                    problems.append(RowProblem(file, line, last.reason))
                case Remark():
                    first, count = remarks.get(last.text, (line, 0))
                    remarks[last.text] = (first, count + 1)
                case ElementSet():
                    element_sets.append(last)
                    lines.append(line)
                case _:
                    assert_never(last)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return Catalog(
        file,
        tuple(element_sets),
        tuple(lines),
        tuple(problems),
        truncated=isinstance(last, Unreadable) and (last.truncated or not text.endswith("\n")),
        rows=len(element_sets) + len(problems),
        remarks=tuple(
            f"{file}:{first}: {remark}{f' (and {count - 1} more)' if count > 1 else ''}"
            for remark, (first, count) in remarks.items()
        ),
    )


def without_usable_rows(catalog: Catalog) -> str | None:
    """That the file has no usable row, with the first bad one; ``None`` if it has a usable one."""
    if catalog.element_sets:
        return None
    bad = f"{len(catalog.problems)} bad, the first: {catalog.problems[0]}" if catalog.problems else "it has no row"
    return f"expected at least one usable row, got none ({bad})"


def all_of_each(catalog: Catalog) -> Catalog:
    """All element sets, object by object, in the order of their first ones; those of one object sorted by epoch.

    Equal element sets of one epoch count as one. Different ones of one epoch cannot both be true: the first in the file is
    kept, and the other is a problem. Of more than `MAX_SETS_PER_OBJECT` the newest are kept, with a remark.
    """
    by_object, problems = _sorted_sets(catalog)
    dropped = sum(max(0, len(indices) - MAX_SETS_PER_OBJECT) for indices in by_object)
    remark = f"{catalog.file}: {dropped} element sets are dropped: an object may have {MAX_SETS_PER_OBJECT}, the newest"
    return _picked(
        catalog,
        [index for indices in by_object for index in indices[-MAX_SETS_PER_OBJECT:]],
        problems,
        (*catalog.remarks, remark) if dropped else catalog.remarks,
    )


def newest_of_each(catalog: Catalog) -> Catalog:
    """For each object the element set of the newest epoch, at the place of the object's first one; else as `all_of_each`."""
    by_object, problems = _sorted_sets(catalog)
    return _picked(catalog, [indices[-1] for indices in by_object], problems, catalog.remarks)


def nearest_of_each(catalog: Catalog, timestamp_ns: int) -> Catalog:
    """For each object the element set whose epoch is nearest to this UTC time; else as `newest_of_each`."""
    every = all_of_each(catalog)
    rows = ElementHistory(ElementColumns.of(every.element_sets)).rows_at(timestamp_ns)
    return _picked(every, rows.tolist(), every.problems, every.remarks)


def _sorted_sets(catalog: Catalog) -> tuple[list[list[int]], tuple[RowProblem, ...]]:
    """For each object the indices of its element sets by epoch, each epoch once; and all problems."""
    by_object: dict[int, list[int]] = {}
    for index, element_set in enumerate(catalog.element_sets):
        by_object.setdefault(element_set.catalog_number, []).append(index)
    problems = list(catalog.problems)
    if len(by_object) == len(catalog.element_sets):
        return list(by_object.values()), catalog.problems
    columns = ElementColumns.of(catalog.element_sets)
    epochs_ns = columns.epoch_ns.tolist()
    elements = list(
        zip(*(column.tolist() for name, column in columns.arrays().items() if name in _ELEMENTS), strict=True)
    )
    conflicts: list[tuple[int, int]] = []
    for number, indices in by_object.items():
        of_epoch: dict[int, int] = {}
        for index in indices:
            kept = of_epoch.setdefault(epochs_ns[index], index)
            if elements[index] != elements[kept]:
                conflicts.append((index, kept))
        by_object[number] = [of_epoch[epoch_ns] for epoch_ns in sorted(of_epoch)]
    for index, kept in sorted(conflicts):
        number = catalog.element_sets[index].catalog_number
        reason = f"object {number} has other elements of the same epoch in line {catalog.lines[kept]}"
        problems.append(RowProblem(catalog.file, catalog.lines[index], reason))
    return list(by_object.values()), tuple(problems)


def _picked(
    catalog: Catalog, indices: Sequence[int], problems: tuple[RowProblem, ...], remarks: tuple[str, ...]
) -> Catalog:
    return Catalog(
        catalog.file,
        tuple(catalog.element_sets[index] for index in indices),
        tuple(catalog.lines[index] for index in indices),
        problems,
        catalog.truncated,
        catalog.rows,
        remarks,
    )


_ELEMENTS = ("bstar", "ecco", "argpo", "inclo", "mo", "no_kozai", "nodeo")
"""Two element sets of one epoch are different if one of these differs."""


def _rows(text: str) -> Iterator[Row]:
    if _HTML.match(text):
        page = " ".join(_TAG.sub(" ", text[:_PAGE_EXAMINED]).split())
        raise ValueError(f"{_EXPECTED}, got a page in HTML: {_first_line(page)!r}")
    if looks_like_omm_json(text):
        return read_omm(omm_json_rows(text))
    if looks_like_omm_xml(text):
        return read_omm(omm_xml_rows(text))
    if looks_like_omm_csv(text):
        return read_omm(omm_csv_rows(text))
    if looks_like_omm_kvn(text):
        return read_omm(omm_kvn_rows(text))
    if looks_like_tle(text):
        return tle_rows(text)
    raise ValueError(f"{_EXPECTED}, got {repr(_first_line(text)) if text.strip() else 'an empty file'}")


_EXPECTED = "expected TLE, 3LE, or OMM as CSV, JSON, XML or KVN"
_HTML = re.compile(r"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_PAGE_EXAMINED = 10_000  # characters, in which the page's title or text begins


def _first_line(text: str) -> str:
    """The first line of a text, as much as fits into a message, without control characters."""
    first_line = text.lstrip().partition("\n")[0][:60]
    return "".join(character if character.isprintable() else "?" for character in first_line)
