"""Collectors of the user's own, served beside the built-in metrics: ``ControlPlane(collectors=…)``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families as parse_text

from orchestrator_adapter.control_plane.collectors import ClashingMetrics, MetricsCollector
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from tests.helpers.control_plane import ANY, fetch, logged, served, value, waiting
from tests.helpers.metrics import parse_openmetrics
from tests.helpers.support import ROOT

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Own:
    """A collector whose families are given."""

    def __init__(self, *families: Metric | Exception) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        for family in self.families:
            if isinstance(family, Exception):
                raise family
            yield family


def gauge(name: str, figure: float | str = 1.0) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, "A figure of the user", value=figure)  # type: ignore[arg-type] # some are wrong on purpose


async def pages(*collectors: MetricsCollector) -> tuple[str, str, dict[str, object]]:
    """``/metrics`` as Prometheus text, as OpenMetrics, and as JSON (by name)."""
    taken: list[tuple[str, str, dict[str, object]]] = []

    async def during(url: str) -> None:
        text, openmetrics, json = [
            await fetch(f"{url}/metrics", accept) for accept in ("text/plain", OPENMETRICS, "application/json")
        ]
        assert [page.status_code for page in (text, openmetrics, json)] == [200, 200, 200]
        taken.append((text.text, openmetrics.text, {each["name"]: each for each in json.json()["metrics"]}))

    await served(waiting(), during, plane=replace(ANY, collectors=collectors))
    return taken[0]


async def test_every_format_has_the_users_metrics_with_the_built_in_ones() -> None:
    """A gauge, a counter and a histogram of ``prometheus_client``; the strict parser of OpenMetrics accepts the page."""
    depth = Gauge("queue_depth", "Items in the queue", ["queue"], registry=None)
    depth.labels("a").set(3)
    sent = Counter("sent", "Items sent", registry=None)
    sent.inc(7)
    took = Histogram("took_seconds", "How long it took", buckets=(0.1, 1.0), registry=None)
    took.observe(0.5)
    text, openmetrics, json = await pages(depth, sent, took)
    assert value(text, "queue_depth", queue="a") == 3
    assert value(text, "sent_total") == 7
    assert value(text, "took_seconds_bucket", le="1.0") == 1
    assert value(text, "operator_up", operator="source") == 1
    assert {"queue_depth", "sent", "took_seconds", "operator_up"} <= {
        each.name for each in parse_openmetrics(openmetrics)
    }
    assert openmetrics.count("# EOF") == 1
    assert {"queue_depth", "sent_total", "took_seconds", "operator_up"} <= set(json)


class Unhelpful(Own):
    def __init__(self) -> None:
        super().__init__(gauge("first"), RuntimeError("no more figures"))


@pytest.mark.parametrize(
    "bad", [Unhelpful(), Own(gauge("first", "three"))], ids=["it raises", "its figure is not a number"]
)
async def test_a_collector_that_fails_costs_only_its_own_metrics_and_is_logged_once(bad: MetricsCollector) -> None:
    """Every format has the other collectors' metrics and the built-in ones, in each of three requests."""
    with logged("orchestrator_adapter.control_plane") as lines:
        text, openmetrics, json = await pages(Own(gauge("before")), bad, Own(gauge("after")))
    names = [
        {each.name for each in parse_text(text)},
        {each.name for each in parse_openmetrics(openmetrics)},
        set(json),
    ]
    for page in names:
        assert {"before", "after", "operator_up"} <= page
        assert "first" not in page
    (line,) = [line for line in lines if line["event"] == "collector_failed"]
    assert line["collector"] == f"collectors[1] ({type(bad).__name__})"


async def test_json_has_null_for_what_is_no_finite_number() -> None:
    """The text formats have it as Prometheus writes it."""
    text, _, json = await pages(Own(gauge("endless", inf), gauge("unknown", nan)))
    assert value(text, "endless") == inf
    assert [json[name]["samples"][0]["value"] for name in ("endless", "unknown")] == [None, None]  # type: ignore[index]


async def test_the_example_of_the_page_serves_the_users_metrics() -> None:
    """``docs/control-plane.md``, "Your own metrics"."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "control-plane.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    text, _, _ = await pages(*names["control_plane"].collectors)
    assert value(text, "tracks_total", end="lost") == 1
    assert value(text, "track_length_seconds_sum") == 12.5


@pytest.mark.parametrize(
    ("collectors", "name", "owner"),
    [
        ((Own(gauge("operator_up")),), "operator_up", "the control plane itself"),
        ((Own(gauge("operator_items_total")),), "operator_items_total", "the control plane itself"),
        ((Own(gauge("mine")), Gauge("mine", "Mine", registry=None)), "mine", "collectors[0] (Own)"),
        ((Counter("mine", "Mine", registry=None), Own(gauge("mine_total"))), "mine_total", "collectors[0] (Counter)"),
    ],
)
async def test_a_name_that_is_used_twice_is_an_error_at_the_start(
    collectors: tuple[MetricsCollector, ...], name: str, owner: str
) -> None:
    """The message names the collector, the metric and who has it; the address is not in use afterwards."""
    with (
        pytest.raises(ClashingMetrics, match=r"rename it$") as raised,
        ControlPlaneServer(waiting(), replace(ANY, collectors=collectors)),
    ):
        pass
    assert f"the metric {name!r}, which {owner} has as well" in str(raised.value)


async def test_a_name_that_appears_later_and_is_used_already_costs_its_collector() -> None:
    """The page has the built-in metric, once."""

    class Later:
        def __init__(self) -> None:
            self.asked = 0

        def collect(self) -> Iterable[Metric]:
            self.asked += 1
            return [gauge("mine"), *([gauge("operator_up")] if self.asked > 1 else [])]

    with logged("orchestrator_adapter.control_plane") as lines:
        text, _, _ = await pages(Later())
    assert [each.name for each in parse_text(text)].count("operator_up") == 1
    assert "mine" not in {each.name for each in parse_text(text)}
    assert ["ClashingMetrics" in str(line) for line in lines if line["event"] == "collector_failed"] == [True]
