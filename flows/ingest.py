"""``sda-ingest`` as a Prefect flow: three kinds of sensor into a durable event log."""

from __future__ import annotations

from flows.settings.addresses import with_secrets
from flows.settings.ingest import IngestSettings
from flows.topologies.ingest import ingest_pipeline
from flows.topologies.reporting import reporting
from orchestrator_adapter.prefect_flow import compile_flow

sda_ingest = compile_flow(
    "sda-ingest",
    IngestSettings,
    lambda settings: ingest_pipeline(with_secrets(settings)),
    reporting=reporting,
    description="Radar (UDP), optical (HTTP) and inter-satellite link (TCP) observations into a durable event log.",
)
