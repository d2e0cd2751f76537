"""``sda-ingest`` as a Prefect flow: three kinds of sensor into a durable event log."""

from flows.settings import IngestSettings
from flows.topologies import ingest_pipeline
from orchestrator_adapter.prefect_flow import compile_flow

sda_ingest = compile_flow(
    "sda-ingest",
    IngestSettings,
    ingest_pipeline,
    description="Radar (UDP), optical (HTTP) and inter-satellite link (TCP) observations into a durable event log.",
)
