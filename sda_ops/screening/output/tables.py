"""What a screening found as tables: columns with units, and files as CSV, Parquet and JSON.

The conjunctions begin with the columns of CelesTrak's SOCRATES, in its order and units; in CSV also with its digits and its
form of times (https://celestrak.org/SOCRATES/socrates-format.php), so that programs that read SOCRATES' files read these. Each
later column has its unit in its name. Parquet and JSON have the full precision, and times in microseconds.

Pure, except `read_table` and `read_about`. Which files are written where is the caller's business.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S
from sda_ops.screening.approaches import EndedObject
from sda_ops.screening.assessment.assess import Conjunctions
from sda_ops.screening.assessment.fleets import FleetIndices
from sda_ops.screening.assessment.formations import AssessedSlowPairs, PairKind
from sda_ops.screening.assessment.orbit_classes import OrbitClass, OrbitCodes, orbit_classes
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.volumes.passages import Passages

SCHEMA_VERSION = 1
"""In the files' metadata. It is raised when a column is removed or changes its meaning, not when a column is added."""

Write: TypeAlias = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: In SOCRATES' style: capitals, with the unit at the end if it is not one of SOCRATES' columns.
        type: Its Arrow type.
        unit: Empty for numbers and texts without one.
        description: For people.
        digits: The format of its numbers in CSV, or the digits of a second of its times.
    """

    name: str
    type: pa.DataType
    unit: str
    description: str
    digits: str = ""

    @property
    def field(self) -> pa.Field:
        """The Arrow field, with unit and description in its metadata."""
        return pa.field(self.name, self.type, metadata={"unit": self.unit, "description": self.description})


_TIME = pa.timestamp("us", tz="UTC")  # nanoseconds are beyond Python's own datetime
_FRAME = "in the first object's radial, in-track, cross-track axes"


def _of_both(name: str, type_: pa.DataType, unit: str, description: str, digits: str = "") -> tuple[Column, Column]:
    """A column of the first object and one of the second; ``{}`` in the name and the description is the object."""
    first = Column(name.format("1"), type_, unit, description.format("first"), digits)
    return first, Column(name.format("2"), type_, unit, description.format("second"), digits)


_NUMBERS = _of_both("NORAD_CAT_ID_{}", pa.int64(), "", "catalogue number of the {} object")
_NAMES = _of_both("OBJECT_NAME_{}", pa.string(), "", "name of the {} object in the catalogue")
_AGES = _of_both("DSE_{}", pa.float64(), "d", "closest approach minus epoch of the {} element set", ".3f")
_EPOCHS = _of_both("EPOCH_{}", _TIME, "UTC", "epoch of the {} element set", "6")
_CLASSES = _of_both("ORBIT_CLASS_{}", pa.string(), "", "class of the {} object's orbit")
_FLEETS = _of_both("FLEET_{}", pa.string(), "", "fleet of the {} object; empty if it is in no fleet")
_TOGETHER = (
    Column("SAME_FLEET", pa.bool_(), "", "both objects are in one fleet"),
    Column("FORMATION", pa.bool_(), "", "the objects are docked or fly in formation"),
)

CONJUNCTIONS = (
    _NUMBERS[0],
    _NAMES[0],
    _AGES[0],
    _NUMBERS[1],
    _NAMES[1],
    _AGES[1],
    Column("TCA", _TIME, "UTC", "time of closest approach", "3"),
    Column("TCA_RANGE", pa.float64(), "km", "distance at that time", ".3f"),
    Column("TCA_RELATIVE_SPEED", pa.float64(), "km/s", "relative speed at that time", ".3f"),
    Column("MAX_PROB", pa.float64(), "", "maximum probability of a collision (Alfano 2005)", ".3E"),
    Column("DILUTION", pa.float64(), "km", "standard deviation at which the probability is greatest", ".3f"),
    Column("MISS_M", pa.float64(), "m", "distance at the closest approach", ".3f"),
    Column("MISS_RADIAL_M", pa.float64(), "m", f"second minus first {_FRAME}", ".3f"),
    Column("MISS_IN_TRACK_M", pa.float64(), "m", f"second minus first {_FRAME}", ".3f"),
    Column("MISS_CROSS_TRACK_M", pa.float64(), "m", f"second minus first {_FRAME}", ".3f"),
    Column("VELOCITY_RADIAL_M_S", pa.float64(), "m/s", f"second minus first {_FRAME}", ".3f"),
    Column("VELOCITY_IN_TRACK_M_S", pa.float64(), "m/s", f"second minus first {_FRAME}", ".3f"),
    Column("VELOCITY_CROSS_TRACK_M_S", pa.float64(), "m/s", f"second minus first {_FRAME}", ".3f"),
    *_EPOCHS,
    Column(
        "PROBABILITY", pa.float64(), "", "probability of a collision (Foster 1992); empty without covariances", ".3E"
    ),
    *_of_both("RADIUS_{}_M", pa.float64(), "m", "assumed or known radius of the {} object", "g"),
    *_CLASSES,
    *_FLEETS,
    *_TOGETHER,
)
"""The columns of conjunctions."""

SOCRATES_COLUMNS = tuple(column.name for column in CONJUNCTIONS[:11])

SLOW_PAIRS = (
    _NUMBERS[0],
    _NAMES[0],
    _NUMBERS[1],
    _NAMES[1],
    Column("KIND", pa.string(), "", "docked, formation, or passing"),
    Column("SMALLEST_M", pa.float64(), "m", "the smallest distance", ".3f"),
    Column("SMALLEST_AT", _TIME, "UTC", "when the distance is smallest", "3"),
    Column("RELATIVE_SPEED_M_S", pa.float64(), "m/s", "relative speed at that time", ".4f"),
    Column("LARGEST_M", pa.float64(), "m", "the largest distance in the revolution around that time", ".3f"),
    Column("MINIMA", pa.int64(), "", "how many minima of the distance within the miss distance"),
    Column("CONTACT_S", pa.float64(), "s", "how long within the miss distance, to the length of a slice", ".0f"),
    *_EPOCHS,
    *_CLASSES,
    *_FLEETS,
    _TOGETHER[0],
)
"""The columns of pairs that hardly move against each other."""

PASSAGES = (
    *CONJUNCTIONS,
    Column("ENTRY", _TIME, "UTC", "when the second object enters the box of the first, the asset", "3"),
    Column("EXIT", _TIME, "UTC", "when it leaves the box", "3"),
)
"""The columns of passages through the boxes of assets. The closest approach may be outside of the box, and of the window."""

UNSCREENED = (
    Column("NORAD_CAT_ID", pa.int64(), "", "catalogue number"),
    Column("OBJECT_NAME", pa.string(), "", "name of the object in the catalogue"),
    Column("FROM", _TIME, "UTC", "the first time at which it was not screened", "3"),
    Column("UNTIL", _TIME, "UTC", "the end of that time", "3"),
    Column("REASON", pa.string(), "", "why it was not screened"),
)
"""The columns of objects that were not screened in a part of the window, or in all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscreened:
    """An object that was not screened from ``from_ns`` to ``until_ns``, UTC."""

    catalog_number: int
    name: str
    from_ns: int
    until_ns: int
    reason: str

    @classmethod
    def of(cls, objects: ScreenedObjects, ended: EndedObject) -> Unscreened:
        """From an object without a position in a part of the window."""
        return cls(
            catalog_number=int(objects.columns.catalog_number[ended.row]),
            name=objects.names[ended.row],
            from_ns=ended.from_ns,
            until_ns=ended.until_ns,
            reason=ended.reason,
        )


