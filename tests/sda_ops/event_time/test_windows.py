"""Windows by event time: traces with their numbers, boundaries, late items, the cap, and what is held."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from sda_ops.event_time import windows as windows_module
from sda_ops.event_time.changes import Added, Change, Insert, Late, Retract
from sda_ops.event_time.segmentation import Segmentation, Session, Sliding, Tumbling
from sda_ops.event_time.windows import EventTimeWindows
from tests.sda_ops.event_time.windows_model import Item, effective, windows_of

MS = 1_000_000
S = 1_000_000_000


def add(windows: EventTimeWindows[str, Item], *times_ns: int, key: str = "A") -> list[Change[str, Item]]:
    """Add items at these times, each of which has a window; returns the changes."""
    changes: list[Change[str, Item]] = []
    for time_ns in times_ns:
        added = windows.add(key, Item(time_ns, "x"))
        assert isinstance(added, Added)
        changes += added.changes
    return changes


def times(changes: list[Change[str, Item]]) -> list[list[int]]:
    return [[item.time_ns for item in change.items] for change in changes]


def bounds(changes: list[Change[str, Item]]) -> list[tuple[int, int]]:
    return [(change.start_ns, change.end_ns) for change in changes]


# Traces.


@pytest.mark.parametrize("segmentation", [Tumbling(size_ns=5), Sliding(width_ns=5), Session(gap_ns=5, longest_ns=9)])
def test_times_of_any_size_have_windows(segmentation: Segmentation) -> None:
    """A sender may claim any time, also one that does not fit into 64 bits."""
    ordered = [-(1 << 64), -(1 << 63) - 1, 0, (1 << 63) - 1, 1 << 63, 1 << 100]
    one_by_one, together = windows_of(segmentation), windows_of(segmentation)
    assert add(one_by_one, *ordered[::-1]) == []
    assert together.add_all("A" * len(ordered), [Item(time_ns, "x") for time_ns in ordered]) == []
    closed = one_by_one.close_all()
    assert {item.time_ns for change in closed for item in change.items} == set(ordered)
    assert closed == together.close_all()


def test_an_observation_belongs_to_the_window_of_its_own_time_not_of_its_arrival() -> None:
    """Sensor 14,000, 14,010 and 14,020 ms, arrival 14,080, 24,010 and 44,020: event window 2; by arrival it would be 2, 4, 8."""
    sensor_ms, arrival_ms, size = (14_000, 14_010, 14_020), (14_080, 24_010, 44_020), Tumbling(size_ns=5_000 * MS)
    for ordered in permutations(sensor_ms):
        windows = windows_of(size)
        add(windows, *(each * MS for each in ordered))
        (closed,) = windows.close_all()
        assert closed.start_ns // size.size_ns == 2
        assert [item.time_ns // MS for item in closed.items] == [14_000, 14_010, 14_020]
    assert [each // 5_000 for each in arrival_ms] == [2, 4, 8]


def test_a_sliding_window_has_the_items_that_are_at_most_its_width_before_each_item() -> None:
    """Width 5, times 10, 12, 14, 16, 19, 25: the bound is inclusive, so that 19 has 14, and 25 has only itself."""
    expected = [[10], [10, 12], [10, 12, 14], [12, 14, 16], [14, 16, 19], [25]]
    for ordered in permutations((10, 12, 14, 16, 19, 25)):
        windows = windows_of(Sliding(width_ns=5))
        assert add(windows, *ordered) == []
        assert times(windows.close_all()) == expected


def test_pairs_across_the_boundary_of_tumbling_windows_are_together_in_sliding_windows_and_in_sessions() -> None:
    """4 and 5 are 1 apart: tumbling windows of 5 separate them, and each sliding pair comes once for each later item."""
    pair = (4, 5)
    found = {}
    for segmentation in (Tumbling(size_ns=5), Sliding(width_ns=5), Session(gap_ns=5, longest_ns=50)):
        windows = windows_of(segmentation)
        add(windows, *pair)
        found[type(segmentation)] = times(windows.close_all())
    assert found == {Tumbling: [[4], [5]], Sliding: [[4], [4, 5]], Session: [[4, 5]]}


def test_a_session_ends_by_a_gap_or_at_its_greatest_length() -> None:
    """Gap 5, longest 10: 0, 4, 8, 9 are one window; 10 is 10 after the first, 15 is 5 after the last."""
    windows = windows_of(Session(gap_ns=5, longest_ns=10))
    add(windows, 0, 4, 8, 9, 10, 14, 19)
    closed = windows.close_all()
    assert times(closed) == [[0, 4, 8, 9], [10, 14], [19]]
    assert bounds(closed) == [(0, 10), (10, 19), (19, 24)]


def test_a_late_item_within_the_allowed_lateness_amends_and_after_it_the_window_is_released() -> None:
    """Size 5, lateness 3: data 2, 4, mark 6: a window with two; data 3: with three; mark 9: released."""
    windows = windows_of(Tumbling(size_ns=5), allowed_lateness_ns=3)
    assert add(windows, 2, 4) == []
    assert times(windows.advance(6)) == [[2, 4]]
    retract, insert = add(windows, 3)
    assert (type(retract), times([retract])) == (Retract, [[2, 4]])
    assert (type(insert), times([insert])) == (Insert, [[2, 3, 4]])
    assert windows.advance(7) == []
    assert (windows.active, windows.retained, windows.held) == (0, 1, 3)
    assert windows.advance(9) == []
    assert (windows.active, windows.retained, windows.held) == (0, 0, 0)
    assert windows.add("A", Item(3, "y")) == Late("A", 3, Item(3, "y"), 6)


def test_the_first_insertion_does_not_wait_for_the_allowed_lateness() -> None:
    """With an allowed lateness of 1,000 a window of [0, 5) is inserted at 5."""
    windows = windows_of(Tumbling(size_ns=5), allowed_lateness_ns=1_000)
    add(windows, 2)
    assert times(windows.advance(5)) == [[2]]
    assert (windows.active, windows.retained) == (0, 1)


# Boundaries.


@pytest.mark.parametrize(
    ("segmentation", "closes_at"),
    [(Tumbling(size_ns=5), 5), (Sliding(width_ns=5), 4), (Session(gap_ns=5, longest_ns=50), 8)],
)
def test_a_half_open_window_closes_at_its_end_and_an_inclusive_one_after_it(
    segmentation: Segmentation, closes_at: int
) -> None:
    """An item at 3: [0, 5) closes at 5, [-2, 3] at 4, and a session at 8; none of them one nanosecond earlier."""
    windows = windows_of(segmentation)
    add(windows, 3)
    assert windows.advance(closes_at - 1) == []
    assert times(windows.advance(closes_at)) == [[3]]
    assert windows.advance(closes_at) == []


@pytest.mark.parametrize(
    ("segmentation", "released_at"),
    [(Tumbling(size_ns=5), 7), (Sliding(width_ns=5), 6), (Session(gap_ns=5, longest_ns=50), 10)],
)
def test_a_window_is_released_at_its_end_plus_the_allowed_lateness(
    segmentation: Segmentation, released_at: int
) -> None:
    """Allowed lateness 2: an item of the same time still amends one nanosecond earlier, and is too late then."""
    for at, accepted in ((released_at - 1, True), (released_at, False)):
        windows = windows_of(segmentation, allowed_lateness_ns=2)
        add(windows, 3)
        windows.advance(at)
        assert isinstance(windows.add("A", Item(3, "y")), Added) is accepted
        assert windows.late == (not accepted)


def test_an_item_at_the_mark_is_on_time_and_one_nanosecond_earlier_is_late() -> None:
    """Whether it opens a window or is the newest of an open one: the mark excludes what is before it only."""
    for times_ns, late in (((10,), False), ((9,), True), ((8, 10), False), ((7, 9), True)):
        windows = windows_of(Session(gap_ns=5, longest_ns=50), allowed_lateness_ns=10)
        for time_ns in times_ns[:-1]:
            windows.add("A", Item(time_ns, "x"))
        windows.advance(10)
        added = windows.add("A", Item(times_ns[-1], "x"))
        assert isinstance(added, Added)
        assert added.late is late


def test_a_mark_that_does_not_advance_changes_nothing() -> None:
    """It neither closes nor opens anything."""
    windows = windows_of(Tumbling(size_ns=5))
    windows.advance(20)
    add(windows, 21)
    assert windows.advance(4) == []
    assert windows.mark_ns == 20
    assert isinstance(windows.add("A", Item(10, "x")), Late)


def test_times_before_the_epoch_have_windows_of_the_same_length() -> None:
    """-1 is in [-5, 0), and not in the window of 0."""
    windows = windows_of(Tumbling(size_ns=5))
    add(windows, -1, -5, -6, 0)
    assert bounds(windows.close_all()) == [(-10, -5), (-5, 0), (0, 5)]


def test_items_of_one_time_are_in_the_order_that_the_caller_gives() -> None:
    """By name, in every order of arrival; the same name again is a duplicate."""
    for names in permutations("abc"):
        for segmentation in (Tumbling(size_ns=5), Sliding(width_ns=5), Session(gap_ns=5, longest_ns=50)):
            windows = windows_of(segmentation)
            for name in names:
                assert isinstance(windows.add("A", Item(3, name)), Added)
            windows.add("A", Item(3, "b"))
            (closed,) = windows.close_all()
            assert (windows.duplicates, windows.held) == (1, 0)
            assert "".join(item.name for item in closed.items) == "abc"


def test_a_duplicate_of_a_late_item_changes_nothing() -> None:
    """Neither a retraction nor an insertion."""
    windows = windows_of(Tumbling(size_ns=5), allowed_lateness_ns=10)
    add(windows, 3)
    windows.advance(5)
    assert windows.add("A", Item(3, "x")) == Added()
    assert (windows.held, windows.duplicates) == (1, 1)


# Late items in sessions.


def test_a_late_item_joins_two_closed_sessions() -> None:
    """[0] and [6] are 6 apart, with a gap of 5; 3 joins them: two retractions, then one insertion."""
    windows = windows_of(Session(gap_ns=5, longest_ns=50), allowed_lateness_ns=20)
    add(windows, 0, 6)
    windows.advance(12)
    changes = add(windows, 3)
    assert [type(each) for each in changes] == [Retract, Retract, Insert]
    assert times(changes) == [[0], [6], [0, 3, 6]]


def test_a_late_item_splits_sessions_that_the_greatest_length_cuts() -> None:
    """Longest 10: [0 4 8] and [12 16] become [-3 0 4] and [8 12 16]: two retractions, two insertions."""
    windows = windows_of(Session(gap_ns=5, longest_ns=10), allowed_lateness_ns=100)
    add(windows, 0, 4, 8, 12, 16)
    windows.advance(30)
    changes = add(windows, -3)
    assert [type(each) for each in changes] == [Retract, Retract, Insert, Insert]
    assert times(changes) == [[0, 4, 8], [12, 16], [-3, 0, 4], [8, 12, 16]]


def test_what_a_late_item_does_not_change_is_not_retracted() -> None:
    """Ten sessions; the item falls into the fifth."""
    windows = windows_of(Session(gap_ns=5, longest_ns=10), allowed_lateness_ns=1_000)
    add(windows, *(100 * n for n in range(10)))
    windows.advance(950)
    assert times(add(windows, 402)) == [[400], [400, 402]]


def test_a_late_item_that_makes_a_closed_session_longer_opens_it_again() -> None:
    """[0] ends at 5. At mark 6, an item at 4 makes it end at 9: it is retracted at once, and inserted at mark 9."""
    windows = windows_of(Session(gap_ns=5, longest_ns=50), allowed_lateness_ns=20)
    add(windows, 0)
    windows.advance(6)
    changes = add(windows, 4)
    assert ([type(each) for each in changes], times(changes)) == ([Retract], [[0]])
    assert (windows.active, windows.retained) == (1, 0)
    assert windows.advance(8) == []
    assert times(windows.advance(9)) == [[0, 4]]


def test_an_item_in_a_released_session_opens_no_window_even_when_its_key_has_nothing_left() -> None:
    """[0] ended at 5 and is released. A window of 4 alone would end at 9, after the mark: it is too late all the same."""
    windows = windows_of(Session(gap_ns=5, longest_ns=50))
    add(windows, 0)
    windows.advance(5)
    assert (windows.held, windows.active, windows.retained) == (0, 0, 0)
    assert windows.add("A", Item(4, "x")) == Late("A", 4, Item(4, "x"), 1)
    assert isinstance(windows.add("B", Item(4, "x")), Added)  # another key has no such session
    assert isinstance(windows.add("A", Item(5, "x")), Added)  # the session has ended there


def test_a_late_item_amends_every_sliding_window_that_looks_back_to_it() -> None:
    """Width 5: an item at 11 is missing in the windows of 12 and 16, and not in that of 17."""
    windows = windows_of(Sliding(width_ns=5), allowed_lateness_ns=100)
    add(windows, 10, 12, 16, 17)
    windows.advance(20)
    changes = add(windows, 11)
    assert times(changes) == [[10, 12], [12, 16], [10, 11], [10, 11, 12], [11, 12, 16]]
    assert [type(each) for each in changes] == [Retract, Retract, Insert, Insert, Insert]


# Lateness and memory.


def test_within_the_lateness_of_its_source_a_pair_is_found_and_beyond_it_the_item_is_dropped_and_counted() -> None:
    """A source that promises 30 s. Its item comes 30 s of event time after the radar's, just before the mark, or after it."""
    for behind_ns, found in ((0, True), (1, False)):
        windows = windows_of(Session(gap_ns=2 * S, longest_ns=30 * S))
        add(windows, 100 * S)
        windows.advance(102 * S - 1 + behind_ns)  # the session [100 s, 102 s)
        outcome = windows.add("A", Item(101 * S, "optical"))
        assert isinstance(outcome, Added) is found
        assert windows.late == (not found)
        assert any(len(change.items) == 2 for change in windows.close_all()) is found


