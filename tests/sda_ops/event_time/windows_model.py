"""The definition of windows, written the slow way: after each step, all accepted items are sorted and segmented anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from random import Random
from typing import Any, NamedTuple, TypeAlias

from sda_ops.event_time.changes import Added, Change, Insert, Late
from sda_ops.event_time.segmentation import Segmentation, Session, Sliding, Tumbling
from sda_ops.event_time.windows import EventTimeWindows


class Item(NamedTuple):
    """An event of a test: its id and its time."""

    time_ns: int
    name: str


def windows_of(segmentation: Segmentation, **options: Any) -> EventTimeWindows[str, Item]:
    """The windows of these items, with slices of a length near that of the windows."""
    options = {"slice_ns": 4} | options
    return EventTimeWindows(segmentation, time_of=attrgetter("time_ns"), order=attrgetter("name"), **options)


class ModelWindow(NamedTuple):
    start_ns: int
    end_ns: int
    items: tuple[Item, ...]


def segment(items: Iterable[Item], segmentation: Segmentation) -> list[ModelWindow]:
    """The windows of all these items of one key, in ascending order."""
    ordered = sorted(set(items))
    windows: list[ModelWindow] = []
    match segmentation:
        case Tumbling(size_ns=size):
            for number in sorted({item.time_ns // size for item in ordered}):
                start, end = number * size, (number + 1) * size
                windows.append(ModelWindow(start, end, tuple(i for i in ordered if start <= i.time_ns < end)))
        case Sliding(width_ns=width):
            for event in sorted({item.time_ns for item in ordered}):
                start = event - width
                windows.append(ModelWindow(start, event + 1, tuple(i for i in ordered if start <= i.time_ns <= event)))
        case Session(gap_ns=gap, longest_ns=longest):
            current: list[Item] = []
            for item in [*ordered, None]:
                if current and (
                    item is None
                    or item.time_ns - current[-1].time_ns >= gap
                    or item.time_ns - current[0].time_ns >= longest
                ):
                    end = min(current[-1].time_ns + gap, current[0].time_ns + longest)
                    windows.append(ModelWindow(current[0].time_ns, end, tuple(current)))
                    current = []
                if item is not None:
                    current.append(item)
    return windows


@dataclass
class Model:
    """What one key's windows are, by the definition. ``released_ns`` is never forgotten."""

    segmentation: Segmentation
    allowed_ns: int
    mark_ns: int = -(10**30)
    released_ns: int = -(10**30)
    accepted: list[Item] = field(default_factory=list)
    late: list[Item] = field(default_factory=list)
    duplicates: int = 0

    def add(self, item: Item) -> None:
        if item in self.accepted and item.time_ns >= self.released_ns:
            self.duplicates += 1
            return
        own = next(w for w in segment([*self.accepted, item], self.segmentation) if own_of(w, item, self.segmentation))
        if item.time_ns < self.released_ns or own.end_ns + self.allowed_ns <= self.mark_ns:
            self.late.append(item)
        else:
            self.accepted.append(item)

    def advance(self, mark_ns: int) -> None:
        self.mark_ns = max(self.mark_ns, mark_ns)
        for window in segment(self.accepted, self.segmentation):
            if window.end_ns + self.allowed_ns <= self.mark_ns:
                self.released_ns = max(self.released_ns, window.end_ns)

    def closed(self) -> set[ModelWindow]:
        """The windows that are closed, and not retracted."""
        return {w for w in segment(self.accepted, self.segmentation) if w.end_ns <= self.mark_ns}


def own_of(window: ModelWindow, item: Item, segmentation: Segmentation) -> bool:
    """Whether this is the item's own window: for sliding windows the one of its event time."""
    return item in window.items and (not isinstance(segmentation, Sliding) or window.end_ns == item.time_ns + 1)


def effective(changes: Sequence[Change[str, Item]]) -> set[tuple[str, ModelWindow]]:
    """The inserted windows without the retracted ones. A retraction wins in any order: a set difference."""
    identities: dict[type, set[tuple[str, ModelWindow, int]]] = {Insert: set(), object: set()}
    for each in changes:
        kind = Insert if isinstance(each, Insert) else object
        identity = (each.key, ModelWindow(each.start_ns, each.end_ns, each.items), each.edition)
        assert identity not in identities[kind], f"{identity} came twice"
        identities[kind].add(identity)
    retracted = identities[object]
    assert retracted <= identities[Insert], "a retraction without its insertion"
    left = [(key, window) for key, window, _ in identities[Insert] - retracted]
    assert len(left) == len(set(left))
    return set(left)


Step: TypeAlias = tuple[str, Item] | int
"""An item of a key, or a watermark."""


def check_against_the_definition(
    segmentation: Segmentation, allowed_ns: int, steps: Sequence[Step], *, slice_ns: int
) -> None:
    """After every step the effective windows are those of the definition. Raises ``AssertionError``."""
    windows = windows_of(segmentation, allowed_lateness_ns=allowed_ns, slice_ns=slice_ns)
    models = {key: Model(segmentation, allowed_ns) for key in "AB"}
    changes: list[Change[str, Item]] = []
    for step in steps:
        if isinstance(step, int):
            changes += windows.advance(step)
            for model in models.values():
                model.advance(step)
        else:
            key, item = step
            late = len(models[key].late)
            models[key].add(item)
            match windows.add(key, item):
                case Added(changes=more):
                    changes += more
                    assert len(models[key].late) == late
                case Late():
                    assert len(models[key].late) == late + 1
        closed = {(key, window) for key, model in models.items() for window in model.closed()}
        assert effective(changes) == closed
    assert windows.late == sum(len(model.late) for model in models.values())
    changes += windows.close_all()
    for model in models.values():
        model.advance(10**30)
    assert effective(changes) == {(key, window) for key, model in models.items() for window in model.closed()}
    assert (windows.active, windows.retained, windows.held) == (0, 0, 0)
    assert windows.duplicates == sum(model.duplicates for model in models.values())


def random_case(rng: Random) -> tuple[Segmentation, int, list[Step]]:
    """A segmentation, an allowed lateness, and steps near the boundaries of windows."""
    gap = rng.randint(1, 6)
    segmentations: list[Segmentation] = [
        Tumbling(size_ns=rng.randint(1, 10)),
        Sliding(width_ns=rng.randint(0, 10)),
        Session(gap_ns=gap, longest_ns=rng.randint(gap, 4 * gap)),
    ]
    mark, steps = -20, list[Step]()
    for _ in range(rng.randrange(40)):
        if rng.random() < 0.3:
            mark += rng.randint(0, 8)
            steps.append(mark)
        else:
            steps.append((rng.choice("AB"), Item(mark + rng.randint(-15, 15), rng.choice("xyz"))))
    return rng.choice(segmentations), rng.randint(0, 12), steps
