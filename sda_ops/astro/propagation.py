"""Many element sets at many times, by SGP4: sgp4's C++ ``SatrecArray``, or heyoka (an extra), which is ten times as fast.

If an object has no state at a time, the state is NaN and the error code is the reason: select by `States.usable`.

**Engines.** heyoka compiles SGP4 to vector instructions (about 0.1 s the first time in a process, 0.03 s later) and
releases the GIL; ``SatrecArray`` keeps it. Positions agree to 1e-6 km, error codes are equal. Three properties of heyoka
need care. It returns wrong positions of deep-space sets without an error, so it gets only those whose ``satrec.method`` is
``'n'``. It supports only WGS-72, so it gets only those. It counts leap seconds between epoch and date, which SGP4 does not,
so it gets minutes since epoch instead of dates.

It knows nothing of manoeuvres, nor of the errors of element sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from sgp4.api import Satrec, SatrecArray

from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds, julian_date, utc_ns

M_PER_KM = 1000.0
MINUTES_PER_DAY = 1440.0

Engine: TypeAlias = Literal["sgp4", "heyoka", "auto"]
"""``auto`` is heyoka if it is installed, otherwise sgp4."""

DEFAULT_MAX_AGE = timedelta(days=30)
"""In low orbit the error grows by 1 to 3 km a day (sgp4's documentation): to 100 km at this age, or far more under drag."""

IMPLAUSIBLE_APOGEES = 1.5
"""The greatest plausible distance, in apogees at epoch. Of 14,683 real objects, 30 days before and after their epochs, all
deep-space ones stay within 1.003 apogees. SGP4 puts a dozen with a negative drag term at 1.1 to 8 apogees."""

WGS72_MU_KM3_S2 = 398600.8
"""The gravitational parameter that identifies a WGS-72 ``Satrec`` (AIAA 2006-6753)."""


LARGE_SELECTION = 1_000
"""Objects. A selection of this size gets a propagator of its own when it is requested again: `sda_ops.propagation.operator`
requests one set of each object, and the same ones for ten minutes of observations."""


class PropagationError(IntEnum):
    """Why an object has no state at a time. 1 to 6 are SGP4's codes (AIAA 2006-6753; sgp4's ``SGP4_ERRORS``)."""

    NONE = 0
    MEAN_ELEMENTS = 1
    """Mean eccentricity outside [0, 1)."""
    MEAN_MOTION = 2
    """Mean motion below zero."""
    PERTURBED_ECCENTRICITY = 3
    """Perturbed eccentricity outside [0, 1]."""
    SEMILATUS_RECTUM = 4
    """Semilatus rectum below zero."""
    EPOCH_UNDERGROUND = 5
    """No longer used."""
    DECAYED = 6
    """Below the Earth's surface."""
    STALE = 101
    """The element set's epoch is farther from the time than ``max_age``. This code replaces SGP4's own."""
    IMPLAUSIBLE = 102
    """SGP4 reports no error, but the position is NaN or far beyond the orbit (`IMPLAUSIBLE_APOGEES`)."""


class States(NamedTuple):
    """State vectors in TEME of date. **They are NaN where `usable` is false**: select by it first.

    Attributes:
        r_teme_m: Positions ``(objects, times, 3)``; NaN where ``error`` is not 0.
        v_teme_m_s: Velocities ``(objects, times, 3)``; NaN where ``error`` is not 0.
        error: `PropagationError` codes ``(objects, times)``; 0 means no error.
    """

    r_teme_m: Floats
    v_teme_m_s: Floats
    error: npt.NDArray[np.uint8]

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """The mask ``(objects, times)`` of states without an error: ``states.r_teme_m[states.usable]`` is finite."""
        mask: npt.NDArray[np.bool_] = self.error == PropagationError.NONE
        return mask


def sgp4_states(satrecs: SatrecArray, timestamp_ns: Nanoseconds) -> States:
    """sgp4's state and error code of every object at every UTC time ``(times,)``, in metres."""
    error, r_km, v_km_s = satrecs.sgp4(*julian_date(np.atleast_1d(timestamp_ns)))
    return _in_metres(r_km, v_km_s, error)


class Propagator:
    """Propagates a catalogue to any times, with an error code for each state that cannot be trusted.

    Attributes:
        engine: The engine for the near-Earth objects of a whole catalogue: ``sgp4`` or ``heyoka``.
    """

    def __init__(
        self,
        satrecs: Sequence[Satrec],
        *,
        engine: Engine = "auto",
        max_age: timedelta | None = DEFAULT_MAX_AGE,
    ) -> None:
        """Prepare the catalogue. ``max_age`` counts before and after each epoch; ``None`` accepts any age.

        Raises ``ModuleNotFoundError`` for the engine ``heyoka`` if it is not installed.
        """
        self._satrecs = satrecs
        self._max_age = max_age
        self._selection: tuple[npt.NDArray[np.intp], Propagator | None] = (np.empty(0, dtype=np.intp), None)
        self._max_age_ns = None if max_age is None else round(max_age.total_seconds() * NS_PER_S)
        self._epoch_jd = np.array([satrec.jdsatepoch for satrec in satrecs], dtype=np.float64)
        self._epoch_fraction = np.array([satrec.jdsatepochF for satrec in satrecs], dtype=np.float64)
        self._epoch_ns = utc_ns(self._epoch_jd, self._epoch_fraction)
        apogee_m = np.array([(satrec.alta + 1.0) * satrec.radiusearthkm for satrec in satrecs]) * M_PER_KM
        self._limit_m2 = (IMPLAUSIBLE_APOGEES * apogee_m) ** 2
        near = np.array([s.method == "n" and s.mu == WGS72_MU_KM3_S2 for s in satrecs], dtype=np.bool_)
        self._compiled: _Compiled | None = None
        if engine != "sgp4" and near.any():
            self._compiled = _compiled(
                [satrec for satrec, is_near in zip(satrecs, near, strict=True) if is_near], engine
            )
        self.engine: Literal["sgp4", "heyoka"] = "sgp4" if self._compiled is None else "heyoka"
        self._near = np.flatnonzero(near)
        self._by_sgp4 = np.flatnonzero(~near) if self._compiled else np.arange(len(satrecs))
        self._array = SatrecArray([satrecs[index] for index in self._by_sgp4.tolist()])

    def propagate(self, timestamp_ns: Nanoseconds, *, objects: npt.NDArray[np.intp] | None = None) -> States:
        """States of these rows of the catalogue (all, if ``None``) at every UTC time ``(times,)``.

        A selection is computed by sgp4: compiling heyoka for it would cost more than it gains. But a large one that is
        requested again gets a propagator of its own, with this engine, until another one is requested again. Raises
        ``IndexError`` for a row outside the catalogue.
        """
        if objects is not None and (selected := self._selected(objects)) is not None:
            return selected.propagate(timestamp_ns)
        if objects is None:
            states = self._all_objects(timestamp_ns)
            epoch_ns, limit_m2 = self._epoch_ns, self._limit_m2
        else:
            states = sgp4_states(SatrecArray([self._satrecs[index] for index in objects.tolist()]), timestamp_ns)
            epoch_ns, limit_m2 = self._epoch_ns[objects], self._limit_m2[objects]
        radius_m2 = np.einsum("nti,nti->nt", states.r_teme_m, states.r_teme_m)
        # Also true for NaN, which is not <= anything.
        implausible = states.usable & ~(radius_m2 <= limit_m2[:, np.newaxis])
        if implausible.any():
            _fail(states, implausible, PropagationError.IMPLAUSIBLE)
        if self._max_age_ns is not None:
            age_ns = timestamp_ns - epoch_ns[:, np.newaxis]
            stale = np.abs(age_ns) > self._max_age_ns
            if stale.any():
                _fail(states, stale, PropagationError.STALE)
        return states

    def positions_km(self, timestamp_ns: Nanoseconds) -> Floats:
        """TEME positions ``(times, 3, objects)``, km, of the whole catalogue; NaN where `propagate` has an error code.

        This is heyoka's own layout, so it takes about two thirds of the time of `propagate` and a transposition.
        """
        if self._compiled is None:
            r_m = self.propagate(timestamp_ns).r_teme_m
            r_km: Floats = np.ascontiguousarray(r_m.transpose(1, 2, 0)) / M_PER_KM
            return r_km
        r_km = np.empty((len(timestamp_ns), 3, len(self._satrecs)))
        error = np.empty((len(timestamp_ns), len(self._satrecs)), dtype=np.uint8)
        jd, fraction = julian_date(timestamp_ns)
        computed = self._compiled(self._since_min(jd, fraction))
        r_km[:, :, self._near], error[:, self._near] = computed[:, 0:3], computed[:, 6]
        if (rest := self._by_sgp4).size:
            rest_error, rest_km, _ = self._array.sgp4(jd, fraction)
            r_km[:, :, rest], error[:, rest] = rest_km.transpose(1, 2, 0), rest_error.T
        # Also false for NaN, which is not <= anything.
        good = np.einsum("tin,tin->tn", r_km, r_km) <= self._limit_m2 / M_PER_KM**2
        good &= error == PropagationError.NONE
        if self._max_age_ns is not None:
            good &= np.abs(timestamp_ns[:, np.newaxis] - self._epoch_ns) <= self._max_age_ns
        if not good.all():
            r_km.transpose(0, 2, 1)[~good] = np.nan
        return r_km

    def _selected(self, objects: npt.NDArray[np.intp]) -> Propagator | None:
        """The propagator of a large selection that was requested before."""
        if objects.size < LARGE_SELECTION:
            return None
        last, propagator = self._selection
        if not np.array_equal(last, objects):
            self._selection = (objects.copy(), None)
            return None
        if propagator is None:
            satrecs = [self._satrecs[index] for index in objects.tolist()]
            propagator = Propagator(satrecs, engine=self.engine, max_age=self._max_age)
            self._selection = (last, propagator)
        return propagator

    def _all_objects(self, timestamp_ns: Nanoseconds) -> States:
        if self._compiled is None:
            return sgp4_states(self._array, timestamp_ns)
        jd, fraction = julian_date(timestamp_ns)
        near, rest = self._near, self._by_sgp4
        # (times, 7, objects): position, velocity, error code.
        computed = self._compiled(self._since_min(jd, fraction))
        shape = (len(self._satrecs), len(jd))
        r_km, v_km_s = np.empty((*shape, 3)), np.empty((*shape, 3))
        error = np.empty(shape, dtype=np.uint8)
        r_km[near] = computed[:, 0:3].transpose(2, 0, 1)
        v_km_s[near] = computed[:, 3:6].transpose(2, 0, 1)
        error[near] = computed[:, 6].T
        if rest.size:
            error[rest], r_km[rest], v_km_s[rest] = self._array.sgp4(jd, fraction)
        return _in_metres(r_km, v_km_s, error)

    def _since_min(self, jd: Floats, fraction: Floats) -> Floats:
        """Minutes since epoch ``(times, near-Earth objects)``, by the same terms as in sgp4's C++."""
        since_min: Floats = (jd[:, np.newaxis] - self._epoch_jd[self._near]) * MINUTES_PER_DAY
        since_min += (fraction[:, np.newaxis] - self._epoch_fraction[self._near]) * MINUTES_PER_DAY
        return since_min


_Compiled: TypeAlias = Callable[[Floats], Floats]
"""A compiled propagator of heyoka: minutes since epoch ``(times, objects)`` -> ``(times, 7, objects)``."""


def _compiled(satrecs: list[Satrec], engine: Engine) -> _Compiled | None:
    """The compiled propagator of near-Earth element sets; ``None`` for ``auto`` without heyoka."""
    try:
        from heyoka.model import sgp4_propagator  # noqa: PLC0415 - an extra, and 0.1 s to import
    except ModuleNotFoundError:
        if engine == "heyoka":
            raise
        return None
    compiled: _Compiled = sgp4_propagator(satrecs)
    return compiled


def one_thread() -> None:
    """Limit heyoka, if it is installed, to one thread in this process. By default it uses every core."""
    try:
        import heyoka  # noqa: PLC0415 - an extra, and 0.1 s to import
    except ModuleNotFoundError:
        return
    heyoka.set_nthreads(1)


def _in_metres(r_km: Floats, v_km_s: Floats, error: npt.NDArray[np.uint8]) -> States:
    """Converts the arrays in place, because they are large."""
    r_km *= M_PER_KM
    v_km_s *= M_PER_KM
    states = States(r_km, v_km_s, error)
    failed = error != 0
    if failed.any():
        r_km[failed] = np.nan
        v_km_s[failed] = np.nan
    return states


def _fail(states: States, where: npt.NDArray[np.bool_], code: PropagationError) -> None:
    states.r_teme_m[where] = np.nan
    states.v_teme_m_s[where] = np.nan
    states.error[where] = code
