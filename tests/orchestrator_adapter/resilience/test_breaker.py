"""``CircuitBreaker``: which outcomes open and close it, and which calls it admits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter.resilience.breaker import (
    BreakerState,
    Permit,
    Rejection,
    StateChange,
)
from orchestrator_adapter.testing import ManualClock
from tests.helpers.breaker_calls import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    S,
    archive,
    calls,
    changes_of,
    half_open,
    opened,
    permitted,
    rejected,
)

# What opens it.


@pytest.mark.parametrize(
    ("trace", "state"),
    [
        ("FFFF", CLOSED),
        ("FFFFS", OPEN),  # a success can be the outcome that opens it
        ("FFFFF", OPEN),
        ("SFFFF", OPEN),
        ("SSSFF", CLOSED),
        ("SSSFFF", OPEN),  # exactly the threshold
        ("SSSSSSF", CLOSED),
        ("FFFF....", CLOSED),  # a released permit has no outcome
        ("....FFFFS", OPEN),
    ],
)
def test_a_sequence_of_calls_opens_it_or_does_not(trace: str, state: BreakerState) -> None:
    """It opens when at least half of at least five outcomes are failures, also if the last one is a success."""
    breaker = archive(ManualClock())
    calls(breaker, trace)
    assert breaker.state is state


def test_it_opens_at_the_fifth_outcome_with_a_reason() -> None:
    """Four failures and a success: closed before the fifth call ends, and open afterwards."""
    breaker = archive(ManualClock())
    changes = changes_of(breaker)
    calls(breaker, "FFFF")
    assert not changes
    calls(breaker, "S")
    assert changes == [StateChange("archive", CLOSED, OPEN, forced=False, reason="4 of 5 calls in 30 s failed")]


@pytest.mark.parametrize(("age_s", "state"), [(29.75, OPEN), (30.0, CLOSED)])
def test_an_outcome_as_old_as_the_window_does_not_count(age_s: float, state: BreakerState) -> None:
    """The fifth failure opens it if the first one is a moment less than 30 s old, and not at 30 s."""
    clock = ManualClock()
    breaker = archive(clock)
    calls(breaker, "F")
    clock.advance(age_s)
    calls(breaker, "FFFF")
    assert breaker.state is state
    calls(breaker, "F" if state is CLOSED else "")
    assert breaker.state is OPEN


def test_successes_outside_the_window_do_not_count() -> None:
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
def test_it_opens_from_its_threshold_on(threshold: float, state: BreakerState) -> None:
    """Three failures of ten open a breaker with a threshold of 0.3, and no breaker with a higher one."""
    breaker = archive(ManualClock(), threshold=threshold, min_calls=10)
    calls(breaker, "SSSSSSSFFF")
    assert breaker.state is state


def test_with_a_threshold_of_one_a_single_success_keeps_it_closed() -> None:
    """Without a success it opens as soon as there are min_calls outcomes."""
    breaker = archive(ManualClock(), threshold=1.0, min_calls=1)
    calls(breaker, "SFFFFFFFFF")
    assert breaker.state is CLOSED
    breaker = archive(ManualClock(), threshold=1.0, min_calls=1)
    calls(breaker, "F")
    assert breaker.state is OPEN


def test_only_the_newest_ten_thousand_outcomes_are_kept() -> None:
    """The window's memory is bounded for any load; the oldest outcomes are dropped first."""
    breaker = archive(ManualClock(), min_calls=10_000)
    calls(breaker, "F" * 4_999 + "S" * 5_001)
    assert (breaker.statistics().calls, breaker.statistics().failures) == (10_000, 4_999)
    calls(breaker, "S")
    assert (breaker.statistics().calls, breaker.statistics().failures) == (10_000, 4_998)
    assert breaker.state is CLOSED
    assert len(breaker._outcomes) == 10_000


def test_only_the_first_report_counts() -> None:
    """A permit with five reports has one outcome, the first one."""
    breaker = archive(ManualClock())
    permit = permitted(breaker)
    for report in (permit.failed, permit.failed, permit.succeeded, permit.release, permit.failed):
        report()
    assert (breaker.statistics().calls, breaker.statistics().failures) == (1, 1)
    released = permitted(breaker)
    released.release()
    released.failed()
    assert breaker.statistics().calls == 1


# Open.


def test_while_open_every_call_is_rejected_with_the_time_to_ask_again() -> None:
    """A rejection has the breaker, its state and the rest of the cooldown."""
    clock = ManualClock()
    breaker = opened(clock)
    assert rejected(breaker) == Rejection("archive", OPEN, 30 * S)
    clock.advance(12.5)
    assert rejected(breaker) == Rejection("archive", OPEN, 17.5 * S)
    assert str(rejected(breaker)) == "breaker 'archive' is open: ask again in 17.5 s"
    assert breaker.statistics().rejections == 3


def test_a_long_wait_is_shown_in_whole_seconds() -> None:
    """An hour reads "3600 s", not "3.6e+03 s"."""
    assert str(Rejection("archive", HALF_OPEN, timedelta(hours=1))) == (
        "breaker 'archive' is half-open: ask again in 3600 s"
    )


@pytest.mark.parametrize(("waited_s", "admitted"), [(29.75, False), (30.0, True)])
def test_the_cooldown_ends_exactly_after_its_length(waited_s: float, *, admitted: bool) -> None:
    """A moment before its end a call is rejected; at its end one call is admitted."""
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(waited_s)
    assert isinstance(breaker.ask(), Permit) is admitted
    assert breaker.state is (HALF_OPEN if admitted else OPEN)


