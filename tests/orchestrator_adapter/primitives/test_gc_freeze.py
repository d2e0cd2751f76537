from __future__ import annotations

import subprocess
import sys

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
