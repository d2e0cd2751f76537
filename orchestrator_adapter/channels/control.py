"""``Control``: the base class of items that are not data, such as a watermark, a checkpoint barrier or a canary.

Control items travel in the same edges as data, in their place in the order, and are treated differently everywhere:

- No ready-made operator shows one to a function of the user. It forwards it after the outputs of the items before it; a
  fan-out copies it to every output, a fan-in forwards or combines it (``merge(combine=...)``), a sink acknowledges it.
- No flow policy sheds or dead-letters one, and it is never taken for a poison pill.
- It is no item in any figure: occupancy, capacity, throughput, latency and the ledger's terms count data only. The ledger
  counts control items apart, as *signals* (see ``ledger.SignalsSnapshot``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Control:
    """A control item. Subclass it as a frozen dataclass: one object may be in several edges at the same time.

    ::

        @dataclass(frozen=True, slots=True)
        class Watermark(Control):
            at_ns: int
    """


def runs(items: Sequence[Any]) -> Iterator[Control | Sequence[Any]]:
    """``items`` in order, as sequences of data and single control items between them.

    Costs one truth test as long as no kind of control item is defined in the process.
    """
    if not Control.__subclasses__() or not any(issubclass(kind, Control) for kind in set(map(type, items))):
        yield items
        return
    start = 0
    for at, item in enumerate(items):
        if isinstance(item, Control):
            if start < at:
                yield items[start:at]
            yield item
            start = at + 1
    if start < len(items):
        yield items[start:]
