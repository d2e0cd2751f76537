"""``sda-ingest`` as a Prefect flow: three kinds of sensor into a durable event log."""

from __future__ import annotations

from flows.ingest_topology import ingest_pipeline
from flows.reporting import reporting
from flows.settings import IngestSettings
from orchestrator_adapter.prefect_flow import compile_flow

sda_ingest = compile_flow(
    "sda-ingest",
    IngestSettings,
    ingest_pipeline,
    reporting=reporting,
    description="Radar (UDP), optical (HTTP) and inter-satellite link (TCP) observations into a durable event log.",
)
