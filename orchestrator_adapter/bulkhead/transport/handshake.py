"""Mutual authentication of listener and worker: each proves that it knows the invitation's key. Sans-io.

HMAC-SHA256 over fresh nonces of both sides (RFC 2104), compared in constant time. Every message has a fixed length, so nothing
is parsed before the peer is authenticated.

    listener -> worker     challenge: magic, nonce
    worker   -> listener   hello: token (which invitation), nonce, proof of the key
    listener -> worker     proof of the key, or a rejection, which has the same length

A worker that gets no answer was not examined, and tries again. A worker that gets a rejection does not.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

from orchestrator_adapter.bulkhead.errors import PeerRejected

TOKEN_BYTES = 16
KEY_BYTES = 32
_NONCE_BYTES = 32
PROOF_BYTES = 32
_MAGIC = b"bulkhd-1"
CHALLENGE_BYTES = len(_MAGIC) + _NONCE_BYTES
HELLO_BYTES = TOKEN_BYTES + _NONCE_BYTES + PROOF_BYTES
REJECTION = b"rejected".ljust(PROOF_BYTES, b"\0")


class ListenerHandshake:
    """The listener's side.

    Attributes:
        challenge: The first message.
    """

    def __init__(self) -> None:
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self.challenge = _MAGIC + self._nonce

    def verify(self, hello: bytes, key_of: Callable[[bytes], bytes | None]) -> tuple[bytes, bytes]:
        """The token of the peer's invitation, and the listener's proof to send. Raises ``PeerRejected``.

        ``key_of`` returns the key of a token; ``None`` for a token that was never issued or has been used.
        """
        token, nonce, proof = _split(hello)
        key = key_of(token)
        # An unknown token costs the same work, so that the time of the answer does not reveal which tokens exist.
        expected = _proof(key or secrets.token_bytes(KEY_BYTES), b"worker", token, self._nonce, nonce)
        if not hmac.compare_digest(expected, proof) or key is None:
            raise PeerRejected("it does not have an unused invitation" if key is None else "it has a wrong key")
        return token, _proof(key, b"listener", token, nonce, self._nonce)


class WorkerHandshake:
    """The worker's side."""

    def __init__(self, token: bytes, key: bytes) -> None:
        self._token = token
        self._key = key
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._listener_nonce = b""

    def hello(self, challenge: bytes) -> bytes:
        """The answer to the challenge. Raises ``PeerRejected`` if it is not a challenge."""
        if len(challenge) != CHALLENGE_BYTES or not challenge.startswith(_MAGIC):
            raise PeerRejected(f"expected a bulkhead's challenge, got {challenge[:16]!r}")
        self._listener_nonce = challenge[len(_MAGIC) :]
        proof = _proof(self._key, b"worker", self._token, self._listener_nonce, self._nonce)
        return self._token + self._nonce + proof

    def check(self, proof: bytes) -> None:
        """Raise ``PeerRejected`` unless the listener has proved that it knows the key."""
        if proof == REJECTION:
            raise PeerRejected("the bulkhead rejected the invitation: it was used before, or is not from this bulkhead")
        if not hmac.compare_digest(
            _proof(self._key, b"listener", self._token, self._nonce, self._listener_nonce), proof
        ):
            raise PeerRejected("the listener is not the bulkhead that sent the invitation")


def _split(hello: bytes) -> tuple[bytes, bytes, bytes]:
    proof_at = TOKEN_BYTES + _NONCE_BYTES
    return hello[:TOKEN_BYTES], hello[TOKEN_BYTES:proof_at], hello[proof_at:]


def _proof(key: bytes, side: bytes, token: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(key, _MAGIC + side + token + first + second, "sha256")
