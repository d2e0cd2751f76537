"""Watches the state of the flow run on the server while the pipeline streams. Anyone may set it, in the UI or with a client.

A cancellation is passed on. Every other state than Running is wrong as long as the run is alive, and is set back, so that the
server shows what the pipeline does. What follows from a state is decided by ``states.reaction_to``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, assert_never
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound

from orchestrator_adapter.prefect_flow.client.api import ask
from orchestrator_adapter.prefect_flow.states import KeepRunning, SetBack, StopRun, reaction_to
from orchestrator_adapter.resilience.retry import Permanent, RetryDisposition, RetryOk

logger = logging.getLogger("orchestrator_adapter.prefect")


class FlowRunWatch:
    """The state of one flow run.

    Attributes:
        cancelled: The server says that the run was cancelled.
    """

    def __init__(self, flow_run_id: UUID, *, on_cancel: Callable[[str], object], log: Callable[[str], object]) -> None:
        """``on_cancel`` is called once, with the reason. ``log`` writes a warning to the log of the flow run."""
        self.cancelled = False
        self._flow_run_id = flow_run_id
        self._on_cancel = on_cancel
        self._log = log
        self._is_missing = False

    async def check(self, client: PrefectClient, *, has_ended: bool) -> RetryDisposition[Any]:
        """Read the state and react to it. A pipeline that ``has_ended`` sets no state back. Returns the last answer."""
        answer = await ask(client.read_flow_run(self._flow_run_id))
        if isinstance(answer, Permanent) and isinstance(answer.error, ObjectNotFound) and not self._is_missing:
            self._is_missing = True
            logger.error("flow run %s was deleted in Prefect; the pipeline runs on and is not shown", self._flow_run_id)
        if not isinstance(answer, RetryOk) or (state := answer.value.state) is None or self.cancelled:
            return answer
        match reaction_to(state):
            case KeepRunning():
                return answer
            case StopRun(reason):
                self.cancelled = True
                self._on_cancel(reason)
                return answer
            case SetBack(message, why):
                return answer if has_ended else await self._set_back(client, answer.value, message, why)
            case other:
                assert_never(other)

    async def _set_back(
        self, client: PrefectClient, flow_run: FlowRun, message: str, why: str
    ) -> RetryDisposition[Any]:
        """Set the flow run Running without counting a new attempt: retries and reconciliation go by the count."""
        logger.warning("%s", why)
        resuming = flow_run.empirical_policy.model_copy(update={"resuming": True})
        answer: RetryDisposition[Any] = await ask(client.update_flow_run(self._flow_run_id, empirical_policy=resuming))
        if isinstance(answer, RetryOk):
            running: State[None] = State(type=StateType.RUNNING, name="Running", message=message)
            answer = await ask(client.set_flow_run_state(self._flow_run_id, running, force=True))
        if isinstance(answer, RetryOk):
            self._log(why)
        elif isinstance(answer, Permanent):
            logger.error("Prefect rejects setting the run Running again: %s", answer.error)
        return answer
