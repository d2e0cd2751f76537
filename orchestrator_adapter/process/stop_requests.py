"""``StopRequests``: the requests to stop one run, from before its preparations until its report is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar

from orchestrator_adapter.process.signals import ForcedEnd, stop_on_signals

T = TypeVar("T")


class Stoppable(Protocol):
    """What a request is passed on to: a built graph."""

    def request_shutdown(self, reason: str) -> object:
        """A second request starts the second phase."""


class StopRequested(Exception):
    """The run was asked to stop before its graph existed."""


class StopRequests:
    """The requests to stop one run. Those that come before its graph exists are kept, and passed on to it then.

    ``request`` is called on the loop's thread. ``listen`` makes requests of signals.

    Attributes:
        reasons: The reason of each request, oldest first.
        forced: What happens if the loop does not turn after a signal; ``run_pipeline`` sets it.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.forced: ForcedEnd | None = None
        self._graph: Stoppable | None = None
        self._arrived = asyncio.Event()
        self._notice: Callable[[str], object] = lambda _: None

    def request(self, reason: str) -> None:
        """Ask the run to stop. The first request starts the drain, a second one the abort."""
        self.reasons.append(reason)
        self._arrived.set()
        if self._graph is not None:
            self._graph.request_shutdown(reason)

    def signalled(self, name: str) -> None:
        """The process received a signal."""
        self.request(name)

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Inside, SIGTERM, SIGINT and SIGHUP are requests; see ``stop_on_signals``."""
        with stop_on_signals(self.signalled, forced=lambda: self.forced) as self._notice:
            yield

    def noticed(self, reason: str) -> None:
        """A request is on its way to the loop. Any thread may call it; while listening, it counts if the loop is blocked."""
        self._notice(reason)

    def attach(self, graph: Stoppable) -> None:
        """Pass the requests on to ``graph``, the earlier ones at once."""
        self._graph = graph
        for reason in self.reasons:
            graph.request_shutdown(reason)

    async def unless_requested(
        self, what: str, work: Callable[[], Awaitable[T]], *, cancel_within: timedelta = timedelta(seconds=5)
    ) -> T:
        """Do ``work``, or cancel it when the run is asked to stop, and then raise ``StopRequested``.

        ``what`` names it in a report. A cancelled ``work`` that has not ended after ``cancel_within`` is abandoned.
        """
        if self.reasons:
            raise StopRequested(self.reasons[0])
        working = asyncio.create_task(_await(work()), name=what)
        waiting = asyncio.ensure_future(self._arrived.wait())
        try:
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working}, timeout=cancel_within.total_seconds())
        if not self.reasons:
            return working.result()
        if working.done() and not working.cancelled():
            working.exception()  # retrieved: the run was asked to stop, and how its preparation ended does not matter
        raise StopRequested(self.reasons[0])


async def _await(work: Awaitable[T]) -> T:
    return await work
