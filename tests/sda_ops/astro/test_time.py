"""Conversions between UTC nanoseconds and Julian dates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sgp4.api import jday

from sda_ops.astro.time import julian_date, utc_ns

YEAR_2200_NS = 7_258_118_400 * 10**9


@given(st.lists(st.integers(-YEAR_2200_NS, YEAR_2200_NS), min_size=1, max_size=5))
def test_nanoseconds_are_exact_after_a_round_trip_through_julian_dates(times_ns: list[int]) -> None:
    """This holds for every nanosecond within 230 years of 1970."""
    assert utc_ns(*julian_date(np.array(times_ns))).tolist() == times_ns


def test_a_julian_date_matches_sgp4s_jday() -> None:
    """The date is 2004-04-06 07:51:28 UTC."""
    jd, fraction = julian_date(np.array(1_081_237_888 * 10**9))
    expected = jday(2004, 4, 6, 7, 51, 28.0)
    assert float(jd) == expected[0]
    assert float(fraction) == pytest.approx(expected[1], abs=1e-16)
