"""The circuit breaker on a clock that is moved by hand: what opens it, what closes it, and who gets through."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.primitives.event_log import DecisionLog
from orchestrator_adapter.resilience.breaker import (
    BreakerPolicy,
    Breakers,
    BreakerState,
    BreakerStatistics,
    CircuitBreaker,
    Permit,
    Rejection,
    StateChange,
)
from orchestrator_adapter.testing import ManualClock
from tests.helpers.log_lines import event_of

CLOSED, OPEN, HALF_OPEN = BreakerState
S = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)


def archive(clock: ManualClock, **changes: Any) -> CircuitBreaker:
    return CircuitBreaker("archive", clock=clock, **changes)


def permitted(breaker: CircuitBreaker) -> Permit:
    answer = breaker.ask()
    assert isinstance(answer, Permit), answer
    return answer


def refused(breaker: CircuitBreaker) -> Rejection:
    answer = breaker.ask()
    assert isinstance(answer, Rejection)
    return answer


def calls(breaker: CircuitBreaker, trace: str) -> None:
    """One call after the other; F fails, S succeeds, a dot comes to nothing."""
    for letter in trace:
        {"F": Permit.failed, "S": Permit.succeeded, ".": Permit.release}[letter](permitted(breaker))


def opened(clock: ManualClock, **changes: Any) -> CircuitBreaker:
    breaker = archive(clock, **changes)
    calls(breaker, "FFFFF")
    assert breaker.state is OPEN
    return breaker


def half_open(clock: ManualClock, **changes: Any) -> tuple[CircuitBreaker, Permit]:
    """And its probe."""
    breaker = opened(clock, **changes)
    clock.advance(breaker.policy.cooldown.total_seconds())
    probe = permitted(breaker)
    assert breaker.state is HALF_OPEN
    return breaker, probe


def listened(breaker: CircuitBreaker) -> list[StateChange]:
    changes: list[StateChange] = []
    breaker.on_change(changes.append)
    return changes


# What opens it.


@pytest.mark.parametrize(
    ("trace", "state"),
    [
        ("FFFF", CLOSED),
        ("FFFFS", OPEN),  # a success can be the sample that trips it
        ("FFFFF", OPEN),
        ("SFFFF", OPEN),
        ("SSSFF", CLOSED),
        ("SSSFFF", OPEN),  # exactly the threshold
        ("SSSSSSF", CLOSED),
        ("FFFF....", CLOSED),  # what came to nothing is no outcome
        ("....FFFFS", OPEN),
    ],
)
def test_a_trace_of_calls_opens_it_or_does_not(trace: str, state: BreakerState) -> None:
    """It opens at half of at least five outcomes, whichever of them was the last."""
    breaker = archive(ManualClock())
    calls(breaker, trace)
    assert breaker.state is state


def test_it_opens_at_the_fifth_outcome_and_says_why() -> None:
    """Four failures and a success: closed before the fifth call ends, open after."""
    breaker = archive(ManualClock())
    changes = listened(breaker)
    calls(breaker, "FFFF")
    assert not changes
    calls(breaker, "S")
    assert changes == [StateChange("archive", CLOSED, OPEN, forced=False, reason="4 of 5 calls in 30 s failed")]


@pytest.mark.parametrize(("age_s", "state"), [(29.75, OPEN), (30.0, CLOSED)])
def test_an_outcome_as_old_as_the_window_no_longer_counts(age_s: float, state: BreakerState) -> None:
    """The fifth failure opens it if it comes a moment before the first is 30 s old, and not at 30 s."""
    clock = ManualClock()
    breaker = archive(clock)
    calls(breaker, "F")
    clock.advance(age_s)
    calls(breaker, "FFFF")
    assert breaker.state is state
    calls(breaker, "F" if state is CLOSED else "")
    assert breaker.state is OPEN


def test_successes_that_have_left_the_window_outvote_nobody() -> None:
    """Twenty successes, then silence, then five failures: open."""
    clock = ManualClock()
    breaker = archive(clock)
    calls(breaker, "S" * 20)
    clock.advance(30)
    calls(breaker, "FFFF")
    assert (breaker.statistics().calls, breaker.statistics().failures) == (4, 4)
    calls(breaker, "F")
    assert breaker.state is OPEN


@pytest.mark.parametrize(("threshold", "state"), [(0.3, OPEN), (0.6, CLOSED), (1.0, CLOSED)])
def test_the_threshold_is_the_share_that_suffices(threshold: float, state: BreakerState) -> None:
    """Three failures of ten open a breaker with a threshold of 0.3, and none with a higher one."""
    breaker = archive(ManualClock(), threshold=threshold, min_calls=10)
    calls(breaker, "SSSSSSSFFF")
    assert breaker.state is state


def test_with_a_threshold_of_one_a_single_success_keeps_it_closed() -> None:
    """And without one it opens at the first outcome that min_calls admits."""
    breaker = archive(ManualClock(), threshold=1.0, min_calls=1)
    calls(breaker, "SFFFFFFFFF")
    assert breaker.state is CLOSED
    breaker = archive(ManualClock(), threshold=1.0, min_calls=1)
    calls(breaker, "F")
    assert breaker.state is OPEN


def test_only_the_newest_ten_thousand_outcomes_are_kept() -> None:
    """However busy the downstream is, the window's memory is bounded, and its oldest outcomes go first."""
    breaker = archive(ManualClock(), min_calls=10_000)
    calls(breaker, "F" * 4_999 + "S" * 5_001)
    assert (breaker.statistics().calls, breaker.statistics().failures) == (10_000, 4_999)
    calls(breaker, "S")
    assert (breaker.statistics().calls, breaker.statistics().failures) == (10_000, 4_998)
    assert breaker.state is CLOSED
    assert len(breaker._outcomes) == 10_000


