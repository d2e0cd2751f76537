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

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]

_SLOWER = 5.0  # a machine that is shared has its moments; a restart that waited for the server would be hundreds of times slower
_WATCH = timedelta(seconds=25)  # with the shortest there is a live run is reaped, too, until its next heartbeat
_REAPED_WITHIN = timedelta(seconds=150)


@pytest.fixture(autouse=True)
def _server_is_left_running(killed_prefect_server: PrefectServer) -> Iterator[None]:
    """Whatever happens in a test: the session's other tests need the server."""
    yield
    if killed_prefect_server.process is None:
        killed_prefect_server.start()


async def test_an_outage_of_the_server_under_a_stream_with_restarts_costs_nothing(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """Every number, task run and decision is there once it is back, each once; restarts were as fast without the server."""
    cost = await outage(installation, client, SHORT, tmp_path / "toy")
    assert cost.losses() == []
    assert len(cost.during_s) >= 10
    assert cost.ratio < _SLOWER


async def test_a_run_that_ends_while_the_server_is_away_is_recorded_when_it_is_back_in_time(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """The outcome is on disk first; the server, back within the patience, is told all of it by the run itself."""
    over = await end_before_the_server_is_back(installation, client, tmp_path / "toy")
    assert (over.state, set(over.states.values())) == ("COMPLETED", {"COMPLETED"})
    assert over.message.startswith("AllOk; ")
    assert over.decisions == decided(tmp_path / "toy" / "decisions.jsonl")


@pytest.mark.parametrize(("how", "state", "code"), [("SIGTERM", "COMPLETED", 0), ("budget", "FAILED", 3)])
async def test_a_run_that_ends_while_the_server_stays_away_ends_truthfully_and_is_put_right_later(
    how: str, state: str, code: int, killed_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """The process's own exit code; Running on the server, until `reconcile` (or the next start) tells it everything."""
    ended = await ended_without_server(killed_prefect_server, client, tmp_path, how=how)
    assert ended.losses(state, code) == []


@pytest_asyncio.fixture
async def _short_zombie_watch(client: PrefectClient) -> AsyncIterator[None]:
    """The automation, with a short watch: the run has a heartbeat every thirty seconds, and one at its start."""
    await install(client, [zombie("sda-ingest", after=_WATCH)])
    yield
    await uninstall(client, "sda-ingest")


@pytest.mark.usefixtures("_short_zombie_watch")
async def test_a_run_that_was_killed_is_reaped_and_put_right_and_its_log_is_whole(
    killed_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """After kill -9 the log's lines are all there; the automation crashes the run, the next start its task runs."""
    dead = await killed(killed_prefect_server, client, tmp_path, reaped_within_s=_REAPED_WITHIN / timedelta(seconds=1))
    assert dead.losses() == []
