"""The settings of conjunction screening: of the command ``screen`` and of ``sda-fusion``."""

from __future__ import annotations

import re
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.settings.sections import PositiveInt, PositiveSeconds, Section
from flows.settings.uncertainty import ErrorSettings, element_set_errors
from sda_ops.screening.assessment.assumptions import AspectSigmas, Assumptions
from sda_ops.screening.assessment.fleets import FLEETS, Fleet, Fleets
from sda_ops.screening.assessment.name_patterns import NamePatterns
from sda_ops.screening.assessment.sizes import KNOWN_SIZES, UNKNOWN_RADIUS_M, Sizes
from sda_ops.screening.geometry.screen import ScreeningOptions
from sda_ops.screening.objects import ScreenedObjects

_MAX_MISS_M = 100_000.0  # 14,683 objects have 9 million approaches below 100 km a day
_MAX_HORIZON_S = 30 * 86_400.0

_Radius = Annotated[float, Field(gt=0, le=10_000)]
_CatalogNumber = Annotated[int, Field(gt=0, le=999_999_999)]
_Pattern = Annotated[str, Field(min_length=1, max_length=100)]


class SizeSettings(Section):
    """The hard-body radii of objects, metres. A catalogue number wins over a name, and what is set here over the built-in."""

    unknown_m: _Radius = Field(UNKNOWN_RADIUS_M, description="The radius of an object that no table has")
    numbers: dict[_CatalogNumber, _Radius] = Field(
        default_factory=dict, description='Radii by catalogue number, e.g. {"25544" = 55}'
    )
    names: dict[_Pattern, _Radius] = Field(
        default_factory=dict, description='Radii by name with * and ?, e.g. {"STARLINK-*" = 10}; the first that fits'
    )
    built_in: bool = Field(
        default=True, description="Whether the table of known sizes is used for objects that are not set here"
    )

    def sizes(self) -> Sizes:
        """The table."""
        known = KNOWN_SIZES if self.built_in else ()
        numbers = {size.objects: size.radius_m for size in known if isinstance(size.objects, int)}
        names = {size.objects: size.radius_m for size in known if isinstance(size.objects, str)}
        # The first pattern that fits wins: those that are set come first.
        return Sizes(
            by_number={**numbers, **self.numbers},
            by_name={**self.names, **{name: radius for name, radius in names.items() if name not in self.names}},
            unknown_m=self.unknown_m,
        )


class FleetSettings(Section):
    """A fleet: satellites that one operator steers. One with the name of a built-in fleet replaces it."""

    name: str = Field(min_length=1, max_length=100, description="A short name, e.g. Starlink")
    names: tuple[_Pattern, ...] = Field(
        min_length=1, description="The names of its satellites, with * and ?, e.g. STARLINK-*"
    )
    without: tuple[_CatalogNumber, ...] = Field(
        (), description="Catalogue numbers that are not in the fleet although their names fit: failed satellites"
    )

    def fleet(self) -> Fleet:
        """The fleet."""
        return Fleet(name=self.name, names=self.names, without=frozenset(self.without))


class AspectSettings(Section):
    """The assumed proportions of an object's position errors, for the maximum probability."""

    radial_m: float = Field(AspectSigmas().radial_m, gt=0, le=1e8, description="Away from the Earth's centre")
    in_track_m: float = Field(AspectSigmas().in_track_m, gt=0, le=1e8, description="Along the motion")
    cross_track_m: float = Field(AspectSigmas().cross_track_m, gt=0, le=1e8, description="Along the orbit's normal")


class ScreeningAdvancedSettings(Section):
    """How the search divides time. The result does not depend on it; the time of computation does."""

    knot_s: float = Field(240.0, ge=10, le=600, description="Between positions that SGP4 computes, seconds")
    slice_s: float = Field(
        60.0, ge=5, le=120, description="Length of a slice, in which pairs are searched for, seconds"
    )
    broad_phase: Literal["auto", "numba", "scipy"] = Field(
        "auto", description="The search for pairs: numba (an extra) or scipy; auto: numba if installed"
    )
    engine: Literal["auto", "sgp4", "heyoka"] = Field(
        "auto", description="heyoka (an extra) for near-Earth objects, sgp4 for the others; auto: heyoka if installed"
    )

    def options(self) -> ScreeningOptions:
        """How to screen."""
        return ScreeningOptions(
            slice_s=self.slice_s, knot_s=self.knot_s, broad_phase=self.broad_phase, engine=self.engine
        )


