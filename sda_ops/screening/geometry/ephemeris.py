"""Positions of all objects between knots, with a certificate of the interpolation error, for one window.

Knots are times at absolute multiples of the knot length since the Unix epoch, and slices are absolute multiples of the
slice length. So positions do not depend on where a window begins. Between knots, positions are those of Lagrange's
polynomial through eight knots (three before the interval and four after its beginning), and velocities are its derivative.
SGP4's velocity is not used, because it is not the derivative of SGP4's position (`sda_ops.screening.exact`).

**Knot lengths.** Objects with an eccentricity of at least 0.1 have knots at half the length. Then the error is measured for
each object: Lagrange's polynomial errs by at most 1.07e-3 times the eighth difference at the middle of the interval (the
remainder term; Abramowitz and Stegun 25.2.3). The certificate is four times that. SGP4's positions may also have a step, of
kilometres at an inclination of 0.2 rad in deep space; tenth differences bound it (`sda_ops.screening.geometry.certificate`). An
object whose error exceeds the bound gets knots at half the length, again and again down to `FINEST` times, and after that none.

**Objects without knots.** Where SGP4 has no position at one of the eight knots or at one beside them, or where the orbit is too irregular for
knots, positions are SGP4's own (`sda_ops.screening.geometry.direct`).

Columns: the objects are held in an order of their own, by eccentricity class and then semi-major axis. Column numbers
index the arrays here; `PreparedObjects.rows` and `PreparedObjects.columns` translate from and to row numbers.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sgp4.api import Satrec

from sda_ops.astro.propagation import Engine, Propagator
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.geometry.bounds import BETA_KM_S2, Bounds
from sda_ops.screening.geometry.certificate import drop_unmeasured, measured
from sda_ops.screening.geometry.direct import DirectStates, ExactOrbits, direct_states, no_direct_states
from sda_ops.screening.objects import Rows, ScreenedObjects

KNOTS_BEFORE, KNOTS_AFTER = 3, 4
"""The knots before and after the beginning of an interval: the polynomial goes through the eight at -3 to 4 lengths."""

EDGE_S = 10.0
"""Positions are defined so far before the first slice and behind the last one."""

FINE_ECCENTRICITY = 0.1
"""From here on, knots are at half the length: near a low perigee the error of the full length is up to 131 m."""

FINEST = 4
"""The shortest knot length is the longest one divided by two to this power."""

BETA_MARGIN = 2.0
"""An object's own beta is this times the greatest value measured at its knots."""

_PRODUCT_SIZE = 8 * 8 * 4096
"""OpenBLAS computes products of so many factors in the calling thread. Threads would cost 3 to 17 times the CPU time here."""

_OFFSETS = np.arange(-KNOTS_BEFORE, KNOTS_AFTER + 1, dtype=np.float64)
_DENOMINATORS = np.array([np.prod([a - b for b in _OFFSETS if b != a]) for a in _OFFSETS])


def lagrange_weights(steps: Floats) -> tuple[Floats, Floats]:
    """Weights ``(8, n)`` of the eight knots for the value and the derivative by ``steps``, in [0, 1], in knot lengths."""
    value = np.empty((len(_OFFSETS), len(steps)))
    slope = np.empty_like(value)
    distances = [steps - offset for offset in _OFFSETS]
    for knot, denominator in enumerate(_DENOMINATORS):
        product, derivative = np.full_like(steps, 1.0 / denominator), np.zeros_like(steps)
        for other, distance in enumerate(distances):
            if other != knot:
                derivative = derivative * distance + product
                product = product * distance
        value[knot], slope[knot] = product, derivative
    return value, slope


_SLOPE_AT_KNOT = lagrange_weights(np.zeros(1))[1][:, 0]


