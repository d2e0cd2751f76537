"""Which pipelines there are: their settings, their graph, their flow, and where they leave what they made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.settings import fusion as fusion_settings
from flows.settings import ingest as ingest_settings
from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings
from flows.settings.load import load_settings
from flows.topologies.fusion import fusion_pipeline
from flows.topologies.ingest import ingest_pipeline
from orchestrator_adapter.process import Pipeline

if TYPE_CHECKING:
    from prefect import Flow


@dataclass(frozen=True, slots=True)
class PipelineKind:
    """One pipeline, as the command line knows it.

    Attributes:
        name: Of graph, flow and deployment.
        settings: The model of what it can be told.
        prefix: Of the environment variables that set it.
        pipeline: Makes it from settings; opens nothing.
        flow: Where the compiled flow is, ``module:name``.
        outputs: What it leaves, by a word for people.
    """

    name: str
    settings: type[Any]
    prefix: str
    pipeline: Callable[[Any], Pipeline]
    flow: str
    outputs: Callable[[Any], Mapping[str, Path]]

    def load(self, file: Path | None) -> Any:
        """Its settings, from defaults, ``file`` and environment. Raises ``SettingsError``."""
        return load_settings(self.settings, file, prefix=self.prefix)

    def load_flow(self) -> Flow[..., Any]:
        """The compiled flow. Importing Prefect takes a second, and not every command needs it."""
        module, name = self.flow.split(":")
        flow: Flow[..., Any] = getattr(import_module(module), name)
        return flow


def _ingest_outputs(of: IngestSettings) -> Mapping[str, Path]:
    return {"log": of.event_log.directory, "report": of.report}


def _fusion_outputs(of: FusionSettings) -> Mapping[str, Path]:
    return {"audit": of.audit.directory, "report": of.report}


INGEST = PipelineKind(
    "sda-ingest",
    IngestSettings,
    ingest_settings.ENVIRONMENT_PREFIX,
    ingest_pipeline,
    "flows.ingest:sda_ingest",
    _ingest_outputs,
)
FUSION = PipelineKind(
    "sda-fusion",
    FusionSettings,
    fusion_settings.ENVIRONMENT_PREFIX,
    fusion_pipeline,
    "flows.fusion:sda_fusion",
    _fusion_outputs,
)
PIPELINES = {kind.name: kind for kind in (INGEST, FUSION)}
