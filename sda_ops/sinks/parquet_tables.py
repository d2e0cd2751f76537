"""The audit's tables, one for each type of record: Arrow schemas, and the conversion of records to columns.

Pure. Each field's metadata has unit, frame and description; the file's metadata has the same as JSON under the key
``fields``, for readers that do not see field metadata. Nothing here knows where the rows are stored.

An id is a string, as in the event log and the dead letters, so that `WHERE observation_id = '…'` works in every reader
(sixteen bytes would be a UUID in DuckDB and a blob in Polars). A component that was not measured is null. Nested records are
flat columns (``residual_range_m``), except contributions, of which an update has several: they are a list of structs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.records.correlation import Contribution, Correlation, CrossSensorUpdate, Residuals
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget

SCHEMA_VERSIONS: Mapping[type, int] = {Observation: 1, Correlation: 1, CrossSensorUpdate: 2, ConjunctionUpdate: 1}
"""In every file's metadata. It is raised when a column is removed or changes its meaning, not when a column is added."""

AuditRecord: TypeAlias = Observation | Correlation | CrossSensorUpdate | ConjunctionUpdate

_HORIZON = "topocentric horizon at the sensor"
_J2000 = "topocentric, J2000 equator and equinox"
_TEME = "TEME of the sensor's timestamp"
_TEME_TCA = "TEME of the time of closest approach"
_RTN = "radial, in-track, cross-track of the predicted state"
_RTN_FIRST = "radial, in-track, cross-track of the first object"


@dataclass(frozen=True, slots=True)
class AuditTable:
    """One type of record as a table.

    Attributes:
        name: The name of the table and of its folder.
        schema: The schema of every file.
        repeating: Columns with repeated values, which are dictionary-encoded. For the others this would only cost time.
        columns: Converts records to one array for each field of the schema, in order.
    """

    name: str
    schema: pa.Schema
    repeating: tuple[str, ...]
    columns: Callable[[Sequence[Any]], list[pa.Array]]

    def rows(self, records: Sequence[Any]) -> pa.RecordBatch:
        """One row for each record, in order."""
        return pa.RecordBatch.from_arrays(self.columns(records), schema=self.schema)


def table_of(record: type) -> AuditTable:
    """The table for records of this type. Raises ``TypeError`` for any other."""
    if (table := TABLES.get(record)) is None:
        expected = ", ".join(each.__name__ for each in TABLES)
        raise TypeError(f"the audit stores {expected}; got {record.__name__}")
    return table


# The schemas.


def _text(name: str, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.string(), nullable=nullable, metadata={"description": description})


def _time(name: str, description: str) -> pa.Field:
    metadata = {"unit": "ns", "frame": "UTC", "description": description}
    return pa.field(name, pa.timestamp("ns", tz="UTC"), nullable=False, metadata=metadata)


def _number(
    name: str, unit: str, description: str, *, frame: str = "", kind: pa.DataType | None = None, nullable: bool = True
) -> pa.Field:
    metadata = {"unit": unit, "description": description} | ({"frame": frame} if frame else {})
    return pa.field(name, kind or pa.float64(), nullable=nullable, metadata=metadata)


_OBSERVED = (
    _text("observation_id", "made once at the source from the frame's content; the key of idempotency"),
    _text("source_id", "which sensor"),
    _text("source_kind", "radar, optical or isl"),
    _time("sensor_timestamp", "when the sensor measured"),
    _time("ingest_timestamp", "when the pipeline received it; the partition"),
)
_TRACK = _text("track_id", "the sensor's own name for what it tracks; no catalogue number", nullable=True)

