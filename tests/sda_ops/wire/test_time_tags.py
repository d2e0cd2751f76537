"""The time tags of CCSDS messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.wire.time_tags import tag_of_utc_ns, utc_ns_of_tag

_YEAR_1678_NS, _YEAR_2262_NS = -9_214_560_000_000_000_000, 9_214_646_400_000_000_000


@given(timestamp_ns=st.integers(_YEAR_1678_NS, _YEAR_2262_NS - 1))
def test_a_tag_is_read_as_the_time_that_it_was_written_for(timestamp_ns: int) -> None:
    """To the nanosecond, over all whole years that 64 bits of nanoseconds reach."""
    assert utc_ns_of_tag(tag_of_utc_ns(timestamp_ns)) == timestamp_ns


@pytest.mark.parametrize(
    ("timestamp_ns", "tag"),
    [
        (1_473_150_428_660_000_000, "2016-09-06T08:27:08.660"),
        (1_473_150_428_000_000_001, "2016-09-06T08:27:08.000000001"),
        (-1, "1969-12-31T23:59:59.999999999"),
    ],
)
def test_a_tag_has_three_digits_of_a_second_or_as_many_as_the_time_has(timestamp_ns: int, tag: str) -> None:
    """Milliseconds are what other readers expect."""
    assert tag_of_utc_ns(timestamp_ns) == tag


@pytest.mark.parametrize("timestamp_ns", [_YEAR_1678_NS - 1, _YEAR_2262_NS])
def test_a_time_that_no_reader_accepts_is_not_written(timestamp_ns: int) -> None:
    """The reader's years are the writer's."""
    with pytest.raises(ValueError, match="expected a year from 1678 to 2261, got"):
        tag_of_utc_ns(timestamp_ns)
