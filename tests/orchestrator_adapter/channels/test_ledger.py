from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.channels.ledger import (
    LEDGER_TERMS,
    Bookkeeping,
    LedgerSnapshot,
    LedgerViolation,
    OperatorAccount,
    Outcome,
    snapshot,
)


def account(bookkeeping: Bookkeeping) -> OperatorAccount:
    return OperatorAccount("op", bookkeeping)


def test_the_equation_has_exactly_the_terms_of_the_specification() -> None:
    """``as_dict`` names the eleven terms, in the equation's order."""
    left = ["ingested", "repeated", "derived"]
    right = ["written", "duplicates", "rejected", "discarded", "absorbed", "shed", "dead_lettered", "in_flight"]
    assert list(snapshot([], pending=0).as_dict()) == left + right


@pytest.mark.parametrize("term", LEDGER_TERMS)
def test_one_item_more_in_any_term_breaks_the_balance(term: str) -> None:
    """Every term is in the equation, and the text shows whether it balances."""
    terms = dict.fromkeys(LEDGER_TERMS, 0)
    assert LedgerSnapshot(**terms).balanced
    tipped = LedgerSnapshot(**(terms | {term: 1}))
    assert not tipped.balanced
    assert "≠" in str(tipped)


def test_the_text_is_the_equation() -> None:
    """A balanced ledger reads as an equation with grouped digits."""
    ledger = LedgerSnapshot(1_200, 0, 0, 1_000, 100, 0, 0, 0, 0, 0, 100)
    assert str(ledger) == (
        "ingested 1,200 + repeated 0 + derived 0 = written 1,000 + duplicates 100 + rejected 0 + discarded 0"
        " + absorbed 0 + shed 0 + dead_lettered 0 + in_flight 100"
    )


# Each kind of account.


def test_a_source_ingests_what_it_emits_or_gives_an_outcome() -> None:
    """Five emitted and two malformed items are seven ingested. Nothing is open."""
    source = account(Bookkeeping.SOURCE)
    source.emit(5)
    source.declare("dead_lettered", 2)
    assert (source.ingested, source.dead_lettered, source.open, source.violation) == (7, 2, 0, None)


def test_the_account_of_a_conserving_operator_balances_exactly() -> None:
    """Three consumed, two emitted and one rejected balance. Nothing is derived or absorbed."""
    operator = account(Bookkeeping.CONSERVING)
    operator.emit(2)
    operator.declare("rejected", 1)
    operator.acknowledge(3)
    assert operator.violation is None
    assert (operator.derived, operator.absorbed, operator.open) == (0, 0, 0)


@pytest.mark.parametrize(
    ("emitted", "message"),
    [
        (2, "operator 'op': ledger shortfall: acknowledged 3 items, but emitted or gave a named outcome to 2; "),
        (4, "operator 'op': ledger surplus: acknowledged 3 items, but emitted or gave a named outcome to 4; "),
    ],
)
def test_a_conserving_operator_that_does_not_conserve_is_named(emitted: int, message: str) -> None:
    """A shortfall or surplus is a violation that names the operator and both figures; it is not counted as absorbed."""
    operator = account(Bookkeeping.CONSERVING)
    operator.emit(emitted)
    operator.acknowledge(3)
    assert operator.violation == LedgerViolation("op", 3, emitted)
    assert str(operator.violation) == message + "declare the operator as expanding if it derives or absorbs items"
    assert (operator.derived, operator.absorbed) == (0, 0)


def test_the_first_violation_is_kept() -> None:
    """A later violation in the other direction does not replace or cancel it."""
    operator = account(Bookkeeping.CONSERVING)
    operator.acknowledge(1)
    operator.emit(2)
    operator.acknowledge(1)
    assert operator.violation == LedgerViolation("op", 1, 0)


def test_an_expanding_operator_derives_a_surplus_and_absorbs_a_shortfall() -> None:
    """Two in and five out derive three; four in and one out absorb three."""
    operator = account(Bookkeeping.EXPANDING)
    operator.emit(5)
    operator.acknowledge(2)
    operator.emit(1)
    operator.acknowledge(4)
    assert (operator.derived, operator.absorbed, operator.violation) == (3, 3, None)


def test_a_sink_has_written_what_it_acknowledges_without_another_outcome() -> None:
    """Of five acknowledged, one of them a duplicate, four are written."""
    sink = account(Bookkeeping.SINK)
    sink.declare("duplicates", 1)
    sink.acknowledge(5)
    assert (sink.written, sink.duplicates, sink.violation) == (4, 1, None)


