"""Cross-sensor windows: the correlations of one object by several sensors become one update. Time is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.correlate.windows import CrossSensorWindows, WindowLimits
from sda_ops.records.correlation import Association, Contribution, Correlation, CrossSensorUpdate, Residuals
from tests.helpers.running import NOON_NS

TWO_SECONDS = WindowLimits(length=timedelta(seconds=2))


def correlation(
    number: int,
    source_id: str = "radar-1",
    *,
    observation: int = 1,
    association: Association = "correlated",
    ingest_timestamp: int = NOON_NS,
) -> Correlation:
    """A correlation; if it is correlated, with the object ``number``."""
    mine = association == "correlated"
    return Correlation(
        UUID(int=observation),
        source_id,
        "radar",
        NOON_NS - observation,
        ingest_timestamp,
        NOON_NS,
        association,
        catalog_number=number if mine else None,
        candidates=() if association in {"uct", "unpredicted"} else (number,),
        residuals=None if association in {"uct", "unpredicted"} else Residuals(range_m=float(observation)),
    )


def both_sensors(number: int, *, first: int = 1) -> list[Correlation]:
    """Two observations of one object, enough for an update."""
    return [
        correlation(number, "radar-1", observation=first),
        correlation(number, "optical-1", observation=first + 1),
    ]


def added(
    windows: CrossSensorWindows, correlations: Iterable[Correlation], *, now: float = 0.0, now_ns: int = NOON_NS
) -> list[CrossSensorUpdate]:
    """The updates of the windows that these correlations close."""
    return [update for each in correlations for update in windows.add(each, now=now, now_ns=now_ns)]


def test_two_sensors_that_observe_one_object_within_the_window_give_one_update() -> None:
    """It has both observations in order of arrival, their times and residuals, and the window's opening and closing times."""
    windows = CrossSensorWindows(TWO_SECONDS)
    radar = correlation(27386, "radar-1", observation=7, ingest_timestamp=NOON_NS - 50)
    telescope = correlation(27386, "optical-1", observation=5, ingest_timestamp=NOON_NS - 90)
    assert added(windows, [radar], now=10.0, now_ns=NOON_NS + 1) == []
    assert added(windows, [telescope], now=11.0, now_ns=NOON_NS + 2) == []
    (update,) = windows.due(now=12.0, now_ns=NOON_NS + 3)
    assert update == CrossSensorUpdate(
        update.update_id,
        27386,
        NOON_NS + 1,
        NOON_NS + 3,
        (
            Contribution(UUID(int=7), "radar-1", NOON_NS - 7, Residuals(range_m=7.0)),
            Contribution(UUID(int=5), "optical-1", NOON_NS - 5, Residuals(range_m=5.0)),
        ),
        NOON_NS - 50,
    )
    assert len(windows) == 0


def test_a_window_closes_at_its_time_and_not_before() -> None:
    """The time counts from the first contribution, not from the last."""
    windows = CrossSensorWindows(TWO_SECONDS)
    added(windows, both_sensors(1)[:1], now=10.0)
    added(windows, both_sensors(1)[1:], now=11.999)
    assert list(windows.due(now=11.999_999, now_ns=NOON_NS)) == []
    assert len(windows) == 1
    assert len(list(windows.due(now=12.0, now_ns=NOON_NS))) == 1


@given(st.floats(0.0, 1e7), st.floats(1e-3, 1e4))
def test_a_window_is_due_at_exactly_the_time_of_next_due(opened: float, length_s: float) -> None:
    """No rounding of seconds makes a timer for that time fire too early."""
    windows = CrossSensorWindows(WindowLimits(length=timedelta(seconds=length_s)))
    added(windows, both_sensors(1), now=opened)
    due = windows.next_due()
    assert due is not None
    assert len(list(windows.due(now=due, now_ns=NOON_NS))) == 1


def test_a_correlation_after_a_window_has_closed_opens_another() -> None:
    """There are two updates of one object, each with its own observations."""
    windows = CrossSensorWindows(TWO_SECONDS)
    updates = []
    for turn, now in enumerate((0.0, 2.0)):
        updates += list(windows.due(now=now, now_ns=NOON_NS))
        added(windows, both_sensors(1, first=10 * turn), now=now)
    updates += list(windows.close_all(now_ns=NOON_NS))
    assert [[each.observation_id.int for each in update.contributions] for update in updates] == [[0, 1], [10, 11]]


def test_windows_close_in_the_order_in_which_they_opened() -> None:
    """Windows that are not due stay open."""
    windows = CrossSensorWindows(TWO_SECONDS)
    for number, now in ((3, 0.0), (1, 0.5), (2, 1.5)):
        added(windows, both_sensors(number), now=now)
    assert windows.next_due() == 2.0
    assert [update.catalog_number for update in windows.due(now=2.5, now_ns=NOON_NS)] == [3, 1]
    assert windows.next_due() == 3.5
    assert len(windows) == 1


def test_without_a_window_nothing_is_due() -> None:
    """There is no next due time, and closing due windows gives nothing."""
    windows = CrossSensorWindows(TWO_SECONDS)
    assert windows.next_due() is None
    assert list(windows.due(now=1e9, now_ns=NOON_NS)) == []


def test_one_sensor_alone_gives_no_update() -> None:
    """The number of its observations does not matter."""
    windows = CrossSensorWindows(TWO_SECONDS)
    added(windows, [correlation(1, "radar-1", observation=number) for number in range(9)])
    assert len(windows) == 1
    assert list(windows.due(now=2.0, now_ns=NOON_NS)) == []
    assert len(windows) == 0


