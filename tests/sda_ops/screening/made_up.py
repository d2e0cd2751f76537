"""Screenings with made-up content, for tests of what carries them."""

from __future__ import annotations

import dataclasses

import numpy as np

from sda_ops.screening.approaches import Approaches, EndedObject, Screening, SlowPairs, Statistics

STATISTICS = Statistics(
    objects=14_683,
    slices=60,
    pairs=1_000_000,
    candidates=123,
    interpolation_error_m=3.4,
    interpolation_bound_m=20.0,
    repeated=1,
    broad_phase="scipy",
    engine="heyoka",
    propagation_s=0.1,
    broad_s=1 / 3,
    narrow_s=0.2,
    refine_s=1e-3,
)
ENDED = (
    EndedObject(row=7, from_ns=1_000, until_ns=2_000, reason="decayed: mean motion < 0 – “SGP4 2”"),
    EndedObject(row=12, from_ns=-5, until_ns=2**62, reason=""),
)


def made_up_screening(
    start_ns: int = 0, end_ns: int = 1_000, *, approaches: int = 5, slow_pairs: int = 2, seed: int = 1
) -> Screening:
    """With numbers that use every bit, not a number and infinity among them."""
    rng = np.random.default_rng(seed)

    def floats(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        column = rng.normal(size=count) / 3.0
        column[:2] = [np.nan, np.inf][:count]
        return column

    return Screening(
        start_ns=start_ns,
        end_ns=end_ns,
        miss_distance_m=5_000.1,
        approaches=Approaches(
            first=rng.integers(0, 100, approaches),
            second=rng.integers(100, 200, approaches),
            tca_ns=rng.integers(start_ns, end_ns, approaches),
            miss_m=floats(approaches),
            relative_speed_m_s=floats(approaches),
        ),
        slow_pairs=SlowPairs(
            first=rng.integers(0, 100, slow_pairs),
            second=rng.integers(100, 200, slow_pairs),
            smallest_m=floats(slow_pairs),
            smallest_at_ns=rng.integers(start_ns, end_ns, slow_pairs),
            relative_speed_m_s=floats(slow_pairs),
            minima=rng.integers(0, 3, slow_pairs),
            contact_s=floats(slow_pairs),
        ),
        ended=ENDED,
        statistics=STATISTICS,
    )


def assert_same_screening(ours: Screening, theirs: Screening, *, statistics: bool = True) -> None:
    """Equal to the bit, types included; the CPU times of the statistics may differ without ``statistics``."""
    for ours_columns, theirs_columns in ((ours.approaches, theirs.approaches), (ours.slow_pairs, theirs.slow_pairs)):
        assert type(ours_columns) is type(theirs_columns)
        for column in dataclasses.fields(ours_columns):
            one, other = getattr(ours_columns, column.name), getattr(theirs_columns, column.name)
            assert (one.dtype, one.shape) == (other.dtype, other.shape), column.name
            assert one.tobytes() == other.tobytes(), column.name
    assert (ours.start_ns, ours.end_ns, ours.miss_distance_m) == (
        theirs.start_ns,
        theirs.end_ns,
        theirs.miss_distance_m,
    )
    assert ours.ended == theirs.ended
    if statistics:
        assert ours.statistics == theirs.statistics
