"""Three assessed conjunctions of four objects, with values that show rounding, and a slow pair."""

from __future__ import annotations

import numpy as np

from sda_ops.astro.time import NS_PER_DAY, NS_PER_S
from sda_ops.catalog import ElementSet, synthetic_catalog
from sda_ops.screening.assessment.assess import Conjunctions
from sda_ops.screening.assessment.orbit_classes import OrbitClass
from sda_ops.screening.objects import ScreenedObjects

START_NS = 1_773_100_800 * NS_PER_S  # 2026-03-10T00:00:00Z
NAMES = ("STARLINK-1", "STARLINK-2", 'COSMOS, "OLD" DEB', "")
TCA_NS = START_NS + np.array([3_600 * NS_PER_S + 999_400_000, 7_200 * NS_PER_S + 999_600_000, 90 * NS_PER_S])


def objects() -> ScreenedObjects:
    """Numbered from 200,001."""
    sets = synthetic_catalog(objects=4, epoch_ns=START_NS - NS_PER_DAY)
    return ScreenedObjects.of(
        [
            ElementSet(each.catalog_number, name, each.satrec, each.sgp4_epoch_days)
            for each, name in zip(sets, NAMES, strict=True)
        ]
    )


def conjunctions() -> Conjunctions:
    """The first is inside a fleet, the second has a formation, the third is of two strangers."""
    ones = np.ones(3)
    first, second = np.array([0, 0, 2]), np.array([1, 2, 3])
    return Conjunctions(
        first=first,
        second=second,
        catalog_number_first=200_001 + first,
        catalog_number_second=200_001 + second,
        tca_ns=TCA_NS,
        miss_m=np.array([14.4, 4_999.6, 120.0]),
        relative_speed_m_s=np.array([9_173.4, 14_999.9, 52.0]),
        relative_position_m=np.array([[9.8, 10.2, -3.7], [3_000.0, 4_000.0, 0.1234], [0.0, 120.0, 0.0]]),
        relative_velocity_m_s=np.array([[-6.0, -5_554.4, -7_300.5], [0.0, 0.0, 14_999.9], [52.0, 0.0, 0.0]]),
        epoch_first_ns=np.full(3, START_NS - NS_PER_DAY),
        epoch_second_ns=np.full(3, START_NS + NS_PER_DAY // 2),
        age_first_s=np.full(3, 88_000.0),
        age_second_s=np.full(3, -39_600.0),
        radius_first_m=np.array([10.0, 10.0, 1.0]),
        radius_second_m=np.array([10.0, 1.0, 2.31]),
        aspect_ratio=2.0 * ones,
        max_probability=np.array([0.33432, 1.0, 2.5e-7]),
        dilution_m=np.array([10.1, 3_535.0, np.nan]),
        probability=np.array([np.nan, np.nan, 1.2345e-9]),
        orbit_class_first=np.array([OrbitClass.LEO, OrbitClass.LEO, OrbitClass.SSO], dtype=np.int8),
        orbit_class_second=np.array([OrbitClass.LEO, OrbitClass.SSO, OrbitClass.LEO], dtype=np.int8),
        fleet_first=np.array([1, 1, -1], dtype=np.int16),
        fleet_second=np.array([1, -1, -1], dtype=np.int16),
        same_fleet=np.array([True, False, False]),
        formation=np.array([False, True, False]),
        fleets=("OneWeb", "Starlink"),
    )
