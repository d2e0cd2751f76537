"""Writes items that no operator can process any more to the dead-letter store, counts them and logs them.

Knows the store and the clock, and nothing of why operators end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator_adapter.channels.channel import Undeliverable
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.errors import LastError, describe, raised_at
from orchestrator_adapter.primitives.event_log import DecisionLog
from orchestrator_adapter.storage.dead_letter import DeadLetter, DeadLetterKind, DeadLetterStore
from orchestrator_adapter.storage.recent_dead_letters import RecentDeadLetters


@dataclass(slots=True)
class _Loss:
    """Items that the store did not accept, for one kind of failure: the first failure stands for all of them."""

    first: str
    items: int = 0
    failures: int = 0


class DeadLetterWriter:
    """The dead-letter writer of one graph.

    Attributes:
        undelivered: The number of items that were dead-lettered because no reader was left.
        recent: The last letters, those that the store did not accept included.
    """

    def __init__(self, log: DecisionLog, store: DeadLetterStore, clock: Clock) -> None:
        self.undelivered = 0
        self.recent = RecentDeadLetters()
        self._counts: dict[str, Counter[DeadLetterKind]] = {}
        self._last: dict[str, tuple[int, DeadLetterKind, str]] = {}
        self._lost: dict[tuple[str, DeadLetterKind, type[Exception], str], _Loss] = {}
        self._log = log
        self._store = store
        self._clock = clock

    def counts(self, operator: str) -> Mapping[DeadLetterKind, int]:
        """The number of dead-lettered items of ``operator``, by kind. Items that the store did not accept count as well.

        The sum over all operators is what the ledger has as dead-lettered or rejected.
        """
        return dict(self._counts.get(operator, {}))

    def last(self, operator: str) -> LastError | None:
        """The last dead letter of ``operator``."""
        last = self._last.get(operator)
        return None if last is None else LastError(last[0], str(last[1]), last[2])

    @property
    def problems(self) -> tuple[str, ...]:
        """What the store did not accept: one sentence for each kind of failure.

        A kind is the operator, the kind of the dead letters, and the type and place of the exception. Its text does not matter:
        it may differ each time, for example by the id of a request.
        """
        return tuple(
            f"{loss.items} items of {operator!r} could not be kept as dead letters: {loss.first}"
            + (f" (the first of {loss.failures} such failures)" if loss.failures > 1 else "")
            for (operator, *_), loss in self._lost.items()
        )

    def write(self, operator: str, items: Sequence[Undeliverable[Any]], kind: DeadLetterKind, message: str) -> None:
        """Log the items as one decision, and write them to the store."""
        if items:
            self._log(Decision.DEAD_LETTER, operator=operator, kind=str(kind), items=len(items), message=message)
            self.write_unlogged(operator, items, kind, message)

    def write_undelivered(self, operator: str, items: Sequence[Undeliverable[Any]], message: str) -> None:
        """As ``write``, for items that have no reader left."""
        self.undelivered += len(items)
        self.write(operator, items, DeadLetterKind.UNDELIVERED, message)

    def write_undelivered_files(self, operator: str, files: Sequence[tuple[Path, int]], message: str) -> None:
        """As ``write_undelivered``, for items that stay in files: one letter for each file, with its path and its items.

        The counts are those of the items.
        """
        for path, items in files:
            self._log(
                Decision.DEAD_LETTER,
                operator=operator,
                kind=str(DeadLetterKind.UNDELIVERED),
                items=items,
                message=message,
                file=str(path),
            )
            letter = Undeliverable({"spill_file": str(path), "items": items}, ())
            self.write_unlogged(operator, [letter], DeadLetterKind.UNDELIVERED, message, stands_for=items)
            self.undelivered += items

    def write_unlogged(
        self,
        operator: str,
        items: Sequence[Undeliverable[Any]],
        kind: DeadLetterKind,
        message: str,
        *,
        attempts: int | None = None,
        stands_for: int | None = None,
    ) -> None:
        """Write the items without a log line for them. If the store fails, that is a problem of the run, and does not end it.

        ``stands_for`` is how many items count, if they are more than the letters.
        """
        count = len(items) if stands_for is None else stands_for
        try:
            self.write_unlogged_or_raise(operator, items, kind, message, attempts=attempts, stands_for=stands_for)
        except Exception as error:  # noqa: BLE001 - a store is foreign code; its failure must not stop the runtime
            failure = (operator, kind, type(error), raised_at(error))
            if (loss := self._lost.get(failure)) is None:
                loss = self._lost[failure] = _Loss(describe(error))
                self._log(
                    Decision.DEAD_LETTERS_LOST,
                    operator=operator,
                    kind=str(kind),
                    items=count,
                    cause=loss.first,
                    raised_at=failure[3],
                )
            loss.items += count
            loss.failures += 1
            self._count(self._letters(operator, items, kind, message, attempts), count)

    def write_unlogged_or_raise(
        self,
        operator: str,
        items: Sequence[Undeliverable[Any]],
        kind: DeadLetterKind,
        message: str,
        *,
        attempts: int | None = None,
        stands_for: int | None = None,
    ) -> None:
        """As ``write_unlogged``, but raises what the store raises. ``attempts``: by default the length of an item's history."""
        letters = self._letters(operator, items, kind, message, attempts)
        self._store.append(letters)
        self._count(letters, len(items) if stands_for is None else stands_for)

    def _letters(
        self,
        operator: str,
        items: Sequence[Undeliverable[Any]],
        kind: DeadLetterKind,
        message: str,
        attempts: int | None,
    ) -> list[DeadLetter]:
        now_ns = self._clock.now_ns()
        return [
            DeadLetter(
                time_ns=now_ns,
                operator=operator,
                kind=kind,
                message=message,
                attempts=len(item.history) if attempts is None else attempts,
                payload=item.item,
                history=item.history,
            )
            for item in items
        ]

    def _count(self, letters: Sequence[DeadLetter], items: int) -> None:
        if letters:
            last = letters[-1]
            self._counts.setdefault(last.operator, Counter())[last.kind] += items
            self._last[last.operator] = (last.time_ns, last.kind, last.message)
            self.recent.add(letters)
