"""Ready-made Prefect automations: on the supervisor's events (alarm, flapping, zombie, reaped) and on notices (alerts).

Pure functions build the automations of one flow; ``install`` and ``uninstall`` bring the server in line with them. They use
the names in ``vocabulary`` and Prefect's own flow-run events, and do not know what emits these. No run depends on them.

An event belongs to a flow by its related resource in the role ``flow``, matched by name. Prefect's heartbeats and state
changes carry it, and so do our events. So an automation can be installed before the flow's first run.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import (
    ActionTypes,
    CallWebhook,
    CancelFlowRun,
    ChangeFlowRunState,
    PauseDeployment,
    SendNotification,
)
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import SecretStr

from orchestrator_adapter.prefect_flow.client.vocabulary import (
    OPERATOR,
    PIPELINE,
    RESOURCE_ID,
    RESOURCE_NAME,
    RESOURCE_ROLE,
    operator_event,
)
from orchestrator_adapter.primitives.decision import Decision

ALARMING = (Decision.ESCALATE, Decision.BUDGET_EXHAUSTED, Decision.STRAGGLER, Decision.LEDGER_VIOLATION)
"""The decisions that need a person's attention: each is a run that ends badly, or items that are unaccounted for."""

SHORTEST_WATCH = timedelta(seconds=10)
"""Prefect's minimum for a trigger on the absence of events."""

HEARTBEAT = "prefect.flow-run.heartbeat"
CRASHED = "prefect.flow-run.Crashed"
ENDED = ("prefect.flow-run.Completed", "prefect.flow-run.Failed", "prefect.flow-run.Cancelled", CRASHED)

_REAPED = "Reaped: no heartbeat for"
_FLOW_RUN = "event.resource_in_role['flow-run']"


class OnFlapping(StrEnum):
    """What to do about an operator that keeps being restarted. A notification is sent in each case, if there is a target."""

    PAUSE = "pause"
    """Pause the run's deployment: its schedules start no more runs. The current run and the restarts continue."""

    NOTIFY = "notify"
    """Only notify."""

    CANCEL = "cancel"
    """Cancel the run: the pipeline drains in two phases and ends Cancelled. Its schedules may start the next."""


@dataclass(frozen=True, slots=True)
class NotificationBlock:
    """The block on the server that sends notifications. A webhook sends JSON; any other block sends a text message."""

    block_id: UUID
    webhook: bool


@dataclass(frozen=True, slots=True)
class WantedNotices:
    """Which notices are notified of.

    Attributes:
        event: The notices' event.
        resource: The id of their resource, as a pattern: ``conjunction.*``.
        labels: Labels of the resource, each with the values that are wanted.
    """

    event: str
    resource: str
    labels: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class InstallResult:
    """What happened to the automation of this name: ``created``, ``updated``, ``unchanged`` or ``removed``."""

    name: str
    what: str
    enabled: bool = True


class UnusableBlock(Exception):
    """The block does not exist, or cannot send notifications; the message says which."""


def automations_for(
    flow: str,
    *,
    target: NotificationBlock | None,
    restarts: int,
    within: timedelta,
    on_flapping: OnFlapping,
    zombie_after: timedelta | None,
    notices: WantedNotices | None = None,
) -> list[AutomationCore]:
    """Every automation that these options allow.

    ``alarm``, ``reaped`` and ``alerts`` need a ``target``, ``alerts`` also ``notices``, and ``zombie`` needs heartbeats.
    """
    wanted: list[AutomationCore] = []
    if target is not None:
        wanted.append(alarm(flow, target))
        if notices is not None:
            wanted.append(alerts(flow, target, notices))
    if target is not None or on_flapping is not OnFlapping.NOTIFY:
        wanted.append(flapping(flow, restarts=restarts, within=within, on_flapping=on_flapping, target=target))
    if zombie_after is not None:
        wanted.append(zombie(flow, after=zombie_after))
        if target is not None:
            wanted.append(reaped(flow, target))
    return wanted


