"""The positions of the simulator's sensors, as settings. Demo, tests and benchmarks pass them; they are no default."""

from __future__ import annotations

from math import degrees

from flows.settings.fusion import SensorSettings
from sda_ops.simulate.places import RADAR_SITES, TELESCOPE_SITES


def simulated_sensors() -> tuple[SensorSettings, ...]:
    """``radar-1`` … and ``optical-1`` …, as the simulator numbers them."""
    numbered = [
        *((f"radar-{number}", site, 103.0) for number, site in enumerate(RADAR_SITES, 1)),
        *((f"optical-{number}", site, None) for number, site in enumerate(TELESCOPE_SITES, 1)),
    ]
    return tuple(
        SensorSettings(
            source_id=source_id,
            latitude_deg=degrees(site.latitude_rad),
            longitude_deg=degrees(site.longitude_rad),
            height_m=site.height_m,
            sigma_angle_arcsec=sigma_arcsec,
        )
        for source_id, site, sigma_arcsec in numbered
    )
