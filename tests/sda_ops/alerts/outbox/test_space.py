"""A full outbox: what is removed in which order, what is superseded, and that nothing is lost without a count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sda_ops.alerts.outbox.file import AlertOutboxFull
from sda_ops.alerts.outbox.rules import SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.outbox.values import Bounds
from sda_ops.records.risk import ConjunctionRisk
from tests.sda_ops.alerts.risks import HOUR, T0, TCA, risk

MAX_BYTES = 1_000_000
MANY = range(1, 201)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[AlertOutbox]:
    opened = AlertOutbox(
        tmp_path / "alerts.sqlite", subscribers=[SubscriberRules(name="a")], bounds=Bounds(max_bytes=MAX_BYTES)
    )
    opened.open(T0)
    yield opened
    opened.close()


def fill(outbox: AlertOutbox, risks: Callable[[int], list[ConjunctionRisk]], *, now_ns: int = T0) -> int:
    """Record batch after batch until the file is full. Returns the number of the last batch."""
    for batch in range(1, 1_000):
        if outbox.record(risks(batch), now_ns).used_bytes >= MAX_BYTES:
            return batch
    raise AssertionError("it is never full")


def changing(batch: int) -> list[ConjunctionRisk]:
    """Ten conjunctions, with a material change in each batch."""
    return [
        risk(n, 100_000 + n, estimate=batch, miss_m=100.0 + 400.0 * (batch % 2), observations=(9, 9))
        for n in range(1, 11)
    ]


def test_the_used_bytes_are_known_before_the_file_is_full(outbox: AlertOutbox) -> None:
    """So the caller can warn at 80 %."""
    used = [outbox.record(changing(batch), T0).used_bytes for batch in range(1, 15)]
    assert used == sorted(used)
    assert used[-1] > used[0]
    assert outbox.prune(T0).used_bytes == used[-1] < MAX_BYTES


def test_first_the_history_of_conjunctions_that_are_over_is_removed(outbox: AlertOutbox) -> None:
    def batch_of(batch: int) -> list[ConjunctionRisk]:
        return [risk(n, batch * 1_000 + n, tca_timestamp=T0 + HOUR, observations=(9, 9)) for n in range(1, 11)]

    outbox.record([risk(n, 100_000 + n) for n in MANY], T0)
    filled = fill(outbox, batch_of)
    while due := outbox.due("a", T0, 500):
        outbox.acknowledge([each for each in due if each.alert.risk.estimate.tca_timestamp == T0 + HOUR], T0)
        if all(each.alert.risk.estimate.tca_timestamp == TCA for each in due):
            break
    outbox.record(batch_of(filled + 1), T0)  # acknowledgements have made a little room
    recorded = outbox.record([risk(7, 8)], T0 + HOUR + 1)
    assert (recorded.pending, recorded.superseded) == (1, 0)
    assert recorded.used_bytes < 0.9 * MAX_BYTES
    assert outbox.depth()["a"].pending == len(MANY) + 10 + 1  # what is pending stays
    (again,) = outbox.record([risk(1, 1_001, estimate=2, tca_timestamp=T0 + 10 * HOUR)], T0 + HOUR).alerts
    assert again.revision == 1  # the conjunction is remembered


def test_then_revisions_that_no_subscriber_receives_and_never_the_newest_one(outbox: AlertOutbox) -> None:
    def quiet(batch: int) -> list[ConjunctionRisk]:
        return [risk(n, 100_000 + n, observations=(batch, 9)) for n in range(1, 11)]

    filled = fill(outbox, quiet)
    recorded = outbox.record([risk(7, 8)], T0)
    assert recorded.superseded == 0
    assert recorded.used_bytes < 0.5 * MAX_BYTES
    assert outbox.record(quiet(filled), T0).repeats == 10
    assert outbox.depth()["a"].pending == 11


def test_then_only_the_newest_pending_revision_of_each_conjunction_is_delivered_and_the_others_are_counted(
    outbox: AlertOutbox,
) -> None:
    filled = fill(outbox, changing)
    recorded = outbox.record([risk(7, 8)], T0)
    assert recorded.superseded == 10 * (filled - 1)
    due = outbox.due("a", T0, 100)
    assert sorted(each.alert.revision for each in due) == [0, *[filled - 1] * 10]
    assert {each.alert.risk.estimate.miss_m for each in due[:10]} == {100.0 + 400.0 * (filled % 2)}
    assert outbox.record(changing(filled + 1), T0).pending == 10  # compared with what is pending


def test_at_last_nothing_is_recorded_and_nothing_pending_is_removed(outbox: AlertOutbox) -> None:
    filled = fill(outbox, lambda batch: [risk(n, batch * 1_000 + n, observations=(9, 9)) for n in range(1, 11)])
    with pytest.raises(
        AlertOutboxFull, match=r"it is full \(1 MiB of pending and parked alerts\); raise alerts.max_mib"
    ):
        outbox.record([risk(7, 8)], T0)
    assert outbox.depth()["a"].pending == 10 * filled
    outbox.acknowledge(outbox.due("a", T0, 1_000), T0)
    assert outbox.record([risk(7, 8)], TCA + 1).pending == 1
