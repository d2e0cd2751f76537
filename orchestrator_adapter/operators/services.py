"""What the runtime lends to one vertex for its whole life. Operators see it only through ``WiredEnds``."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from orchestrator_adapter.channels.ledger import OperatorAccount
from orchestrator_adapter.operators.blocking import BlockingCalls
from orchestrator_adapter.operators.pause import Pause
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.event_log import BoundedLog
from orchestrator_adapter.primitives.kept import KEPT
from orchestrator_adapter.primitives.metrics import LatencyHistogram, RateMeter
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.storage.dead_letter import DeadLetterGate
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter

T = TypeVar("T")


class KeptResources:
    """Resources that outlive an operator's instances, by name."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Callable[[], object] | None]] = {}

    def __getitem__(self, name: str) -> Any:
        return self._kept[name][0]

    def keep(self, name: str, make: Callable[[], T], close: Callable[[T], object] | None) -> T:
        """The resource of that name. Made by ``make`` at the first call."""
        if name not in self._kept:
            token = KEPT.set(True)  # tasks that `make` starts outlive the instance, too
            try:
                value = make()
            finally:
                KEPT.reset(token)
            self._kept[name] = (value, None if close is None else partial(close, value))
        kept: T = self._kept[name][0]
        return kept

    async def close_all(self, limit_s: float) -> list[Exception]:
        """Close every resource, the last made first. Returns the errors; an error does not stop the others.

        A ``close`` that returns an awaitable is awaited, for ``limit_s`` seconds of real time at most.
        """
        errors: list[Exception] = []
        while self._kept:
            name, (_, close) = self._kept.popitem()
            if close is not None:
                try:
                    closing = close()
                    if inspect.isawaitable(closing):
                        await _await_at_most(closing, limit_s, name)
                except Exception as error:  # noqa: BLE001 - the others must be closed too; the runtime reports it
                    errors.append(error)
                except BaseException as error:  # noqa: BLE001 - SystemExit, for example, would stop the loop and lose the report
                    errors.append(_as_error(error, name))
        return errors


async def _await_at_most(closing: Awaitable[object], limit_s: float, name: str) -> None:
    task = asyncio.create_task(_completed(closing, name), name=f"closing {name!r}")
    await asyncio.wait({task}, timeout=limit_s)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=limit_s)
        raise TimeoutError(f"closing {name!r} did not end within {limit_s:g} s")
    if task.cancelled():
        raise RuntimeError(f"closing {name!r} was cancelled")
    task.result()


async def _completed(closing: Awaitable[object], name: str) -> None:
    try:
        await closing
    except (SystemExit, KeyboardInterrupt) as error:
        raise _as_error(error, name) from error


def _as_error(error: BaseException, name: str) -> RuntimeError:
    return RuntimeError(f"closing {name!r} raised {type(error).__name__}")


@dataclass(slots=True)
class VertexServices:
    """What the runtime lends to one vertex. A source has an ``ingest_rate`` from its first start on.

    ``breakers_used`` has the names of the circuit breakers that the operator has asked for, in that order.
    ``pause`` is that of a source; ``None`` for other operators.
    ``start_helper`` starts a task that belongs to the present instance; see ``WiredEnds.start``.
    """

    clock: Clock
    rng: random.Random
    shutdown: ShutdownToken
    dead_letter_writer: DeadLetterWriter
    account: OperatorAccount
    blocking: BlockingCalls
    breakers: Breakers
    gate: DeadLetterGate
    log: BoundedLog
    latency: LatencyHistogram
    kept: KeptResources = field(default_factory=KeptResources)
    counters: dict[str, int] = field(default_factory=dict)
    breakers_used: dict[str, None] = field(default_factory=dict)
    pause: Pause | None = None
    last_item_monotonic: float | None = None
    ingest_rate: RateMeter | None = None
    start_helper: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]] | None = None