def test_the_first_report_counts() -> None:
    """A permit reported on five times is one outcome, and its first."""
    breaker = archive(ManualClock())
    permit = permitted(breaker)
    for report in (permit.failed, permit.failed, permit.succeeded, permit.release, permit.failed):
        report()
    assert (breaker.statistics().calls, breaker.statistics().failures) == (1, 1)
    given_back = permitted(breaker)
    given_back.release()
    given_back.failed()
    assert breaker.statistics().calls == 1


# Open.


def test_while_open_every_call_is_refused_and_told_when_to_ask_again() -> None:
    """A refusal names the breaker, its state, and what is left of the cooldown."""
    clock = ManualClock()
    breaker = opened(clock)
    assert refused(breaker) == Rejection("archive", OPEN, 30 * S)
    clock.advance(12.5)
    assert refused(breaker) == Rejection("archive", OPEN, 17.5 * S)
    assert str(refused(breaker)) == "breaker 'archive' is open: ask again in 17.5 s"
    assert breaker.statistics().rejections == 3


def test_a_long_refusal_is_told_in_whole_seconds() -> None:
    """An hour reads "3600 s", not "3.6e+03 s"."""
    assert str(Rejection("archive", HALF_OPEN, timedelta(hours=1))) == (
        "breaker 'archive' is half-open: ask again in 3600 s"
    )


@pytest.mark.parametrize(("waited_s", "let_through"), [(29.75, False), (30.0, True)])
def test_the_cooldown_is_over_exactly_when_it_is_over(waited_s: float, *, let_through: bool) -> None:
    """A moment before its end a call is refused, at its end one goes through."""
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(waited_s)
    assert isinstance(breaker.ask(), Permit) is let_through
    assert breaker.state is (HALF_OPEN if let_through else OPEN)


def test_it_stays_open_until_somebody_asks() -> None:
    """The cooldown's end changes nothing by itself."""
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(3600)
    assert breaker.state is OPEN


