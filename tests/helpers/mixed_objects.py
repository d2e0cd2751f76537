"""Objects for screening tests: random mixed parts of the real catalogue, and element sets of decaying objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sda_ops.astro.time import julian_date
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import SGP4_EPOCH_JD, ElementSet
from sda_ops.catalog.reader import newest_of_each, read_catalog
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.support import SDA_DATA_DIR

START_NS = 1_773_115_200_000_000_000
"""2026-03-10T04:00Z: half of the element sets of the real catalogue are older."""

CATALOG = SDA_DATA_DIR / "catalog" / "celestrak_active_2026-03.csv"
DEBRIS = tuple(SDA_DATA_DIR / "catalog" / f"celestrak_{name}-debris_gp.json" for name in ("cosmos-2251", "iridium-33"))
ABSENT = tuple(str(path) for path in (CATALOG, *DEBRIS) if not path.is_file())

needs_real_catalog = pytest.mark.skipif(
    bool(ABSENT), reason=f"real data absent: {', '.join(ABSENT)} (set SDA_DATA_DIR)"
)

MINUTES_PER_DAY = 1440.0
STATIONS = (25544, 48274)
"""The ISS and the CSS. What is docked to them has their element sets."""
FORMATIONS = (31698, 36605, 40482, 40483, 40484, 40485, 43476, 43477, 39451, 39453)
"""TerraSAR-X and TanDEM-X, MMS 1 to 4, GRACE-FO 1 and 2, SWARM A and C."""


@cache
def real_objects() -> ScreenedObjects:
    """The active catalogue and the debris of Cosmos 2251 and Iridium 33."""
    element_sets: list[ElementSet] = []
    known: set[int] = set()
    for path in (CATALOG, *DEBRIS):
        for element_set in newest_of_each(read_catalog(path)).element_sets:
            if element_set.catalog_number not in known:
                known.add(element_set.catalog_number)
                element_sets.append(element_set)
    return ScreenedObjects.of(element_sets)


def objects_of_file(path: Path) -> ScreenedObjects:
    """The newest element set of each object of a catalogue file."""
    return ScreenedObjects.of(newest_of_each(read_catalog(path)).element_sets)


def rows_of(objects: ScreenedObjects, rows: Sequence[int] | npt.NDArray[np.integer]) -> ScreenedObjects:
    """These rows, in this order. An object that occurs again gets another number."""
    chosen = np.asarray(rows)
    return ScreenedObjects(
        _distinct({name: column[chosen] for name, column in objects.columns.arrays().items()}, 600_000_000),
        tuple(objects.names[row] for row in chosen.tolist()),
        tuple(objects.designators[row] for row in chosen.tolist()),
    )


def with_elements(objects: ScreenedObjects, **columns: npt.NDArray[np.float64]) -> ScreenedObjects:
    """The same objects with other elements."""
    arrays = objects.columns.arrays() | columns
    arrays["near_earth"] = arrays["no_kozai"] > 2.0 * np.pi / 225.0
    return ScreenedObjects(ElementColumns.from_arrays(arrays), objects.names, objects.designators)


def joined(*parts: ScreenedObjects) -> ScreenedObjects:
    """One after the other. An object that occurs again gets another number."""
    arrays = [part.columns.arrays() for part in parts]
    merged = {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
    return ScreenedObjects(
        _distinct(merged, 700_000_000),
        sum((part.names for part in parts), ()),
        sum((part.designators for part in parts), ()),
    )


def _distinct(arrays: dict[str, npt.NDArray[np.generic]], first_number: int) -> ElementColumns:
    """The columns, in which numbers that occur again are replaced by numbers from ``first_number`` on."""
    numbers = np.array(arrays["catalog_number"], dtype=np.int64)
    _, first = np.unique(numbers, return_index=True)
    again = np.setdiff1d(np.arange(len(numbers)), first)
    numbers[again] = first_number + np.arange(len(again))
    return ElementColumns.from_arrays(arrays | {"catalog_number": numbers})


def mixed(count: int, seed: int) -> ScreenedObjects:
    """``count`` objects: low, sun-synchronous, one Starlink shell, geosynchronous, eccentric, debris, docked, decaying.

    Those of the shell and the sun-synchronous ones have neighbouring heights, and the geosynchronous ones neighbouring
    longitudes, so that few objects have many approaches.
    """
    rng = np.random.default_rng(seed)
    objects = real_objects()
    columns = objects.columns
    per_day = columns.no_kozai * MINUTES_PER_DAY / (2.0 * np.pi)
    inclination_deg = np.rad2deg(columns.inclo)
    starlink = np.array([name.startswith("STARLINK") for name in objects.names])
    debris = np.array([" DEB" in name for name in objects.names])
    shell_deg = rng.choice([43.0, 53.05, 53.2, 70.0, 97.6])
    low = per_day > 11.0
    groups = {
        "shell": (starlink & (np.abs(inclination_deg - shell_deg) < 0.3), 0.24, per_day),
        "sun-synchronous": (low & (inclination_deg > 96.0) & (inclination_deg < 101.0) & ~debris, 0.22, per_day),
        "low": (low & ~starlink & ~debris, 0.18, None),
        "geosynchronous": (np.abs(per_day - 1.0027) < 0.02, 0.14, _longitude(columns)),
        "eccentric": ((columns.ecco > 0.02) & ~debris, 0.09, None),
        "debris": (debris, 0.05, None),
    }
    chosen: list[int] = []
    for member, share, neighbours_in in groups.values():
        rest = np.setdiff1d(np.flatnonzero(member), chosen)
        size = min(len(rest), round(share * count))
        if neighbours_in is not None:
            rest = rest[np.argsort(neighbours_in[rest], kind="stable")]
            begin = int(rng.integers(0, max(1, len(rest) - 2 * size)))
            rest = rest[begin : begin + 2 * size]
        chosen += rng.choice(rest, size, replace=False).tolist()
    docked = np.isin(columns.no_kozai, columns.no_kozai[np.isin(columns.catalog_number, STATIONS)])
    together = np.flatnonzero(docked | np.isin(columns.catalog_number, FORMATIONS))
    together = np.setdiff1d(together, chosen)
    chosen += rng.choice(together, min(len(together), round(0.05 * count)), replace=False).tolist()
    return joined(rows_of(objects, chosen), decaying(count - len(chosen), rng))


def _longitude(columns: ElementColumns) -> npt.NDArray[np.float64]:
    """Mean longitude at `START_NS` from the equinox, rad: neighbours in it are neighbours in the geosynchronous belt."""
    age_min = (START_NS - columns.epoch_ns) / 60e9
    longitude: npt.NDArray[np.float64] = np.mod(
        columns.nodeo + columns.argpo + columns.mo + columns.no_kozai * age_min, 2.0 * np.pi
    )
    return longitude


def decaying(count: int, rng: np.random.Generator) -> ScreenedObjects:
    """Low objects of few planes, lowered to a mean altitude of 130 to 190 km, with 2 to 50 times their drag, from `START_NS`.

    Some end within the first hours, some later, and they pass each other.
    """
    objects = real_objects()
    columns = objects.columns
    per_day = columns.no_kozai * MINUTES_PER_DAY / (2.0 * np.pi)
    candidates = np.flatnonzero((per_day > 15.0) & (columns.ecco < 0.002) & (columns.bstar > 1e-5))
    by_node = candidates[np.argsort(columns.nodeo[candidates], kind="stable")]
    begin = int(rng.integers(0, len(by_node) - 4 * count))
    chosen = rows_of(objects, rng.choice(by_node[begin : begin + 4 * count], count, replace=False))
    altitude_km = rng.uniform(130.0, 190.0, count)
    return with_elements(
        chosen,
        no_kozai=motion_at(altitude_km),
        bstar=chosen.columns.bstar * 10.0 ** rng.uniform(0.3, 1.7, count),
        **epoch_of(START_NS, count),
    )


def motion_at(altitude_km: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Kozai's mean motion, rad/min, at a mean altitude (WGS-72, without J2)."""
    motion: npt.NDArray[np.float64] = np.sqrt(398600.8 / (6378.135 + altitude_km) ** 3) * 60.0
    return motion


def epoch_of(timestamp_ns: int, count: int) -> dict[str, npt.NDArray[np.float64]]:
    """The columns of an epoch."""
    jd, fraction = julian_date(np.full(count, timestamp_ns))
    return {"jdsatepoch": jd, "jdsatepochF": fraction, "sgp4_epoch_days": (jd - SGP4_EPOCH_JD) + fraction}
