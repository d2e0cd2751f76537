"""The audit's tables: records survive a round trip through Parquet, and columns have units and descriptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import isnan
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.records.correlation import Contribution, Correlation, CrossSensorUpdate, Residuals
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget, Uncertainty
from sda_ops.sinks.parquet_store import Part, _encoded
from sda_ops.sinks.parquet_tables import TABLES, AuditRecord, table_of
from tests.helpers.running import observations

T = TypeVar("T", bound=msgspec.Struct)

# From rows back to records, written independently of the product.


def read_back(file: pa.Buffer) -> list[dict[str, Any]]:
    """The rows of a file, with times as nanoseconds."""
    table = pq.read_table(pa.BufferReader(file))
    rows: list[dict[str, Any]] = table.cast(
        pa.schema([field.with_type(_in_nanoseconds(field.type)) for field in table.schema])
    ).to_pylist()
    return rows


def _in_nanoseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_in_nanoseconds(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_nanoseconds(field.type)) for field in kind])
    return kind


def observation_of(row: dict[str, Any]) -> Observation:
    if row["range_m"] is not None:
        target: Any = fields_of(RadarTarget, row)
    elif row["right_ascension_rad"] is not None:
        target = fields_of(OpticalTarget, row)
    else:
        position = (row["x_teme_m"], row["y_teme_m"], row["z_teme_m"])
        target = StateTarget(position, (row["vx_teme_m_s"], row["vy_teme_m_s"], row["vz_teme_m_s"]))
    return fields_of(Observation, row, target=target, uncertainty=fields_of(Uncertainty, row))


def correlation_of(row: dict[str, Any]) -> Correlation:
    residuals = residuals_of(row)
    given_residuals = None if residuals == Residuals() else residuals
    return fields_of(Correlation, row, candidates=tuple(row["candidates"]), residuals=given_residuals)


def update_of(row: dict[str, Any]) -> CrossSensorUpdate:
    contributions = tuple(fields_of(Contribution, each, residuals=residuals_of(each)) for each in row["contributions"])
    return fields_of(CrossSensorUpdate, row, contributions=contributions)


def residuals_of(row: dict[str, Any]) -> Residuals:
    return Residuals(**{name: row[f"residual_{name}"] for name in Residuals.__struct_fields__})


def fields_of(kind: type[T], row: dict[str, Any], **others: Any) -> T:
    values = {name: row[name] for name in kind.__struct_fields__ if name not in others}
    ids = {name: UUID(values[name]) for name in ("observation_id", "update_id", "conjunction_id") if name in values}
    return kind(**values | ids | others)


RECORD_OF: dict[type, Callable[[dict[str, Any]], AuditRecord]] = {
    Observation: observation_of,
    Correlation: correlation_of,
    CrossSensorUpdate: update_of,
    ConjunctionUpdate: lambda row: fields_of(ConjunctionUpdate, row),
}


def round_trip(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Through the bytes of a Parquet file."""
    kind = type(records[0])
    table = table_of(kind)
    return [
        RECORD_OF[kind](row) for row in read_back(_encoded(Part(table.name, 0, table.rows(records), table.repeating)))
    ]


number = st.floats(allow_nan=False)
perhaps = st.none() | number
moment = st.integers(min_value=-(2**63), max_value=2**63 - 1)
state = st.tuples(number, number, number)
targets = st.one_of(
    st.builds(RadarTarget, number, perhaps, perhaps, perhaps),
    st.builds(OpticalTarget, number, number),
    st.builds(StateTarget, state, state),
)
kinds = st.sampled_from(["radar", "optical", "isl"])
some_residuals = st.builds(Residuals, *[perhaps] * len(Residuals.__struct_fields__))
some_observations = st.builds(
    Observation,
    st.uuids(),
    st.text(),
    kinds,
    moment,
    moment,
    targets,
    st.builds(Uncertainty, perhaps, perhaps, perhaps, perhaps, perhaps),
    st.none() | st.text(),
)
some_correlations = st.builds(
    Correlation,
    st.uuids(),
    st.text(),
    kinds,
    moment,
    moment,
    moment,
    st.sampled_from(["correlated", "ambiguous", "uct", "unpredicted"]),
    st.none() | st.text(),
    st.none() | st.integers(0, 999_999_999),
    st.lists(st.integers(0, 999_999_999), max_size=4).map(tuple),
    st.none() | st.text(),
    perhaps,
    st.integers(0, 6),
    perhaps,
    st.none() | some_residuals.filter(lambda residuals: residuals != Residuals()),
)
some_updates = st.builds(
    CrossSensorUpdate,
    st.uuids(),
    st.integers(0, 999_999_999),
    moment,
    moment,
    st.lists(st.builds(Contribution, st.uuids(), st.text(), moment, some_residuals), max_size=4).map(tuple),
    moment,
)
some_conjunctions = st.builds(
    ConjunctionUpdate,
    conjunction_id=st.uuids(),
    revision=st.integers(1, 2**31 - 1),
    sequence=st.integers(1, 2**63 - 1),
    status=st.sampled_from(["active", "withdrawn", "passed"]),
    catalog_number_first=st.integers(0, 999_999_999),
    catalog_number_second=st.integers(0, 999_999_999),
    **{name: moment for name in ConjunctionUpdate.__struct_fields__ if name.endswith("_timestamp")},
    **{
        name: perhaps if name in ("dilution_m", "probability") or name.startswith(("first_", "second_")) else number
        for name in ConjunctionUpdate.__struct_fields__
        if name.endswith(("_m", "_m_s", "_s", "probability"))
    },
    **{name: st.text() for name in ("name_first", "name_second", "orbit_class_first", "orbit_class_second")},
    **{name: st.none() | st.text() for name in ("fleet_first", "fleet_second")},
    **{name: st.text() for name in ("designator_first", "designator_second")},
    reason=st.sampled_from([None, "moved_away", "no_position", "left_catalog"]),
    same_fleet=st.booleans(),
    formation=st.booleans(),
)


