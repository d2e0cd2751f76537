"""Deliveries over real HTTP to a subscriber that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from orchestrator_adapter import BreakerPolicy, BuiltGraph, Clock, RetryPolicy, SupervisorEvent
from orchestrator_adapter.testing import ListSource, ManualClock, Step, UntilShutdown, chain, run_graph
from sda_ops.alerts.delivery.deliver import DeliveryPolicy, pause_ns
from sda_ops.alerts.delivery.sink import alerts_sink
from sda_ops.alerts.delivery.webhook import Webhook
from sda_ops.alerts.metrics import AlertMetrics
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.outbox.values import Depth
from sda_ops.alerts.subscriber.table import SubscriberTable
from sda_ops.records.alert import Alert
from tests.helpers.alerts import conjunction, outbox_in, risk
from tests.helpers.faulty_subscriber import FaultySubscriber
from tests.helpers.running import NOON_NS, eventually

MS = timedelta(milliseconds=1)
IMPATIENT = DeliveryPolicy(
    retry=RetryPolicy(MS, 5 * MS, max_attempts=100),
    breaker=BreakerPolicy(threshold=1.0, min_calls=20, cooldown=5 * MS),
    slow=5 * MS,
)


@pytest.fixture
def table(tmp_path: Path) -> SubscriberTable:
    return SubscriberTable(tmp_path / "subscriber.sqlite")


def text(alert: Alert) -> bytes:
    """A body that names the revision, and what it says."""
    return json.dumps({"key": alert.key, "miss_m": alert.risk.estimate.miss_m}).encode()


def webhook(name: str, url: str, **changes: Any) -> Webhook:
    """Deliveries to ``url`` without a bound on their rate."""
    fields: dict[str, Any] = {"body": text, "max_per_s": None, "timeout": timedelta(seconds=30)}
    return Webhook(name=name, url=url, **fields | changes)


async def delivered(
    outbox: AlertOutbox,
    webhooks: Sequence[Webhook],
    *steps: Step,
    until: Callable[[], object],
    policy: DeliveryPolicy = IMPATIENT,
    clock: Clock | None = None,
    advance_s: Callable[[], float] = lambda: 0.1,
    metrics: AlertMetrics | None = None,
) -> SupervisorEvent:
    """Run source and sink until ``until`` holds, then request the shutdown. A manual clock advances by steps of ``advance_s``."""

    async def during(built: BuiltGraph) -> None:
        await eventually(until, "the deliveries that the test waits for")
        built.request_shutdown("the test has seen enough")

    sink = alerts_sink(outbox, webhooks, policy=policy, metrics=metrics)
    graph = chain(ListSource(*steps, UntilShutdown()), sink)
    ticking = asyncio.create_task(_tick(clock, advance_s)) if isinstance(clock, ManualClock) else None
    try:
        event = await run_graph(graph, clock=clock, during=during)
    finally:
        if ticking is not None:
            ticking.cancel()
    assert event.figures.ledger_holds
    assert event.figures.problems == ()
    return event


async def _tick(clock: ManualClock, step_s: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(0.0005)
        clock.advance(step_s())


def depth(folder: Path, *names: str) -> dict[str, Depth]:
    """What the outbox on the disk says after a run."""
    outbox = outbox_in(folder, *names)
    outbox.open(NOON_NS)
    try:
        return dict(outbox.depth())
    finally:
        outbox.close()


def arrived(table: SubscriberTable, outbox: AlertOutbox, count: int) -> bool:
    """Whether the subscriber has this many alerts, and the outbox the acknowledgements."""
    return len(table.keys()) == count and outbox.depth()["a"].pending == 0


ALL = [(number, revision) for revision in range(3) for number in range(4)]
RISKS = [risk(number, step) for number, step in ALL]
KEYS = sorted((conjunction(number), revision) for number, revision in ALL)


@pytest.mark.parametrize(
    "script",
    [
        "ok",
        "ok,lose",
        "lose,ok,cut",
        "503,ok",
        "503:0,ok",
        "500,429,408,425,409,ok",
        "401,ok",
        "redirect,404,ok",
        "endless",
        "huge-header,ok",
        "slow",
    ],
)
async def test_each_revision_arrives_once_and_in_order(tmp_path: Path, table: SubscriberTable, script: str) -> None:
    async with FaultySubscriber(table, script) as subscriber:
        outbox = outbox_in(tmp_path, "a")
        hook = webhook("a", subscriber.url)
        await delivered(outbox, [hook], RISKS, until=lambda: arrived(table, outbox, len(ALL)))
    stored = table.keys()
    assert sorted(stored) == KEYS
    for number in range(4):
        assert [revision for identity, revision in stored if identity == conjunction(number)] == [0, 1, 2]
    assert depth(tmp_path, "a")["a"] == Depth(0, 0, None, configured=True)


@pytest.mark.parametrize("script", ["hang", "drip", "dripping-body"])
async def test_a_subscriber_that_does_not_end_its_answer_costs_its_timeout_only(
    tmp_path: Path, table: SubscriberTable, script: str
) -> None:
    """The subscriber has stored what it did not acknowledge: every alert arrives once."""
    async with FaultySubscriber(table, f"{script},ok") as subscriber:
        hook = webhook("a", subscriber.url, timeout=timedelta(milliseconds=500))
        outbox = outbox_in(tmp_path, "a")
        await delivered(outbox, [hook], [risk(0), risk(0, 1)], until=lambda: arrived(table, outbox, 2))
        # A drip of the body comes after the header, so it is an acknowledgement; the others are repeated.
        assert table.deliveries() - 2 == (0 if script == "dripping-body" else 2)
    assert table.keys() == [(conjunction(0), 0), (conjunction(0), 1)]


async def test_a_certificate_must_verify_and_parks_nothing_until_it_does(
    tmp_path: Path, table: SubscriberTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with FaultySubscriber(table, tls=tls) as subscriber:
        hook, metrics = webhook("a", subscriber.url), AlertMetrics()
        await delivered(outbox_in(tmp_path, "a"), [hook], [risk(0)], until=lambda: failed(metrics) > 1, metrics=metrics)
        assert (depth(tmp_path, "a")["a"].pending, subscriber.requests) == (1, [])
        with authority.cert_pem.tempfile() as trusted:
            monkeypatch.setenv("SSL_CERT_FILE", trusted)
            await delivered(outbox_in(tmp_path, "a"), [hook], until=table.keys)
    assert table.keys() == [(conjunction(0), 0)]


def failed(metrics: AlertMetrics) -> float:
    """How many attempts have failed."""
    samples = [sample for family in metrics.collect() for sample in family.samples]
    return sum(each.value for each in samples if each.name == "alerts_total" and each.labels["outcome"] == "failed")


async def test_an_alert_that_is_rejected_is_parked_and_holds_nothing(tmp_path: Path, table: SubscriberTable) -> None:
    """Neither other conjunctions, nor the later revisions of its own."""
    rejected = f"{conjunction(1)}/1"
    async with FaultySubscriber(table) as subscriber:
        subscriber.rejected = {rejected: "422"}
        hook = webhook("a", subscriber.url)
        await delivered(outbox_in(tmp_path, "a"), [hook], RISKS, until=lambda: len(table.keys()) == len(ALL) - 1)
        assert subscriber.keys.count(rejected) == 1
    assert sorted(table.keys()) == [key for key in KEYS if key != (conjunction(1), 1)]
    assert depth(tmp_path, "a")["a"] == Depth(0, 1, None, configured=True)


async def test_an_alert_that_cannot_be_written_is_parked_and_holds_nothing(
    tmp_path: Path, table: SubscriberTable
) -> None:
    def body(alert: Alert) -> bytes:
        if alert.key == f"{conjunction(0)}/0":
            raise KeyError("a bug of the format")
        return text(alert)

    async with FaultySubscriber(table) as subscriber:
        hook = webhook("a", subscriber.url, body=body)
        await delivered(outbox_in(tmp_path, "a"), [hook], RISKS, until=lambda: len(table.keys()) == len(ALL) - 1)
    assert depth(tmp_path, "a")["a"].parked == 1


async def test_a_later_revision_waits_until_the_one_before_is_acknowledged(
    tmp_path: Path, table: SubscriberTable
) -> None:
    async with FaultySubscriber(table, "503,503,503,ok") as subscriber:
        hook = webhook("a", subscriber.url, concurrency=4)
        steps = [risk(0, step) for step in range(3)]
        await delivered(outbox_in(tmp_path, "a"), [hook], steps, until=lambda: len(table.keys()) == 3)
        assert subscriber.keys == [f"{conjunction(0)}/{revision}" for revision in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)]


async def test_at_most_the_given_number_of_requests_is_under_way(tmp_path: Path, table: SubscriberTable) -> None:
    most = 0

    async with FaultySubscriber(table, "slow") as subscriber:

        def seen() -> bool:
            nonlocal most
            most = max(most, len(subscriber.requests) - table.deliveries())
            return table.deliveries() == 9

        hook = webhook("a", subscriber.url, concurrency=3)
        await delivered(outbox_in(tmp_path, "a"), [hook], [risk(number) for number in range(9)], until=seen)
    assert most == 3


async def test_a_dead_subscriber_does_not_disturb_the_others(tmp_path: Path) -> None:
    """Neither one whose port is closed, nor one that never answers."""
    first, second, hung = (SubscriberTable(tmp_path / f"{name}.sqlite") for name in ("first", "second", "hung"))
    async with FaultySubscriber(first) as one, FaultySubscriber(second) as two, FaultySubscriber(hung, "hang") as dead:
        hooks = [
            webhook("one", one.url),
            webhook("two", two.url),
            webhook("hung", dead.url),
            webhook("closed", "http://127.0.0.1:9/"),
        ]
        outbox = outbox_in(tmp_path, "one", "two", "hung", "closed")
        until = lambda: len(first.keys()) == len(second.keys()) == len(ALL)  # noqa: E731 - it is one line
        await delivered(outbox, hooks, RISKS, until=until)
        assert table_is_repeated(one, 1)
        assert table_is_repeated(two, 1)
    left = depth(tmp_path, "one", "two", "hung", "closed")
    assert {name: each.pending for name, each in left.items()} == {"one": 0, "two": 0, "hung": 12, "closed": 12}


def table_is_repeated(subscriber: FaultySubscriber, times: int) -> bool:
    """Whether each key came this often."""
    return {subscriber.keys.count(key) for key in subscriber.keys} == {times}


async def test_after_an_outage_of_an_hour_nothing_is_lost_and_no_storm_follows(
    tmp_path: Path, table: SubscriberTable
) -> None:
    """60 alerts wait for an hour of the graph's clock. Afterwards they come at the given rate, in order."""
    clock = ManualClock()
    alerts = [risk(number, step) for step in range(3) for number in range(20)]
    async with FaultySubscriber(table, "503", monotonic=clock.monotonic) as subscriber:

        def seen() -> bool:
            if clock.monotonic() > 3_600.0:
                subscriber.follow("ok")
            return len(table.keys()) == len(alerts)

        hook = webhook("a", subscriber.url, max_per_s=5.0, timeout=timedelta(hours=9))
        await delivered(
            outbox_in(tmp_path, "a"),
            [hook],
            alerts,
            until=seen,
            policy=DeliveryPolicy(),
            clock=clock,
            advance_s=lambda: 10.0 if clock.monotonic() < 3_590.0 else 0.05,
        )
        times = [request.at_s for request in subscriber.requests]
    stored = table.keys()
    assert len(stored) == len({*stored}) == len(alerts)
    for number in range(20):
        assert [revision for identity, revision in stored if identity == conjunction(number)] == [0, 1, 2]
    during = [at for at in times if at <= 3_600.0]
    assert 20 <= len(during) <= 3_600 / 4  # it was asked now and then: a probe of the breaker every 15 s, and few more
    after = [at for at in times if at > 3_600.0]
    for first, last in zip(after, after[25:], strict=False):
        assert last - first > 24 / 5.0  # 25 requests at 5 a second; one of them may be late by an advance of the clock
    assert after[0] < 3_600.0 + 60.0


