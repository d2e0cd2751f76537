"""The pages of a run in the Prefect UI, as Prefect itself derives them: from ``PREFECT_UI_URL``, else from ``PREFECT_API_URL``."""

from __future__ import annotations

from uuid import UUID

from prefect.utilities.urls import url_for

from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity

_ANY = UUID(int=0)


class RunPageLinks:
    """The ``Links`` of one run. Without a UI's address, all of them are empty.

    Prefect's settings are read here, because other threads may not have them.
    """

    def __init__(self, identity: RunIdentity) -> None:
        self._identity = identity
        self._flow_run = url_for("flow-run", obj_id=identity.flow_run_id) or ""
        self._task_runs = (url_for("task-run", obj_id=_ANY) or "").removesuffix(str(_ANY))

    @property
    def flow_run(self) -> str:
        """The flow run's page."""
        return self._flow_run

    def task_run(self, operator: str, instance: int) -> str:
        """The page of an instance's task run."""
        if not self._task_runs or instance < 1:
            return ""
        return f"{self._task_runs}{self._identity.task_run_id(operator, instance)}"
