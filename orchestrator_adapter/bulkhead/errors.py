"""What can go wrong with a call into a bulkhead, and whose fault it is."""

from __future__ import annotations

from orchestrator_adapter.primitives.errors import OperatorError, OrchestratorError


class BatchLost(OperatorError):
    """The call's worker died or hung with it, and the next worker, too: it was resubmitted once, and is given up.

    The batch itself is the likely culprit: dead-letter its items, and go on.

    Attributes:
        method: What was called.
        losses: How often a worker was lost with it.
    """

    def __init__(self, message: str, *, method: str, losses: int) -> None:
        super().__init__(message)
        self.method = method
        self.losses = losses


class BulkheadExhausted(OperatorError):
    """Workers were lost more often than the budget for rebuilds admits. Nothing more can be called."""


class HandlerFailed(OrchestratorError):
    """The handler raised; its worker lives on. A bug of the handler's, or of who called it so.

    Attributes:
        error_type: The qualified name of what it raised.
        error_message: Its text.
        remote_traceback: The worker's traceback.
    """

    def __init__(self, message: str, *, error_type: str, error_message: str, remote_traceback: str) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.error_message = error_message
        self.remote_traceback = remote_traceback


class BulkheadClosed(OrchestratorError):
    """The caller's doing: the bulkhead has not been entered yet, or has been left."""


class BulkheadCannotStart(OrchestratorError, OSError):
    """The deployment's doing: a worker did not come about when the bulkhead was entered. Nothing of it is left."""


class Malformed(OrchestratorError):
    """The peer's doing: what it sent is not what the protocol admits. Its connection is closed."""


class Refused(OrchestratorError):
    """The peer's doing: it did not prove to be who was invited."""
