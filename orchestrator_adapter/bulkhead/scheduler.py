"""Which worker gets which call, what happens to the calls of a lost worker, and which worker is late. Pure: times are passed in.

A worker answers in the order in which calls were sent to it. Therefore only the oldest call in its pipe is being worked on.
When the worker is lost, only that oldest call is charged with the loss; the calls queued behind it are sent to another worker.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator_adapter.bulkhead.errors import Malformed
from orchestrator_adapter.supervision.restart import RestartPolicy, admit

_MAX_RESUBMISSIONS = 1


@dataclass(frozen=True, slots=True)
class Assignment:
    """Send this call to this worker."""

    worker: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What happens to the calls of a lost worker.

    Attributes:
        resubmitted: The oldest call, if it gets a second worker.
        requeued: The calls that were queued behind it, oldest first; they are not charged.
        given_up: The oldest call, if this was the second worker lost with it.
    """

    resubmitted: int | None
    requeued: tuple[int, ...]
    given_up: int | None


@dataclass(slots=True)
class _Pipe:
    """What one worker was sent and has not answered: calls and shared state, oldest first."""

    tickets: deque[int] = field(default_factory=deque)
    calls: int = 0
    oldest_since: float = 0.0


class Scheduler:
    """The calls of one bulkhead. A ticket identifies each call, and each share that a worker confirms."""

    def __init__(self, *, in_flight: int) -> None:
        self._in_flight = in_flight
        self._waiting: deque[int] = deque()
        self._pipes: dict[int, _Pipe] = {}
        self._losses: dict[int, int] = {}  # workers lost with each call that has not ended

    @property
    def waiting(self) -> int:
        """How many calls are queued and not yet sent to a worker."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """How many calls a worker has, without the abandoned ones."""
        return len(self._losses) - len(self._waiting)

    def submit(self, ticket: int) -> None:
        """Queue a call, last."""
        self._losses[ticket] = 0
        self._waiting.append(ticket)

    def abandon(self, ticket: int) -> None:
        """The caller no longer waits. If a worker has the call, its place becomes free when the worker answers."""
        if self._losses.pop(ticket, None) is not None and ticket in self._waiting:
            self._waiting.remove(ticket)

    def add_worker(self, worker: int) -> None:
        """A worker is ready for calls."""
        self._pipes[worker] = _Pipe()

    def share(self, worker: int, ticket: int, now: float) -> None:
        """A worker is sent shared state. It answers after its earlier calls; this takes no place of a call."""
        self._send(self._pipes[worker], ticket, now)

    def assign(self, now: float) -> Iterator[Assignment]:
        """Assign queued calls to free places: the oldest call first, the least busy worker first."""
        while self._waiting:
            free = [(pipe.calls, worker) for worker, pipe in self._pipes.items() if pipe.calls < self._in_flight]
            if not free:
                return
            _, worker = min(free)
            ticket = self._waiting.popleft()
            pipe = self._pipes[worker]
            pipe.calls += 1
            self._send(pipe, ticket, now)
            yield Assignment(worker, ticket)

    def answered(self, worker: int, ticket: int, now: float, *, shared: bool = False) -> bool:
        """A worker has answered. Returns whether it was a call whose caller still waits. Raises ``Malformed`` if out of order."""
        pipe = self._pipes[worker]
        if not pipe.tickets or pipe.tickets[0] != ticket:
            raise Malformed(
                f"expected an answer to {pipe.tickets[0] if pipe.tickets else 'nothing'}, got one to {ticket}"
            )
        pipe.tickets.popleft()
        pipe.calls -= not shared
        pipe.oldest_since = now
        return self._losses.pop(ticket, None) is not None

    def remove_worker(self, worker: int) -> Loss:
        """A worker is lost. Its calls are queued again, first, unless they are given up."""
        pipe = self._pipes.pop(worker, _Pipe())
        tickets = [ticket for ticket in pipe.tickets if ticket in self._losses]
        oldest = tickets[0] if tickets and tickets[0] == pipe.tickets[0] else None
        given_up = None
        if oldest is not None:
            self._losses[oldest] += 1
            if self._losses[oldest] > _MAX_RESUBMISSIONS:
                given_up = oldest
                del self._losses[oldest]
        requeued = tuple(ticket for ticket in tickets if ticket != oldest)
        resubmitted = oldest if given_up is None else None
        self._waiting.extendleft(reversed(requeued if resubmitted is None else (resubmitted, *requeued)))
        return Loss(resubmitted, requeued, given_up)

    def overdue(self, now: float, limit_s: float) -> tuple[int, ...]:
        """The workers that have been working on their oldest call for ``limit_s`` or longer."""
        return tuple(w for w, pipe in self._pipes.items() if pipe.tickets and now - pipe.oldest_since >= limit_s)

    def next_deadline(self, limit_s: float) -> float | None:
        """When the next worker may be overdue; ``None`` while all workers are idle."""
        return min((pipe.oldest_since + limit_s for pipe in self._pipes.values() if pipe.tickets), default=None)

    def _send(self, pipe: _Pipe, ticket: int, now: float) -> None:
        if not pipe.tickets:
            pipe.oldest_since = now
        pipe.tickets.append(ticket)


class RebuildBudget:
    """Whether and when a lost worker is replaced. One budget for all workers of a bulkhead."""

    def __init__(self, policy: RestartPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._charged: tuple[float, ...] = ()
        self._consecutive = 0

    def next_delay_s(self, now: float, uptime_s: float) -> float | None:
        """Seconds until the successor is launched; ``None`` if the budget is used up.

        ``uptime_s`` is how long the lost worker had been ready, in seconds.
        """
        delay_s, consecutive = 0.0, 0
        if (backoff := self._policy.backoff) is not None:
            consecutive = 1 if uptime_s >= backoff.healthy_after.total_seconds() else self._consecutive + 1
            delay_s = backoff.delay_s(consecutive, self._rng)
        admitted, self._charged = admit(self._policy, self._charged, now, begins_at=now + delay_s)
        if not admitted:
            return None
        self._consecutive = consecutive
        return delay_s
