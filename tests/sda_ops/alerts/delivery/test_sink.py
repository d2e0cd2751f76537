from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator_adapter import BuiltGraph, EventLog, OperatorGraph, RestartPolicy, SystemClock, source_of
from orchestrator_adapter.process import NoticeBoard
from orchestrator_adapter.testing import ListSource, ManualClock, Pause, UntilShutdown, chain, run_graph
from sda_ops.alerts.delivery.sink import OutboxWatch, alerts_sink
from sda_ops.alerts.delivery.webhook import Webhook
from sda_ops.alerts.outbox.file import AlertOutboxError, AlertOutboxFull
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.outbox.values import Delivery, Depth, Recorded
from sda_ops.alerts.subscriber.table import SubscriberTable
from sda_ops.records.risk import ConjunctionRisk
from tests.helpers.alerts import conjunction, outbox_in, risk
from tests.helpers.faulty_subscriber import FaultySubscriber
from tests.helpers.running import NOON_NS, eventually


def webhook(name: str, url: str) -> Webhook:
    return Webhook(name=name, url=url, body=lambda alert: alert.key.encode())


def pending(folder: Path) -> list[str]:
    """The keys that a restart would deliver first."""
    outbox = outbox_in(folder, "a")
    outbox.open(NOON_NS)
    try:
        return [each.alert.key for each in outbox.due("a", NOON_NS, 100)]
    finally:
        outbox.close()


async def test_what_is_written_is_in_the_outbox_without_any_subscriber(tmp_path: Path) -> None:
    event = await run_graph(chain(source_of([risk(0), risk(1)]), alerts_sink(outbox_in(tmp_path), [])))
    assert (event.name, event.figures.ledger.written) == ("AllOk", 2)
    reader = outbox_in(tmp_path, "a")  # a subscriber that is new gets the newest revision of each conjunction
    assert reader.open(NOON_NS).enqueued == 2
    reader.close()


async def test_a_subscriber_that_is_down_never_holds_the_stream_nor_its_end(tmp_path: Path) -> None:
    """What it has not acknowledged is pending at the next start."""
    sink = alerts_sink(
        outbox_in(tmp_path, "a"), [webhook("a", "http://127.0.0.1:9/")], last_deliveries=timedelta(milliseconds=50)
    )
    event = await run_graph(chain(source_of([risk(number) for number in range(50)]), sink))
    assert (event.name, event.figures.ledger.written, event.figures.problems) == ("AllOk", 50, ())
    assert pending(tmp_path) == [f"{conjunction(number)}/0" for number in range(50)]


async def test_a_shutdown_gives_a_request_that_hangs_a_bounded_time(tmp_path: Path) -> None:
    """A second of the graph's clock, within its grace period of five."""
    table, clock = SubscriberTable(tmp_path / "subscriber.sqlite"), ManualClock()
    async with FaultySubscriber(table, "hang") as subscriber:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: subscriber.requests, "a request is under way")
            built.request_shutdown("enough")
            began = clock.monotonic()
            while clock.monotonic() < began + 4.0:
                await asyncio.sleep(0.001)
                clock.advance(0.05)

        sink = alerts_sink(outbox_in(tmp_path, "a"), [webhook("a", subscriber.url)])
        event = await run_graph(chain(ListSource([risk(0)], UntilShutdown()), sink), clock=clock, during=during)
    assert (event.name, event.figures.problems) == ("ShutDown", ())
    assert pending(tmp_path) == [f"{conjunction(0)}/0"]


class FailsOnce(AlertOutbox):
    """An outbox whose first write fails: the disk is full."""

    failed = False

    def record(self, risks: list[ConjunctionRisk], now_ns: int) -> Recorded:  # type: ignore[override] # as it is called
        if not self.failed:
            self.failed = True
            raise AlertOutboxError("outbox of alerts: database or disk is full")
        return super().record(risks, now_ns)


async def test_nothing_is_acknowledged_that_the_outbox_does_not_have(tmp_path: Path) -> None:
    """The next instance of the sink receives the batch again."""
    table = SubscriberTable(tmp_path / "subscriber.sqlite")
    model = outbox_in(tmp_path, "a")
    outbox = FailsOnce(model.path, subscribers=model.subscribers)
    async with FaultySubscriber(table) as subscriber:
        sink = alerts_sink(outbox, [webhook("a", subscriber.url)], last_deliveries=timedelta(seconds=30))
        graph = OperatorGraph("alerts")
        source = graph.add_source("source", source_of([risk(0), risk(1)]))
        policy = RestartPolicy.bounded(1, timedelta(minutes=1))
        graph.connect(source, graph.add_sink("alerts", sink, restart_policy=policy), 64)
        event = await run_graph(graph)
    assert (event.figures.ledger.written, event.figures.restarts["alerts"].total) == (2, 1)
    assert sorted(table.keys()) == [(conjunction(0), 0), (conjunction(1), 0)]


