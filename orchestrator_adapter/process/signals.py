"""SIGTERM and SIGINT as a request to stop. Knows nothing of graphs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals(request: Callable[[str], object]) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT call ``request`` with their names. On exit the previous handlers are installed again.

    Does nothing outside the main thread, where Python cannot handle signals.
    """
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
    for number in _SIGNALS:
        previous = signal.getsignal(number)
        try:
            loop.add_signal_handler(number, request, number.name)
        except (ValueError, RuntimeError):
            break  # not the main thread: the caller has to call `request` itself
        before[number] = previous
    try:
        yield
    finally:
        for number, previous in before.items():
            loop.remove_signal_handler(number)
            if previous is not None:
                signal.signal(number, previous)
