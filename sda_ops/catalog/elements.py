"""One object's mean elements, ready for SGP4, whatever text they came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sgp4 import alpha5, omm
from sgp4.api import Satrec
from sgp4.io import compute_checksum

OmmFields: TypeAlias = Mapping[str, str | int | float | None]

TLE_LINE_LENGTH = 69
MAX_SGP4_SATNUM = 339_999
"""sgp4 keeps the number in five Alpha-5 characters, 'Z9999' at most; ours is kept beside it."""


@dataclass(frozen=True, slots=True)
class ElementSet:
    """Mean elements of one object at one epoch.

    Attributes:
        catalog_number: In the catalogue it came from: up to nine digits in OMM, six (Alpha-5) in a TLE.
        name: Its name there; empty where there is none.
        satrec: sgp4's record, WGS-72, ready to propagate. Its own ``satnum`` is 0 above 339,999.
    """

    catalog_number: int
    name: str
    satrec: Satrec

    @classmethod
    def from_tle(cls, line1: str, line2: str, *, name: str = "") -> ElementSet:
        """From two lines. Raises ``ValueError`` saying what is wrong with them."""
        for number, line in ((1, line1), (2, line2)):
            if not line.startswith(f"{number} ") or len(line) != TLE_LINE_LENGTH or not line.isascii():
                raise ValueError(f"line {number} must be {TLE_LINE_LENGTH} characters beginning '{number} ': {line!r}")
            if not line[-1].isdigit() or int(line[-1]) != compute_checksum(line):
                raise ValueError(f"line {number} must end in checksum {compute_checksum(line)}, got {line[-1]!r}")
        if line1[2:7] != line2[2:7]:
            raise ValueError(f"both lines must carry one catalogue number, got {line1[2:7]!r} and {line2[2:7]!r}")
        catalog_number = alpha5.from_alpha5(line1[2:7].replace(" ", "0"))
        return cls(catalog_number, name.strip(), _usable(Satrec.twoline2rv(line1, line2)))

    @classmethod
    def from_omm(cls, fields: OmmFields) -> ElementSet:
        """From the fields of one Orbit Mean-Elements Message. Raises ``ValueError`` saying what is wrong with them."""
        missing = [name for name in _OMM_REQUIRED if fields.get(name) in (None, "")]
        if missing:
            raise ValueError(f"missing {', '.join(missing)}")
        catalog_number = int(fields["NORAD_CAT_ID"] or 0)
        if not 0 < catalog_number < 1_000_000_000:  # noqa: PLR2004 - nine digits, CCSDS 502.0-B-3
            raise ValueError(f"NORAD_CAT_ID must have one to nine digits, got {catalog_number}")
        epoch = str(fields["EPOCH"]).removesuffix("Z")
        satrec = Satrec()
        omm.initialize(
            satrec,
            {
                **_OMM_DEFAULTS,
                **{name: value for name, value in fields.items() if value is not None},
                "NORAD_CAT_ID": catalog_number if catalog_number <= MAX_SGP4_SATNUM else 0,
                "EPOCH": epoch if "." in epoch else f"{epoch}.0",
            },
        )
        return cls(catalog_number, str(fields.get("OBJECT_NAME") or "").strip(), _usable(satrec))


_OMM_REQUIRED = (
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

_OMM_DEFAULTS: OmmFields = {
    "CLASSIFICATION_TYPE": "U",
    "OBJECT_ID": "",
    "EPHEMERIS_TYPE": 0,
    "ELEMENT_SET_NO": 0,
    "REV_AT_EPOCH": 0,
    "MEAN_MOTION_DOT": 0.0,
    "MEAN_MOTION_DDOT": 0.0,
}
"""Fields that do not enter SGP4's orbit, as sgp4's reader wants them present."""


def _usable(satrec: Satrec) -> Satrec:
    """The record, if SGP4 can start from it; it accepts NaN and negative mean motion without a word."""
    if not (satrec.no_kozai > 0.0 and 0.0 <= satrec.ecco < 1.0):
        raise ValueError(
            f"mean motion must be > 0 and eccentricity in [0, 1), got {satrec.no_kozai} rad/min and {satrec.ecco}"
        )
    rest = (satrec.inclo, satrec.nodeo, satrec.argpo, satrec.mo, satrec.bstar)
    if not all(map(math.isfinite, (satrec.no_kozai, *rest))):
        raise ValueError(f"elements must be finite, got {rest}")
    return satrec
