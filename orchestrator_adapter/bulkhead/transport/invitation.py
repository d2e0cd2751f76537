"""What a worker needs in order to connect: the address, and the secrets that authenticate it.

It travels over a pipe or as a task's parameter, never on a command line or in the environment, where other users may read it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from orchestrator_adapter.bulkhead.transport.handshake import KEY_BYTES, TOKEN_BYTES


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For TLS, as PEM: the trusted authority, and one side's certificate with its private key."""

    authority: str
    certificate: str
    private_key: str

    def __repr__(self) -> str:
        return "Credentials(…)"


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For one worker instance; it can be used once.

    Attributes:
        bulkhead: The bulkhead's name.
        worker: The worker's number, counted from 1.
        instance: 1 for the first worker with this number; each restart adds 1.
        target: What makes the handler: ``package.module:name``, a callable without arguments.
        token: Identifies this invitation.
        key: The shared secret that both sides prove to know.
        max_bytes: The largest payload of a frame.
        path: The socket's address, for workers on this machine: on Linux a name that begins with NUL and is in no file system,
            elsewhere a path. Empty if ``host`` and ``port`` are used.
        host: The listener's host, and the name in its certificate.
        port: The listener's port.
        credentials: The worker's TLS credentials; always set together with ``host``.
        start_within_s: How long the worker tries to connect.
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
    start_within_s: float = 60.0

    @property
    def title(self) -> str:
        """For logs and task run names: ``propagator worker-1``, and ``propagator worker-1 #2`` after a restart."""
        return f"{self.bulkhead} worker-{self.worker}" + (f" #{self.instance}" if self.instance > 1 else "")

    def __repr__(self) -> str:
        return f"Invitation({self.title!r})"  # without secrets: it may be logged

    def to_bytes(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Invitation:
        """Raises ``ValueError`` for anything else."""
        return msgspec.json.decode(data, type=cls)
