"""How much a run tells Prefect, how often, and how long it waits for it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reporting:
    """What a pipeline tells Prefect beside its data plane.

    Attributes:
        directory: Where the outcome and what could not be told are kept for the next start; ``None`` for nowhere: then a
            predecessor that was killed, or that ended while no API answered, is not put right.
        artifacts: Whether topology, status, progress and report are shown as artifacts.
        status_every: How often live status and progress are renewed.
        look_every: How often the run's own state is looked at: whether somebody cancelled it.
        patience: How long the end waits for an API that does not answer, if nobody waits for the process.
        patience_when_stopped: The same if somebody asked it to stop; a worker kills after 30 s, drain included.
        queue: How many events, and how many log lines, wait for the API at most; then the oldest go, counted.
    """

    directory: Path | None = None
    artifacts: bool = True
    status_every: timedelta = timedelta(seconds=30)
    look_every: timedelta = timedelta(seconds=5)
    patience: timedelta = timedelta(seconds=120)
    patience_when_stopped: timedelta = timedelta(seconds=10)
    queue: int = 10_000

    def __post_init__(self) -> None:
        for name in ("status_every", "look_every", "patience", "patience_when_stopped"):
            if (value := getattr(self, name)) <= timedelta(0):
                raise ValueError(f"Reporting: {name} must be > 0, got {value}")
        if self.queue < 1:
            raise ValueError(f"Reporting: queue must be >= 1, got {self.queue}")
