"""One delivery as an HTTP request: a POST with the alert in the subscriber's format, its key, and a signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import httpx

from orchestrator_adapter import check_fields
from orchestrator_adapter.resilience.http import HIDE_PATH
from sda_ops.alerts.delivery.signature import signed_headers
from sda_ops.records.alert import Alert

_NS_PER_S = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where and how one subscriber receives its alerts.

    Attributes:
        name: As in the outbox's `SubscriberRules`.
        url: The address that alerts are posted to. Certificates are verified, and redirects are not followed.
        hide_path: The path of the address is in no message and no log.
        body: Writes an alert in the subscriber's format. An exception parks this alert for this subscriber.
        content_type: Of the body.
        key: Signs the requests (`signing_key`); ``None``: no signature.
        max_per_s: The greatest number of requests a second, repeats included, evenly spaced; ``None``: no bound. It keeps a
            subscriber that has been down from being flooded.
        timeout: For one whole request, until the header of the answer has come.
        concurrency: How many requests are under way at once, each for another conjunction.
    """

    name: str
    url: str = field(repr=False)  # it may have credentials
    body: Callable[[Alert], bytes] = field(repr=False)
    content_type: str = "application/json"
    key: bytes | None = field(default=None, repr=False)
    max_per_s: float | None = 10.0
    timeout: timedelta = timedelta(seconds=10)
    hide_path: bool = False
    concurrency: int = 2

    def __post_init__(self) -> None:
        check_fields(
            "Webhook",
            ("max_per_s", self.max_per_s, self.max_per_s is None or self.max_per_s > 0, "> 0, or None"),
            ("timeout", self.timeout, self.timeout > timedelta(0), "> 0"),
            ("concurrency", self.concurrency, self.concurrency >= 1, ">= 1"),
        )


def webhook_request(webhook: Webhook, alert: Alert, body: bytes, *, now_ns: int) -> httpx.Request:
    """The request of one attempt. The signature is of this moment: receivers reject an old one.

    ``Idempotency-Key`` and ``webhook-id`` are `Alert.key`, the same for every attempt. Raises ``httpx.InvalidURL``.
    """
    signed = {} if webhook.key is None else signed_headers(webhook.key, alert.key, now_ns // _NS_PER_S, body)
    headers = {"Content-Type": webhook.content_type, "Idempotency-Key": alert.key, "User-Agent": "sda-fusion"} | signed
    extensions = {HIDE_PATH: webhook.hide_path}
    return httpx.Request("POST", webhook.url, content=body, headers=headers, extensions=extensions)
