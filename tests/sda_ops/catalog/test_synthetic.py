"""The generated catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from sgp4.api import SatrecArray

from sda_ops.astro.propagation import sgp4_states
from sda_ops.catalog import synthetic_catalog

NOW_NS = 1_790_000_000_000_000_000
EARTH_RADIUS_KM = 6378.135


@pytest.mark.parametrize("objects", [1, 7, 100, 2000])
def test_it_has_the_requested_number_of_objects(objects: int) -> None:
    """Each has its own catalogue number."""
    catalog = synthetic_catalog(objects=objects, epoch_ns=NOW_NS)
    assert len({elements.catalog_number for elements in catalog}) == objects


def test_one_seed_gives_one_catalogue() -> None:
    """The same seed and epoch give the same states, to the bit; another seed gives others."""
    first, again, other = (
        sgp4_states(
            SatrecArray([elements.satrec for elements in synthetic_catalog(objects=200, epoch_ns=NOW_NS, seed=seed)]),
            np.array([NOW_NS]),
        ).r_teme_m
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_object_propagates_for_a_week_at_a_realistic_height() -> None:
    """SGP4 has no error for any object during a week, and all are between 200 and 36,500 km above the ground."""
    catalog = synthetic_catalog(epoch_ns=NOW_NS)
    states = sgp4_states(
        SatrecArray([elements.satrec for elements in catalog]), NOW_NS + np.array([0, 7 * 86_400 * 10**9])
    )
    heights_km = np.linalg.norm(states.r_teme_m, axis=-1) / 1e3 - EARTH_RADIUS_KM
    assert not states.error.any()
    assert heights_km.min() > 200.0
    assert heights_km.max() < 36_500.0


def test_every_class_of_orbit_is_represented() -> None:
    """Constellations, sun-synchronous, geostationary and debris orbits each have a measurable share."""
    catalog = synthetic_catalog(epoch_ns=NOW_NS)
    inclinations = np.rad2deg([elements.satrec.inclo for elements in catalog])
    revolutions = np.array([elements.satrec.no_kozai for elements in catalog]) * 1440 / (2 * np.pi)
    assert np.sum(np.abs(inclinations - 53.0) < 0.1) > 500
    assert np.sum((inclinations > 96.0) & (inclinations < 100.0)) > 300
    assert np.sum(np.abs(revolutions - 1.0027) < 0.001) > 80
    assert sum(" DEB" in elements.name for elements in catalog) > 400


def test_satellites_of_one_plane_are_spaced() -> None:
    """18 slots in a plane are 20 degrees (2,400 km) apart for any argument of perigee; geostationary ones 3 degrees."""
    catalog = synthetic_catalog(epoch_ns=NOW_NS)
    states = sgp4_states(SatrecArray([elements.satrec for elements in catalog]), np.array([NOW_NS]))
    r_km = states.r_teme_m[:, 0] / 1e3
    of_plane = [index for index, elements in enumerate(catalog) if elements.name.startswith("MESH-A-")][::36]
    belt = [index for index, elements in enumerate(catalog) if elements.name.startswith("GEOBELT-")]
    for objects, least_km in ((of_plane, 2_000.0), (belt, 500.0)):
        between_km = np.linalg.norm(r_km[objects, np.newaxis] - r_km[objects], axis=-1)
        assert np.min(between_km[~np.eye(len(objects), dtype=np.bool_)]) > least_km
