"""What a worker must know to come: where to, and how to prove that it was meant. It holds secrets.

It travels over a pipe or as a task's parameter, never on a command line or in the environment, where others may read it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from orchestrator_adapter.bulkhead.transport.handshake import KEY_BYTES, TOKEN_BYTES


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For TLS, as PEM: whom to trust, and the worker's own certificate with its key."""

    authority: str
    certificate: str
    private_key: str

    def __repr__(self) -> str:
        return "Credentials(…)"


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For one worker, once.

    Attributes:
        bulkhead: Whose worker it is to be.
        worker: Which, counted from 1.
        instance: The how-manieth of that number, counted from 1.
        target: What makes the handler: ``package.module:name``, a callable without arguments.
        token: Names this invitation.
        key: What proves it.
        path: The socket's path, for workers on this machine; empty if it is ``host`` and ``port``.
        host: Where to connect, and the name in the door's certificate.
        port: Likewise.
        credentials: For TLS; always there with a ``host``.
        max_bytes: Payload of a frame at most.
    """

    bulkhead: str
    worker: int
    instance: int
    target: str
    token: Annotated[bytes, msgspec.Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    max_bytes: int
    path: str = ""
    host: str = ""
    port: int = 0
    credentials: Credentials | None = None

    @property
    def title(self) -> str:
        """For people: ``propagator worker-1``, and ``propagator worker-1 #2`` after a restart."""
        return f"{self.bulkhead} worker-{self.worker}" + (f" #{self.instance}" if self.instance > 1 else "")

    def __repr__(self) -> str:
        return f"Invitation({self.title!r})"  # no secrets: it may end in a log

    def to_bytes(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Invitation:
        """Raises ``ValueError`` for anything else."""
        return msgspec.json.decode(data, type=cls)