_RESIDUALS = (
    _number("residual_range_m", "m", "measured minus predicted slant range"),
    _number("residual_range_rate_m_s", "m/s", "measured minus predicted range rate"),
    _number("residual_azimuth_rad", "rad", "of the azimuth, times the cosine of the elevation", frame=_HORIZON),
    _number("residual_elevation_rad", "rad", "of the elevation", frame=_HORIZON),
    _number("residual_right_ascension_rad", "rad", "of it, times the cosine of the declination", frame=_J2000),
    _number("residual_declination_rad", "rad", "of the declination", frame=_J2000),
    _number("residual_radial_m", "m", "of the position, along the predicted one", frame=_RTN),
    _number("residual_in_track_m", "m", "of the position, completing the right-handed triad", frame=_RTN),
    _number("residual_cross_track_m", "m", "of the position, along the predicted angular momentum", frame=_RTN),
    _number("residual_speed_m_s", "m/s", "length of the velocity's difference", frame=_RTN),
)

_CONTRIBUTION = pa.struct(
    [
        _text("observation_id", "the observation's own id"),
        _text("source_id", "which sensor"),
        _time("sensor_timestamp", "when the sensor measured"),
        *_RESIDUALS,
    ]
)
_CONTRIBUTIONS = pa.list_(pa.field("element", _CONTRIBUTION, nullable=False))
_CATALOG_NUMBERS = pa.list_(pa.field("element", pa.int64(), nullable=False))

_RADAR_FIELDS = (
    _number("range_m", "m", "one-way slant range"),
    _number("range_rate_m_s", "m/s", "its rate, positive when receding"),
    _number("azimuth_rad", "rad", "clockwise from true north", frame=_HORIZON),
    _number("elevation_rad", "rad", "above the local horizon", frame=_HORIZON),
)
_OPTICAL_FIELDS = (
    _number("right_ascension_rad", "rad", "right ascension", frame=_J2000),
    _number("declination_rad", "rad", "declination", frame=_J2000),
)
_STATE_FIELDS = (
    *(_number(f"{axis}_teme_m", "m", f"position, {axis}", frame=_TEME) for axis in "xyz"),
    *(_number(f"v{axis}_teme_m_s", "m/s", f"velocity, {axis}", frame=_TEME) for axis in "xyz"),
)
_SIGMAS = (
    _number("sigma_range_m", "m", "one standard deviation of the range"),
    _number("sigma_range_rate_m_s", "m/s", "one standard deviation of the range rate"),
    _number("sigma_angle_rad", "rad", "one standard deviation of each angle"),
    _number("sigma_position_m", "m", "one standard deviation of each coordinate", frame=_TEME),
    _number("sigma_velocity_m_s", "m/s", "one standard deviation of each coordinate", frame=_TEME),
)

