"""Assets, each with its screening volume, and the reader of a file of assets."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.volumes.volumes import LARGEST_HALF_AXIS_M, ScreeningVolume, published_volume

NUMBER = "catalog_number"
HALF_AXES = ("radial_km", "in_track_km", "cross_track_km")
COLUMNS = (NUMBER, *HALF_AXES)

_SHOWN_PROBLEMS = 5

_Entry: TypeAlias = tuple[str, Mapping[str, object] | str]
"""Where an asset is in the text, and its fields, or what is wrong there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """An object that is screened with a box of its own.

    Attributes:
        row: Its row number in the screened objects.
        volume: The box.
    """

    row: int
    volume: ScreeningVolume


def read_assets(text: str, objects: ScreenedObjects, *, file: str) -> tuple[Asset, ...]:
    """The assets of a CSV or TOML text, in its order; ``file`` is its name in messages.

    CSV has the header ``catalog_number,radial_km,in_track_km,cross_track_km``, with the columns in any order; empty lines
    and lines that begin with ``#`` are skipped. TOML has a table ``[[assets]]`` for each asset, with the same names. The
    three half axes may be left out together: the asset then gets the published volume of its orbit (`published_volume`).

    Raises ``ValueError`` with one line that lists the problems, the first few of many: a bad row, an object that is listed
    twice or that is not screened, an orbit without a published volume. A file with a problem gives no asset at all, because
    a screening that leaves an asset out in silence is worse than none.
    """
    rows = {number: row for row, number in enumerate(objects.columns.catalog_number.tolist())}
    first_seen: dict[int, str] = {}
    assets: list[Asset] = []
    problems: list[str] = []
    for where, fields in _entries(text):
        try:
            if isinstance(fields, str):
                raise ValueError(fields)  # noqa: TRY301, TRY004 - collected with the others
            number = _number(fields)
            if number in first_seen:
                raise ValueError(f"object {number} is listed already ({first_seen[number]})")  # noqa: TRY301 - collected with the others
            first_seen[number] = where
            assets.append(_asset(number, fields, rows, objects))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not assets and not problems:
        problems.append(
            f"expected at least one asset: a line below the header {','.join(COLUMNS)}, or [[assets]] in TOML"
        )
    if problems:
        more = f" (and {len(problems) - _SHOWN_PROBLEMS} more)" if len(problems) > _SHOWN_PROBLEMS else ""
        raise ValueError(f"{file}: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}")
    return tuple(assets)


def _asset(number: int, fields: Mapping[str, object], rows: Mapping[int, int], objects: ScreenedObjects) -> Asset:
    given = [name for name in HALF_AXES if fields.get(name) not in (None, "")]
    lengths_m = [_length_m(name, fields[name]) for name in given]  # also reported for an unknown object
    if number not in rows:
        raise ValueError(f"object {number} is not one of the {len(objects):,} screened objects")
    row = rows[number]
    if not given:
        volume = published_volume(objects.satrecs[row])
        if volume is None:
            raise ValueError(f"no published volume for the orbit of object {number}; give {', '.join(HALF_AXES)}")
        return Asset(row=row, volume=volume)
    if len(given) < len(HALF_AXES):
        missing = [name for name in HALF_AXES if name not in given]
        raise ValueError(f"object {number}: give all three half axes or none; {', '.join(missing)} missing")
    radial_m, in_track_m, cross_track_m = lengths_m
    return Asset(
        row=row,
        volume=ScreeningVolume(radial_m=radial_m, in_track_m=in_track_m, cross_track_m=cross_track_m),
    )


def _number(fields: Mapping[str, object]) -> int:
    value = fields.get(NUMBER)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and int(value) > 0:
        return int(value)
    raise ValueError(f"{NUMBER}: expected a catalogue number, got {_shown(value)}")


def _length_m(name: str, value: object) -> float:
    try:
        length_km = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        length_km = math.nan
    largest_km = LARGEST_HALF_AXIS_M / M_PER_KM
    if not 0.0 < length_km <= largest_km:
        raise ValueError(f"{name}: expected kilometres, more than 0 and at most {largest_km:g}, got {_shown(value)}")
    return length_km * M_PER_KM


def _shown(value: object) -> str:
    return "nothing" if value in (None, "") else repr(value)


def _entries(text: str) -> Iterator[_Entry]:
    lines = text.removeprefix("\ufeff").splitlines()
    first = next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    return _toml_entries("\n".join(lines)) if first.startswith("[") else _csv_entries(lines)


def _csv_entries(lines: list[str]) -> Iterator[_Entry]:
    header: list[str] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"line {number}"
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        if header is None:
            header = cells
            if wrong := _wrong_names(header):
                yield where, wrong
                return
        elif len(cells) != len(header):
            yield where, f"expected {len(header)} fields as in the header, got {len(cells)}"
        else:
            yield where, dict(zip(header, cells, strict=True))


def _toml_entries(text: str) -> Iterator[_Entry]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        yield "not valid TOML", str(error)
        return
    entries = tables.pop("assets", None)
    if tables or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        yield "TOML", f"expected only tables [[assets]], got {', '.join(map(repr, tables)) or 'other values in assets'}"
        return
    for count, entry in enumerate(entries, start=1):
        yield f"asset {count}", _wrong_names(list(entry)) or entry


def _wrong_names(names: list[str]) -> str | None:
    unknown = [name for name in names if name not in COLUMNS]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not unknown and not repeated and NUMBER in names:
        return None
    got = f"{unknown[0]!r}" if unknown else f"{repeated[0]!r} twice" if repeated else f"no {NUMBER!r}"
    return f"expected the names {','.join(COLUMNS)}, got {got}"
