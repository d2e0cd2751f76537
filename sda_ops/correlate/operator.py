"""The ``correlate`` operator: `Placed` observations in, correlations out. It computes in the event loop, 10 ms a batch at most."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from orchestrator_adapter import Factory, WiredEnds
from sda_ops.correlate.associate import Associator
from sda_ops.records.correlation import Association

_BATCH = 256


def correlate(associator: Associator) -> Factory:
    """An operator that turns each `Placed` observation into one correlation, in order.

    Metrics, over all instances: the counts ``correlated``, ``ambiguous``, ``uct`` and ``unpredicted``.
    """

    async def run(ends: WiredEnds) -> None:
        for association in get_args(Association):
            ends.count(association, 0)
        async for batch in ends.receiver.batches(_BATCH):
            correlations = associator.correlate(batch, now_ns=ends.clock.now_ns())
            ends.commit(correlations, acknowledge=len(batch))
            for association, count in Counter([found.association for found in correlations]).items():
                ends.count(association, count)
            await ends.flush()

    return run
