"""``kill -9`` of the Prefect server while a stream runs, and of the stream's own process: is anything lost?

Server, worker and flow runs are real processes. ``make prefect-outage`` takes the server away for a minute, prints a table
of what was expected and found, and exits with 1 if anything was lost. ``tests/integration/test_prefect_outage.py`` asserts
the same after a shorter outage.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import PrefectClient

from flows.local_prefect.processes import free_ports
from orchestrator_adapter.storage.claims import FOLDER_VARIABLE
from tests.helpers.outages import (
    FULL,
    SHORT,
    Timing,
    decided,
    end_before_the_server_is_back,
    ended_without_server,
    killed,
    outage,
)
from tests.helpers.prefect_runs import (
    Installation,
)
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.support import flows_process

_ENDS_S = 120.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    scene: str
    found: str
    losses: list[str]


async def _perform(installation: Installation, timing: Timing, folder: Path, *, zombie_after_s: float) -> list[Line]:
    server, lines = installation.server, list[Line]()

    def add(scene: str, found: str, losses: list[str]) -> None:
        lines.append(Line(scene, found, losses))
        print(
            f"  {'lost' if losses else 'ok':5} {scene}: {found}",
            *(f"        {loss}" for loss in losses),
            sep="\n",
            flush=True,
        )

    async with PrefectClient(server.api_url) as client:
        cost = await outage(installation, client, timing, folder / "outage")
        add(
            f"kill -9 of the server, for {timing.outage_s:g} s, while a stream runs",
            f"{cost.numbers.total()} of {cost.emitted} items; {len(cost.seen.task_runs)} task runs of {len(cost.expected_states)}; "
            f"{cost.seen.decisions.total()} events of {cost.decisions.total()} decisions; {cost.seen.state}; "
            f"the worker {'lives' if cost.worker_lives else 'has ended'}; batches that the server dropped: {cost.dropped}",
            cost.losses(),
        )
        before_ms, during_ms = (statistics.median(each) * 1e3 for each in (cost.before_s, cost.during_s))
        add(
            "restart latency, median, without a server against with one",
            f"{during_ms:.2f} ms ({len(cost.during_s)} restarts) / {before_ms:.2f} ms ({len(cost.before_s)}) = {cost.ratio:.2f}",
            [],
        )
        ended = await end_before_the_server_is_back(installation, client, folder / "patient")
        add(
            "the stream ends without a server, which returns within the patience",
            f"{ended.state}, {ended.decisions.total()} events",
            [] if ended.decisions == decided(folder / "patient" / "decisions.jsonl") else ["events are missing"],
        )
        for how, state, code in (("SIGTERM", "COMPLETED", 0), ("budget", "FAILED", 3)):
            left = await ended_without_server(server, client, folder / how, how=how)
            add(
                f"the stream ends without a server, which stays away: {how}",
                f"exit code {left.exit_code}; {left.before.state}, then {left.after.state}; {left.after.decisions.total()} events",
                left.losses(state, code),
            )
        automations = flows_process(
            ["automations", "--zombie-after", f"{zombie_after_s:g}"],
            {},
            extra={**server.environment, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"},
            stdout=subprocess.DEVNULL,
        )
        assert await asyncio.to_thread(automations.wait, _ENDS_S) == 0
        dead = await killed(server, client, folder / "killed", reaped_within_s=4 * zombie_after_s)
        assert dead.reaped is not None
        add(
            f"kill -9 of the stream; automation after {zombie_after_s:g} s; the next start",
            f"{dead.reaped.state} ({dead.reaped.message}); task runs then {sorted(set(dead.reconciled.states.values()))}",
            dead.losses(),
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="eight seconds instead of a minute, as in the tests")
    args = parser.parse_args()
    print("kill -9: what was done, and what was found", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[FOLDER_VARIABLE] = str(folder / "claims")
        server = PrefectServer(folder, free_ports(1)[0])
        # Prefect's own worker ends after a dozen failed polls. Without retries that happens within this minute.
        installation = Installation(server, folder, worker={"PREFECT_CLIENT_MAX_RETRIES": "0"})
        server.start()
        try:
            installation.deploy()
            installation.start_worker()
            lines = asyncio.run(_perform(installation, SHORT if args.short else FULL, folder, zombie_after_s=90.0))
        finally:
            installation.stop_worker()
            server.stop()
    return int(any(line.losses for line in lines))


if __name__ == "__main__":
    sys.exit(main())
