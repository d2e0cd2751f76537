"""Runs a pipeline as one long-running Prefect flow. The only package of the adapter that imports Prefect.

Layout, top to bottom:

- ``compiled``: ``compile_flow`` and ``run_flow``; the flow's body, and what counts as a request to stop it
- ``automations``: ready-made Prefect automations on the supervisor's events
- ``workers``: a bulkhead's workers as task runs, on a process pool, Dask or Ray
- ``reporting/``: reports a run to Prefect from a thread of its own, beside the data plane
- ``states``, ``options``: the Prefect state of each outcome and exit; the options of reporting
- ``recovery/``: run records on disk, and reconciling earlier runs with the server
- ``client/``: calls to Prefect's API, the names of our events, and everything undocumented that this package relies on

Import from here and from ``.automations``, ``.workers`` and ``.recovery``. The other modules are internal.
"""

from orchestrator_adapter.prefect_flow.compiled import compile_flow, run_flow
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.states import flow_state, task_state

__all__ = ["Reporting", "compile_flow", "flow_state", "run_flow", "task_state"]
