"""Fixtures of the tests that run processes against a real Prefect server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from distributed import LocalCluster
from prefect.client.orchestration import PrefectClient

from tests.helpers.prefect_runs import Installation
from tests.helpers.prefect_server import PrefectServer


@pytest.fixture(scope="session")
def installation(
    killed_prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Every pipeline deployed, and one worker for the session. A test that stops the worker must start it again."""
    installation = Installation(killed_prefect_server, tmp_path_factory.mktemp("installation"))
    installation.deploy()
    installation.start_worker()
    try:
        yield installation
    finally:
        installation.stop_worker()


@pytest.fixture
def _server_of_the_test(request: pytest.FixtureRequest) -> PrefectServer:
    """The server that the test names, or the one of the installation that it names."""
    killed = {"installation", "killed_prefect_server"} & {*request.fixturenames}
    server = request.getfixturevalue("killed_prefect_server" if killed else "shared_prefect_server")
    assert isinstance(server, PrefectServer)
    return server


@pytest_asyncio.fixture
async def client(_server_of_the_test: PrefectServer) -> AsyncIterator[PrefectClient]:
    """Prefect's own client of the test's server."""
    async with PrefectClient(_server_of_the_test.api_url) as client:
        yield client


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A Dask cluster of two worker processes, each with its nanny."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as running:  # type: ignore[no-untyped-call] # it has no types
        yield running
