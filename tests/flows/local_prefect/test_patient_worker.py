"""``flows.local_prefect.patient_worker``: Prefect's loop of polls, without its end."""

from __future__ import annotations

import httpx
import pytest
from prefect.utilities.services import critical_service_loop
from prefect.workers import base

from flows.local_prefect.patient_worker import GIVEN_UP, be_patient, patient_service_loop


class Done(Exception):
    """Ends an endless loop."""


class Polls:
    """A poll that fails ``failures`` times with a transport error, and then ends the test."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    async def __call__(self) -> None:
        if not self.left:
            raise Done
        self.left -= 1
        raise httpx.ConnectError("connection failed")


def silent(*_: object) -> None:
    pass


async def test_prefects_own_loop_gives_up() -> None:
    """After four times three consecutive failures, with the message that ``patient_service_loop`` expects."""
    with pytest.raises(RuntimeError) as gave_up:
        await critical_service_loop(Polls(100), 0.0, backoff=4, printer=silent)
    assert str(gave_up.value) == GIVEN_UP


async def test_the_patient_loop_does_not_give_up() -> None:
    """After a hundred consecutive failures it still polls."""
    polls = Polls(100)
    with pytest.raises(Done):
        await patient_service_loop(polls, 0.0, backoff=4, printer=silent)
    assert polls.left == 0


async def test_any_other_error_of_a_poll_ends_the_patient_loop() -> None:
    """A bug in a poll is not an outage."""

    async def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await patient_service_loop(broken, 0.0)


def test_workers_use_the_patient_loop_after_be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces the name that Prefect's worker looks up."""
    monkeypatch.setattr(base, "critical_service_loop", critical_service_loop)
    be_patient()
    assert vars(base)["critical_service_loop"] is patient_service_loop
    assert "critical_service_loop" in base.BaseWorker.start.__code__.co_names
