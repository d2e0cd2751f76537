"""Checked numbers from the fields of an Orbit Mean-Elements Message (CCSDS 502.0-B), in any notation.

Knows the conventions in which SGP4 elements are published, and rejects messages that state other ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

OmmFields: TypeAlias = Mapping[str, object]
"""Values by CCSDS keyword: text, or JSON values."""

MAX_CATALOG_NUMBER = 999_999_999
"""Nine digits (CCSDS 502.0-B-3, NORAD_CAT_ID)."""

SGP4_EPHEMERIS_TYPES = (0, 2)
"""The only ephemeris types of SGP4's elements: 0 in all that are published, and 2. With the elements of other theories SGP4
computes wrong orbits: 3 is PPT3, 4 SGP4-XP, 6 special perturbations (CCSDS 502.0-B-3, EPHEMERIS_TYPE)."""

UNITS = {
    "MEAN_MOTION": "rev/day",
    "INCLINATION": "deg",
    "RA_OF_ASC_NODE": "deg",
    "ARG_OF_PERICENTER": "deg",
    "MEAN_ANOMALY": "deg",
}
"""The only units that the standard allows, for notations with units; compared without regard to case."""

_SGP4_EPOCH = datetime(1949, 12, 31)  # noqa: DTZ001 - UTC like every EPOCH here, and sgp4 counts from a naive one

_REQUIRED = (
    "NORAD_CAT_ID",
    "EPOCH",
    "MEAN_MOTION",
    "ECCENTRICITY",
    "INCLINATION",
    "RA_OF_ASC_NODE",
    "ARG_OF_PERICENTER",
    "MEAN_ANOMALY",
    "BSTAR",
)
_CONVENTIONS = {
    "CENTER_NAME": ("EARTH",),
    "REF_FRAME": ("TEME", "TEMEOFDATE"),
    "TIME_SYSTEM": ("UTC",),
    "MEAN_ELEMENT_THEORY": ("SGP4", "SGP", "SGP/SGP4", "SDP4", "SGP4/SDP4", "TLE"),
}
"""All names of one thing: the elements of a TLE are those of SGP4, which is SDP4 for deep-space orbits (AIAA 2006-6753), and
TEMEOFDATE is SANA's name of SGP4's frame. Other frames are rejected: GCRF, EME2000 and ICRF differ from it by precession,
0.37 deg in 2026, which is 45 km in low orbit."""
_EPOCH = re.compile(r"(\d{4})-(?:(\d\d)-(\d\d)|(\d{3}))T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?Z?", re.ASCII)
_FIRST_YEAR, _END_YEAR = 1957, 2200  # the first satellite; nanoseconds since 1970 overflow in 2262
_MICROSECOND_DIGITS = 6
_INTEGER = re.compile(r"\d{1,9}", re.ASCII)
_DESIGNATOR = re.compile(r"\d\d(\d\d)-(\d{3}[A-Z]{1,3})", re.ASCII)


@dataclass(frozen=True, slots=True)
class MeanElements:
    """The orbit of an OMM, in the units of the message.

    Attributes:
        catalog_number: 1 to 999,999,999.
        epoch_days: Days since 1949-12-31T00:00 UTC, as SGP4 counts them; the message's epoch to the microsecond.
        mean_motion: Kozai's, revolutions per day.
        mean_motion_dot: Half the first derivative, as in TLEs, revolutions per day squared.
        mean_motion_ddot: A sixth of the second derivative, as in TLEs, revolutions per day cubed.
        designator: International designator as in TLEs ('98067A'); empty if the message has none of this form.
    """

    catalog_number: int
    name: str
    epoch_days: float
    mean_motion: float
    eccentricity: float
    inclination_deg: float
    node_deg: float
    perigee_deg: float
    anomaly_deg: float
    bstar: float
    mean_motion_dot: float
    mean_motion_ddot: float
    designator: str
    element_set_number: int
    revolution_number: int

    @classmethod
    def from_fields(cls, fields: OmmFields) -> MeanElements:
        """Raises ``ValueError`` that says what is missing, or what was expected and what the field has."""
        if missing := missing_fields(fields):
            raise ValueError(f"missing {', '.join(missing)}")
        for name, allowed in _CONVENTIONS.items():
            value = fields.get(name)
            if value not in (None, "") and str(value).strip().upper() not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")
        check_ephemeris_type(_integer(fields, "EPHEMERIS_TYPE"), name="EPHEMERIS_TYPE")
        catalog_number = _integer(fields, "NORAD_CAT_ID")
        if catalog_number == 0:
            raise ValueError(f"NORAD_CAT_ID must have one to nine digits and not be 0, got {fields['NORAD_CAT_ID']!r}")
        designator = _DESIGNATOR.fullmatch(str(fields.get("OBJECT_ID")))
        return cls(
            catalog_number=catalog_number,
            name=str(fields.get("OBJECT_NAME") or "").strip(),
            epoch_days=epoch_days(str(fields["EPOCH"]).strip()),
            mean_motion=_number(fields, "MEAN_MOTION"),
            eccentricity=_number(fields, "ECCENTRICITY"),
            inclination_deg=_number(fields, "INCLINATION"),
            node_deg=_number(fields, "RA_OF_ASC_NODE"),
            perigee_deg=_number(fields, "ARG_OF_PERICENTER"),
            anomaly_deg=_number(fields, "MEAN_ANOMALY"),
            bstar=_number(fields, "BSTAR"),
            mean_motion_dot=_number(fields, "MEAN_MOTION_DOT"),
            mean_motion_ddot=_number(fields, "MEAN_MOTION_DDOT"),
            designator="".join(designator.groups()) if designator else "",
            element_set_number=_integer(fields, "ELEMENT_SET_NO"),
            revolution_number=_integer(fields, "REV_AT_EPOCH"),
        )


def check_ephemeris_type(ephemeris_type: int, *, name: str) -> None:
    """Raise ``ValueError`` for elements of another theory than SGP4."""
    if ephemeris_type not in SGP4_EPHEMERIS_TYPES:
        theory = _THEORIES.get(ephemeris_type, "another theory")
        raise ValueError(
            f"{name} {ephemeris_type} marks elements of {theory}, which SGP4 cannot propagate; expected 0 or 2"
        )


_THEORIES = {1: "SGP", 3: "PPT3", 4: "SGP4-XP", 6: "special perturbations"}


def missing_fields(fields: OmmFields) -> list[str]:
    """The required keywords that are absent or empty."""
    return [name for name in _REQUIRED if fields.get(name) in (None, "")]


def epoch_days(text: str) -> float:
    """A CCSDS time (calendar or day of year, UTC) as days since 1949-12-31T00:00, equal to ``sgp4.omm``'s to the bit.

    Decimals beyond the microsecond are rounded, which is less than 4 mm along the orbit. The 60th second of a leap second
    is rejected, because all code here counts 86,400 s a day. Raises ``ValueError``.
    """
    match = _EPOCH.fullmatch(text)
    if match is None:
        raise ValueError(f"EPOCH must be YYYY-MM-DDThh:mm:ss[.d], or YYYY-DDD for the date, got {text!r}")
    year, month, day, day_of_year, hour, minute, second, decimals = match.groups()
    microseconds = int((decimals or "").ljust(_MICROSECOND_DIGITS, "0")[:_MICROSECOND_DIGITS])
    if decimals and decimals[_MICROSECOND_DIGITS : _MICROSECOND_DIGITS + 1] >= "5":
        microseconds += 1
    try:
        moment = datetime(int(year), int(month or 1), int(day or 1), int(hour), int(minute), int(second))  # noqa: DTZ001 - UTC
        moment += timedelta(days=int(day_of_year or 1) - 1, microseconds=microseconds)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"EPOCH {text!r}: {error}") from error
    if day_of_year is not None and (int(day_of_year) < 1 or moment.year != int(year)):
        raise ValueError(f"EPOCH {text!r}: there is no day {day_of_year} in {year}")
    if not _FIRST_YEAR <= moment.year < _END_YEAR:
        raise ValueError(f"EPOCH {text!r}: the year must be {_FIRST_YEAR} to {_END_YEAR - 1}")
    return (moment - _SGP4_EPOCH).total_seconds() / 86_400.0


def _number(fields: OmmFields, name: str) -> float:
    """The number, 0.0 if absent. Rejects underscores and digits of other scripts, which ``float`` would accept."""
    value = fields.get(name)
    if isinstance(value, str):
        if value == "":
            return 0.0
        if value.isascii() and "_" not in value:
            try:
                return float(value)
            except ValueError:
                pass
    elif value is None:
        return 0.0
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise ValueError(f"{name} must be a number, got {_short(value)}")


def _integer(fields: OmmFields, name: str) -> int:
    """The integer, 0 if absent."""
    value = fields.get(name)
    if isinstance(value, str):
        if value == "":
            return 0
        if _INTEGER.fullmatch(value.strip()) is not None:
            return int(value)
    elif value is None:
        return 0
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_CATALOG_NUMBER:
        return value
    raise ValueError(f"{name} must have one to nine digits, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str | float | bool) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - characters in a message
