"""How a run reports to Prefect, from the section ``prefect`` of its settings."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from flows.settings.sections import PrefectSettings
from orchestrator_adapter.prefect_flow import Reporting


class _Settings(Protocol):
    @property
    def prefect(self) -> PrefectSettings: ...


def reporting(settings: _Settings) -> Reporting:
    """The reporting of a run with these settings."""
    prefect = settings.prefect
    return Reporting(
        directory=prefect.directory,
        artifacts=prefect.artifacts,
        status_every=timedelta(seconds=prefect.status_every_s),
        look_every=timedelta(seconds=prefect.look_every_s),
        patience=timedelta(seconds=prefect.patience_s),
        patience_when_stopped=timedelta(seconds=prefect.patience_when_stopped_s),
    )
