"""The time of ``build()``: 10 operators cold (in a new process, after imports) and warm; chains of 1,000 and 2,000 operators."""

from __future__ import annotations

import subprocess
import sys
import time

from orchestrator_adapter import OperatorGraph, map_items, source_of
from orchestrator_adapter.testing import CollectSink, chain

_COLD = "from bench.build import measured, ten; print(measured(ten()))"


def ten() -> OperatorGraph:
    """A source, eight operators and a sink."""
    return chain(source_of([]), *[map_items(str) for _ in range(8)], CollectSink(), name="ten")


def measured(graph: OperatorGraph) -> float:
    """The time of one ``build()`` in milliseconds."""
    started = time.perf_counter()
    graph.build()
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    cold = sorted(
        float(subprocess.run([sys.executable, "-c", _COLD], check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    )
    graph = ten()
    warm = sorted(measured(graph) for _ in range(200))
    print(f"build() of 10 operators, cold: median {cold[2]:.3f} ms, worst of 5 {cold[-1]:.3f} ms (bound 100 ms)")
    print(f"build() of 10 operators, warm: median {warm[100]:.3f} ms, worst of 200 {warm[-1]:.3f} ms (bound 10 ms)")
    thousand, two_thousand = (
        min(measured(chain(source_of([]), *[map_items(str)] * (size - 2), CollectSink())) for _ in range(5))
        for size in (1_000, 2_000)
    )
    print(
        f"a chain of 1,000: {thousand:.1f} ms; of 2,000: {two_thousand:.1f} ms; ratio {two_thousand / thousand:.2f} (linear: 2)"
    )


if __name__ == "__main__":
    main()
