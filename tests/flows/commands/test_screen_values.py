"""What the values of ``screen`` may be, and what the messages say about the others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flows.commands import screen_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", timedelta(hours=24)),
        ("90m", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("1d12h", timedelta(hours=36)),
        ("1d 12h 30m", timedelta(hours=36, minutes=30)),
        ("0.5h", timedelta(minutes=30)),
        ("2 h", timedelta(hours=2)),
        ("30s", timedelta(seconds=30)),
        ("2w", timedelta(days=14)),
    ],
)
def test_a_duration_is_a_sum_of_numbers_with_units(text: str, expected: timedelta) -> None:
    """And `compact` writes it so that it can be read again."""
    assert screen_values.duration(text) == expected
    assert screen_values.duration(screen_values.compact(expected)) == expected


def test_a_distance_is_in_kilometres_or_metres() -> None:
    """The result is in metres."""
    assert [screen_values.distance_m(text) for text in ("5km", "500m", "0.25 km", "2.5km")] == [5000, 500, 250, 2500]


def test_a_start_is_a_word_or_a_time_which_is_utc_unless_it_has_an_offset() -> None:
    """Midnight of 10 March 2026 is 1,773,100,800 s after the Unix epoch."""
    midnight_ns = 1_773_100_800 * 10**9
    assert screen_values.start("now") == "now"
    assert screen_values.start("EPOCH") == "epoch"
    for text in ("2026-03-10T00:00:00Z", "2026-03-10 00:00", "2026-03-10", "2026-03-10T02:00:00+02:00"):
        assert screen_values.start(text) == midnight_ns
    assert screen_values.start("2026-03-10T00:00:00.000001Z") == midnight_ns + 1_000


def test_a_pair_is_two_objects_or_the_word_top() -> None:
    """Names keep their inner blanks."""
    assert screen_values.pair_of("25544, ISS DEB") == ("25544", "ISS DEB")
    assert screen_values.pair_of("top") is None


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (screen_values.duration, "24", ("expected a duration with its unit (w, d, h, m, s), such as 24h, 90m or 1d12h, "
         "got '24'; did you mean 24h?")),
        (screen_values.duration, "24hours", "did you mean 24h?"),
        (screen_values.duration, "1day12hrs", "did you mean 1d12h?"),
        (screen_values.duration, "24H", "did you mean 24h?"),
        (screen_values.duration, "1h2h", "got '1h2h'"),
        (screen_values.duration, "tomorrow", "got 'tomorrow'"),
        (screen_values.duration, "-5h", "got '-5h'"),
        (screen_values.duration, "0h", "expected a duration above 0 and at most 30d, got '0h'"),
        (screen_values.duration, "400d", "expected a duration above 0 and at most 30d, got '400d'"),
        (screen_values.distance_m, "5", ("expected a distance in km or m, such as 5km or 500m, got '5'; "
         "did you mean 5km?")),
        (screen_values.distance_m, "5KM", "did you mean 5km?"),
        (screen_values.distance_m, "500 metres", "did you mean 500m?"),
        (screen_values.distance_m, "5mi", "got '5mi'"),
        (screen_values.distance_m, "5000km", "expected a distance above 0 and at most 100km, got '5000km'"),
        (screen_values.start, "epcoh", "did you mean epoch?"),
        (screen_values.start, "10.03.2026", "expected now, epoch, or a time such as 2026-03-10T00:00:00Z, got '10.03.2026'"),
        (screen_values.identifiers, "25544,,5", "expected catalogue numbers or names, separated by commas"),
        (screen_values.pair_of, "25544", "expected two different objects, such as 25544,20580, or top, got '25544'"),
        (screen_values.pair_of, "5,5", "expected two different objects"),
        (screen_values.originator, "A\nB", "expected a name of at most 200 printable ASCII characters, got 'A\\nB'"),
        (screen_values.originator, " ", "expected a name of at most 200 printable ASCII characters, got ' '"),
        (screen_values.originator, "É", "got 'É'"),
        (screen_values.originator, "A" * 201, "expected a name of at most 200"),
        (screen_values.table_file, "out.parqet", ("expected a table as .csv, .parquet or .json, got 'out.parqet'; "
         "did you mean out.parquet?")),
        (screen_values.table_file, "out", "expected a table as .csv, .parquet or .json, got 'out'"),
        (screen_values.picture_file, "pair.jpeg", "expected a picture as .svg, .png or .pdf"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_with_the_nearest_right_form(
    parse: Callable[[str], Any], text: str, message: str
) -> None:
    """Where the right form is not clear, only what was expected."""
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        parse(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
