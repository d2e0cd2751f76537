"""Who is who, on either transport: a challenge and an answer in both directions, keyed with what only the invited know.

HMAC-SHA256 over both sides' fresh nonces (RFC 2104), compared in constant time. Every message has a fixed length, so there is
nothing to parse before the peer is known. Sans-io.

    door   -> worker   magic, nonce
    worker -> door     token (which invitation), nonce, proof of the key
    door   -> worker   proof of the key
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

from orchestrator_adapter.bulkhead.errors import Refused

TOKEN_BYTES = 16
KEY_BYTES = 32
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_MAGIC = b"bulkhd-1"
CHALLENGE_BYTES = len(_MAGIC) + _NONCE_BYTES
HELLO_BYTES = TOKEN_BYTES + _NONCE_BYTES + _PROOF_BYTES
VERDICT_BYTES = _PROOF_BYTES


class DoorHandshake:
    """The side that listens.

    Attributes:
        challenge: What to send first.
    """

    def __init__(self) -> None:
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self.challenge = _MAGIC + self._nonce

    def judge(self, hello: bytes, key_of: Callable[[bytes], bytes | None]) -> tuple[bytes, bytes]:
        """The token of the invitation that the peer has, and the verdict to send. Raises ``Refused``.

        ``key_of`` knows each token's key, and ``None`` for one that nobody was given or that has been used.
        """
        token, nonce, proof = _split(hello)
        key = key_of(token)
        # Without such an invitation the work is the same: an answer's time tells nothing of which tokens there are.
        expected = _proof(key or secrets.token_bytes(KEY_BYTES), b"worker", token, self._nonce, nonce)
        if not hmac.compare_digest(expected, proof) or key is None:
            raise Refused("it does not hold an invitation that is still open" if key is None else "it has a wrong key")
        return token, _proof(key, b"door", token, nonce, self._nonce)


class WorkerHandshake:
    """The side that was invited."""

    def __init__(self, token: bytes, key: bytes) -> None:
        self._token = token
        self._key = key
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._door_nonce = b""

    def hello(self, challenge: bytes) -> bytes:
        """What to answer. Raises ``Refused`` where that is no challenge."""
        if len(challenge) != CHALLENGE_BYTES or not challenge.startswith(_MAGIC):
            raise Refused(f"expected a bulkhead's challenge, got {challenge[:16]!r}")
        self._door_nonce = challenge[len(_MAGIC) :]
        proof = _proof(self._key, b"worker", self._token, self._door_nonce, self._nonce)
        return self._token + self._nonce + proof

    def check(self, verdict: bytes) -> None:
        """Raises ``Refused`` unless the other side knows the key, too."""
        if not hmac.compare_digest(_proof(self._key, b"door", self._token, self._nonce, self._door_nonce), verdict):
            raise Refused("who listens there is not the bulkhead that sent the invitation")


def _split(hello: bytes) -> tuple[bytes, bytes, bytes]:
    proof_at = TOKEN_BYTES + _NONCE_BYTES
    return hello[:TOKEN_BYTES], hello[TOKEN_BYTES:proof_at], hello[proof_at:]


def _proof(key: bytes, side: bytes, token: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(key, _MAGIC + side + token + first + second, "sha256")
