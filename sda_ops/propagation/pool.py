"""States of catalogued objects, computed by SGP4 in a pool of worker processes.

Operators use `PropagatorPool`. Its workers run a `PropagationWorker` each
(``Bulkhead(..., "sda_ops.propagation.worker:PropagationWorker")``). `InlinePropagator` computes in the calling thread instead:
for tests, and to show what a bulkhead is for.

Each catalogue is shared once, as a whole, under a version number. A request names the version it needs, and an answer the
version it was computed with; if they differ, the request fails (`CatalogMismatch`). A worker stores two catalogues: a new one
replaces the older of them, so that requests in flight survive a reload. A replacement worker gets both.

It knows nothing of how workers are started, killed or replaced, nor of observations.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib.util import find_spec
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from orchestrator_adapter import OperatorError
from sda_ops.astro.propagation import DEFAULT_MAX_AGE, LARGE_SELECTION, Engine, States
from sda_ops.astro.time import Nanoseconds
from sda_ops.catalog.columns import ElementColumns
from sda_ops.propagation.worker import CATALOG_KEYS, ENGINE, ENGINES, MAX_AGE_S, VERSION, Arrays, PropagationWorker

Piece: TypeAlias = tuple[slice, slice]
"""The objects and the times of one request."""

BYTES_PER_STATE = 2 * 3 * 8 + 1
"""Position, velocity and error code of one object at one time."""

CHUNK_BYTES = 2 << 20
"""The bound on one answer: 20 ms of SGP4, and 0.3 ms of the event loop to copy it."""


class CatalogMismatch(OperatorError):
    """A worker does not have the requested version of the catalogue: two reloads came in between, or none arrived yet.

    Attributes:
        expected: The requested version.
        got: The newest version that the worker has; 0 if none.
    """

    def __init__(self, message: str, *, expected: int, got: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.got = got


class Workers(Protocol):
    """The part of ``orchestrator_adapter.bulkhead.Bulkhead`` that the pool uses."""

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        """Call one worker and return its answer."""
        ...

    async def share(self, key: str, arrays: Arrays) -> None:
        """Send these arrays to every worker, and later to every replacement."""
        ...


class PropagatorPool:
    """States of catalogued objects, computed by workers that no other pool may use. Requests may run concurrently.

    Attributes:
        catalog_version: The version of the catalogue that new requests use; 0 before the first.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        engine: Engine = "auto",
        max_age: timedelta | None = DEFAULT_MAX_AGE,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """``engine`` and ``max_age`` as in `sda_ops.astro.propagation.Propagator`. The pool does not own ``workers``."""
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be >= 1, got {chunk_bytes}")
        self._workers = workers
        self._engine = engine
        self._by_times = engine != "sgp4" and find_spec("heyoka") is not None
        self._max_age = max_age
        self._chunk_bytes = chunk_bytes
        self._objects = 0
        self._versions = 0
        self._key_index = 0
        self._sharing = asyncio.Lock()
        self.catalog_version = 0

    async def use_catalog(self, columns: ElementColumns) -> int:
        """Use this catalogue for all requests from the time when every worker has it; returns its version.

        Concurrent calls run one after the other. Requests in flight finish with the previous catalogue. If sharing fails or
        is cancelled, the previous catalogue stays in use. Raises what ``Workers.share`` raises.
        """
        async with self._sharing:
            self._versions += 1
            version, key_index = self._versions, 1 - self._key_index
            max_age_s = np.inf if self._max_age is None else self._max_age.total_seconds()
            settings = {
                VERSION: np.array([version]),
                ENGINE: np.array([ENGINES.index(self._engine)]),
                MAX_AGE_S: np.array([max_age_s]),
            }
            await self._workers.share(CATALOG_KEYS[key_index], {**columns.arrays(), **settings})
            self.catalog_version, self._objects, self._key_index = version, len(columns), key_index
        return version

    async def propagate(self, objects: npt.NDArray[np.intp] | None, timestamp_ns: Nanoseconds) -> States:
        """States ``(objects, times, 3)`` in TEME, metres and m/s, of these catalogue rows (all, if ``None``) at UTC times.

        **Some states are NaN**: the object has decayed, its element set is too old, or SGP4 fails. ``states.error`` has the
        reason (`sda_ops.astro.propagation.PropagationError`), and ``states.usable`` is the mask of all others.

        Rows refer to the catalogue in use when this is first awaited. The order is that of the arguments. A large request is
        split into pieces of ``chunk_bytes``, which all workers share. Raises ``IndexError`` for a row outside the catalogue,
        `CatalogMismatch`, and what ``Workers.call`` raises. The first failure or a cancellation cancels the other pieces.
        """
        if not self.catalog_version:
            raise RuntimeError("propagation: call use_catalog first")
        timestamp_ns = np.atleast_1d(np.asarray(timestamp_ns, dtype=np.int64))
        rows = np.arange(self._objects) if objects is None else np.asarray(objects, dtype=np.intp)
        if rows.size and not 0 <= rows.min() <= rows.max() < self._objects:
            raise IndexError(f"rows must be in 0..{self._objects - 1}, got {rows.min()}..{rows.max()}")
        # heyoka is compiled for the whole catalogue or a large selection of it; sgp4 is fastest with few objects at many times.
        shape = (rows.size, timestamp_ns.size)
        keep_objects = self._by_times and (objects is None or rows.size >= LARGE_SELECTION)
        pieces = split_request(*shape, chunk_bytes=self._chunk_bytes, keep_objects=keep_objects)
        version = self.catalog_version
        states = States(np.empty((*shape, 3)), np.empty((*shape, 3)), np.empty(shape, dtype=np.uint8))

        async def fill(piece: Piece) -> None:
            request = {VERSION: np.array([version]), "timestamp_ns": timestamp_ns[piece[1]]}
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
        expected, got = int(request[VERSION][0]), int(answer[VERSION][0])
        if got != expected:
            raise CatalogMismatch(
                f"propagation: expected catalogue version {expected}, the worker has {got}", expected=expected, got=got
            )
        return States(answer["r_teme_m"], answer["v_teme_m_s"], answer["error"])


