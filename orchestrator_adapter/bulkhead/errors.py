"""What can go wrong with a call into a bulkhead, and which side is at fault."""

from __future__ import annotations

from enum import StrEnum

from orchestrator_adapter.primitives.errors import OperatorError, OrchestratorError


class BatchLost(OperatorError):
    """The worker died or hung during this call, and so did the next worker. The call is not submitted a third time.

    The batch itself is the likely cause: dead-letter its items and continue.

    Attributes:
        method: The method that was called.
        losses: How many workers were lost during the call.
    """

    def __init__(self, message: str, *, method: str, losses: int) -> None:
        super().__init__(message)
        self.method = method
        self.losses = losses


class BulkheadExhausted(OperatorError):
    """Workers were lost more often than the budget ``rebuilds`` admits. No further call is possible."""


class HandlerFailed(OrchestratorError):
    """The handler raised an exception; its worker continues. A bug in the handler, or in the arguments of the call.

    Attributes:
        error_type: The qualified name of the exception's type.
        error_message: The exception's text.
        remote_traceback: The worker's traceback.
    """

    def __init__(self, message: str, *, error_type: str, error_message: str, remote_traceback: str) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.error_message = error_message
        self.remote_traceback = remote_traceback


class BulkheadClosed(OrchestratorError):
    """The caller's fault: the bulkhead was called before it was entered, or after it was closed."""


class BulkheadCannotStart(OrchestratorError, OSError):
    """The deployment's fault: the bulkhead cannot listen, or a worker did not start when it was entered. All were stopped."""


class Malformed(OrchestratorError):
    """The peer's fault: it sent what the protocol does not allow. Its connection is closed."""


class PeerRejected(OrchestratorError):
    """The peer's fault: it did not prove that it knows the invitation's key."""


class Rejection(StrEnum):
    """Why a connection was not admitted. Stable names, for logs and metrics."""

    NOT_ACCEPTED = "not_accepted"
    """``accept`` failed, for example because the process has no free file descriptor."""
    OTHER_USER = "other_user"
    """The peer on this machine is a process of another user."""
    DISPLACED = "displaced"
    """There were too many pending handshakes, and it was the oldest."""
    TIMED_OUT = "timed_out"
    """It did not finish the handshake in time."""
    NO_CERTIFICATE = "no_certificate"
    """It does not speak TLS, or has no certificate of this bulkhead's authority."""
    NOT_AUTHENTICATED = "not_authenticated"
    """It has no unused invitation or a wrong key, or it disconnected during the handshake."""
