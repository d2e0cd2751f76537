"""A pipeline in a process of its own. Its catalogue changes: made-up objects are added, pass at another distance, and are removed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import radians
from pathlib import Path
from typing import Any

import numpy as np

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import synthetic_catalog
from sda_ops.catalog.elements import ElementSet
from sda_ops.simulate.catalog_file import omm_json
from sda_ops.simulate.staged import Passage, passing
from tests.helpers.alerting import AlertingPlace, ended
from tests.helpers.fusion import go

NEAR_M, AWAY_M = (50.0, 800.0), 30_000.0
FIRST_NUMBER = 990_001
FAST_SCREENING = {
    "horizon_s": 14_400.0,
    "window_s": 7_200.0,
    "advanced": {"broad_phase": "scipy", "engine": "sgp4"},
}
"""So that a restart is not mainly a compilation and a screening of a day."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A made-up object, and how it passes another one."""

    number: int
    target: ElementSet
    passage: Passage


class ChangingCatalog:
    """The catalogue file of a pipeline. Each call of `change` replaces it by a new version."""

    def __init__(self, place: AlertingPlace, *, objects: int, pairs: int, seed: int) -> None:
        self.path = place.fusion.catalog
        self._rng = np.random.default_rng(seed)
        self._epoch_ns = time.time_ns() // 1_000_000 * 1_000_000
        self._base = synthetic_catalog(objects=objects, epoch_ns=self._epoch_ns)
        low = [each for each in self._base if each.name.startswith(("MESH", "SUNSYNC"))]
        places = self._rng.choice(len(low), pairs, replace=False).tolist()
        self._pairs = [self._pair(FIRST_NUMBER + index, low[at]) for index, at in enumerate(places)]
        self._made: dict[int, ElementSet] = {}
        self._write()

    def sky(self, path: Path) -> None:
        """Write the catalogue of the sensors: every made-up object is there, passing near."""
        made = [self._passing(pair, self._rng.uniform(*NEAR_M)) for pair in self._pairs]
        path.write_bytes(omm_json((*self._base, *made)))

    def change(self) -> str:
        """A made-up object appears, or another one passes at another distance, or stays away. Returns a description."""
        unknown = [pair for pair in self._pairs if pair.number not in self._made]
        kind = self._rng.choice(["appears", "moves", "leaves"], p=[0.6, 0.25, 0.15])
        if unknown and (kind == "appears" or not self._made):
            return self.appear()
        known = [pair for pair in self._pairs if pair.number in self._made]
        pair = known[int(self._rng.integers(len(known)))]
        self._made[pair.number] = self._passing(pair, AWAY_M if kind == "leaves" else self._rng.uniform(*NEAR_M))
        self._write()
        return f"{pair.number} {'leaves' if kind == 'leaves' else 'moves'}"

    def appear(self) -> str:
        """The next made-up object appears. Returns its number as text."""
        pair = next(pair for pair in self._pairs if pair.number not in self._made)
        self._made[pair.number] = self._passing(pair, self._rng.uniform(*NEAR_M))
        self._write()
        return str(pair.number)

    def _pair(self, number: int, target: ElementSet) -> Pair:
        rng = self._rng
        passage = Passage(
            at_ns=self._epoch_ns + round(rng.uniform(3_600.0, 13_000.0) * NS_PER_S),
            miss_m=0.0,
            miss_angle_rad=rng.uniform(0.0, 6.28),
            turn_rad=radians(rng.uniform(20.0, 160.0)),
            speed=rng.uniform(1.006, 1.03),
        )
        return Pair(number, target, passage)

    def _passing(self, pair: Pair, miss_m: float) -> ElementSet:
        passage = replace(pair.passage, miss_m=miss_m)
        name = f"OBJECT {pair.number}"
        return passing(pair.target, passage, catalog_number=pair.number, name=name, epoch_ns=self._epoch_ns)

    def _write(self) -> None:
        written = self.path.with_name("catalog.new")
        written.write_bytes(omm_json((*self._base, *self._made.values())))
        written.replace(self.path)


def settings(place: AlertingPlace, url: str, **alerts: Any) -> dict[str, Any]:
    """The pipeline's settings, with one subscriber. Each revision that differs by 10 m is material to it."""
    folder = place.fusion.folder
    subscriber = {"name": "reference", "url": url, "miss_change": 1e-6, "finals": True, "max_per_s": 1_000.0}
    return place.settings(
        screening={"directory": str(folder / "screening"), **FAST_SCREENING},
        alerts={"directory": str(folder / "alerts"), "subscribers": [subscriber], **alerts},
    )


def sensors(place: AlertingPlace, catalog: ChangingCatalog) -> AbstractContextManager[Any]:
    """Simulated sensors that send during the context, at low rates; they connect again to each new pipeline."""
    sky = place.fusion.folder / "sky.json"
    catalog.sky(sky)
    rates = ["--rate-radar", "100", "--rate-optical", "10", "--rate-isl", "20"]
    process = place.fusion.simulator("--catalog", str(sky), *rates)
    go(process)
    return ended(process)
