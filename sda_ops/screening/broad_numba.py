"""The broad phase in compiled code, by numba (the extra ``fast``).

The y and z coordinates are divided into square cells as wide as the bound a of two normal objects, so that objects beyond
neighbouring cells cannot meet. A *row* is the content of one cell, any x. Cells are counted modulo `_CELLS`, so far objects
share rows with near ones, which costs time only. Objects are sorted by row. So the partners of an object are in two stretches
of memory: the rest of its own row with the next one, and three rows of the next z. The other rows around find the same
pairs from their side. Each stretch is tested for the bounds a (distance) and c (straight line) with vector instructions, in
single precision, with room for its error. A stretch has a hit in one of some thousand cases. The bound b (radius) is
not needed: pairs in different heights violate c.

numba compiles at the first use, 4 s of CPU for each machine and version. The result is kept in files beside this module, or
in ``NUMBA_CACHE_DIR``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numba import njit

from sda_ops.screening.bounds import BETA_KM_S2, ROUNDING_KM, Bounds
from sda_ops.screening.broad import NORMAL_KM_S, OneSlice, normal_speed_km_s
from sda_ops.screening.objects import Rows

_CELLS = 128
_LANES = 16  # floats in the widest vector


class RowPairs:
    """By rows. Not for concurrent use by several threads: it reuses its memory."""

    name: Literal["numba"] = "numba"

    def __init__(self) -> None:
        self._found: Any = np.empty((2, 4096), dtype=np.int32)

    def pairs(self, one: OneSlice, bounds: Bounds) -> tuple[Rows, Rows]:
        _, reach_km, line_km = normal_speed_km_s(bounds)
        speed_km_s = np.sqrt(np.einsum("cn,cn->n", one.v_km_s[:, one.wide], one.v_km_s[:, one.wide]))
        reaches_km = bounds.distance_km(speed_km_s + NORMAL_KM_S, one.beta_km_s2[one.wide] + BETA_KM_S2)
        while True:
            count = _pairs(
                one.r_km,
                one.v_km_s,
                one.low_km,
                one.high_km,
                one.normal,
                one.wide,
                reaches_km,
                reach_km,
                line_km + ROUNDING_KM,
                self._found,
            )
            if count <= self._found.shape[1]:
                found = self._found[:, :count].astype(np.intp)
                return found[0], found[1]
            self._found = np.empty((2, 2 * count), dtype=np.int32)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _hits(x: Any, y: Any, z: Any, vx: Any, vy: Any, vz: Any, one: Any, far2: Any, line2: Any) -> Any:
    """How many of these states obey a and c with ``one``, whatever the slice's ends. It becomes a loop of vector instructions.

    4e-6 is some 30 units in the last place of single precision.
    """
    x0, y0, z0, vx0, vy0, vz0 = one
    count = np.int32(0)
    for k in range(x.shape[0]):
        dx, dy, dz = x[k] - x0, y[k] - y0, z[k] - z0
        wx, wy, wz = vx[k] - vx0, vy[k] - vy0, vz[k] - vz0
        d2 = dx * dx + dy * dy + dz * dz
        w2 = wx * wx + wy * wy + wz * wz
        dw = dx * wx + dy * wy + dz * wz
        product = d2 * w2
        across = product * np.float32(1.0 - 4e-6) - dw * dw
        meets = (d2 <= far2) & (across <= line2 * w2 + np.float32(1e-3))
        count = np.int32(count + np.int32(meets))  # 32 bits: 64 would halve the width of the vectors
    return count


@njit(cache=True, nogil=True)
def _stretch(
    x: Any,
    y: Any,
    z: Any,
    vx: Any,
    vy: Any,
    vz: Any,
    ids: Any,
    place: int,
    begin: int,
    end: int,
    far2: Any,
    line2: Any,
    found: Any,
    number: int,
) -> int:
    """Adds the pairs of the object at ``place`` with those from ``begin`` to ``end``."""
    if begin >= end:
        return number
    one = (x[place], y[place], z[place], vx[place], vy[place], vz[place])
    # Whole vectors: the arrays are longer than the objects, and surplus hits are sorted out below.
    full = begin + (end - begin + _LANES - 1) // _LANES * _LANES
    part = slice(begin, full)
    if _hits(x[part], y[part], z[part], vx[part], vy[part], vz[part], one, far2, line2) == 0:
        return number
    for partner in range(begin, end):
        part = slice(partner, partner + 1)
        if _hits(x[part], y[part], z[part], vx[part], vy[part], vz[part], one, far2, line2):
            if number < found.shape[1]:
                found[0, number] = ids[place]
                found[1, number] = ids[partner]
            number += 1
    return number


@njit(cache=True, nogil=True)
def _pairs(
    r_km: Any,
    v_km_s: Any,
    low_km: Any,
    high_km: Any,
    normal: Any,
    wide: Any,
    reaches_km: Any,
    reach_km: float,
    line_km: float,
    found: Any,
) -> int:
    """Writes pairs to ``found``, ``(2, room)``, and returns how many there are, which may be more than the room."""
    count = normal.shape[0]
    cells = _CELLS * _CELLS
    inverse = 1.0 / reach_km
    start = np.zeros(cells + 1, np.int32)
    cell = np.empty(count, np.int32)
    for column in range(count):
        cell[column] = -1
        if normal[column]:
            row_y = math.floor(r_km[1, column] * inverse) & (_CELLS - 1)
            row_z = math.floor(r_km[2, column] * inverse) & (_CELLS - 1)
            cell[column] = row_z * _CELLS + row_y
            start[cell[column] + 1] += 1
    for row in range(cells):
        start[row + 1] += start[row]
    fill = start[:-1].copy()
    total = start[cells]
    x = np.full(total + _LANES, np.float32(1e9))
    y, z = np.zeros_like(x), np.zeros_like(x)
    vx, vy, vz = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    ids = np.empty(total, np.int32)
    for column in range(count):
        row = cell[column]
        if row < 0:
            continue
        place = fill[row]
        fill[row] += 1
        ids[place] = column
        x[place], y[place], z[place] = r_km[0, column], r_km[1, column], r_km[2, column]
        vx[place], vy[place], vz[place] = v_km_s[0, column], v_km_s[1, column], v_km_s[2, column]
    far2 = np.float32((reach_km + 0.1) ** 2)
    line2 = np.float32(line_km**2)
    number = 0
    last = _CELLS - 1
    for place in range(total):
        row = cell[ids[place]]
        row_y = row & last
        this = row - row_y
        above = (this + _CELLS) & (cells - 1)
        if 0 < row_y < last:
            number = _stretch(x, y, z, vx, vy, vz, ids, place, place + 1, start[row + 2], far2, line2, found, number)
            begin, end = start[above + row_y - 1], start[above + row_y + 2]
            number = _stretch(x, y, z, vx, vy, vz, ids, place, begin, end, far2, line2, found, number)
            continue
        number = _stretch(x, y, z, vx, vy, vz, ids, place, place + 1, start[row + 1], far2, line2, found, number)
        other = this + ((row_y + 1) & last)
        number = _stretch(x, y, z, vx, vy, vz, ids, place, start[other], start[other + 1], far2, line2, found, number)
        for step in range(-1, 2):
            other = above + ((row_y + step) & last)
            number = _stretch(
                x, y, z, vx, vy, vz, ids, place, start[other], start[other + 1], far2, line2, found, number
            )
    for index in range(wide.shape[0]):
        column = wide[index]
        near2 = reaches_km[index] * reaches_km[index]
        around = math.ceil(reaches_km[index] * inverse)
        every = 2 * around + 1 >= _CELLS
        row_y = 0 if every else math.floor(r_km[1, column] * inverse) - around
        row_z = 0 if every else math.floor(r_km[2, column] * inverse) - around
        side = _CELLS if every else 2 * around + 1
        for step_z in range(side):
            for step_y in range(side):
                row = ((row_z + step_z) & last) * _CELLS + ((row_y + step_y) & last)
                for place in range(start[row], start[row + 1]):
                    partner = ids[place]
                    if low_km[partner] > high_km[column] or high_km[partner] < low_km[column]:
                        continue
                    dx = r_km[0, partner] - r_km[0, column]
                    dy = r_km[1, partner] - r_km[1, column]
                    dz = r_km[2, partner] - r_km[2, column]
                    if dx * dx + dy * dy + dz * dz <= near2:
                        if number < found.shape[1]:
                            found[0, number] = column
                            found[1, number] = partner
                        number += 1
        for index2 in range(index + 1, wide.shape[0]):
            partner = wide[index2]
            if low_km[partner] <= high_km[column] and low_km[column] <= high_km[partner]:
                if number < found.shape[1]:
                    found[0, number] = column
                    found[1, number] = partner
                number += 1
    return number
