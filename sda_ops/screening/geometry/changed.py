"""Held positions for a catalogue that changed: only the element sets that are not held yet are propagated.

So a changed element set, a new object or a removed one costs a copy of the others' positions, 130 MB for a day of 15,000
objects, instead of their propagation and the measurement of their interpolation errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog.columns import ElementColumns
from sda_ops.screening.geometry.direct import DirectStates
from sda_ops.screening.geometry.ephemeris import Ephemeris, Greatest, KnotLevel, PreparedObjects
from sda_ops.screening.geometry.parallel import chosen, joined
from sda_ops.screening.objects import Rows, ScreenedObjects


class _Source(NamedTuple):
    """Columns of an ephemeris that become columns of the new one."""

    ephemeris: Ephemeris
    columns: Rows
    new_columns: Rows


def rows_changed(before: ScreenedObjects, after: ScreenedObjects) -> tuple[Rows, Rows]:
    """The rows of ``after`` whose element sets ``before`` does not have, and for each row the one in ``before``, or -1."""
    old, new = before.columns, after.columns
    order = np.argsort(old.catalog_number, kind="stable")
    place = np.searchsorted(old.catalog_number[order], new.catalog_number)
    place = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(len(new), dtype=np.intp)
    same = np.full(len(new), len(old) > 0)
    if len(old):
        columns = new.arrays()
        for name, values in old.arrays().items():
            same &= values[place] == columns[name]
    return np.flatnonzero(~same), np.where(same, place, -1)


def with_objects(ephemeris: Ephemeris, prepared: PreparedObjects) -> tuple[Ephemeris, Rows]:
    """The positions of other objects in the same window, and the rows of them that were not held and have been propagated.

    Pure: ``ephemeris`` stays as it is. The rows are those of ``prepared.objects``.
    """
    old = ephemeris.prepared
    changed, old_rows = rows_changed(old.objects, prepared.objects)
    kept = np.flatnonzero(old_rows >= 0)
    kept = kept[np.argsort(prepared.columns[kept])]  # copies memory in its order
    sources = [_Source(ephemeris, old.columns[old_rows[kept]], prepared.columns[kept])]
    if changed.size:
        fresh = _propagated(ephemeris, prepared.objects, changed)
        sources.append(_Source(fresh, fresh.prepared.columns, prepared.columns[changed]))
    count = len(prepared)
    level_of, position_of = np.full(count, -1, dtype=np.intp), np.zeros(count, dtype=np.intp)
    levels: list[KnotLevel] = []
    for number, (begin, end) in enumerate(((0, prepared.coarse), (prepared.coarse, count))):
        levels.append(_basic_level(sources, number, begin, end))
        level_of[begin:end], position_of[begin:end] = number, np.arange(end - begin)
    beta_km_s2 = np.empty(count)
    for source in sources:
        beta_km_s2[source.new_columns] = source.ephemeris.beta_km_s2[source.columns]
        level_of[source.new_columns[source.ephemeris.level_of[source.columns] < 0]] = -1
        for number, level in enumerate(source.ephemeris.levels[2:], start=2):
            _add_shorter(source, number, level, levels, level_of, position_of)
    direct = joined([_remapped(source) for source in sources])
    direct = chosen(direct, np.lexsort((direct.columns, direct.slices)))
    made = ephemeris.with_contents(prepared, levels, level_of, position_of, beta_km_s2, direct)
    made.certified_km = max(source.ephemeris.certified_km for source in sources)
    if "greatest" in vars(ephemeris):
        made.greatest = _greatest(sources, count)
    return made, changed


def _propagated(ephemeris: Ephemeris, objects: ScreenedObjects, rows: Rows) -> Ephemeris:
    """The positions of these rows alone, in the same window."""
    part = ScreenedObjects(
        ElementColumns.from_arrays({name: column[rows] for name, column in objects.columns.arrays().items()}),
        tuple(objects.names[row] for row in rows.tolist()),
        tuple(objects.designators[row] for row in rows.tolist()),
    )
    return Ephemeris(
        PreparedObjects(part, engine="sgp4"),  # compiling heyoka costs more than it gains here
        ephemeris.origin_ns,
        ephemeris.end_slice * ephemeris.slice_ns,
        slice_s=ephemeris.slice_ns / NS_PER_S,
        knot_s=ephemeris.knot_ns / NS_PER_S,
        interpolation_km=ephemeris.interpolation_km,
    )


def _basic_level(sources: list[_Source], number: int, begin: int, end: int) -> KnotLevel:
    """The coarse or the fine knots of the columns from ``begin`` to ``end``: an object stays in its class."""
    like = sources[0].ephemeris.levels[number]
    r_km = np.empty((*like.r_km.shape[:2], end - begin))
    for source in sources:
        here = (source.new_columns >= begin) & (source.new_columns < end)
        first = number * source.ephemeris.prepared.coarse
        r_km[:, :, source.new_columns[here] - begin] = source.ephemeris.levels[number].r_km[
            :, :, source.columns[here] - first
        ]
    return KnotLevel(np.arange(begin, end), like.knot_ns, like.first, r_km)


def _add_shorter(
    source: _Source, number: int, level: KnotLevel, levels: list[KnotLevel], level_of: Rows, position_of: Rows
) -> None:
    """Adds those shorter knots that are needed still, as a level of its own."""
    new_column = np.full(len(source.ephemeris.prepared), -1)
    new_column[source.columns] = source.new_columns
    applies = (source.ephemeris.level_of[level.columns] == number) & (new_column[level.columns] >= 0)
    places = np.flatnonzero(applies)
    if not places.size:
        return
    columns = new_column[level.columns[places]]
    order = np.argsort(columns)
    columns = columns[order]
    level_of[columns], position_of[columns] = len(levels), np.arange(len(columns))
    r_km = np.ascontiguousarray(level.r_km[:, :, places[order]])
    levels.append(KnotLevel(columns, level.knot_ns, level.first, r_km))


def _remapped(source: _Source) -> DirectStates:
    """The states of objects without knots, in new columns."""
    new_column = np.full(len(source.ephemeris.prepared), -1)
    new_column[source.columns] = source.new_columns
    direct = source.ephemeris.direct
    kept = chosen(direct, new_column[direct.columns] >= 0)
    return kept._replace(columns=new_column[kept.columns])


def _greatest(sources: list[_Source], count: int) -> Greatest:
    made = Greatest(np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.bool_))
    for source in sources:
        for target, values in zip(made, source.ephemeris.greatest, strict=True):
            target[source.new_columns] = values[source.columns]
    return made
