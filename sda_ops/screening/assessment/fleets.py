"""Fleets: satellites of one operator that are steered together. Their approaches to each other are the operator's own plan.

An object is recognized by its name, as CelesTrak and Space-Track write names. A name says nothing about the state of a
satellite: one that has failed stays in its fleet until it is excluded by its catalogue number (`Fleet.without`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sda_ops.screening.assessment.name_patterns import NamePatterns, is_uncontrolled

FleetIndices = npt.NDArray[np.int16]
"""Indices of fleets; `NO_FLEET` where an object is in none."""

NO_FLEET = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Satellites of one operator.

    Attributes:
        name: A short name.
        names: Patterns of the members' whole names, such as ``STARLINK-*`` (`fnmatch`, without regard to case).
        without: Catalogue numbers of objects that are no members although their names fit: failed satellites.
    """

    name: str
    names: tuple[str, ...]
    without: frozenset[int] = field(default_factory=frozenset)


FLEETS = (
    Fleet(name="Starlink", names=("STARLINK-*",)),
    Fleet(name="OneWeb", names=("ONEWEB-*",)),
    Fleet(name="Kuiper", names=("KUIPER-*",)),
    Fleet(name="Qianfan", names=("QIANFAN-*",)),
    Fleet(name="Guowang", names=("HULIANWANG*", "GUOWANG*")),
    Fleet(name="Geesat", names=("GEESAT-*",)),
    # IRIDIUM 100 and higher numbers are the satellites in service. Those of the first generation are derelict.
    Fleet(name="Iridium", names=("IRIDIUM 1[0-9][0-9]",)),
    Fleet(name="Globalstar", names=("GLOBALSTAR M*",)),
    Fleet(name="Orbcomm", names=("ORBCOMM *", "ORBCOMM-*")),
    Fleet(name="Planet", names=("FLOCK *", "SKYSAT-*", "PELICAN-*", "TANAGER-*")),
    Fleet(name="Spire", names=("LEMUR-*",)),
    Fleet(name="O3b", names=("O3B *",)),
    Fleet(name="ICEYE", names=("ICEYE-*",)),
    Fleet(name="HawkEye 360", names=("HAWK-[A-Z]", "HAWK-[0-9]*")),
    Fleet(name="Kineis", names=("KINEIS-*",)),
    Fleet(name="Tianqi", names=("TIANQI-*",)),
    Fleet(name="Gonets", names=("GONETS-M *",)),
    Fleet(name="Sitro", names=("SITRO-AIS*",)),
    Fleet(name="Jilin", names=("JILIN-*",)),
    Fleet(name="Satellogic", names=("NUSAT-*",)),
    Fleet(name="BlackSky", names=("GLOBAL-[0-9]*",)),
    Fleet(name="AST SpaceMobile", names=("SPACEMOBILE-*", "BLUEBIRD-*", "BLUEWALKER-*")),
    Fleet(name="SDA", names=("SDA_*", "PRAETORIAN SDA_*")),
    Fleet(name="GPS", names=("NAVSTAR *",)),
    Fleet(name="Galileo", names=("GSAT0[0-9]*",)),
    Fleet(name="BeiDou", names=("BEIDOU-*",)),
)
"""The fleets that are known by default. The names are those of CelesTrak's catalogue of active satellites of March 2026."""


@dataclass(frozen=True)
class Fleets:
    """A table of fleets, and which object belongs to which.

    Attributes:
        fleets: The fleets; an object belongs to the first whose names fit.
    """

    fleets: tuple[Fleet, ...] = FLEETS

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the fleets, by index."""
        return tuple(fleet.name for fleet in self.fleets)

    @cached_property
    def _patterns(self) -> tuple[NamePatterns, tuple[int, ...]]:
        rows = [(pattern, index) for index, fleet in enumerate(self.fleets) for pattern in fleet.names]
        return NamePatterns([pattern for pattern, _ in rows]), tuple(index for _, index in rows)

    def of(self, catalog_numbers: Iterable[int], names: Sequence[str]) -> FleetIndices:
        """The fleet of each object, ``(objects,)``: an index into `fleets`, or `NO_FLEET`."""
        patterns, owners = self._patterns
        found = np.full(len(names), NO_FLEET, dtype=np.int16)
        for row, (number, name) in enumerate(zip(catalog_numbers, names, strict=True)):
            pattern = patterns.index(name)
            if pattern is None or is_uncontrolled(name):
                continue
            if number not in self.fleets[owners[pattern]].without:
                found[row] = owners[pattern]
        return found
