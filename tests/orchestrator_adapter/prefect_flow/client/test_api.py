"""The classification of one API call, and the validation of the reporting options."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prefect import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from orchestrator_adapter.prefect_flow.client.api import ask, client_without_retries
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryOk
from orchestrator_adapter.testing import run_schedule
from tests.helpers.prefect_fakes import answered


async def raises(error: BaseException) -> None:
    raise error


async def test_an_answer_is_ok_with_its_value() -> None:
    """``None`` is a value too."""

    async def call(value: int | None) -> int | None:
        return value

    assert await ask(call(7)) == RetryOk(7)
    assert await ask(call(None)) == RetryOk(None)


@pytest.mark.parametrize("code", [500, 502, 503, 504, 599, 408, 409, 425, 429])
async def test_a_failing_server_is_worth_a_retry(code: int) -> None:
    """Every 5xx, and the four codes that mean "later"."""
    error = answered(code)
    assert await ask(raises(error)) == Retry(error)


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 405, 413, 422, 428, 451, 499])
async def test_a_rejection_is_permanent(code: int) -> None:
    """The server would reject the same call again."""
    error = answered(code)
    assert await ask(raises(error)) == Permanent(error)


async def test_a_missing_object_is_permanent() -> None:
    """Prefect's client raises an exception of its own for it."""
    error = ObjectNotFound(answered(404))
    assert await ask(raises(error)) == Permanent(error)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("connection refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("hung up"),
        ConnectionResetError("gone"),
        OSError("no route"),
    ],
)
async def test_an_unreachable_server_is_worth_a_retry(error: Exception) -> None:
    """For each kind of connection error."""
    assert await ask(raises(error)) == Retry(error)


@pytest.mark.parametrize("error", [KeyError("bug"), asyncio.CancelledError(), ValueError("bug")])
async def test_a_bug_and_a_cancellation_are_raised(error: BaseException) -> None:
    """They are not classified."""
    with pytest.raises(type(error)):
        await ask(raises(error))


def test_a_call_without_an_answer_times_out_after_10_s() -> None:
    """Or after the given limit. It is then worth a retry, and the error has the limit."""
    waits: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for limit in ({}, {"within_s": 2.5}):
            began = loop.time()
            answer = await ask(asyncio.sleep(60), **limit)
            waits.append(loop.time() - began)
            assert isinstance(answer, Retry)
            assert isinstance(answer.error, TimeoutError)
            assert str(answer.error) == f"not answered within {limit.get('within_s', 10.0):g} s"
        assert isinstance(await ask(asyncio.sleep(9.9)), RetryOk)

    run_schedule({}, main)
    assert waits == [10.0, 2.5]


async def test_the_client_without_retries_does_not_repeat_a_call() -> None:
    """Prefect's own retries take minutes. The former setting is restored afterwards."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 5}):
        async with client_without_retries() as client:
            assert PREFECT_CLIENT_MAX_RETRIES.value() == 0
            assert type(client) is type(get_client())
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 5


@pytest.mark.parametrize("name", ["status_every", "look_every", "patience", "patience_when_stopped"])
@pytest.mark.parametrize("value", [timedelta(0), timedelta(seconds=-1)])
def test_a_duration_of_zero_or_less_is_an_error(name: str, value: timedelta) -> None:
    """The message has the field's name and the value."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=re.escape(f"Reporting: {name} must be > 0, got {value!r}")):
        Reporting(**options)
    Reporting(**{name: timedelta(microseconds=1)})  # type: ignore[arg-type] # the field is a parameter


def test_a_queue_below_1_is_an_error() -> None:
    """The smallest queue is 1."""
    Reporting(queue=1)
    with pytest.raises(ValueError, match="Reporting: queue must be >= 1, got 0"):
        Reporting(queue=0)
