"""Reconcile earlier runs with the Prefect server, from what they left on disk."""

from orchestrator_adapter.prefect_flow.client.api import client_without_retries
from orchestrator_adapter.prefect_flow.recovery.reconcile import reconcile_run
from orchestrator_adapter.prefect_flow.recovery.records import RunRecords

__all__ = ["RunRecords", "client_without_retries", "reconcile_run"]
