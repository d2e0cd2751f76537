"""Which objects Python's garbage collector examines."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (5_000, 10, 500)
"""See ``gc.set_threshold``. With Python's own, 700, 10 and 10, a stream that holds a million records is fully examined every few
seconds, for a second each time. With these a full collection comes after 25 million new objects. The young ones are examined in
10 ms."""

_is_ours = False
"""Whether a ``frozen_heap()`` is active."""


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Within this context the collector examines only new objects, and full collections are rare.

    A full collection examines every object of the process and blocks all threads while it runs: 50 to 400 ms for the
    120,000 objects of Prefect's modules, or of a test runner, and a second for a million records that operators hold. What is
    garbage in a cycle, and was in use for several young collections, stays until the next full one. The thresholds are raised, never
    lowered; a threshold of 0, which disables the collector, stays. At the end they are as before. Contexts may be nested; only the
    outermost has an effect.
    """
    global _is_ours  # noqa: PLW0603 - a process has one collector, too
    if _is_ours or gc.get_freeze_count():  # get_freeze_count takes milliseconds: it counts every frozen object
        yield
        return
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    if thresholds[0] > 0:
        gc.set_threshold(*map(max, thresholds, _THRESHOLDS))
    _is_ours = True
    try:
        yield
    finally:
        _is_ours = False
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def freeze_heap() -> None:
    """Within ``frozen_heap()``, the objects that exist now are not examined either. Elsewhere it does nothing.

    For data that is loaded once and kept: it costs one collection now, and later collections skip the data. Frozen objects
    are still freed when their last reference goes, unless they are part of a cycle.
    """
    if gc.get_freeze_count():
        gc.collect()
        gc.freeze()