@pytest.mark.parametrize("report", [Permit.failed, Permit.succeeded, Permit.release])
def test_outcomes_that_arrive_while_open_are_ignored(report: Any) -> None:
    """Calls begun before it opened neither close it, nor prolong its cooldown, nor count afterwards."""
    clock = ManualClock()
    breaker = archive(clock)
    late = [permitted(breaker) for _ in range(10)]
    calls(breaker, "FFFFF")
    changes = listened(breaker)
    clock.advance(20)
    for permit in late:
        report(permit)
    assert breaker.state is OPEN
    assert not changes
    assert breaker.statistics().calls == 0
    clock.advance(10)
    permitted(breaker).succeeded()
    assert breaker.statistics().calls == 0


@pytest.mark.parametrize("report", [Permit.failed, Permit.succeeded, Permit.release])
def test_outcomes_of_an_earlier_term_are_ignored(report: Any) -> None:
    """A call begun before it opened says nothing, be it while half-open or once it is closed again."""
    clock = ManualClock()
    breaker = archive(clock)
    late = [permitted(breaker) for _ in range(10)]
    calls(breaker, "FFFFF")
    clock.advance(30)
    probe = permitted(breaker)
    report(late.pop())
    assert breaker.state is HALF_OPEN
    refused(breaker)
    probe.succeeded()
    for permit in late:
        report(permit)
    assert breaker.state is CLOSED
    assert breaker.statistics().calls == 0


# Half-open.


def test_half_open_admits_exactly_one() -> None:
    """While the probe is under way everyone else is refused, and told when it would be written off."""
    clock = ManualClock()
    breaker, _ = half_open(clock)
    assert [refused(breaker) for _ in range(3)] == [Rejection("archive", HALF_OPEN, 30 * S)] * 3
    clock.advance(10)
    assert str(refused(breaker)) == "breaker 'archive' is half-open: ask again in 20 s"


def test_a_probe_that_succeeds_closes_it_and_the_history_is_cleared() -> None:
    """One success closes it; then it takes five outcomes to open it again, although the old failures lie in the window."""
    clock = ManualClock()
    breaker, probe = half_open(clock, window=300 * S)
    changes = listened(breaker)
    probe.succeeded()
    assert changes == [StateChange("archive", HALF_OPEN, CLOSED, forced=False, reason="the probe succeeded")]
    calls(breaker, "FFFF")
    assert breaker.state is CLOSED
    calls(breaker, "F")
    assert breaker.state is OPEN


def test_a_probe_that_fails_opens_it_for_a_whole_cooldown() -> None:
    """The cooldown begins when the probe has failed, not when it was sent."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    changes = listened(breaker)
    clock.advance(10)
    probe.failed()
    assert changes == [StateChange("archive", HALF_OPEN, OPEN, forced=False, reason="the probe failed")]
    assert refused(breaker).ask_again_in == 30 * S
    clock.advance(29.75)
    refused(breaker)
    clock.advance(0.25)
    permitted(breaker)


def test_a_probe_given_back_goes_to_the_next_who_asks() -> None:
    """At once, and without a change of state."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    changes = listened(breaker)
    refused(breaker)
    probe.release()
    assert breaker.state is HALF_OPEN
    second = permitted(breaker)
    refused(breaker)
    second.succeeded()
    assert [change.state for change in changes] == [CLOSED]


@pytest.mark.parametrize("error", [None, KeyError("bug")])
def test_a_permit_left_without_a_report_is_given_back(error: Exception | None) -> None:
    """Leaving its context without a word, by an exception or not, frees the probe's place."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    try:
        with probe:
            if error is not None:
                raise error
    except KeyError as raised:
        assert raised is error  # noqa: PT017 - it is passed on
    permitted(breaker)


def test_a_report_within_the_context_stands() -> None:
    """Leaving the context after a report takes nothing back."""
    breaker = archive(ManualClock())
    for _ in range(5):
        with permitted(breaker) as permit:
            permit.failed()
    assert breaker.state is OPEN


@pytest.mark.parametrize(("longest", "waited_s"), [(None, 30.0), (5 * S, 5.0)])
def test_a_probe_that_never_reports_is_written_off(longest: timedelta | None, waited_s: float) -> None:
    """Exactly when max_probe_wait is over (the cooldown, unless it is given) the next who asks gets the probe."""
    clock = ManualClock()
    breaker, _ = half_open(clock, max_probe_wait=longest)
    clock.advance(waited_s - 0.25)
    assert refused(breaker).ask_again_in == 0.25 * S
    clock.advance(0.25)
    permitted(breaker)
    assert refused(breaker).ask_again_in == waited_s * S
    clock.advance(waited_s)
    permitted(breaker)


@pytest.mark.parametrize("report", [Permit.failed, Permit.succeeded, Permit.release])
def test_a_probe_that_was_written_off_is_no_longer_listened_to(report: Any) -> None:
    """What it reports neither decides nor frees the place of the one that has taken over."""
    clock = ManualClock()
    breaker, lost = half_open(clock)
    clock.advance(30)
    second = permitted(breaker)
    report(lost)
    assert breaker.state is HALF_OPEN
    assert breaker.statistics().calls == 0
    refused(breaker)
    second.failed()
    assert breaker.state is OPEN


def test_a_late_probe_that_nobody_has_replaced_still_decides() -> None:
    """Its place is taken only once somebody asks; until then its word is the best there is."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    clock.advance(1000)
    probe.succeeded()
    assert breaker.state is CLOSED


