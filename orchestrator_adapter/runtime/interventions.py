"""What a person may do to a running graph: pause a source, resume it, force a circuit breaker. Called on the graph's loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.operators.pause import Pause
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.event_log import DecisionLog
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.runtime.operator_run import OperatorRun

ForcedState: TypeAlias = Literal["open", "closed", "auto"]
"""``auto`` ends the forcing."""


class UnknownName(OrchestratorError, LookupError):
    """There is no source, or no circuit breaker, of that name. The message has those that there are."""


class CannotIntervene(OrchestratorError):
    """It is too late: the source has ended, or the graph drains."""


class Interventions:
    """The interventions in one graph. Each one that changes something is a decision."""

    def __init__(
        self, runs: Mapping[str, OperatorRun], breakers: Breakers, token: ShutdownToken, log: DecisionLog
    ) -> None:
        self._runs = runs
        self._breakers = breakers
        self._token = token
        self._log = log

    def pause_source(self, name: str, reason: str) -> bool:
        """See ``BuiltGraph.pause_source``."""
        pause = self._pause_of(name)
        if self._token.is_set:
            raise CannotIntervene(f"the graph drains ({self._token.reason}): a source cannot be paused any more")
        if self._runs[name].has_ended:
            raise CannotIntervene(f"source {name!r} has ended: it cannot be paused any more")
        if not pause.begin(reason or "no reason was given"):
            return False
        self._log(Decision.SOURCE_PAUSED, operator=name, reason=pause.reason)
        return True

    def resume_source(self, name: str, reason: str) -> bool:
        """See ``BuiltGraph.resume_source``."""
        if not self._pause_of(name).end():
            return False
        self._log(Decision.SOURCE_RESUMED, operator=name, reason=reason)
        return True

    def force_breaker(self, name: str, state: ForcedState, reason: str) -> None:
        """See ``BuiltGraph.force_breaker``."""
        breakers = self._breakers.by_name
        if (breaker := breakers.get(name)) is None:
            raise UnknownName(f"there is no circuit breaker {name!r}; there are: {_listed(breakers)}")
        match state:
            case "open":
                breaker.force_open(reason)
            case "closed":
                breaker.force_closed(reason)
            case "auto":
                breaker.release(reason)

    def _pause_of(self, name: str) -> Pause:
        run = self._runs.get(name)
        if run is None or run.services.pause is None:
            sources = {each.name: each for each in self._runs.values() if each.vertex.role is Role.SOURCE}
            raise UnknownName(f"there is no source {name!r}; there are: {_listed(sources)}")
        return run.services.pause


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"
