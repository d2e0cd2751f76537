"""Any sequence of calls: numbers have no gaps, the order holds, and a subscriber that has all deliveries knows what it must."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random
from uuid import UUID

from sda_ops.alerts.outbox.beside import AlertEditor
from sda_ops.alerts.outbox.rules import AlertRules, Known, Quiet, SubscriberRules, decide, known_from
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.records.alert import Alert
from sda_ops.records.risk import ConjunctionRisk
from tests.helpers.sizes import small_and_long
from tests.sda_ops.alerts.risks import T0, TCA, S, risk

SUBSCRIBERS = (
    SubscriberRules(name="all"),
    SubscriberRules(name="finals", finals=True),
    SubscriberRules(name="near", miss_distance_m=500.0),
    SubscriberRules(name="mine", objects=frozenset({1, 2})),
    SubscriberRules(name="severe", min_severity="high", min_observations=1),
)


class AnyUse:
    """An outbox, what each subscriber has received, and the newest alert of each conjunction."""

    def __init__(self, path: Path, random: Random) -> None:
        self.path = path
        self.random = random
        self.now_ns = T0
        self.estimates: dict[int, int] = defaultdict(int)
        self.sent: list[ConjunctionRisk] = []
        self.newest: dict[UUID, Alert] = {}
        self.received: dict[str, dict[UUID, list[Alert]]] = defaultdict(lambda: defaultdict(list))
        self.outbox = AlertOutbox(path, subscribers=SUBSCRIBERS)
        self.outbox.open(T0)

    def step(self) -> None:
        self.now_ns += S
        steps = (
            self.record,
            self.record,
            self.deliver,
            self.deliver,
            self.park,
            self.reopen,
            self.send_again,
            self.prune,
        )
        self.random.choice(steps)()

    def record(self) -> None:
        """New statements, with repeats of earlier ones between them."""
        risks = [self.statement() for _ in range(self.random.randint(1, 6))]
        repeats = self.random.sample(self.sent, min(len(self.sent), 3))
        self.sent += risks
        for alert in self.outbox.record([*risks, *repeats], self.now_ns).alerts:
            before = self.newest.get(alert.conjunction_id)
            assert alert.revision == (0 if before is None else before.revision + 1)
            self.newest[alert.conjunction_id] = alert

    def statement(self) -> ConjunctionRisk:
        first = self.random.randint(1, 4)
        self.estimates[first] += 1
        return risk(
            first,
            100,
            estimate=self.estimates[first],
            screened_timestamp=self.now_ns,
            status=self.random.choice(["provisional", "provisional", "final", "retracted"]),
            miss_m=self.random.choice([200.0, 480.0, 510.0, 990.0, 1_010.0]),
            max_probability=self.random.choice([9e-8, 1e-6, 9e-5, 1.1e-4]),
            observations=(self.random.randint(0, 2), 0),
        )

    def deliver(self, *, at_most: int = 3) -> int:
        """Some of what is due, for one subscriber. A few requests are received, but not recorded as acknowledged."""
        delivered = 0
        for subscriber in SUBSCRIBERS if at_most > 3 else [self.random.choice(SUBSCRIBERS)]:
            due = self.outbox.due(subscriber.name, self.now_ns, at_most)
            assert len({each.alert.conjunction_id for each in due}) == len(due)
            for each in due:
                self.received[subscriber.name][each.alert.conjunction_id].append(each.alert)
            kept = due if at_most > 3 else due[: self.random.randint(0, len(due))]
            self.outbox.acknowledge(kept, self.now_ns)
            delivered += len(due)
        return delivered

    def park(self) -> None:
        for each in self.outbox.due(self.random.choice(SUBSCRIBERS).name, self.now_ns, 1):
            self.outbox.park(each, "HTTP 422", self.now_ns)

    def reopen(self) -> None:
        """As another process, sometimes for a while without a subscriber."""
        self.outbox.close()
        without = self.random.choice(SUBSCRIBERS)
        for subscribers in ([each for each in SUBSCRIBERS if each is not without], SUBSCRIBERS):
            self.outbox = AlertOutbox(self.path, subscribers=subscribers)
            self.outbox.open(self.now_ns)
            if subscribers is not SUBSCRIBERS:
                self.record()
                self.outbox.close()

    def send_again(self) -> None:
        with AlertEditor(self.path) as editor:
            editor.send_again(full_id=None, subscriber=self.random.choice(SUBSCRIBERS).name, now_ns=self.now_ns)

    def prune(self) -> None:
        assert self.outbox.prune(self.now_ns).removed == 0

    def settle(self) -> None:
        """Send again what is parked, and deliver everything."""
        with AlertEditor(self.path) as editor:
            for subscriber in SUBSCRIBERS:
                editor.send_again(full_id=None, subscriber=subscriber.name, now_ns=self.now_ns)
        while self.deliver(at_most=100):
            pass


@small_and_long("seeds", range(4), range(4, 100))
def test_after_any_use_each_subscriber_knows_what_it_must(tmp_path: Path, seeds: range) -> None:
    """The newest revision differs from the last one that it has received in nothing that its rules call material."""
    for seed in seeds:
        check(AnyUse(tmp_path / str(seed) / "alerts.sqlite", Random(seed)))


def check(use: AnyUse) -> None:
    for _ in range(60):
        use.step()
    use.settle()
    use.outbox.close()
    assert use.newest
    received = 0
    for rules in SUBSCRIBERS:
        of_subscriber = use.received[rules.name]
        received += len(of_subscriber)
        for conjunction, newest in use.newest.items():
            last = max(of_subscriber[conjunction], key=lambda alert: alert.revision, default=None)
            known: Known | None = None if last is None else known_from(last)
            assert isinstance(decide(AlertRules(), rules, known, newest.risk), Quiet), (rules.name, known, newest)
    assert received
    assert all(newest.risk.estimate.tca_timestamp == TCA for newest in use.newest.values())
