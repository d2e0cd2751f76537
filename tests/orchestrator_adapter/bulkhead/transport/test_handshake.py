from __future__ import annotations

import pytest

from orchestrator_adapter.bulkhead.errors import PeerRejected
from orchestrator_adapter.bulkhead.transport.handshake import HELLO_BYTES, ListenerHandshake, WorkerHandshake
from orchestrator_adapter.bulkhead.transport.invitation import Credentials, Invitation

TOKEN, KEY = b"t" * 16, b"k" * 32


def test_both_sides_prove_that_they_know_the_key() -> None:
    """Both proofs are valid, and the listener learns which invitation it was."""
    listener, worker = ListenerHandshake(), WorkerHandshake(TOKEN, KEY)
    hello = worker.hello(listener.challenge)
    assert len(hello) == HELLO_BYTES
    token, proof = listener.verify(hello, {TOKEN: KEY}.get)
    assert token == TOKEN
    worker.check(proof)


@pytest.mark.parametrize("at", [16, 47, 48, HELLO_BYTES - 1])
def test_a_changed_bit_of_the_nonce_or_the_proof_is_rejected(at: int) -> None:
    """A hello that was modified in transit is rejected."""
    listener = ListenerHandshake()
    hello = bytearray(WorkerHandshake(TOKEN, KEY).hello(listener.challenge))
    hello[at] ^= 1
    with pytest.raises(PeerRejected, match="it has a wrong key"):
        listener.verify(bytes(hello), {TOKEN: KEY}.get)


def test_a_wrong_key_and_an_unknown_token_are_rejected() -> None:
    """The key of another invitation is rejected, and so is a token that was never issued."""
    listener = ListenerHandshake()
    with pytest.raises(PeerRejected, match="it has a wrong key"):
        listener.verify(WorkerHandshake(TOKEN, b"x" * 32).hello(listener.challenge), {TOKEN: KEY}.get)
    with pytest.raises(PeerRejected, match="an unused invitation"):
        listener.verify(WorkerHandshake(b"u" * 16, KEY).hello(listener.challenge), {TOKEN: KEY}.get)


def test_a_replayed_hello_is_rejected() -> None:
    """Each challenge is fresh: a hello recorded for one challenge is no answer to another."""
    hello = WorkerHandshake(TOKEN, KEY).hello(ListenerHandshake().challenge)
    with pytest.raises(PeerRejected, match="it has a wrong key"):
        ListenerHandshake().verify(hello, {TOKEN: KEY}.get)


def test_a_worker_rejects_its_own_proof_and_an_invalid_proof() -> None:
    """An impostor without the key cannot reflect the worker's proof."""
    worker = WorkerHandshake(TOKEN, KEY)
    hello = worker.hello(ListenerHandshake().challenge)
    for proof in (hello[-32:], bytes(32)):
        with pytest.raises(PeerRejected, match="not the bulkhead that sent the invitation"):
            worker.check(proof)


@pytest.mark.parametrize("challenge", [b"", b"HTTP/1.1 400 Bad Request\r\n", bytes(40)])
def test_a_worker_answers_only_a_bulkheads_challenge(challenge: bytes) -> None:
    """Nothing, another protocol, and zeros are rejected."""
    with pytest.raises(PeerRejected, match="expected a bulkhead's challenge"):
        WorkerHandshake(TOKEN, KEY).hello(challenge)


def test_an_invitation_survives_json_and_its_repr_shows_no_secret() -> None:
    """The decoded invitation is equal; neither key nor certificate is in its text."""
    credentials = Credentials(authority="A", certificate="C", private_key="very private")
    invitation = Invitation("pool", 2, 3, "a:b", TOKEN, KEY, 100, host="h", port=1, credentials=credentials)
    assert Invitation.from_bytes(invitation.to_bytes()) == invitation
    assert repr(invitation) == "Invitation('pool worker-2 #3')"
    assert "private" not in repr(credentials)
    with pytest.raises(ValueError, match="length"):
        Invitation.from_bytes(invitation.to_bytes().replace(b"dHR0", b""))
