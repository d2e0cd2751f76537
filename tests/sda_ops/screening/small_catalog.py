"""A catalogue that is screened in a tenth of a second, in three windows."""

from __future__ import annotations

from datetime import timedelta

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import synthetic_catalog
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.screen import ScreeningOptions

START_NS = 1_773_100_800 * NS_PER_S  # 2026-03-10T00:00:00Z
HORIZON = timedelta(hours=3)
WINDOW = timedelta(hours=1)
MISS_M = 100_000.0
OPTIONS = ScreeningOptions(broad_phase="scipy", engine="sgp4")


def small_catalog(objects: int = 300) -> ScreenedObjects:
    return ScreenedObjects.of(synthetic_catalog(objects=objects, epoch_ns=START_NS))