@pytest.mark.parametrize("association", ["ambiguous", "uct", "unpredicted"])
def test_only_correlated_observations_contribute(association: Association) -> None:
    """Any other association neither opens a window nor adds to one."""
    windows = CrossSensorWindows(TWO_SECONDS)
    added(windows, [correlation(1, "optical-1", observation=1, association=association)])
    assert len(windows) == 0
    added(windows, [correlation(1, "radar-1", observation=2)])
    added(windows, [correlation(1, "optical-1", observation=3, association=association)])
    assert list(windows.close_all(now_ns=NOON_NS)) == []


def test_a_repeated_observation_counts_once() -> None:
    """The first one counts. A repeat neither fills the window nor counts as a second sensor."""
    windows = CrossSensorWindows(WindowLimits(max_contributions=3))
    again = correlation(1, "optical-1", observation=1)
    assert added(windows, [correlation(1, "radar-1", observation=1), again, again, again]) == []
    assert list(windows.close_all(now_ns=NOON_NS)) == []
    added(windows, [correlation(1, "radar-1", observation=1), again, correlation(1, "optical-1", observation=2)])
    (update,) = windows.close_all(now_ns=NOON_NS)
    assert [(each.observation_id.int, each.source_id) for each in update.contributions] == [
        (1, "radar-1"),
        (2, "optical-1"),
    ]


def test_a_full_window_closes_at_once() -> None:
    """Its update includes the contribution that filled it. The next correlation opens another window."""
    windows = CrossSensorWindows(WindowLimits(max_contributions=3))
    sources = ["radar-1", "optical-1", "radar-1", "radar-1"]
    correlations = [correlation(1, source, observation=number) for number, source in enumerate(sources)]
    assert added(windows, correlations[:2]) == []
    (update,) = added(windows, correlations[2:3], now=1.0, now_ns=NOON_NS + 9)
    assert [each.observation_id.int for each in update.contributions] == [0, 1, 2]
    assert update.closed_timestamp == NOON_NS + 9
    assert (len(windows), windows.closed_early) == (0, 0)
    added(windows, correlations[3:], now=1.5)
    assert windows.next_due() == 3.5


def test_a_full_window_of_one_sensor_closes_without_an_update() -> None:
    """A window never stores more than ``max_contributions``."""
    windows = CrossSensorWindows(WindowLimits(max_contributions=3))
    assert added(windows, [correlation(1, observation=number) for number in range(1_000)]) == []
    assert len(windows) == 1


def test_at_max_open_the_oldest_window_closes_early_and_is_counted() -> None:
    """Its update is emitted before its time."""
    windows = CrossSensorWindows(WindowLimits(max_open=2))
    assert added(windows, [*both_sensors(1), *both_sensors(2)]) == []
    (update,) = added(windows, both_sensors(3)[:1], now=0.5, now_ns=NOON_NS + 5)
    assert (update.catalog_number, update.closed_timestamp) == (1, NOON_NS + 5)
    assert (len(windows), windows.closed_early) == (2, 1)


def test_another_contribution_to_an_open_window_closes_no_other_window() -> None:
    """``max_open`` counts windows, not contributions."""
    windows = CrossSensorWindows(WindowLimits(max_open=1))
    assert added(windows, [*both_sensors(1), *both_sensors(1, first=3)]) == []
    assert (len(windows), windows.closed_early) == (1, 0)


def test_at_the_end_every_window_closes() -> None:
    """Due or not. Windows with one sensor give no update."""
    windows = CrossSensorWindows(TWO_SECONDS)
    added(windows, [*both_sensors(1), correlation(2), *both_sensors(3)])
    assert [update.catalog_number for update in windows.close_all(now_ns=NOON_NS)] == [1, 3]
    assert (len(windows), windows.next_due()) == (0, None)


def update_id(number: int, observations: Sequence[int]) -> UUID:
    windows = CrossSensorWindows(TWO_SECONDS)
    for index, each in enumerate(observations):
        added(windows, [correlation(number, f"radar-{index}", observation=each)], now=float(index) / 10)
    (update,) = windows.close_all(now_ns=NOON_NS + len(observations))
    return update.update_id


def test_the_same_contributions_to_the_same_object_have_the_same_id() -> None:
    """The id does not depend on time, order or run; other contributions give another id."""
    assert update_id(1, [1, 2]) == UUID("2dd893cd-bfe2-59b6-81f1-22742e9cba54")  # from another run
    assert update_id(1, [2, 1]) == update_id(1, [1, 2])
    assert len({update_id(1, [1, 2]), update_id(2, [1, 2]), update_id(1, [1, 3]), update_id(1, [1, 2, 3])}) == 4


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"length": timedelta(0)}, "WindowLimits: length must be > 0, got datetime.timedelta(0)"),
        ({"max_contributions": 1}, "WindowLimits: max_contributions must be > 1, got 1"),
        (
            {"max_open": 0, "max_contributions": -1},
            "WindowLimits: max_contributions must be > 1, got -1; WindowLimits: max_open must be > 0, got 0",
        ),
    ],
)
def test_all_invalid_limits_are_reported_at_once(limits: dict[str, int], message: str) -> None:
    """The message has the expected and the actual value of each."""
    with pytest.raises(ValueError, match="WindowLimits") as caught:
        WindowLimits(**limits)  # type: ignore[arg-type] # one of them is not a number
    assert str(caught.value) == message
