"""Passages through boxes: against brute force that tests the box at every second, and closer where that is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from sgp4.api import Satrec, SatrecArray

from sda_ops.astro.time import NS_PER_S, julian_date
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.volumes.assets import Asset
from sda_ops.screening.volumes.passages import AssetScreening, Passages, merged, screen_assets
from sda_ops.screening.volumes.volumes import ScreeningVolume
from tests.helpers.mixed_objects import START_NS, mixed, needs_real_catalog, real_objects, rows_of
from tests.helpers.sizes import small_and_long
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

Floats = npt.NDArray[np.float64]

DOCKED, FORMATION, LEADER, DECAYING, MOLNIYA = 200, 202, 204, 206, 208
DIFFERENCE_NS = NS_PER_S // 4


def population() -> list[Orbit]:
    # On one orbit, 0.2° apart: 24 km behind each other for the whole time, a hundred metres above the chord.
    leader = Orbit(perigee_km=550.0, inclination_deg=53.0, node_deg=40.0)
    return [
        *random_orbits(200, seed=8),
        *TWO_DOCKED,
        *TWO_IN_FORMATION,
        leader,
        replace(leader, anomaly_deg=0.2),
        DECAYING_ORBIT,
        replace(DECAYING_ORBIT, anomaly_deg=0.1, inclination_deg=53.3),
        Orbit(perigee_km=550.0, eccentricity=0.7, inclination_deg=63.4, argument_deg=270.0),
        # Radially 300 m apart on one orbit: it drifts through the box's face slowly.
        replace(leader, perigee_km=550.35, anomaly_deg=0.1),
    ]


PREPARED = PreparedObjects(screened(population()), engine="sgp4")
END_NS = EPOCH_NS + 3 * HOUR_NS // 2
FLAT = ScreeningVolume(radial_m=400.0, in_track_m=44_000.0, cross_track_m=51_000.0)
LARGE = ScreeningVolume(radial_m=60_000.0, in_track_m=300_000.0, cross_track_m=200_000.0)
TALL = ScreeningVolume(radial_m=150_000.0, in_track_m=40_000.0, cross_track_m=400_000.0)
ASSETS = (
    *(Asset(row=row, volume=FLAT) for row in (DOCKED, FORMATION, LEADER, LEADER + 1)),
    *(Asset(row=row, volume=LARGE) for row in (0, 1, 2, 3, 4, 8, 9, 12, 16, DECAYING)),
    *(Asset(row=row, volume=TALL) for row in (20, 5, MOLNIYA, 7)),
)


def positions_m(satrecs: Sequence[Satrec], timestamp_ns: npt.NDArray[np.int64]) -> Floats:
    """``(objects, times, 3)``; NaN where SGP4 has an error."""
    error, r_km, _ = SatrecArray(list(satrecs)).sgp4(*julian_date(timestamp_ns))
    r_km[error != 0] = np.nan
    return np.asarray(1e3 * r_km)


def in_axes_m(satrecs: Sequence[Satrec], asset: int, timestamp_ns: npt.NDArray[np.int64], relative_m: Floats) -> Floats:
    """``relative_m`` ``(…, times, 3)`` in the asset's radial, in-track and cross-track axes, from positions only."""
    before, r_m, after = (
        positions_m([satrecs[asset]], timestamp_ns + offset_ns)[0] for offset_ns in (-DIFFERENCE_NS, 0, DIFFERENCE_NS)
    )
    normal = np.cross(r_m, after - before)
    radial = r_m / np.linalg.norm(r_m, axis=1, keepdims=True)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    axes = np.stack((radial, np.cross(normal, radial), normal), axis=1)
    return np.asarray(np.einsum("tij,...tj->...ti", axes, relative_m))