# By hand.


def test_forced_open_it_refuses_everything_until_it_is_released() -> None:
    """Neither time nor outcomes change that, and a refusal says to ask again after a cooldown."""
    clock = ManualClock()
    breaker = archive(clock)
    late = permitted(breaker)
    breaker.force_open("maintenance")
    for waited_s in (0, 29, 1, 86_400):
        clock.advance(waited_s)
        assert refused(breaker) == Rejection("archive", OPEN, 30 * S)
    late.succeeded()
    assert breaker.statistics().forced
    breaker.release("done")
    assert not breaker.statistics().forced
    assert breaker.state is HALF_OPEN  # a probe decides
    probe = permitted(breaker)
    refused(breaker)
    probe.succeeded()
    assert breaker.state is CLOSED


def test_forced_closed_it_lets_everything_through_whatever_comes_of_it() -> None:
    """A hundred failures do not open it, nor are they remembered once it is released."""
    breaker = archive(ManualClock())
    breaker.force_closed()
    calls(breaker, "F" * 100)
    under_way = permitted(breaker)
    assert breaker.state is CLOSED
    breaker.release()
    under_way.failed()  # begun while it was forced
    assert breaker.statistics().calls == 0
    calls(breaker, "FFFF")
    assert breaker.state is CLOSED
    calls(breaker, "F")
    assert breaker.state is OPEN


@pytest.mark.parametrize("report", [Permit.failed, Permit.succeeded, Permit.release])
def test_a_probe_under_way_when_it_is_forced_decides_nothing(report: Any) -> None:
    """Neither while it is forced nor after its release."""
    breaker, probe = half_open(ManualClock())
    breaker.force_open()
    report(probe)
    assert breaker.state is OPEN
    breaker.release()
    assert breaker.state is HALF_OPEN

    breaker, probe = half_open(ManualClock())
    breaker.force_open()
    breaker.release()
    second = permitted(breaker)
    report(probe)
    assert breaker.state is HALF_OPEN
    refused(breaker)
    second.succeeded()
    assert breaker.state is CLOSED


def test_releasing_what_is_not_forced_changes_nothing() -> None:
    """Closed, open and half-open, it stays as it is, with its history and its probe."""
    clock = ManualClock()
    breaker = archive(clock)
    changes = listened(breaker)
    calls(breaker, "FFFF")
    breaker.release()
    calls(breaker, "F")
    assert breaker.state is OPEN
    breaker.release()
    assert breaker.state is OPEN
    clock.advance(30)
    probe = permitted(breaker)
    breaker.release()
    refused(breaker)
    probe.succeeded()
    assert [change.state for change in changes] == [OPEN, HALF_OPEN, CLOSED]


