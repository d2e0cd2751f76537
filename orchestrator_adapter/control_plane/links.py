"""``Links``: where another system shows this run. The control plane only passes them on."""

from __future__ import annotations

from typing import Protocol


class Links(Protocol):
    """Addresses of a run's pages in another system, for example the Prefect UI. Any thread may call it; it does not block."""

    @property
    def flow_run(self) -> str:
        """The run's page; empty if it is unknown."""

    def task_run(self, operator: str, instance: int) -> str:
        """The page of one instance of an operator; empty if it is unknown, and for an ``instance`` below 1."""
