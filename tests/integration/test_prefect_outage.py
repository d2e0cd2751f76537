"""``kill -9`` of the Prefect server and of the flow's own process, shortened; ``make prefect-outage`` takes a minute for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from prefect.client.orchestration import PrefectClient

from orchestrator_adapter.prefect_flow.automations import install, uninstall, zombie
from tests.helpers.outages import (
    SHORT,
    decided,
    end_before_the_server_is_back,
    ended_without_server,
    killed,
    outage,
)
from tests.helpers.prefect_runs import Installation
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.sizes import small_and_long

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]

_SLOWER = 5.0  # room for a busy machine; a restart that waited for the server would be hundreds of times slower
_WATCH = timedelta(seconds=25)  # with the shortest possible watch a live run would be crashed between two heartbeats
_REAPED_WITHIN = timedelta(seconds=150)


@pytest.fixture(autouse=True)
def _server_is_left_running(killed_prefect_server: PrefectServer) -> Iterator[None]:
    """The session's other tests need the server, also after a failed test."""
    yield
    if killed_prefect_server.process is None:
        killed_prefect_server.start()


@pytest.mark.long  # a minute; the tests below hold what is recorded when the server is back
async def test_an_outage_of_the_server_under_a_stream_with_restarts_costs_nothing(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """After the restart of the server each number, task run and decision is there once; restarts were as fast without it."""
    cost = await outage(installation, client, SHORT, tmp_path / "toy")
    assert cost.losses() == []
    assert len(cost.during_s) >= 10
    assert cost.ratio < _SLOWER


async def test_a_run_that_ends_while_the_server_is_away_is_recorded_when_it_is_back_in_time(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """The outcome is on disk first; the run itself reports all of it to the server that returns within the patience."""
    over = await end_before_the_server_is_back(installation, client, tmp_path / "toy")
    assert (over.state, set(over.states.values())) == ("COMPLETED", {"COMPLETED"})
    assert over.message.startswith("AllOk; ")
    assert over.decisions == decided(tmp_path / "toy" / "decisions.jsonl")


@small_and_long(("how", "state", "code"), ("budget", "FAILED", 3), ("SIGTERM", "COMPLETED", 0))
async def test_a_run_that_ends_without_the_server_has_the_right_exit_code_and_is_reconciled_later(
    how: str, state: str, code: int, killed_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """Running on the server, until `reconcile` (or the next start) reports everything."""
    ended = await ended_without_server(killed_prefect_server, client, tmp_path, how=how)
    assert ended.losses(state, code) == []


@pytest_asyncio.fixture
async def _short_zombie_watch(client: PrefectClient) -> AsyncIterator[None]:
    """The automation with a short watch. A run has a heartbeat at its start and every thirty seconds."""
    await install(client, [zombie("sda-ingest", after=_WATCH)])
    yield
    await uninstall(client, "sda-ingest")


@pytest.mark.usefixtures("_short_zombie_watch")
async def test_a_killed_run_is_crashed_and_reconciled_and_its_log_is_complete(
    killed_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """After kill -9 the log has every line; the automation crashes the run, the next start crashes its task runs."""
    dead = await killed(killed_prefect_server, client, tmp_path, reaped_within_s=_REAPED_WITHIN / timedelta(seconds=1))
    assert dead.losses() == []