@given(
    st.lists(some_observations, min_size=1, max_size=8)
    | st.lists(some_correlations, min_size=1, max_size=8)
    | st.lists(some_updates, min_size=1, max_size=8)
    | st.lists(some_conjunctions, min_size=1, max_size=8)
)
def test_records_are_unchanged_after_a_round_trip_through_a_file(records: list[AuditRecord]) -> None:
    """They are equal to the last bit and nanosecond, in order, with ``None`` for what was not measured."""
    assert round_trip(records) == records


@pytest.mark.parametrize("record", [Observation, Correlation, CrossSensorUpdate, ConjunctionUpdate])
def test_the_tables_have_every_field_of_the_records(record: Any) -> None:
    """A field that is added to a record but not to its table fails this test."""
    expected: list[str] = []
    for name in record.__struct_fields__:
        match name:
            case "target":
                expected += [*RadarTarget.__struct_fields__, *OpticalTarget.__struct_fields__]
                expected += ["x_teme_m", "y_teme_m", "z_teme_m", "vx_teme_m_s", "vy_teme_m_s", "vz_teme_m_s"]
            case "uncertainty":
                expected += Uncertainty.__struct_fields__
            case "residuals":
                expected += [f"residual_{component}" for component in Residuals.__struct_fields__]
            case _:
                expected.append(name)
    assert sorted(TABLES[record].schema.names) == sorted(expected)


def test_a_measured_nan_is_not_stored_as_null() -> None:
    """NaN stays NaN, and an absent value is null."""
    (sent,) = observations(1)
    sent = msgspec.structs.replace(sent, target=RadarTarget(float("nan"), None))
    (row,) = read_back(_encoded(Part("observations", 0, table_of(Observation).rows([sent]), ())))
    assert isnan(row["range_m"])
    assert row["range_rate_m_s"] is None


def leaves(fields: Sequence[pa.Field]) -> list[pa.Field]:
    """The fields themselves and those within lists of structs."""
    found = list(fields)
    for field in fields:
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            found += leaves(list(field.type.value_type))
    return found


@pytest.mark.parametrize("record", [Observation, Correlation, CrossSensorUpdate, ConjunctionUpdate])
def test_every_column_has_a_description_and_the_unit_of_its_name(record: type) -> None:
    """Every angle, position and time also has a frame."""
    fields = leaves(list(TABLES[record].schema))
    assert all(field.metadata[b"description"] for field in fields)
    for field in fields:
        unit = field.metadata.get(b"unit", b"").decode()
        if pa.types.is_timestamp(field.type):
            assert (unit, field.metadata[b"frame"]) == ("ns", b"UTC")
        elif pa.types.is_string(field.type) or pa.types.is_list(field.type) or pa.types.is_boolean(field.type):
            assert not unit
        else:
            suffix = {"_m_s": "m/s", "_m": "m", "_rad": "rad", "_s": "s"}
            assert unit == next((unit for end, unit in suffix.items() if field.name.endswith(end)), "1"), field.name
        if unit == "rad" and "sigma" not in field.name:
            assert field.metadata[b"frame"], field.name
        if "teme" in field.name:
            assert b"TEME" in field.metadata[b"frame"]


@pytest.mark.parametrize("record", [Observation, Correlation, CrossSensorUpdate, ConjunctionUpdate])
def test_the_files_metadata_has_all_field_metadata_as_json(record: type) -> None:
    """It has every field's metadata by path, the schema's version and the record's name."""
    schema = TABLES[record].schema
    assert schema.metadata[b"schema_version"] == (b"2" if record is CrossSensorUpdate else b"1")
    assert schema.metadata[b"record"] == record.__name__.encode()
    described = json.loads(schema.metadata[b"fields"])
    assert len(described) == len(leaves(list(schema)))
    for field in schema:
        assert described[field.name] == {key.decode(): value.decode() for key, value in field.metadata.items()}
    if record is CrossSensorUpdate:
        assert described["contributions.residual_range_m"]["unit"] == "m"


def test_another_type_of_record_is_a_type_error() -> None:
    """The message names the type and those that are accepted."""
    expected = "the audit stores Observation, Correlation, CrossSensorUpdate, ConjunctionUpdate; got int"
    with pytest.raises(TypeError, match=expected):
        table_of(int)
