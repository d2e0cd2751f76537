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

from sda_ops.screening.geometry.bounds import BETA_KM_S2, ROUNDING_KM, Bounds
from sda_ops.screening.geometry.broad import NORMAL_KM_S, OneSlice, normal_speed_km_s
from sda_ops.screening.objects import Rows

_CELLS = 128
_LANES = 16  # floats in the widest vector
_ROOM = 1.0002
"""The direction of a relative velocity errs by 2e-4 at 4 m/s, by the rounding of both velocities to single precision."""


class RowPairs:
    """By rows. Not for concurrent use by several threads: it reuses its memory."""

    name: Literal["numba"] = "numba"

    def __init__(self) -> None:
        self._found: Any = np.empty((2, 4096), dtype=np.int32)

    def pairs(self, one: OneSlice, bounds: Bounds) -> tuple[Rows, Rows]:
        _, reach_km, line_km = normal_speed_km_s(bounds)
        speed_km_s = np.sqrt(np.einsum("cn,cn->n", one.v_km_s[:, one.wide], one.v_km_s[:, one.wide]))
        betas_km_s2 = one.beta_km_s2[one.wide]
        reaches_km = bounds.distance_km(speed_km_s + NORMAL_KM_S, betas_km_s2 + BETA_KM_S2)
        # One limit of c for all wide objects of the slice.
        wide_km = bounds.line_km(2.0 * speed_km_s.max(initial=NORMAL_KM_S), 2.0 * betas_km_s2.max(initial=BETA_KM_S2))
        while True:
            count = _pairs(
                one.r_km,
                one.v_km_s,
                one.normal,
                one.wide,
                reaches_km,
                float(wide_km) * _ROOM + ROUNDING_KM,
                reach_km,
                line_km * _ROOM + ROUNDING_KM,
                self._found,
            )
            if count <= self._found.shape[1]:
                found = self._found[:, :count].astype(np.intp)
                return found[0], found[1]
            self._found = np.empty((2, 2 * count), dtype=np.int32)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _hits(
    x: Any, y: Any, z: Any, vx: Any, vy: Any, vz: Any, place: Any, begin: Any, end: Any, far2: Any, line2: Any
) -> Any:
    """How many states from ``begin`` to ``end`` obey a and c with that at ``place``, at any time.

    It becomes a loop of vector instructions. Indices are unsigned, because numba tests the sign of others. The count has
    32 bits, because 64 would halve the vectors. 4e-6 is some 30 units in the last place of single precision.
    """
    x0, y0, z0, vx0, vy0, vz0 = x[place], y[place], z[place], vx[place], vy[place], vz[place]
    count = np.int32(0)
    for k in range(begin, end):
        dx, dy, dz = x[k] - x0, y[k] - y0, z[k] - z0
        wx, wy, wz = vx[k] - vx0, vy[k] - vy0, vz[k] - vz0
        d2 = dx * dx + dy * dy + dz * dz
        w2 = wx * wx + wy * wy + wz * wz
        dw = dx * wx + dy * wy + dz * wz
        product = d2 * w2
        across = product * np.float32(1.0 - 4e-6) - dw * dw
        meets = (d2 <= far2) & (across <= line2 * w2 + np.float32(1e-3))
        count = np.int32(count + np.int32(meets))
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
    first: int,
    end: int,
    other_begin: int,
    other_end: int,
    far2: Any,
    line2: Any,
    found: Any,
    number: int,
) -> int:
    """Adds the pairs of the objects from ``first`` to ``end`` with those behind them from ``other_begin`` to ``other_end``."""
    for place in range(first, end):
        begin = max(other_begin, place + 1) if other_begin <= place < other_end else other_begin
        # Whole vectors: the arrays are longer than the objects, and surplus hits are sorted out below.
        full = begin + (other_end - begin + _LANES - 1) // _LANES * _LANES
        at = np.uint64(place)
        if begin >= other_end or _hits(x, y, z, vx, vy, vz, at, np.uint64(begin), np.uint64(full), far2, line2) == 0:
            continue
        for partner in range(begin, other_end):
            alone = np.uint64(partner)
            if _hits(x, y, z, vx, vy, vz, at, alone, np.uint64(partner + 1), far2, line2):
                if number < found.shape[1]:
                    found[0, number] = ids[place]
                    found[1, number] = ids[partner]
                number += 1
    return number


@njit(cache=True, nogil=True)
def _meets(r_km: Any, v_km_s: Any, first: int, second: int, far2: float, line_km: float) -> bool:
    """The same for two columns, in double precision."""
    d2 = w2 = dw = 0.0
    for axis in range(3):
        d = r_km[axis, second] - r_km[axis, first]
        w = v_km_s[axis, second] - v_km_s[axis, first]
        d2 += d * d
        w2 += w * w
        dw += d * w
    return d2 <= far2 and d2 * w2 * (1.0 - 1e-9) - dw * dw <= line_km * line_km * w2 + 1e-9


@njit(cache=True, nogil=True)
def _pairs(
    r_km: Any,
    v_km_s: Any,
    normal: Any,
    wide: Any,
    reaches_km: Any,
    wide_km: float,
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
    for row in range(cells):
        first, end = start[row], start[row + 1]
        if first == end:
            continue
        row_y = row & last
        this = row - row_y
        above = (this + _CELLS) & (cells - 1)
        if 0 < row_y < last:
            number = _stretch(x, y, z, vx, vy, vz, ids, first, end, first, start[row + 2], far2, line2, found, number)
            begin, behind = start[above + row_y - 1], start[above + row_y + 2]
            number = _stretch(x, y, z, vx, vy, vz, ids, first, end, begin, behind, far2, line2, found, number)
            continue
        number = _stretch(x, y, z, vx, vy, vz, ids, first, end, first, end, far2, line2, found, number)
        for step in range(4):
            other = this + ((row_y + 1) & last) if step == 0 else above + ((row_y + step - 2) & last)
            number = _stretch(
                x, y, z, vx, vy, vz, ids, first, end, start[other], start[other + 1], far2, line2, found, number
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
                    if _meets(r_km, v_km_s, column, partner, near2, wide_km):
                        if number < found.shape[1]:
                            found[0, number] = column
                            found[1, number] = partner
                        number += 1
        for other in range(index + 1, wide.shape[0]):
            partner = wide[other]
            if _meets(r_km, v_km_s, column, partner, np.inf, wide_km):
                if number < found.shape[1]:
                    found[0, number] = column
                    found[1, number] = partner
                number += 1
    return number
