"""The keywords of a Conjunction Data Message in the standard's order (CCSDS 508.0-B-1, tables 3-1 to 3-4).

One table for reading and writing: each field's keywords, kind and units, and the attribute that has its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

from sda_ops.wire.cdm_message import AXES, OrbitDetermination, PhysicalParameters, RtnCovariance

Kind: TypeAlias = Literal["text", "time", "number", "count"]
PartValue: TypeAlias = type[OrbitDetermination] | type[PhysicalParameters] | type[RtnCovariance]


@dataclass(frozen=True, slots=True)
class Field:
    """One attribute of a message, or one vector.

    Attributes:
        attribute: Of the part's value.
        keywords: One; or one for each component.
        kind: ``text``; ``time`` in UTC; ``number``; ``count``, a whole number.
        units: The unit of each keyword in the file; empty for a number without a unit.
        factor: SI units in one unit of the file.
        required: Whether the standard demands it.
        bounds: The lowest and the highest number, as in `ConjunctionMessage`.
    """

    attribute: str
    keywords: tuple[str, ...]
    kind: Kind
    units: tuple[str, ...] = ("",)
    factor: int = 1
    required: bool = False
    bounds: tuple[float, float] = (-inf, inf)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message.

    Attributes:
        element: Its element in XML.
        comments: The attribute with its comments.
        fields: In the standard's order.
        attribute: Of the object, if the part's value is one of its attributes; else empty: the fields are the owner's.
        value: The class of that value.
    """

    element: str
    comments: str
    fields: tuple[Field, ...]
    attribute: str = ""
    value: PartValue | None = None

    def keywords(self) -> Iterator[tuple[str, Field]]:
        """Every keyword with its field."""
        for each in self.fields:
            for keyword in each.keywords:
                yield keyword, each


def _text(attribute: str, keyword: str, *, required: bool = False) -> Field:
    return Field(attribute, (keyword,), "text", required=required)


def _time(attribute: str, keyword: str, *, required: bool = False) -> Field:
    return Field(attribute, (keyword,), "time", required=required)


def _count(attribute: str, keyword: str) -> Field:
    return Field(attribute, (keyword,), "count")


def _number(
    attribute: str,
    keyword: str,
    unit: str = "",
    *,
    factor: int = 1,
    required: bool = False,
    bounds: tuple[float, float] = (-inf, inf),
) -> Field:
    return Field(attribute, (keyword,), "number", (unit,), factor, required, bounds)


def _vector(attribute: str, keywords: str, unit: str, *, factor: int = 1, required: bool = False) -> Field:
    names = tuple(keywords.split())
    return Field(attribute, names, "number", (unit,) * len(names), factor, required)


# Powers of metres, kilograms and seconds of each axis of the covariance.
_AXIS_UNITS = {
    **dict.fromkeys(AXES[:3], (1, 0, 0)),
    **dict.fromkeys(AXES[3:], (1, 0, -1)),
    "DRG": (2, -1, 0),
    "SRP": (2, -1, 0),
    "THR": (1, 0, -2),
}


def _covariance_unit(row: str, column: str) -> str:
    metres, kilograms, seconds = (a + b for a, b in zip(_AXIS_UNITS[row], _AXIS_UNITS[column], strict=True))
    below = [
        name if power == -1 else f"{name}**{-power}" for name, power in (("kg", kilograms), ("s", seconds)) if power
    ]
    divisor = f"({'*'.join(below)})" if len(below) > 1 else "".join(below)
    return f"m**{metres}/{divisor}" if divisor else f"m**{metres}"


def _covariance(attribute: str, *rows: str, required: bool = False) -> Field:
    axes = list(_AXIS_UNITS)
    pairs = [(row, column) for row in rows for column in axes[: axes.index(row) + 1]]
    return Field(
        attribute,
        tuple(f"C{row}_{column}" for row, column in pairs),
        "number",
        tuple(_covariance_unit(row, column) for row, column in pairs),
        required=required,
    )


VERSION = "CCSDS_CDM_VERS"

HEADER = Part(
    "header",
    "header_comments",
    (
        _time("creation_date_ns", "CREATION_DATE", required=True),
        _text("originator", "ORIGINATOR", required=True),
        _text("message_for", "MESSAGE_FOR"),
        _text("message_id", "MESSAGE_ID", required=True),
    ),
)

RELATIVE = Part(
    "relativeMetadataData",
    "comments",
    (
        _time("tca_ns", "TCA", required=True),
        _number("miss_distance_m", "MISS_DISTANCE", "m", required=True, bounds=(0.0, inf)),
        _number("relative_speed_m_s", "RELATIVE_SPEED", "m/s"),
        _vector("relative_position_m", "RELATIVE_POSITION_R RELATIVE_POSITION_T RELATIVE_POSITION_N", "m"),
        _vector("relative_velocity_m_s", "RELATIVE_VELOCITY_R RELATIVE_VELOCITY_T RELATIVE_VELOCITY_N", "m/s"),
        _time("screen_from_ns", "START_SCREEN_PERIOD"),
        _time("screen_until_ns", "STOP_SCREEN_PERIOD"),
        _text("screen_volume_frame", "SCREEN_VOLUME_FRAME"),
        _text("screen_volume_shape", "SCREEN_VOLUME_SHAPE"),
        _vector("screen_volume_m", "SCREEN_VOLUME_X SCREEN_VOLUME_Y SCREEN_VOLUME_Z", "m"),
        _time("screen_entry_ns", "SCREEN_ENTRY_TIME"),
        _time("screen_exit_ns", "SCREEN_EXIT_TIME"),
        _number("collision_probability", "COLLISION_PROBABILITY", bounds=(0.0, 1.0)),
        _text("collision_probability_method", "COLLISION_PROBABILITY_METHOD"),
    ),
)

