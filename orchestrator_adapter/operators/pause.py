"""``Pause``: whether a person has paused a source. It outlives the instance, so that a restart does not end it."""

from __future__ import annotations

from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.stopwatch import Stopwatch
from orchestrator_adapter.primitives.wakeup import Wakeup


class Pause:
    """The pause of one source, on the graph's loop. A shutdown ends it for good.

    The time in which the source is suspended counts as ``waiting``.

    Attributes:
        reason: Why it is paused; empty if it is not.
    """

    __slots__ = ("_shutdown", "_wakeup", "reason")

    def __init__(self, shutdown: ShutdownToken, waiting: Stopwatch) -> None:
        self.reason = ""
        self._shutdown = shutdown
        self._wakeup = Wakeup(waiting)
        shutdown.on_set(self._end)

    def begin(self, reason: str) -> bool:
        """Pause the source; False if it is paused already, or the graph drains."""
        if self.reason or self._shutdown.is_set:
            return False
        self.reason = reason
        return True

    def end(self) -> bool:
        """Resume the source; False if it is not paused."""
        was_paused = bool(self.reason)
        self.reason = ""
        self._wakeup.wake()
        return was_paused

    def _end(self) -> None:
        self.end()

    async def wait(self) -> None:
        """Suspend while the source is paused. Cancel-safe."""
        while self.reason:
            await self._wakeup.wait()
