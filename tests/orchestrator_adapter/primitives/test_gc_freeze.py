from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from orchestrator_adapter import frozen_heap

_HOLDS = """
import gc
from orchestrator_adapter import frozen_heap

def full_collections():
    before, held = gc.get_stats()[2]["collections"], []
    for n in range(500_000):
        held.append([n])
    return gc.get_stats()[2]["collections"] - before

before = gc.get_threshold()
with frozen_heap():
    within = full_collections()
    cycle = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() == 1  # a cycle is still found
assert gc.get_threshold() == before
print(within, full_collections())
"""


def test_records_that_a_stream_holds_are_not_examined_again_and_again() -> None:
    """Half a million, held: Python's own thresholds examine all of them several times. In a process without other objects."""
    found = subprocess.run([sys.executable, "-c", _HOLDS], check=True, capture_output=True, text=True)  # ours
    within, outside = map(int, found.stdout.split())
    assert within == 0
    assert outside >= 3


@pytest.mark.parametrize("own", [(700, 10, 10), (0, 10, 10), (200_000, 50, 1_000)])
def test_thresholds_are_raised_and_are_as_before_after_an_error(own: tuple[int, int, int]) -> None:
    """Thresholds that are higher already stay, and so does 0, which disables the collector."""
    within = []

    @frozen_heap()
    def fails() -> None:
        within.append(gc.get_threshold())
        with frozen_heap():
            within.append(gc.get_threshold())
        within.append(gc.get_threshold())
        raise LookupError

    before = gc.get_threshold()
    gc.set_threshold(*own)
    try:
        with pytest.raises(LookupError):
            fails()
        assert gc.get_threshold() == own
    finally:
        gc.set_threshold(*before)
    assert within == [(5_000, 10, 500) if own[0] == 700 else own] * 3
