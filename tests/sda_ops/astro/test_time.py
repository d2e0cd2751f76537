from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sgp4.api import jday

from sda_ops.astro.time import julian_date, utc_ns

YEAR_2200_NS = 7_258_118_400 * 10**9


@given(st.lists(st.integers(-YEAR_2200_NS, YEAR_2200_NS), min_size=1, max_size=5))
def test_nanoseconds_survive_the_way_to_julian_dates_and_back(times_ns: list[int]) -> None:
    """Every nanosecond within two centuries of 1970 comes back exactly."""
    assert utc_ns(*julian_date(np.array(times_ns))).tolist() == times_ns


def test_a_date_agrees_with_sgp4s_own_calendar() -> None:
    """2004-04-06 07:51:28 UTC has the Julian date that sgp4's jday gives."""
    jd, fraction = julian_date(np.array(1_081_237_888 * 10**9))
    expected = jday(2004, 4, 6, 7, 51, 28.0)
    assert float(jd) == expected[0]
    assert float(fraction) == pytest.approx(expected[1], abs=1e-16)
