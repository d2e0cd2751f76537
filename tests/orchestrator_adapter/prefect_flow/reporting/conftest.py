"""Fixtures for tests of the reporter."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from orchestrator_adapter.prefect_flow.reporting import reporter as module
from tests.helpers.prefect_reporter import Run


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause of the thread as short as possible."""
    for name in ("_GATHER_S", "_FINAL_CHECK_S", "_AFTER_A_BUG_S", "RECORDED_AFTER_S"):
        monkeypatch.setattr(module, name, 0.001)
    monkeypatch.setattr(module._RetryDelays, "next_s", lambda _: 0.001)
    monkeypatch.setattr("orchestrator_adapter.prefect_flow.reporting.delivery.SHOWN_AFTER_S", 0.01)


@pytest.fixture
async def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run()
    monkeypatch.setattr(module, "client_without_retries", made.prefect.connected)
    return made


@pytest.fixture
def _no_thread_is_leaked() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "prefect-reporter":
            thread.join(timeout=30.0)
            assert not thread.is_alive()
