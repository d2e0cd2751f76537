"""Debian's Prometheus scrapes runs, also with token and TLS, loads the deployed rules, and fires their alerts for injected faults."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import trustme
import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its stubs do not

from flows.local_prefect.processes import free_ports
from orchestrator_adapter import Backoff, BreakerPolicy, Factory, OperatorGraph, RestartPolicy, WiredEnds
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.resilience.breaker import Rejection
from tests.helpers.prometheus import DEPLOYED, Prometheus, needs_prometheus, prometheus, shortened
from tests.helpers.support import listens, wait_until

pytestmark = [needs_prometheus, pytest.mark.timeout(400)]


_BREAKER = BreakerPolicy(min_calls=1, window=timedelta(seconds=1), cooldown=timedelta(milliseconds=500))


class Faulty:
    """A graph with a fault in each of its chains, which the test switches on and off from its own thread.

    ``slow`` takes longer for an item than its source; ``failing`` fails at each item; ``quiet`` emits nothing; the calls of ``caller``
    fail; ``blocking`` blocks the event loop.
    """

    def __init__(self) -> None:
        self.faults = {name: threading.Event() for name in ("slow", "failing", "quiet", "caller", "blocking")}
        self.graph = graph = OperatorGraph("faulty")
        again = RestartPolicy.always(
            backoff=Backoff(initial=timedelta(milliseconds=100), cap=timedelta(milliseconds=100))
        )
        for name in self.faults:
            source = graph.add_source(f"{name}-feed", self._feed(name), endless=True)
            operator = graph.add_operator(name, self._operator(name), restart_policy=again, max_deliveries=1_000)
            sink = graph.add_sink(f"{name}-sink", self._sink)
            graph.connect(source, operator, 16)
            graph.connect(operator, sink, 16)

    def _feed(self, name: str) -> Factory:
        async def feed(ends: WiredEnds) -> None:
            while not ends.shutdown.is_set:
                if not (name == "quiet" and self.faults[name].is_set()):
                    await ends.emit([name])
                await asyncio.sleep(0.02)

        return feed

    def _operator(self, name: str) -> Factory:
        async def operate(ends: WiredEnds) -> None:
            breaker = ends.breaker("archive", _BREAKER)
            async for item in ends.receiver:
                if self.faults[name].is_set():
                    await self._fail(name)
                if name == "caller" and not isinstance(permit := breaker.ask(), Rejection):
                    with permit:
                        (permit.failed if self.faults[name].is_set() else permit.succeeded)()
                ends.commit([item], acknowledge=1)
                await ends.flush()

        return operate

    async def _fail(self, name: str) -> None:
        if name == "slow":
            await asyncio.sleep(0.2)
        elif name == "failing":
            raise OSError("it fails at each item")
        elif name == "blocking":
            time.sleep(4)  # noqa: ASYNC251 - it blocks the event loop

    async def _sink(self, ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            ends.commit([], acknowledge=1)


@contextmanager
def running(faulty: Faulty, plane: ControlPlane) -> Iterator[None]:
    """Run the graph with this control plane, in a thread of its own; it drains at the end."""
    stopping: list[Callable[[], object]] = []

    async def run() -> None:
        built, loop = faulty.graph.build(), asyncio.get_running_loop()
        stopping.append(partial(loop.call_soon_threadsafe, built.request_shutdown, "the test is over"))
        with ControlPlaneServer(built, plane):
            await built.run()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        wait_until(lambda: bool(stopping) and listens(plane.port), "the control plane listens")
        yield
    finally:
        if thread.is_alive():
            stopping[0]()
        thread.join(60)


def wait_for(server: Prometheus, *expected: tuple[str, str], also: bool = False) -> None:
    """Wait until these alerts fire, and no other unless ``also``."""
    seen: set[tuple[str, str]] = set()

    def fire() -> bool:
        nonlocal seen
        seen = set(server.alerts())
        return seen >= set(expected) if also else seen == set(expected)

    try:
        wait_until(fire, "the alerts", limit_s=60)
    except AssertionError:
        pytest.fail(f"expected {sorted(expected)}, at last {sorted(seen)} fire")


def test_alerts_fire_for_injected_faults_and_end_with_them(tmp_path: Path) -> None:
    """Five faults at once, then none, then a blocked loop, then none, then the process is gone, and back."""
    (port,) = free_ports(1)
    faulty = Faulty()
    began = time.monotonic()

    def report(what: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s: {what}")

    with prometheus(tmp_path, {"sda-test": f"127.0.0.1:{port}"}, rules=shortened) as server:
        with running(faulty, ControlPlane(port=port)):
            wait_until(lambda: server.up() == {"sda-test": "up"}, "the first scrape")
            wait_for(server)
            report("scraped, no alert")
            for name in ("slow", "failing", "quiet", "caller"):
                faulty.faults[name].set()
            wait_for(
                server,
                *(("Bottleneck", "slow"), ("OperatorRestarting", "failing")),
                *(("SourceSilent", "quiet-feed"), ("CircuitBreakerOpen", "archive")),
                also=True,
            )
            report(f"they fire: {sorted(server.alerts())}")
            for alert in server.alerts().values():
                texts = " ".join(alert["annotations"].values())
                assert "<no value>" not in texts
                assert "error" not in texts
            for fault in faulty.faults.values():
                fault.clear()
            wait_for(server)
            report("every alert has ended")
            faulty.faults["blocking"].set()
            wait_for(server, ("EventLoopStalled", ""), also=True)
            report("EventLoopStalled fires")
            faulty.faults["blocking"].clear()
            wait_for(server)
            report("it has ended")
        wait_for(server, ("PipelineDown", ""))
        report("PipelineDown fires")
        with running(Faulty(), ControlPlane(port=port)):
            wait_for(server)
            report("it has ended")


def test_the_job_for_another_machine_reads_with_token_and_tls(tmp_path: Path) -> None:
    """The job of ``remote.yml``; a target with another token in it is down."""
    (port,) = free_ports(1)
    authority, token = trustme.CA(), "0123456789abcdef-token"
    issued = authority.issue_cert("localhost")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "token").write_text(f"{token}\n")
    (tmp_path / "wrong").write_text("another-token-0123456789\n")
    deployed, local = (yaml.safe_load((DEPLOYED / name).read_text()) for name in ("remote.yml", "prometheus.yml"))
    assert {**deployed, "scrape_configs": []} == {**local, "scrape_configs": []}
    (job,) = deployed["scrape_configs"]
    job["static_configs"] = [{"targets": [f"localhost:{port}"]}]
    wrong = {**job, "job_name": "wrong", "authorization": {"credentials_file": "wrong"}}
    plane = ControlPlane(
        host="0.0.0.0", port=port, token=token, tls=(certificate, key)
    )  # reading needs the token there
    with running(Faulty(), plane), prometheus(tmp_path, {}, extra=[job, wrong]) as server:
        wait_until(lambda: server.up() == {"sda-ingest": "up", "wrong": "down"}, "the first scrapes")
        (reason,) = (
            each["lastError"] for each in server.get("targets")["activeTargets"] if each["labels"]["job"] == "wrong"
        )
        assert "401" in reason
        assert server.query('pipeline_health{status="ok", job="sda-ingest"} == 1')