def conjunction_table(objects: ScreenedObjects, conjunctions: Conjunctions, order: Rows | None = None) -> pa.Table:
    """Conjunctions with the columns `CONJUNCTIONS`. ``order`` picks and orders them; by default all, as they come."""
    found = conjunctions
    chosen = np.arange(len(found)) if order is None else order
    position_m, velocity_m_s = found.relative_position_m[chosen], found.relative_velocity_m_s[chosen]
    values: dict[str, Any] = {
        **_identities(objects, found.first[chosen], found.second[chosen]),
        "DSE_1": found.age_first_s[chosen] / _SECONDS_PER_DAY,
        "DSE_2": found.age_second_s[chosen] / _SECONDS_PER_DAY,
        "TCA": found.tca_ns[chosen],
        "TCA_RANGE": found.miss_m[chosen] / M_PER_KM,
        "TCA_RELATIVE_SPEED": found.relative_speed_m_s[chosen] / M_PER_KM,
        "MAX_PROB": found.max_probability[chosen],
        "DILUTION": found.dilution_m[chosen] / M_PER_KM,
        "MISS_M": found.miss_m[chosen],
        "PROBABILITY": found.probability[chosen],
        "RADIUS_1_M": found.radius_first_m[chosen],
        "RADIUS_2_M": found.radius_second_m[chosen],
        **_classes(found.orbit_class_first[chosen], found.orbit_class_second[chosen]),
        **_fleets(found.fleets, found.fleet_first[chosen], found.fleet_second[chosen]),
        "SAME_FLEET": found.same_fleet[chosen],
        "FORMATION": found.formation[chosen],
    }
    for axis, name in enumerate(("RADIAL", "IN_TRACK", "CROSS_TRACK")):
        values[f"MISS_{name}_M"] = position_m[:, axis]
        values[f"VELOCITY_{name}_M_S"] = velocity_m_s[:, axis]
    return _table(CONJUNCTIONS, values)


