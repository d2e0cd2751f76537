"""Reconcile earlier runs with the Prefect server, from what they left on disk."""

from orchestrator_adapter.prefect_flow.client.api import impatient_client
from orchestrator_adapter.prefect_flow.recovery.reconcile import put_right
from orchestrator_adapter.prefect_flow.recovery.records import RunRecords

__all__ = ["RunRecords", "impatient_client", "put_right"]
