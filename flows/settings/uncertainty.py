"""The assumed uncertainty of element sets, as settings: correlation and screening have it in common."""

from __future__ import annotations

from pydantic import Field

from flows.settings.sections import Section
from sda_ops.propagation.uncertainty import AxisErrors, ElementSetErrors

PositiveMetres = Field(gt=0, le=1e8)


class ErrorSettings(Section):
    """One standard deviation of an element set in its orbit's axes: at its epoch, and the growth for each day."""

    radial_m: float = PositiveMetres
    in_track_m: float = PositiveMetres
    cross_track_m: float = PositiveMetres
    radial_m_per_day: float = Field(ge=0, le=1e8)
    in_track_m_per_day: float = Field(ge=0, le=1e8)
    cross_track_m_per_day: float = Field(ge=0, le=1e8)


def element_set_errors(near_earth: ErrorSettings | None, deep_space: ErrorSettings | None) -> ElementSetErrors:
    """The errors by kind of orbit; where nothing is set, the built-in ones."""
    built_in = ElementSetErrors()
    return ElementSetErrors(
        near_earth=built_in.near_earth if near_earth is None else AxisErrors(**dict(near_earth)),
        deep_space=built_in.deep_space if deep_space is None else AxisErrors(**dict(deep_space)),
    )
