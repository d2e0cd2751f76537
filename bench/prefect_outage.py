"""``kill -9`` of the Prefect server under a stream, and of the stream's own process: what is lost, and who says so.

All of it for real: a server, a worker and its flow runs as processes of their own. ``make prefect-outage`` prints what was
asked and what was found, for an outage of a minute, and ends with 1 if anything was lost;
``tests/integration/test_prefect_outage.py`` judges a shortened one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient

from flows.local_prefect.processes import free_ports
from orchestrator_adapter.prefect_flow.automations import is_reaped
from orchestrator_adapter.storage.claims import FOLDER_VARIABLE
from sda_ops.sinks.event_log import read_event_log
from tests.helpers.prefect_runs import (
    TOY,
    Decisions,
    Installation,
    Seen,
    newest_run_id,
    start,
    until,
    until_over,
)
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.support import Addresses, flows_process, listens, send_detections, wait_until
from tests.integration.toy_flow import give

_NO_DECISIONS = {"control_plane"}  # whoever else logs under the graph's name
_ENDS_S = 120.0  # a process that was told to end and has not by then never will


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the stream runs before, during and after the server's outage, seconds; a restart comes every 0.3 s."""

    before_s: float
    outage_s: float
    after_s: float


FULL = Timing(before_s=15.0, outage_s=60.0, after_s=5.0)
SHORT = Timing(before_s=1.5, outage_s=3.0, after_s=0.5)


@dataclass(frozen=True, slots=True)
class Outage:
    """What an outage under a stream cost.

    Attributes:
        seen: The run, once it is over.
        numbers: That reached the sink, and how often.
        emitted: How many the source says it has sent.
        ledger_holds: The report's word.
        decisions: The supervisor's own log.
        instances: Of the operator that was restarted.
        before_s: Restart latencies before the outage: from the failure to the next instance's first step.
        during_s: The same while there was no server.
        worker_lives: The worker is there afterwards.
        dropped: Batches of events that the server says it has dropped, whosesoever they were.
    """

    seen: Seen
    numbers: Counter[int]
    emitted: int
    ledger_holds: bool
    decisions: Decisions
    instances: int
    before_s: Sequence[float]
    during_s: Sequence[float]
    worker_lives: bool
    dropped: int

    @property
    def ratio(self) -> float:
        """Median restart latency without a server, over that with one."""
        return statistics.median(self.during_s) / statistics.median(self.before_s)

    @property
    def expected_states(self) -> dict[str, str]:
        """Of the task runs, by name."""
        names = ["work", *(f"work #{number}" for number in range(2, self.instances + 1))]
        return dict.fromkeys(names, "FAILED") | dict.fromkeys(("numbers", names[-1], "keep"), "COMPLETED")

    def losses(self) -> list[str]:
        """What is lost or wrong, each in a sentence."""
        missing, extra = self.decisions - self.seen.decisions, self.seen.decisions - self.decisions
        wrong = {
            name: (self.expected_states.get(name), self.seen.states.get(name))
            for name in {*self.expected_states, *self.seen.states}
            if self.expected_states.get(name) != self.seen.states.get(name)
        }
        found = [
            (
                self.numbers != Counter(range(self.emitted)),
                f"numbers: {self.numbers.total()} of {self.emitted} arrived",
            ),
            (not self.ledger_holds, "the ledger does not hold"),
            (missing, f"decisions without an event: {dict(missing)}"),
            (extra, f"events without a decision, or one too many: {dict(extra)}"),
            (wrong, f"task runs, (expected, found): {wrong}"),
            (self.seen.state != "COMPLETED", f"the flow run is {self.seen.state}: {self.seen.message}"),
            (not self.worker_lives, "the worker has ended"),
            (self.dropped, f"the server has dropped {self.dropped} batches of events"),
        ]
        return [sentence for is_so, sentence in found if is_so]


