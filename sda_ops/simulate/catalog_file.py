"""A catalogue as a file for pipelines and simulators: OMM in JSON, in CelesTrak's format."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from math import degrees, pi

import msgspec
import numpy as np

from sda_ops.astro.time import NS_PER_S, utc_ns
from sda_ops.catalog import ElementSet

_MIN_PER_DAY = 1440.0


def omm_json(element_sets: Iterable[ElementSet]) -> bytes:
    """An array of OMM objects, in order. Numbers keep every digit; epochs are rounded to a microsecond (4 mm)."""
    return msgspec.json.encode([_omm(elements) for elements in element_sets])


def _omm(elements: ElementSet) -> dict[str, str | int | float]:
    satrec = elements.satrec
    epoch_ns = int(utc_ns(np.array(satrec.jdsatepoch), np.array(satrec.jdsatepochF)))
    epoch = datetime.fromtimestamp(epoch_ns // NS_PER_S, UTC) + timedelta(
        microseconds=round(epoch_ns % NS_PER_S / 1000)
    )
    return {
        "OBJECT_NAME": elements.name,
        "NORAD_CAT_ID": elements.catalog_number,
        "EPOCH": f"{epoch:%Y-%m-%dT%H:%M:%S.%f}",
        "MEAN_MOTION": satrec.no_kozai * _MIN_PER_DAY / (2.0 * pi),
        "ECCENTRICITY": satrec.ecco,
        "INCLINATION": degrees(satrec.inclo),
        "RA_OF_ASC_NODE": degrees(satrec.nodeo),
        "ARG_OF_PERICENTER": degrees(satrec.argpo),
        "MEAN_ANOMALY": degrees(satrec.mo),
        "BSTAR": satrec.bstar,
    }