def test_a_person_may_force_it_either_way_from_every_state() -> None:
    """And each change is told with the reason given."""
    clock = ManualClock()
    breaker, _ = half_open(clock)
    changes = listened(breaker)
    breaker.force_closed("trust it")
    breaker.force_open("do not")
    breaker.force_closed()
    breaker.release("as usual")
    assert changes == [
        StateChange("archive", HALF_OPEN, CLOSED, forced=True, reason="trust it"),
        StateChange("archive", CLOSED, OPEN, forced=True, reason="do not"),
        StateChange("archive", OPEN, CLOSED, forced=True, reason="by hand"),
        StateChange("archive", CLOSED, CLOSED, forced=False, reason="as usual"),
    ]


def test_forcing_what_is_forced_already_is_not_told_again() -> None:
    """Listeners hear of changes only."""
    breaker = archive(ManualClock())
    breaker.force_open()
    changes = listened(breaker)
    breaker.force_open()
    assert not changes
    breaker.force_closed()
    breaker.force_closed()
    assert len(changes) == 1


# Listeners.


def test_listeners_are_told_once_per_change_in_a_record_they_cannot_change() -> None:
    """A whole cycle is four changes, each told to each listener."""
    clock = ManualClock()
    breaker = archive(clock)
    first, second = listened(breaker), listened(breaker)
    calls(breaker, "FFFFF")
    clock.advance(30)
    calls(breaker, "F")
    clock.advance(30)
    calls(breaker, "S")
    assert [(change.was, change.state) for change in first] == [
        (CLOSED, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, CLOSED),
    ]
    assert first == second
    assert first[1].reason == "30 s of cooldown are over: one probe decides"
    with pytest.raises(FrozenInstanceError):
        first[0].reason = "another"  # type: ignore[misc]


def test_a_listener_that_raises_changes_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The breaker opens all the same, and the listeners behind it are told."""
    breaker = archive(ManualClock())

    def broken(_: StateChange) -> None:
        raise KeyError("bug")

    breaker.on_change(broken)
    changes = listened(breaker)
    calls(breaker, "FFFFF")
    assert breaker.state is OPEN
    assert len(changes) == 1
    assert [record.getMessage() for record in caplog.records] == ["a hook failed; what it was called for goes on"]


def test_a_listener_may_force_it_and_is_not_overruled() -> None:
    """Forced open by a listener that hears of the half-open state, it gives the caller no probe."""
    clock = ManualClock()
    breaker = opened(clock)
    breaker.on_change(lambda change: breaker.force_open("not yet") if change.state is HALF_OPEN else None)
    clock.advance(30)
    assert refused(breaker) == Rejection("archive", OPEN, 30 * S)
    assert breaker.statistics().forced


def test_a_listener_added_while_listeners_are_told_hears_of_the_next_change() -> None:
    """Not of the one under way."""
    breaker = archive(ManualClock())
    late: list[StateChange] = []
    breaker.on_change(lambda _: breaker.on_change(late.append))
    breaker.force_open()
    assert not late
    breaker.release()
    assert [change.state for change in late] == [HALF_OPEN]


# Figures.


def test_the_statistics_tell_calls_refusals_openings_and_time_open() -> None:
    """Time half-open is not time open, and what is open still counts up to now."""
    clock = ManualClock()
    breaker = archive(clock)
    calls(breaker, "SSF")
    assert breaker.statistics() == statistics(calls=3, failures=1)
    clock.advance(10)
    calls(breaker, "FF")
    clock.advance(12)
    refused(breaker)
    assert breaker.statistics() == statistics(state=OPEN, rejections=1, opened=1, open_s=12.0)
    clock.advance(28)
    probe = permitted(breaker)
    clock.advance(5)
    refused(breaker)
    assert breaker.statistics() == statistics(state=HALF_OPEN, rejections=2, opened=1, open_s=40.0)
    probe.failed()
    clock.advance(1)
    assert breaker.statistics() == statistics(state=OPEN, rejections=2, opened=2, open_s=41.0)
    breaker.force_open()
    clock.advance(1)
    assert breaker.statistics() == statistics(state=OPEN, forced=True, rejections=2, opened=2, open_s=42.0)
    breaker.force_closed()
    clock.advance(100)
    assert breaker.statistics() == statistics(forced=True, rejections=2, opened=2, open_s=42.0)
    breaker.force_open()
    assert breaker.statistics() == statistics(state=OPEN, forced=True, rejections=2, opened=3, open_s=42.0)


def statistics(**changes: Any) -> BreakerStatistics:
    figures: dict[str, Any] = {
        "state": CLOSED,
        "forced": False,
        "calls": 0,
        "failures": 0,
        "rejections": 0,
        "opened": 0,
        "open_s": 0.0,
    }
    return BreakerStatistics("archive", **(figures | changes))


def test_statistics_forget_what_has_left_the_window() -> None:
    """At exactly the window's length an outcome no longer counts in the figures either."""
    clock = ManualClock()
    breaker = archive(clock)
    calls(breaker, "FF")
    clock.advance(15)
    calls(breaker, "S")
    clock.advance(14.75)
    assert breaker.statistics() == statistics(calls=3, failures=2)
    clock.advance(0.25)
    assert breaker.statistics() == statistics(calls=1, failures=0)


