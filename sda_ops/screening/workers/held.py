"""Positions of windows that a worker keeps between calls: bounded in bytes, the window that was used least recently goes first.

It knows nothing of what they are used for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from sda_ops.screening.geometry.changed import with_objects
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.geometry.screen import ScreeningOptions, held_positions


class _Span(NamedTuple):
    """What identifies positions, but for the element sets."""

    start_ns: int
    end_ns: int
    options: ScreeningOptions


class HeldPositions:
    """The positions of windows; of another catalogue than before, only new and changed element sets are propagated.

    Attributes:
        max_bytes: How much is kept. The last window is kept even if it is larger, unless this is 0.
        computed: How many windows were computed.
        updated: How many windows were computed in part, because some objects or element sets were others.
    """

    def __init__(self) -> None:
        self.max_bytes = 0
        self.computed = 0
        self.updated = 0
        self._held: OrderedDict[_Span, Ephemeris] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def of_window(self, prepared: PreparedObjects, start_ns: int, end_ns: int, options: ScreeningOptions) -> Ephemeris:
        """The positions of these objects in a window: kept ones, if possible."""
        span = _Span(start_ns, end_ns, options)
        ephemeris = self._held.pop(span, None)
        if ephemeris is None:
            ephemeris = held_positions(prepared, start_ns, end_ns, options)
            self.computed += 1
        elif ephemeris.prepared is not prepared:
            ephemeris, _ = with_objects(ephemeris, prepared)
            self.updated += 1
        if self.max_bytes:
            self._held[span] = ephemeris
        while len(self._held) > 1 and sum(map(_bytes_of, self._held.values())) > self.max_bytes:
            self._held.popitem(last=False)
        return ephemeris


def _bytes_of(ephemeris: Ephemeris) -> int:
    return sum(level.r_km.nbytes for level in ephemeris.levels)
