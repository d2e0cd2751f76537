"""How a worker comes about: an interface, so that a process pool, a Dask or a Ray cluster can each fill it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from orchestrator_adapter.bulkhead.transport.invitation import Invitation


@dataclass(frozen=True, slots=True)
class Network:
    """Where workers beyond this machine find the bulkhead: TCP with TLS, both sides with certificates.

    Attributes:
        host: The name or address by which they reach this machine; it is what the certificate says.
        bind: The address to listen on; ``host`` if ``None``.
        port: The port to listen on; 0 for any that is free.
    """

    host: str
    bind: str | None = None
    port: int = 0


class WorkerHandle(Protocol):
    """One launched worker, as far as its launcher can tell. Methods are called from one thread at a time."""

    def is_alive(self) -> bool:
        """Whether it may still come, or still be there. Does not block."""

    def kill(self, pid: int | None) -> None:
        """End it by force, if there is a way; ``pid`` is what it said when it joined. Harmless if it is gone.

        Its connection has been closed before: a worker that notices ends by itself. May block, briefly.
        """

    def stopped(self, crashed: str | None) -> None:
        """It is over: in order, or ``crashed``, and why. Release what belonged to it, and report its end. May block."""


class Launcher(Protocol):
    """Starts workers.

    Attributes:
        network: How they connect back; ``None`` for a socket on this machine's file system.
    """

    @property
    def network(self) -> Network | None: ...

    def launch(self, invitation: Invitation) -> WorkerHandle:
        """Start a worker that accepts the invitation (``worker.serve``). May block: it is called on a thread.

        Raises ``OSError`` where it cannot be started.
        """
