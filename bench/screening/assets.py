"""What boxes of assets cost from held positions, and what a change of the catalogue costs there.

Usage: ``python -m bench.screening.assets [--hours H] [--window-hours W]``. The catalogue is the real one of March 2026 with the
debris of Cosmos 2251 and Iridium 33; the boxes are the published ones of each orbit. It prints CPU times and asserts nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import numpy as np

from sda_ops.screening.geometry.changed import with_objects
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.volumes.assets import Asset
from sda_ops.screening.volumes.passages import screen_assets
from sda_ops.screening.volumes.volumes import published_volume
from tests.helpers.mixed_objects import START_NS, real_objects, with_elements

HOUR_NS = 3_600_000_000_000
BOUND_KM = 0.025
_Result = TypeVar("_Result")


def timed(function: Callable[[], _Result]) -> tuple[float, _Result]:
    """CPU s, and the result."""
    begin_s = time.process_time()
    result = function()
    return time.process_time() - begin_s, result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hours", type=int, default=24)
    arguments.add_argument("--window-hours", type=int, default=24)
    given = arguments.parse_args()
    end_ns = START_NS + given.hours * HOUR_NS
    objects = real_objects()
    prepared = PreparedObjects(objects)
    edges_ns = [*range(START_NS, end_ns, given.window_hours * HOUR_NS), end_ns]
    windows = list(pairwise(edges_ns))
    held_s, held = timed(lambda: [(a, b, Ephemeris(prepared, a, b, interpolation_km=BOUND_KM)) for a, b in windows])
    size = sum(level.r_km.nbytes for _, _, each in held for level in each.levels) / 1e6
    greatest_s, _ = timed(lambda: [each.greatest for _, _, each in held])
    print(f"{len(objects):,} objects, {given.hours} h, {prepared.engine}")
    print(f"positions of {len(held)} windows: {held_s:.2f} s, {size:.0f} MB; their greatest speeds: {greatest_s:.2f} s")
    rng = np.random.default_rng(0)
    changed = rng.choice(len(objects), 40, replace=False)
    anomaly = objects.columns.mo.copy()
    anomaly[changed] += 1e-4
    prepare_s, after = timed(lambda: PreparedObjects(with_elements(objects, mo=anomaly)))
    update_s, _ = timed(lambda: [with_objects(each, after) for _, _, each in held])
    print(f"40 changed element sets: {prepare_s:.2f} s to prepare the catalogue, {update_s:.2f} s for the positions")
    for count in (1, 10, 50):
        assets: list[Asset] = []
        for row in rng.permutation(len(objects)).tolist():
            volume = published_volume(objects.satrecs[row])
            if volume is not None and len(assets) < count:
                assets.append(Asset(row=row, volume=volume))
        assets_s, results = timed(lambda assets=assets: [screen_assets(each, assets, a, b) for a, b, each in held])  # type: ignore[misc] # as above
        passages = sum(len(each.passages) for each in results)
        print(
            f"{count} assets with published boxes: {assets_s:.2f} s, {1e3 * assets_s / count:.0f} ms each, {passages} passages"
        )


if __name__ == "__main__":
    main()
