"""The metrics of alerts: values and names."""

from __future__ import annotations

from typing import get_args

from sda_ops.alerts.metrics import AlertMetrics, AlertOutcome
from tests.helpers.metrics import scraped_from

NS_PER_S = 1_000_000_000


def test_every_outcome_and_every_subscriber_begins_at_zero() -> None:
    """Prometheus sees the first increase."""
    samples = scraped_from(AlertMetrics(subscribers=["ops", "fleet"]))
    assert {labels[0]: value for (name, labels), value in samples.items() if name == "alerts_total"} == dict.fromkeys(
        get_args(AlertOutcome), 0
    )
    for subscriber in ("ops", "fleet"):
        assert samples["alert_outbox_depth", (subscriber,)] == 0
        assert samples["alert_outbox_parked", (subscriber,)] == 0


def test_outcomes_add_up_and_the_outbox_is_as_it_was_last() -> None:
    """A counter and three gauges."""
    metrics = AlertMetrics()
    metrics.count("sent")
    metrics.count("sent", 4)
    metrics.depth("ops", 7)
    metrics.depth("ops", 5, oldest_ns=90 * NS_PER_S)
    metrics.parked("ops", 1)
    metrics.size(8_192, 1 << 30)
    samples = scraped_from(metrics)
    assert samples["alerts_total", ("sent",)] == 5
    assert samples["alert_outbox_depth", ("ops",)] == 5
    assert samples["alert_outbox_oldest_seconds", ("ops",)] == 90
    assert samples["alert_outbox_parked", ("ops",)] == 1
    assert samples["alert_outbox_bytes", ()] == 8_192
    assert samples["alert_outbox_max_bytes", ()] == 1 << 30


def test_an_alert_that_takes_longer_than_thirty_seconds_is_late() -> None:
    """30 s exactly is in time, and in the bucket that ends there."""
    metrics = AlertMetrics()
    for taken_ns in (2 * NS_PER_S, 30 * NS_PER_S, 30 * NS_PER_S + 1):
        metrics.latency_ns(taken_ns)
    samples = scraped_from(metrics)
    assert samples["alerts_total", ("late",)] == 1
    assert samples["alert_latency_seconds_bucket", ("30.0",)] == 2
    assert samples["alert_latency_seconds_count", ()] == 3
