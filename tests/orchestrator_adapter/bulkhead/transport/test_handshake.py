from __future__ import annotations

import pytest

from orchestrator_adapter.bulkhead.errors import PeerRejected
from orchestrator_adapter.bulkhead.transport.handshake import HELLO_BYTES, ListenerHandshake, WorkerHandshake
from orchestrator_adapter.bulkhead.transport.invitation import Credentials, Invitation

TOKEN, KEY = b"t" * 16, b"k" * 32


def test_who_has_the_key_is_let_in_and_knows_that_the_other_has_it_too() -> None:
    """Both proofs hold, and the door learns which invitation it was."""
    door, worker = ListenerHandshake(), WorkerHandshake(TOKEN, KEY)
    hello = worker.hello(door.challenge)
    assert len(hello) == HELLO_BYTES
    token, verdict = door.verify(hello, {TOKEN: KEY}.get)
    assert token == TOKEN
    worker.check(verdict)


@pytest.mark.parametrize("at", [16, 47, 48, HELLO_BYTES - 1])
def test_one_bit_of_the_nonce_or_the_proof_makes_it_worthless(at: int) -> None:
    """A hello changed on its way is refused."""
    door = ListenerHandshake()
    hello = bytearray(WorkerHandshake(TOKEN, KEY).hello(door.challenge))
    hello[at] ^= 1
    with pytest.raises(PeerRejected, match="it has a wrong key"):
        door.verify(bytes(hello), {TOKEN: KEY}.get)


def test_a_wrong_key_and_an_unknown_token_are_refused() -> None:
    """The key of another invitation does not do, nor does one that nobody was sent."""
    door = ListenerHandshake()
    with pytest.raises(PeerRejected, match="it has a wrong key"):
        door.verify(WorkerHandshake(TOKEN, b"x" * 32).hello(door.challenge), {TOKEN: KEY}.get)
    with pytest.raises(PeerRejected, match="an unused invitation"):
        door.verify(WorkerHandshake(b"u" * 16, KEY).hello(door.challenge), {TOKEN: KEY}.get)


def test_a_recorded_hello_opens_no_second_door() -> None:
    """Each challenge is fresh: what answered one does not answer the next."""
    hello = WorkerHandshake(TOKEN, KEY).hello(ListenerHandshake().challenge)
    with pytest.raises(PeerRejected, match="it has a wrong key"):
        ListenerHandshake().verify(hello, {TOKEN: KEY}.get)


def test_a_worker_does_not_take_its_own_proof_for_the_doors() -> None:
    """An impostor without the key that sends back what it was sent, or anything else, is found out."""
    worker = WorkerHandshake(TOKEN, KEY)
    hello = worker.hello(ListenerHandshake().challenge)
    for verdict in (hello[-32:], bytes(32)):
        with pytest.raises(PeerRejected, match="not the bulkhead that sent the invitation"):
            worker.check(verdict)


@pytest.mark.parametrize("challenge", [b"", b"HTTP/1.1 400 Bad Request\r\n", bytes(40)])
def test_what_is_no_challenge_is_not_answered(challenge: bytes) -> None:
    """Whoever listens there has to begin as a bulkhead does."""
    with pytest.raises(PeerRejected, match="expected a bulkhead's challenge"):
        WorkerHandshake(TOKEN, KEY).hello(challenge)


def test_an_invitation_travels_as_json_and_shows_no_secret() -> None:
    """It is the same at the other end; its text has neither key nor certificate in it."""
    credentials = Credentials(authority="A", certificate="C", private_key="very private")
    invitation = Invitation("pool", 2, 3, "a:b", TOKEN, KEY, 100, host="h", port=1, credentials=credentials)
    assert Invitation.from_bytes(invitation.to_bytes()) == invitation
    assert repr(invitation) == "Invitation('pool worker-2 #3')"
    assert "private" not in repr(credentials)
    with pytest.raises(ValueError, match="length"):
        Invitation.from_bytes(invitation.to_bytes().replace(b"dHR0", b""))
