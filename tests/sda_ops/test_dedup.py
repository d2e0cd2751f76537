"""`SeenSet`: which keys are known, for how long, and which are evicted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import cycle
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter import (
    OperatorError,
)
from sda_ops import dedup
from sda_ops.dedup import SeenSet, deduplicate
from tests.helpers.sizes import examples
from tests.scenes.restarts import away

MINUTE = timedelta(minutes=1)


def test_a_key_expires_exactly_at_max_age() -> None:
    """Within a minute it is known; exactly a minute later it is not."""
    seen = SeenSet(MINUTE, 10)
    assert not seen.check_and_add("a", 100.0)
    assert not seen.check_and_add("b", 100.0)
    assert seen.check_and_add("a", 159.999)
    assert not seen.check_and_add("b", 160.0)


def test_seeing_a_key_again_renews_it() -> None:
    """Seen every 40 s it stays known, although the window is one minute."""
    seen = SeenSet(MINUTE, 10)
    assert [seen.check_and_add("a", now) for now in (0.0, 40.0, 80.0, 120.0, 180.0)] == [False, True, True, True, False]


def test_at_max_items_the_least_recently_seen_key_is_evicted_and_counted() -> None:
    """With room for two, the third key evicts the one that was not renewed."""
    seen = SeenSet(MINUTE, 2)
    for key, now in (("a", 0.0), ("b", 1.0), ("a", 2.0), ("c", 3.0)):
        seen.check_and_add(key, now)
    assert seen.evicted_early == 1
    assert seen.check_and_add("a", 4.0)
    assert not seen.check_and_add("b", 5.0)
    assert (len(seen), seen.evicted_early) == (2, 2)


@pytest.mark.parametrize(("now", "early"), [(60.0, 1), (60.999, 1), (61.0, 0), (999.0, 0)])
def test_evicting_an_expired_key_is_not_counted_as_early(now: float, early: int) -> None:
    """The window is full of keys that were renewed once and have expired."""
    seen = SeenSet(MINUTE, 300)  # more than one call removes, so that it is still full
    for seen_at in (0.0, 1.0):
        for key in range(300):
            seen.check_and_add(key, seen_at)
    assert not seen.check_and_add("new", now)
    assert (len(seen), seen.evicted_early) == (300, early)


def test_after_renewals_the_least_recently_seen_key_is_evicted() -> None:
    """After any number of renewals the last sighting counts, not the first."""
    for renewals in range(12):
        seen, keys = SeenSet(MINUTE, 2), cycle("ab")
        for turn in range(2 + renewals):
            seen.check_and_add(next(keys), float(turn))
        longest_ago, last = next(keys), next(keys)
        seen.check_and_add("c", 20.0)
        assert seen.check_and_add(last, 21.0)
        assert not seen.check_and_add(longest_ago, 22.0)


def test_of_keys_seen_at_the_same_time_the_first_is_evicted() -> None:
    """A batch has one time. A repeat within it renews nothing, even if the first sighting has been evicted."""
    seen = SeenSet(MINUTE, 2)
    assert [seen.check_and_add(key, 0.0) for key in "abacad"] == [False, False, True, False, False, False]
    assert seen.check_and_add("a", 1.0)
    assert not seen.check_and_add("c", 1.0)


STEPS = (0.0, 0.0, 0.0, 0.1, 1.0, 2.5, 5.0, 4.999999999999999, 12.0)
"""Times between two calls: often zero, exactly the window, and slightly less."""


@settings(max_examples=examples(1_000))
@given(
    st.integers(1, 7).flatmap(
        lambda keys: st.lists(st.tuples(st.integers(0, keys), st.sampled_from(STEPS)), min_size=5, max_size=40)
    ),
    st.sampled_from([0.0, 0.1, 86_400.3]),
    st.integers(1, 6),
    st.sampled_from([1, 2, 256]),
)
def test_the_window_matches_a_plain_list_of_keys_and_times(
    sightings: list[tuple[int, float]], now: float, max_items: int, swept_at_once: int
) -> None:
    """Results and count equal those of an exhaustive search, and the number of stored keys is bounded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_SWEPT_AT_ONCE", swept_at_once)
        seen = SeenSet(timedelta(seconds=5), max_items)
        last_seen: list[tuple[int, float]] = []  # in order of time; at equal times, in order of the first sighting
        early = 0
        for key, step in sightings:
            now += step
            last_seen = [(other, at) for other, at in last_seen if now - at < 5.0]
            known = key in [other for other, _ in last_seen]
            assert seen.check_and_add(key, now) is known
            if (key, now) not in last_seen:
                last_seen = [(other, at) for other, at in last_seen if other != key]
                early += len(last_seen) == max_items
                last_seen = [*last_seen, (key, now)][-max_items:]
            assert seen.evicted_early == early
            assert len(last_seen) <= len(seen) <= max_items
            assert len(seen._keys) == len(seen._times) <= 2 * max_items
            if swept_at_once == 256:
                assert len(seen) == len(last_seen)


def test_a_repeated_key_needs_space_for_two_sightings_at_most() -> None:
    """A sensor that repeats one frame for an hour does not use more memory."""
    seen = SeenSet(timedelta(hours=1), 1_000)
    for turn in range(10_000):
        seen.check_and_add("stuck", turn / 10)
    assert (len(seen), len(seen._keys), len(seen._times)) == (1, 2, 2)


def test_an_expired_burst_is_removed_in_steps() -> None:
    """Of 1,000 expired keys each later call removes at most 256, so four calls remove them all."""
    seen = SeenSet(MINUTE, 1_000_000)
    for key in range(1_000):
        seen.check_and_add(key, 0.0)
    sizes = []
    for turn in range(4):
        seen.check_and_add(f"other {turn}", 60.0)
        sizes.append(len(seen))
    assert sizes == [1_000 - 256 + 1, 1_000 - 512 + 2, 1_000 - 768 + 3, 4]


def test_a_key_whose_hash_or_comparison_fails_is_not_added() -> None:
    """The error is raised, nothing is recorded, and no other key is evicted."""

    class FailingKey:
        comparable = False

        def __hash__(self) -> int:
            return hash("a")

        def __eq__(self, other: object) -> bool:
            if not self.comparable:
                raise away()
            return self is other

    seen, failing = SeenSet(MINUTE, 1), FailingKey()
    seen.check_and_add("a", 0.0)
    with pytest.raises(OperatorError):
        seen.check_and_add(failing, 1.0)
    with pytest.raises(TypeError):
        seen.check_and_add(cast("Any", ["unhashable"]), 1.0)
    assert (len(seen), seen.evicted_early) == (1, 0)
    failing.comparable = True
    assert not seen.check_and_add(failing, 1.0)


@pytest.mark.parametrize(
    "make", [SeenSet, lambda max_age, max_items: deduplicate(max_age=max_age, max_items=max_items)]
)
def test_all_invalid_bounds_are_reported_at_once_on_construction(make: Callable[[timedelta, int], object]) -> None:
    """The message has the expected and the actual value of each, before a graph runs."""
    with pytest.raises(ValueError, match="SeenSet") as raised:
        make(timedelta(0), 0)
    assert str(raised.value) == (
        "SeenSet: max_age must be > 0, got datetime.timedelta(0); SeenSet: max_items must be >= 1, got 0"
    )
