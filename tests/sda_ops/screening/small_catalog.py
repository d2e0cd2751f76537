"""A catalogue that is screened in a tenth of a second, in three windows: with approaches, slow pairs and objects that end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sda_ops.screening.geometry.screen import ScreeningOptions
from sda_ops.screening.objects import ScreenedObjects
from tests.sda_ops.screening.orbits import EPOCH_NS, Orbit, random_orbits, screened

START_NS = EPOCH_NS
HORIZON = timedelta(minutes=90)
WINDOW = timedelta(minutes=30)
MISS_M = 150_000.0
OPTIONS = ScreeningOptions(broad_phase="scipy", engine="sgp4")


def small_catalog(objects: int = 150) -> ScreenedObjects:
    """Random orbits, two docked objects, a formation, and an object that decays within the hour."""
    docked = Orbit(perigee_km=420.0, inclination_deg=51.6, node_deg=10.0)
    formation = Orbit(perigee_km=515.0, inclination_deg=97.4, node_deg=80.0)
    orbits = [
        *random_orbits(objects - 5, seed=5),
        docked,
        docked,
        formation,
        replace(formation, anomaly_deg=0.01, node_deg=80.002),
        Orbit(perigee_km=115.0, bstar=5e-3, node_deg=200.0),
    ]
    return screened(orbits)