async def test_a_pause_that_the_subscriber_asks_for_holds_all_its_deliveries(
    tmp_path: Path, table: SubscriberTable
) -> None:
    clock = ManualClock()
    async with FaultySubscriber(table, "503:40", monotonic=clock.monotonic) as subscriber:

        def seen() -> bool:
            if subscriber.requests:
                subscriber.follow("ok")
            return len(table.keys()) == 6

        hook = webhook("a", subscriber.url, concurrency=1, timeout=timedelta(hours=9))
        alerts = [risk(number) for number in range(6)]
        outbox = outbox_in(tmp_path, "a")
        await delivered(outbox, [hook], alerts, until=seen, policy=DeliveryPolicy(), clock=clock, advance_s=lambda: 0.5)
        first, second, *_ = (request.at_s for request in subscriber.requests)
    assert second - first >= 40.0


async def test_a_subscriber_that_must_be_repaired_is_asked_about_once_a_minute(
    tmp_path: Path, table: SubscriberTable
) -> None:
    clock = ManualClock()
    async with FaultySubscriber(table, "401", monotonic=clock.monotonic) as subscriber:

        def seen() -> bool:
            if clock.monotonic() > 600.0:
                subscriber.follow("ok")
            return len(table.keys()) == 10

        hook = webhook("a", subscriber.url, timeout=timedelta(hours=9))
        alerts = [risk(number) for number in range(10)]
        outbox = outbox_in(tmp_path, "a")
        await delivered(outbox, [hook], alerts, until=seen, policy=DeliveryPolicy(), clock=clock, advance_s=lambda: 1.0)
        asked = [request.at_s for request in subscriber.requests if request.at_s <= 600.0]
    assert 5 <= len(asked) <= 22  # two at once, and ten minutes
    assert depth(tmp_path, "a")["a"].parked == 0