def test_a_sink_that_gives_more_outcomes_than_items_is_named() -> None:
    """Two outcomes for one item are a violation, and nothing is written by it."""
    sink = account(Bookkeeping.SINK)
    sink.declare("duplicates", 2)
    sink.acknowledge(1)
    assert sink.violation == LedgerViolation("op", 1, 2)
    assert sink.written == 0


def test_what_an_aggregate_emits_at_the_end_is_derived() -> None:
    """An expanding operator that emits after its last acknowledgement has nothing open after it has settled."""
    operator = account(Bookkeeping.EXPANDING)
    operator.acknowledge(10)
    operator.emit(1)
    operator.settle()
    assert (operator.absorbed, operator.derived, operator.open) == (10, 1, 0)


def test_what_a_conserving_operator_adds_at_the_end_is_a_violation() -> None:
    """Emitting without an input is a surplus, although no acknowledgement follows. Settling twice changes nothing."""
    operator = account(Bookkeeping.CONSERVING)
    operator.emit(1)
    operator.settle()
    operator.settle()
    assert operator.violation == LedgerViolation("op", 0, 1)


# Leases lost, items withdrawn.


def test_what_left_before_the_lease_was_lost_is_repeated() -> None:
    """Two items emitted for a lease that is returned are counted as repeated, once."""
    operator = account(Bookkeeping.CONSERVING)
    operator.emit(2)
    operator.lease_lost()
    operator.lease_lost()
    assert (operator.repeated, operator.open) == (2, 0)


def test_an_item_whose_output_has_left_is_in_flight_once() -> None:
    """One item ingested, leased, and its output sent: two are in edges, one is in flight."""
    source, operator = account(Bookkeeping.SOURCE), account(Bookkeeping.CONSERVING)
    source.emit(1)
    operator.emit(1)
    ledger = snapshot([source, operator], pending=2)
    assert ledger.in_flight == 1
    assert ledger.balanced


def test_withdrawn_items_are_consumed_and_dead_lettered() -> None:
    """Items that the runtime dead-letters for an operator are in its account."""
    operator = account(Bookkeeping.CONSERVING)
    operator.withdrawn(3)
    assert (operator.consumed, operator.dead_lettered, operator.violation) == (3, 3, None)


OUTCOMES: list[Outcome] = ["duplicates", "rejected", "discarded", "dead_lettered"]


@given(
    st.lists(st.tuples(st.sampled_from(["ingest", "work", "fail", "dead-letter", "write", "shed"]), st.integers(0, 4)))
)
def test_the_ledger_balances_at_every_moment(steps: list[tuple[str, int]]) -> None:
    """A source, a conserving operator and a sink, with failures at any point: balanced after every single step."""
    source, operator, sink = (
        OperatorAccount("source", Bookkeeping.SOURCE),
        OperatorAccount("operator", Bookkeeping.CONSERVING),
        OperatorAccount("sink", Bookkeeping.SINK),
    )
    first: deque[int] = deque()
    second: deque[int] = deque()

    def check() -> None:
        ledger = snapshot([source, operator, sink], pending=len(first) + len(second))
        assert ledger.balanced
        assert ledger.in_flight >= 0

    for step, figure in steps:
        match step:
            case "ingest":
                source.emit(figure)
                first.extend(range(figure))
            case "work" if first:
                if figure < len(OUTCOMES):
                    operator.declare(OUTCOMES[figure], 1)
                else:
                    operator.emit(1)
                    second.append(first[0])
                check()
                first.popleft()
                operator.acknowledge(1)
            case "fail" if first:
                operator.emit(1)
                second.append(first[0])
                check()
                operator.lease_lost()
            case "dead-letter" if first:
                first.popleft()
                operator.withdrawn(1)
            case "write" if second:
                second.popleft()
                sink.acknowledge(1)
            case "shed" if second:
                second.pop()
                operator.shed += 1
            case _:
                pass
        check()
    assert operator.violation is None


def test_derived_items_are_in_flight_before_the_acknowledgement() -> None:
    """Five items from one leased item: four are derived now, not at the acknowledgement, and no term is negative."""
    source, operator = OperatorAccount("source", Bookkeeping.SOURCE), OperatorAccount("many", Bookkeeping.EXPANDING)
    source.emit(1)
    operator.emit(5)
    before = snapshot([source, operator], pending=1 + 5, leased={"many": 1})
    assert (before.derived, before.in_flight, before.balanced) == (4, 5, True)
    operator.acknowledge(1)
    after = snapshot([source, operator], pending=5, leased={"many": 0})
    assert (after.derived, after.in_flight, after.balanced) == (4, 5, True)
