"""``FlowPolicy``: what happens to the items of an edge that is full, or whose reader is late. Values only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias, assert_never

Since: TypeAlias = Literal["edge", "ingest"] | Callable[[Any], int]
"""From when an item's age counts: its arrival at the edge; its attribute ``ingest_timestamp``; or what a function returns.

Attribute and function give UTC nanoseconds since the Unix epoch.
"""


@dataclass(frozen=True, slots=True)
class Backpressure:
    """Suspend the writer until there is room."""


@dataclass(frozen=True, slots=True)
class Shed:
    """Drop what does not fit."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Bound the age of each item that waits at the edge: an older one is dead-lettered, or shed."""

    deadline: timedelta
    dead_letter: bool
    since: Since


@dataclass(frozen=True, slots=True)
class FlowPolicy:
    """What an edge does with items that its reader does not take in time. No drop is silent: each one is counted, per edge.

    Make one with ``backpressure()``, ``shed()`` or ``timed(...)``. Each branch of a fan-out has its own:
    the fan-out waits for a branch only as long as that branch's policy makes its writer wait.
    """

    when_full: Backpressure | Shed | Timed

    @classmethod
    def backpressure(cls) -> FlowPolicy:
        """Suspend until there is room. The default: pressure travels back to the sources.

        A fan-out with such a branch waits for it, and its other branches wait too.
        """
        return cls(Backpressure())

    @classmethod
    def shed(cls) -> FlowPolicy:
        """Drop what does not fit, counted as ``shed``. Never makes its writer wait."""
        return cls(Shed())

    @classmethod
    def timed(cls, deadline: timedelta, *, dead_letter: bool = True, since: Since = "edge") -> FlowPolicy:
        """Bound the age of each item: no item is delivered, for the first time or again, at the age of ``deadline`` or more.

        Such an item is dead-lettered (or shed). The age counts from the item's arrival at this edge, or with
        ``since="ingest"`` from its ``ingest_timestamp`` (UTC nanoseconds; or pass a function that returns it). Leased items
        never expire. Ages are examined when the reader takes items, and when the edge is full: then the writer waits until
        the reader makes room or the oldest item that is not leased expires.

        Items that wait for their deadline are in the edge. With a capacity of at least rate times deadline, plus one batch
        of the reader, they always fit, and the writer never waits: give a branch of a fan-out such a capacity.
        """
        if deadline <= timedelta(0):
            raise ValueError(f"FlowPolicy.timed: deadline must be > 0, got {deadline}")
        if not callable(since) and since not in ("edge", "ingest"):
            raise ValueError(f"FlowPolicy.timed: since must be 'edge', 'ingest' or a function, got {since!r}")
        return cls(Timed(deadline, dead_letter, since))

    @property
    def name(self) -> str:
        """``backpressure``, ``shed`` or ``timed``, as metrics label it."""
        return type(self.when_full).__name__.lower()

    def __str__(self) -> str:
        match self.when_full:
            case Timed(deadline, dead_letter, since):
                age = f"timed {deadline.total_seconds():g} s{'' if since == 'edge' else ' since ingest'}"
                return f"{age}, then {'dead-letter' if dead_letter else 'shed'}"
            case Backpressure() | Shed():
                return self.name
            case _:
                assert_never(self.when_full)
