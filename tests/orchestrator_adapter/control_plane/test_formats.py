"""The formats of ``/metrics``: Prometheus text, OpenMetrics and JSON. No HTTP here."""

from __future__ import annotations

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from orchestrator_adapter import (
    BuiltGraph,
    OperatorGraph,
    source_of,
)
from orchestrator_adapter.control_plane.exposition import as_json, families, text_format, wants_json
from orchestrator_adapter.testing import (
    CollectSink,
)
from tests.helpers.metrics import Everything, figures, parse_openmetrics, scraped, view

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
"""The ``Accept`` header of a Prometheus server."""


async def test_every_family_has_a_help_and_every_format_has_the_same_values() -> None:
    """Prometheus text, OpenMetrics (which its strict parser accepts) and JSON: the same families, samples and values."""

    async def observe(built: BuiltGraph) -> None:
        fixed = view(built)
        text = text_format("text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
        openmetrics = text_format("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        assert text.content_type.startswith("text/plain; version=0.0.4")
        assert openmetrics.content_type.startswith("application/openmetrics-text; version=1.0.0")
        plain, open_ = (each.render(built.plan, fixed) for each in (text, openmetrics))
        assert open_.endswith(b"# EOF\n")
        metrics = figures(parse_text(plain.decode()))
        assert figures(parse_openmetrics(open_.decode())) == metrics
        listed = as_json(built.plan, fixed)["metrics"]
        assert {
            family["name"]: {
                tuple(value for _, value in sorted(sample["labels"].items())): sample["value"]
                for sample in family["samples"]
                if sample["name"] != f"{family['name']}_sum"  # of a histogram
            }
            for family in listed
        } == metrics
        plain_ones = [family for family in listed if family["type"] != "histogram"]
        assert all(sample["name"] == family["name"] for family in plain_ones for sample in family["samples"])
        assert {family["type"] for family in listed} == {"counter", "gauge", "histogram"}
        assert all(len(family["help"].split()) > 2 for family in listed)
        documented: list[Metric] = list(families(built.plan, fixed))
        assert len({family.documentation for family in documented}) == len(documented)
        observed.append(built)

    observed: list[BuiltGraph] = []
    await Everything().run(observe)
    assert observed


def test_operator_names_may_have_any_printable_characters() -> None:
    """Quotes, backslashes and characters beyond ASCII are preserved."""
    name = 'a "b"\\c d ✓'
    graph = OperatorGraph("odd")
    graph.connect(graph.add_source(name, source_of([])), graph.add_sink("sink", CollectSink()), 1)
    assert (name,) in scraped(graph.build())["operator_up"]
    built = graph.build()
    body = text_format("application/openmetrics-text").render(built.plan, view(built))
    assert (name,) in figures(parse_openmetrics(body.decode()))["operator_up"]


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("text/html, application/json;q=0.9, */*;q=0.8", True),
        ("application/json;q=0.4, text/plain;q=0.5", False),
        ("application/json;q=0.5, text/plain;q=0.4", True),
        ("application/json, application/openmetrics-text", False),
        ("application/json;q=0", False),
        ("application/json;q=nonsense", False),
        ("application/jsonp", False),
        (
            PROMETHEUS_3,
            False,
        ),
    ],
)
def test_json_is_sent_to_clients_that_ask_for_it(accept: str, json: bool) -> None:  # noqa: FBT001 - a table's column
    """By name, and not less than for text; a Prometheus server gets text."""
    assert wants_json(accept) is json


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=abc", "text/plain;version=", ";;;,=,q", "☃"])
def test_an_invalid_accept_header_gets_plain_text(accept: str) -> None:
    """Without an error."""
    assert text_format(accept).content_type.startswith("text/plain; version=0.0.4")