def alarm(flow: str, target: NotificationBlock) -> AutomationCore:
    """Notify of each panic, exhausted budget, straggler and ledger violation: one message each, at once."""
    return AutomationCore(
        name=_name(flow, "alarm"),
        description="An operator panicked, exhausted its restart budget, did not stop, or violated the ledger.",
        trigger=EventTrigger(
            expect={operator_event(decision) for decision in ALARMING},
            match=ResourceSpecification({RESOURCE_ID: f"{OPERATOR}.*"}),
            match_related=_of_flow(flow),
            posture=Posture.Reactive,
        ),
        actions=[_notify(target, _OF_OPERATOR)],
    )


def alerts(flow: str, target: NotificationBlock, notices: WantedNotices) -> AutomationCore:
    """Notify of each notice that is wanted: one message each, at once. The pipeline decides what is a notice."""
    return AutomationCore(
        name=_name(flow, "alerts"),
        description=f"The pipeline has posted a notice {notices.event}.",
        trigger=EventTrigger(
            expect={notices.event},
            match=ResourceSpecification(
                {RESOURCE_ID: notices.resource} | {label: list(values) for label, values in notices.labels.items()}
            ),
            match_related=_of_flow(flow),
            posture=Posture.Reactive,
        ),
        actions=[_notify(target, _OF_NOTICE)],
    )


def flapping(
    flow: str, *, restarts: int, within: timedelta, on_flapping: OnFlapping, target: NotificationBlock | None
) -> AutomationCore:
    """Act on more than ``restarts`` restarts of one operator ``within`` this time; ``OnFlapping`` lists the actions.

    Prefect counts in consecutive windows, not in a sliding one: restarts that fall into two windows may be twice as many
    before it acts. It acts once per window. Pausing takes the deployment from the event. A run without a deployment is not
    paused, and the failed action is an event ``prefect.automation.action.failed``.
    """
    if restarts < 1:
        raise ValueError(f"flapping: restarts must be >= 1, got {restarts}")
    if within <= timedelta(0):
        raise ValueError(f"flapping: within must be > 0 s, got {within.total_seconds():g} s")
    actions: list[ActionTypes] = []
    if on_flapping is OnFlapping.PAUSE:
        actions.append(PauseDeployment(source="inferred"))
    elif on_flapping is OnFlapping.CANCEL:
        actions.append(CancelFlowRun())
    if target is not None:
        actions.append(_notify(target, _OF_OPERATOR))
    if not actions:
        raise ValueError("flapping: 'notify' needs a block that sends notifications")
    return AutomationCore(
        name=_name(flow, "flapping"),
        description=f"One operator was restarted more than {restarts} times within {within.total_seconds():g} s.",
        trigger=EventTrigger(
            expect={operator_event(Decision.RESTART)},
            match=ResourceSpecification({RESOURCE_ID: f"{OPERATOR}.*"}),
            match_related=_of_flow(flow),
            for_each={RESOURCE_ID},
            posture=Posture.Reactive,
            threshold=restarts + 1,
            within=within,
        ),
        actions=actions,
    )


def zombie(flow: str, *, after: timedelta) -> AutomationCore:
    """Set a run Crashed if its last heartbeat was followed by neither a heartbeat nor an end for the time ``after``.

    A killed process cannot report its end; without this automation its run stays Running for ever. It may fire for a run that
    has ended: a heartbeat arrives late, or the server, on SQLite, loses the event of the end. Such a run keeps its state,
    because Prefect rejects the change. Prefect also rejects it for a run that is Cancelling. ``after`` must cover several
    heartbeats as set in the *pipeline's* environment (``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``): one or two may be lost.
    """
    if after < SHORTEST_WATCH:
        raise ValueError(f"zombie: after must be >= {_seconds(SHORTEST_WATCH)} s, got {_seconds(after)} s")
    return AutomationCore(
        name=_name(flow, "zombie"),
        description=f"A run sent no heartbeat for {_seconds(after)} s and has not ended: its process is gone.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDED},
            match=ResourceSpecification({RESOURCE_ID: "prefect.flow-run.*"}),
            match_related=_of_flow(flow),
            for_each={RESOURCE_ID},
            posture=Posture.Proactive,
            threshold=1,
            within=after,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=zombie_message(flow, after))],
    )


