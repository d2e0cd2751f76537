"""What must be known of a sensor to say what it would measure: where it stands, and how well it measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from sda_ops.astro.sites import Site
from sda_ops.records.observation import Uncertainty

DEFAULT_SIGMA = Uncertainty(
    sigma_range_m=100.0,
    sigma_range_rate_m_s=1.0,
    sigma_angle_rad=1e-3,
    sigma_position_m=100.0,
    sigma_velocity_m_s=1.0,
)
"""Assumed where neither the observation nor its sensor's entry says how well it was measured."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One sensor.

    Attributes:
        site: Where it stands; what flies (``isl``) has none.
        sigma: One standard deviation of what its observations do not state themselves (a radar's frame has no field for
            its angles); `DEFAULT_SIGMA` for what this does not state either.
    """

    site: Site | None
    sigma: Uncertainty = field(default_factory=Uncertainty)


Sensors: TypeAlias = Mapping[str, Sensor]
"""By ``source_id``."""
