"""The pipelines by name: settings, topology, flow and output of each. What a pipeline needs is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect import Flow

    from flows.settings.fusion import FusionSettings
    from flows.settings.ingest import IngestSettings
    from orchestrator_adapter.process import Pipeline


@dataclass(frozen=True, slots=True)
class PipelineKind:
    """One pipeline, as the command line knows it. The places are written ``module:name``.

    Attributes:
        name: The name of its graph, flow and deployment.
        prefix: The prefix of the environment variables that set it.
        settings_place: The model of its settings.
        pipeline_place: The function that makes the ``Pipeline`` from settings; it opens nothing.
        flow_place: The compiled flow.
        outputs: The files and folders that it writes, by a short word.
    """

    name: str
    prefix: str
    settings_place: str
    pipeline_place: str
    flow_place: str
    outputs: Callable[[Any], Mapping[str, Path]]

    def load(self, file: Path | None) -> Any:
        """The settings, from defaults, ``file`` and environment. Raises ``SettingsError``."""
        from flows.settings.load import load_settings  # noqa: PLC0415 - imported when it is used

        return load_settings(_imported(self.settings_place), file, prefix=self.prefix)

    def pipeline(self, settings: Any) -> Pipeline:
        """The pipeline with these settings, to examine: references to secrets are not resolved. Opens nothing."""
        from flows.settings.addresses import without_secrets  # noqa: PLC0415 - imported when it is used

        pipeline: Pipeline = _imported(self.pipeline_place)(without_secrets(settings))
        return pipeline

    def pipeline_to_run(self, settings: Any) -> Pipeline:
        """The pipeline with these settings, to run without Prefect. Raises ``SecretUnavailable``, an ``OSError``."""
        from flows.settings.addresses import with_secrets  # noqa: PLC0415 - imported when it is used

        pipeline: Pipeline = _imported(self.pipeline_place)(with_secrets(settings))
        return pipeline

    def load_flow(self) -> Flow[..., Any]:
        """The compiled flow. This imports Prefect, which takes a second."""
        flow: Flow[..., Any] = _imported(self.flow_place)
        return flow


def _imported(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _ingest_outputs(settings: IngestSettings) -> Mapping[str, Path]:
    return {"log": settings.event_log.directory, "report": settings.report}


def _fusion_outputs(settings: FusionSettings) -> Mapping[str, Path]:
    return {"audit": settings.audit.directory, "report": settings.report}


INGEST = PipelineKind(
    "sda-ingest",
    "SDA_INGEST__",
    "flows.settings.ingest:IngestSettings",
    "flows.topologies.ingest:ingest_pipeline",
    "flows.ingest:sda_ingest",
    _ingest_outputs,
)
FUSION = PipelineKind(
    "sda-fusion",
    "SDA_FUSION__",
    "flows.settings.fusion:FusionSettings",
    "flows.topologies.fusion:fusion_pipeline",
    "flows.fusion:sda_fusion",
    _fusion_outputs,
)
PIPELINES = {kind.name: kind for kind in (INGEST, FUSION)}
