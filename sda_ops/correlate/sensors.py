"""What is known of a sensor to predict its measurements: its site and its measurement errors."""

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
"""Used for what neither the observation nor its sensor states."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One sensor.

    Attributes:
        site: Its place on the ground; ``None`` for sensors in orbit (``isl``).
        sigma: Standard deviations for what its observations do not state (a radar's frame has no field for angle errors).
            What is not stated here either is taken from `DEFAULT_SIGMA`.
    """

    site: Site | None
    sigma: Uncertainty = field(default_factory=Uncertainty)


Sensors: TypeAlias = Mapping[str, Sensor]
"""By ``source_id``."""
