"""The automations as values: which events they cover, their actions, the content of a webhook call. No server."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.events.actions import (
    CallWebhook,
    CancelFlowRun,
    ChangeFlowRunState,
    DoNothing,
    PauseDeployment,
    SendNotification,
)
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.server.events.schemas.automations import AutomationCore as ServerAutomation
from prefect.server.events.schemas.automations import EventTrigger as ServerTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import render_user_template_sync, validate_user_template

from orchestrator_adapter.prefect_flow.automations import (
    ALARMING,
    ENDED,
    HEARTBEAT,
    NotificationBlock,
    OnFlapping,
    WantedNotices,
    alarm,
    alerts,
    automations_for,
    describe,
    equal,
    flapping,
    is_reaped,
    reaped,
    webhook_name,
    zombie,
    zombie_message,
)
from orchestrator_adapter.prefect_flow.client.vocabulary import (
    operator_event,
    operator_resource,
    pipeline_event,
    pipeline_resource,
    related_pipeline,
)
from tests.helpers.support import ROOT

FLOW = "sda-ingest"
RUN_ID = UUID("6ce0f195-ae6a-4619-863a-54c970bcbcee")
WEBHOOK = NotificationBlock(UUID(int=1), webhook=True)
BLOCK = NotificationBlock(UUID(int=2), webhook=False)
TEN_MINUTES = timedelta(minutes=10)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def of_flow(flow: str) -> list[dict[str, str]]:
    run = {"prefect.resource.id": f"prefect.flow-run.{RUN_ID}", "prefect.resource.role": "flow-run"}
    its_flow = {"prefect.resource.id": f"prefect.flow.{UUID(int=7)}", "prefect.resource.role": "flow"}
    return [
        run | {"prefect.resource.name": "witty-owl"},
        its_flow | {"prefect.resource.name": flow},
        related_pipeline("sda-ingest"),
    ]


def operators(decision: str, *, flow: str = FLOW, operator: str = "dedup", **payload: object) -> ReceivedEvent:
    return ReceivedEvent.model_validate(
        {
            "event": operator_event(decision),
            "resource": operator_resource("sda-ingest", operator),
            "related": of_flow(flow),
            "payload": payload,
            "occurred": NOON,
            "id": uuid4(),
        }
    )


def runs(event: str, *, flow: str = FLOW, message: str = "") -> ReceivedEvent:
    resource = {"prefect.resource.id": f"prefect.flow-run.{RUN_ID}", "prefect.resource.name": "witty-owl"}
    return ReceivedEvent.model_validate(
        {
            "event": event,
            "resource": resource | {"prefect.state-message": message},
            "related": of_flow(flow)[1:2],
            "occurred": NOON,
            "id": uuid4(),
        }
    )


def trigger_of(automation: AutomationCore) -> EventTrigger:
    assert isinstance(automation.trigger, EventTrigger)
    return automation.trigger


def covers(automation: AutomationCore, event: ReceivedEvent) -> bool:
    """Whether the server's own code says that the trigger covers the event."""
    server = ServerAutomation.model_validate(automation.model_dump(mode="json"))
    assert isinstance(server.trigger, ServerTrigger)
    return server.trigger.covers(event)


def sent(automation: AutomationCore, event: ReceivedEvent) -> Any:
    """The JSON that the webhook would get."""
    (action,) = automation.actions
    assert isinstance(action, CallWebhook)
    return json.loads(render_user_template_sync(action.payload, {"event": event, "automation": automation}))


def test_event_and_resource_names_are_stable() -> None:
    """They are exactly these strings: users build automations on them."""
    assert operator_event("restart") == "orchestrator.operator.restart"
    assert pipeline_event("ended") == "orchestrator.pipeline.ended"
    assert operator_resource("sda-ingest", "dedup") == {
        "prefect.resource.id": "orchestrator.operator.sda-ingest.dedup",
        "prefect.resource.name": "dedup",
        "orchestrator.pipeline": "sda-ingest",
    }
    assert pipeline_resource("sda-ingest") == {
        "prefect.resource.id": "orchestrator.pipeline.sda-ingest",
        "prefect.resource.name": "sda-ingest",
    }
    assert related_pipeline("p") == pipeline_resource("p") | {"prefect.resource.role": "pipeline"}
    assert ALARMING == ("escalate", "budget_exhausted", "straggler", "ledger_violation")


@pytest.mark.parametrize(
    ("decision", "alarming"),
    [(decision, True) for decision in ALARMING] + [(other, False) for other in ("restart", "spawn", "clean_exit")],
)
def test_the_alarm_covers_each_alarming_decision_and_no_other(decision: str, alarming: bool) -> None:  # noqa: FBT001 - a test parameter
    """A panic, an exhausted budget, a straggler and a ledger violation each alarm at once; a restart does not."""
    automation = alarm(FLOW, WEBHOOK)
    assert covers(automation, operators(decision)) is alarming
    assert trigger_of(automation).threshold == 1
    assert trigger_of(automation).within == timedelta(0)


