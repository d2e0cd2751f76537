"""The live page's tables of event time and alerts."""

from __future__ import annotations

from typing import Final

from orchestrator_adapter.control_plane import Figure, MetricsPanel

LAGS: Final = MetricsPanel(
    "Lags",
    "source",
    (
        Figure("measurement to ingest, p99", "source_lag_seconds", unit="seconds"),
        Figure("ingest to end, p99", "pipeline_lag_seconds", unit="seconds"),
        Figure("clock skew", "clock_skew_observed_total"),
    ),
)

WATERMARKS: Final = MetricsPanel(
    "Watermarks and lags",
    "source",
    (
        Figure("watermark", "source_watermark_seconds", unit="age"),
        Figure("idle", "source_idle", unit="flag"),
        Figure("holds the others", "pipeline_watermark_holder", unit="flag"),
        *LAGS.figures,
        Figure("regressions", "watermark_regressions_total"),
    ),
)

OUTBOX: Final = MetricsPanel(
    "Alert outbox",
    "subscriber",
    (
        Figure("waiting", "alert_outbox_depth"),
        Figure("oldest", "alert_outbox_oldest_seconds", unit="seconds", alarm_above=30.0),
        Figure("parked", "alert_outbox_parked", alarm_above=0.0),
    ),
)

ALERTS: Final = MetricsPanel("Alerts", "outcome", (Figure("revisions", "alerts_total"),))
