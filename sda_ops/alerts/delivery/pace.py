"""``Pace``: the greatest rate of requests to one subscriber, and the pauses that it asks for."""

from __future__ import annotations

from orchestrator_adapter import Clock, Wakeup


class Pace:
    """Requests begin at least ``1 / max_per_s`` seconds apart, and none begins in a pause."""

    def __init__(self, max_per_s: float | None, clock: Clock) -> None:
        """``max_per_s``: ``None`` for no bound."""
        self._interval_s = 0.0 if max_per_s is None else 1 / max_per_s
        self._clock = clock
        self._next_at = float("-inf")  # when the next request may begin, monotonic seconds
        self._paused_until = float("-inf")

    def pause(self, for_s: float) -> None:
        """No request begins for this long, seconds. A shorter pause does not end a longer one."""
        self._paused_until = max(self._paused_until, self._clock.monotonic() + for_s)

    async def turn(self) -> None:
        """Suspend until a request may begin. Callers are admitted in the order in which they came."""
        while True:
            at = max(self._clock.monotonic(), self._next_at, self._paused_until)
            self._next_at = at + self._interval_s
            while self._clock.monotonic() < at:
                await Wakeup().wait_until(at, self._clock)
            if self._clock.monotonic() >= self._paused_until:
                return
