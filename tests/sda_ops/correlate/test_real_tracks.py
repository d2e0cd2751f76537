"""Real radar and optical observations are correlated with their object among 14,683 others (`tests.scenes.tracks`)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sda_ops.astro.propagation import Propagator
from sda_ops.catalog import ElementColumns
from sda_ops.records.correlation import Correlation
from tests.scenes import tracks
from tests.scenes.tracks import ENVISAT, NOSS_3_5_A, RangeTable, Track, nights_of

pytestmark = pytest.mark.skipif(
    bool(tracks.ABSENT), reason=f"real data absent: {', '.join(tracks.ABSENT)} (set SDA_DATA_DIR)"
)

TWENTY_METRES_KM = 0.020
ONE_METRE_PER_SECOND_KM_S = 0.001
TWO_AND_A_HALF_METRES_PER_SECOND_KM_S = 0.0025


@pytest.fixture(scope="module")
def envisat() -> tuple[Track, list[Correlation]]:
    """The radar track and its correlations."""
    track = tracks.envisat()
    return track, asyncio.run(track.correlated())


@pytest.fixture(scope="module")
def noss() -> tuple[Track, list[Correlation]]:
    """The optical positions and their correlations."""
    track = tracks.noss()
    return track, asyncio.run(track.correlated())


def test_every_point_of_the_real_radar_track_is_correlated_with_envisat(
    envisat: tuple[Track, list[Correlation]],
) -> None:
    """All 913 of EISCAT's ranges and range-rates are correlated with 27386, and there is no other candidate."""
    track, found = envisat
    assert Counter((each.association, each.candidates) for each in found) == {("correlated", (ENVISAT,)): 913}
    assert {each.catalog_number for each in found} == {ENVISAT}
    assert [each.observation_id for each in found] == [each.observation_id for each in track.observations]


def test_a_replay_uses_the_element_set_that_was_the_nearest_then(envisat: tuple[Track, list[Correlation]]) -> None:
    """With all five sets of those days in the catalogue, and one 40 days later: the one that is 5.5 hours old, as with it alone."""
    track, found = envisat
    sets = ElementColumns.of(tracks.envisat_sets())
    days = np.array([0.0] * (len(sets) - 1) + [40.0])
    later = replace(sets, jdsatepoch=sets.jdsatepoch + days, sgp4_epoch_days=sets.sgp4_epoch_days + days)
    for history in (sets, later):
        again = asyncio.run(replace(track, object=history).correlated())
        assert {each.reference_orbit_id for each in again} == {found[0].reference_orbit_id}
        assert [(each.association, each.residuals) for each in again] == [
            (each.association, each.residuals) for each in found
        ]


def test_residuals_of_the_radar_track_match_its_documentation(envisat: tuple[Track, list[Correlation]]) -> None:
    """data/README.md: about -0.05 ± 0.15 km in range, ± 0.022 km/s in range-rate."""
    table = RangeTable.of(envisat[1])
    print(f"\nEISCAT UHF of ENVISAT, 2016-09-06, {table}")
    assert table.points == 913
    assert abs(table.mean_km - -0.05) < TWENTY_METRES_KM
    assert abs(table.scatter_km - 0.15) < TWENTY_METRES_KM
    assert abs(table.mean_km_s) < TWO_AND_A_HALF_METRES_PER_SECOND_KM_S
    assert abs(table.scatter_km_s - 0.022) < ONE_METRE_PER_SECOND_KM_S


@pytest.mark.parametrize("make", [tracks.envisat, tracks.noss])
async def test_a_real_track_of_an_object_missing_from_the_catalogue_is_uncorrelated(make: Callable[[], Track]) -> None:
    """No observation is associated with one of the 14,683 others, nearly all of which have a state at that time."""
    track = make()
    there = Propagator(track.clutter.satrecs(), engine="sgp4").propagate(
        np.array([each.sensor_timestamp for each in track.observations[::28]])
    )
    assert len(track.clutter) == 14_683
    assert np.count_nonzero(there.usable, axis=0).min() > 14_500
    assert Counter(each.association for each in await track.correlated(catalogued=False)) == {
        "uct": len(track.observations)
    }


def test_every_real_optical_position_is_correlated_with_noss_3_5_a(noss: tuple[Track, list[Correlation]]) -> None:
    """All 29 positions of seven nights, 5 to 18 days after the element set's epoch, are correlated with 37386."""
    found = noss[1]
    assert Counter((each.association, each.catalog_number) for each in found) == {("correlated", NOSS_3_5_A): 29}


def test_separations_are_a_hundredth_of_a_degree_on_the_first_night(
    noss: tuple[Track, list[Correlation]],
) -> None:
    """They grow with the age of the element set to 0.7 degrees on the last night, two weeks later."""
    track, found = noss
    nights = nights_of(found, track.object.epoch_ns)
    print("\nNOSS 3-5 (A), degrees from the prediction", *nights, sep="\n")
    assert [len(night.separations_deg) for night in nights] == [4, 7, 3, 5, 3, 5, 2]
    assert [round(night.after_epoch_days) for night in nights] == [5, 11, 13, 14, 16, 17, 18]
    assert 0.008 < np.mean(nights[0].separations_deg) < 0.013
    assert max(nights[0].separations_deg) < 0.02
    assert 0.6 < np.mean(nights[-1].separations_deg) < 0.8
