"""Every query of the alert rules, of the Grafana dashboard and of the pages names metrics and labels that ``/metrics`` has."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its stubs do not

from scripts import grafana_dashboard
from tests.helpers.expositions import ONLY_WHILE_IT_RUNS, expositions
from tests.helpers.promql import InvalidQuery, Schema, labels_in_template, labels_of, schema_with
from tests.helpers.support import ROOT

RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())


@pytest.fixture(scope="module")
def known() -> Schema:
    return schema_with(RULES, Schema.of(asyncio.run(expositions())))


def test_every_rule_names_metrics_and_labels_that_exist(known: Schema) -> None:
    """Also in what it says."""
    for rule in (rule for group in RULES["groups"] for rule in group["rules"]):
        labels = labels_of(rule["expr"], known)
        assert {"job", "instance"} <= labels
        for text in rule.get("annotations", {}).values():
            assert labels_in_template(text) <= labels, rule["alert"]


def test_every_query_of_the_dashboard_names_metrics_and_labels_that_exist(known: Schema) -> None:
    """Also in its legends. Every panel has a query, and its title is unique."""
    panels = [each for each in grafana_dashboard.dashboard()["panels"] if each["type"] != "row"]
    assert len({panel["title"] for panel in panels}) == len(panels) > 40
    for panel in panels:
        for target in panel["targets"]:
            labels = labels_of(without_variables(target["expr"]), known)
            assert labels_in_template(target["legendFormat"]) <= labels, panel["title"]


def test_every_query_of_the_pages_names_metrics_and_labels_that_exist(known: Schema) -> None:
    """Blocks of promql in the documentation and the runbook."""
    queries = list(of_the_pages())
    assert len(queries) > 60
    for page, query in queries:
        try:
            labels_of(query, known)
        except InvalidQuery as error:
            pytest.fail(f"{page}: {query}: {error}")


def test_the_dashboard_in_the_repository_is_what_the_script_writes() -> None:
    """Run python scripts/grafana_dashboard.py after a change."""
    assert grafana_dashboard.FILE.read_text(encoding="utf-8") == grafana_dashboard.text()


def test_no_two_panels_overlap() -> None:
    """Each cell of the grid belongs to one panel at most, and no panel is wider than the grid."""
    taken: set[tuple[int, int]] = set()
    for panel in grafana_dashboard.dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells


def test_the_figure_that_only_a_running_screening_has_is_one_that_it_counts() -> None:
    """The series that the other tests take for granted."""
    (name,) = re.findall(r'name="(\w+)"', ONLY_WHILE_IT_RUNS)
    assert f'ends.gauge("{name}"' in (ROOT / "sda_ops/screening/conjunctions/operator.py").read_text()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("operatr_up", "there is no metric operatr_up"),
        ('operator_up{sink="a"}', "operator_up has no label sink"),
        ('pipeline_health{status="fine"}', "no series of pipeline_health has the values of status"),
        ("sum by (edge) (operator_up)", "sum by: there is no label edge"),
        ("operator_up and on (sink) operator_up", "left of and on: there is no label sink"),
        ("operator_up / on (job) group_left () channel_capacity / source_paused", "compares"),
        ("rate(operator_restart_total)", "rate needs a range"),
        ("histogram_quantile(0.9, sum by (sink) (rate(sink_latency_seconds_bucket[5m])))", "there is no label le"),
        ("operator_up +", "expected name"),
        ("operator_up)", "expected end"),
        ("predict_linear(operator_up[1h], 60)", "predict_linear is not known here"),
        ("operator_up $ 2", "unexpected text"),
    ],
)
def test_a_query_with_a_mistake_is_found(query: str, message: str, known: Schema) -> None:
    """A wrong metric, label, value or form; the message says which."""
    with pytest.raises(InvalidQuery, match=re.escape(message)):
        labels_of(query, known)


def without_variables(query: str) -> str:
    """With values for Grafana's variables."""
    for variable, value in {"$__rate_interval": "1m", "$pipeline": "sda-fusion", "$instance": ".*"}.items():
        query = query.replace(variable, value)
    return query


def of_the_pages() -> Iterator[tuple[str, str]]:
    """Page and query: each paragraph of a block is one query."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```promql\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for query in re.split(r"\n\s*\n", block):
                yield page.name, query