@pytest.mark.parametrize(
    ("segmentation", "window_s"),
    [(Tumbling(size_ns=30 * S), 30), (Sliding(width_ns=30 * S), 30), (Session(gap_ns=2 * S, longest_ns=30 * S), 30)],
)
def test_what_is_held_of_a_key_is_bounded_by_window_plus_latenesses_times_its_rate(
    segmentation: Segmentation, window_s: int
) -> None:
    """10 items/s for ten minutes; the mark is 10 s behind, 5 s are allowed, marks come every second. It does not grow."""
    windows = windows_of(segmentation, allowed_lateness_ns=5 * S)
    rate, behind_s, allowed_s, every_s = 10, 10, 5, 1
    held = []
    for second in range(600):
        add(windows, *(second * S + n * S // rate for n in range(rate)))
        windows.advance((second - behind_s) * S)
        held.append(windows.held)
    bound = (window_s + allowed_s + behind_s + every_s) * rate
    assert max(held) <= bound
    assert max(held) > bound // 2  # a bound that says something
    assert max(held[300:]) <= max(held[:300])
    assert len(windows.items_of("A")) == windows.held
    windows.close_all()
    assert (windows.held, windows.items_of("A")) == (0, ())


def test_keys_that_are_quiet_leave_nothing_behind() -> None:
    """A thousand keys with one item each. What is kept of a released session is kept for its greatest length only."""
    windows = windows_of(Session(gap_ns=5, longest_ns=10), allowed_lateness_ns=3)
    for n in range(1_000):
        add(windows, n, key=f"object-{n}")
        windows.advance(n)
        assert len(windows._lanes) <= 25
    windows.advance(10_000)
    internal = (windows._lanes, windows._open, windows._retained, windows._forgetting)
    assert [len(each) for each in internal] == [0, 0, 0, 0]


def test_amendments_leave_nothing_behind() -> None:
    """Late items into windows that are closed, a thousand times: heaps and counts of retractions shrink with the windows."""
    windows = windows_of(Session(gap_ns=5, longest_ns=10), allowed_lateness_ns=20)
    for n in range(0, 10_000, 10):
        add(windows, n)
        windows.advance(n + 6)
        add(windows, n + 3, n + 1)
        assert sum(len(each) for each in (windows._open, windows._retained)) < 20
    windows.advance(20_000)
    internal = (windows._lanes, windows._open, windows._retained, windows._forgetting)
    assert [len(each) for each in internal] == [0, 0, 0, 0]


def test_the_cap_closes_the_oldest_window_first_and_what_belongs_there_is_late() -> None:
    """Room for three items. The fourth closes [0 1] early; 4 would belong to it, and 6 begins a new one."""
    windows = windows_of(Session(gap_ns=5, longest_ns=50), max_held=3)
    add(windows, 0, 1, key="A")
    add(windows, 3, key="B")
    changes = add(windows, 7, key="C")
    assert ([type(each) for each in changes], times(changes)) == ([Insert], [[0, 1]])
    assert (windows.closed_early, windows.released_early, windows.held) == (1, 0, 2)
    assert windows.add("A", Item(4, "x")) == Late("A", 4, Item(4, "x"), 0)
    assert isinstance(windows.add("A", Item(6, "x")), Added)


def test_the_cap_releases_closed_windows_before_it_closes_open_ones() -> None:
    """[0] is closed, and kept for late items; it makes room for the third item, and no open window closes."""
    windows = windows_of(Session(gap_ns=5, longest_ns=50), allowed_lateness_ns=100, max_held=2)
    add(windows, 0)
    windows.advance(5)
    assert add(windows, 10, key="B") + add(windows, 11, key="C") == []
    assert (windows.closed_early, windows.released_early) == (0, 1)


def test_with_a_cap_that_is_always_reached_every_item_is_in_at_most_one_window_and_none_is_lost() -> None:
    """50 items of five keys with room for seven and a mark that never comes: inserted once each, or counted as late."""
    for segmentation in (Tumbling(size_ns=5), Session(gap_ns=3, longest_ns=9)):
        windows = windows_of(segmentation, max_held=7)
        changes: list[Change[str, Item]] = []
        for n in range(50):
            outcome = windows.add("ABCDE"[n % 5], Item(n // 2, str(n)))
            changes += outcome.changes if isinstance(outcome, Added) else ()
            assert windows.held <= 7
        changes += windows.close_all()
        inserted = [item for _, window in effective(changes) for item in window.items]
        assert len(inserted) == len(set(inserted)) == 50 - windows.late
        assert windows.closed_early > 0


def test_a_sliding_window_that_the_cap_has_cut_is_closed_early_and_not_amended() -> None:
    """Width 5, room for two: 10 leaves when 12 comes, and the windows that look back to 10 close as they are."""
    windows = windows_of(Sliding(width_ns=5), max_held=2)
    add(windows, 10, 11)
    assert times(add(windows, 12)) == [[10], [10, 11], [10, 11, 12]]
    assert windows.closed_early == 3
    assert windows.add("A", Item(15, "x")) == Late("A", 15, Item(15, "x"), 0)
    assert times(add(windows, 16) + windows.close_all()) == [[11, 12, 16]]


def test_the_cap_closes_a_window_with_what_has_come_since_its_key_was_asked_for() -> None:
    """[10] is sorted when it is asked for; 14 comes after that, and belongs to it when another key needs room."""
    windows = windows_of(Session(gap_ns=5, longest_ns=50), max_held=2)
    add(windows, 10)
    assert windows.items_of("A") == (Item(10, "x"),)
    add(windows, 14)
    assert times(add(windows, 40, key="B")) == [[10, 14]]


def test_the_cap_closes_the_sliding_windows_that_look_back_with_what_has_come_since() -> None:
    """10 and 12 are sorted when they are asked for; 11 comes after that. All three look back to 10, and close with it."""
    windows = windows_of(Sliding(width_ns=5), max_held=3)
    add(windows, 10, 12)
    assert windows.items_of("A") == (Item(10, "x"), Item(12, "x"))
    add(windows, 11)
    assert times(add(windows, 40, key="B")) == [[10], [10, 11], [10, 11, 12]]
    assert times(windows.close_all()) == [[40]]


def test_windows_of_one_mark_come_in_the_order_of_their_ends() -> None:
    """The session of A begins first, and is extended to 13; that of B ends at 8. In one step, or in steps of one."""
    for limit in (None, 1):
        windows = windows_of(Session(gap_ns=5, longest_ns=50), slice_ns=100)
        add(windows, 0, 4, 8)
        add(windows, 3, key="B")
        closed = [change for _ in range(2) for change in windows.advance(20, limit)]
        assert [(change.key, change.end_ns) for change in closed] == [("B", 8), ("A", 13)]


@pytest.mark.parametrize(
    ("segmentation", "step_ns", "lag_ns"),
    [
        (Session(gap_ns=10, longest_ns=100_000), 1, 0),  # a session that never pauses
        (Tumbling(size_ns=10), 10, 100_000),  # as many windows as items, closed by one mark
    ],
)
def test_the_work_for_an_item_does_not_grow_with_the_items_of_its_key(
    segmentation: Segmentation, step_ns: int, lag_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often the time of an item is asked for, or sorted: on average less than ten times."""
    asked = 0

    def time_of(item: Item) -> int:
        nonlocal asked
        asked += 1
        return item.time_ns

    def counting_sorted(times_ns: Sequence[int]) -> list[int]:
        nonlocal asked
        asked += len(times_ns)
        return sorted(times_ns)

    monkeypatch.setattr(windows_module, "sorted", counting_sorted, raising=False)
    windows = EventTimeWindows[str, Item](segmentation, time_of=time_of, order=lambda item: item.name, slice_ns=10)
    for n in range(1_000):
        add(windows, n * step_ns)
        windows.advance(n * step_ns - lag_ns)
    assert sum(map(len, times(windows.close_all()))) == 1_000
    assert asked < 10_000


def test_a_mark_that_closes_much_can_be_taken_in_steps() -> None:
    """Ten windows in steps of four: 4, 4, 2, none. The last step releases."""
    windows = windows_of(Tumbling(size_ns=1))
    add(windows, *range(10))
    steps = [times(windows.advance(100, 4)) for _ in range(4)]
    assert [len(step) for step in steps] == [4, 4, 2, 0]
    assert [item for step in steps for window in step for item in window] == list(range(10))
    assert windows.held == 0


def test_after_the_end_of_the_stream_every_item_is_late() -> None:
    """Even one with a later time than any other."""
    windows = windows_of(Tumbling(size_ns=5), allowed_lateness_ns=1 << 62)
    windows.close_all()
    assert isinstance(windows.add("A", Item(1 << 62, "x")), Late)
    assert windows.mark_ns is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tumbling(size_ns=0), "Tumbling: size_ns must be > 0, got 0"),
        (lambda: Sliding(width_ns=-1), "Sliding: width_ns must be >= 0, got -1"),
        (lambda: Session(gap_ns=3, longest_ns=2), "Session: longest_ns must be >= gap_ns = 3, got 2"),
        (
            lambda: windows_of(Tumbling(size_ns=1), allowed_lateness_ns=-1, max_held=0),
            "EventTimeWindows: allowed_lateness_ns must be >= 0, got -1; EventTimeWindows: max_held must be > 0, got 0",
        ),
    ],
)
def test_bounds_that_make_no_windows_are_rejected(make: Any, message: str) -> None:
    """Every one of them is named."""
    with pytest.raises(ValueError, match="must be") as caught:
        make()
    assert str(caught.value) == message