def test_the_states_have_the_metrics_values_and_names_for_people() -> None:
    """Closed is 0, open is 1, half-open is 2."""
    assert [(state.label, int(state)) for state in BreakerState] == [("closed", 0), ("open", 1), ("half-open", 2)]


# Whatever the clock reads.

WHEN = st.floats(0, 1e7)  # a machine that has been up for four months
DURATION = st.timedeltas(MICROSECOND, timedelta(days=1))


@given(start_s=WHEN, cooldown=DURATION, share=st.floats(0, 1, exclude_max=True))
def test_asking_exactly_when_told_to_succeeds(start_s: float, cooldown: timedelta, share: float) -> None:
    """Not a microsecond too early, whatever binary fractions the clock and the cooldown make, and not one too late."""
    for early, let_through in ((timedelta(0), True), (MICROSECOND, False)):
        clock = ManualClock()
        clock.advance(start_s)
        breaker = archive(clock, cooldown=cooldown, min_calls=1)
        calls(breaker, "F")
        clock.advance(share * cooldown.total_seconds())
        refusal = breaker.ask()
        if isinstance(refusal, Permit) or refusal.ask_again_in - early <= timedelta(0):
            continue  # it has rounded up to the edge
        clock.advance((refusal.ask_again_in - early).total_seconds())
        assert isinstance(breaker.ask(), Permit) is let_through


@given(start_s=WHEN, longest=DURATION, share=st.floats(0, 1, exclude_max=True))
def test_the_next_probe_is_had_exactly_when_told(start_s: float, longest: timedelta, share: float) -> None:
    """The same holds for a probe that never reports."""
    clock = ManualClock()
    clock.advance(start_s)
    breaker = archive(clock, max_probe_wait=longest)
    breaker.force_open()
    breaker.release()
    permitted(breaker)
    clock.advance(share * longest.total_seconds())
    if isinstance(refusal := breaker.ask(), Rejection):
        clock.advance(refusal.ask_again_in.total_seconds())
        permitted(breaker)


@given(start_s=WHEN, duration=DURATION)
def test_edges_are_exact_whatever_the_clock_reads(start_s: float, duration: timedelta) -> None:
    """After exactly a window nothing counts; after exactly a cooldown, or a probe's longest wait, one call goes through."""
    clock = ManualClock()
    clock.advance(start_s)
    breaker = archive(clock, window=duration, cooldown=duration, min_calls=2)
    calls(breaker, "F")
    clock.advance(duration.total_seconds())
    assert breaker.statistics().calls == 0
    calls(breaker, "FF")
    assert breaker.state is OPEN
    clock.advance(duration.total_seconds())
    permitted(breaker)
    clock.advance(duration.total_seconds())
    permitted(breaker)


# Policies.


def test_the_specified_defaults() -> None:
    """Half of at least five outcomes in 30 s opens it, for 30 s."""
    assert CircuitBreaker("archive").policy == BreakerPolicy(
        threshold=0.5, window=30 * S, cooldown=30 * S, min_calls=5, max_probe_wait=None
    )
    assert BreakerPolicy() == CircuitBreaker("archive").policy