async def test_an_alert_that_alone_fails_makes_room_and_comes_back(tmp_path: Path, table: SubscriberTable) -> None:
    clock = ManualClock()
    failing = f"{conjunction(0)}/0"
    async with FaultySubscriber(table, monotonic=clock.monotonic) as subscriber:
        subscriber.rejected = {failing: "500"}

        def seen() -> bool:
            if len(table.keys()) == 5:
                subscriber.rejected = {}
            return len(table.keys()) == 6

        hook = webhook("a", subscriber.url, concurrency=1, timeout=timedelta(hours=9))
        alerts = [risk(number) for number in range(6)]
        outbox = outbox_in(tmp_path, "a")
        await delivered(outbox, [hook], alerts, until=seen, policy=DeliveryPolicy(), clock=clock, advance_s=lambda: 0.2)
    assert table.keys()[-1] == (conjunction(0), 0)


def test_the_pause_of_such_an_alert_grows_to_a_quarter_of_an_hour() -> None:
    assert [pause_ns(attempts) // 10**9 for attempts in (4, 8, 100, 450, 10_000)] == [8, 16, 200, 900, 900]


async def test_outcomes_and_latency_are_measured(tmp_path: Path, table: SubscriberTable) -> None:
    """Latency is from the evidence to the acknowledgement, of new evidence only."""
    clock = ManualClock(now_ns=NOON_NS + 5 * 10**9)
    metrics = AlertMetrics(subscribers=["a"])
    statements = [
        risk(0),
        risk(0, 1, cause="settled", status="final"),
        risk(0, 2, status="retracted", cause="withdrawn"),
    ]
    async with FaultySubscriber(table, "503,ok") as subscriber:
        hook = webhook("a", subscriber.url, timeout=timedelta(hours=9))
        outbox = outbox_in(tmp_path, "a")
        until = lambda: len(table.keys()) == 3  # noqa: E731 - it is one line
        await delivered(outbox, [hook], statements, until=until, clock=clock, advance_s=lambda: 0.001, metrics=metrics)
    values = {
        (sample.name, sample.labels.get("outcome")): sample.value
        for family in metrics.collect()
        for sample in family.samples
        if "bucket" not in sample.name
    }
    assert values["alerts_total", "recorded"] == 3
    assert values["alerts_total", "sent"] == 2
    assert values["alerts_total", "retracted"] == 1
    assert values["alerts_total", "failed"] == 3
    assert values["alert_latency_seconds_count", None] == 1
    assert 5.0 <= values["alert_latency_seconds_sum", None] < 15.0


async def test_the_log_has_the_first_failure_and_the_recovery_and_not_each_attempt(
    tmp_path: Path, table: SubscriberTable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = ManualClock()
    async with FaultySubscriber(table, "503", monotonic=clock.monotonic) as subscriber:

        def seen() -> bool:
            if clock.monotonic() > 300.0:
                subscriber.follow("ok")
            return len(table.keys()) == 10

        hook = webhook("a", subscriber.url, timeout=timedelta(hours=9))
        alerts = [risk(number) for number in range(10)]
        outbox = outbox_in(tmp_path, "a")
        await delivered(outbox, [hook], alerts, until=seen, policy=DeliveryPolicy(), clock=clock, advance_s=lambda: 1.0)
        assert len(subscriber.requests) > 20
    lines = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    events = [line["event"] for line in lines if line.get("downstream") == "alerts-a"]
    assert events == ["downstream_failing", "downstream_answers"]