@pytest.mark.parametrize(
    ("flow", "other"), [("sda-ingest", "sda-ingest-2"), ("sda-ingest", "sda"), ("all*", "all of them"), ("a[b]", "ab")]
)
def test_another_flows_events_are_not_covered(flow: str, other: str) -> None:
    """A flow's name is matched whole and literally, also if it contains Prefect's pattern characters."""
    for automation, event in (
        (alarm(flow, WEBHOOK), "escalate"),
        (flapping(flow, restarts=3, within=TEN_MINUTES, on_flapping=OnFlapping.PAUSE, target=None), "restart"),
    ):
        assert covers(automation, operators(event, flow=flow))
        assert not covers(automation, operators(event, flow=other))
    watch = zombie(flow, after=TEN_MINUTES)
    assert covers(watch, runs("prefect.flow-run.Completed", flow=flow))
    assert not covers(watch, runs("prefect.flow-run.Completed", flow=other))


def test_flapping_counts_the_restarts_of_each_operator_separately() -> None:
    """More than 3 restarts is a threshold of 4, within the window, evaluated for each operator."""
    trigger = trigger_of(flapping(FLOW, restarts=3, within=TEN_MINUTES, on_flapping=OnFlapping.PAUSE, target=None))
    assert (trigger.threshold, trigger.within, trigger.for_each) == (4, TEN_MINUTES, {"prefect.resource.id"})
    assert trigger.expect == {"orchestrator.operator.restart"}
    assert trigger.posture is Posture.Reactive


@pytest.mark.parametrize(
    ("on_flapping", "target", "types"),
    [
        (OnFlapping.PAUSE, None, [PauseDeployment]),
        (OnFlapping.PAUSE, WEBHOOK, [PauseDeployment, CallWebhook]),
        (OnFlapping.CANCEL, None, [CancelFlowRun]),
        (OnFlapping.CANCEL, BLOCK, [CancelFlowRun, SendNotification]),
        (OnFlapping.NOTIFY, BLOCK, [SendNotification]),
    ],
)
def test_actions_of_flapping(on_flapping: OnFlapping, target: NotificationBlock | None, types: list[type]) -> None:
    """Pause or cancel comes first, then a notification if there is a target. ``notify`` only notifies."""
    actions = flapping(FLOW, restarts=3, within=TEN_MINUTES, on_flapping=on_flapping, target=target).actions
    assert [type(action) for action in actions] == types
    if isinstance(actions[0], PauseDeployment):
        assert actions[0].source == "inferred"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"restarts": 0}, "flapping: restarts must be >= 1, got 0"),
        ({"within": timedelta(0)}, "flapping: within must be > 0 s, got 0 s"),
        ({"on_flapping": OnFlapping.NOTIFY}, "flapping: 'notify' needs a block that sends notifications"),
    ],
)
def test_invalid_options_of_flapping_are_an_error(arguments: dict[str, Any], message: str) -> None:
    """Fewer than one restart, an empty window, or ``notify`` without a target; the message has the reason."""
    usual: dict[str, Any] = {"restarts": 3, "within": TEN_MINUTES, "on_flapping": OnFlapping.PAUSE, "target": None}
    with pytest.raises(ValueError, match=message):
        flapping(FLOW, **(usual | arguments))


def test_the_zombie_expects_a_heartbeat_or_an_end_after_each_heartbeat() -> None:
    """It is proactive, for each run. Only a heartbeat starts it; a heartbeat or any of four ends satisfies it."""
    automation = zombie(FLOW, after=TEN_MINUTES)
    trigger = trigger_of(automation)
    assert trigger.posture is Posture.Proactive
    assert trigger.after == {HEARTBEAT}
    assert trigger.expect == {HEARTBEAT, *ENDED}
    assert trigger.for_each == {"prefect.resource.id"}
    assert trigger.within == TEN_MINUTES
    assert covers(automation, runs(HEARTBEAT))
    assert not covers(automation, runs("prefect.flow-run.Running"))
    (action,) = automation.actions
    assert isinstance(action, ChangeFlowRunState)
    assert action.state is StateType.CRASHED
    assert action.force is False  # Prefect rejects Crashed for a run that has ended; so a late heartbeat is harmless
    assert action.message == "Reaped: no heartbeat for 600 s (automation 'sda-ingest: zombie')"


def test_a_watch_shorter_than_prefects_minimum_is_an_error() -> None:
    """Ten seconds are accepted; less is an error with the value in its message."""
    zombie(FLOW, after=timedelta(seconds=10))
    with pytest.raises(ValueError, match=r"after must be >= 10 s, got 9\.5 s"):
        zombie(FLOW, after=timedelta(seconds=9.5))


