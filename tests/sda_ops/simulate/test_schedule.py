"""When a sensor measures: rate, bursts, outages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.simulate.faults import Schedule, Window

START_NS = 1_790_000_000_000_000_000
SECOND_NS = 10**9


def times_ns(schedule: Schedule, seconds: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    at_ns, end_ns = START_NS, START_NS + seconds * SECOND_NS
    blocks = []
    while at_ns < end_ns:
        at_ns, block = schedule.block(at_ns, end_ns)
        blocks.append(block)
    return np.concatenate(blocks)


@given(st.floats(0.1, 20_000.0), st.floats(0.0, 0.999))
def test_a_schedule_keeps_its_rate(rate_hz: float, phase: float) -> None:
    """In three seconds the number of times is three times the rate, within one; all are in order and within the seconds."""
    times = times_ns(Schedule(rate_hz=rate_hz, phase=phase), 3)
    assert abs(times.size - 3 * rate_hz) <= 1.0
    assert np.all(np.diff(times) > 0)
    assert np.all((times >= START_NS) & (times < START_NS + 3 * SECOND_NS))


def test_times_are_evenly_spread() -> None:
    """At 250 Hz consecutive times are 4 ms apart, also from block to block."""
    gaps = np.diff(times_ns(Schedule(rate_hz=250.0, phase=0.3), 2))
    np.testing.assert_allclose(gaps, 4_000_000, atol=2)


def test_a_burst_multiplies_the_rate_in_its_window_only() -> None:
    """With ten times the rate in the last second of every three, the counts are 100, 100, 1000."""
    burst = Window(START_NS, SECOND_NS, 3 * SECOND_NS)
    times = times_ns(Schedule(rate_hz=100.0, phase=0.0, burst=burst, burst_factor=10.0), 6)
    counts = np.bincount((times - START_NS) // SECOND_NS)
    np.testing.assert_allclose(counts, [100, 100, 1000, 100, 100, 1000], atol=1)


def test_nothing_is_measured_in_an_outage() -> None:
    """Here in the last second of every two."""
    outage = Window(START_NS, SECOND_NS, 2 * SECOND_NS)
    times = times_ns(Schedule(rate_hz=100.0, phase=0.0, outage=outage), 4)
    counts = np.bincount((times - START_NS) // SECOND_NS, minlength=4)
    np.testing.assert_allclose(counts, [100, 0, 100, 0], atol=1)


@given(st.integers(1, 99), st.integers(0, 10_000))
def test_a_window_changes_exactly_at_its_next_change(length: int, after: int) -> None:
    """From one change to the next it is either open or closed."""
    window = Window(START_NS, length, 100)
    at = START_NS + after
    change = window.next_change_ns(at)
    assert change > at
    assert {window.contains(time) for time in range(at, change)} == {window.contains(at)}
    assert window.contains(change) != window.contains(at)