class ScreeningSettings(Section):
    """Which approaches are searched for, and what is assumed about the objects."""

    miss_distance_m: float = Field(
        5_000.0, gt=0, le=_MAX_MISS_M, description="Approaches up to this distance are found, metres"
    )
    horizon_s: float = Field(
        86_400.0,
        ge=1,
        le=_MAX_HORIZON_S,
        description="How far ahead, seconds; element sets lose their meaning with age",
    )
    window_s: PositiveSeconds = Field(
        10_800.0,
        ge=60,
        le=_MAX_HORIZON_S,
        description="The part of the horizon that one worker screens at a time, seconds",
    )
    workers: PositiveInt | None = Field(
        None, le=256, description="The number of worker processes (default: one for each processor)"
    )
    exclude_fleets: bool = Field(
        default=True,
        description="Whether approaches within one fleet, and of docked objects and formations, are listed apart",
    )
    built_in_fleets: bool = Field(default=True, description="Whether the table of known fleets is used")
    fleets: tuple[FleetSettings, ...] = Field((), description="Fleets besides or instead of the built-in ones")
    sizes: SizeSettings = SizeSettings()
    aspect: AspectSettings = AspectSettings()
    probability: bool = Field(
        default=False,
        description="Whether a probability is computed from the assumed errors of element sets (near_earth, deep_space)",
    )
    near_earth: ErrorSettings | None = Field(None, description="Periods below 225 minutes (default: built in)")
    deep_space: ErrorSettings | None = Field(None, description="All other orbits (default: built in)")
    advanced: ScreeningAdvancedSettings = ScreeningAdvancedSettings()

    @property
    def horizon(self) -> timedelta:
        """How far ahead."""
        return timedelta(seconds=self.horizon_s)

    @property
    def window(self) -> timedelta:
        """The part that one worker screens at a time."""
        return timedelta(seconds=self.window_s)

    def assumptions(self) -> Assumptions:
        """What an assessment assumes."""
        own = tuple(fleet.fleet() for fleet in self.fleets)
        replaced = {fleet.name for fleet in own}
        known = tuple(fleet for fleet in FLEETS if fleet.name not in replaced) if self.built_in_fleets else ()
        return Assumptions(
            sizes=self.sizes.sizes(),
            aspect=AspectSigmas(**dict(self.aspect)),
            fleets=Fleets((*own, *known)),
            errors=element_set_errors(self.near_earth, self.deep_space) if self.probability else None,
        )

    def without_effect(self, objects: ScreenedObjects) -> list[str]:
        """Each size and fleet that is set here but fits none of the objects, as a sentence: often a typing mistake."""
        numbers = set(objects.columns.catalog_number.tolist())
        beginnings = sorted({_beginning(name) for name in objects.names})

        def unknown_pattern(where: str, pattern: str) -> str | None:
            patterns = NamePatterns([pattern])
            if any(patterns.index(name) is not None for name in objects.names):
                return None
            near = get_close_matches(_beginning(pattern), beginnings, n=1)
            hint = f"; there are names that begin with {near[0]}" if near else ""
            return f"{where}: no object's name fits {pattern!r}{hint}"

        found = [
            *(
                f"[screening.sizes] numbers: there is no object {number}"
                for number in self.sizes.numbers
                if number not in numbers
            ),
            *(unknown_pattern("[screening.sizes] names", pattern) for pattern in self.sizes.names),
            *(
                unknown_pattern(f"[[screening.fleets]] {fleet.name}", pattern)
                for fleet in self.fleets
                for pattern in fleet.names
            ),
        ]
        return [sentence for sentence in found if sentence is not None]

    @model_validator(mode="after")
    def _fleets_differ(self) -> ScreeningSettings:
        names = [fleet.name for fleet in self.fleets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"fleets: names must differ, got {', '.join(twice)} more than once")
        return self


def _beginning(name: str) -> str:
    """What the names of a family of objects have in common, such as ``STARLINK``."""
    return re.split(r"[-\s(*?\[]", name, maxsplit=1)[0].upper()