def reaped(flow: str, target: NotificationBlock) -> AutomationCore:
    """Notify that ``zombie`` has set a run Crashed. It waits for the state change, so never fires for a run that had ended."""
    return AutomationCore(
        name=_name(flow, "reaped"),
        description="A run was set Crashed because its heartbeats stopped.",
        trigger=EventTrigger(
            expect={CRASHED},
            match=ResourceSpecification({RESOURCE_ID: "prefect.flow-run.*", "prefect.state-message": f"{_REAPED}*"}),
            match_related=_of_flow(flow),
            posture=Posture.Reactive,
        ),
        actions=[_notify(target, _OF_FLOW_RUN)],
    )


def zombie_message(flow: str, after: timedelta) -> str:
    """The message of a state that ``zombie`` has set. It names the automation, in case it is found on a live run."""
    return f"{_REAPED} {_seconds(after)} s (automation {_name(flow, 'zombie')!r})"


def is_reaped(message: str | None) -> bool:
    """Whether a state with this message was set by ``zombie``."""
    return message is not None and message.startswith(_REAPED)


def describe(automation: AutomationCore) -> str:
    """One line: what the automation waits for, and what it then does."""
    trigger = automation.trigger
    actions = ", ".join(action.type for action in automation.actions)
    off = "" if automation.enabled else " (disabled)"
    if not isinstance(trigger, EventTrigger):
        return f"{automation.name}{off}: {actions}"
    wanted = ", ".join(sorted(trigger.expect))
    each = f" for each {', '.join(sorted(trigger.for_each))}" if trigger.for_each else ""
    if trigger.posture is Posture.Proactive:
        first = ", ".join(sorted(trigger.after))
        condition = f"none of {wanted} within {_seconds(trigger.within)} s of {first}"
    else:
        window = f" within {_seconds(trigger.within)} s" if trigger.within else ""
        condition = f"{trigger.threshold} of {wanted}{_own_labels(trigger)}{window}"
    return f"{automation.name}{off}: {condition}{each} -> {actions}"


def _own_labels(trigger: EventTrigger) -> str:
    """The labels of ours that the resource must have."""
    labels = {
        label: [values] if isinstance(values, str) else values
        for label, values in trigger.match.items()
        if not label.startswith("prefect.")
    }
    return "".join(f" with {label} {' or '.join(values)}" for label, values in labels.items())


async def install(client: PrefectClient, automations: Sequence[AutomationCore]) -> list[InstallResult]:
    """Create or update these automations on the server, matched by name. One that is already equal is left unchanged.

    An update keeps the automation's id and whether it is enabled; the count of its trigger starts again. Of several
    automations with the same name, only the newest stays.
    """
    done: list[InstallResult] = []
    for wanted in automations:
        existing = await client.read_automations_by_name(wanted.name)
        if not existing:
            await client.create_automation(wanted)
            done.append(InstallResult(wanted.name, "created"))
            continue
        newest, *others = existing
        for other in others:
            await client.delete_automation(other.id)
        kept = wanted.model_copy(update={"enabled": newest.enabled})
        if equal(newest, kept):
            done.append(InstallResult(wanted.name, "unchanged", newest.enabled))
            continue
        # The client sends only fields that were set, and the server needs each action's `type`: so set every field, except
        # the owner, which an update must not contain.
        complete = AutomationCore.model_validate(kept.model_dump(exclude={"owner_resource"}))
        await client.update_automation(newest.id, complete)
        done.append(InstallResult(wanted.name, "updated", newest.enabled))
    return done


async def uninstall(client: PrefectClient, flow: str, *, keep: Collection[str] = ()) -> list[InstallResult]:
    """Remove the automations that ``install`` created for this flow, except those named in ``keep``."""
    done: list[InstallResult] = []
    for installed in await installed_for(client, flow):
        if installed.name not in keep:
            await client.delete_automation(installed.id)
            done.append(InstallResult(installed.name, "removed"))
    return done


async def installed_for(client: PrefectClient, flow: str) -> list[Automation]:
    """This flow's automations on the server."""
    return [automation for kind in _KINDS for automation in await client.read_automations_by_name(_name(flow, kind))]


async def save_webhook(client: PrefectClient, flow: str, url: str) -> NotificationBlock:
    """Create or update this flow's ``Webhook`` block with this URL. The server stores it encrypted."""
    block = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    return NotificationBlock(await block.asave(webhook_name(flow), overwrite=True, client=client), webhook=True)