def test_everything_wrong_with_a_policy_is_said_at_once() -> None:
    """Five wrong fields make one message that names all five."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        CircuitBreaker("archive", threshold=0, window=0 * S, cooldown=-S, min_calls=0, max_probe_wait=0 * S)
    assert str(raised.value) == (
        "BreakerPolicy: threshold must be > 0 and <= 1, got 0; "
        "BreakerPolicy: window must be > 0, got datetime.timedelta(0); "
        "BreakerPolicy: cooldown must be > 0, got datetime.timedelta(days=-1, seconds=86399); "
        "BreakerPolicy: min_calls must be in [1, 10000], got 0; "
        "BreakerPolicy: max_probe_wait must be > 0, or None, got datetime.timedelta(0)"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 1.01}, "BreakerPolicy: threshold must be > 0 and <= 1, got 1.01"),
        ({"threshold": float("nan")}, "BreakerPolicy: threshold must be > 0 and <= 1, got nan"),
        ({"cooldown": 0 * S}, "BreakerPolicy: cooldown must be > 0, got datetime.timedelta(0)"),
        ({"min_calls": 10_001}, "BreakerPolicy: min_calls must be in [1, 10000], got 10001"),
    ],
)
def test_a_bound_is_a_bound(wrong: dict[str, Any], message: str) -> None:
    """What lies just beyond is refused by name."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        BreakerPolicy(**wrong)
    assert str(raised.value) == message


def test_the_bounds_themselves_are_admitted() -> None:
    """The least and the most of each field make a policy."""
    BreakerPolicy(threshold=1, window=MICROSECOND, cooldown=MICROSECOND, min_calls=1, max_probe_wait=MICROSECOND)
    BreakerPolicy(threshold=1e-9, min_calls=10_000)


# A graph's breakers.


def test_breakers_of_one_name_are_one() -> None:
    """Asked for again with the same policy it is the same object; another name is another breaker."""
    breakers = Breakers(DecisionLog("graph"), ManualClock())
    policy = BreakerPolicy(cooldown=5 * S)
    archive = breakers.get("archive", policy)
    assert breakers.get("archive", BreakerPolicy(cooldown=5 * S)) is archive
    assert breakers.get("mirror", policy) is not archive
    assert archive.policy == policy
    assert list(breakers.statistics()) == ["archive", "mirror"]


def test_a_breaker_of_another_policy_under_the_same_name_is_refused() -> None:
    """The message shows both policies."""
    breakers = Breakers(DecisionLog("graph"), ManualClock())
    breakers.get("archive", BreakerPolicy())
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        breakers.get("archive", BreakerPolicy(min_calls=6))
    assert str(raised.value) == (
        "breaker 'archive': expected the policy it was made with, BreakerPolicy(threshold=0.5, "
        "window=datetime.timedelta(seconds=30), cooldown=datetime.timedelta(seconds=30), min_calls=5, "
        "max_probe_wait=None), got BreakerPolicy(threshold=0.5, window=datetime.timedelta(seconds=30), "
        "cooldown=datetime.timedelta(seconds=30), min_calls=6, max_probe_wait=None)"
    )


def test_each_change_is_one_decision_on_the_graphs_clock(caplog: pytest.LogCaptureFixture) -> None:
    """The line has the breaker, both states, whether by hand, and why."""
    clock = ManualClock()
    breaker = Breakers(DecisionLog("graph"), clock).get("archive", BreakerPolicy())
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        calls(breaker, "FFFFF")
        clock.advance(30)
        permitted(breaker)
        breaker.force_open("maintenance")
    assert [event_of(record.getMessage()) for record in caplog.records] == [
        {
            "event": "circuit_breaker",
            "graph": "graph",
            "breaker": "archive",
            "was": was,
            "state": state,
            "forced": forced,
            "reason": reason,
        }
        for was, state, forced, reason in [
            ("closed", "open", False, "5 of 5 calls in 30 s failed"),
            ("open", "half-open", False, "30 s of cooldown are over: one probe decides"),
            ("half-open", "open", True, "maintenance"),
        ]
    ]
