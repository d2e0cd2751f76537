"""Runs that lose their Prefect server, or are killed: each returns what was lost. For tests and ``bench.prefect_outage``."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient

from orchestrator_adapter.prefect_flow.automations import is_reaped
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

_NO_DECISIONS = {"control_plane"}  # other log lines with the graph's name
_ENDS_S = 120.0  # a process that has not ended by then will not end


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
    """What an outage cost a running stream.

    Attributes:
        seen: The run, once it is over.
        numbers: How often each number reached the sink.
        emitted: How many the source says it has sent.
        ledger_holds: As the report says.
        decisions: From the supervisor's log.
        instances: How many instances the restarted operator had.
        before_s: Restart latencies before the outage: from the failure to the next instance's first step.
        during_s: The same while there was no server.
        worker_lives: Whether the worker still runs.
        dropped: How many batches of events the server dropped, by its log.
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
        """One sentence for each thing that is lost or wrong."""
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
    """Kill the server while a stream restarts every 0.3 s, and start it again on the same port and database."""
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
    """The supervisor's decisions, counted from its log: every line that belongs to a graph."""
    decisions: Decisions = Counter()
    for line in _whole_lines(log):
        if line.startswith('{"time": '):
            fields = json.loads(line)
            if fields.get("graph") and fields["event"] not in _NO_DECISIONS:
                decisions[fields["event"], fields.get("operator") or "", fields.get("instance") or 0] += 1
    return decisions


def _whole_lines(log: Path) -> list[str]:
    """The complete lines of a log that is still being written."""
    text = log.read_text(errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def _latencies(folder: Path) -> list[tuple[int, float]]:
    """For every restart: when the instance failed, and the seconds until the next one began."""
    found: list[tuple[int, float]] = []
    failed_ns = 0
    for line in _whole_lines(folder / "instances.jsonl"):
        step = json.loads(line)
        if step["what"] == "failed":
            failed_ns = step["at_ns"]
        elif failed_ns:
            found.append((failed_ns, (step["at_ns"] - failed_ns) / 1e9))
    return found


async def end_before_the_server_is_back(installation: Installation, client: PrefectClient, folder: Path) -> Seen:
    """A stream ends without a server, which returns within the run's patience. Returns the run after its end."""
    # Longer than a server takes to start on a busy machine.
    run_id = await start(client, TOY, {"folder": str(folder), "patience_s": 300.0})
    await until(client, run_id, lambda seen: len(seen.states) == 3, "the stream runs")
    await asyncio.to_thread(installation.server.kill)
    give(folder, "end")
    wait_until(lambda: '"COMPLETED"' in _record(folder), "the run record says that the run has ended", limit_s=150)
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
    # No one waits for this process to end, so it may report for a long time.
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
    """A run that ended without a server.

    Attributes:
        exit_code: The process's.
        before: The run on the restarted server, before anything was reconciled.
        after: The run after it was reconciled.
        decisions: From the run's log.
        written: Observations, by the report.
        logged: Observations in the event log.
    """

    exit_code: int
    before: Seen
    after: Seen
    decisions: Decisions
    written: int
    logged: int

    def losses(self, state: str, exit_code: int) -> list[str]:
        """One sentence for each thing that is wrong."""
        missing, extra = self.decisions - self.after.decisions, self.after.decisions - self.decisions
        spawned = Counter(
            operator for (event, operator, _), n in self.decisions.items() for _ in range(n) if event == "spawn"
        )
        recorded = Counter(run.name.split(" #")[0] for run in self.after.task_runs)
        found = [
            (self.exit_code != exit_code, f"exit code {self.exit_code}, expected {exit_code}"),
            (self.before.state != "RUNNING", f"the flow run was {self.before.state} before it was reconciled"),
            (self.after.state != state, f"the flow run is {self.after.state}: {self.after.message}; expected {state}"),
            (missing, f"decisions without an event: {dict(missing)}"),
            (extra, f"events without a decision, or one too many: {dict(extra)}"),
            (spawned != recorded, f"task runs: spawned {dict(spawned)}, recorded {dict(recorded)}"),
            (not self.after.over, f"task runs that are not over: {self.after.states}"),
            (self.written != self.logged, f"{self.written} observations written, {self.logged} in the log"),
        ]
        return [sentence for is_so, sentence in found if is_so]


async def ended_without_server(server: PrefectServer, client: PrefectClient, folder: Path, *, how: str) -> Ended:
    """``sda-ingest`` ends without a server. ``how`` is "SIGTERM", or "budget": its log cannot be written.

    After a SIGTERM ``python -m flows reconcile`` reconciles it; otherwise the next start does.
    """
    addresses = Addresses.free(radars=1)
    others = {run.id for run in await client.read_flow_runs(limit=200)}
    # It waits for the server only for a short time.
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
        output, _ = await asyncio.to_thread(command.communicate, timeout=_ENDS_S)
        assert command.returncode == 0
        assert str(run_id) in output.decode()
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
        before: The log just before that.
        after: The log after the next run has started and ended.
        torn: Whether a line of the log cannot be read.
        reaped: The killed run after the automation crashed it; ``None`` without an automation.
        reconciled: The killed run after the next start.
        next_run: The next run after its end.
    """

    before: bytes
    after: bytes
    torn: bool
    reaped: Seen | None
    reconciled: Seen
    next_run: Seen

    def losses(self) -> list[str]:
        """One sentence for each thing that is lost or wrong."""
        states = set(self.reconciled.states.values())
        found = [
            (not self.before or not self.after.startswith(self.before), "what was in the log is not there any more"),
            (self.torn, "a line of the log cannot be read"),
            (
                self.reaped is not None and not is_reaped(self.reaped.message),
                "it was not the automation that reaped it",
            ),
            (self.reconciled.state != "CRASHED", f"the killed run is {self.reconciled.state}, expected CRASHED"),
            (states != {"CRASHED"}, f"its task runs are {states}, expected CRASHED"),
            (self.next_run.state != "COMPLETED", f"the next run is {self.next_run.state}: {self.next_run.message}"),
        ]
        return [sentence for is_so, sentence in found if is_so]


async def killed(
    server: PrefectServer, client: PrefectClient, folder: Path, *, reaped_within_s: float | None
) -> Killed:
    """``kill -9`` of ``sda-ingest`` while it receives datagrams; the zombie automation, if there is one; the next run."""
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
        reconciled = await until(
            client, run_id, lambda seen: seen.over and seen.task_runs, "the killed run is reconciled"
        )
        send_detections(addresses.radars[0], 10)
        process.terminate()
        assert await asyncio.to_thread(process.wait, _ENDS_S) == 0
    next_run = await until_over(client, next_id)
    try:
        torn = sum(1 for _ in read_event_log(log)) == 0
    except ValueError:
        torn = True
    return Killed(before, _content(log), torn, reaped, reconciled, next_run)


def _content(log: Path) -> bytes:
    """Every complete line of the log, oldest first."""
    content = b"".join(path.read_bytes() for path in sorted(log.glob("observations-*.jsonl*")))
    return content[: content.rfind(b"\n") + 1]