OBJECT = "OBJECT"
"""It begins each object: ``OBJECT1``, ``OBJECT2``."""

METADATA = Part(
    "metadata",
    "comments",
    (
        _text("designator", "OBJECT_DESIGNATOR", required=True),
        _text("catalog_name", "CATALOG_NAME", required=True),
        _text("name", "OBJECT_NAME", required=True),
        _text("international_designator", "INTERNATIONAL_DESIGNATOR", required=True),
        _text("object_type", "OBJECT_TYPE"),
        _text("operator_contact_position", "OPERATOR_CONTACT_POSITION"),
        _text("operator_organization", "OPERATOR_ORGANIZATION"),
        _text("operator_phone", "OPERATOR_PHONE"),
        _text("operator_email", "OPERATOR_EMAIL"),
        _text("ephemeris_name", "EPHEMERIS_NAME", required=True),
        _text("covariance_method", "COVARIANCE_METHOD", required=True),
        _text("maneuverable", "MANEUVERABLE", required=True),
        _text("orbit_center", "ORBIT_CENTER"),
        _text("ref_frame", "REF_FRAME", required=True),
        _text("gravity_model", "GRAVITY_MODEL"),
        _text("atmospheric_model", "ATMOSPHERIC_MODEL"),
        _text("n_body_perturbations", "N_BODY_PERTURBATIONS"),
        _text("solar_radiation_pressure", "SOLAR_RAD_PRESSURE"),
        _text("earth_tides", "EARTH_TIDES"),
        _text("in_track_thrust", "INTRACK_THRUST"),
    ),
)

ORBIT_DETERMINATION = Part(
    "odParameters",
    "comments",
    (
        _time("last_observation_from_ns", "TIME_LASTOB_START"),
        _time("last_observation_until_ns", "TIME_LASTOB_END"),
        _number("recommended_span_s", "RECOMMENDED_OD_SPAN", "d", factor=86_400),
        _number("actual_span_s", "ACTUAL_OD_SPAN", "d", factor=86_400),
        _count("observations_available", "OBS_AVAILABLE"),
        _count("observations_used", "OBS_USED"),
        _count("tracks_available", "TRACKS_AVAILABLE"),
        _count("tracks_used", "TRACKS_USED"),
        _number("residuals_accepted_percent", "RESIDUALS_ACCEPTED", "%"),
        _number("weighted_rms", "WEIGHTED_RMS"),
    ),
    "orbit_determination",
    OrbitDetermination,
)

PHYSICAL = Part(
    "additionalParameters",
    "comments",
    (
        _number("area_for_probability_m2", "AREA_PC", "m**2"),
        _number("drag_area_m2", "AREA_DRG", "m**2"),
        _number("solar_radiation_area_m2", "AREA_SRP", "m**2"),
        _number("mass_kg", "MASS", "kg"),
        _number("drag_area_over_mass_m2_kg", "CD_AREA_OVER_MASS", "m**2/kg"),
        _number("solar_radiation_area_over_mass_m2_kg", "CR_AREA_OVER_MASS", "m**2/kg"),
        _number("thrust_acceleration_m_s2", "THRUST_ACCELERATION", "m/s**2"),
        _number("energy_dissipation_rate_w_kg", "SEDR", "W/kg"),
    ),
    "physical",
    PhysicalParameters,
)

STATE = Part(
    "stateVector",
    "state_comments",
    (
        _vector("position_m", "X Y Z", "km", factor=1_000, required=True),
        _vector("velocity_m_s", "X_DOT Y_DOT Z_DOT", "km/s", factor=1_000, required=True),
    ),
)

COVARIANCE = Part(
    "covarianceMatrix",
    "comments",
    (
        _covariance("state", *AXES, required=True),
        _covariance("drag", "DRG"),
        _covariance("solar_radiation", "SRP"),
        _covariance("thrust", "THR"),
    ),
    "covariance",
    RtnCovariance,
)

MESSAGE_PARTS = (HEADER, RELATIVE)
OBJECT_PARTS = (METADATA, ORBIT_DETERMINATION, PHYSICAL, STATE, COVARIANCE)

MESSAGE_FIELDS = {keyword: (part, each) for part in MESSAGE_PARTS for keyword, each in part.keywords()}
OBJECT_FIELDS = {keyword: (part, each) for part in OBJECT_PARTS for keyword, each in part.keywords()}
"""The part and the field of each keyword."""