def passage_table(
    objects: ScreenedObjects, conjunctions: Conjunctions, passages: Passages, order: Rows | None = None
) -> pa.Table:
    """Passages with the columns `PASSAGES`; the asset is the first object. ``conjunctions`` are their closest approaches."""
    chosen = np.arange(len(passages)) if order is None else order
    table = conjunction_table(objects, conjunctions, chosen)
    swapped = pa.array(conjunctions.first[chosen] != passages.asset[chosen])
    columns = {name: table.column(name) for name in table.column_names}
    for name in table.column_names:
        other = name.replace("_1", "_2") if "_1" in name else name.replace("_2", "_1")
        columns[name] = pc.if_else(swapped, table.column(other), table.column(name))
    for axis, part in enumerate(("RADIAL", "IN_TRACK", "CROSS_TRACK")):
        columns[f"MISS_{part}_M"] = passages.relative_position_m[chosen][:, axis]
        columns[f"VELOCITY_{part}_M_S"] = passages.relative_velocity_m_s[chosen][:, axis]
    columns["ENTRY"], columns["EXIT"] = passages.entry_ns[chosen], passages.exit_ns[chosen]
    arrays = [
        values if isinstance(values, pa.ChunkedArray) else _array(values, column)
        for column in PASSAGES
        for values in (columns[column.name],)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema([column.field for column in PASSAGES]))


def slow_pair_table(objects: ScreenedObjects, pairs: AssessedSlowPairs) -> pa.Table:
    """Slow pairs with the columns `SLOW_PAIRS`."""
    return _table(
        SLOW_PAIRS,
        {
            **_identities(objects, pairs.first, pairs.second),
            "KIND": [PairKind(kind).name.lower() for kind in pairs.kind.tolist()],
            "LARGEST_M": pairs.largest_m,
            "SMALLEST_M": pairs.smallest_m,
            "SMALLEST_AT": pairs.smallest_at_ns,
            "RELATIVE_SPEED_M_S": pairs.relative_speed_m_s,
            "MINIMA": pairs.minima,
            "CONTACT_S": pairs.contact_s,
            **_classes(*(orbit_classes(objects.columns)[rows] for rows in (pairs.first, pairs.second))),
            **_fleets(pairs.fleets, pairs.fleet_first, pairs.fleet_second),
            "SAME_FLEET": pairs.same_fleet,
        },
    )


def unscreened_table(unscreened: Iterable[Unscreened]) -> pa.Table:
    """Objects that were not screened, with the columns `UNSCREENED`."""
    rows = [(each.catalog_number, each.name, each.from_ns, each.until_ns, each.reason) for each in unscreened]
    columns = list(zip(*rows, strict=True)) or [()] * len(UNSCREENED)
    return _table(UNSCREENED, dict(zip((column.name for column in UNSCREENED), columns, strict=True)))


def csv_of(table: pa.Table) -> bytes:
    """The table as CSV (RFC 4180, UTF-8), with the digits of its columns. A missing value is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        writer.writerows(zip(*(_texts(name, batch.column(name)) for name in batch.schema.names), strict=True))
    return text.getvalue().encode()


def parquet_of(table: pa.Table, about: Mapping[str, Any]) -> bytes:
    """The table as Parquet; ``about`` is in the file's metadata as JSON, under the key ``screening``."""
    metadata = {"schema_version": str(SCHEMA_VERSION), "screening": json.dumps(about)}
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")
    return file.getvalue()


def json_of(tables: Mapping[str, pa.Table], about: Mapping[str, Any]) -> bytes:
    """One JSON document: ``about`` under ``screening``, and each table as an array of objects, one a line."""
    parts = [b'{"screening": ' + json.dumps({"schema_version": SCHEMA_VERSION, **about}).encode()]
    for name, table in tables.items():
        rows = b",\n".join(msgspec.json.encode(row) for row in _rows(table))
        parts.append(f'"{name}": ['.encode() + (b"\n" + rows + b"\n" if rows else b"") + b"]")
    return b",\n".join(parts) + b"}\n"


