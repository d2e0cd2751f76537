"""The ``correlate`` operator: `Placed` observations in, correlations out. It computes in the event loop, 10 ms a batch at most."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from orchestrator_adapter import EventLog, Factory, WiredEnds
from sda_ops.correlate.associate import Associator
from sda_ops.records.correlation import Association, Correlation

logger = logging.getLogger(__name__)

_BATCH = 256
_REPORTED_SENSORS = 100
_UNKNOWN = (
    "no position of this sensor is configured: its observations are not compared with the catalogue (unpredicted)"
)


def correlate(associator: Associator) -> Factory:
    """An operator that turns each `Placed` observation into one correlation, in order.

    Metrics, over all instances: the counts ``correlated``, ``ambiguous``, ``uct`` and ``unpredicted``. A sensor whose
    position is not known is logged once (``sensor_unknown``) and counted (``unknown_sensors``).
    """

    async def run(ends: WiredEnds) -> None:
        unknown: set[str] = ends.keep("unknown-sensors", set)
        log = EventLog(logger, clock=ends.clock, operator=ends.name, instance=ends.instance)
        ends.count("unknown_sensors", 0)
        for association in get_args(Association):
            ends.count(association, 0)
        async for batch in ends.receiver.batches(_BATCH):
            correlations = associator.correlate(batch, now_ns=ends.clock.now_ns())
            ends.commit(correlations, acknowledge=len(batch))
            counts = Counter([found.association for found in correlations])
            for association, count in counts.items():
                ends.count(association, count)
            if counts["unpredicted"] and len(unknown) < _REPORTED_SENSORS:
                for source_id in sorted(_without_site(correlations, associator) - unknown):
                    unknown.add(source_id)
                    ends.count("unknown_sensors")
                    log("sensor_unknown", level=logging.WARNING, source_id=source_id, message=_UNKNOWN)
            await ends.flush()

    return run


def _without_site(correlations: Sequence[Correlation], associator: Associator) -> set[str]:
    """The sensors on the ground whose position is not known. A beacon's own position is in its observation."""
    return {
        found.source_id
        for found in correlations
        if found.association == "unpredicted"
        and found.source_kind != "isl"
        and not associator.knows_site_of(found.source_id)
    }
