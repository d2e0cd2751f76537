"""A catalogue that is screened in a tenth of a second, in three windows: with approaches, slow pairs and objects that end."""

from __future__ import annotations

from datetime import timedelta

from sda_ops.screening.geometry.screen import ScreeningOptions
from sda_ops.screening.objects import ScreenedObjects
from tests.sda_ops.screening.orbits import (
    DECAYING_ORBIT,
    EPOCH_NS,
    TWO_DOCKED,
    TWO_IN_FORMATION,
    random_orbits,
    screened,
)

START_NS = EPOCH_NS
HORIZON = timedelta(minutes=90)
WINDOW = timedelta(minutes=30)
MISS_M = 150_000.0
OPTIONS = ScreeningOptions(broad_phase="scipy", engine="sgp4")


def small_catalog(objects: int = 150) -> ScreenedObjects:
    """Random orbits, two docked objects, a formation, and an object that decays within the hour."""
    orbits = [
        *random_orbits(objects - 5, seed=5),
        *TWO_DOCKED,
        *TWO_IN_FORMATION,
        DECAYING_ORBIT,
    ]
    return screened(orbits)
