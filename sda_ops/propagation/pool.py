"""Where every catalogued object is: SGP4 in worker processes of its own, called with arrays.

`PropagatorPool` is what operators hold; `PropagationWorker` is what computes in a worker process
(``Bulkhead(..., "sda_ops.propagation.pool:PropagationWorker")``). `InlinePropagator` is the same pool whose one worker computes in
the calling thread: for tests, and to show what a bulkhead is for.

A catalogue is shared once, whole, under a version number. Every request names its version and every answer tells which
it was computed with; an answer of another version is an error (`CatalogMismatch`), never mixed with others. Workers, and
those that replace them, hold two: a new one takes the place of the one that is no longer in use, so that requests under
way survive a reload.

It knows nothing of how workers are started, killed or replaced, nor of observations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from orchestrator_adapter import OperatorError
from sda_ops.astro.propagation import DEFAULT_MAX_AGE, Engine, Propagator, States, one_thread
from sda_ops.astro.time import Nanoseconds
from sda_ops.catalog.columns import ElementColumns

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Piece: TypeAlias = tuple[slice, slice]
"""Which objects, and which times."""

BYTES_PER_STATE = 2 * 3 * 8 + 1
"""Position, velocity and error code of one object at one time."""

CHUNK_BYTES = 2 << 20
"""Of one answer, at most: 20 ms of SGP4, 0.3 ms of the event loop's time to put in place."""

_PLACES = ("catalog-a", "catalog-b")
_ENGINES: tuple[Engine, ...] = get_args(Engine)
_MAX_AGE_S = "propagation.max_age_s"
_ENGINE = "propagation.engine"
_VERSION = "propagation.version"
_OWN = frozenset((_MAX_AGE_S, _ENGINE, _VERSION))