def test_only_a_run_that_zombie_has_crashed_counts_as_reaped() -> None:
    """The alarm covers a run that panicked; ``reaped`` covers only the message of ``zombie``."""
    automation = reaped(FLOW, WEBHOOK)
    message = zombie_message(FLOW, TEN_MINUTES)
    assert covers(automation, runs("prefect.flow-run.Crashed", message=message))
    assert not covers(automation, runs("prefect.flow-run.Crashed", message="Panicked: KeyError"))
    assert not covers(automation, runs("prefect.flow-run.Completed", message=message))
    assert is_reaped(message)
    assert not is_reaped("Panicked: KeyError")
    assert not is_reaped(None)


@pytest.mark.parametrize(
    ("target", "on_flapping", "zombie_after", "kinds"),
    [
        (WEBHOOK, OnFlapping.PAUSE, TEN_MINUTES, ["alarm", "flapping", "zombie", "reaped"]),
        (None, OnFlapping.CANCEL, TEN_MINUTES, ["flapping", "zombie"]),
        (None, OnFlapping.NOTIFY, TEN_MINUTES, ["zombie"]),
        (BLOCK, OnFlapping.NOTIFY, None, ["alarm", "flapping"]),
    ],
)
def test_every_automation_that_the_options_allow_is_built(
    target: NotificationBlock | None, on_flapping: OnFlapping, zombie_after: timedelta | None, kinds: list[str]
) -> None:
    """Without a target none that only notifies, without heartbeats no zombie. Each name has the flow's name."""
    wanted = automations_for(
        FLOW, target=target, restarts=3, within=TEN_MINUTES, on_flapping=on_flapping, zombie_after=zombie_after
    )
    assert [automation.name for automation in wanted] == [f"sda-ingest: {kind}" for kind in kinds]


def notices(severity: str, *, flow: str = FLOW, event: str = "conjunction.alert") -> ReceivedEvent:
    return ReceivedEvent.model_validate(
        {
            "event": event,
            "resource": {
                "prefect.resource.id": "conjunction.1",
                "prefect.resource.name": f"{severity}: ISS and COSMOS",
                "conjunction.severity": severity,
            },
            "related": of_flow(flow),
            "payload": {"revision": 2, "objects": [{"name": "ISS"}]},
            "occurred": NOON,
            "id": uuid4(),
        }
    )


WANTED = WantedNotices("conjunction.alert", "conjunction.*", {"conjunction.severity": ["medium", "high"]})


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (notices("high"), True),
        (notices("medium"), True),
        (notices("low"), False),
        (notices("high", flow="sda-ingest-2"), False),
        (notices("high", event="conjunction.other"), False),
    ],
)
def test_alerts_cover_the_notices_of_the_flow_with_the_wanted_labels(event: ReceivedEvent, wanted: bool) -> None:  # noqa: FBT001 - a test parameter
    """As the server's own code says."""
    assert covers(alerts(FLOW, WEBHOOK, WANTED), event) is wanted


def test_the_webhook_of_an_alert_has_the_notice_and_the_keys_of_the_others() -> None:
    """The cause is the notice's title; the payload is whole."""
    body = sent(alerts(FLOW, WEBHOOK, WANTED), notices("high"))
    assert body.keys() == sent(alarm(FLOW, WEBHOOK), operators("escalate")).keys()
    assert (body["automation"], body["event"], body["operator"]) == ("sda-ingest: alerts", "conjunction.alert", None)
    assert (body["pipeline"], body["cause"]) == ("sda-ingest", "high: ISS and COSMOS")
    assert body["payload"] == {"revision": 2, "objects": [{"name": "ISS"}]}


