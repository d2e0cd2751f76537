"""Hard-body radii: the sphere around an object that stands for it in a probability of collision.

A catalogue of element sets has no sizes. The table is small and holds what is published; everything else has one assumed
radius. The probability grows with the square of the sum of the two radii.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sda_ops.astro.time import Floats
from sda_ops.screening.assessment.name_patterns import NamePatterns, is_debris

UNKNOWN_RADIUS_M = 1.0
"""CelesTrak's SOCRATES assumes this for objects of unknown size; its probabilities of 2026-03-09 show it."""


@dataclass(frozen=True, slots=True)
class KnownSize:
    """A row of the table.

    Attributes:
        objects: A catalogue number, or a pattern of whole names (`fnmatch`, without regard to case).
        radius_m: The hard-body radius.
        source: Where it comes from.
    """

    objects: int | str
    radius_m: float
    source: str


KNOWN_SIZES = (
    KnownSize("STARLINK-*", 10.0, "CelesTrak, SOCRATES: implied by its maximum probabilities of 2026-03-09"),
    KnownSize(20608, 3.03, "CelesTrak, SOCRATES, the same: MACSAT 2"),
    KnownSize("SL-3 R/B", 2.31, "CelesTrak, SOCRATES, the same: object 12586"),
    KnownSize(27422, 10.895, "CelesTrak, SOCRATES, the same: IDEFIX & ARIANE 42P R/B"),
    KnownSize("ISS (*", 55.0, "NASA, International Space Station Facts and Figures: 109 m from end to end"),
    KnownSize("CSS (*", 28.0, "CMSA: the solar wings of Wentian span 55 m"),
    KnownSize(20580, 7.0, "NASA, About Hubble: the Hubble Space Telescope is 13.2 m long"),
    KnownSize(27386, 14.2, "ESA, Envisat Space Segment: 26 m x 10 m x 5 m in flight; half the diagonal"),
)
"""The sizes that are known by default, with their sources."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Which object has which hard-body radius.

    A catalogue number wins over a name; the first pattern that fits wins. A fragment has the size of a pattern only if the
    pattern names fragments (``DEB``).

    Attributes:
        by_number: Radii by catalogue number, metres.
        by_name: Radii by pattern of the whole name, metres, in the order in which they are tried.
        unknown_m: The radius of all other objects.
    """

    by_number: Mapping[int, float] = field(
        default_factory=lambda: {size.objects: size.radius_m for size in KNOWN_SIZES if isinstance(size.objects, int)}
    )
    by_name: Mapping[str, float] = field(
        default_factory=lambda: {size.objects: size.radius_m for size in KNOWN_SIZES if isinstance(size.objects, str)}
    )
    unknown_m: float = UNKNOWN_RADIUS_M

    @cached_property
    def _patterns(self) -> tuple[_Radii, _Radii]:
        of_debris = {pattern: radius_m for pattern, radius_m in self.by_name.items() if "DEB" in pattern.upper()}
        return _Radii.of(self.by_name), _Radii.of(of_debris)

    def of(self, catalog_numbers: Iterable[int], names: Sequence[str]) -> Floats:
        """The radius of each object, metres, ``(objects,)``."""
        whole, debris = self._patterns
        found = np.full(len(names), self.unknown_m)
        for row, (number, name) in enumerate(zip(catalog_numbers, names, strict=True)):
            radius_m = self.by_number.get(number)
            if radius_m is None:
                radius_m = (debris if is_debris(name) else whole).radius_m(name)
            if radius_m is not None:
                found[row] = radius_m
        return found


class _Radii(NamedTuple):
    patterns: NamePatterns
    radii_m: tuple[float, ...]

    @classmethod
    def of(cls, by_name: Mapping[str, float]) -> _Radii:
        return cls(NamePatterns(list(by_name)), tuple(by_name.values()))

    def radius_m(self, name: str) -> float | None:
        pattern = self.patterns.index(name)
        return None if pattern is None else self.radii_m[pattern]
