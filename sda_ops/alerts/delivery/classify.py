"""What follows from an answer to a delivery: acknowledged, try again soon, try again slowly, or park this alert.

===========================================================  ===========================================================
answer                                                       what follows
===========================================================  ===========================================================
2xx, also if its body is huge, endless or broken             acknowledged
408, 409, 425, 429, 5xx; no answer; network errors           try again; 429 and 503 after their ``Retry-After``
3xx (redirects are not followed), 401, 402, 403, 404, 405,   try again slowly: the address, the credentials or the server are
407, 411, 421, 426, 428; TLS; what is not HTTP               wrong, not this alert
4xx otherwise (400, 410, 413, 415, 422, …)                   park: this alert will not be accepted, others may be
===========================================================  ===========================================================

Pure functions of the answer.
"""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import TypeVar, assert_never

from orchestrator_adapter import Permanent, Retry, RetryDisposition, RetryOk
from orchestrator_adapter.resilience.http import HttpFailure

T = TypeVar("T")

SLOW = timedelta(minutes=1)
"""The pause before the next attempt if the subscriber has to be repaired by a person."""

_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})
_OF_THE_SUBSCRIBER = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.PAYMENT_REQUIRED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
        HTTPStatus.LENGTH_REQUIRED,
        HTTPStatus.MISDIRECTED_REQUEST,
        HTTPStatus.UPGRADE_REQUIRED,
        HTTPStatus.PRECONDITION_REQUIRED,
    }
)


def classify(answer: RetryOk[T] | Retry | Permanent, *, slow: timedelta = SLOW) -> RetryDisposition[T]:
    """The answer of ``resilience.http.submit`` for `with_retry`; ``Permanent`` means that this alert is to be parked."""
    match answer:
        case RetryOk() | Retry():
            return answer
        case Permanent(error):
            status = error.status if isinstance(error, HttpFailure) else None
            if status in _AGAIN:
                return Retry(error)
            is_of_the_alert = (
                status is not None and status >= HTTPStatus.BAD_REQUEST and status not in _OF_THE_SUBSCRIBER
            )
            return answer if is_of_the_alert else Retry(error, retry_after=slow)
        case _:
            assert_never(answer)
