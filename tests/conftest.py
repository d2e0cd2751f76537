"""Fixtures that more than one folder uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.storage.claims import FOLDER_VARIABLE

if TYPE_CHECKING:
    from tests.helpers.prefect_server import PrefectServer

# How long an example takes is the machine's business, which is shared: Hypothesis is not to judge by it. Whether a change is
# good must not hang on chance: the examples are the same each time, unless new ones are asked for.
settings.register_profile("shared machine", deadline=None, derandomize="NEW_EXAMPLES" not in os.environ)
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def _claims_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests and their child processes claim is neither in the way of a real pipeline nor left behind."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("claims")))
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server of the session's own, and this process pointed at it. About 15 s, once."""
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415 - only where it is needed

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def real_prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real ``prefect server start``, every service included, once a session: 5 to 20 s.

    This process is *not* pointed at it: pass ``server.api_url`` to a client, ``server.environment`` to a child. Who kills it
    starts it again.
    """
    from flows.local_prefect.processes import free_ports  # noqa: PLC0415 - httpx and friends only where they are needed
    from tests.helpers.prefect_server import PrefectServer  # noqa: PLC0415 - likewise

    server = PrefectServer(tmp_path_factory.mktemp("prefect"), free_ports(1)[0])
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def _many_schedules() -> Iterator[None]:
    """For modules that run schedule after schedule."""
    with frozen_heap():
        yield