class InlinePropagator(PropagatorPool):
    """The pool without processes: it computes in the calling thread and blocks it.

    It limits heyoka to one thread in this process, as a worker does in its own.
    """

    def __init__(self, *, engine: Engine = "auto", max_age: timedelta | None = DEFAULT_MAX_AGE) -> None:
        super().__init__(_ThisThread(PropagationWorker()), engine=engine, max_age=max_age)


def split_request(objects: int, times: int, *, chunk_bytes: int, keep_objects: bool) -> list[Piece]:
    """Split a grid of objects and times into pieces, in order, whose answers have ``chunk_bytes`` at most, or one state.

    It splits the objects first, and the times if those of one object are too many. With ``keep_objects`` it splits only the
    times, and the answer for a single time may be larger than ``chunk_bytes``.
    """
    if not objects or not times:
        return []
    states = max(1, chunk_bytes // BYTES_PER_STATE)
    tall = objects if keep_objects else max(1, states // times)
    wide = max(1, states // min(tall, objects))
    return [(rows, columns) for rows in _parts(objects, tall) for columns in _parts(times, wide)]


def _parts(length: int, longest: int) -> list[slice]:
    """Slices of nearly equal length, at most ``longest`` each."""
    count = -(-length // longest)
    return [slice(number * length // count, (number + 1) * length // count) for number in range(count)]


class _ThisThread:
    """`Workers` without processes."""

    def __init__(self, worker: PropagationWorker) -> None:
        self._worker = worker

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        return self._worker.handle(method, arrays)

    async def share(self, key: str, arrays: Arrays) -> None:
        self._worker.share(key, arrays)
