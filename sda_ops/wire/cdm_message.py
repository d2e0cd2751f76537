"""The value of a Conjunction Data Message: two objects at their closest approach. It knows no notation.

Numbers are in SI units. Texts, among them the enumerations (reference frames, methods, yes and no), are as in the file.
Each class has the fields of one part of the message, in the standard's order (CCSDS 508.0-B-1, tables 3-1 to 3-4); a
field that the standard does not demand may be None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias

import numpy as np

from sda_ops.astro.time import Floats

Vector: TypeAlias = tuple[float, float, float]

OtherFields: TypeAlias = tuple[tuple[str, str], ...]
"""Keywords that the standard does not have, and their values as text; a unit is a part of it: ``5.0 [m]``."""

AXES = ("R", "T", "N", "RDOT", "TDOT", "NDOT")
"""The axes of a covariance: radial, transverse (in-track), normal (cross-track) position and velocity."""

_UNUSABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_HARD_BODY_RADIUS = re.compile(r"HBR\s*=\s*(\d+\.?\d*)(?:\s*\[?m\]?)?", re.ASCII)
_KEYWORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrbitDetermination:
    """How an object's orbit was determined. At least one field has a value.

    Attributes:
        comments: Comments of this part.
        last_observation_from_ns: ``TIME_LASTOB_START``: begin of the interval with the last accepted observation.
        last_observation_until_ns: ``TIME_LASTOB_END``.
        recommended_span_s: ``RECOMMENDED_OD_SPAN``.
        actual_span_s: ``ACTUAL_OD_SPAN``.
        observations_available: ``OBS_AVAILABLE``.
        observations_used: ``OBS_USED``.
        tracks_available: ``TRACKS_AVAILABLE``.
        tracks_used: ``TRACKS_USED``.
        residuals_accepted_percent: ``RESIDUALS_ACCEPTED``.
        weighted_rms: ``WEIGHTED_RMS``.
    """

    comments: tuple[str, ...] = ()
    last_observation_from_ns: int | None = None
    last_observation_until_ns: int | None = None
    recommended_span_s: float | None = None
    actual_span_s: float | None = None
    observations_available: int | None = None
    observations_used: int | None = None
    tracks_available: int | None = None
    tracks_used: int | None = None
    residuals_accepted_percent: float | None = None
    weighted_rms: float | None = None

    def __post_init__(self) -> None:
        _check(self)
        _check_not_empty(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalParameters:
    """Size, mass and forces of an object (the standard's additional parameters). At least one field has a value.

    Attributes:
        comments: Comments of this part.
        area_for_probability_m2: ``AREA_PC``: the area that the collision probability is computed with.
        drag_area_m2: ``AREA_DRG``.
        solar_radiation_area_m2: ``AREA_SRP``.
        mass_kg: ``MASS``.
        drag_area_over_mass_m2_kg: ``CD_AREA_OVER_MASS``, times the drag coefficient.
        solar_radiation_area_over_mass_m2_kg: ``CR_AREA_OVER_MASS``, times the reflection coefficient.
        thrust_acceleration_m_s2: ``THRUST_ACCELERATION``.
        energy_dissipation_rate_w_kg: ``SEDR``.
    """

    comments: tuple[str, ...] = ()
    area_for_probability_m2: float | None = None
    drag_area_m2: float | None = None
    solar_radiation_area_m2: float | None = None
    mass_kg: float | None = None
    drag_area_over_mass_m2_kg: float | None = None
    solar_radiation_area_over_mass_m2_kg: float | None = None
    thrust_acceleration_m_s2: float | None = None
    energy_dissipation_rate_w_kg: float | None = None

    def __post_init__(self) -> None:
        _check(self)
        _check_not_empty(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RtnCovariance:
    """The covariance of an object's state in its own radial, transverse and normal axes, as the rows of a lower triangle.

    Attributes:
        comments: Comments of this part.
        state: ``CR_R``, ``CT_R``, ``CT_T``, … ``CNDOT_NDOT``: 21 values, row by row, m², m²/s, m²/s².
        drag: ``CDRG_R`` to ``CDRG_DRG``: 7 values, m³/kg, m³/(kg s), m⁴/kg².
        solar_radiation: ``CSRP_R`` to ``CSRP_SRP``: 8 values in the same units.
        thrust: ``CTHR_R`` to ``CTHR_THR``: 9 values, m²/s², m²/s³, m³/(kg s²), m²/s⁴.
    """

    comments: tuple[str, ...] = ()
    state: tuple[float, ...]
    drag: tuple[float, ...] | None = None
    solar_radiation: tuple[float, ...] | None = None
    thrust: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check(self)
        for name, count in (("state", 21), ("drag", 7), ("solar_radiation", 8), ("thrust", 9)):
            row = getattr(self, name)
            if row is not None and len(row) != count:
                raise ValueError(f"RtnCovariance: {name} must have {count} values, got {len(row)}")

    def matrix(self) -> Floats:
        """The symmetric ``(6, 6)`` matrix of position (m) and velocity (m/s), in the order of `AXES`."""
        matrix = np.empty((6, 6))
        lower = np.tril_indices(6)
        matrix[lower] = self.state
        matrix.T[lower] = self.state
        return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class ConjunctionObject:
    """One of the two objects: who it is, how its orbit was computed, and its state at the closest approach.

    Attributes:
        comments: Comments of the metadata.
        designator: ``OBJECT_DESIGNATOR``: the number in the catalogue.
        catalog_name: ``CATALOG_NAME``, such as ``SATCAT``.
        name: ``OBJECT_NAME``.
        international_designator: Such as ``1998-067A``; ``UNKNOWN`` if it has none.
        object_type: ``PAYLOAD``, ``ROCKET BODY``, ``DEBRIS``, ``UNKNOWN`` or ``OTHER``.
        operator_contact_position: Whom to contact.
        operator_organization: The operator.
        operator_phone: The operator's telephone number.
        operator_email: The operator's mail address.
        ephemeris_name: The ephemeris that was screened; ``NONE`` if it was the catalogue's orbit.
        covariance_method: ``CALCULATED`` or ``DEFAULT``.
        maneuverable: ``YES``, ``NO`` or ``N/A``.
        orbit_center: The Earth, if it is missing.
        ref_frame: The frame of the state: ``EME2000``, ``GCRF`` or ``ITRF``.
        gravity_model: Such as ``EGM-96: 36D 36O``.
        atmospheric_model: The model of the atmosphere.
        n_body_perturbations: The other bodies.
        solar_radiation_pressure: ``YES`` or ``NO``: whether it was modelled.
        earth_tides: ``YES`` or ``NO``.
        in_track_thrust: ``YES`` or ``NO``.
        orbit_determination: None if the message has nothing of it.
        physical: None if the message has nothing of it.
        state_comments: Comments of the state.
        position_m: In ``ref_frame``, at the closest approach.
        velocity_m_s: In ``ref_frame``, at the closest approach; in ``ITRF`` it is relative to the rotating Earth.
        covariance: At the closest approach, in the object's own axes.
        others: What the standard does not have.
    """

    comments: tuple[str, ...] = ()
    designator: str
    catalog_name: str
    name: str
    international_designator: str
    object_type: str | None = None
    operator_contact_position: str | None = None
    operator_organization: str | None = None
    operator_phone: str | None = None
    operator_email: str | None = None
    ephemeris_name: str
    covariance_method: str
    maneuverable: str
    orbit_center: str | None = None
    ref_frame: str
    gravity_model: str | None = None
    atmospheric_model: str | None = None
    n_body_perturbations: str | None = None
    solar_radiation_pressure: str | None = None
    earth_tides: str | None = None
    in_track_thrust: str | None = None
    orbit_determination: OrbitDetermination | None = None
    physical: PhysicalParameters | None = None
    state_comments: tuple[str, ...] = ()
    position_m: Vector
    velocity_m_s: Vector
    covariance: RtnCovariance
    others: OtherFields = ()

    def __post_init__(self) -> None:
        _check(self)

    def all_comments(self) -> Iterator[str]:
        """The comments of all parts, in order."""
        yield from self.comments
        for part in (self.orbit_determination, self.physical):
            if part is not None:
                yield from part.comments
        yield from self.state_comments
        yield from self.covariance.comments


@dataclass(frozen=True, slots=True, kw_only=True)
class ConjunctionMessage:
    """One conjunction of two objects.

    Attributes:
        version: ``1.0``; ``2.0`` for the draft of the next version.
        header_comments: Comments of the header.
        creation_date_ns: When the message was made, UTC.
        originator: Who made it.
        message_for: For whom.
        message_id: Unique among the originator's messages.
        comments: Comments of the relative data.
        tca_ns: Time of closest approach, UTC.
        miss_distance_m: The distance at that time.
        relative_speed_m_s: The speed at that time.
        relative_position_m: Second object minus first, in the first's radial, transverse and normal axes.
        relative_velocity_m_s: The same of the velocity.
        screen_from_ns: ``START_SCREEN_PERIOD``, UTC.
        screen_until_ns: ``STOP_SCREEN_PERIOD``.
        screen_volume_frame: ``RTN`` or ``TVN``.
        screen_volume_shape: ``ELLIPSOID`` or ``BOX``.
        screen_volume_m: ``SCREEN_VOLUME_X``, ``_Y``, ``_Z``: its size along each axis.
        screen_entry_ns: When the second object enters that volume.
        screen_exit_ns: When it leaves.
        collision_probability: In [0, 1].
        collision_probability_method: Such as ``FOSTER-1992``.
        objects: The first and the second object.
        others: What the standard does not have, in the header and the relative data.
    """

    version: str = "1.0"
    header_comments: tuple[str, ...] = ()
    creation_date_ns: int
    originator: str
    message_for: str | None = None
    message_id: str
    comments: tuple[str, ...] = ()
    tca_ns: int
    miss_distance_m: float
    relative_speed_m_s: float | None = None
    relative_position_m: Vector | None = None
    relative_velocity_m_s: Vector | None = None
    screen_from_ns: int | None = None
    screen_until_ns: int | None = None
    screen_volume_frame: str | None = None
    screen_volume_shape: str | None = None
    screen_volume_m: Vector | None = None
    screen_entry_ns: int | None = None
    screen_exit_ns: int | None = None
    collision_probability: float | None = None
    collision_probability_method: str | None = None
    objects: tuple[ConjunctionObject, ConjunctionObject]
    others: OtherFields = ()

    def __post_init__(self) -> None:
        _check(self)
        if self.miss_distance_m < 0.0:
            raise ValueError(f"ConjunctionMessage: miss_distance_m must be >= 0, got {self.miss_distance_m}")
        if self.collision_probability is not None and not 0.0 <= self.collision_probability <= 1.0:
            raise ValueError(
                f"ConjunctionMessage: collision_probability must be in [0, 1], got {self.collision_probability}"
            )

    @property
    def hard_body_radius_m(self) -> float | None:
        """The radius of both objects together, from a comment such as ``HBR = 15.0``, as CARA writes it; else None."""
        comments = [*self.header_comments, *self.comments]
        for each in self.objects:
            comments += each.all_comments()
        found = (_HARD_BODY_RADIUS.fullmatch(comment) for comment in comments)
        return next((float(match[1]) for match in found if match), None)


def check_text(text: str) -> str:
    """The text, if every notation can hold it: one line without control characters, no blanks around it.

    Raises ``ValueError`` otherwise.
    """
    if (match := _UNUSABLE.search(text)) is not None:
        raise ValueError(f"a text must be one line of printable characters, got {match[0]!r} in {text[:60]!r}")
    if text != text.strip():
        raise ValueError(f"a text must not begin or end with a blank, got {text[:60]!r}")
    return text


def is_keyword(text: str) -> bool:
    """Whether the text can be a keyword in both notations."""
    return _KEYWORD.fullmatch(text) is not None


def _check(part: Any) -> None:
    """Texts have to fit both notations, numbers have to be finite. Raises ``ValueError``."""
    name = ""
    try:
        for name in part.__slots__:
            value = getattr(part, name)
            if not isinstance(value, tuple):
                _check_value(value)
            elif not value or not isinstance(value[0], float) or not all(map(isfinite, value)):
                for component in value:
                    _check_value(component)
    except ValueError as error:
        raise ValueError(f"{type(part).__name__}: {name}: {error}") from None


def _check_value(value: object) -> None:
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"expected a finite number, got {value}")
    elif isinstance(value, tuple):  # one of `OtherFields`
        if not is_keyword(value[0]):
            raise ValueError(f"expected a keyword, got {value[0][:60]!r}")
        check_text(value[1])


def _check_not_empty(part: Any) -> None:
    if all(getattr(part, name) is None for name in part.__slots__ if name != "comments"):
        raise ValueError(f"{type(part).__name__}: without any value it must be None in its object")