@pytest.mark.parametrize(
    ("severity", "status", "wanted"),
    [("high", "provisional", True), ("high", "final", False), ("low", "provisional", False)],
)
def test_the_trigger_of_the_page_covers_what_it_says(severity: str, status: str, wanted: bool) -> None:  # noqa: FBT001 - a test parameter
    """``docs/automations.md``, "Alerts"."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "automations.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("EventTrigger(")]
    trigger = eval(block, {"EventTrigger": EventTrigger, "Posture": Posture})
    event = notices(severity)
    event.resource.root["conjunction.status"] = status
    automation = AutomationCore(name="mine", trigger=trigger, actions=[DoNothing()])
    assert covers(automation, event) is wanted


def test_alerts_need_a_target() -> None:
    """Without one, nothing could be notified."""
    for target, kinds in ((WEBHOOK, ["alarm", "alerts"]), (None, [])):
        wanted = automations_for(
            FLOW,
            target=target,
            restarts=3,
            within=TEN_MINUTES,
            on_flapping=OnFlapping.NOTIFY,
            zombie_after=None,
            notices=WANTED,
        )
        assert [each.name.removeprefix("sda-ingest: ") for each in wanted if "flapping" not in each.name] == kinds


def test_the_webhook_gets_valid_json_for_any_cause() -> None:
    """Quotes, newlines, markup and braces in a cause arrive unchanged, with the operator and the run."""
    cause = 'ValueError: "no" \\ such\nfield <b>{{ event }}</b> – ü'
    assert sent(alarm(FLOW, WEBHOOK), operators("escalate", instance=2, cause=cause)) == {
        "automation": "sda-ingest: alarm",
        "event": "orchestrator.operator.escalate",
        "operator": "dedup",
        "pipeline": "sda-ingest",
        "cause": cause,
        "flow_run_id": str(RUN_ID),
        "flow_run_name": "witty-owl",
        "occurred": "2026-01-01T12:00:00+00:00",
        "payload": {"instance": 2, "cause": cause},
    }


@pytest.mark.parametrize(
    ("decision", "payload", "cause"),
    [
        ("ledger_violation", {"message": "dedup: 3 unaccounted"}, "dedup: 3 unaccounted"),
        ("straggler", {"stack": "File …"}, "File …"),
        ("straggler", {}, None),
    ],
)
def test_the_cause_is_taken_from_the_decisions_fields(
    decision: str, payload: dict[str, Any], cause: str | None
) -> None:
    """A violation has its message, a straggler its stack; without any of them the cause is null, and it is still sent."""
    assert sent(alarm(FLOW, WEBHOOK), operators(decision, **payload))["cause"] == cause


def test_the_webhook_of_a_reaped_run_names_the_run() -> None:
    """It has the same keys as an operator's, so that one receiver can read both. The operator is null."""
    body = sent(reaped(FLOW, WEBHOOK), runs("prefect.flow-run.Crashed", message=zombie_message(FLOW, TEN_MINUTES)))
    assert body.keys() == sent(alarm(FLOW, WEBHOOK), operators("escalate")).keys()
    assert (body["operator"], body["pipeline"]) == (None, "sda-ingest")
    assert (body["flow_run_id"], body["flow_run_name"]) == (str(RUN_ID), "witty-owl")
    assert body["cause"] == zombie_message(FLOW, TEN_MINUTES)


def test_any_other_block_gets_a_subject_and_lines() -> None:
    """A notification block gets text. The templates are valid and have event, operator and cause."""
    (action,) = alarm(FLOW, BLOCK).actions
    assert isinstance(action, SendNotification)
    assert action.block_document_id == BLOCK.block_id
    validate_user_template(action.body)
    event = operators("escalate", cause="KeyError")
    context = {"event": event, "automation": alarm(FLOW, BLOCK)}
    assert render_user_template_sync(action.body, context).splitlines() == [
        "event: orchestrator.operator.escalate",
        "operator: dedup",
        "pipeline: sda-ingest",
        "cause: KeyError",
        f"flow_run_id: {RUN_ID}",
    ]
    assert render_user_template_sync(action.subject, context) == "sda-ingest: alarm"


def test_an_installed_automation_equals_the_wanted_one_until_it_is_changed() -> None:
    """The id and the order of a set do not matter; a threshold and whether it is enabled do."""
    wanted = flapping(FLOW, restarts=3, within=TEN_MINUTES, on_flapping=OnFlapping.PAUSE, target=WEBHOOK)
    installed = Automation.model_validate(wanted.model_dump(mode="json") | {"id": uuid4()})
    assert equal(installed, wanted)
    assert not equal(installed.model_copy(update={"enabled": False}), wanted)
    assert not equal(
        installed, flapping(FLOW, restarts=4, within=TEN_MINUTES, on_flapping=OnFlapping.PAUSE, target=WEBHOOK)
    )


def test_a_description_is_one_line() -> None:
    """It has the trigger and the actions, and says if the automation is disabled."""
    automation = flapping(FLOW, restarts=3, within=TEN_MINUTES, on_flapping=OnFlapping.CANCEL, target=WEBHOOK)
    assert describe(automation) == (
        "sda-ingest: flapping: 4 of orchestrator.operator.restart within 600 s for each prefect.resource.id "
        "-> cancel-flow-run, call-webhook"
    )
    assert describe(zombie(FLOW, after=TEN_MINUTES)).startswith("sda-ingest: zombie: none of prefect.flow-run.Cancel")
    assert "(disabled)" in describe(automation.model_copy(update={"enabled": False}))


@pytest.mark.parametrize(
    ("flow", "name"), [("sda-ingest", "sda-ingest-automations"), ("My Flow_2!", "my-flow-2-automations")]
)
def test_the_webhook_block_has_a_name_that_prefect_allows(flow: str, name: str) -> None:
    """Lower case letters, digits and dashes, for any flow name."""
    assert webhook_name(flow) == name