def reported(passages: Passages, asset: int, other: int, timestamp_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    inside = np.zeros(len(timestamp_ns), dtype=np.bool_)
    for row in np.flatnonzero((passages.asset == asset) & (passages.other == other)).tolist():
        inside |= (timestamp_ns >= passages.entry_ns[row]) & (timestamp_ns <= passages.exit_ns[row])
    return inside


def assert_as_brute_force(
    prepared: PreparedObjects, assets: Sequence[Asset], start_ns: int, end_ns: int, passages: Passages
) -> int:
    """At every second, and every hundredth of a second where a box is near, an object is in a box as reported.

    Returns how many passages there are that no whole second sees.
    """
    satrecs = prepared.objects.satrecs
    seconds_ns = np.arange(start_ns, end_ns, NS_PER_S, dtype=np.int64)
    r_m = positions_m(satrecs, seconds_ns)
    short = 0
    for asset in assets:
        half_axes_m = np.array([asset.volume.radial_m, asset.volume.in_track_m, asset.volume.cross_track_m])
        relative_m = r_m - r_m[asset.row]
        # 10 km: no object moves by more relative to another in half a second.
        reach_m = asset.volume.half_diagonal_m + 10e3
        close = np.flatnonzero(np.nanmin(np.einsum("nti,nti->nt", relative_m, relative_m), axis=1) <= reach_m**2)
        x_m = in_axes_m(satrecs, asset.row, seconds_ns, relative_m[close])
        inside = np.all(np.abs(x_m) <= half_axes_m, axis=2)
        # In half a second a coordinate changes by half the greater one of its two neighbouring steps, and 5 m of curvature.
        steps_m = np.abs(np.diff(x_m, axis=1, append=x_m[:, -1:]))
        steps_m = np.fmax(steps_m, np.roll(steps_m, 1, axis=1))
        near = np.all(np.abs(x_m) <= half_axes_m + 0.5 * steps_m + 20.0, axis=2)
        for place, other in enumerate(close.tolist()):
            if other == asset.row:
                continue
            got = reported(passages, asset.row, other, seconds_ns)
            here = inside[place]
            np.testing.assert_array_equal(got, here, err_msg=f"asset {asset.row}, object {other}")
            crossing = near[place] & ~(here & np.roll(here, 1) & np.roll(here, -1))
            fine_ns = (seconds_ns[crossing, np.newaxis] + np.arange(-50, 50) * (NS_PER_S // 100)).ravel()
            fine_ns = fine_ns[(fine_ns >= start_ns) & (fine_ns < end_ns)]
            if not fine_ns.size:
                continue
            both_m = positions_m([satrecs[asset.row], satrecs[other]], fine_ns)
            fine_m = in_axes_m(satrecs, asset.row, fine_ns, both_m[1] - both_m[0])
            at_a_face = np.any(np.abs(np.abs(fine_m) - half_axes_m) < 0.1, axis=1)
            fine_inside = np.all(np.abs(fine_m) <= half_axes_m, axis=1)
            got = reported(passages, asset.row, other, fine_ns)
            assert not np.any((got != fine_inside) & ~at_a_face), f"asset {asset.row}, object {other}"
        elsewhere = np.setdiff1d(passages.other[passages.asset == asset.row], close)
        assert not elsewhere.size
        for row in np.flatnonzero(passages.asset == asset.row).tolist():
            entry_ns, exit_ns = passages.entry_ns[row], passages.exit_ns[row]
            short += int(not np.any((seconds_ns >= entry_ns) & (seconds_ns <= exit_ns)))
    return short


@pytest.fixture(scope="module")
def held() -> Ephemeris:
    return Ephemeris(PREPARED, EPOCH_NS, END_NS)


@pytest.fixture(scope="module")
def screening(held: Ephemeris) -> AssetScreening:
    return screen_assets(held, ASSETS, EPOCH_NS, END_NS)


def test_every_passage_through_a_box_is_found_and_none_is_invented(screening: AssetScreening) -> None:
    passages = screening.passages
    assert len(passages) > 40
    assert len(np.unique(passages.asset)) >= 10
    assert_as_brute_force(PREPARED, ASSETS, EPOCH_NS, END_NS, passages)


def test_entry_and_exit_are_the_times_at_which_the_object_is_on_the_box(screening: AssetScreening) -> None:
    """A microsecond inside of each time the object is in the box, and two microseconds outside of it, it is not."""
    passages = screening.passages
    satrecs = PREPARED.objects.satrecs
    half_axes_m = {
        asset.row: (asset.volume.radial_m, asset.volume.in_track_m, asset.volume.cross_track_m) for asset in ASSETS
    }
    ended = {each.row for each in screening.ended}
    checked = 0
    for row in range(len(passages)):
        asset, other = int(passages.asset[row]), int(passages.other[row])
        for edge_ns, outward in ((int(passages.entry_ns[row]), -1), (int(passages.exit_ns[row]), 1)):
            if edge_ns in (EPOCH_NS, END_NS) or {asset, other} & ended:
                continue
            at_ns = np.array([edge_ns - outward * 2_000, edge_ns + outward * 2_000])
            both_m = positions_m([satrecs[asset], satrecs[other]], at_ns)
            beyond_m = np.abs(in_axes_m(satrecs, asset, at_ns, both_m[1] - both_m[0])) - half_axes_m[asset]
            # 2 mm: positions that are moved by less are not resolved.
            assert beyond_m[0].max() <= 2e-3
            assert beyond_m[1].max() >= -2e-3
            checked += 1
    assert checked > 40


def test_the_closest_approach_is_a_minimum_also_beyond_the_box_and_the_window(screening: AssetScreening) -> None:
    passages = screening.passages
    satrecs = PREPARED.objects.satrecs
    beyond = 0
    for row in range(len(passages)):
        asset, other, tca_ns = int(passages.asset[row]), int(passages.other[row]), int(passages.tca_ns[row])
        at_ns = tca_ns + np.array([-NS_PER_S, 0, NS_PER_S])
        both_m = positions_m([satrecs[asset], satrecs[other]], at_ns)
        relative_m = both_m[1] - both_m[0]
        distance_m = np.linalg.norm(relative_m, axis=1)
        assert passages.miss_m[row] == pytest.approx(distance_m[1], abs=1e-3)
        position_m = in_axes_m(satrecs, asset, at_ns, relative_m)[1]
        np.testing.assert_allclose(passages.relative_position_m[row], position_m, rtol=0.0, atol=0.1)
        assert np.linalg.norm(passages.relative_velocity_m_s[row]) == pytest.approx(passages.relative_speed_m_s[row])
        speed_m_s = np.linalg.norm(relative_m[2] - relative_m[0]) / 2.0
        assert passages.relative_speed_m_s[row] == pytest.approx(speed_m_s, rel=1e-4, abs=1e-3)
        inside = passages.entry_ns[row] < tca_ns < passages.exit_ns[row]
        at_an_edge = tca_ns in (passages.entry_ns[row], passages.exit_ns[row])
        beyond += int(not inside and not at_an_edge)
        if not at_an_edge:
            assert distance_m[1] <= distance_m.min() + 1e-3
    assert beyond > 5


def test_an_object_on_the_same_orbit_is_in_the_box_for_the_whole_window(screening: AssetScreening) -> None:
    """24 km ahead on the same orbit: below the horizontal plane by 24² / (2 · 6,928) km = 42 m, so within ± 400 m."""
    passages = screening.passages
    (row,) = np.flatnonzero((passages.asset == LEADER) & (passages.other == LEADER + 1)).tolist()
    assert (passages.entry_ns[row], passages.exit_ns[row]) == (EPOCH_NS, END_NS)
    radial_m, in_track_m, cross_track_m = passages.relative_position_m[row].tolist()
    assert in_track_m == pytest.approx(np.deg2rad(0.2) * 6_928e3, rel=0.02)
    assert radial_m == pytest.approx(-(in_track_m**2) / (2 * 6_928e3), abs=40.0)
    assert abs(cross_track_m) < 100.0
    (back,) = np.flatnonzero((passages.asset == LEADER + 1) & (passages.other == LEADER)).tolist()
    assert passages.relative_position_m[back][1] == pytest.approx(-in_track_m, rel=1e-3)


def test_docked_objects_are_in_each_other_s_boxes_at_distance_zero(screening: AssetScreening) -> None:
    passages = screening.passages
    (row,) = np.flatnonzero((passages.asset == DOCKED) & (passages.other == DOCKED + 1)).tolist()
    assert (passages.entry_ns[row], passages.exit_ns[row]) == (EPOCH_NS, END_NS)
    assert passages.miss_m[row] == 0.0
    assert passages.relative_speed_m_s[row] == 0.0


def test_passages_across_the_edges_of_windows_are_one(held: Ephemeris, screening: AssetScreening) -> None:
    edges_ns = [EPOCH_NS, EPOCH_NS + 1_234_567_891, EPOCH_NS + HOUR_NS, EPOCH_NS + HOUR_NS + 30 * NS_PER_S, END_NS]
    parts = [screen_assets(held, ASSETS, a, b) for a, b in pairwise(edges_ns)]
    whole = merged(parts)
    assert (whole.start_ns, whole.end_ns) == (EPOCH_NS, END_NS)
    assert whole.ended == screening.ended
    assert len(whole.passages) == len(screening.passages)
    for each in fields(Passages):
        tolerance = 2_000 if each.name in ("entry_ns", "exit_ns") else 2e9 if each.name == "tca_ns" else 1.0
        got, expected = getattr(whole.passages, each.name), getattr(screening.passages, each.name)
        np.testing.assert_allclose(got, expected, rtol=0.0, atol=tolerance, err_msg=each.name)
    with pytest.raises(ValueError, match="expected consecutive windows"):
        merged([parts[0], parts[2]])


def test_the_closest_approaches_are_in_the_order_of_the_passages(screening: AssetScreening) -> None:
    passages, approaches = screening.passages, screening.passages.approaches()
    np.testing.assert_array_equal(approaches.first, np.minimum(passages.asset, passages.other))
    np.testing.assert_array_equal(approaches.second, np.maximum(passages.asset, passages.other))
    np.testing.assert_array_equal(approaches.tca_ns, passages.tca_ns)


def test_no_asset_has_no_passage(held: Ephemeris) -> None:
    assert len(screen_assets(held, (), EPOCH_NS, END_NS).passages) == 0
    with pytest.raises(ValueError, match="expected a window within"):
        screen_assets(held, ASSETS, EPOCH_NS - 1, END_NS)


@needs_real_catalog
@small_and_long(("count", "hours", "assets"), (60, 2, 4), (300, 6, 20))
def test_passages_of_a_mixed_part_of_the_real_catalogue(count: int, hours: int, assets: int) -> None:
    prepared = PreparedObjects(mixed(count, seed=17))
    end_ns = START_NS + hours * HOUR_NS
    rows = np.random.default_rng(2).choice(count, assets, replace=False).tolist()
    chosen = [Asset(row=row, volume=(LARGE, TALL, FLAT)[number % 3]) for number, row in enumerate(rows)]
    passages = screen_assets(Ephemeris(prepared, START_NS, end_ns), chosen, START_NS, end_ns).passages
    assert_as_brute_force(prepared, chosen, START_NS, end_ns, passages)


@pytest.mark.long
@needs_real_catalog
def test_passages_through_published_boxes_in_the_real_catalogue() -> None:
    """Three assets in 3 hours of 15,360 objects; also passages that are shorter than a second are found."""
    prepared = PreparedObjects(real_objects())
    end_ns = START_NS + 3 * HOUR_NS
    rows = [
        int(np.flatnonzero(prepared.objects.columns.catalog_number == number)[0]) for number in (25544, 20580, 44714)
    ]
    chosen = [Asset(row=row, volume=volume) for row in rows for volume in (FLAT,)]
    passages = screen_assets(Ephemeris(prepared, START_NS, end_ns), chosen, START_NS, end_ns).passages
    objects = np.unique(np.concatenate((rows, passages.other, np.arange(0, len(prepared), 20))))
    part = PreparedObjects(rows_of(prepared.objects, objects))
    place = np.searchsorted(objects, np.concatenate((passages.asset, passages.other)))
    again = replace(passages, asset=place[: len(passages)], other=place[len(passages) :])
    in_part = [Asset(row=int(np.searchsorted(objects, asset.row)), volume=asset.volume) for asset in chosen]
    assert_as_brute_force(part, in_part, START_NS, end_ns, again)