class PreparedObjects:
    """Screened objects with what every window of them needs: their order in columns and their propagators.

    Attributes:
        objects: The screened objects.
        rows: ``(n,)``, the row number of each column.
        columns: ``(n,)``, the column number of each row.
        coarse: How many columns, the first ones, have knots at the full length; the others at half of it.
        satrecs: sgp4's records, in columns.
        orbits: SGP4 itself, in columns.
        engine: ``sgp4`` or ``heyoka``, for near-Earth objects.
    """

    def __init__(self, objects: ScreenedObjects, *, engine: Engine = "auto") -> None:
        self.objects = objects
        fine = objects.columns.ecco >= FINE_ECCENTRICITY
        self.rows: Rows = np.lexsort((-objects.columns.no_kozai, fine))
        self.columns: Rows = np.empty_like(self.rows)
        self.columns[self.rows] = np.arange(len(self.rows))
        self.coarse = int((~fine).sum())
        self.satrecs: list[Satrec] = [objects.satrecs[row] for row in self.rows.tolist()]
        self.orbits = ExactOrbits(self.satrecs)
        self._engine = engine
        engines = {p.engine for p in self._propagators}
        self.engine = "heyoka" if "heyoka" in engines else "sgp4"

    @cached_property
    def _propagators(self) -> list[Propagator]:
        """Of the coarse and of the fine columns. heyoka compiles them, which takes a tenth of a second."""
        return [
            Propagator(part, engine=self._engine, max_age=None)
            for part in (self.satrecs[: self.coarse], self.satrecs[self.coarse :])
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def knots_km(self, level: int, timestamp_ns: Nanoseconds) -> Floats:
        """SGP4's positions ``(times, 3, n)`` of the coarse (0) or the fine (1) columns; NaN where it has none."""
        begin, end = ((0, self.coarse), (self.coarse, len(self)))[level]
        if begin == end:
            return np.empty((len(timestamp_ns), 3, 0))
        return self._propagators[level].positions_km(timestamp_ns)

    def knots_of_km(self, columns: Rows, timestamp_ns: Nanoseconds) -> Floats:
        """SGP4's positions ``(times, 3, len(columns))`` of these columns; NaN where it has none."""
        selected = Propagator([self.satrecs[column] for column in columns.tolist()], engine="sgp4", max_age=None)
        return selected.positions_km(timestamp_ns)


@dataclass(frozen=True, slots=True, eq=False)
class KnotLevel:
    """Knots of one length.

    Attributes:
        columns: Which objects.
        knot_ns: The length.
        first: The number of the first knot: its time is this times the length.
        r_km: ``(knots, 3, len(columns))``.
    """

    columns: Rows
    knot_ns: int
    first: int
    r_km: Floats

    def at(self, position: Rows, timestamp_s: Floats, origin_ns: int) -> tuple[Floats, Floats]:
        """Positions and velocities ``(3, n)`` of the objects at these places of ``columns``."""
        knot_s = self.knot_ns / NS_PER_S
        interval, ns = divmod(origin_ns, self.knot_ns)
        steps = timestamp_s / knot_s + ns / self.knot_ns
        whole = np.floor(steps)
        value, slope = lagrange_weights(steps - whole)
        start = whole.astype(np.intp) + (interval - KNOTS_BEFORE - self.first)
        count = self.r_km.shape[2]
        index = (start * 3 * count + position)[np.newaxis, :] + (np.arange(3) * count)[:, np.newaxis]
        flat = self.r_km.reshape(-1)
        r_km, v_km_s = np.zeros(index.shape), np.zeros(index.shape)
        for knot in range(len(_OFFSETS)):
            knots_km = flat[index + knot * 3 * count]
            r_km += value[knot] * knots_km
            v_km_s += slope[knot] * knots_km
        return r_km, v_km_s / knot_s

    def at_knot(self, knot: int, place: Rows | slice) -> tuple[Floats, Floats]:
        """Positions and velocities ``(3, n)`` of the objects at these places of ``columns``, at one knot of ``r_km``."""
        stencil = self.r_km[knot - KNOTS_BEFORE : knot + KNOTS_AFTER + 1, :, place]
        v_km_s = (_SLOPE_AT_KNOT @ stencil.reshape(len(stencil), -1)).reshape(3, -1)
        v_km_s *= NS_PER_S / self.knot_ns
        return stencil[KNOTS_BEFORE], v_km_s

    def in_slices(self, middle_ns: Nanoseconds, states: Floats) -> None:
        """Writes positions and velocities at these times, which ascend, to ``states``, ``(slices, 2, 3, all columns)``."""
        interval, ns = np.divmod(middle_ns, self.knot_ns)
        value, slope = lagrange_weights(ns / self.knot_ns)
        weights = np.stack((value, slope / (self.knot_ns / NS_PER_S)), axis=1)  # (8, 2, slices)
        knots, count = len(_OFFSETS), len(self.columns)
        begin_column = int(self.columns[0])
        contiguous = self.columns[-1] - begin_column == count - 1
        if contiguous:
            in_rows = states.reshape(2 * len(states), 3, -1)[..., begin_column : begin_column + count]
        else:
            in_rows = np.empty((2 * len(states), 3, count))
        begins = np.flatnonzero(np.diff(interval, prepend=interval[0] - 1))
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(interval)], strict=True):
            start = int(interval[begin]) - KNOTS_BEFORE - self.first
            stencil = self.r_km[start : start + knots]
            of_slices = weights[:, :, begin:end].transpose(2, 1, 0).reshape(-1, knots)
            together = max(1, _PRODUCT_SIZE // of_slices.size)
            for axis in range(3):
                for column in range(0, count, together):
                    part = slice(column, column + together)
                    np.matmul(of_slices, stencil[:, axis, part], out=in_rows[2 * begin : 2 * end, axis, part])
        if not contiguous:
            states[..., self.columns] = in_rows.reshape(len(states), 2, 3, count)


class Greatest(NamedTuple):
    """What bounds an object at every knot of the full length, ``(n,)`` each, in columns.

    Attributes:
        speed_km_s: Its greatest speed.
        radial_km: Its greatest radial motion within the time from one knot to half a slice beyond the middle to the next.
        regular: Whether it has every knot of its basic level, and needs no shorter ones. The others are 0 here.
    """

    speed_km_s: Floats
    radial_km: Floats
    regular: npt.NDArray[np.bool_]


class SliceStates:
    """States at the middle of consecutive slices, in columns.

    Attributes:
        first_slice: The number of the first slice.
        r_km: ``(slices, 3, n)``, TEME.
        v_km_s: ``(slices, 3, n)``; the derivative of ``r_km``.
        beta_km_s2: ``(slices, n)`` or ``(1, n)``: see `sda_ops.screening.geometry.bounds`.
        alive: ``(slices, n)``; false where an object has no state in the slice.
    """

    __slots__ = ("alive", "beta_km_s2", "first_slice", "r_km", "v_km_s")

    def __init__(self, first_slice: int, states: Floats, beta_km_s2: Floats, alive: npt.NDArray[np.bool_]) -> None:
        self.first_slice = first_slice
        self.r_km = states[:, 0]
        self.v_km_s = states[:, 1]
        self.beta_km_s2 = beta_km_s2
        self.alive = alive

    def __len__(self) -> int:
        return len(self.r_km)


class Ephemeris:
    """Positions of all objects in the slices that overlap a window.

    Attributes:
        prepared: The objects.
        slice_ns: The length of a slice.
        first_slice: The number of the first slice; it begins at this times the length.
        end_slice: The number after the last slice.
        origin_ns: The beginning of the first slice, from which the methods count seconds.
        interpolation_km: The bound of the interpolation error, which every object with knots is certified to keep.
        certified_km: The greatest certificate of an object with knots.
        shortened: How many objects have shorter knots than their eccentricity class.
        beta_km_s2: ``(n,)``, in columns.
        direct: The states of objects without knots.
        knot_ns: The full length of a knot interval.
        levels: The knots of each length. The first has all coarse columns, the second all fine ones, the others those columns
            again that need shorter knots.
        level_of: ``(n,)``, the level that applies to each column; -1 for an object without knots.
        position_of: ``(n,)``, the place of the column in that level.
    """

    def __init__(
        self,
        prepared: PreparedObjects,
        start_ns: int,
        end_ns: int,
        *,
        slice_s: float = 60.0,
        knot_s: float = 240.0,
        interpolation_km: float = 0.05,
    ) -> None:
        """Propagate to the knots of ``[start_ns, end_ns)`` and measure. Takes 4 µs a knot (heyoka: 0.1 µs) of CPU."""
        self.prepared = prepared
        self.slice_ns = round(slice_s * NS_PER_S)
        self.first_slice = start_ns // self.slice_ns
        self.end_slice = max(self.first_slice + 1, -(-end_ns // self.slice_ns))
        self.origin_ns = self.first_slice * self.slice_ns
        self.interpolation_km = interpolation_km
        self.knot_ns = round(knot_s * NS_PER_S)
        self.beta_km_s2 = np.full(len(prepared), BETA_KM_S2)
        self.level_of = np.empty(len(prepared), dtype=np.intp)
        self.position_of = np.empty(len(prepared), dtype=np.intp)
        self.certified_km = 0.0
        self.levels: list[KnotLevel] = []
        classes = (np.arange(prepared.coarse), np.arange(prepared.coarse, len(prepared)))
        self._shorten([self._add_level(power, columns, whole=True) for power, columns in enumerate(classes)])

    def with_contents(
        self,
        prepared: PreparedObjects,
        levels: list[KnotLevel],
        level_of: Rows,
        position_of: Rows,
        beta_km_s2: Floats,
        direct: DirectStates,
    ) -> Ephemeris:
        """The same window with other objects, whose positions are known (`sda_ops.screening.geometry.changed`)."""
        made = copy(self)
        made.prepared, made.levels, made.direct = prepared, levels, direct
        made.level_of, made.position_of, made.beta_km_s2 = level_of, position_of, beta_km_s2
        made.shortened = _shortened(level_of)
        made.__dict__.pop("greatest", None)
        return made

    def __len__(self) -> int:
        return self.end_slice - self.first_slice

    def middle_ns(self, slices: npt.NDArray[np.int64]) -> Nanoseconds:
        """The times of the middles of these slices."""
        middle: Nanoseconds = slices * self.slice_ns + self.slice_ns // 2
        return middle

    def around_knots(self, miss_km: float) -> Bounds:
        """The bounds of the interval around a knot of the full length that contains the slices whose middle is nearest to it."""
        half_s = 0.5 * (self.knot_ns + self.slice_ns) / NS_PER_S
        return Bounds(miss_km=miss_km, half_s=half_s, interpolation_km=self.interpolation_km)

    @cached_property
    def greatest(self) -> Greatest:
        """Computed once, 0.2 s of CPU for a day of 15,000 objects, for all screenings of some objects against all."""
        count = len(self.prepared)
        speed_km_s, radial_km, regular = np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.bool_)
        bounds = self.around_knots(0.0)
        for number, level in enumerate(self.levels[:2]):
            columns = level.columns
            complete = np.isfinite(level.r_km[:, 0, :]).all(axis=0) & (self.level_of[columns] == number)
            speed2, radial = np.zeros(len(columns)), np.zeros(len(columns))
            last = len(level.r_km) - KNOTS_AFTER if len(columns) else 0
            for knot in range(KNOTS_BEFORE, last):
                r_km, v_km_s = level.at_knot(knot, slice(None))
                np.maximum(speed2, np.einsum("in,in->n", v_km_s, v_km_s), out=speed2)
                np.maximum(radial, bounds.radial_km(r_km, v_km_s, self.beta_km_s2[columns])[1], out=radial)
            known = columns[complete]
            speed_km_s[known], radial_km[known], regular[known] = np.sqrt(speed2[complete]), radial[complete], True
        return Greatest(speed_km_s, radial_km, regular)

    def states(self, first_slice: int, end_slice: int) -> SliceStates:
        """States at the middles of the slices from ``first_slice`` to before ``end_slice``."""
        slices = np.arange(first_slice, end_slice, dtype=np.int64)
        middle_ns = self.middle_ns(slices)
        states = np.empty((len(slices), 2, 3, len(self.prepared)))
        for level in self.levels:
            if len(level.columns):
                level.in_slices(middle_ns, states)
        alive = np.isfinite(states[:, 0, 0, :])
        beta_km_s2 = self.beta_km_s2[np.newaxis, :]
        direct = self.direct
        begin, end = np.searchsorted(direct.slices, (first_slice, end_slice))
        if begin < end:
            index, columns = direct.slices[begin:end] - first_slice, direct.columns[begin:end]
            states[index, 0, :, columns] = direct.r_km[:, begin:end].T
            states[index, 1, :, columns] = direct.v_km_s[:, begin:end].T
            alive[index, columns] = direct.alive[begin:end]
            beta_km_s2 = np.repeat(beta_km_s2, len(slices), axis=0)
            beta_km_s2[index, columns] = direct.beta_km_s2[begin:end]
        return SliceStates(first_slice, states, beta_km_s2, alive)

    def at(self, columns: Rows, timestamp_s: Floats) -> tuple[Floats, Floats]:
        """Positions and velocities ``(3, n)``, km and km/s, of object ``columns[i]`` at ``timestamp_s[i]``.

        Times count from `origin_ns`. NaN where SGP4 has no position. More than `EDGE_S` outside of the slices the result is undefined.
        """
        r_km = np.full((3, len(columns)), np.nan)
        v_km_s = np.full((3, len(columns)), np.nan)
        level_of = self.level_of[columns]
        for number, level in enumerate(self.levels):
            here = np.flatnonzero(level_of == number)
            if here.size:
                place = self.position_of[columns[here]]
                r_km[:, here], v_km_s[:, here] = level.at(place, timestamp_s[here], self.origin_ns)
        if len(self.direct.slices):  # otherwise no knot is missing
            missing = np.flatnonzero(~np.isfinite(r_km[0]))
            at_ns = self.origin_ns + np.rint(timestamp_s[missing] * NS_PER_S).astype(np.int64)
            r_km[:, missing], v_km_s[:, missing] = self.prepared.orbits.states_km(columns[missing], at_ns)
        return r_km, v_km_s

    def relative(
        self, first: Rows, second: Rows, timestamp_s: Floats, *, accurate: bool = False
    ) -> tuple[Floats, Floats]:
        """Position and velocity ``(3, n)`` of column ``second[i]`` minus ``first[i]``, as `at`.

        With ``accurate``, by SGP4 itself where one of both is irregular: it has shorter knots, or a beta of its own.
        """
        first_r_km, first_v_km_s = self.at(first, timestamp_s)
        second_r_km, second_v_km_s = self.at(second, timestamp_s)
        d_km, w_km_s = second_r_km - first_r_km, second_v_km_s - first_v_km_s
        if accurate:
            beta_km_s2 = np.maximum(self.beta_km_s2[first], self.beta_km_s2[second])
            level = np.maximum(self.level_of[first], self.level_of[second])
            irregular = np.flatnonzero((beta_km_s2 > BETA_KM_S2) | (level > 1))
            if irregular.size:
                d_km[:, irregular], w_km_s[:, irregular] = self.exact_relative(
                    first[irregular], second[irregular], timestamp_s[irregular]
                )
        return d_km, w_km_s

    def exact_relative(self, first: Rows, second: Rows, timestamp_s: Floats) -> tuple[Floats, Floats]:
        """As `relative`, by SGP4 itself: 10 µs each."""
        count = len(first)
        at_ns = self.origin_ns + np.rint(timestamp_s * NS_PER_S).astype(np.int64)
        r_km, v_km_s = self.prepared.orbits.states_km(np.concatenate((first, second)), np.concatenate((at_ns, at_ns)))
        return r_km[:, count:] - r_km[:, :count], v_km_s[:, count:] - v_km_s[:, :count]

    def _shorten(self, exceeding: list[Rows]) -> None:
        """Gives shorter knots to these objects of the first two levels, and to objects that have no knots their direct states."""
        exceeding = [np.empty(0, dtype=np.intp), *exceeding, *[np.empty(0, dtype=np.intp)] * (FINEST - 1)]
        for power in range(1, FINEST + 1):
            if exceeding[power].size:
                beyond = self._add_level(power, exceeding[power], whole=False)
                exceeding[power + 1] = np.concatenate((exceeding[power + 1], beyond))
        self.level_of[exceeding[-1]] = -1
        self.shortened = _shortened(self.level_of)
        self.direct = self._direct_states()

    def _add_level(self, power: int, columns: Rows, *, whole: bool) -> Rows:
        """Propagates these objects to knots of a length. Returns those whose certificate exceeds the bound."""
        knot_ns = self.knot_ns >> power
        first, at_ns = self._knots(knot_ns)
        knots_km = self.prepared.knots_km(power, at_ns) if whole else self.prepared.knots_of_km(columns, at_ns)
        self.level_of[columns], self.position_of[columns] = len(self.levels), np.arange(len(columns))
        self.levels.append(KnotLevel(columns, knot_ns, first, knots_km))
        return self._certify(columns, knots_km, knot_ns)

    def _knots(self, knot_ns: int) -> tuple[int, Nanoseconds]:
        """The number of the first knot of this length, and the times of all."""
        aside = max(1, -(-round(EDGE_S * NS_PER_S) // knot_ns))
        first = self.origin_ns // knot_ns - KNOTS_BEFORE - aside
        last = -(-self.end_slice * self.slice_ns // knot_ns) + KNOTS_AFTER + aside
        return first, np.arange(first, last + 1, dtype=np.int64) * knot_ns

    def _certify(self, columns: Rows, knots_km: Floats, knot_ns: int) -> Rows:
        """Measures the knots of these objects, and drops knots that cannot be measured."""
        error_km, beyond_km_s2 = measured(knots_km, knot_ns / NS_PER_S)
        drop_unmeasured(knots_km)
        keeps = error_km <= self.interpolation_km
        self.beta_km_s2[columns] = np.maximum(BETA_KM_S2, BETA_MARGIN * beyond_km_s2)
        self.certified_km = max(self.certified_km, float(error_km[keeps].max(initial=0.0)))
        exceeding: Rows = columns[~keeps]
        return exceeding

    def _direct_states(self) -> DirectStates:
        """The states of objects in slices in which they have no knots."""
        slices, columns = [], []
        every = np.arange(self.first_slice, self.end_slice, dtype=np.int64)
        for number, level in enumerate(self.levels):
            current = self.level_of[level.columns] == number
            missing = np.isnan(level.r_km[:, 0, :])
            for position in np.flatnonzero(missing.any(axis=0) & current).tolist():
                interval = (self.middle_ns(every) // level.knot_ns) - KNOTS_BEFORE - level.first
                stencils = np.lib.stride_tricks.sliding_window_view(missing[:, position], len(_OFFSETS))
                here: npt.NDArray[np.bool_] = np.any(stencils, axis=1)
                slices.append(every[here[interval]])
                columns.append(np.full(len(slices[-1]), level.columns[position]))
        for column in np.flatnonzero(self.level_of < 0).tolist():
            slices.append(every)
            columns.append(np.full(len(every), column))
        if not slices:
            return no_direct_states()
        return direct_states(self.prepared.orbits, np.concatenate(slices), np.concatenate(columns), self.slice_ns)


def check_held(ephemeris: Ephemeris, start_ns: int, end_ns: int) -> None:
    """Raises ``ValueError`` if the ephemeris does not have all of ``[start_ns, end_ns)``."""
    first_ns, last_ns = ephemeris.origin_ns, ephemeris.end_slice * ephemeris.slice_ns
    if not first_ns <= start_ns <= end_ns <= last_ns:
        raise ValueError(f"expected a window within {first_ns} to {last_ns}, which is held, got {start_ns} to {end_ns}")


def _shortened(level_of: Rows) -> int:
    """How many objects have shorter knots than their class, or none."""
    return int(np.count_nonzero((level_of < 0) | (level_of > 1)))
