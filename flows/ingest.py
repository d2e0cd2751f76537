"""``sda-ingest`` as a Prefect flow: three kinds of sensor into a durable event log."""

from __future__ import annotations

from datetime import timedelta

from flows.ingest_topology import ingest_pipeline
from flows.settings import IngestSettings
from orchestrator_adapter.prefect_flow import Reporting, compile_flow


def reporting(settings: IngestSettings) -> Reporting:
    """What Prefect is told of a run with these settings."""
    prefect = settings.prefect
    return Reporting(
        directory=prefect.directory,
        artifacts=prefect.artifacts,
        status_every=timedelta(seconds=prefect.status_every_s),
        look_every=timedelta(seconds=prefect.look_every_s),
        patience=timedelta(seconds=prefect.patience_s),
        patience_when_stopped=timedelta(seconds=prefect.patience_when_stopped_s),
    )


sda_ingest = compile_flow(
    "sda-ingest",
    IngestSettings,
    ingest_pipeline,
    reporting=reporting,
    description="Radar (UDP), optical (HTTP) and inter-satellite link (TCP) observations into a durable event log.",
)
