"""IOD: one line for each position that an amateur measured against the stars, as exchanged on SeeSat-L.

The Interactive Orbit Determination format (G. D. Lewis, 1998, clarified 2002; http://www.satobs.org/position/IODformat.html),
in columns counted from 1::

    37386 11 014A   4172 E 20190501213235845 17 25 2008223+702585 37 S
    1-5   7-15      17-20 22 24-40           42-43 45,46 48-61   63-64

object, station, sky, UTC (``YYYYMMDDHHMMSSsss``), its uncertainty, angle format, epoch, angles, their uncertainty. Digits
that were not measured are blank at the right. An uncertainty ``MX`` is ``M * 10^(X - 8)``: of the time in seconds, of the
position in the unit of its angle format.

Two fields are not used. The object (columns 1-15) is only the observer's belief. The time's uncertainty has no field in our
records; along the track it adds to the position's uncertainty, by the object's motion.

Right ascension and declination are read (formats 1, 2, 3 and 7), of J2000 (epoch code 5), B1950 (4) and date (0 or blank, as
the format's description says for column 46). A time within a leap second is malformed. Azimuth and elevation (4, 5, 6)
are not: our records have no field for them without a range, and the format does not say whether they are refracted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from math import radians
from typing import TypeAlias

import erfa
import numpy as np

from sda_ops.astro.leap_seconds import UNIX_EPOCH_ORDINAL, utc_ns
from sda_ops.astro.sites import Site
from sda_ops.astro.time import TT_MINUS_UTC_DAYS, julian_date
from sda_ops.records.ids import observation_id
from sda_ops.records.observation import Observation, OpticalTarget, Uncertainty
from sda_ops.wire.malformed import MalformedFrame

_LOOKS_LIKE_ONE = re.compile(rb"^.{16}\d{4} . (19|20)\d{6}", re.MULTILINE)
_ANGLES = re.compile(r"(\d+) *([+-])(\d+) *", re.ASCII)
_COLUMNS = 64

_SITE = re.compile(r"\s*(\d+)\s+(\S+)\s+([-+.\d]+)\s+([-+.\d]+)\s+([-+.\d]+)(?:\s+(.*))?", re.ASCII)


def is_iod(content: bytes) -> bool:
    """Whether one of the lines looks like an IOD line. A report may have prose around them."""
    return _LOOKS_LIKE_ONE.search(content) is not None


def decode(
    content: bytes, *, ingest_timestamp: int, sigma_angle_rad: float | None = None
) -> tuple[list[Observation], list[MalformedFrame]]:
    """A file's observations, and a `MalformedFrame` for each line without one, both in the file's order. Raises nothing.

    Blank lines and comments (``#``) are skipped. The id is made from the line; the source is ``optical-<station>``.

    Args:
        content: Lines of the format.
        ingest_timestamp: When they were ingested, UTC nanoseconds since the Unix epoch.
        sigma_angle_rad: One standard deviation of a position whose line has none.
    """
    observations: list[Observation] = []
    malformed: list[MalformedFrame] = []
    for number, raw in enumerate(content.splitlines(), 1):
        line = raw.decode("utf-8-sig", "replace").rstrip()
        if not line or line.startswith("#"):
            continue
        try:
            observations.append(_observation(line, ingest_timestamp, sigma_angle_rad))
        except ValueError as error:
            malformed.append(MalformedFrame(f"IOD line {number}: {error}", raw))
    return observations, malformed


def read_sites(text: str) -> dict[int, Site]:
    """The observers' sites by station number, from lines ``number code latitude longitude height observer``.

    Degrees, east positive, and metres. The observer may be missing or any text. Blank lines, comments (``#``) and headings
    are skipped; the later of two lines with one number counts.

    Raises ``ValueError``, with the line, for a line that begins with a number and is not a site.
    """
    sites: dict[int, Site] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.lstrip()[:1].isdecimal():
            continue
        try:
            station, site = _site(line)
        except ValueError as error:
            raise ValueError(f"sites line {number}: {error}, got {line.strip()!r}") from error
        sites[station] = site
    return sites


def _site(line: str) -> tuple[int, Site]:
    match = _SITE.fullmatch(line)
    if match is None:
        raise ValueError("expected number, code, latitude, longitude and height")
    latitude_deg, longitude_deg, height_m = float(match[3]), float(match[4]), float(match[5])
    if not abs(latitude_deg) <= 90 or not abs(longitude_deg) <= 360:  # noqa: PLR2004 - degrees
        raise ValueError("expected a latitude within +-90 and a longitude within +-360 degrees")
    name = (match[6] or "").strip() or match[2]
    site = Site.from_degrees(name, latitude_deg=latitude_deg, longitude_deg=longitude_deg, height_m=height_m)
    return int(match[1]), site


def _observation(line: str, ingest_timestamp: int, sigma_angle_rad: float | None) -> Observation:
    """Raises ``ValueError``."""
    columns = line.ljust(_COLUMNS)
    if not re.fullmatch(r"\d{4}", columns[16:20], re.ASCII):
        raise ValueError(f"columns 17-20: expected a station's number, got {columns[16:20]!r}")
    if not columns[44:61].strip():
        raise ValueError("columns 45-61: no position")
    timestamp_ns = _utc_ns(columns[23:40])
    angles_of, unit_rad = _angle_format(columns[44])
    ascension_rad, declination_rad = angles_of(columns[47:61])
    sigma_rad = _uncertainty(columns[62:64]) * unit_rad
    return Observation(
        observation_id("optical", line.encode()),
        f"optical-{int(columns[16:20])}",
        "optical",
        timestamp_ns,
        ingest_timestamp,
        _j2000(columns[45], ascension_rad, declination_rad, timestamp_ns),
        Uncertainty(sigma_angle_rad=sigma_rad or sigma_angle_rad),
    )


def _utc_ns(text: str) -> int:
    digits = text.rstrip()
    if not re.fullmatch(r"(19|20)\d{12,15}", digits, re.ASCII):
        raise ValueError(f"columns 24-40: expected a time YYYYMMDDHHMMSSsss, to the second at least, got {text!r}")
    year = int(digits[:4])
    month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
    try:
        days = date(year, month, day).toordinal() - UNIX_EPOCH_ORDINAL
    except ValueError as error:
        raise ValueError(f"columns 24-40: expected a date, got {text!r}") from error
    try:
        return utc_ns(days, hour=hour, minute=minute, second=second, ns=int(digits[14:].ljust(9, "0")))
    except ValueError as error:
        raise ValueError(f"columns 24-40: {error}") from error


def _uncertainty(text: str) -> float:
    """``MX`` is ``M * 10^(X - 8)``; 0 if it is blank."""
    if not text.strip():
        return 0.0
    if not re.fullmatch(r"\d\d", text, re.ASCII):
        raise ValueError(f"columns 63-64: expected an uncertainty MX, got {text!r}")
    return float(f"{text[0]}e{int(text[1]) - 8}")


_Angles: TypeAlias = Callable[[str], tuple[float, float]]

_ARCSECOND, _ARCMINUTE, _DEGREE = radians(1 / 3600), radians(1 / 60), radians(1.0)


def _angle_format(code: str) -> tuple[_Angles, float]:
    """The function that reads the angles, and the unit of their uncertainty in radians."""
    match code:
        case "1":
            return lambda text: _angles(text, _hhmmsss, _ddmmss), _ARCSECOND
        case "2":
            return lambda text: _angles(text, _hhmmmmm, _ddmmmm), _ARCMINUTE
        case "3":
            return lambda text: _angles(text, _hhmmmmm, _dddddd), _DEGREE
        case "7":
            return lambda text: _angles(text, _hhmmsss, _dddddd), _DEGREE
        case "4" | "5" | "6":
            raise ValueError(
                f"column 45: angle format {code} is azimuth and elevation: a record with these needs a range"
            )
        case _:
            raise ValueError(f"column 45: expected an angle format 1 to 7, got {code!r}")


def _angles(text: str, hours: Callable[[str], float], degrees: Callable[[str], float]) -> tuple[float, float]:
    """Right ascension and declination in radians, of the line's own epoch."""
    match = _ANGLES.fullmatch(text)
    if match is None or match.start(2) != 7:  # noqa: PLR2004 - column 55
        raise ValueError(f"columns 48-61: expected seven digits, a sign and six digits, got {text!r}")
    ascension_h, declination_deg = hours(match[1].ljust(7, "0")), degrees(match[3].ljust(6, "0"))
    if not ascension_h < 24 or not declination_deg <= 90:  # noqa: PLR2004 - hours and degrees
        raise ValueError(f"columns 48-61: expected angles below 24 h and up to 90 degrees, got {text!r}")
    return radians(ascension_h * 15), radians(-declination_deg if match[2] == "-" else declination_deg)


def _hhmmsss(text: str) -> float:
    return int(text[:2]) + _sixtieths(text[2:4]) / 60 + _sixtieths(text[4:]) / 3600


def _hhmmmmm(text: str) -> float:
    return int(text[:2]) + _sixtieths(text[2:]) / 60


def _ddmmss(text: str) -> float:
    return int(text[:2]) + _sixtieths(text[2:4]) / 60 + _sixtieths(text[4:]) / 3600


def _ddmmmm(text: str) -> float:
    return int(text[:2]) + _sixtieths(text[2:]) / 60


def _dddddd(text: str) -> float:
    return int(text) / 10_000


def _sixtieths(text: str) -> float:
    """Minutes or seconds: two digits, and the decimals after them."""
    value = float(f"{text[:2]}.{text[2:]}")
    if not value < 60:  # noqa: PLR2004 - minutes of an hour and the like
        raise ValueError(f"columns 48-61: expected minutes and seconds below 60, got {value:g}")
    return value


_OLD = {
    code: f" ({year}), which is not supported" for code, year in (("1", 1855), ("2", 1875), ("3", 1900), ("6", 2050))
}


def _j2000(epoch: str, ascension_rad: float, declination_rad: float, timestamp_ns: int) -> OpticalTarget:
    """The direction relative to the equator and equinox of J2000.

    B1950 is converted for the time of the observation and without proper motion (ERFA ``fk45z``). "Of date" is taken as the
    mean equinox (IAU 2006 precession); if the true one was meant, the result is off by the nutation, up to 17 arcseconds.
    """
    days, fraction = julian_date(np.array(timestamp_ns, dtype=np.int64))
    match epoch:
        case "5":
            return OpticalTarget(ascension_rad, declination_rad)
        case "4":
            ascension, declination = erfa.fk45z(ascension_rad, declination_rad, erfa.epb(days, fraction))
        case "0" | " ":  # "0 or blank": of date
            of_date = erfa.s2c(ascension_rad, declination_rad)
            to_j2000 = erfa.pmat06(days, fraction + TT_MINUS_UTC_DAYS).T
            ascension, declination = erfa.c2s(to_j2000 @ of_date)
        case _:
            raise ValueError(
                f"column 46: expected an epoch of date (0 or blank), 1950 (4) or 2000 (5), got {epoch!r}{_OLD.get(epoch, '')}"
            )
    return OpticalTarget(float(erfa.anp(ascension)), float(declination))
