"""What the values of ``screen`` may be, and what the messages say about the others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flows.commands.screen import values


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
    assert values.duration(text) == expected
    assert values.duration(values.compact(expected)) == expected


def test_a_distance_is_in_kilometres_or_metres() -> None:
    """The result is in metres."""
    assert [values.distance_m(text) for text in ("5km", "500m", "0.25 km", "2.5km")] == [5000, 500, 250, 2500]


def test_a_start_is_a_word_or_a_time_which_is_utc_unless_it_has_an_offset() -> None:
    """Midnight of 10 March 2026 is 1,773,100,800 s after the Unix epoch."""
    midnight_ns = 1_773_100_800 * 10**9
    assert values.start("now") == "now"
    assert values.start("EPOCH") == "epoch"
    for text in ("2026-03-10T00:00:00Z", "2026-03-10 00:00", "2026-03-10", "2026-03-10T02:00:00+02:00"):
        assert values.start(text) == midnight_ns
    assert values.start("2026-03-10T00:00:00.000001Z") == midnight_ns + 1_000


def test_a_pair_is_two_objects_or_the_word_top() -> None:
    """Names keep their inner blanks."""
    assert values.pair_of("25544, ISS DEB") == ("25544", "ISS DEB")
    assert values.pair_of("top") is None


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (values.duration, "24", ("expected a duration with its unit (w, d, h, m, s), such as 24h, 90m or 1d12h, "
         "got '24'; did you mean 24h?")),
        (values.duration, "24hours", "did you mean 24h?"),
        (values.duration, "1day12hrs", "did you mean 1d12h?"),
        (values.duration, "24H", "did you mean 24h?"),
        (values.duration, "1h2h", "got '1h2h'"),
        (values.duration, "tomorrow", "got 'tomorrow'"),
        (values.duration, "-5h", "got '-5h'"),
        (values.duration, "0h", "expected a duration above 0 and at most 30d, got '0h'"),
        (values.duration, "400d", "expected a duration above 0 and at most 30d, got '400d'"),
        (values.distance_m, "5", ("expected a distance in km or m, such as 5km or 500m, got '5'; "
         "did you mean 5km?")),
        (values.distance_m, "5KM", "did you mean 5km?"),
        (values.distance_m, "500 metres", "did you mean 500m?"),
        (values.distance_m, "5mi", "got '5mi'"),
        (values.distance_m, "5000km", "expected a distance above 0 and at most 100km, got '5000km'"),
        (values.start, "epcoh", "did you mean epoch?"),
        (values.start, "10.03.2026", "expected now, epoch, or a time such as 2026-03-10T00:00:00Z, got '10.03.2026'"),
        (values.identifiers, "25544,,5", "expected catalogue numbers or names, separated by commas"),
        (values.pair_of, "25544", "expected two different objects, such as 25544,20580, or top, got '25544'"),
        (values.pair_of, "5,5", "expected two different objects"),
        (values.originator, "A\nB", "expected a name of at most 200 printable ASCII characters, got 'A\\nB'"),
        (values.originator, " ", "expected a name of at most 200 printable ASCII characters, got ' '"),
        (values.originator, "É", "got 'É'"),
        (values.originator, "A" * 201, "expected a name of at most 200"),
        (values.table_file, "out.parqet", ("expected a table as .csv, .parquet or .json, got 'out.parqet'; "
         "did you mean out.parquet?")),
        (values.table_file, "out", "expected a table as .csv, .parquet or .json, got 'out'"),
        (values.picture_file, "pair.jpeg", "expected a picture as .svg, .png or .pdf"),
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
