"""A pipeline as one long-running Prefect flow. The only package of the adapter that imports Prefect.

Layout, top to bottom:

- ``compiled``: ``compile_flow``, ``run_flow``, the flow's body and who may stop it
- ``link``: the thread beside the data plane; ``delivery``: deliver, and look whether it arrived; ``display``: artifacts
- ``reconcile``: earlier runs put right; ``automations``: the ready ones
- ``records``: what outlives a run, on disk
- ``workers``: a bulkhead's workers as task runs, of a process pool, Dask or Ray
- ``task_runs``, ``decisions``, ``artifacts``, ``states``: what is told, as pure functions of supervision records
- ``outbox``, ``identity``, ``vocabulary``, ``options``: values; ``api``: one call, classified
- ``text``: foreign text made fit to be told
- ``internals``: everything undocumented of Prefect's
"""

from orchestrator_adapter.prefect_flow.compiled import compile_flow, run_flow
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.states import flow_state, task_state

__all__ = ["Reporting", "compile_flow", "flow_state", "run_flow", "task_state"]