def read_table(path: Path) -> pa.Table:
    """A table of conjunctions from CSV or Parquet: ours, or SOCRATES' own CSV.

    Raises ``OSError``, and ``ValueError`` for a file without SOCRATES' columns.
    """
    if path.suffix.lower() == ".parquet":
        table = pq.read_table(path)
    else:
        try:
            table = pyarrow.csv.read_csv(path, convert_options=_CSV_TYPES)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: {error}") from error
    missing = [name for name in SOCRATES_COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: expected the columns of conjunctions, got no {', '.join(missing)}")
    times = [field for field in table.schema if pa.types.is_timestamp(field.type) and field.type.tz is None]
    for field in times:
        index = table.column_names.index(field.name)
        table = table.set_column(index, field.name, pc.assume_timezone(table.column(index), "UTC"))
    return table


_SECONDS_PER_DAY = NS_PER_DAY / NS_PER_S
_ROWS_AT_ONCE = 16_384
_BY_NAME = {column.name: column for column in (*PASSAGES, *SLOW_PAIRS, *UNSCREENED)}
_CSV_TYPES = pyarrow.csv.ConvertOptions(
    column_types={column.name: pa.timestamp("us") if column.type == _TIME else column.type for column in CONJUNCTIONS}
)


def _identities(objects: ScreenedObjects, first: Rows, second: Rows) -> dict[str, Any]:
    numbers = objects.columns.catalog_number
    names = np.array(objects.names, dtype=object)
    epoch_ns = objects.columns.epoch_ns
    return {
        "NORAD_CAT_ID_1": numbers[first],
        "OBJECT_NAME_1": names[first],
        "EPOCH_1": epoch_ns[first],
        "NORAD_CAT_ID_2": numbers[second],
        "OBJECT_NAME_2": names[second],
        "EPOCH_2": epoch_ns[second],
    }


def _classes(first: OrbitCodes, second: OrbitCodes) -> dict[str, Any]:
    names = np.array([each.name for each in sorted(OrbitClass)], dtype=object)
    return {"ORBIT_CLASS_1": names[first], "ORBIT_CLASS_2": names[second]}


def _fleets(fleets: Sequence[str], first: FleetIndices, second: FleetIndices) -> dict[str, Any]:
    names = np.array([*fleets, ""], dtype=object)  # no fleet has the index -1: the last one
    return {"FLEET_1": names[first], "FLEET_2": names[second]}


def _table(columns: Sequence[Column], values: Mapping[str, Any]) -> pa.Table:
    schema = pa.schema([column.field for column in columns])
    return pa.Table.from_arrays([_array(values[column.name], column) for column in columns], schema=schema)


def _array(values: Any, column: Column) -> pa.Array:
    if column.type == _TIME:
        return pa.array((np.asarray(values, dtype=np.int64) + 500) // 1_000).cast(_TIME)
    if column.type == pa.float64():
        floats = np.asarray(values, dtype=np.float64)
        return pa.array(floats, mask=np.isnan(floats))
    return pa.array(values, type=column.type)


def _texts(name: str, values: pa.Array) -> list[str]:
    """One column's fields in CSV."""
    column = _BY_NAME[name]
    if column.type == _TIME:
        return _times(values, digits=int(column.digits))
    if column.type == pa.float64():
        digits = column.digits
        return ["" if value is None else f"{value:{digits}}" for value in values.to_pylist()]
    if column.type == pa.bool_():
        return ["true" if value else "false" for value in values.to_pylist()]
    return ["" if value is None else str(value) for value in values.to_pylist()]


def _times(values: pa.Array, *, digits: int, form: str = "%Y-%m-%d %H:%M:%S") -> list[str]:
    """Times with so many digits of a second, rounded to the nearest."""
    unit_us = 10 ** (6 - digits)
    us: npt.NDArray[np.int64] = values.cast(pa.int64()).to_numpy()
    rounded = (us + unit_us // 2) // unit_us
    seconds, fractions = np.divmod(rounded, 10**digits)
    texts = pc.strftime(pa.array(seconds, type=pa.timestamp("s")), format=form).to_pylist()
    return [f"{text}.{fraction:0{digits}}" for text, fraction in zip(texts, fractions.tolist(), strict=True)]


def _rows(table: pa.Table) -> Iterable[dict[str, Any]]:
    """The rows for JSON: times with microseconds and a Z; what is missing is null."""
    names = table.column_names
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns = [
            [f"{text}Z" for text in _times(column, digits=6, form="%Y-%m-%dT%H:%M:%S")]
            if column.type == _TIME
            else column.to_pylist()
            for column in batch.columns
        ]
        for row in zip(*columns, strict=True):
            yield dict(zip(names, row, strict=True))