async def outage(installation: Installation, client: PrefectClient, timing: Timing, folder: Path) -> Outage:
    """A stream with a restart every 0.3 s; the server is killed under it, and started again on its port and database."""
    dropped = _dropped(installation.server)
    run_id = await start(client, TOY, {"folder": str(folder), "fail_every": 30})
    await until(client, run_id, lambda seen: "work #3" in seen.states, "the stream runs")
    await asyncio.sleep(timing.before_s)
    gone_ns = time.monotonic_ns()
    await asyncio.to_thread(installation.server.kill)
    await asyncio.sleep(timing.outage_s)
    await asyncio.to_thread(
        wait_until,
        lambda: sum(at_ns > gone_ns for at_ns, _ in _latencies(folder)) >= 10,
        "ten restarts without a server",
    )
    back_ns = time.monotonic_ns()
    await asyncio.to_thread(installation.server.start)
    await asyncio.sleep(timing.after_s)
    give(folder, "end")
    seen = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    latencies = _latencies(folder)
    report = json.loads((folder / "report.json").read_text())
    return Outage(
        seen=seen,
        numbers=Counter(int(line) for line in (folder / "kept").read_text().splitlines()),
        emitted=report["ledger"]["ingested"],
        ledger_holds=report["ledger_holds"],
        decisions=decided(folder / "decisions.jsonl"),
        instances=len(latencies) + 1,
        before_s=[latency for at_ns, latency in latencies if at_ns < gone_ns],
        during_s=[latency for at_ns, latency in latencies if gone_ns < at_ns < back_ns],
        worker_lives=installation.worker_lives,
        dropped=_dropped(installation.server) - dropped,
    )


def _dropped(server: PrefectServer) -> int:
    return server.log.read_text(errors="replace").count("Max flush retries")


def decided(log: Path) -> Decisions:
    """The supervisor's decisions by its own log: every line that is one of a graph's."""
    decisions: Decisions = Counter()
    for line in _whole_lines(log):
        if line.startswith('{"time": '):
            told = json.loads(line)
            if told.get("graph") and told["event"] not in _NO_DECISIONS:
                decisions[told["event"], told.get("operator") or "", told.get("instance") or 0] += 1
    return decisions


def _whole_lines(log: Path) -> list[str]:
    """Those of a log that is still being written."""
    text = log.read_text(errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def _latencies(folder: Path) -> list[tuple[int, float]]:
    """Of every restart: when the instance failed, and seconds until the next one began."""
    found: list[tuple[int, float]] = []
    failed_ns = 0
    for line in _whole_lines(folder / "instances.jsonl"):
        told = json.loads(line)
        if told["what"] == "failed":
            failed_ns = told["at_ns"]
        elif failed_ns:
            found.append((failed_ns, (told["at_ns"] - failed_ns) / 1e9))
    return found


async def end_before_the_server_is_back(installation: Installation, client: PrefectClient, folder: Path) -> Seen:
    """A stream ends while no server is there; it comes back within the run's patience. The run, once it is over."""
    # More patience than a server takes to start on a machine that is busy.
    run_id = await start(client, TOY, {"folder": str(folder), "patience_s": 300.0})
    await until(client, run_id, lambda seen: len(seen.states) == 3, "the stream runs")
    await asyncio.to_thread(installation.server.kill)
    give(folder, "end")
    wait_until(lambda: '"COMPLETED"' in _record(folder), "the run has ended, and says so on disk", limit_s=150)
    await asyncio.to_thread(installation.server.start)
    return await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))


def _record(folder: Path) -> str:
    (path,) = (folder / "prefect").glob("*.json")
    return path.read_text()