_OBSERVATION_FIELDS = (*_OBSERVED, _TRACK, *_RADAR_FIELDS, *_OPTICAL_FIELDS, *_STATE_FIELDS, *_SIGMAS)
_CORRELATION_FIELDS = (
    *_OBSERVED,
    _TRACK,
    _time("correlated_timestamp", "when it was correlated"),
    _text("association", "correlated, ambiguous, uct (uncorrelated track) or unpredicted (no prediction possible)"),
    _number("catalog_number", "1", "the object, if correlated", kind=pa.int64()),
    pa.field(
        "candidates",
        _CATALOG_NUMBERS,
        nullable=False,
        metadata={"description": "catalogue numbers of all candidates, the likeliest first"},
    ),
    _text("reference_orbit_id", "element set of the residuals: <catalogue number>@<epoch, UTC ns>", nullable=True),
    _number("mahalanobis_squared", "1", "squared distance from the likeliest candidate, in standard deviations"),
    _number("components", "1", "how many numbers were measured", kind=pa.int32(), nullable=False),
    _number("probability", "1", "of the likeliest candidate among all"),
    *_RESIDUALS,
)
_UPDATE_FIELDS = (
    _text("update_id", "from the object and the contributing ids"),
    _number("catalog_number", "1", "the object", kind=pa.int64(), nullable=False),
    _time("start_timestamp", "event time: the window's first nanosecond"),
    _time("end_timestamp", "event time: the first nanosecond after the window"),
    _time("ingest_timestamp", "the earliest contribution's; the partition"),
    pa.field(
        "contributions",
        _CONTRIBUTIONS,
        nullable=False,
        metadata={"description": "one for each observation, in order of event time"},
    ),
    pa.field(
        "retracted",
        pa.bool_(),
        nullable=False,
        metadata={"description": "late observations have changed the window: the row with this id is withdrawn"},
    ),
)
_CONJUNCTION_FIELDS = (
    _text("conjunction_id", "the same for all estimates of one approach"),
    _number(
        "revision",
        "1",
        "1 for the first estimate, then ascending; with the id the key",
        kind=pa.int32(),
        nullable=False,
    ),
    _number("sequence", "1", "ascending over all updates", kind=pa.int64(), nullable=False),
    _text(
        "status",
        "active, withdrawn (the newest element sets do not have it) or passed; then the last estimate's figures",
    ),
    _time("screened_timestamp", "when the screening found this; the partition"),
    _number("catalog_number_first", "1", "the smaller number of the two", kind=pa.int64(), nullable=False),
    _number("catalog_number_second", "1", "the greater number of the two", kind=pa.int64(), nullable=False),
    _text("name_first", "of the catalogue; empty if it has no name"),
    _text("name_second", "of the catalogue; empty if it has no name"),
    _time("tca_timestamp", "time of closest approach"),
    _number("miss_m", "m", "the distance at that time", nullable=False),
    _number("miss_radial_m", "m", "second minus first, along the position", frame=_RTN_FIRST, nullable=False),
    _number("miss_in_track_m", "m", "completing the right-handed triad", frame=_RTN_FIRST, nullable=False),
    _number("miss_cross_track_m", "m", "along the angular momentum", frame=_RTN_FIRST, nullable=False),
    _number("relative_speed_m_s", "m/s", "at that time", nullable=False),
    _number("max_probability", "1", "of a collision, the greatest over all sizes of the covariance", nullable=False),
    _number("dilution_m", "m", "standard deviation along the miss vector at which it is the greatest"),
    _number("probability", "1", "of a collision, with the covariances of both objects"),
    _time("epoch_first_timestamp", "epoch of the first's element set"),
    _time("epoch_second_timestamp", "epoch of the second's element set"),
    _number("age_first_s", "s", "time of closest approach minus epoch", nullable=False),
    _number("age_second_s", "s", "time of closest approach minus epoch", nullable=False),
    _number("radius_first_m", "m", "assumed", nullable=False),
    _number("radius_second_m", "m", "assumed", nullable=False),
    _text("orbit_class_first", "of the first's orbit"),
    _text("orbit_class_second", "of the second's orbit"),
    _text("fleet_first", "which the first belongs to", nullable=True),
    _text("fleet_second", "which the second belongs to", nullable=True),
    pa.field("same_fleet", pa.bool_(), nullable=False, metadata={"description": "both belong to one fleet"}),
    pa.field("formation", pa.bool_(), nullable=False, metadata={"description": "docked, or in formation"}),
    _text("designator_first", "international designator of the first; empty if unknown", nullable=True),
    _text("designator_second", "international designator of the second; empty if unknown", nullable=True),
    *(
        field
        for which in ("first", "second")
        for field in (
            *(_number(f"{which}_{axis}_m", "m", f"position of the {which}, {axis}", frame=_TEME_TCA) for axis in "xyz"),
            *(_number(f"{which}_v{axis}_m_s", "m/s", f"its velocity, {axis}", frame=_TEME_TCA) for axis in "xyz"),
        )
    ),
    _text("reason", "why it was withdrawn: moved_away, no_position or left_catalog", nullable=True),
)


def _schema(record: type, fields: Sequence[pa.Field]) -> pa.Schema:
    metadata = {
        "schema_version": str(SCHEMA_VERSIONS[record]),
        "record": record.__name__,
        "fields": json.dumps(_described(fields)),
    }
    return pa.schema(fields, metadata=metadata)


