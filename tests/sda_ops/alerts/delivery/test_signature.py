from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from sda_ops.alerts.delivery.signature import signature_problem, signed_headers, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # of the specification's examples
NOW_S = 1_767_268_800


def test_the_signature_is_that_of_the_specifications_example() -> None:
    """standardwebhooks, README: secret, id, timestamp and body have this signature."""
    headers = signed_headers(
        signing_key(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "secret", [SECRET, "a", "text of any kind: äöü \U0001f6f0", "whsec_YQ"]
)  # the last one without padding
@pytest.mark.parametrize("body", ["", '{"name": "Ø 1"}', "x" * 100_000])
def test_the_specifications_own_library_accepts_what_is_signed(secret: str, body: str) -> None:
    theirs = Webhook(secret if secret.startswith("whsec_") else b64encode(secret.encode()).decode())
    now = datetime.now(UTC)  # their clock cannot be given
    headers = signed_headers(signing_key(secret), "0f8fad5b/0", int(now.timestamp()), body.encode())
    theirs.verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        theirs.verify(body + " ", headers, json_parse=False)


def test_a_receiver_accepts_what_the_specifications_own_library_has_signed() -> None:
    key, body = signing_key(SECRET), "{}"
    signed = Webhook(SECRET).sign("x/1", datetime.fromtimestamp(NOW_S, UTC), body)
    headers = {"webhook-id": "x/1", "webhook-timestamp": str(NOW_S), "webhook-signature": f"v1a,b {signed}"}
    assert signature_problem(key, headers, body.encode(), now_s=NOW_S) is None


@pytest.mark.parametrize(
    ("changes", "body", "now_s", "problem"),
    [
        ({}, b"{ }", NOW_S, "not that of this secret and body"),
        ({"webhook-id": "x/2"}, b"{}", NOW_S, "not that of this secret and body"),
        ({"webhook-timestamp": str(NOW_S + 1)}, b"{}", NOW_S, "not that of this secret and body"),
        ({"webhook-timestamp": "soon"}, b"{}", NOW_S, "expected whole seconds"),
        ({"webhook-signature": ""}, b"{}", NOW_S, "expected the headers"),
        ({}, b"{}", NOW_S + 301, "more than 300 s from this clock"),
        ({}, b"{}", NOW_S - 301, "more than 300 s from this clock"),
    ],
)
def test_a_receiver_rejects_what_was_changed_or_is_old(
    changes: dict[str, str], body: bytes, now_s: int, problem: str
) -> None:
    key = signing_key(SECRET)
    headers = signed_headers(key, "x/1", NOW_S, b"{}")
    assert signature_problem(key, headers, b"{}", now_s=now_s if "this clock" not in problem else NOW_S) is None
    found = signature_problem(key, headers | changes, body, now_s=now_s)
    assert found is not None
    assert problem in found


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_no base64!"])
def test_an_invalid_secret_is_rejected_without_repeating_it(secret: str) -> None:
    with pytest.raises(ValueError, match="the secret: expected") as rejected:
        signing_key(secret)
    assert "no base64!" not in str(rejected.value)
