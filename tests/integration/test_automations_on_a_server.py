"""The automations on a real server: events in; webhooks, pauses and states out. Installed, updated and removed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import Event
from prefect.events.actions import DoNothing
from prefect.events.clients import PrefectEventsClient
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from flows.__main__ import main
from orchestrator_adapter.prefect_flow.automations import (
    HEARTBEAT,
    InstallResult,
    OnFlapping,
    UnusableBlock,
    WantedNotices,
    alarm,
    alerts,
    automations_for,
    find_block,
    flapping,
    install,
    installed_for,
    remove_webhook,
    save_webhook,
    uninstall,
    zombie_message,
)
from orchestrator_adapter.prefect_flow.client.vocabulary import operator_event, operator_resource, related_pipeline
from sda_ops.alerts.notice import ALERT_EVENT, CONJUNCTION, SEVERITY_LABEL
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.running import eventually

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]

_WATCH = timedelta(seconds=10)  # the shortest that Prefect admits
_TEN_MINUTES = timedelta(minutes=10)  # longer than any test takes, on any machine
_APART_S = 0.5  # between events: on SQLite the server drops events that arrive while its database is locked


class Receiver:
    """An HTTP server that stores the JSON bodies it receives, by path."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.bodies: list[tuple[str, Any]] = []
        self.types: set[str | None] = set()

    def of(self, path: str) -> list[Any]:
        return [body for got, body in list(self.bodies) if got == path]

    async def has(self, path: str, count: int) -> bool:
        return len(self.of(path)) >= count


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.types.add(self.headers["Content-Type"])
            kept.bodies.append((self.path, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kept = Receiver(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield kept
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as kept:
        yield kept


class Emitter:
    """Emits the events of a flow's run: its operators' decisions and its heartbeats."""

    def __init__(self, api_url: str, flow_name: str, *, run: UUID, deployment: UUID | None = None) -> None:
        self._api_url = api_url
        self._related = [
            {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"},
            {
                "prefect.resource.id": f"prefect.flow.{UUID(int=7)}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": flow_name,
            },
            related_pipeline("pipe"),
        ]
        if deployment is not None:
            self._related.append(
                {"prefect.resource.id": f"prefect.deployment.{deployment}", "prefect.resource.role": "deployment"}
            )
        self._run = run

    async def decide(self, decision: str, operator: str, **payload: object) -> None:
        await self._emit(operator_event(decision), operator_resource("pipe", operator), self._related, payload)

    async def alert(self, severity: str, title: str) -> None:
        resource = {"prefect.resource.id": f"{CONJUNCTION}{uuid4()}", "prefect.resource.name": title}
        await self._emit(ALERT_EVENT, resource | {SEVERITY_LABEL: severity}, self._related, {})

    async def beat(self) -> None:
        resource = {"prefect.resource.id": f"prefect.flow-run.{self._run}"}
        await self._emit(HEARTBEAT, resource, self._related[1:2], {})

    async def _emit(
        self, event: str, resource: dict[str, str], related: list[dict[str, str]], payload: dict[str, object]
    ) -> None:
        values = {"event": event, "resource": resource, "related": related, "payload": payload}
        async with PrefectEventsClient(self._api_url) as events:
            await events.emit(Event.model_validate(values | {"occurred": datetime.now(UTC), "id": uuid4()}))
        await asyncio.sleep(_APART_S)


@flow(name="never called")
def _nothing() -> None: ...


async def running(client: PrefectClient, flow_name: str) -> FlowRun:
    """A flow run that is Running on the server, without a process."""
    run = await client.create_flow_run(_nothing.with_options(name=flow_name))
    await client.set_flow_run_state(run.id, Running(), force=True)
    return run


async def state(client: PrefectClient, run: FlowRun) -> State[Any]:
    found = (await client.read_flow_run(run.id)).state
    assert found is not None
    return found


async def reached(client: PrefectClient, run: FlowRun, type_: str) -> bool:
    return (await state(client, run)).type.value == type_


async def events_of(client: PrefectClient, event: str) -> list[str]:
    """Every event of this name, as text."""
    page = await client.read_events(EventFilter(event=EventNameFilter(name=[event])), limit=50)
    return [found.model_dump_json() for found in page.events]


async def armed(client: PrefectClient, server: PrefectServer, automations: list[AutomationCore]) -> None:
    """Install them, and wait until they are active.

    The server answers before it has loaded a new automation. It loads them in order: when the last one is active, all are.
    """
    await install(client, automations)
    probe = f"probe.{uuid4()}"
    probing = await client.create_automation(
        AutomationCore(name=probe, trigger=EventTrigger(expect={probe}), actions=[DoNothing()])
    )

    async def is_active() -> bool:
        resource = {"prefect.resource.id": probe}
        async with PrefectEventsClient(server.api_url) as events:
            await events.emit(Event.model_validate({"event": probe, "resource": resource}))
        await asyncio.sleep(_APART_S)
        return any(probe in event for event in await events_of(client, "prefect.automation.triggered"))

    await eventually(is_active, "a new automation is active")
    await client.delete_automation(probing)


async def test_a_panic_reaches_the_webhook_with_operator_and_cause(
    shared_prefect_server: PrefectServer, client: PrefectClient, receiver: Receiver
) -> None:
    """One POST of JSON for each alarming decision of this flow, its text unchanged; none for a restart or another flow."""
    target = await save_webhook(client, "alarmed", f"{receiver.url}/alarm")
    await armed(client, shared_prefect_server, [alarm("alarmed", target)])
    run = uuid4()
    ours = Emitter(shared_prefect_server.api_url, "alarmed", run=run)
    others = Emitter(shared_prefect_server.api_url, "alarmed-2", run=uuid4())
    await others.decide("escalate", "dedup", cause="another flow")
    await ours.decide("restart", "dedup", cause="not alarming")
    cause = 'KeyError: "no such\nfield" <{{ x }}>'
    await ours.decide("escalate", "dedup", instance=2, cause=cause)
    await ours.decide("budget_exhausted", "radar-01", cause="OSError: port taken")
    await eventually(lambda: receiver.has("/alarm", 2), "both alarms arrive")
    first, second = sorted(receiver.of("/alarm"), key=lambda body: str(body["operator"]))
    assert (first["event"], first["operator"], first["pipeline"]) == (operator_event("escalate"), "dedup", "pipe")
    assert (first["cause"], first["flow_run_id"], first["payload"]["instance"]) == (cause, str(run), 2)
    assert (second["operator"], second["cause"]) == ("radar-01", "OSError: port taken")
    assert receiver.types == {"application/json"}


async def test_an_alert_of_the_wanted_severity_reaches_the_webhook(
    shared_prefect_server: PrefectServer, client: PrefectClient, receiver: Receiver
) -> None:
    """One POST for each medium and high one of this flow; none for a low one, or for another flow's."""
    target = await save_webhook(client, "alerted", f"{receiver.url}/alerts")
    wanted = WantedNotices(ALERT_EVENT, f"{CONJUNCTION}*", {SEVERITY_LABEL: ["medium", "high"]})
    await armed(client, shared_prefect_server, [alerts("alerted", target, wanted)])
    ours = Emitter(shared_prefect_server.api_url, "alerted", run=uuid4())
    await Emitter(shared_prefect_server.api_url, "alerted-2", run=uuid4()).alert("high", "another flow's")
    for severity in ("low", "medium", "high"):
        await ours.alert(severity, f"{severity}: ISS and COSMOS")
    await eventually(lambda: receiver.has("/alerts", 2), "both alerts arrive")
    bodies = sorted(receiver.of("/alerts"), key=lambda body: str(body["cause"]))
    assert [body["cause"] for body in bodies] == ["high: ISS and COSMOS", "medium: ISS and COSMOS"]
    assert {(body["event"], body["pipeline"]) for body in bodies} == {("conjunction.alert", "pipe")}


async def test_an_existing_block_is_used_and_one_that_cannot_notify_is_rejected(
    shared_prefect_server: PrefectServer, client: PrefectClient, receiver: Receiver
) -> None:
    """A notification block gets subject and body; a missing block and an invalid reference are rejected by name."""
    block = CustomWebhookNotificationBlock(
        name="on call", url=f"{receiver.url}/block", json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    await block.asave("on-call", client=client)
    target = await find_block(client, "custom-webhook/on-call")
    assert target.webhook is False
    await armed(client, shared_prefect_server, [alarm("blocked", target)])
    await Emitter(shared_prefect_server.api_url, "blocked", run=uuid4()).decide("escalate", "dedup", cause="KeyError")
    await eventually(lambda: receiver.has("/block", 1), "the block is called")
    (body,) = receiver.of("/block")
    assert body["subject"] == "blocked: alarm"
    assert "operator: dedup\npipeline: pipe\ncause: KeyError\n" in body["body"]

    webhook = await save_webhook(client, "blocked", receiver.url)
    assert await find_block(client, "webhook/blocked-automations") == webhook
    for reference, message in (
        ("slack-webhook/missing", "the server has no block 'slack-webhook/missing'"),
        ("slack-webhook", "expected TYPE/NAME, got 'slack-webhook'"),
    ):
        with pytest.raises(UnusableBlock, match=message):
            await find_block(client, reference)


async def test_restarts_of_one_operator_pause_the_deployment_and_as_many_of_several_do_not(
    shared_prefect_server: PrefectServer, client: PrefectClient, receiver: Receiver
) -> None:
    """Two restarts of each of three operators: not paused. A third of one: paused, and reported with operator and cause."""
    flow_id = await client.create_flow_from_name("flapping")
    deployment = await client.create_deployment(flow_id=flow_id, name="flapping")
    target = await save_webhook(client, "flapping", f"{receiver.url}/flapping")
    wanted = [
        alarm("flapping", target),
        flapping("flapping", restarts=2, within=_TEN_MINUTES, on_flapping=OnFlapping.PAUSE, target=target),
    ]
    await armed(client, shared_prefect_server, wanted)
    ours = Emitter(shared_prefect_server.api_url, "flapping", run=uuid4(), deployment=deployment)

    async def paused() -> bool:
        return (await client.read_deployment(deployment)).paused

    for operator in ("radar-01", "radar-02", "isl") * 2:
        await ours.decide("restart", operator, cause="ConnectionError")
    await ours.decide("escalate", "isl")  # its alarm shows that the restarts have been counted
    await eventually(lambda: receiver.has("/flapping", 1), "the alarm of the last event")
    assert not await paused()

    await ours.decide("restart", "radar-02", cause="ConnectionError: again")
    await eventually(paused, "the deployment is paused")
    await eventually(lambda: receiver.has("/flapping", 2), "the webhook is called")
    assert [body["operator"] for body in receiver.of("/flapping")] == ["isl", "radar-02"]
    assert receiver.of("/flapping")[1]["cause"] == "ConnectionError: again"


async def test_restarts_of_one_operator_cancel_its_run(
    shared_prefect_server: PrefectServer, client: PrefectClient
) -> None:
    """With ``cancel`` the run with one restart too many is Cancelling, and no other run of the flow."""
    await armed(
        client,
        shared_prefect_server,
        [flapping("cancelled", restarts=1, within=_TEN_MINUTES, on_flapping=OnFlapping.CANCEL, target=None)],
    )
    flapping_run, other_run = await running(client, "cancelled"), await running(client, "cancelled")
    ours = Emitter(shared_prefect_server.api_url, "cancelled", run=flapping_run.id)
    for _ in range(2):
        await ours.decide("restart", "dedup")
    await eventually(lambda: reached(client, flapping_run, "CANCELLING"), "the run is cancelled")
    assert await reached(client, other_run, "RUNNING")


async def test_a_run_whose_heartbeats_stop_is_crashed_and_one_that_has_ended_is_not(
    shared_prefect_server: PrefectServer, client: PrefectClient, receiver: Receiver
) -> None:
    """A silent run is Crashed and reported. An ended run does not change, even after a late heartbeat. Other flows' runs do not."""
    target = await save_webhook(client, "watched", f"{receiver.url}/reaped")
    wanted = automations_for(
        "watched", target=target, restarts=2, within=_TEN_MINUTES, on_flapping=OnFlapping.NOTIFY, zombie_after=_WATCH
    )
    await armed(client, shared_prefect_server, wanted)
    silent, ended, late = [await running(client, "watched") for _ in range(3)]
    others = await running(client, "unwatched")
    await Emitter(shared_prefect_server.api_url, "unwatched", run=others.id).beat()
    await Emitter(shared_prefect_server.api_url, "watched", run=ended.id).beat()
    for run in (ended, late):
        await client.set_flow_run_state(run.id, Completed(message="drained"))
    for _ in range(3):  # each restarts the watch; several, since the server may drop some (_APART_S)
        for run in (silent, late):
            await Emitter(shared_prefect_server.api_url, "watched", run=run.id).beat()

    await eventually(lambda: reached(client, silent, "CRASHED"), "the silent run is crashed")
    await eventually(lambda: receiver.has("/reaped", 1), "the webhook is called")

    async def rejected() -> bool:
        failed = await events_of(client, "prefect.automation.action.failed")
        return any(str(late.id) in event and "already in terminal state COMPLETED" in event for event in failed)

    await eventually(rejected, "the server has rejected the crash of the run with the late heartbeat")
    assert (await state(client, silent)).message == zombie_message("watched", _WATCH)
    for run in (ended, late):
        assert (await state(client, run)).message == "drained"
    assert await reached(client, others, "RUNNING")
    assert str(others.id) not in "".join(await events_of(client, "prefect.automation.triggered"))
    (body,) = receiver.of("/reaped")  # none for a watch that ran out in vain
    assert (body["flow_run_id"], body["cause"]) == (str(silent.id), zombie_message("watched", _WATCH))


async def test_installing_twice_leaves_one_of_each_and_changes_in_place(client: PrefectClient) -> None:
    """The second time nothing is touched; a change keeps the id and whether it is disabled; of duplicates one is left."""

    def wanted(restarts: int) -> list[AutomationCore]:
        return automations_for(
            "held",
            target=None,
            restarts=restarts,
            within=_TEN_MINUTES,
            on_flapping=OnFlapping.PAUSE,
            zombie_after=_WATCH,
        )

    names = [automation.name for automation in wanted(2)]
    assert await install(client, wanted(2)) == [InstallResult(name, "created") for name in names]
    before = await installed_for(client, "held")
    assert await install(client, wanted(2)) == [InstallResult(name, "unchanged") for name in names]

    first = next(automation for automation in before if automation.name == "held: flapping")
    await client.pause_automation(first.id)
    done = {entry.name: entry for entry in await install(client, wanted(3))}
    assert done["held: flapping"] == InstallResult("held: flapping", "updated", enabled=False)
    assert done["held: zombie"] == InstallResult("held: zombie", "unchanged")
    (changed,) = await client.read_automations_by_name("held: flapping")
    assert (changed.id, changed.enabled) == (first.id, False)
    assert isinstance(changed.trigger, EventTrigger)
    assert changed.trigger.threshold == 4
    assert changed.actions == first.actions

    await client.create_automation(wanted(3)[0])
    await install(client, wanted(3))
    assert len(await client.read_automations_by_name("held: flapping")) == 1


async def test_uninstalling_removes_what_was_installed_and_nothing_else(
    client: PrefectClient, receiver: Receiver
) -> None:
    """Ours are removed except those to keep, the webhook block, too; an automation of the user for the same flow remains."""
    target = await save_webhook(client, "gone", receiver.url)
    wanted = automations_for(
        "gone", target=target, restarts=2, within=_TEN_MINUTES, on_flapping=OnFlapping.PAUSE, zombie_after=_WATCH
    )
    await install(client, wanted)
    own = wanted[0].model_copy(update={"name": "gone: my own", "actions": [DoNothing()]})
    await client.create_automation(own)
    kept = {"gone: zombie"}
    removed = await uninstall(client, "gone", keep=kept)
    assert {done.name for done in removed} == {automation.name for automation in wanted} - kept
    assert [automation.name for automation in await installed_for(client, "gone")] == ["gone: zombie"]
    await uninstall(client, "gone")
    assert await installed_for(client, "gone") == []
    assert await uninstall(client, "gone") == []
    assert len(await client.read_automations_by_name("gone: my own")) == 1
    assert await remove_webhook(client, "gone") is True
    assert await remove_webhook(client, "gone") is False


def test_the_command_installs_lists_rejects_and_removes(
    shared_prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m flows automations`` does what it prints, removes what is no longer wanted, and exits with 1 on a rejection."""
    monkeypatch.setenv("PREFECT_API_URL", shared_prefect_server.api_url)

    def command(*options: str) -> tuple[int, list[str], str]:
        with temporary_settings(
            {PREFECT_API_URL: shared_prefect_server.api_url}
        ):  # as the environment would at the start
            code = main(["automations", "--flow", "commanded", *options])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err

    def answer(request: Callable[[PrefectClient], Awaitable[Any]]) -> Any:
        async def send() -> Any:
            async with PrefectClient(shared_prefect_server.api_url) as client:
                return await request(client)

        return asyncio.run(send())

    def names() -> list[str]:
        return [automation.name for automation in answer(lambda client: installed_for(client, "commanded"))]

    kinds = ("alarm", "flapping", "zombie", "reaped")
    code, out, err = command("--webhook", "http://127.0.0.1:9/x", "--restarts", "3", "--within", "60")
    assert (code, out, err) == (0, [f"created   commanded: {kind}" for kind in kinds], "")
    assert names() == [f"commanded: {kind}" for kind in kinds]

    code, out, _ = command("--list")
    assert (code, len(out)) == (0, len(kinds))
    assert out[1].startswith("commanded: flapping: 4 of orchestrator.operator.restart within 60 s")

    code, _, err = command("--block", "slack-webhook/missing")
    assert code == 1
    assert err.startswith("automations: --block: the server has no block 'slack-webhook/missing'")
    assert len(names()) == len(kinds)

    code, out, err = command("--on-flapping", "cancel")
    assert (code, out) == (
        0,
        [
            *("updated   commanded: flapping", "unchanged commanded: zombie"),
            *("removed   commanded: alarm", "removed   commanded: reaped"),
        ],
    )
    assert "no notification is configured, so there is no alarm" in err
    assert (
        answer(lambda client: remove_webhook(client, "commanded")) is False
    )  # removed with the automations that called it

    code, out, _ = command("--remove")
    assert (code, len(out), names()) == (0, 2, [])
    code, out, err = command("--list")
    assert (code, out) == (0, [])
    assert "none for commanded" in err