def test_it_stays_open_until_the_next_request() -> None:
    """The end of the cooldown alone does not change the state."""
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(3600)
    assert breaker.state is OPEN


@pytest.mark.parametrize("report", [Permit.failed, Permit.succeeded, Permit.release])
def test_outcomes_that_arrive_while_open_are_ignored(report: Any) -> None:
    """Calls that started before it opened do not close it, do not prolong its cooldown and do not count later."""
    clock = ManualClock()
    breaker = archive(clock)
    late = [permitted(breaker) for _ in range(10)]
    calls(breaker, "FFFFF")
    changes = changes_of(breaker)
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
def test_outcomes_of_calls_from_an_earlier_epoch_are_ignored(report: Any) -> None:
    """A call that started before it opened does not count, neither while half-open nor after it has closed."""
    clock = ManualClock()
    breaker = archive(clock)
    late = [permitted(breaker) for _ in range(10)]
    calls(breaker, "FFFFF")
    clock.advance(30)
    probe = permitted(breaker)
    report(late.pop())
    assert breaker.state is HALF_OPEN
    rejected(breaker)
    probe.succeeded()
    for permit in late:
        report(permit)
    assert breaker.state is CLOSED
    assert breaker.statistics().calls == 0


# Half-open.


def test_half_open_admits_exactly_one_call() -> None:
    """While the probe runs, other calls are rejected; the time to ask again is when the probe would be given up."""
    clock = ManualClock()
    breaker, _ = half_open(clock)
    assert [rejected(breaker) for _ in range(3)] == [Rejection("archive", HALF_OPEN, 30 * S)] * 3
    clock.advance(10)
    assert str(rejected(breaker)) == "breaker 'archive' is half-open: ask again in 20 s"


def test_a_successful_probe_closes_it_and_clears_the_history() -> None:
    """One success closes it. Then five new outcomes are needed to open it, although the old failures are in the window."""
    clock = ManualClock()
    breaker, probe = half_open(clock, window=300 * S)
    changes = changes_of(breaker)
    probe.succeeded()
    assert changes == [StateChange("archive", HALF_OPEN, CLOSED, forced=False, reason="the probe succeeded")]
    calls(breaker, "FFFF")
    assert breaker.state is CLOSED
    calls(breaker, "F")
    assert breaker.state is OPEN


def test_a_failed_probe_opens_it_for_a_whole_cooldown() -> None:
    """The cooldown starts when the probe fails, not when it is sent."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    changes = changes_of(breaker)
    clock.advance(10)
    probe.failed()
    assert changes == [StateChange("archive", HALF_OPEN, OPEN, forced=False, reason="the probe failed")]
    assert rejected(breaker).ask_again_in == 30 * S
    clock.advance(29.75)
    rejected(breaker)
    clock.advance(0.25)
    permitted(breaker)


def test_a_released_probe_goes_to_the_next_request() -> None:
    """At once, and without a state change."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    changes = changes_of(breaker)
    rejected(breaker)
    probe.release()
    assert breaker.state is HALF_OPEN
    second = permitted(breaker)
    rejected(breaker)
    second.succeeded()
    assert [change.state for change in changes] == [CLOSED]


@pytest.mark.parametrize("error", [None, KeyError("bug")])
def test_a_permit_whose_context_ends_without_a_report_is_released(error: Exception | None) -> None:
    """The end of its context without a report, by an exception or not, admits a new probe."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    try:
        with probe:
            if error is not None:
                raise error
    except KeyError as raised:
        assert raised is error  # noqa: PT017 - it is passed on
    permitted(breaker)


def test_a_report_within_the_context_counts() -> None:
    """The end of the context after a report changes nothing."""
    breaker = archive(ManualClock())
    for _ in range(5):
        with permitted(breaker) as permit:
            permit.failed()
    assert breaker.state is OPEN


@pytest.mark.parametrize(("longest", "waited_s"), [(None, 30.0), (5 * S, 5.0)])
def test_a_probe_that_never_reports_is_given_up(longest: timedelta | None, waited_s: float) -> None:
    """Exactly after max_probe_wait (by default the cooldown) the next request becomes the probe."""
    clock = ManualClock()
    breaker, _ = half_open(clock, max_probe_wait=longest)
    clock.advance(waited_s - 0.25)
    assert rejected(breaker).ask_again_in == 0.25 * S
    clock.advance(0.25)
    permitted(breaker)
    assert rejected(breaker).ask_again_in == waited_s * S
    clock.advance(waited_s)
    permitted(breaker)


@pytest.mark.parametrize("report", [Permit.failed, Permit.succeeded, Permit.release])
def test_the_report_of_a_probe_that_was_given_up_is_ignored(report: Any) -> None:
    """Its report neither decides nor admits a third probe."""
    clock = ManualClock()
    breaker, lost = half_open(clock)
    clock.advance(30)
    second = permitted(breaker)
    report(lost)
    assert breaker.state is HALF_OPEN
    assert breaker.statistics().calls == 0
    rejected(breaker)
    second.failed()
    assert breaker.state is OPEN


def test_a_late_probe_without_a_successor_still_decides() -> None:
    """It is replaced only by the next request; until then its report counts."""
    clock = ManualClock()
    breaker, probe = half_open(clock)
    clock.advance(1000)
    probe.succeeded()
    assert breaker.state is CLOSED
