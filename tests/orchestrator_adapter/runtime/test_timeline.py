"""The timeline: the last decisions of a graph as sentences."""

from __future__ import annotations

import pytest

from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.runtime.timeline import CAPACITY, Timeline, sentence


@pytest.mark.parametrize("decision", Decision)
def test_every_decision_has_a_sentence_of_its_own(decision: Decision) -> None:
    """It is more than the decision's name."""
    assert sentence(decision, {}) != decision.replace("_", " ")


def test_a_sentence_has_the_fields_of_the_decision() -> None:
    fields = {"operator": "optical", "cause": "ConnectionError: reset", "backoff_s": 0.25}
    assert sentence(Decision.RESTART, fields) == "has failed and is started again in 0.25 s: ConnectionError: reset"


def test_a_sentence_is_bounded() -> None:
    assert len(sentence(Decision.RESTART, {"cause": "x" * 10_000})) == 300


def test_equal_decisions_in_a_row_are_one_entry() -> None:
    """Of another operator, kind, breaker or edge, they are another one."""
    timeline = Timeline()
    for time_ns in (1, 2, 3):
        timeline.record(Decision.DEAD_LETTER, {"operator": "dedup", "kind": "PoisonPill", "items": time_ns}, time_ns)
    timeline.record(Decision.DEAD_LETTER, {"operator": "dedup", "kind": "Undelivered", "items": 1}, 4)
    timeline.record(Decision.SHUTDOWN, {"reason": "SIGTERM", "phase": 1}, 5)
    first, second, third = timeline.entries()
    assert (first.number, first.times, first.time_ns, first.operator) == (1, 3, 3, "dedup")
    assert first.text.startswith("has dead-lettered 3 items (PoisonPill)")
    assert second.text.startswith("has dead-lettered 1 item (Undelivered)")
    assert (second.number, second.times, third.operator) == (2, 1, "")
    assert first.is_alarming
    assert not third.is_alarming
    assert timeline.recorded == 5


def test_only_the_last_entries_are_kept() -> None:
    timeline = Timeline()
    for number in range(CAPACITY + 10):
        timeline.record(Decision.SPAWN, {"operator": f"op-{number}", "instance": 1}, number)
    entries = timeline.entries()
    assert [entries[0].number, entries[-1].number, len(entries)] == [11, CAPACITY + 10, CAPACITY]
