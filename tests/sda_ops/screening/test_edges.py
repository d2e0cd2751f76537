"""Approaches exactly at the miss distance and at the edges of a window: each is in one list, and in one only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.screen import ScreeningOptions, screen, screen_window
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.mixed_objects import START_NS, mixed, needs_real_catalog, rows_of
from tests.helpers.sizes import examples

pytestmark = needs_real_catalog

OPTIONS = ScreeningOptions(broad_phase="scipy", engine="sgp4")
NS_PER_MINUTE = 60_000_000_000
Pair = tuple[ScreenedObjects, int, float]


@cache
def pairs() -> Sequence[Pair]:
    """Pairs of objects with the time and the distance of one approach."""
    objects = mixed(450, 1)
    approaches = screen(objects, START_NS, timedelta(hours=1), 50e3, options=OPTIONS).approaches
    assert len(approaches) > 20
    return [
        (rows_of(objects, [first, second]), tca_ns, miss_m)
        for first, second, tca_ns, miss_m in zip(
            approaches.first.tolist(),
            approaches.second.tolist(),
            approaches.tca_ns.tolist(),
            approaches.miss_m.tolist(),
            strict=True,
        )
        if abs(tca_ns - START_NS) > 2 * NS_PER_MINUTE
    ]


def windowed(pair: ScreenedObjects, start_ns: int, end_ns: int, miss_m: float) -> Screening:
    return screen_window(pair, start_ns, end_ns, miss_m, OPTIONS)


@settings(max_examples=examples(48))
@given(index=st.integers(0, 10_000), beyond_m=st.floats(1e-4, 10.0))
def test_a_grazing_approach_is_listed_from_its_own_distance_on(index: int, beyond_m: float) -> None:
    pair, tca_ns, miss_m = pairs()[index % len(pairs())]
    window = (tca_ns - NS_PER_MINUTE, tca_ns + 2 * NS_PER_MINUTE)
    (found_ns,) = windowed(pair, *window, miss_m + beyond_m).approaches.tca_ns.tolist()
    assert abs(found_ns - tca_ns) <= 1_000_000
    assert len(windowed(pair, *window, max(1.0, miss_m - beyond_m)).approaches) == 0 or miss_m < 1.0


@settings(max_examples=examples(48))
@given(index=st.integers(0, 10_000), offset_ns=st.sampled_from([-1_000_000, -1_000, -1, 0, 1, 1_000, 1_000_000]))
def test_an_approach_at_the_cut_between_two_windows_is_in_one_of_them(index: int, offset_ns: int) -> None:
    pair, tca_ns, miss_m = pairs()[index % len(pairs())]
    cut_ns = tca_ns + offset_ns
    before = windowed(pair, cut_ns - NS_PER_MINUTE, cut_ns, miss_m + 1.0).approaches.tca_ns
    after = windowed(pair, cut_ns, cut_ns + NS_PER_MINUTE, miss_m + 1.0).approaches.tca_ns
    assert len(before) + len(after) == 1
    found_ns = int(np.concatenate((before, after))[0])
    assert abs(found_ns - tca_ns) <= 1_000
    assert (found_ns < cut_ns) == bool(len(before))


@given(
    index=st.integers(0, 10_000), offset_ns=st.integers(-NS_PER_MINUTE, NS_PER_MINUTE), length_s=st.floats(1e-3, 200.0)
)
def test_a_window_of_any_length_has_an_approach_if_it_contains_its_time(
    index: int, offset_ns: int, length_s: float
) -> None:
    pair, tca_ns, miss_m = pairs()[index % len(pairs())]
    start_ns = tca_ns + offset_ns
    end_ns = start_ns + round(length_s * 1e9)
    found = windowed(pair, start_ns, end_ns, miss_m + 1.0).approaches
    if start_ns + 1_000 <= tca_ns < end_ns - 1_000:
        assert len(found) == 1
    elif not start_ns - 1_000 <= tca_ns < end_ns + 1_000:
        assert len(found) == 0
