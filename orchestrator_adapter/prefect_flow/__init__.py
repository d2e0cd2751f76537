"""A pipeline as one long-running Prefect flow. The only package of the adapter that imports Prefect."""

from orchestrator_adapter.prefect_flow.compiled import compile_flow, flow_state, run_flow, task_state

__all__ = ["compile_flow", "flow_state", "run_flow", "task_state"]
