"""A catalogue as a file for pipelines and simulators: read in any format, written as OMM in JSON, in CelesTrak's format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from math import degrees, inf, nextafter, pi
from pathlib import Path

import msgspec
import numpy as np

from sda_ops.astro.time import NS_PER_S, utc_ns
from sda_ops.catalog import ElementSet, nearest_of_each, read_catalog, without_usable_rows
from sda_ops.simulate.config import ConfigurationError

logger = logging.getLogger(__name__)

_SHOWN_PROBLEMS = 10  # rows; a file of another format has one in every row
_MIN_PER_DAY = 1440.0


def usable_element_sets(path: Path, *, at_ns: int) -> tuple[ElementSet, ...]:
    """One element set of each object of a catalogue file, the nearest to this UTC time; rows that cannot be used are logged.

    Raises ``ConfigurationError`` if the file cannot be read or has no usable element set.
    """
    try:
        catalog = read_catalog(path)
    except OSError as error:
        raise ConfigurationError([f"catalog: {path}: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigurationError([f"catalog: {error}"]) from error
    if (reason := without_usable_rows(catalog)) is not None:
        raise ConfigurationError([f"catalog: {path}: {reason}"])
    for problem in catalog.problems[:_SHOWN_PROBLEMS]:
        logger.warning("catalog row skipped: %s", problem)
    if (more := len(catalog.problems) - _SHOWN_PROBLEMS) > 0:
        logger.warning("%d more catalog rows skipped", more)
    return nearest_of_each(catalog, at_ns).element_sets


def omm_json(element_sets: Iterable[ElementSet]) -> bytes:
    """An array of OMM objects, in order. Numbers keep every digit; epochs are rounded to a microsecond (4 mm).

    An element set that was read from such a file, and is written and read again, has the same elements to the bit.
    """
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
        "MEAN_MOTION": _written(satrec.no_kozai, satrec.no_kozai * _MIN_PER_DAY / (2.0 * pi), _mean_motion),
        "ECCENTRICITY": satrec.ecco,
        "INCLINATION": _written(satrec.inclo, degrees(satrec.inclo), _angle),
        "RA_OF_ASC_NODE": _written(satrec.nodeo, degrees(satrec.nodeo), _angle),
        "ARG_OF_PERICENTER": _written(satrec.argpo, degrees(satrec.argpo), _angle),
        "MEAN_ANOMALY": _written(satrec.mo, degrees(satrec.mo), _angle),
        "BSTAR": satrec.bstar,
    }


def _written(value: float, number: float, read: Callable[[float], float]) -> float:
    """The number that is read as ``value``: ``number`` or one beside it; otherwise ``number``."""
    return next(
        (each for each in (number, nextafter(number, inf), nextafter(number, -inf)) if read(each) == value), number
    )


def _angle(number_deg: float) -> float:
    """As `ElementSet.from_omm` reads it."""
    return number_deg * (pi / 180.0)


def _mean_motion(number_per_day: float) -> float:
    """As `ElementSet.from_omm` reads it."""
    return number_per_day / 720.0 * pi