def _described(fields: Sequence[pa.Field]) -> dict[str, dict[str, str]]:
    """Every field's metadata; fields within a list of structs have their path: ``contributions.residual_range_m``."""
    described: dict[str, dict[str, str]] = {}
    for field in fields:
        described[field.name] = {key.decode(): value.decode() for key, value in field.metadata.items()}
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            within = _described(list(field.type.value_type))
            described |= {f"{field.name}.{name}": metadata for name, metadata in within.items()}
    return described


# Records to columns. A comprehension for each attribute takes 11 ns per record; a tuple of all attributes takes 300.


def _observation_columns(records: Sequence[Observation]) -> list[pa.Array]:
    targets = [record.target for record in records]
    sigmas = [record.uncertainty for record in records]
    return [
        *_observed(records),
        pa.array([record.track_id for record in records], pa.string()),
        *_of_kind(targets, RadarTarget, _radar_columns, len(_RADAR_FIELDS)),
        *_of_kind(targets, OpticalTarget, _optical_columns, len(_OPTICAL_FIELDS)),
        *_of_kind(targets, StateTarget, _state_columns, len(_STATE_FIELDS)),
        _floats([sigma.sigma_range_m for sigma in sigmas]),
        _floats([sigma.sigma_range_rate_m_s for sigma in sigmas]),
        _floats([sigma.sigma_angle_rad for sigma in sigmas]),
        _floats([sigma.sigma_position_m for sigma in sigmas]),
        _floats([sigma.sigma_velocity_m_s for sigma in sigmas]),
    ]


def _correlation_columns(records: Sequence[Correlation]) -> list[pa.Array]:
    return [
        *_observed(records),
        pa.array([record.track_id for record in records], pa.string()),
        _times([record.correlated_timestamp for record in records]),
        pa.array([record.association for record in records], pa.string()),
        pa.array([record.catalog_number for record in records], pa.int64()),
        pa.array([record.candidates for record in records], _CATALOG_NUMBERS),
        pa.array([record.reference_orbit_id for record in records], pa.string()),
        _floats([record.mahalanobis_squared for record in records]),
        pa.array([record.components for record in records], pa.int32()),
        _floats([record.probability for record in records]),
        *_residual_columns([record.residuals or _NO_RESIDUALS for record in records]),
    ]


def _update_columns(records: Sequence[CrossSensorUpdate]) -> list[pa.Array]:
    contributions = [contribution for record in records for contribution in record.contributions]
    offsets = np.cumsum([0, *(len(record.contributions) for record in records)], dtype=np.int32)
    return [
        _ids([record.update_id for record in records]),
        pa.array([record.catalog_number for record in records], pa.int64()),
        _times([record.start_timestamp for record in records]),
        _times([record.end_timestamp for record in records]),
        _times([record.ingest_timestamp for record in records]),
        pa.ListArray.from_arrays(offsets, _contribution_structs(contributions), type=_CONTRIBUTIONS),
        pa.array([record.retracted for record in records], pa.bool_()),
    ]


def _conjunction_columns(records: Sequence[ConjunctionUpdate]) -> list[pa.Array]:
    return [
        _ids([record.conjunction_id for record in records]),
        *(_column(field, list(map(attrgetter(field.name), records))) for field in _CONJUNCTION_FIELDS[1:]),
    ]


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    return _times(values) if pa.types.is_timestamp(field.type) else pa.array(values, field.type)


def _contribution_structs(contributions: Sequence[Contribution]) -> pa.StructArray:
    columns = [
        _ids([contribution.observation_id for contribution in contributions]),
        pa.array([contribution.source_id for contribution in contributions], pa.string()),
        _times([contribution.sensor_timestamp for contribution in contributions]),
        *_residual_columns([contribution.residuals for contribution in contributions]),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(_CONTRIBUTION))


def _observed(records: Sequence[Observation] | Sequence[Correlation]) -> list[pa.Array]:
    return [
        _ids([record.observation_id for record in records]),
        pa.array([record.source_id for record in records], pa.string()),
        pa.array([record.source_kind for record in records], pa.string()),
        _times([record.sensor_timestamp for record in records]),
        _times([record.ingest_timestamp for record in records]),
    ]


