"""``FlowPolicy``: what happens to the items of an edge that is full, or whose reader is late. Values only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias, assert_never

Since: TypeAlias = Literal["edge", "ingest"] | Callable[[Any], int]
"""From when an item's age counts: its arrival at the edge; its attribute ``ingest_timestamp``; or what a function returns.

Attribute and function give UTC nanoseconds since the Unix epoch.
"""

DEFAULT_SPILL_BYTES = 1 << 30


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
class Spill:
    """Write what does not fit to a bounded file; once that is full, do as ``when_full`` says."""

    folder: Path
    max_bytes: int
    when_full: Backpressure | Shed


@dataclass(frozen=True, slots=True)
class FlowPolicy:
    """What an edge does with items that its reader does not take in time. No drop is silent: each one is counted, per edge.

    Make one with ``backpressure()``, ``shed()``, ``timed(...)`` or ``spill(...)``. Each branch of a fan-out has its own:
    the fan-out waits for a branch only as long as that branch's policy makes its writer wait.
    """

    when_full: Backpressure | Shed | Timed | Spill

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

    @classmethod
    def spill(
        cls,
        folder: Path | str,
        *,
        max_bytes: int = DEFAULT_SPILL_BYTES,
        when_full: Literal["backpressure", "shed"] = "backpressure",
    ) -> FlowPolicy:
        """Write what does not fit to files in ``folder``, in order, and deliver it as the reader makes room.

        The writer never waits, until the files have ``max_bytes`` or cannot be written (a full disk, an item that cannot be
        pickled): then ``when_full`` says what happens to what does not fit. Items are pickled, so a spilled item is
        delivered as a copy. The files are read and written on the event loop, in batches: use a local disk. What is not
        delivered when the reader ends for good counts as undelivered and stays there (``spilled_items`` reads it). Two runs
        cannot use one folder at the same time.
        """
        if max_bytes < 1:
            raise ValueError(f"FlowPolicy.spill: max_bytes must be >= 1, got {max_bytes}")
        if when_full not in ("backpressure", "shed"):
            raise ValueError(f"FlowPolicy.spill: when_full must be 'backpressure' or 'shed', got {when_full!r}")
        return cls(Spill(Path(folder), max_bytes, Shed() if when_full == "shed" else Backpressure()))

    @property
    def name(self) -> str:
        """``backpressure``, ``shed``, ``timed`` or ``spill``, as metrics label it."""
        return type(self.when_full).__name__.lower()

    def __str__(self) -> str:
        match self.when_full:
            case Timed(deadline, dead_letter, since):
                age = f"timed {deadline.total_seconds():g} s{'' if since == 'edge' else ' since ingest'}"
                return f"{age}, then {'dead-letter' if dead_letter else 'shed'}"
            case Spill(folder, max_bytes, when_full):
                return f"spill to {folder}, at most {_size(max_bytes)}, then {type(when_full).__name__.lower()}"
            case Backpressure() | Shed():
                return self.name
            case _:
                assert_never(self.when_full)


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
