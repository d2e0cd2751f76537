"""What the metrics of event time cost: one batch of 256 lags, against 256 calls of ``prometheus_client.Histogram``.

Run: ``python -m bench.event_time_metrics``. Prints microseconds of processor time for each batch; nothing is asserted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from prometheus_client import Histogram

from sda_ops.event_time.metrics import LAG_BUCKETS_S, EventTimeMetrics
from sda_ops.event_time.watermark import Watermark

BATCH = 256
REPEATS = 2_000


def main() -> None:
    """Measure each call on its own."""
    rng = random.Random(16)
    lags_ns = [int(rng.lognormvariate(0.0, 2.0) * 100_000_000) for _ in range(BATCH)]
    metrics = EventTimeMetrics()
    histogram = Histogram("lag_seconds", "Lag, seconds", ["source"], buckets=LAG_BUCKETS_S, registry=None)
    mark = Watermark(1_700_000_000_000_000_000, "radar-01")

    def library() -> None:
        child = histogram.labels("radar-01")
        for lag_ns in lags_ns:
            child.observe(lag_ns / 1e9)

    calls: dict[str, Callable[[], object]] = {
        f"source_lag, {BATCH} lags": lambda: metrics.source_lag("radar-01", lags_ns),
        f"prometheus_client.Histogram, {BATCH} calls": library,
        "source_mark": lambda: metrics.source_mark(mark),
        "pipeline_mark": lambda: metrics.pipeline_mark(mark),
        "windows": lambda: metrics.windows("fuse", 10, 100),
        "late": lambda: metrics.late("fuse", "amended"),
    }
    for name, call in calls.items():
        call()
        begun = time.process_time()
        for _ in range(REPEATS):
            call()
        print(f"{name:45} {(time.process_time() - begun) / REPEATS * 1e6:8.1f} us")


if __name__ == "__main__":
    main()
