"""``sda-fusion`` as a Prefect flow: eight sources, orbits in a process pool, observations correlated with catalogued objects."""

from __future__ import annotations

from flows.settings.addresses import with_secrets
from flows.settings.fusion import FusionSettings
from flows.topologies.fusion import fusion_pipeline
from flows.topologies.reporting import reporting
from orchestrator_adapter.prefect_flow import compile_flow

sda_fusion = compile_flow(
    "sda-fusion",
    FusionSettings,
    lambda settings: fusion_pipeline(with_secrets(settings)),
    reporting=reporting,
    description="Radar, optical, inter-satellite link and replayed observations, correlated with a catalogue, into an audit.",
)
