"""The interface by which a bulkhead starts workers; a process pool, a Dask cluster or a Ray cluster can each implement it."""

from __future__ import annotations

from typing import Protocol

from orchestrator_adapter.bulkhead.transport.invitation import Invitation
from orchestrator_adapter.bulkhead.transport.network import Network


class WorkerHandle(Protocol):
    """One launched worker, as far as its launcher can observe and control it. Called from one thread at a time."""

    def is_alive(self) -> bool:
        """Whether it may still connect, or still runs. Does not block."""

    def kill(self, pid: int | None) -> None:
        """Kill it, if the launcher can. ``pid`` is the process id that the worker reported when it connected.

        Harmless if it has ended. The bulkhead has closed the connection before, and a worker ends itself when it notices
        that. May block briefly.
        """

    def stopped(self, crashed: str | None) -> None:
        """It ended in order (``crashed`` is ``None``), or it was lost (``crashed`` is the reason).

        Reap it, release its resources and report its end. May block.
        """


class Launcher(Protocol):
    """Starts workers.

    Attributes:
        network: How workers connect; ``None`` for a socket in this machine's file system.
    """

    @property
    def network(self) -> Network | None: ...

    def launch(self, invitation: Invitation) -> WorkerHandle:
        """Start a worker that calls ``worker.serve(invitation)``. May block: it is called on a thread.

        Raises ``OSError`` if it cannot be started.
        """
