"""The whole screening, against brute force and against itself, of generated orbits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest

from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.broad import BroadPhaseName
from sda_ops.screening.geometry.screen import ScreeningOptions, merged, screen, screen_window
from tests.helpers.brute_force import BruteForce, brute_force
from tests.helpers.screening_comparison import compared
from tests.sda_ops.screening.orbits import (
    DECAYING_ORBIT,
    EPOCH_NS,
    HOUR_NS,
    TWO_DOCKED,
    TWO_IN_FORMATION,
    Orbit,
    random_orbits,
    screened,
)

MISS_M = 100e3
END_NS = EPOCH_NS + HOUR_NS
PLAIN = ScreeningOptions(broad_phase="scipy", engine="sgp4")


def population() -> list[Orbit]:
    """Random orbits, two docked objects, a formation, three that decay, and one whose perigee is underground."""
    return [
        *random_orbits(150, seed=5),
        *TWO_DOCKED,
        *TWO_IN_FORMATION,
        DECAYING_ORBIT,
        replace(DECAYING_ORBIT, anomaly_deg=0.1),
        replace(DECAYING_ORBIT, anomaly_deg=0.2, inclination_deg=53.3),
        Orbit(perigee_km=-150.0, eccentricity=0.2, anomaly_deg=200.0),
    ]


pytestmark = pytest.mark.usefixtures("numba_once")

OBJECTS = screened(population())


@pytest.fixture(scope="module")
def truth() -> BruteForce:
    return brute_force(OBJECTS.satrecs, EPOCH_NS, END_NS, MISS_M)


@pytest.fixture(scope="module")
def reference() -> Screening:
    return screen_window(OBJECTS, EPOCH_NS, END_NS, MISS_M, PLAIN)


@pytest.mark.parametrize("broad_phase", ["scipy", "numba"])
@pytest.mark.parametrize("miss_m", [20e3, 100e3])
def test_a_screening_has_the_events_of_brute_force(
    truth: BruteForce, broad_phase: BroadPhaseName, miss_m: float
) -> None:
    if broad_phase == "numba":
        pytest.importorskip("numba")
    screening = screen(
        OBJECTS, EPOCH_NS, timedelta(hours=1), miss_m, options=ScreeningOptions(broad_phase=broad_phase, engine="sgp4")
    )
    comparison = compared(truth, screening, OBJECTS.satrecs)
    assert comparison.faults == ""
    assert comparison.expected > 0
    assert comparison.tca_s < 1e-3
    assert comparison.range_m < 1e-3


@pytest.mark.parametrize(
    "cuts_ns",
    [
        [1],
        [17 * 60 * 10**9],
        [1_234_567_890_123, 1_235_567_890_123],
        [600 * 10**9, 600 * 10**9, 3000 * 10**9 + 7],
    ],
    ids=["one nanosecond", "at a slice", "one second", "an empty window"],
)
def test_windows_that_follow_each_other_have_together_the_list_of_the_whole(
    reference: Screening, cuts_ns: Sequence[int]
) -> None:
    edges_ns = [EPOCH_NS, *(EPOCH_NS + cut_ns for cut_ns in cuts_ns), END_NS]
    whole = merged([screen_window(OBJECTS, *window, MISS_M, PLAIN) for window in pairwise(edges_ns)])
    assert_same(whole, reference)


def test_a_window_that_begins_at_a_time_of_closest_approach_has_it(reference: Screening) -> None:
    for tca_ns in reference.approaches.tca_ns[:3].tolist():
        before = screen_window(OBJECTS, EPOCH_NS, tca_ns, MISS_M, PLAIN)
        behind = screen_window(OBJECTS, tca_ns, END_NS, MISS_M, PLAIN)
        assert tca_ns not in before.approaches.tca_ns
        assert tca_ns in behind.approaches.tca_ns
        assert_same(merged([before, behind]), reference)


@pytest.mark.parametrize("slice_s", [20.0, 50.0, 120.0])
def test_the_length_of_a_slice_does_not_change_the_list(reference: Screening, slice_s: float) -> None:
    assert_same(screen_window(OBJECTS, EPOCH_NS, END_NS, MISS_M, replace(PLAIN, slice_s=slice_s)), reference)


def test_docked_objects_are_one_slow_pair_that_touches_all_the_time(reference: Screening) -> None:
    pairs = reference.slow_pairs
    (docked,) = np.flatnonzero((pairs.first == 150) & (pairs.second == 151)).tolist()
    assert pairs.smallest_m[docked] == 0.0
    assert pairs.relative_speed_m_s[docked] == 0.0
    assert pairs.contact_s[docked] == 3600.0
    assert pairs.smallest_at_ns[docked] == EPOCH_NS
    assert pairs.minima[docked] == 0


def test_objects_without_a_position_are_reported_with_the_time_and_the_reason(reference: Screening) -> None:
    rows = [each.row for each in reference.ended]
    assert sorted(set(rows)) == [154, 155, 156, 157]
    assert {each.reason for each in reference.ended} == {
        "SGP4 error 6: it has decayed, its position is below the Earth's surface"
    }
    assert all(EPOCH_NS <= each.from_ns < each.until_ns <= END_NS for each in reference.ended)


def test_an_approach_in_the_last_seconds_of_a_life_under_strong_drag_is_found() -> None:
    """Three seconds before SGP4 fails: drag of some km/s2, in a slice of which only a part has a position."""
    decaying = Orbit(
        perigee_km=125.7926023313884,
        eccentricity=0.01,
        inclination_deg=18.329513859453677,
        node_deg=270.0043851064952,
        argument_deg=161.70418892317215,
        anomaly_deg=53.08680227835524,
        bstar=0.10638198541209797,
    )
    other = Orbit(
        perigee_km=90.92756355558959,
        inclination_deg=27.276858627526913,
        node_deg=174.82897568857038,
        anomaly_deg=305.30540804344764,
        bstar=0.0,
    )
    screening = screen_window(screened([decaying, other]), EPOCH_NS, EPOCH_NS + HOUR_NS, 5e3, PLAIN)
    # By brute force: sgp4's positions at every second, and a polynomial through five of them.
    assert screening.approaches.miss_m.tolist() == pytest.approx([4980.1200], abs=1e-3)
    assert screening.approaches.tca_ns.tolist() == pytest.approx([1_773_101_094_395_049_220], abs=100_000)


def test_knots_that_are_too_long_are_shortened_and_reported(reference: Screening) -> None:
    screening = screen_window(OBJECTS, EPOCH_NS, END_NS, MISS_M, replace(PLAIN, knot_s=900.0))
    assert screening.statistics.repeated > 100
    assert screening.statistics.interpolation_error_m <= screening.statistics.interpolation_bound_m
    assert_same(screening, reference)


def test_progress_reaches_one_and_an_exception_in_it_ends_the_screening() -> None:
    shares: list[float] = []

    def stop_at_half(share: float) -> None:
        shares.append(share)
        if share > 0.5:
            raise KeyboardInterrupt

    screen(OBJECTS, EPOCH_NS, timedelta(hours=1), MISS_M, options=PLAIN, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    shares.clear()
    with pytest.raises(KeyboardInterrupt):
        screen(OBJECTS, EPOCH_NS, timedelta(hours=1), MISS_M, options=PLAIN, on_progress=stop_at_half)
    assert len(shares) == 2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_objects_are_screened(count: int) -> None:
    screening = screen_window(screened(population()[:count]), EPOCH_NS, END_NS, MISS_M, PLAIN)
    assert len(screening.approaches) == len(screening.slow_pairs) == 0
    assert screening.statistics.objects == count


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "miss_m", "message"),
    [
        (EPOCH_NS, EPOCH_NS - 1, MISS_M, "the window must not end before it starts"),
        (EPOCH_NS, END_NS, 0.0, "miss_distance_m must be positive and finite, got 0"),
        (EPOCH_NS, END_NS, float("nan"), "miss_distance_m must be positive and finite, got nan"),
    ],
)
def test_a_wrong_argument_is_an_error_with_its_name(start_ns: int, end_ns: int, miss_m: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        screen_window(OBJECTS, start_ns, end_ns, miss_m, PLAIN)


def test_wrong_options_are_one_error_that_names_each() -> None:
    with pytest.raises(ValueError, match="ScreeningOptions") as raised:
        ScreeningOptions(slice_s=0.0, knot_s=float("nan"), broad_phase="scypi")  # type: ignore[arg-type] # the mistake
    assert str(raised.value) == (
        "ScreeningOptions: slice_s must be 1 to 120, got 0; knot_s must be 1 to 3600, got nan; "
        "broad_phase must be one of auto, numba, scipy, got 'scypi'"
    )


def test_windows_that_do_not_follow_each_other_are_not_merged() -> None:
    one = screen_window(OBJECTS, EPOCH_NS, EPOCH_NS + 10**9, MISS_M, PLAIN)
    with pytest.raises(ValueError, match="expected consecutive windows"):
        merged([one, one])


def assert_same(one: Screening, other: Screening) -> None:
    """The same events, slow pairs and ended objects."""
    assert one.approaches.first.tolist() == other.approaches.first.tolist()
    assert one.approaches.second.tolist() == other.approaches.second.tolist()
    assert np.abs(one.approaches.tca_ns - other.approaches.tca_ns).max() < 1_000_000
    assert one.approaches.miss_m == pytest.approx(other.approaches.miss_m, abs=1e-4)
    assert one.slow_pairs.first.tolist() == other.slow_pairs.first.tolist()
    assert one.slow_pairs.second.tolist() == other.slow_pairs.second.tolist()
    assert one.slow_pairs.minima.tolist() == other.slow_pairs.minima.tolist()
    assert one.slow_pairs.smallest_m == pytest.approx(other.slow_pairs.smallest_m, abs=0.1)
    assert one.slow_pairs.contact_s == pytest.approx(other.slow_pairs.contact_s, abs=1e-2)
    assert [each.row for each in one.ended] == [each.row for each in other.ended]
    for ours, theirs in zip(one.ended, other.ended, strict=True):
        assert abs(ours.from_ns - theirs.from_ns) < 2_000_000
        assert abs(ours.until_ns - theirs.until_ns) < 2_000_000