async def remove_webhook(client: PrefectClient, flow: str) -> bool:
    """Remove the block that ``save_webhook`` created. Returns whether there was one."""
    try:
        block = await client.read_block_document_by_name(webhook_name(flow), "webhook")
    except ObjectNotFound:
        return False
    await client.delete_block_document(block.id)
    return True


async def find_block(client: PrefectClient, reference: str) -> NotificationBlock:
    """The existing block ``TYPE/NAME``: a webhook, or any block that can notify. Raises ``UnusableBlock``."""
    type_, _, name = reference.partition("/")
    if not type_ or not name:
        raise UnusableBlock(f"expected TYPE/NAME, got {reference!r}, as in slack-webhook/on-call")
    try:
        block = await client.read_block_document_by_name(name, type_, include_secrets=False)
    except ObjectNotFound:
        raise UnusableBlock(f"the server has no block {reference!r}; `prefect block ls` shows those it has") from None
    if type_ == "webhook":
        return NotificationBlock(block.id, webhook=True)
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise UnusableBlock(f"block {reference!r} is neither a notification block nor a webhook")
    return NotificationBlock(block.id, webhook=False)


def equal(one: AutomationCore, other: AutomationCore) -> bool:
    """Whether two automations are equal, apart from their ids."""
    fields = set(AutomationCore.model_fields)  # an Automation has its id besides
    return one.model_dump(include=fields) == other.model_dump(include=fields)


def webhook_name(flow: str) -> str:
    """The name of this flow's block, in the characters that Prefect allows."""
    return f"{re.sub(r'[^a-z0-9]+', '-', flow.lower()).strip('-')}-automations"


def json_template(values: Mapping[str, str]) -> str:
    """A template that renders as a JSON object of these Jinja expressions; an undefined one renders as null."""
    members = ", ".join(f'"{key}": {{{{ ({value}) | default(none) | tojson }}}}' for key, value in values.items())
    return f"{{{members}}}"


_KINDS = ("alarm", "alerts", "flapping", "zombie", "reaped")

_CAUSE = "event.payload.cause or event.payload.message or event.payload.stack"

_OF_OPERATOR: Mapping[str, str] = {
    "automation": "automation.name",
    "event": "event.event",
    "operator": "event.resource.name",
    "pipeline": f"event.resource['{PIPELINE}']",
    "cause": _CAUSE,
    "flow_run_id": f"{_FLOW_RUN}.id.removeprefix('prefect.flow-run.')",
    "flow_run_name": f"{_FLOW_RUN}.name",
    "occurred": "event.occurred.isoformat()",
    "payload": "event.payload",
}

_OF_FLOW_RUN: Mapping[str, str] = {
    "automation": "automation.name",
    "event": "event.event",
    "operator": "none",
    "pipeline": "event.resource_in_role['flow'].name",
    "cause": "event.resource['prefect.state-message']",
    "flow_run_id": "event.resource.id.removeprefix('prefect.flow-run.')",
    "flow_run_name": "event.resource.name",
    "occurred": "event.occurred.isoformat()",
    "payload": "{}",
}


_OF_NOTICE: Mapping[str, str] = {
    **_OF_OPERATOR,
    "operator": "none",
    "pipeline": "event.resource_in_role['pipeline'].name",
    "cause": "event.resource.name",
}


def _notify(target: NotificationBlock, values: Mapping[str, str]) -> CallWebhook | SendNotification:
    if target.webhook:
        return CallWebhook(block_document_id=target.block_id, payload=json_template(values))
    lines = [f"{key}: {{{{ {values[key]} }}}}" for key in ("event", "operator", "pipeline", "cause", "flow_run_id")]
    return SendNotification(block_document_id=target.block_id, subject="{{ automation.name }}", body="\n".join(lines))


def _of_flow(flow: str) -> ResourceSpecification:
    # Labels are matched as patterns: a name with `*` in it must not match other flows.
    return ResourceSpecification({RESOURCE_ROLE: "flow", RESOURCE_NAME: glob.escape(flow)})


def _name(flow: str, kind: str) -> str:
    return f"{flow}: {kind}"


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g}"
