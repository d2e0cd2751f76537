"""Where a secret of the settings can be read after a run on Prefect: nowhere. A real server and its database."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from prefect import get_client
from prefect.blocks.system import Secret

from flows.ingest import sda_ingest
from flows.settings.addresses import SecretUnavailable
from flows.settings.ingest import IngestSettings
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.prefect_flow import run_flow
from tests.helpers.prefect_runs import newest_run_id, until
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.running import eventually
from tests.helpers.support import Addresses

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

PASSWORD, TOKEN = "hunter2-correct-horse", "battery-staple-4711"
ACCESS = "open-sesame-for-actions-0815"


def found_in(folder: Path, *secrets: str) -> list[str]:
    """Files below ``folder`` in which one of the secrets is in clear."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


async def test_a_secret_block_s_address_is_nowhere_in_clear(
    shared_prefect_server: PrefectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The archive at the address rejects each poll. Parameters, states, logs, artifacts, events and files name it without it.

    The same holds for the token of the control plane.
    """
    archive = await asyncio.start_server(_rejects, "127.0.0.1", 0)
    port = archive.sockets[0].getsockname()[1]
    address = f"http://me:{PASSWORD}@127.0.0.1:{port}/observations?token={TOKEN}"
    await Secret(value=address).save("archive-address", overwrite=True)
    await Secret(value=ACCESS).save("access", overwrite=True)
    document = Addresses.free(radars=1).settings(tmp_path)
    settings = IngestSettings.model_validate(
        document
        | {"optical": document["optical"] | {"url": "secret:archive-address"}}
        | {"control_plane": {"port": 0, "actions": True, "token": "secret:access"}}
    )
    feeding: list[asyncio.Task[None]] = []

    async def stop_after_rejections(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().restarts >= 2, "the archive rejects polls")
        built.request_shutdown("that is enough")

    async with get_client() as client:
        earlier = {run.id for run in await client.read_flow_runs()}
    with caplog.at_level(logging.DEBUG):
        async with archive:
            await run_flow(
                sda_ingest,
                settings,
                on_built=lambda built: feeding.append(asyncio.create_task(stop_after_rejections(built))),
            )
            await feeding[0]
    async with get_client() as client:
        run_id = await newest_run_id(client, "sda-ingest", other_than=earlier)
        seen = await until(
            client, run_id, lambda seen: seen.over and "FAILED" in seen.states.values(), "it is recorded"
        )
    assert seen.flow_run.parameters["settings"]["optical"]["url"] == "secret:archive-address"
    assert seen.flow_run.parameters["settings"]["control_plane"]["token"] == "secret:access"
    assert any(
        f"http://127.0.0.1:{port}/observations" in (run.state.message or "") for run in seen.task_runs if run.state
    )
    assert found_in(shared_prefect_server.home, f"127.0.0.1:{port}/observations")  # the search finds what is there
    assert found_in(shared_prefect_server.home, PASSWORD, TOKEN, ACCESS) == []
    assert found_in(tmp_path, PASSWORD, TOKEN, ACCESS) == []
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("orchestrator_adapter")]
    assert ours
    assert not [line for line in ours if any(secret in line for secret in (PASSWORD, TOKEN, ACCESS))]


async def _rejects(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_a_block_that_does_not_exist_is_an_error_in_one_line(tmp_path: Path) -> None:
    """The run does not start."""
    document = Addresses.free(radars=1).settings(tmp_path)
    settings = IngestSettings.model_validate(document | {"optical": {"url": "secret:no-such-block"}})
    with pytest.raises(SecretUnavailable, match=r"^secret:no-such-block: Prefect has no Secret block of this name$"):
        await run_flow(sda_ingest, settings)
