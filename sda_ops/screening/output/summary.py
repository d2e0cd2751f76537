"""What a screening found, in counts: by orbit class, fleet, distance and relative speed. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import Floats
from sda_ops.screening.assessment.assess import Conjunctions
from sda_ops.screening.assessment.orbit_classes import OrbitClass
from sda_ops.screening.objects import Rows

DISTANCES_M = (100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0)
SPEEDS_M_S = (100.0, 1_000.0, 5_000.0, 10_000.0, 14_000.0)
"""The upper limits of the groups; the last group has no upper limit."""


@dataclass(frozen=True, slots=True)
class Group:
    """Conjunctions that have something in common.

    Attributes:
        label: What, for people.
        count: How many.
        smallest_m: The smallest miss distance of them.
        max_probability: The greatest maximum probability of them.
    """

    label: str
    count: int
    smallest_m: float
    max_probability: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Conjunctions in groups. Each conjunction is in one group of each kind; groups without any are left out.

    Attributes:
        total: All of them; ``None`` if there is no conjunction.
        by_class: By the classes of both orbits, most first.
        by_fleet: By the fleets of both objects, most first.
        by_distance: By miss distance, rising.
        by_speed: By relative speed, rising.
    """

    total: Group | None
    by_class: tuple[Group, ...]
    by_fleet: tuple[Group, ...]
    by_distance: tuple[Group, ...]
    by_speed: tuple[Group, ...]


def most_probable_first(conjunctions: Conjunctions, chosen: npt.NDArray[np.bool_] | None = None) -> Rows:
    """Indices by falling maximum probability, then by rising miss distance; only those that are true in ``chosen``."""
    order = np.lexsort((conjunctions.miss_m, -conjunctions.max_probability))
    return order if chosen is None else order[chosen[order]]


def summarise(conjunctions: Conjunctions, chosen: Rows | None = None) -> Summary:
    """Count the conjunctions, or only those whose indices are in ``chosen``."""
    rows = np.arange(len(conjunctions)) if chosen is None else chosen
    miss_m, probability = conjunctions.miss_m[rows], conjunctions.max_probability[rows]

    def grouped(codes: npt.NDArray[np.int64], labels: Sequence[str]) -> tuple[Group, ...]:
        return tuple(
            Group(labels[code], int(members.sum()), float(miss_m[members].min()), float(probability[members].max()))
            for code in np.unique(codes).tolist()
            for members in (codes == code,)
        )

    def of_pairs(
        first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], names: Sequence[str]
    ) -> tuple[Group, ...]:
        """Without regard to the order of the two."""
        low, high = np.minimum(first, second), np.maximum(first, second)
        labels = [f"{one} / {other}" for one in names for other in names]
        return tuple(sorted(grouped(low * len(names) + high, labels), key=lambda group: -group.count))

    classes = [each.name for each in sorted(OrbitClass)]
    fleets = ["no fleet", *conjunctions.fleets]  # the index of no fleet is -1
    everything = grouped(np.zeros(len(rows), dtype=np.int64), ["all"])
    return Summary(
        total=everything[0] if everything else None,
        by_class=of_pairs(
            conjunctions.orbit_class_first[rows].astype(np.int64),
            conjunctions.orbit_class_second[rows].astype(np.int64),
            classes,
        ),
        by_fleet=of_pairs(
            conjunctions.fleet_first[rows].astype(np.int64) + 1,
            conjunctions.fleet_second[rows].astype(np.int64) + 1,
            fleets,
        ),
        by_distance=grouped(_group_of(miss_m, DISTANCES_M), _labels(DISTANCES_M, "")),
        by_speed=grouped(_group_of(conjunctions.relative_speed_m_s[rows], SPEEDS_M_S), _labels(SPEEDS_M_S, "/s")),
    )


def _group_of(values: Floats, limits: Sequence[float]) -> npt.NDArray[np.int64]:
    return np.searchsorted(limits, values, side="right").astype(np.int64)


def _labels(limits_m: Sequence[float], per: str) -> list[str]:
    texts = [f"{limit / M_PER_KM:g} km{per}" if limit >= M_PER_KM else f"{limit:g} m{per}" for limit in limits_m]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
    return [f"below {texts[0]}", *between, f"{texts[-1]} and more"]
