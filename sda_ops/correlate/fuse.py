"""The ``fuse`` operator: it adds a cross-sensor update for every object that several sensors observed within a window."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator_adapter import Factory, Timeout, WiredEnds
from sda_ops.correlate.windows import CrossSensorWindows, WindowLimits
from sda_ops.records.correlation import Correlation, CrossSensorUpdate

_BATCH = 256


def fuse(limits: WindowLimits | None = None) -> Factory:
    """An operator that passes correlations on, in order, and adds an update for each window with several sensors.

    Declare it as ``expanding`` and ``stateful``: updates are derived items. The windows outlive an instance. At the end of
    the stream every window closes. If the operator is aborted, the open windows are lost; their correlations have already
    been sent.

    Metrics: ``open_windows``, ``updates`` and ``closed_early``.
    """
    limits = limits or WindowLimits()

    async def run(ends: WiredEnds) -> None:
        windows = ends.keep("windows", lambda: CrossSensorWindows(limits))
        ends.count("updates", 0)
        while (batch := await _next_batch(ends, windows)) is None or batch:
            now, now_ns = ends.clock.monotonic(), ends.clock.now_ns()
            passed: list[Correlation | CrossSensorUpdate] = []
            passed += windows.due(now=now, now_ns=now_ns)
            for correlation in batch or ():
                passed.append(correlation)
                passed += windows.add(correlation, now=now, now_ns=now_ns)
            _commit(ends, windows, passed, acknowledge=len(batch or ()))
            await ends.flush()
        _commit(ends, windows, list(windows.close_all(now_ns=ends.clock.now_ns())), acknowledge=0)
        await ends.flush()

    return run


def _commit(
    ends: WiredEnds,
    windows: CrossSensorWindows,
    passed: Sequence[Correlation | CrossSensorUpdate],
    *,
    acknowledge: int,
) -> None:
    ends.commit(passed, acknowledge=acknowledge)
    ends.gauge("open_windows", len(windows))
    ends.gauge("closed_early", windows.closed_early)
    ends.count("updates", len(passed) - acknowledge)


async def _next_batch(ends: WiredEnds, windows: CrossSensorWindows) -> list[Correlation] | None:
    """The next batch; ``None`` if a window is due before one arrives; an empty list at the end of the stream."""
    due = windows.next_due()
    if due is None:
        return await ends.receiver.recv_many(_BATCH)
    limit = Timeout(ends.clock, max(0.0, due - ends.clock.monotonic()))
    try:
        async with limit:
            return await ends.receiver.recv_many(_BATCH)
    except TimeoutError:
        if not limit.expired:
            raise
        return None
