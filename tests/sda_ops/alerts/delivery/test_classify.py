from __future__ import annotations

import ssl
from datetime import timedelta

import httpx
import pytest

from orchestrator_adapter import Permanent, Retry, RetryDisposition, RetryOk
from orchestrator_adapter.resilience.http import classify_error, classify_status
from sda_ops.alerts.delivery.classify import SLOW, classify


def answered(status: int, **headers: str) -> RetryOk[int] | Retry | Permanent:
    """What ``submit`` returns for this status."""
    failed = classify_status("POST http://subscriber/", status, headers, now_ns=0)
    return RetryOk(status) if failed is None else failed


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_an_acknowledgement(status: int) -> None:
    assert classify(answered(status)) == RetryOk(status)


@pytest.mark.parametrize("status", [400, 406, 409 + 1, 412, 413, 414, 415, 422, 431, 451, 499])
def test_an_alert_that_is_rejected_is_parked(status: int) -> None:
    assert isinstance(classify(answered(status)), Permanent)


@pytest.mark.parametrize("status", [101, 199, 300, 301, 302, 304, 307, 308, 401, 402, 403, 404, 405, 407, 421, 426])
def test_a_subscriber_that_is_wrong_itself_is_asked_slowly_and_parks_nothing(status: int) -> None:
    answer = classify(answered(status, location="https://elsewhere.example/"))
    assert isinstance(answer, Retry)
    assert answer.retry_after == SLOW


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 501, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again_soon(status: int) -> None:
    answer = classify(answered(status))
    assert isinstance(answer, Retry)
    assert answer.retry_after is None


def test_the_pause_that_a_subscriber_asks_for_is_kept() -> None:
    for status in (429, 503):
        answer = classify(answered(status, **{"retry-after": "7"}))
        assert isinstance(answer, Retry)
        assert answer.retry_after == timedelta(seconds=7)


def test_a_wrong_certificate_parks_nothing() -> None:
    error = httpx.ConnectError("tls")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    answer: RetryDisposition[int] = classify(
        classify_error("POST https://subscriber/", error), slow=timedelta(seconds=9)
    )
    assert isinstance(answer, Retry)
    assert answer.retry_after == timedelta(seconds=9)


def test_a_lost_connection_is_tried_again_soon() -> None:
    answer: RetryDisposition[int] = classify(classify_error("POST http://subscriber/", httpx.ReadError("reset")))
    assert isinstance(answer, Retry)
    assert answer.retry_after is None
