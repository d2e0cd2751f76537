"""Whether the server may retry the current flow run."""

from __future__ import annotations

import logging

from prefect.context import FlowRunContext

from orchestrator_adapter.prefect_flow.client.api import ask, client_without_retries
from orchestrator_adapter.resilience.retry import RetryOk

logger = logging.getLogger("orchestrator_adapter.prefect")


def retries_left() -> bool:
    """Whether the server retries the current flow run when it fails now: its rule ``RetryFailedFlows``."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.run_count <= (context.flow_run.empirical_policy.retries or 0)


async def withdraw_retries() -> None:
    """Let the current flow run fail for good. Otherwise the server answers Failed with AwaitingRetry, and nothing retries it."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    policy = context.flow_run.empirical_policy.model_copy(update={"retries": 0})
    async with client_without_retries() as client:
        answer = await ask(client.update_flow_run(context.flow_run.id, empirical_policy=policy))
    if not isinstance(answer, RetryOk):
        logger.error("the retries of this run could not be withdrawn; Prefect may show it as AwaitingRetry: %s", answer)
