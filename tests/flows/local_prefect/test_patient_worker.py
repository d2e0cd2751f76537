"""``flows.local_prefect.patient_worker``: Prefect's loop of polls, which does not end any more."""

from __future__ import annotations

import httpx
import pytest
from prefect.utilities.services import critical_service_loop
from prefect.workers import base

from flows.local_prefect.patient_worker import GIVEN_UP, be_patient, patient_service_loop


class Done(Exception):
    """Ends a loop that has no end."""


class Polls:
    """A workload that fails ``failures`` times with a transport error, and then ends the test."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    async def __call__(self) -> None:
        if not self.left:
            raise Done
        self.left -= 1
        raise httpx.ConnectError("nobody listens")


def silent(*_: object) -> None:
    pass


async def test_prefects_own_loop_gives_up() -> None:
    """Four times three failures in a row end it, with the words that the patient one knows."""
    with pytest.raises(RuntimeError) as gave_up:
        await critical_service_loop(Polls(100), 0.0, backoff=4, printer=silent)
    assert str(gave_up.value) == GIVEN_UP


async def test_the_patient_loop_asks_on_for_as_long_as_it_takes() -> None:
    """A hundred failures in a row do not end it."""
    polls = Polls(100)
    with pytest.raises(Done):
        await patient_service_loop(polls, 0.0, backoff=4, printer=silent)
    assert polls.left == 0


async def test_what_else_a_poll_raises_ends_the_patient_loop_too() -> None:
    """A bug in a poll is no outage."""

    async def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await patient_service_loop(broken, 0.0)


def test_workers_use_the_patient_loop_once_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that Prefect's worker looks up is the patient one's."""
    monkeypatch.setattr(base, "critical_service_loop", critical_service_loop)
    be_patient()
    assert vars(base)["critical_service_loop"] is patient_service_loop
    assert "critical_service_loop" in base.BaseWorker.start.__code__.co_names