class CatalogMismatch(OperatorError):
    """A worker does not hold the version of the catalogue that it was asked for: two reloads came between, or none yet.

    Attributes:
        expected: The version asked for.
        got: The newest that the worker has; 0 is none.
    """

    def __init__(self, message: str, *, expected: int, got: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.got = got


class Workers(Protocol):
    """What the pool needs of an ``orchestrator_adapter.bulkhead.Bulkhead``."""

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        """One worker's answer."""
        ...

    async def share(self, key: str, arrays: Arrays) -> None:
        """Give every worker, and every one that replaces it, these arrays."""
        ...


class PropagatorPool:
    """States of catalogued objects, computed by workers, whose only pool it must be. Requests may be made concurrently.

    Attributes:
        catalog_version: Of the catalogue that requests made now are about; 0 before the first.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        engine: Engine = "auto",
        max_age: timedelta | None = DEFAULT_MAX_AGE,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """``engine`` and ``max_age`` as of `sda_ops.astro.propagation.Propagator`. The pool does not own ``workers``."""
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be >= 1, got {chunk_bytes}")
        self._workers = workers
        self._engine = engine
        self._by_times = engine != "sgp4" and find_spec("heyoka") is not None
        self._max_age = max_age
        self._chunk_bytes = chunk_bytes
        self._objects = 0
        self._versions = 0
        self._place = 0
        self._sharing = asyncio.Lock()
        self.catalog_version = 0

    async def use_catalog(self, columns: ElementColumns) -> int:
        """Make this the catalogue of all requests from now on, once every worker has it; returns its version.

        One after the other. Requests under way finish with the one before. If sharing fails or is cancelled, the one before stays. Raises
        what ``Workers.share`` raises.
        """
        async with self._sharing:
            self._versions += 1
            version, place = self._versions, 1 - self._place
            max_age_s = np.inf if self._max_age is None else self._max_age.total_seconds()
            own = {
                _VERSION: np.array([version]),
                _ENGINE: np.array([_ENGINES.index(self._engine)]),
                _MAX_AGE_S: np.array([max_age_s]),
            }
            await self._workers.share(_PLACES[place], {**columns.arrays(), **own})
            self.catalog_version, self._objects, self._place = version, len(columns), place
        return version

    async def propagate(self, objects: npt.NDArray[np.intp] | None, timestamp_ns: Nanoseconds) -> States:
        """States ``(objects, times, 3)`` in TEME, metres and m/s, of catalogue rows (all, if ``None``) at UTC times.

        **Some rows are NaN**: where an object has decayed, its element set is too old or SGP4 gives up. ``states.error``
        says so and why (`sda_ops.astro.propagation.PropagationError`), and ``states.usable`` is the mask of all others.

        The rows are those of the catalogue that is current when this is first awaited. Order is that of the arguments.
        Large requests are computed in pieces of ``chunk_bytes``, by as many workers as there are. Raises ``IndexError`` for
        a row that is not there, `CatalogMismatch`, and what ``Workers.call`` raises; the first failure or a cancellation
        abandons the other pieces.
        """
        if not self.catalog_version:
            raise RuntimeError("propagation: use_catalog must come first")
        timestamp_ns = np.atleast_1d(np.asarray(timestamp_ns, dtype=np.int64))
        rows = np.arange(self._objects) if objects is None else np.asarray(objects, dtype=np.intp)
        if rows.size and not 0 <= rows.min() <= rows.max() < self._objects:
            raise IndexError(f"rows must be in 0..{self._objects - 1}, got {rows.min()}..{rows.max()}")
        # heyoka is made ready for the whole catalogue; sgp4 is fastest with few objects at many times.
        shape = (rows.size, timestamp_ns.size)
        pieces = cut(*shape, chunk_bytes=self._chunk_bytes, keep_objects=objects is None and self._by_times)
        version = self.catalog_version
        states = States(np.empty((*shape, 3)), np.empty((*shape, 3)), np.empty(shape, dtype=np.uint8))

        async def fill(piece: Piece) -> None:
            request = {_VERSION: np.array([version]), "timestamp_ns": timestamp_ns[piece[1]]}
            chosen = rows[piece[0]]
            if objects is not None or chosen.size < rows.size:
                request["objects"] = chosen
            part = await self._ask(request)
            states.r_teme_m[piece], states.v_teme_m_s[piece], states.error[piece] = part

        try:
            async with asyncio.TaskGroup() as group:
                for piece in pieces:
                    group.create_task(fill(piece))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return states

    async def _ask(self, request: Arrays) -> States:
        answer = await self._workers.call("propagate", request)
        expected, got = int(request[_VERSION][0]), int(answer[_VERSION][0])
        if got != expected:
            raise CatalogMismatch(
                f"propagation: expected catalogue version {expected}, the worker has {got}", expected=expected, got=got
            )
        return States(answer["r_teme_m"], answer["v_teme_m_s"], answer["error"])


class InlinePropagator(PropagatorPool):
    """The pool without processes: it computes in the calling thread, which does nothing else meanwhile.

    Keeps heyoka to one thread in this process, as a worker does in its own.
    """

    def __init__(self, *, engine: Engine = "auto", max_age: timedelta | None = DEFAULT_MAX_AGE) -> None:
        super().__init__(_ThisThread(PropagationWorker()), engine=engine, max_age=max_age)


class PropagationWorker:
    """The handler in a worker process: holds the catalogue and propagates it. One thread, one call at a time."""

    def __init__(self) -> None:
        self._catalogs: dict[str, tuple[int, Propagator]] = {}

    def share(self, key: str, arrays: Arrays) -> None:
        """Take a catalogue in place of what had this key: 0.1 s for 15,000 objects, heyoka's compilation included."""
        if key not in _PLACES:
            raise ValueError(f"expected a share of one of {_PLACES}, got {key!r}")
        one_thread()
        columns = ElementColumns.from_arrays({name: array for name, array in arrays.items() if name not in _OWN})
        max_age_s = float(arrays[_MAX_AGE_S][0])
        propagator = Propagator(
            columns.satrecs(),
            engine=_ENGINES[int(arrays[_ENGINE][0])],
            max_age=None if np.isinf(max_age_s) else timedelta(seconds=max_age_s),
        )
        self._catalogs[key] = int(arrays[_VERSION][0]), propagator

    def handle(self, method: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Answer ``"propagate"``: the states, and the version of the catalogue that they are of.

        Without that version here there are no states, and the version is the newest that is here (0: none).
        """
        if method != "propagate":
            raise ValueError(f"expected a call of 'propagate', got {method!r}")
        catalogs = dict(self._catalogs.values())
        propagator = catalogs.get(int(arrays[_VERSION][0]))
        if propagator is None:
            return {_VERSION: np.array([max(catalogs, default=0)])}
        states = propagator.propagate(arrays["timestamp_ns"], objects=arrays.get("objects"))
        return {**states._asdict(), _VERSION: arrays[_VERSION]}


def cut(objects: int, times: int, *, chunk_bytes: int, keep_objects: bool) -> list[Piece]:
    """A grid of objects and times in pieces, in order, each answer within ``chunk_bytes`` or of one state.

    First objects are parted and times if one object's alone are too many; to ``keep_objects`` together, times only, and then
    an answer of one time may be larger.
    """
    if not objects or not times:
        return []
    states = max(1, chunk_bytes // BYTES_PER_STATE)
    tall = objects if keep_objects else max(1, states // times)
    wide = max(1, states // min(tall, objects))
    return [(rows, columns) for rows in _parts(objects, tall) for columns in _parts(times, wide)]


def _parts(length: int, longest: int) -> list[slice]:
    """Of nearly equal length."""
    count = -(-length // longest)
    return [slice(number * length // count, (number + 1) * length // count) for number in range(count)]


class _ThisThread:
    """`Workers` that are none."""

    def __init__(self, worker: PropagationWorker) -> None:
        self._worker = worker

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        return self._worker.handle(method, arrays)

    async def share(self, key: str, arrays: Arrays) -> None:
        self._worker.share(key, arrays)
