"""Fixtures that more than one folder uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from orchestrator_adapter.schedules import only_new_garbage

# How long an example takes is the machine's business, which is shared: Hypothesis is not to judge by it.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server of the session's own, and this process pointed at it. About 15 s, once."""
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415 - only where it is needed

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def _many_schedules() -> Iterator[None]:
    """For modules that run schedule after schedule."""
    with only_new_garbage():
        yield
