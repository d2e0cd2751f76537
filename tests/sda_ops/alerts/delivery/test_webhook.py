from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from standardwebhooks.webhooks import Webhook as StandardWebhook

from sda_ops.alerts.delivery.signature import signing_key
from sda_ops.alerts.delivery.webhook import Webhook, webhook_request
from sda_ops.records.alert import Alert
from tests.helpers.alerts import risk
from tests.helpers.running import NOON_NS

ALERT = Alert(conjunction_id=UUID(int=1), revision=3, severity="high", recorded_timestamp=NOON_NS, risk=risk(0, 3))
URL = "https://user:word@subscriber.example/alerts?token=t"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_key_is_the_idempotency_key_and_the_messages_id() -> None:
    webhook = Webhook(name="a", url=URL, body=lambda _: b"", content_type="application/xml", key=signing_key(SECRET))
    request = webhook_request(webhook, ALERT, b"<cdm/>", now_ns=NOON_NS)
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["idempotency-key"] == request.headers["webhook-id"] == f"{UUID(int=1)}/3"
    assert request.headers["content-type"] == "application/xml"
    assert request.content == b"<cdm/>"


def test_each_attempt_is_signed_at_its_own_time_so_that_the_specifications_library_accepts_it() -> None:
    webhook = Webhook(name="a", url=URL, body=lambda _: b"", key=signing_key(SECRET))
    now = datetime.now(UTC)  # the library's clock cannot be given
    request = webhook_request(webhook, ALERT, b'{"a": 1}', now_ns=int(now.timestamp()) * 10**9)
    assert StandardWebhook(SECRET).verify('{"a": 1}', dict(request.headers)) == {"a": 1}
    later = webhook_request(webhook, ALERT, b'{"a": 1}', now_ns=int(now.timestamp() + 60) * 10**9)
    assert later.headers["webhook-signature"] != request.headers["webhook-signature"]
    assert later.headers["webhook-id"] == request.headers["webhook-id"]


def test_without_a_secret_nothing_is_signed() -> None:
    request = webhook_request(Webhook(name="a", url=URL, body=lambda _: b""), ALERT, b"", now_ns=NOON_NS)
    assert not [name for name in request.headers if name.startswith("webhook-")]


def test_its_text_has_neither_the_address_nor_the_key() -> None:
    shown = repr(Webhook(name="a", url=URL, body=lambda _: b"", key=b"key-of-it"))
    assert "word" not in shown
    assert "key-of-it" not in shown


def test_values_out_of_bounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"Webhook: max_per_s.*> 0") as raised:
        Webhook(name="a", url=URL, body=lambda _: b"", max_per_s=0.0, concurrency=0)
    assert "concurrency" in str(raised.value)
