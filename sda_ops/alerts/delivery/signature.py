"""The signature of a webhook by the Standard Webhooks specification (standardwebhooks.com, version 1.0.0).

Three headers: ``webhook-id`` (the same for every attempt), ``webhook-timestamp`` (of this attempt, seconds UTC) and
``webhook-signature``: ``v1,`` and the base64 text of HMAC-SHA256 over ``<id>.<timestamp>.<body>``. A receiver rejects a
timestamp that is far from its own clock, so that a recorded request cannot be sent again later. Knows nothing of alerts.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

TOLERANCE_S = 300
"""How far a timestamp may be from the receiver's clock. Five minutes, as in the specification's own libraries."""

_PREFIX = "whsec_"
_VERSION = "v1,"


def signing_key(secret: str) -> bytes:
    """The key of a shared secret: ``whsec_`` and base64, or any other text, whose UTF-8 bytes are the key.

    Raises ``ValueError``, whose message does not repeat the secret.
    """
    if not secret.startswith(_PREFIX):
        key = secret.encode()
    else:
        coded = secret.removeprefix(_PREFIX)
        try:
            key = b64decode(coded + "=" * (-len(coded) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"the secret: expected base64 after {_PREFIX!r}") from None
    if not key:
        raise ValueError("the secret: expected at least one character, got none")
    return key


def signed_headers(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers of one attempt."""
    return {ID: message_id, TIMESTAMP: str(timestamp_s), SIGNATURE: _signature(key, message_id, str(timestamp_s), body)}


def signature_problem(key: bytes, headers: Mapping[str, str], body: bytes, *, now_s: float) -> str | None:
    """For a receiver: why the request cannot be trusted; ``None`` if its signature is right. ``headers`` in lower case.

    A header may have several signatures, separated by spaces, while a secret is being changed: one right one suffices.
    """
    message_id, timestamp, signatures = headers.get(ID), headers.get(TIMESTAMP), headers.get(SIGNATURE)
    if not (message_id and timestamp and signatures):
        return f"expected the headers {ID}, {TIMESTAMP} and {SIGNATURE}"
    if not (timestamp.isascii() and timestamp.isdecimal()):
        return f"{TIMESTAMP}: expected whole seconds"
    if abs(now_s - int(timestamp)) > TOLERANCE_S:
        return f"{TIMESTAMP} is more than {TOLERANCE_S} s from this clock"
    right = _signature(key, message_id, timestamp, body).encode()
    if not any(hmac.compare_digest(right, each.encode()) for each in signatures.split(" ")):
        return "the signature is not that of this secret and body"
    return None


def _signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    return _VERSION + b64encode(hmac.digest(key, signed, "sha256")).decode()