def _radar_columns(targets: Sequence[RadarTarget]) -> list[pa.Array]:
    return [
        _floats([target.range_m for target in targets]),
        _floats([target.range_rate_m_s for target in targets]),
        _floats([target.azimuth_rad for target in targets]),
        _floats([target.elevation_rad for target in targets]),
    ]


def _optical_columns(targets: Sequence[OpticalTarget]) -> list[pa.Array]:
    return [
        _floats([target.right_ascension_rad for target in targets]),
        _floats([target.declination_rad for target in targets]),
    ]


def _state_columns(targets: Sequence[StateTarget]) -> list[pa.Array]:
    states = np.array([target.r_teme_m + target.v_teme_m_s for target in targets], dtype=np.float64)
    return [pa.array(column) for column in states.T]


_NO_RESIDUALS = Residuals()
_RESIDUAL = [attrgetter(field.name.removeprefix("residual_")) for field in _RESIDUALS]


def _residual_columns(residuals: Sequence[Residuals]) -> list[pa.Array]:
    return [_floats(list(map(component, residuals))) for component in _RESIDUAL]


def _of_kind(
    targets: Sequence[Any], kind: type, columns: Callable[[Sequence[Any]], list[pa.Array]], width: int
) -> list[pa.Array]:
    """The ``width`` columns of one kind of target; null in the rows of other kinds."""
    of_kind = [target for target in targets if type(target) is kind]
    if len(of_kind) == len(targets):
        return columns(of_kind)
    absent = pa.nulls(len(targets), pa.float64())
    if not of_kind:
        return [absent] * width
    where = pa.array(np.fromiter((type(target) is kind for target in targets), dtype=np.bool_, count=len(targets)))
    return [pc.replace_with_mask(absent, where, column) for column in columns(of_kind)]


def _floats(values: Sequence[float | None]) -> pa.Array:
    return pa.array(values, pa.float64())  # only None becomes null; a measured NaN stays NaN


def _times(values: Sequence[int]) -> pa.Array:
    return pa.array(values, pa.int64()).view(pa.timestamp("ns", tz="UTC"))


_ID_LENGTH = 36
_ID_STRIDE = _ID_LENGTH + 3  # with its quotes and comma


def _ids(ids: Sequence[UUID]) -> pa.Array:
    """The usual text of each id. ``str`` of a UUID takes 640 ns; msgspec writes ``["…","…"]`` at 50 ns per id."""
    octets = np.frombuffer(msgspec.json.encode(ids)[1:-1] + b",", dtype=np.uint8) if ids else np.empty(0, np.uint8)
    text = octets.reshape(len(ids), _ID_STRIDE)[:, 1 : 1 + _ID_LENGTH].tobytes()
    offsets = np.arange(0, (len(ids) + 1) * _ID_LENGTH, _ID_LENGTH, dtype=np.int32)
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(text))


TABLES: Mapping[type, AuditTable] = {
    Observation: AuditTable(
        "observations",
        _schema(Observation, _OBSERVATION_FIELDS),
        ("source_id", "source_kind", "track_id"),
        _observation_columns,
    ),
    Correlation: AuditTable(
        "correlations",
        _schema(Correlation, _CORRELATION_FIELDS),
        ("source_id", "source_kind", "track_id", "association", "reference_orbit_id"),
        _correlation_columns,
    ),
    CrossSensorUpdate: AuditTable(
        "cross_sensor_updates",
        _schema(CrossSensorUpdate, _UPDATE_FIELDS),
        ("contributions.list.element.source_id",),
        _update_columns,
    ),
    ConjunctionUpdate: AuditTable(
        "conjunctions",
        _schema(ConjunctionUpdate, _CONJUNCTION_FIELDS),
        (
            "status",
            "name_first",
            "name_second",
            "orbit_class_first",
            "orbit_class_second",
            "fleet_first",
            "fleet_second",
            "reason",
        ),
        _conjunction_columns,
    ),
}
"""By type of record."""