class FullUntilDelivered(AlertOutbox):
    """An outbox without room for the second batch until the first one was acknowledged."""

    acknowledged = False
    rejected = 0

    def record(self, risks: Sequence[ConjunctionRisk], now_ns: int) -> Recorded:
        if risks[0].conjunction_id == conjunction(1) and not self.acknowledged:
            self.rejected += 1
            raise AlertOutboxFull("outbox of alerts: it is full")
        return super().record(risks, now_ns)

    def acknowledge(self, deliveries: Sequence[Delivery], now_ns: int) -> None:
        super().acknowledge(deliveries, now_ns)
        self.acknowledged = self.rejected > 1


async def test_deliveries_go_on_while_the_outbox_is_full_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sink waits with its batch, without a restart, and logs it once."""
    table, clock = SubscriberTable(tmp_path / "subscriber.sqlite"), ManualClock()
    model = outbox_in(tmp_path, "a")
    outbox = FullUntilDelivered(model.path, subscribers=model.subscribers)
    async with FaultySubscriber(table, "503") as subscriber:

        async def during(built: BuiltGraph) -> None:
            while len(table.keys()) < 2:
                await asyncio.sleep(0.001)
                clock.advance(0.05)
                if outbox.rejected > 1:
                    subscriber.follow("ok")
            built.request_shutdown("enough")

        sink = alerts_sink(outbox, [webhook("a", subscriber.url)])
        source = ListSource([risk(0)], Pause(timedelta(seconds=1)), [risk(1)], UntilShutdown())
        event = await run_graph(chain(source, sink), clock=clock, during=during)
    assert (event.figures.ledger.written, dict(event.figures.restarts)) == (2, {})
    assert sorted(table.keys()) == [(conjunction(0), 0), (conjunction(1), 0)]
    assert caplog.text.count("alert_outbox_full") == 1


async def test_what_was_pending_is_delivered_after_the_next_start_before_anything_new(tmp_path: Path) -> None:
    outbox = outbox_in(tmp_path, "a")
    now_ns = SystemClock().now_ns()  # what is pending for a week is parked as too old
    outbox.open(now_ns)
    outbox.record([risk(0), risk(0, 1), risk(1)], now_ns)
    outbox.close()
    table = SubscriberTable(tmp_path / "subscriber.sqlite")
    async with FaultySubscriber(table) as subscriber:
        sink = alerts_sink(
            outbox_in(tmp_path, "a"), [webhook("a", subscriber.url)], last_deliveries=timedelta(seconds=30)
        )
        await run_graph(chain(source_of([]), sink))
    assert table.keys() == [(conjunction(0), 0), (conjunction(1), 0), (conjunction(0), 1)]


async def test_each_new_or_changed_alert_is_a_notice(tmp_path: Path) -> None:
    board = NoticeBoard()
    statements = [risk(0), risk(0), risk(0, 1), risk(1)]
    await run_graph(chain(source_of(statements), alerts_sink(outbox_in(tmp_path), [], notices=board)))
    keys = [notice.key.partition("@")[0] for _, notice in board.take()]
    assert keys == [f"{conjunction(0)}/0", f"{conjunction(0)}/1", f"{conjunction(1)}/0"]


def test_webhooks_and_subscribers_must_have_the_same_names(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected one webhook for each subscriber of the outbox, \['a'\], got \['b'\]"
    ):
        alerts_sink(outbox_in(tmp_path, "a"), [webhook("b", "http://subscriber/")])


def test_a_backlog_is_one_line_at_each_doubling_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = OutboxWatch(EventLog(logging.getLogger("test")), max_bytes=1_000)
    for count in (99, 100, 150, 199, 200, 399, 30, 200, 9, 5, 100):
        watch.look({"a": Depth(count, 0, NOON_NS - 60 * 10**9, configured=True)}, NOON_NS)
    lines = [json.loads(record.message) for record in caplog.records]
    found = [(line["event"], line.get("pending"), line.get("oldest_s")) for line in lines]
    assert found == [
        ("alert_backlog", 100, 60),
        ("alert_backlog", 200, 60),
        ("alert_backlog_delivered", None, None),
        ("alert_backlog", 100, 60),
    ]


def test_an_outbox_that_is_almost_full_is_one_line_until_it_has_room(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = OutboxWatch(EventLog(logging.getLogger("test")), max_bytes=1_000)
    for used in (799, 800, 1_000, 750, 801, 700, 799):
        watch.used_bytes = used
        watch.look({}, NOON_NS)
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["event"], line["used_bytes"]) for line in lines] == [
        ("alert_outbox_almost_full", 800),
        ("alert_outbox_has_room", 700),
    ]
