"""How much a run reports to Prefect, how often, and how long it waits for the server. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from orchestrator_adapter.primitives.check_fields import check_fields


@dataclass(frozen=True, slots=True)
class Reporting:
    """What a pipeline reports to Prefect, beside its data plane.

    Attributes:
        directory: Folder for how the run ended and for undelivered reports, which the next start delivers. ``None`` keeps
            nothing: a run that was killed, or that ended while the API did not answer, is then never reconciled.
        artifacts: Whether topology, status, progress and the final report are published as artifacts.
        status_every: How often status and progress are updated.
        look_every: How often the run reads its own state from the server, to see whether it was cancelled.
        patience: How long the end of a run waits for an API that does not answer.
        patience_when_stopped: The same for a run that was asked to stop. A worker kills after 30 s, drain included.
        queue: How many events, and how many log lines, may wait for the API. Beyond it the oldest are dropped and counted.
    """

    directory: Path | None = None
    artifacts: bool = True
    status_every: timedelta = timedelta(seconds=30)
    look_every: timedelta = timedelta(seconds=5)
    patience: timedelta = timedelta(seconds=120)
    patience_when_stopped: timedelta = timedelta(seconds=10)
    queue: int = 10_000

    def __post_init__(self) -> None:
        zero = timedelta(0)
        check_fields(
            "Reporting",
            ("status_every", self.status_every, self.status_every > zero, "> 0"),
            ("look_every", self.look_every, self.look_every > zero, "> 0"),
            ("patience", self.patience, self.patience > zero, "> 0"),
            ("patience_when_stopped", self.patience_when_stopped, self.patience_when_stopped > zero, "> 0"),
            ("queue", self.queue, self.queue >= 1, ">= 1"),
        )
