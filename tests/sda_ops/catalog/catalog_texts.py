"""For tests of the catalogue: one object in several notations, writers for them, and the path of real data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from tests.helpers.support import SDA_DATA_DIR

Fields = dict[str, Any]

# ISS (ZARYA) of 2008-09-20, the worked example of Wikipedia's and CelesTrak's "Two-line element set".
LINE1 = "1 25544U 98067A   08264.51782528 -.00002182  00000-0 -11606-4 0  2927"
LINE2 = "2 25544  51.6416 247.4627 0006703 130.5360 325.0288 15.72125391563537"
# The same orbit under an Alpha-5 number.
ALPHA1 = "1 E8493U 98067A   08264.51782528 -.00002182  00000-0 -11606-4 0  2921"
ALPHA2 = "2 E8493  51.6416 247.4627 0006703 130.5360 325.0288 15.72125391563531"

OMM: dict[str, str | int | float | None] = {
    "OBJECT_NAME": "ISS (ZARYA)",
    "OBJECT_ID": "1998-067A",
    "EPOCH": "2008-09-20T12:25:40.104192",
    "MEAN_MOTION": 15.72125391,
    "ECCENTRICITY": 0.0006703,
    "INCLINATION": 51.6416,
    "RA_OF_ASC_NODE": 247.4627,
    "ARG_OF_PERICENTER": 130.536,
    "MEAN_ANOMALY": 325.0288,
    "EPHEMERIS_TYPE": 0,
    "CLASSIFICATION_TYPE": "U",
    "NORAD_CAT_ID": 25544,
    "ELEMENT_SET_NO": 292,
    "REV_AT_EPOCH": 56353,
    "BSTAR": -1.1606e-5,
    "MEAN_MOTION_DOT": -2.182e-5,
    "MEAN_MOTION_DDOT": 0,
}

MEAN = ("EPOCH", "MEAN_MOTION", "ECCENTRICITY", "INCLINATION", "RA_OF_ASC_NODE", "ARG_OF_PERICENTER", "MEAN_ANOMALY")
TLE = (
    "EPHEMERIS_TYPE",
    "CLASSIFICATION_TYPE",
    "NORAD_CAT_ID",
    "ELEMENT_SET_NO",
    "REV_AT_EPOCH",
    "BSTAR",
    "MEAN_MOTION_DOT",
    "MEAN_MOTION_DDOT",
)
METADATA = {"CENTER_NAME": "EARTH", "REF_FRAME": "TEME", "TIME_SYSTEM": "UTC", "MEAN_ELEMENT_THEORY": "SGP4"}
UNITS = {"MEAN_MOTION": "rev/day", "INCLINATION": "deg", "BSTAR": "1/ER", "MEAN_MOTION_DOT": "rev/day**2"}


def kvn_message(fields: Fields, *, units: bool = False) -> str:
    """As FORMAT=kvn writes it: keywords padded to a column, a blank line between messages."""
    values = {"CCSDS_OMM_VERS": "2.0", "CREATION_DATE": "", "ORIGINATOR": ""} | METADATA | fields
    lines = [
        f"{keyword:20}= {value}{f' [{UNITS[keyword]}]' if units and keyword in UNITS else ''}"
        for keyword, value in values.items()
    ]
    return "\n".join((*lines[:1], "COMMENT GENERATED FOR A TEST", *lines[1:], ""))


def xml_message(fields: Fields, *, units: bool = False) -> str:
    """As FORMAT=xml writes it: one message a line, without white space."""

    def tags(keywords: Sequence[str]) -> str:
        return "".join(f"<{key}{unit(key)}>{escape(str(values[key]))}</{key}>" for key in keywords if key in values)

    def unit(key: str) -> str:
        return f' units="{UNITS[key]}"' if units and key in UNITS else ""

    values = METADATA | fields
    return (
        '<omm id="CCSDS_OMM_VERS" version="2.0"><header><CREATION_DATE/><ORIGINATOR/></header><body><segment>'
        f"<metadata>{tags(('OBJECT_NAME', 'OBJECT_ID', *METADATA))}</metadata><data><meanElements>{tags(MEAN)}"
        f"</meanElements><tleParameters>{tags(TLE)}</tleParameters></data></segment></body></omm>"
    )


def kvn(rows: Sequence[Fields]) -> str:
    return "\n".join(map(kvn_message, rows))


def xml(rows: Sequence[Fields]) -> str:
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ndm xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:noNamespaceSchemaLocation="https://sanaregistry.org/r/ndmxml_unqualified/ndmxml-2.0.0-master-2.0.xsd">\n'
    )
    return head + "".join(f"{xml_message(row)}\n" for row in rows) + "</ndm>\n"


def json_of(rows: Sequence[Fields]) -> str:
    return json.dumps(rows)


def csv_of(rows: Sequence[Fields]) -> str:
    cells = [[str(row[key]) for key in rows[0]] for row in rows]
    return "\n".join(
        ",".join(f'"{c}"' if "," in c or '"' in c else c for c in line) for line in [list(rows[0]), *cells]
    )


def data(path: str) -> Path:
    if not (SDA_DATA_DIR / path).exists():
        pytest.skip(f"real data absent: no {SDA_DATA_DIR / path} (set SDA_DATA_DIR)")
    return SDA_DATA_DIR / path
