"""``Stopwatch``: the union of the times of its causes."""

from __future__ import annotations

import pytest

from orchestrator_adapter.primitives.stopwatch import Stopwatch
from orchestrator_adapter.testing import ManualClock


def test_time_is_counted_only_while_a_cause_holds() -> None:
    """One second of three, and then two more."""
    clock = ManualClock()
    stopwatch = Stopwatch(clock)
    clock.advance(1)
    with stopwatch:
        clock.advance(1)
    clock.advance(1)
    assert stopwatch.reading_s == 1
    with stopwatch:
        clock.advance(2)
    assert stopwatch.reading_s == 3


def test_a_reading_has_the_present_time() -> None:
    """It need not be stopped to be read."""
    clock = ManualClock()
    stopwatch = Stopwatch(clock)
    stopwatch.start()
    clock.advance(4)
    assert stopwatch.reading_s == 4
    clock.advance(1)
    stopwatch.stop()
    assert stopwatch.reading_s == 5


def test_time_in_which_two_causes_hold_is_counted_once() -> None:
    """0 to 2 and 1 to 4 are four seconds, in any order of their ends."""
    clock = ManualClock()
    stopwatch = Stopwatch(clock)
    stopwatch.start()
    clock.advance(1)
    stopwatch.start()
    clock.advance(1)
    stopwatch.stop()
    clock.advance(2)
    stopwatch.stop()
    clock.advance(10)
    assert stopwatch.reading_s == 4


def test_a_cause_ends_when_its_block_raises() -> None:
    """A cancelled wait does not count on."""
    clock = ManualClock()
    stopwatch = Stopwatch(clock)

    def fail() -> None:
        with stopwatch:
            clock.advance(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.advance(1)
    assert stopwatch.reading_s == 1
