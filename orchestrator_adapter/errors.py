"""Every error the orchestrator raises, and whose fault each one is.

Knows nothing of channels, tasks or graphs: it only names what can go wrong with them.
"""

from __future__ import annotations


class OrchestratorError(Exception):
    """Base of every error defined here."""


class OperatorError(OrchestratorError):
    """An expected, operational failure of an operator: the world's fault, not the code's.

    Raise it (or a subclass, or any ``OSError``) from an operator whose restart may help. Anything else that escapes an
    operator is taken for a bug and is never restarted.
    """


class Stalled(OperatorError):
    """An operator had input waiting and acknowledged nothing for its ``progress_timeout``."""


class DeadLetterLimitExceeded(OperatorError):
    """Too many of an operator's items became dead letters: the deployment is at fault, not the items."""


class ReaderGone(OperatorError):
    """The peer's doing: the operator that read this edge has ended for good, so nothing more can be sent on it."""


class ReaderDone(ReaderGone):
    """Nobody's fault: by the run's end rule the reader has had all it wanted, so its writer has nothing left to do."""


class EndOfStream(OrchestratorError):
    """``recv()`` was called after the writer closed the edge and everything in it was read."""


class EdgeMisuse(OrchestratorError):
    """The caller's bug: two readers or two writers on one edge, or an end used that the role does not have."""


class DuplicateRun(OrchestratorError):
    """The caller's bug: ``run()`` was awaited a second time on one built graph."""
