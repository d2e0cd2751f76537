"""The broad phase in compiled code: rows of intervals, by numba (the extra ``fast``).

The y and z coordinates are divided into square cells as wide as the bound a of two normal objects, so that objects beyond
neighbouring cells cannot meet. A *row* is the content of one cell, any x. Cells are counted modulo `_CELLS`, so far objects
share rows with near ones; the distance test separates them. In a row, the objects' intervals of distance from the Earth's
centre (bound b) are sorted by their lower end. Overlapping intervals are found by a sweep within the row and with four of its
eight neighbours; the other four find the same pairs from their side. Then distance (a) and straight line (c) are tested in
single precision, with room for its error.

numba compiles at the first use, 8 s of CPU for each machine and version; the result is kept in files beside this module, or
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
_RELATIVE = np.float32(4e-6)
"""Room for rounding in d2 w2 - (d w)2, relative to d2 w2: some 30 units in the last place of single precision."""


class RowPairs:
    """By rows of intervals. Not for concurrent use by several threads: it reuses its memory."""

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
    rows = np.empty(count, np.int32)
    filled = 0
    for row in range(cells):
        if start[row + 1] > 0:
            rows[filled] = row
            filled += 1
        start[row + 1] += start[row]
    fill = start[:-1].copy()
    total = start[cells]
    low = np.empty(total, np.float32)
    ids = np.empty(total, np.int32)
    # Insertion keeps each row sorted; columns come nearly sorted, by semi-major axis.
    for column in range(count):
        row = cell[column]
        if row < 0:
            continue
        value = np.float32(low_km[column])
        place = fill[row]
        begin = start[row]
        while place > begin and low[place - 1] > value:
            low[place] = low[place - 1]
            ids[place] = ids[place - 1]
            place -= 1
        low[place] = value
        ids[place] = column
        fill[row] += 1
    high = np.empty(total, np.float32)
    x = np.empty(total, np.float32)
    y = np.empty(total, np.float32)
    z = np.empty(total, np.float32)
    vx = np.empty(total, np.float32)
    vy = np.empty(total, np.float32)
    vz = np.empty(total, np.float32)
    for place in range(total):
        column = ids[place]
        high[place] = high_km[column]
        x[place] = r_km[0, column]
        y[place] = r_km[1, column]
        z[place] = r_km[2, column]
        vx[place] = v_km_s[0, column]
        vy[place] = v_km_s[1, column]
        vz[place] = v_km_s[2, column]
    far = np.float32((reach_km + 0.1) * 1.00001)
    far2 = np.float32(far * far)
    line2 = np.float32(line_km * line_km)
    room = found.shape[1]
    number = 0
    for index in range(filled):
        row = rows[index]
        row_z = row // _CELLS
        row_y = row - row_z * _CELLS
        for neighbour in range(5):
            if neighbour == 0:
                other = row
            elif neighbour == 1:
                other = row_z * _CELLS + ((row_y + 1) & (_CELLS - 1))
            else:
                other = ((row_z + 1) & (_CELLS - 1)) * _CELLS + ((row_y + neighbour - 3) & (_CELLS - 1))
            if start[other] == start[other + 1]:
                continue
            # Each overlapping pair is found once, from the interval that begins first.
            for side in range(1 if neighbour == 0 else 2):
                if side == 0:
                    begin, end, other_begin, other_end = start[row], start[row + 1], start[other], start[other + 1]
                else:
                    begin, end, other_begin, other_end = start[other], start[other + 1], start[row], start[row + 1]
                first = other_begin
                for place in range(begin, end):
                    lowest = low[place]
                    highest = high[place]
                    if neighbour == 0:
                        first = place + 1
                    elif side == 0:
                        while first < other_end and low[first] < lowest:
                            first += 1
                    else:
                        while first < other_end and low[first] <= lowest:
                            first += 1
                    if first >= other_end:
                        break
                    x0 = x[place]
                    y0 = y[place]
                    z0 = z[place]
                    partner = first
                    while partner < other_end and low[partner] <= highest:
                        dx = x[partner] - x0
                        if abs(dx) <= far:
                            dy = y[partner] - y0
                            dz = z[partner] - z0
                            d2 = dx * dx + dy * dy + dz * dz
                            if d2 <= far2:
                                wx = vx[partner] - vx[place]
                                wy = vy[partner] - vy[place]
                                wz = vz[partner] - vz[place]
                                w2 = wx * wx + wy * wy + wz * wz
                                dw = dx * wx + dy * wy + dz * wz
                                product = d2 * w2
                                if product - dw * dw <= line2 * w2 + _RELATIVE * product + np.float32(1e-3):
                                    if number < room:
                                        found[0, number] = ids[place]
                                        found[1, number] = ids[partner]
                                    number += 1
                        partner += 1
    for index in range(wide.shape[0]):
        column = wide[index]
        lowest = np.float32(low_km[column])
        highest = np.float32(high_km[column])
        near2 = reaches_km[index] * reaches_km[index]
        around = math.ceil(reaches_km[index] * inverse)
        every = 2 * around + 1 >= _CELLS
        row_y = 0 if every else math.floor(r_km[1, column] * inverse) - around
        row_z = 0 if every else math.floor(r_km[2, column] * inverse) - around
        side_cells = _CELLS if every else 2 * around + 1
        for step_z in range(side_cells):
            for step_y in range(side_cells):
                row = ((row_z + step_z) & (_CELLS - 1)) * _CELLS + ((row_y + step_y) & (_CELLS - 1))
                for place in range(start[row], start[row + 1]):
                    if low[place] > highest:
                        break
                    if high[place] < lowest:
                        continue
                    partner = ids[place]
                    dx = r_km[0, partner] - r_km[0, column]
                    dy = r_km[1, partner] - r_km[1, column]
                    dz = r_km[2, partner] - r_km[2, column]
                    if dx * dx + dy * dy + dz * dz <= near2:
                        if number < room:
                            found[0, number] = column
                            found[1, number] = partner
                        number += 1
        for index2 in range(index + 1, wide.shape[0]):
            partner = wide[index2]
            if low_km[partner] <= high_km[column] and low_km[column] <= high_km[partner]:
                if number < room:
                    found[0, number] = column
                    found[1, number] = partner
                number += 1
    return number
