"""What a source may promise, and when it sends a mark. All times are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.event_time.promises import PromiseRules, ReadOrder, SourcePromises
from sda_ops.event_time.watermark import Watermark

MS = 1_000_000
S = 1_000 * MS
T = 1_767_225_600 * S  # 2026-01-01T00:00:00Z
RADAR = PromiseRules(
    max_lateness=timedelta(milliseconds=100),
    clock_error=timedelta(milliseconds=10),
    order=ReadOrder.ARRIVAL,
    idle_after=timedelta(seconds=5),
)
ISL = PromiseRules(max_lateness=timedelta(seconds=10), order=ReadOrder.ANY, idle_after=timedelta(seconds=30))
OPTICAL = PromiseRules(max_lateness=timedelta(seconds=30), order=ReadOrder.EVENT_TIME, idle_after=timedelta(seconds=45))
REPLAY = PromiseRules(max_lateness=timedelta(0), order=ReadOrder.EVENT_TIME, own_time=True, idle_after=None)


def promises(rules: PromiseRules, *, source: str = "source") -> SourcePromises:
    return SourcePromises(rules, source, now_s=0.0)


def emit(promised: SourcePromises, times_ns: Sequence[tuple[int, int]], *, now_s: float) -> None:
    """Items with these event times, and the times at which they arrived."""
    promised.emitted([event for event, _ in times_ns], [arrived for _, arrived in times_ns], now_s=now_s)


def marks_at(promised: SourcePromises, seconds: Sequence[float], *, tick: bool = True) -> list[Watermark]:
    """The marks that ticks at these times send."""
    sent = []
    for now_s in seconds:
        if tick:
            promised.tick(now_s=now_s)
        if (mark := promised.due(now_s=now_s)) is not None:
            sent.append(mark)
    return sent


# What is promised.


@pytest.mark.parametrize(
    ("rules", "behind_ns"),
    [
        (RADAR, 110 * MS),
        (ISL, 10 * S),
        (OPTICAL, 30 * S),
    ],
)
def test_a_contact_promises_its_time_less_lateness_and_clock_error(rules: PromiseRules, behind_ns: int) -> None:
    promised = promises(rules)
    assert promised.contact(T, now_s=0.0)
    assert promised.due(now_s=0.0) == Watermark(T - behind_ns, "source")


def test_a_source_in_contact_advances_its_mark_without_data() -> None:
    """One contact a second for a minute: sixty-one marks, one second apart."""
    promised = promises(RADAR)
    marks = []
    for second in range(61):
        promised.contact(T + second * S, now_s=float(second))
        marks += marks_at(promised, [float(second)])
    assert [mark.time_ns for mark in marks] == [T + second * S - 110 * MS for second in range(61)]


@pytest.mark.parametrize(
    ("rules", "behind_ns"),
    [
        (RADAR, 120 * MS),  # the clock of this item may be 10 ms ahead, that of the next one 10 ms behind
        (OPTICAL, 0),
        (REPLAY, 0),
    ],
)
def test_data_promise_what_the_order_of_reading_allows(rules: PromiseRules, behind_ns: int) -> None:
    """Without any contact, as in a burst that never leaves the socket empty."""
    promised = promises(rules)
    emit(promised, [(T - 5 * MS, T), (T - 50 * MS, T)], now_s=0.0)
    assert promised.due(now_s=0.0) == Watermark(T - 5 * MS - behind_ns, "source")


def test_data_of_several_streams_promise_nothing() -> None:
    """One connection may be behind the others."""
    promised = promises(ISL)
    emit(promised, [(T, T)], now_s=0.0)
    assert promised.promised_ns is None
    assert promised.due(now_s=0.0) is None


@pytest.mark.parametrize("rules", [RADAR, OPTICAL, ISL])
@pytest.mark.parametrize("ahead_ns", [366 * 86_400 * S, 11 * MS, 2**64 - 1 - T])
def test_a_timestamp_that_is_ahead_of_its_arrival_by_more_than_the_clock_error_moves_no_mark(
    rules: PromiseRules, ahead_ns: int
) -> None:
    """A year, a millisecond too much, and the largest number that the wire carries."""
    promised = promises(rules)
    promised.contact(T, now_s=0.0)
    before = promised.promised_ns
    emit(promised, [(T + ahead_ns, T)], now_s=0.0)
    assert promised.promised_ns == before


@given(event_ns=st.integers(0, 2**64), arrived_ns=st.integers(0, 2**63))
@pytest.mark.parametrize("rules", [RADAR, replace(OPTICAL, order_slack=timedelta(milliseconds=7))])
def test_no_item_moves_the_mark_beyond_that_of_a_contact_at_its_arrival(
    rules: PromiseRules, event_ns: int, arrived_ns: int
) -> None:
    by_data = promises(replace(rules, max_lateness=timedelta(0)))
    by_contact = promises(replace(rules, max_lateness=timedelta(0)))
    emit(by_data, [(event_ns, arrived_ns)], now_s=0.0)
    by_contact.contact(arrived_ns, now_s=0.0)
    assert by_contact.promised_ns is not None
    assert by_data.promised_ns is None or by_data.promised_ns <= by_contact.promised_ns


def test_a_replay_has_its_own_time() -> None:
    """Its data are years old, a contact promises nothing, and its mark is its last event time."""
    promised = promises(REPLAY)
    promised.contact(T, now_s=0.0)
    emit(promised, [(T - 10**17, T), (T - 9 * 10**16, T)], now_s=0.0)
    assert promised.due(now_s=0.0) == Watermark(T - 9 * 10**16, "source")
    assert marks_at(promised, range(1, 10_000, 10)) == []  # and it is never idle


# When a mark is sent.


def test_fast_data_send_ten_marks_a_second() -> None:
    """A thousand batches in a second. The last promise is sent by a later tick."""
    promised = promises(RADAR)
    marks = []
    for ms in range(1_000):
        emit(promised, [(T + ms * MS, T + ms * MS)], now_s=ms / 1_000)
        marks += marks_at(promised, [ms / 1_000], tick=False)
    assert len(marks) == 10
    assert marks_at(promised, [1.5]) == [Watermark(T + 999 * MS - 120 * MS, "source")]
    assert marks_at(promised, [2.5]) == []


def test_a_source_that_never_reported_is_idle_after_its_start_up_bound() -> None:
    promised = promises(replace(RADAR, start_within=timedelta(seconds=3)))
    assert marks_at(promised, [1.0, 2.0]) == []
    assert marks_at(promised, [3.0, 4.0, 50.0]) == [Watermark(None, "source")]


def test_a_source_out_of_contact_is_idle_and_returns_with_the_mark_that_it_had() -> None:
    """Once each; the promise is kept, so that it never goes back."""
    promised = promises(RADAR)
    promised.contact(T, now_s=0.0)
    kept = promised.due(now_s=0.0)
    assert marks_at(promised, range(1, 20)) == [Watermark(None, "source")]
    emit(promised, [(T - 3_600 * S, T - 3_600 * S)], now_s=20.0)
    assert promised.due(now_s=20.0) == kept


def test_a_source_that_waits_for_space_is_behind_and_not_idle() -> None:
    """Its queue has items that the others' marks must not pass."""
    promised = promises(RADAR)
    promised.contact(T, now_s=0.0)
    promised.due(now_s=0.0)
    for now_s in range(1, 600):
        promised.tick(now_s=now_s, waiting=True)
        assert promised.due(now_s=now_s) is None
    assert marks_at(promised, range(600, 604)) == []
    assert marks_at(promised, [604.0, 605.0]) == [Watermark(None, "source")]


