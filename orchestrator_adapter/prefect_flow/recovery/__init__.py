"""Reconciles earlier runs with the Prefect server, from the records that they left on disk."""

from orchestrator_adapter.prefect_flow.client.api import client_without_retries
from orchestrator_adapter.prefect_flow.recovery.reconcile import ReconciledRun, reconcile_run
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords

__all__ = ["ReconciledRun", "RunRecord", "RunRecords", "client_without_retries", "reconcile_run"]
