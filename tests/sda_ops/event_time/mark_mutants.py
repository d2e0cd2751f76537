"""The promises and their wrapper, broken on purpose, one at a time. The schedules must detect every mutant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from orchestrator_adapter import Combined, LeastOfInputs, WiredEnds
from sda_ops.event_time import source as source_module
from sda_ops.event_time.promises import PromiseRules, SourcePromises

Mutant = Callable[[], AbstractContextManager[object]]


@contextmanager
def _rule_off_by(field: str, by: int) -> Iterator[None]:
    sound = PromiseRules.__post_init__

    def broken(self: PromiseRules) -> None:
        sound(self)
        object.__setattr__(self, field, getattr(self, field) + by)

    with patch.object(PromiseRules, "__post_init__", broken):
        yield


def contact_is_one_nanosecond_early() -> AbstractContextManager[None]:
    """A contact promises one nanosecond too much."""
    return _rule_off_by("before_contact_ns", -1)


def data_are_one_nanosecond_early() -> AbstractContextManager[None]:
    """Data promise one nanosecond too much."""
    return _rule_off_by("before_data_ns", -1)


def every_clock_is_trusted() -> AbstractContextManager[None]:
    """A timestamp that is a year ahead moves the mark."""
    return _rule_off_by("trusted_ahead_ns", 10**18)


@contextmanager
def mark_overtakes_items() -> Iterator[None]:
    """The mark is sent in front of the items that it speaks of."""

    def broken(self: Any, items: Sequence[Any]) -> None:
        self._marks.emitted(items)
        self._ends.ingest(items)

    with patch.object(source_module._ObservedEnds, "ingest", broken):
        yield


@contextmanager
def restart_forgets_the_mark() -> Iterator[None]:
    """Each instance begins without a promise."""
    sound = WiredEnds.keep

    def broken(self: WiredEnds, name: str, make: Any, close: Any = None) -> Any:
        return make() if name == "event time" else sound(self, name, make, close)

    with patch.object(WiredEnds, "keep", broken):
        yield


@contextmanager
def contact_may_go_back() -> Iterator[None]:
    """The promise is that of the last contact, and every promise is sent."""

    def promise(self: SourcePromises, at_ns: int) -> None:
        self.promised_ns = at_ns
        self._contact_ns = None
        self._sent_ns = None

    with patch.object(SourcePromises, "_promise", promise):
        yield


@contextmanager
def never_idle() -> Iterator[None]:
    """A dead source is waited for without end."""
    with patch.object(SourcePromises, "is_missing", property(lambda _: False)):
        yield


@contextmanager
def waiting_for_space_is_silence() -> Iterator[None]:
    """A source that waits for space becomes idle."""
    sound = SourcePromises.tick

    def broken(self: SourcePromises, *, now_s: float, waiting: bool = False) -> None:
        sound(self, now_s=now_s)

    with patch.object(SourcePromises, "tick", broken):
        yield


@contextmanager
def idle_source_has_no_way_back() -> Iterator[None]:
    """A source that returns is not waited for again."""
    sound = SourcePromises.due

    def broken(self: SourcePromises, *, now_s: float) -> Any:
        return None if self._idle else sound(self, now_s=now_s)

    with patch.object(SourcePromises, "due", broken):
        yield


@contextmanager
def one_mark_is_enough() -> Iterator[None]:
    """The fan-in sends the greatest of its inputs' marks."""
    with patch.object(LeastOfInputs, "combine", _greatest):
        yield


def _greatest(self: LeastOfInputs, state: Any, heads: Sequence[Any]) -> Any:
    taken = {at: head for at, head in enumerate(heads) if hasattr(head, "time_ns")}
    live = [head for head in taken.values() if head.time_ns is not None and (state is None or head.time_ns > state)]
    best = max(live, key=self.key, default=None)
    return Combined(state if best is None else best.time_ns, frozenset(taken), () if best is None else (best,))


MUTANTS: Mapping[str, Mutant] = {
    mutant.__name__.replace("_", "-"): mutant
    for mutant in (
        contact_is_one_nanosecond_early,
        data_are_one_nanosecond_early,
        every_clock_is_trusted,
        mark_overtakes_items,
        restart_forgets_the_mark,
        contact_may_go_back,
        never_idle,
        waiting_for_space_is_silence,
        idle_source_has_no_way_back,
        one_mark_is_enough,
    )
}
