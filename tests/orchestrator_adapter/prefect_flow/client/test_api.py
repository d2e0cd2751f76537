"""One call of the API, classified; and what a run may be told to tell."""

from __future__ import annotations

import asyncio
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
    """Whatever it is, nothing included."""

    async def call(value: int | None) -> int | None:
        return value

    assert await ask(call(7)) == RetryOk(7)
    assert await ask(call(None)) == RetryOk(None)


@pytest.mark.parametrize("code", [500, 502, 503, 504, 599, 408, 409, 425, 429])
async def test_a_troubled_server_is_asked_again(code: int) -> None:
    """Every 5xx, and the four that say "later"."""
    error = answered(code)
    assert await ask(raises(error)) == Retry(error)


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 405, 413, 422, 428, 451, 499])
async def test_a_server_that_refuses_is_not(code: int) -> None:
    """It would refuse again."""
    error = answered(code)
    assert await ask(raises(error)) == Permanent(error)


async def test_what_is_not_there_is_refused_for_good() -> None:
    """Prefect's client has an exception of its own for it."""
    error = ObjectNotFound(answered(404))
    assert await ask(raises(error)) == Permanent(error)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("hung up"),
        ConnectionResetError("gone"),
        OSError("no route"),
    ],
)
async def test_a_server_that_is_away_is_asked_again(error: Exception) -> None:
    """However it is away."""
    assert await ask(raises(error)) == Retry(error)


@pytest.mark.parametrize("error", [KeyError("bug"), asyncio.CancelledError(), ValueError("bug")])
async def test_a_bug_and_a_cancellation_are_neither(error: BaseException) -> None:
    """They are raised as they are."""
    with pytest.raises(type(error)):
        await ask(raises(error))


def test_a_server_that_does_not_answer_is_given_ten_seconds() -> None:
    """To the moment, unless another limit is given; then it is a server that is away, and says for how long."""
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


async def test_the_impatient_client_does_not_try_again_by_itself() -> None:
    """Prefect's own retries take minutes; what was set before is set again afterwards."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 5}):
        async with client_without_retries() as client:
            assert PREFECT_CLIENT_MAX_RETRIES.value() == 0
            assert type(client) is type(get_client())
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 5


@pytest.mark.parametrize("name", ["status_every", "look_every", "patience", "patience_when_stopped"])
@pytest.mark.parametrize("value", [timedelta(0), timedelta(seconds=-1)])
def test_a_duration_of_nothing_is_refused(name: str, value: timedelta) -> None:
    """By the name of the field, with what came."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"Reporting: {name} must be > 0, got {value}"):
        Reporting(**options)
    Reporting(**{name: timedelta(microseconds=1)})  # type: ignore[arg-type] # whichever it is


def test_a_queue_without_room_is_refused() -> None:
    """One place is the least."""
    Reporting(queue=1)
    with pytest.raises(ValueError, match="Reporting: queue must be >= 1, got 0"):
        Reporting(queue=0)
