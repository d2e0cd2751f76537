"""The windows against their definition: after every step, they are what sorting and segmenting all accepted items gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.event_time import lanes
from sda_ops.event_time.changes import Added
from sda_ops.event_time.segmentation import Segmentation, Session, Sliding, Tumbling
from sda_ops.event_time.windows import EventTimeWindows
from tests.helpers.sizes import LONG, examples
from tests.sda_ops.event_time.windows_model import Item, Step, check_against_the_definition, random_case, windows_of

SEGMENTATIONS: st.SearchStrategy[Segmentation] = st.one_of(
    st.builds(Tumbling, size_ns=st.integers(1, 10)),
    st.builds(Sliding, width_ns=st.integers(0, 10)),
    st.integers(1, 6).flatmap(
        lambda gap: st.builds(Session, gap_ns=st.just(gap), longest_ns=st.integers(gap, 4 * gap))
    ),
)
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("AB"), st.builds(Item, st.integers(-20, 40), st.sampled_from("xyz"))),
        st.integers(-20, 50),
    ),
    max_size=40,
)


@settings(max_examples=2_000 if LONG else 250, deadline=None)  # beside the random cases below
@given(segmentation=SEGMENTATIONS, allowed_ns=st.integers(0, 12), steps=STEPS)
def test_after_every_step_the_effective_windows_are_those_of_the_definition(
    segmentation: Segmentation, allowed_ns: int, steps: list[Step]
) -> None:
    """Any items, marks, duplicates and late items of two keys; every item is in a window, a duplicate, or late."""
    check_against_the_definition(segmentation, allowed_ns, steps, slice_ns=4)


SOUND_CLOSE_FIRST = EventTimeWindows._close_first
SOUND_WAIT = EventTimeWindows._wait
SOUND_ADVANCE = EventTimeWindows.advance
SOUND_RETRACT = EventTimeWindows._retract
SOUND_ADD = EventTimeWindows.add
SOUND_RELEASE = EventTimeWindows._release


def _closes_early(self: Any, lane: Any, mark_ns: int) -> Any:
    return SOUND_CLOSE_FIRST(self, lane, mark_ns + 1)


def _closes_late(self: Any, mark_ns: int, limit: int | None = None) -> Any:
    return SOUND_ADVANCE(self, mark_ns - 1, limit)


def _examines_late(self: Any, lane: Any, earliest_ns: int, end_ns: int) -> None:
    SOUND_WAIT(self, lane, earliest_ns, end_ns + 1)


def _releases_early(self: Any, mark_ns: int, limit: int | None = None) -> Any:
    changes = SOUND_ADVANCE(self, mark_ns, limit)
    while (window := self._retained.pop(mark_ns - self._allowed_ns - self._lookback_ns + 1)) is not None:
        self._release(window, window.end_ns)
    return changes


def _loses_retractions(self: Any, window: Any) -> Any:
    SOUND_RETRACT(self, window)
    return []


def _advances_with_the_newest_item(self: Any, key: Any, item: Any) -> Any:
    outcome = SOUND_ADD(self, key, item)
    changes = self.advance(item.time_ns)
    return Added((*outcome.changes, *changes)) if isinstance(outcome, Added) else outcome


def _forgets_what_was_released(self: Any, window: Any, released_ns: int) -> None:
    del released_ns
    SOUND_RELEASE(self, window, -(10**30))


def _forgets_a_released_session_at_once(lane: Any) -> int:
    del lane
    return 0


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a window closes one nanosecond early": (EventTimeWindows, "_close_first", _closes_early),
    "a window closes one nanosecond late": (EventTimeWindows, "advance", _closes_late),
    "what is not sorted is examined one nanosecond late": (EventTimeWindows, "_wait", _examines_late),
    "a window is released one nanosecond early": (EventTimeWindows, "advance", _releases_early),
    "a retraction is lost": (EventTimeWindows, "_retract", _loses_retractions),
    "windows follow the newest item instead of the watermark": (
        EventTimeWindows,
        "add",
        _advances_with_the_newest_item,
    ),
    "an item in a released session opens a fresh one": (EventTimeWindows, "_release", _forgets_what_was_released),
    "an item is never too late by its own window": (EventTimeWindows, "_is_released", lambda *_: False),
    "a released session is forgotten at once": (
        Session,
        "reach_ns",
        property(_forgets_a_released_session_at_once),  # type: ignore[dict-item] # a property of the class
    ),
    "a window that returns has the identity of the retracted one": (
        EventTimeWindows,
        "_identity",
        lambda _, window, __: (window.first_ns, object()),
    ),
    "items of one time are in order of arrival": (
        lanes,
        "bisect_left",
        lambda items, order, lo=0, hi=None, key=None: (
            hi if isinstance(order, str) else bisect_left(items, order, lo, hi, key=key)
        ),
    ),
}


def _found_by(cases: int) -> str | None:
    """The first difference to the definition in so many random cases."""
    for seed in range(cases):
        try:
            check_against_the_definition(*random_case(Random(seed)), slice_ns=1 + seed % 9)
        except (AssertionError, IndexError) as error:
            return f"seed {seed}: {error}"
    return None


def test_random_cases_find_no_difference() -> None:
    """The same cases in which the mutants are found."""
    assert _found_by(examples(1_600)) is None


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_found(name: str) -> None:
    """Each breaks one promise of the windows."""
    owner, attribute, broken = MUTANTS[name]
    with patch.object(owner, attribute, broken):
        assert _found_by(20_000) is not None


def test_steps_of_a_mark_give_the_same_as_the_whole_mark() -> None:
    """In steps of one window. Between the steps, windows are released."""
    for seed in range(examples(800)):
        segmentation, allowed_ns, steps = random_case(Random(seed))
        whole, stepwise = (
            windows_of(segmentation, allowed_lateness_ns=allowed_ns, slice_ns=1 + seed % 9) for _ in range(2)
        )
        for step in [*steps, 1_000]:
            if isinstance(step, int):
                expected, found = whole.advance(step), []
                while changes := stepwise.advance(step, 1):
                    found += changes
            else:
                key, item = step
                assert whole.add(key, item) == stepwise.add(key, item)
                continue
            assert sorted(found, key=str) == sorted(expected, key=str)
            assert (stepwise.held, stepwise.active, stepwise.retained) == (whole.held, whole.active, whole.retained)


def test_items_that_are_added_together_give_the_same_as_one_by_one() -> None:
    """Also when the cap closes windows early, in the middle of a batch."""
    for seed in range(examples(800)):
        segmentation, allowed_ns, steps = random_case(Random(seed))
        max_held = (3, 10, 1_000)[seed % 3]
        single, together = (
            windows_of(segmentation, allowed_lateness_ns=allowed_ns, max_held=max_held) for _ in range(2)
        )
        batch: list[tuple[str, Item]] = []
        for step in [*steps, 1_000]:
            if not isinstance(step, int):
                batch.append(step)
                continue
            said = [single.add(key, item) for key, item in batch]
            keys, items = [key for key, _ in batch], [item for _, item in batch]
            assert together.add_all(keys, items) == [each for each in said if each != Added()]
            for name in ("held", "active", "retained", "late", "duplicates", "closed_early", "released_early"):
                assert getattr(together, name) == getattr(single, name), name
            assert single.advance(step) == together.advance(step)
            batch.clear()
