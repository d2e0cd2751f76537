"""Sites of the simulated sensors: real observatories, to about a kilometre (their public web pages, rounded)."""

from __future__ import annotations

from sda_ops.astro.sites import Site

RADAR_SITES = (
    Site.from_degrees("Tromsø (EISCAT)", latitude_deg=69.586, longitude_deg=19.227, height_m=86.0),
    Site.from_degrees("Millstone Hill", latitude_deg=42.619, longitude_deg=-71.491, height_m=146.0),
    Site.from_degrees("Kwajalein", latitude_deg=9.395, longitude_deg=167.479, height_m=60.0),
    Site.from_degrees("Cavalier", latitude_deg=48.724, longitude_deg=-97.900, height_m=347.0),
    Site.from_degrees("Fylingdales", latitude_deg=54.362, longitude_deg=-0.670, height_m=260.0),
    Site.from_degrees("Jicamarca", latitude_deg=-11.952, longitude_deg=-76.874, height_m=510.0),
)

TELESCOPE_SITES = (
    Site.from_degrees("Teide", latitude_deg=28.301, longitude_deg=-16.512, height_m=2390.0),
    Site.from_degrees("Siding Spring", latitude_deg=-31.273, longitude_deg=149.064, height_m=1165.0),
    Site.from_degrees("Cerro Tololo", latitude_deg=-30.169, longitude_deg=-70.806, height_m=2207.0),
    Site.from_degrees("Haleakala", latitude_deg=20.708, longitude_deg=-156.257, height_m=3055.0),
)
