"""The refresh of a catalogue beside an operator of a graph."""

from __future__ import annotations

from datetime import timedelta

from orchestrator_adapter import BuiltGraph, RetryPolicy
from orchestrator_adapter.testing import CollectSink, ListSource, ManualClock, UntilShutdown, chain, run_graph
from sda_ops.catalog.fetch import CatalogUrl
from sda_ops.catalog.live import LiveCatalog
from sda_ops.catalog.refreshing import keep_fresh_in_graph
from tests.helpers.running import counter, eventually
from tests.scenes.operators import Propagating, beacons, propagate
from tests.sda_ops.catalog.catalog_server import Server, text_of

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
FOUR = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=3), max_attempts=4)
HOUR = timedelta(hours=1)


async def test_a_refresh_has_retries_and_a_breaker_and_counts() -> None:
    """Four failed attempts open the breaker ``catalog``. Then each refresh costs the server one request until one succeeds."""
    clock = ManualClock()
    async with Server.serving(text_of(1)) as server:
        catalog = LiveCatalog(CatalogUrl(server.url, retry=FOUR), clock=clock)
        await catalog.load()
        server.answers = [UNAVAILABLE] * 5

        async def refreshes(built: BuiltGraph, number: int) -> None:
            def made() -> bool:
                clock.advance(0.002)  # the delays between the attempts
                return counter(built, "catalog_refreshes", "op-1") == number

            await eventually(made, f"{number} refreshes")

        async def watch(built: BuiltGraph) -> None:
            await eventually(lambda: counter(built, "catalog_refreshes", "op-1") == 0, "the operator runs")
            for number, (wait_s, requests) in enumerate([(3600.0, 5), (900.0, 6), (900.0, 7)], start=1):
                await clock.advance_when_idle(wait_s)
                await refreshes(built, number)
                assert len(server.requests) == requests
            built.request_shutdown("seen")

        operator = propagate(catalog, Propagating(), keep_fresh=lambda ends: keep_fresh_in_graph(catalog, HOUR, ends))
        graph = chain(ListSource(beacons([1.0]), UntilShutdown()), operator, CollectSink())
        event = await run_graph(graph, clock=clock, during=watch)
    counters = event.figures.counters["op-1"]
    assert {name: counters[name] for name in ("catalog_rejections", "retry_attempts", "catalog_age_s")} == {
        "catalog_rejections": 2,
        "retry_attempts": 3,
        "catalog_age_s": 0,
    }
    breaker = event.figures.breakers["catalog"]
    assert (breaker.opened, breaker.state.label) == (2, "closed")
