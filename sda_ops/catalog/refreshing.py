"""Keeps a catalogue fresh while a graph runs: when it is refreshed, and where that is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from orchestrator_adapter import (
    RetryDiscard,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    ShutdownToken,
    WiredEnds,
    call_hook,
)
from sda_ops.catalog.fetch import CATALOG_BREAKER, CatalogUrl, Retrying
from sda_ops.catalog.live import CatalogRejected, LiveCatalog, RefreshOutcome

_T = TypeVar("_T")


async def keep_fresh(
    live: LiveCatalog,
    every: timedelta,
    shutdown: ShutdownToken,
    *,
    retrying: Retrying | None = None,
    on_refresh: Callable[[RefreshOutcome], object] | None = None,
) -> None:
    """Refresh ``live`` at this interval, on its clock, until the shutdown, which cancels a refresh that is running.

    The first refresh comes one interval after the source last had the current content: load the catalogue before. After a
    failed refresh the next one comes after `RETRY_AFTER`, if that is sooner. ``on_refresh`` gets each outcome. A bug in a
    refresh is raised.
    """
    stopping = asyncio.ensure_future(shutdown.wait())
    try:
        while not await shutdown.wait_at_most(_until_refresh(live, every).total_seconds(), live.clock):
            refreshing = asyncio.ensure_future(live.refresh(retrying=retrying))
            try:
                await asyncio.wait({refreshing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if refreshing.done():
                    outcome = refreshing.result()  # raises what it raised: a bug must not be silent
                    if not shutdown.is_set:  # a shutdown ends retries, which is no rejection
                        call_hook(on_refresh, outcome)
            finally:
                refreshing.cancel()
                await asyncio.gather(refreshing, return_exceptions=True)
    finally:
        stopping.cancel()


def _until_refresh(live: LiveCatalog, every: timedelta) -> timedelta:
    if live.rejection is None:
        return max(timedelta(0), every - live.age)
    since_rejection = timedelta(microseconds=(live.clock.now_ns() - live.rejection.at_ns) // 1000)
    return min(every, max(timedelta(0), min(every, RETRY_AFTER) - since_rejection))


RETRY_AFTER = timedelta(minutes=15)
"""After a failed refresh, which may have made four attempts."""


async def keep_fresh_in_graph(live: LiveCatalog, every: timedelta, ends: WiredEnds) -> None:
    """`keep_fresh` beside an operator, with the retries and the circuit breaker ``catalog`` of its graph.

    Metrics: ``catalog_refreshes`` and ``catalog_rejections`` count the outcomes since the start, ``catalog_age_s`` is as of
    the last one; retries count as the operator's ``retry_attempts``.
    """
    ends.count("catalog_refreshes", 0)
    ends.count("catalog_rejections", 0)
    ends.gauge("catalog_age_s", round(live.age.total_seconds()))

    async def retrying(
        policy: RetryPolicy, op: Callable[[], Awaitable[RetryDisposition[_T]]]
    ) -> RetryOk[_T] | RetryDiscard:
        return await ends.with_retry(policy, op, breaker=ends.breaker("catalog", CATALOG_BREAKER))

    def count(outcome: RefreshOutcome) -> None:
        ends.count("catalog_refreshes")
        ends.count("catalog_rejections", isinstance(outcome, CatalogRejected))
        ends.gauge("catalog_age_s", round(live.age.total_seconds()))

    if isinstance(live.source, CatalogUrl):
        ends.breaker("catalog", CATALOG_BREAKER)  # so that metrics show it from the start
    await keep_fresh(live, every, ends.shutdown, retrying=retrying, on_refresh=count)