def test_a_stalled_event_loop_does_not_make_a_source_idle() -> None:
    """One tick after a minute counts as one second: the source has had no turn in between."""
    promised = promises(RADAR)
    promised.contact(T, now_s=0.0)
    promised.due(now_s=0.0)
    assert marks_at(promised, [60.0]) == []


def test_a_restarted_source_keeps_its_mark_and_is_idle_if_it_was_away_too_long() -> None:
    promised = promises(RADAR)
    promised.contact(T, now_s=0.0)
    promised.due(now_s=0.0)
    promised.restarted(now_s=4.9)
    assert promised.due(now_s=4.9) is None
    promised.restarted(now_s=5.0)
    assert promised.due(now_s=5.0) == Watermark(None, "source")
    assert promised.promised_ns == T - 110 * MS


def test_a_contact_that_goes_back_is_ignored_counted_and_logged_once_it_persists() -> None:
    """This machine's clock was set back by an hour."""
    promised = promises(RADAR)
    promised.contact(T, now_s=0.0)
    promised.due(now_s=0.0)
    logged = []
    for second in range(1, 31):
        assert not promised.contact(T - 3_600 * S + second * S, now_s=float(second))
        assert promised.due(now_s=float(second)) is None
        logged += [second] * promised.persistent_regression(now_s=float(second))
    assert (promised.regressions, logged) == (30, [11])
    assert promised.contact(T + S, now_s=31.0)
    assert promised.due(now_s=31.0) == Watermark(T + S - 110 * MS, "source")


def test_items_behind_a_mark_that_was_sent_are_counted_as_late() -> None:
    """A radar's datagram that took 250 ms where 100 ms are promised; one exactly at the mark is in time."""
    promised = promises(RADAR)
    promised.contact(T, now_s=0.0)
    promised.due(now_s=0.0)
    emit(promised, [(T - 250 * MS, T), (T - 110 * MS - 1, T), (T - 110 * MS, T)], now_s=0.1)
    assert promised.late == 2


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("contact"), st.integers(-20 * S, 20 * S)),
            st.tuples(st.just("emitted"), st.integers(-20 * S, 20 * S)),
            st.tuples(st.just("tick"), st.integers(0, 20)),
            st.tuples(st.just("waiting"), st.integers(0, 20)),
            st.tuples(st.just("restarted"), st.integers(0, 20)),
        ),
        max_size=40,
    ),
    st.sampled_from([RADAR, OPTICAL, ISL, REPLAY]),
)
def test_the_mark_never_goes_back(happened: list[tuple[str, int]], rules: PromiseRules) -> None:
    """For any reports in any order, the marks ascend, and two idle ones never follow each other."""
    promised, now_s, marks = promises(rules), 0.0, []
    for what, value in happened:
        match what:
            case "contact":
                promised.contact(T + value, now_s=now_s)
            case "emitted":
                emit(promised, [(T + value, T)], now_s=now_s)
            case "restarted":
                now_s += value
                promised.restarted(now_s=now_s)
            case _:
                now_s += value
                promised.tick(now_s=now_s, waiting=what == "waiting")
        if (mark := promised.due(now_s=now_s)) is not None:
            marks.append(mark.time_ns)
    times = [mark for mark in marks if mark is not None]
    assert times == sorted(times)
    assert not any(one is None and other is None for one, other in pairwise(marks))


def test_rules_name_every_field_that_is_out_of_bounds() -> None:
    with pytest.raises(ValueError, match=r"PromiseRules: max_lateness must be >= 0, got .*; PromiseRules: idle_after"):
        PromiseRules(max_lateness=timedelta(seconds=-1), idle_after=timedelta(0))