@contextmanager
def ingesting(
    server: PrefectServer, addresses: Addresses, folder: Path, **settings: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m flows ingest`` as a flow run of ``server``, listening when this yields. Its log is ``<folder>/stderr``."""
    folder.mkdir(parents=True, exist_ok=True)
    here = addresses.settings(folder)
    # It may take its time to tell: nobody waits to end it.
    patient = {"prefect": here["prefect"] | {"patience_when_stopped_s": 60}}
    with (folder / "stderr").open("wb") as log:
        process = flows_process(
            ["ingest", "--quiet"],
            here | patient | settings,
            extra={**server.environment, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        wait_until(lambda: process.poll() is not None or listens(addresses.isl), "the ISL listener", limit_s=180)
        assert process.poll() is None, (folder / "stderr").read_text()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(_ENDS_S)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that ended while no server was there.

    Attributes:
        exit_code: The process's.
        before: The run on the server once it was back, before anybody has told it anything.
        after: The same once it was put right.
        decisions: By the run's own log.
        written: Observations by the report.
        logged: Observations in the event log.
    """

    exit_code: int
    before: Seen
    after: Seen
    decisions: Decisions
    written: int
    logged: int

    def losses(self, state: str, exit_code: int) -> list[str]:
        """What is not as it ought to be."""
        missing, extra = self.decisions - self.after.decisions, self.after.decisions - self.decisions
        spawned = Counter(
            operator for (event, operator, _), n in self.decisions.items() for _ in range(n) if event == "spawn"
        )
        recorded = Counter(run.name.split(" #")[0] for run in self.after.task_runs)
        found = [
            (self.exit_code != exit_code, f"exit code {self.exit_code}, expected {exit_code}"),
            (self.before.state != "RUNNING", f"the flow run was {self.before.state} before anybody told the server"),
            (self.after.state != state, f"the flow run is {self.after.state}: {self.after.message}; expected {state}"),
            (missing, f"decisions without an event: {dict(missing)}"),
            (extra, f"events without a decision, or one too many: {dict(extra)}"),
            (spawned != recorded, f"task runs: spawned {dict(spawned)}, recorded {dict(recorded)}"),
            (not self.after.over, f"task runs that are not over: {self.after.states}"),
            (self.written != self.logged, f"{self.written} observations written, {self.logged} in the log"),
        ]
        return [sentence for is_so, sentence in found if is_so]


async def ended_without_server(server: PrefectServer, client: PrefectClient, folder: Path, *, how: str) -> Ended:
    """``sda-ingest`` ends (``how``: "SIGTERM", or "budget": its log cannot be written) while no server is there.

    It is put right by ``python -m flows reconcile`` after a SIGTERM, by the next start after the other.
    """
    addresses = Addresses.free(radars=1)
    others = {run.id for run in await client.read_flow_runs(limit=200)}
    # It is to wait for the server, in vain, and not for long.
    prefect = addresses.settings(folder)["prefect"] | {"patience_s": 3.0, "patience_when_stopped_s": 3.0}
    settings = {"prefect": prefect, "event_log": {"directory": str(folder / "log"), "max_file_bytes": 20_000}}
    with ingesting(server, addresses, folder, **settings) as process:
        run_id = await newest_run_id(client, "sda-ingest", other_than=others)
        await until(client, run_id, lambda seen: "event-log" in seen.states, "the run is recorded")
        send_detections(addresses.radars[0], 20)
        log = folder / "log"
        wait_until(lambda: _lines(log) == 20, "twenty observations in the log")
        await asyncio.to_thread(server.kill)
        if how == "SIGTERM":
            process.terminate()
        else:
            log.rename(folder / "log.before")
            log.write_text("a file where the folder was")
            send_detections(addresses.radars[0], 200)  # more than a file holds: the next one cannot be made
        exit_code = await asyncio.to_thread(process.wait, _ENDS_S)
    decisions = decided(folder / "stderr")
    await asyncio.to_thread(server.start)
    if how == "budget":
        log.unlink()
        (folder / "log.before").rename(log)
    before = await until(client, run_id, lambda _: True, "the server shows the run")
    written = json.loads((folder / "report.json").read_text())["ledger"]["written"]
    logged = _lines(log)
    if how == "SIGTERM":
        command = flows_process(
            ["reconcile", "--folder", str(folder / "prefect")], {}, extra=server.environment, stdout=subprocess.PIPE
        )
        told, _ = await asyncio.to_thread(command.communicate, timeout=_ENDS_S)
        assert command.returncode == 0
        assert str(run_id) in told.decode()
        after = await until_over(client, run_id, lambda: decisions)
    else:
        with ingesting(server, addresses, folder, **settings) as process:
            after = await until_over(client, run_id, lambda: decisions)
            process.terminate()
            await asyncio.to_thread(process.wait, _ENDS_S)
    return Ended(exit_code, before, after, decisions, written, logged)


def _lines(log: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in log.glob("*.jsonl*")) if log.is_dir() else 0


@dataclass(frozen=True, slots=True)
class Killed:
    """``sda-ingest`` was killed with SIGKILL.

    Attributes:
        before: Lines in the log just before it.
        after: Lines in it after the next run's start and end.
        torn: Whether a line of it cannot be read.
        reaped: The killed run, as soon as the automation had it; ``None`` where there was none.
        put_right: The killed run after the next start.
        next_run: The next run, when it was over.
    """

    before: bytes
    after: bytes
    torn: bool
    reaped: Seen | None
    put_right: Seen
    next_run: Seen

    def losses(self) -> list[str]:
        """What is lost or wrong, each in a sentence."""
        states = set(self.put_right.states.values())
        found = [
            (not self.before or not self.after.startswith(self.before), "what was in the log is not there any more"),
            (self.torn, "a line of the log cannot be read"),
            (
                self.reaped is not None and not is_reaped(self.reaped.message),
                "it was not the automation that reaped it",
            ),
            (self.put_right.state != "CRASHED", f"the killed run is {self.put_right.state}, expected CRASHED"),
            (states != {"CRASHED"}, f"its task runs are {states}, expected CRASHED"),
            (self.next_run.state != "COMPLETED", f"the next run is {self.next_run.state}: {self.next_run.message}"),
        ]
        return [sentence for is_so, sentence in found if is_so]


async def killed(
    server: PrefectServer, client: PrefectClient, folder: Path, *, reaped_within_s: float | None
) -> Killed:
    """``kill -9`` of ``sda-ingest`` under a stream of datagrams; the zombie automation, if there is one; the next run."""
    addresses = Addresses.free(radars=1)
    others = {run.id for run in await client.read_flow_runs(limit=200)}
    log = folder / "log"
    with ingesting(server, addresses, folder) as process:
        run_id = await newest_run_id(client, "sda-ingest", other_than=others)
        await until(
            client,
            run_id,
            lambda seen: "event-log" in seen.states and set(seen.states.values()) == {"RUNNING"},
            "the run is recorded",
        )
        send_detections(addresses.radars[0], 500)
        wait_until(lambda: _lines(log) == 500, "500 lines in the log")
        before = _content(log)
        send_detections(addresses.radars[0], 200)
        process.kill()
        process.wait(_ENDS_S)
    reaped = None
    if reaped_within_s is not None:
        reaped = await until(
            client, run_id, lambda seen: seen.state == "CRASHED", "it is reaped", limit_s=reaped_within_s
        )
    with ingesting(server, addresses, folder) as process:
        next_id = await newest_run_id(client, "sda-ingest", other_than={*others, run_id})
        put_right = await until(
            client, run_id, lambda seen: seen.over and seen.task_runs, "the killed run is put right"
        )
        send_detections(addresses.radars[0], 10)
        process.terminate()
        assert await asyncio.to_thread(process.wait, _ENDS_S) == 0
    next_run = await until_over(client, next_id)
    try:
        torn = sum(1 for _ in read_event_log(log)) == 0
    except ValueError:
        torn = True
    return Killed(before, _content(log), torn, reaped, put_right, next_run)


def _content(log: Path) -> bytes:
    """Every whole line of it, oldest first."""
    content = b"".join(path.read_bytes() for path in sorted(log.glob("observations-*.jsonl*")))
    return content[: content.rfind(b"\n") + 1]


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table."""

    asked: str
    found: str
    losses: list[str]


async def _perform(installation: Installation, timing: Timing, folder: Path, *, zombie_after_s: float) -> list[Line]:
    server, lines = installation.server, list[Line]()

    def add(asked: str, found: str, losses: list[str]) -> None:
        lines.append(Line(asked, found, losses))
        print(
            f"  {'lost' if losses else 'ok':5} {asked}: {found}",
            *(f"        {loss}" for loss in losses),
            sep="\n",
            flush=True,
        )

    async with PrefectClient(server.api_url) as client:
        cost = await outage(installation, client, timing, folder / "outage")
        add(
            f"kill -9 of the server, for {timing.outage_s:g} s, under a stream",
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
            "the stream ends without a server, which comes back within the patience",
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
            f"{dead.reaped.state} ({dead.reaped.message}); task runs then {sorted(set(dead.put_right.states.values()))}",
            dead.losses(),
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="eight seconds instead of a minute, as in the tests")
    args = parser.parse_args()
    print("kill -9, for real: asked, and found", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[FOLDER_VARIABLE] = str(folder / "claims")
        server = PrefectServer(folder, free_ports(1)[0])
        # A worker of Prefect's own gives up after a dozen polls; without retries that is within this minute.
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
