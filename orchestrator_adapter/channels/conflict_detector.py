"""``ConflictDetector``: rejects a second task that uses a resource while a first one waits on it (after trio's)."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator_adapter.primitives.errors import EdgeMisuse


class ConflictDetector:
    """Guards one end of an edge. Enter it to wait; call ``check`` before a step that does not wait.

    A task that uses the end after another one has stopped waiting is no conflict, so ``asyncio.wait_for``, which reads in
    a task of its own on Python 3.11, works.
    """

    __slots__ = ("_end", "_user")

    def __init__(self, end: str) -> None:
        self._end = end
        self._user: asyncio.Task[Any] | None = None

    def check(self) -> None:
        """Raise ``EdgeMisuse`` while another task waits on this end."""
        if self._user is not None:
            second = asyncio.current_task()
            raise EdgeMisuse(
                f"{self._end} is used by task {self._user.get_name()!r}, and at the same time by "
                f"{second.get_name() if second is not None else None!r}: every end of an edge has exactly one user"
            )

    def __enter__(self) -> None:
        self.check()
        self._user = asyncio.current_task()

    def __exit__(self, *_: object) -> None:
        self._user = None
