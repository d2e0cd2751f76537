"""What Python's garbage collector looks through."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_is_ours = False
"""Whether an ``frozen_heap()`` is under way."""


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Within this context only what is made there is looked through, and not what was there before.

    A full collection goes through every object of the process and holds the interpreter meanwhile, whichever thread it comes
    up on: 50 to 400 ms for the 120,000 objects of Prefect's modules, or for a test runner's. Contexts may be nested; the
    outermost counts.
    """
    global _is_ours  # noqa: PLW0603 - the collector is one to a process, too
    if _is_ours or gc.get_freeze_count():  # the second goes through all that is frozen, to count it: milliseconds
        yield
        return
    gc.collect()
    gc.freeze()
    _is_ours = True
    try:
        yield
    finally:
        _is_ours = False
        gc.unfreeze()


def freeze_heap() -> None:
    """Within ``frozen_heap()``, what has been made by now is not looked through either; elsewhere nothing happens.

    For what is loaded once and kept: it costs one collection now, and each later one is spared it. It is still freed when
    nobody refers to it, unless it is in a cycle.
    """
    if gc.get_freeze_count():
        gc.collect()
        gc.freeze()
