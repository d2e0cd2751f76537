"""Combiners: how a fan-in makes one stream of control items out of those of its inputs. Pure; ``merge`` carries them out.

A combiner examines the *head* of every input: the control item that comes next, that the input has ended, or neither. It says
which heads to take and what to send. A head that it does not take holds its input: nothing behind it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from orchestrator_adapter.channels.control import Control


@dataclass(frozen=True, slots=True)
class InputEnded:
    """The input has ended, and everything in it was read."""


Head: TypeAlias = Control | InputEnded | None
"""What comes next in an input; ``None`` for data, for nothing yet, and for a control item of another kind."""


@dataclass(frozen=True, slots=True)
class Combined:
    """What a combiner decides.

    Attributes:
        state: For its next call.
        take: The indices of the inputs whose heads are taken.
        send: What the fan-in sends.
    """

    state: Any
    take: frozenset[int] = frozenset()
    send: tuple[Control, ...] = ()


class Combiner(Protocol):
    """For one kind of control item. Its state is an immutable value, which outlives the instances of the fan-in."""

    def combine(self, state: Any, heads: Sequence[Head]) -> Combined:
        """Decide. ``state`` is ``None`` at first. Called again until it takes and sends nothing, and when a head changes."""


@dataclass(frozen=True, slots=True)
class _Marks:
    latest: tuple[Control | None, ...]
    sent: Control | None = None  # the last one that was not idle
    idle: bool = False


@dataclass(frozen=True, slots=True)
class LeastOfInputs:
    """For watermarks: sends the least of the inputs' latest control items, and only when that advances.

    Nothing is sent before every input has had one. An input that has ended leaves the minimum; when all have, the greatest of
    their last ones is sent, so that the result does not depend on which of them ended last. An input also leaves the minimum when its
    latest one is idle (its ``key`` is ``None``), until its next one; when all are idle, the idle one is sent. Afterwards the
    first one that is sent may repeat the last one, which ends the idleness downstream, and is never less. Of one input, a
    control item that is less than its latest one is taken and ignored.

    Attributes:
        key: By what control items are compared: a time, for example. ``None`` for an idle one.
    """

    key: Callable[[Any], Any]

    def combine(self, state: Any, heads: Sequence[Head]) -> Combined:
        """See ``Combiner.combine``."""
        before: _Marks = state or _Marks((None,) * len(heads))
        latest = tuple(map(self._later, before.latest, heads))
        marks = replace(before, latest=latest)
        take = frozenset(at for at, head in enumerate(heads) if isinstance(head, Control))
        going_on = [mark for mark, head in zip(latest, heads, strict=True) if not isinstance(head, InputEnded)]
        if None in going_on:
            return Combined(marks, take)
        live = [mark for mark in going_on or latest if mark is not None and self.key(mark) is not None]
        if live:
            least = min(live, key=self.key) if going_on else max(live, key=self.key)
            if before.sent is None or self.key(least) > self.key(before.sent):
                return Combined(replace(marks, sent=least, idle=False), take, (least,))
            if before.idle and going_on:
                return Combined(replace(marks, idle=False), take, (before.sent,))
        elif going_on and not before.idle:
            idle = tuple(mark for mark in going_on[:1] if mark is not None)
            return Combined(replace(marks, idle=True), take, idle)
        return Combined(marks, take)

    def _later(self, latest: Control | None, head: Head) -> Control | None:
        if not isinstance(head, Control):
            return latest
        before = None if latest is None else self.key(latest)
        now = self.key(head)
        return latest if before is not None and now is not None and now < before else head


@dataclass(frozen=True, slots=True)
class Aligned:
    """For checkpoint barriers: sends one when it has come in every input that has not ended, and holds the inputs until then.

    What is in front of it in any input is sent before it, and what is behind it in any input after it. An input without
    data must send its barriers too: one that sends none holds the others for ever. If an input has skipped a barrier (its
    next one has a greater key), it does not wait for it.

    Attributes:
        key: The number of a barrier. In each input the numbers ascend.
        join: Makes the barrier that is sent out of those that were taken, for example to unite the positions of the
            sources. By default it is the first one.
    """

    key: Callable[[Any], Any]
    join: Callable[[Sequence[Any]], Control] = field(default=lambda barriers: barriers[0])

    def combine(self, state: Any, heads: Sequence[Head]) -> Combined:
        """See ``Combiner.combine``."""
        barriers = {at: head for at, head in enumerate(heads) if isinstance(head, Control)}
        if not barriers or None in heads:
            return Combined(state)
        least = min(self.key(barrier) for barrier in barriers.values())
        taken = {at: barrier for at, barrier in barriers.items() if self.key(barrier) == least}
        return Combined(state, frozenset(taken), (self.join(list(taken.values())),))
