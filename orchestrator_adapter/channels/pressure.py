"""``Pressure``: for how long an edge has had more items than its reader takes."""

from __future__ import annotations

from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.stopwatch import Stopwatch


class Pressure(Stopwatch):
    """One edge's. Its causes: its writer waits (``start`` and ``stop``), it has dropped items, it has items on disk.

    Attributes:
        drops: It has dropped items since the last acknowledgement.
        spills: It has items on disk.
    """

    __slots__ = ("drops", "spills")

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.drops = False
        self.spills = False

    def dropped(self) -> None:
        """The edge has dropped items."""
        if not self.drops:
            self.drops = True
            self.start()

    def acknowledged(self) -> None:
        """The reader has acknowledged items, or has ended."""
        if self.drops:
            self.drops = False
            self.stop()

    def on_disk(self, items: int) -> None:
        """The edge has so many items on disk."""
        if self.spills != (items > 0):
            self.spills = not self.spills
            if self.spills:
                self.start()
            else:
                self.stop()
