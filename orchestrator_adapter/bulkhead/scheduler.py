"""Which call is where, what becomes of those whose worker is lost, and which worker hangs. Pure: times are given.

A worker answers in the order in which it was asked. So only the oldest call in its pipe, the head, is being worked on: when
the worker is lost, the head is charged with it, and those behind it go on to another worker as if nothing had happened.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator_adapter.bulkhead.errors import Malformed
from orchestrator_adapter.supervision.restart import RestartPolicy, admit

_LOSSES_ADMITTED = 1  # resubmitted once


@dataclass(frozen=True, slots=True)
class Assignment:
    """This call goes to that worker."""

    worker: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What follows from the loss of a worker.

    Attributes:
        resubmitted: The head, if it goes to a second worker now.
        behind: What was behind it, back in line and not charged; oldest first.
        given_up: The head, if it had its second chance.
    """

    resubmitted: int | None
    behind: tuple[int, ...]
    given_up: int | None


@dataclass(slots=True)
class _Pipe:
    """What one worker has been sent and has not answered: calls, and what it shares. Oldest first."""

    tickets: deque[int] = field(default_factory=deque)
    calls: int = 0
    head_since: float = 0.0


class CallBook:
    """The calls of one bulkhead; a ticket names each, and whatever else a worker answers to."""

    def __init__(self, *, in_flight: int) -> None:
        self._in_flight = in_flight
        self._waiting: deque[int] = deque()
        self._pipes: dict[int, _Pipe] = {}
        self._losses: dict[int, int] = {}  # of every call that has not ended

    @property
    def waiting(self) -> int:
        """How many calls no worker has."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """How many calls, not abandoned, a worker has."""
        return len(self._losses) - len(self._waiting)

    def submit(self, ticket: int) -> None:
        """A call, last in line."""
        self._losses[ticket] = 0
        self._waiting.append(ticket)

    def abandon(self, ticket: int) -> None:
        """Nobody waits for it any more. If a worker has it, its place is free when it is answered."""
        if self._losses.pop(ticket, None) is not None and ticket in self._waiting:
            self._waiting.remove(ticket)

    def join(self, worker: int) -> None:
        """A worker is ready."""
        self._pipes[worker] = _Pipe()

    def share(self, worker: int, ticket: int, now: float) -> None:
        """A worker is sent something else that it answers to: behind its calls, taking no place of theirs."""
        self._put(self._pipes[worker], ticket, now)

    def assign(self, now: float) -> Iterator[Assignment]:
        """Who is sent what, as far as there are places: first come first served, the least busy worker first."""
        while self._waiting:
            free = [(pipe.calls, worker) for worker, pipe in self._pipes.items() if pipe.calls < self._in_flight]
            if not free:
                return
            _, worker = min(free)
            ticket = self._waiting.popleft()
            pipe = self._pipes[worker]
            pipe.calls += 1
            self._put(pipe, ticket, now)
            yield Assignment(worker, ticket)

    def answered(self, worker: int, ticket: int, now: float, *, shared: bool = False) -> bool:
        """The worker has answered; whether it was a call that somebody waits for. Raises ``Malformed`` if out of turn."""
        pipe = self._pipes[worker]
        if not pipe.tickets or pipe.tickets[0] != ticket:
            raise Malformed(
                f"expected an answer to {pipe.tickets[0] if pipe.tickets else 'nothing'}, got one to {ticket}"
            )
        pipe.tickets.popleft()
        pipe.calls -= not shared
        pipe.head_since = now
        return self._losses.pop(ticket, None) is not None

    def lose(self, worker: int) -> Loss:
        """The worker is gone; those of its calls that are not given up are first in line."""
        pipe = self._pipes.pop(worker, _Pipe())
        tickets = [ticket for ticket in pipe.tickets if ticket in self._losses]
        head = tickets[0] if tickets and tickets[0] == pipe.tickets[0] else None
        given_up = None
        if head is not None:
            self._losses[head] += 1
            if self._losses[head] > _LOSSES_ADMITTED:
                given_up = head
                del self._losses[head]
        behind = tuple(ticket for ticket in tickets if ticket != head)
        resubmitted = head if given_up is None else None
        self._waiting.extendleft(reversed(behind if resubmitted is None else (resubmitted, *behind)))
        return Loss(resubmitted, behind, given_up)

    def overdue(self, now: float, limit_s: float) -> tuple[int, ...]:
        """The workers whose heads have been worked on for ``limit_s`` or longer."""
        return tuple(w for w, pipe in self._pipes.items() if pipe.tickets and now - pipe.head_since >= limit_s)

    def look_again_at(self, limit_s: float) -> float | None:
        """When the next one may be overdue; ``None`` while no worker has anything to do."""
        return min((pipe.head_since + limit_s for pipe in self._pipes.values() if pipe.tickets), default=None)

    def _put(self, pipe: _Pipe, ticket: int, now: float) -> None:
        if not pipe.tickets:
            pipe.head_since = now
        pipe.tickets.append(ticket)


class RebuildBudget:
    """Whether a lost worker is replaced, and after how long: one budget for all workers of a bulkhead."""

    def __init__(self, policy: RestartPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._charged: tuple[float, ...] = ()
        self._row = 0

    def next_delay_s(self, now: float, uptime_s: float) -> float | None:
        """Seconds to wait before its successor is launched; ``None`` if the budget is used up.

        ``uptime_s`` is how long the lost one had been ready, seconds.
        """
        delay_s, row = 0.0, 0
        if (backoff := self._policy.backoff) is not None:
            row = 1 if uptime_s >= backoff.healthy_after.total_seconds() else self._row + 1
            delay_s = backoff.delay_s(row, self._rng)
        admitted, self._charged = admit(self._policy, self._charged, now, begins_at=now + delay_s)
        if not admitted:
            return None
        self._row = row
        return delay_s
