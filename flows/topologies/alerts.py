"""The alerts of ``sda-fusion``: what assesses risks, the outbox, and the sink that delivers. No Prefect here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from flows.settings.addresses import HiddenText
from flows.settings.alerts import AlertSettings, SubscriberSettings
from flows.settings.event_time import EventTimeSettings
from flows.topologies.from_settings import FIVE_A_MINUTE, THREE_A_MINUTE
from orchestrator_adapter import Backoff, Factory, FlowPolicy, OperatorGraph, RestartPolicy, VertexId, merge
from orchestrator_adapter.process import NoticeBoard
from sda_ops.alerts.delivery.signature import signing_key
from sda_ops.alerts.delivery.sink import alerts_sink
from sda_ops.alerts.delivery.webhook import Webhook
from sda_ops.alerts.formats.cdm import alert_cdm
from sda_ops.alerts.formats.json import alert_json
from sda_ops.alerts.metrics import AlertMetrics
from sda_ops.alerts.outbox.rules import within
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.risk.assessor import AssessorLimits, Recovery
from sda_ops.alerts.risk.evidence import EvidenceLimits
from sda_ops.alerts.risk.operator import assess_risk
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.records.alert import Alert
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable

UNTIL_IT_HAS_ROOM = RestartPolicy.always(
    backoff=Backoff(timedelta(seconds=1), timedelta(minutes=1), healthy_after=timedelta(minutes=10))
)
"""Of the sink: an outbox that cannot be written, because the disk is full for example, never ends the run. What comes waits in front
of the sink, and then on disk."""

_NO_PILLS = 100_000
"""Deliveries to the sink. It fails because of the outbox, never because of an item: that must not become a dead letter."""

ORIGINATOR = "SDA-FUSION"
"""Of the messages in CDM. A receiver of several pipelines distinguishes them by the subscriber's address."""

_ESTIMATES_MOVE_NS = 3_600 * 10**9
"""The outbox may have an earlier closest approach than the table. Two estimates of one conjunction are at most 20 minutes apart."""

_CONTENT_TYPES = {"json": "application/json", "cdm-kvn": "text/plain; charset=utf-8", "cdm-xml": "application/xml"}


@dataclass(frozen=True, slots=True)
class Alerts:
    """The parts of the alerts.

    Attributes:
        outbox: Its file.
        table: The conjunctions; open before `prepare`.
        metrics: What became of them.
        notices: Of the new and the materially changed ones.
        risk: The operator.
        sink: The sink.
    """

    outbox: AlertOutbox
    table: ConjunctionTable
    metrics: AlertMetrics
    notices: NoticeBoard
    risk: Factory
    sink: Factory

    async def prepare(self) -> None:
        """Open the outbox: a damaged one is found before anything runs.

        What stands as an alert and is not in the table, because that was lost, is added to it: otherwise an
        approach that the first screening does not find would never be retracted.
        """
        now_ns = time.time_ns()
        await asyncio.to_thread(self.outbox.open, now_ns)
        await asyncio.to_thread(lambda: self.table.adopt(self.outbox.standing(now_ns)))

    def connect(self, graph: OperatorGraph, matched: VertexId, found: VertexId, aside: FlowPolicy) -> None:
        """Connect the operators to ``matched``, which has the correlations, and to ``found``, which has the conjunctions."""
        note = "stateless; the marks of the stream pass it"
        evidence = graph.add_fan_in("evidence", merge(), restart_policy=FIVE_A_MINUTE, note=note)
        note = (
            "slow alerts hold no audit: what waits for them is on disk; what is shed is in the audit, and only evidence"
        )
        graph.connect(matched, evidence, 16_384, policy=aside, note=note)
        graph.connect(found, evidence, 4_096, note="the rest waits in the table")
        note = "its windows survive a restart; a new process recovers the conjunctions from their table"
        risk = graph.add_operator(
            "risk", self.risk, stateful=True, expanding=True, restart_policy=THREE_A_MINUTE, note=note
        )
        graph.connect(evidence, risk, 1_024, note="four micro-batches keep both ends busy")
        note = "tried again without end: an outbox that fails leaves no gap in the audit of the stream, and no alert is dropped"
        alerts = graph.add_sink(
            "alerts", self.sink, restart_policy=UNTIL_IT_HAS_ROOM, max_deliveries=_NO_PILLS, note=note
        )
        graph.connect(risk, alerts, 4_096, note="a slow disk holds no more than the evidence")


def alerts_of(
    settings: AlertSettings,
    event_time: EventTimeSettings,
    table: ConjunctionTable,
    *,
    errors: ElementSetErrors | None = None,
    metrics: EventTimeMetrics | None = None,
) -> Alerts:
    """The parts, not opened. ``errors``: of the element sets, as the conjunctions were assessed with them."""
    rules = settings.rules()
    outbox = AlertOutbox(
        settings.outbox,
        rules=rules,
        subscribers=[each.rules() for each in settings.subscribers],
        bounds=settings.bounds(),
    )
    counted = AlertMetrics(subscribers=[each.name for each in settings.subscribers])
    risk = assess_risk(
        _limits(event_time),
        partial(within, rules=rules),
        recover=lambda now_ns: Recovery(table.newest(now_ns), outbox.alerted(now_ns - _ESTIMATES_MOVE_NS)),
        metrics=metrics,
    )
    notices = NoticeBoard()
    webhooks = [_webhook(each, errors) for each in settings.subscribers]
    sink = alerts_sink(outbox, webhooks, metrics=counted, notices=notices)
    return Alerts(outbox, table, counted, notices, risk, sink)


def _limits(settings: EventTimeSettings) -> AssessorLimits:
    return AssessorLimits(
        evidence=EvidenceLimits(
            gap_ns=_ns(settings.window_s),
            longest_ns=_ns(settings.longest_window_s),
            allowed_lateness_ns=_ns(settings.allowed_lateness_s),
            max_held=settings.max_held,
        )
    )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _webhook(subscriber: SubscriberSettings, errors: ElementSetErrors | None) -> Webhook:
    return Webhook(
        name=subscriber.name,
        url=str(subscriber.url),
        body=_body(subscriber, errors),
        content_type=_CONTENT_TYPES[subscriber.format],
        key=None if subscriber.secret is None else signing_key(str(subscriber.secret)),
        max_per_s=subscriber.max_per_s,
        timeout=timedelta(seconds=subscriber.timeout_s),
        hide_path=isinstance(subscriber.url, HiddenText),  # it came from a reference
    )


def _body(subscriber: SubscriberSettings, errors: ElementSetErrors | None) -> Callable[[Alert], bytes]:
    if subscriber.format == "json":
        return alert_json
    write = partial(
        alert_cdm,
        notation="kvn" if subscriber.format == "cdm-kvn" else "xml",
        originator=ORIGINATOR,
        errors=errors,
        own=subscriber.objects,
    )
    return lambda alert: write(alert).encode()
