"""Sensors that send real bytes over real sockets, from a process of their own.

A catalogue is propagated with SGP4 and looked at from radar and telescope sites; what the sensors measure, with noise,
goes out as UDP datagrams, an HTTP archive and TCP beacons, at rates and with faults that you set. The truth that was
sent can be written down.

- ``config``: everything that can be set, validated at once
- ``world``: where every object is at any time
- ``radar``, ``optical``, ``isl``: one kind of sensor each: times -> frames, no I/O
- ``faults``: what is wrong with some frames; when there are bursts and outages
- ``links``, ``archive``: where frames leave the process
- ``pace``: one sensor's frames leave when their time has come
- ``truth``: what was sent
- ``run``: all of it together

Measurements are geometric at their timestamp: no light time, refraction or aberration, as a sensor reports that
corrects for them. Telescopes see by day and objects in the Earth's shadow, too.
"""

from sda_ops.simulate.config import Burst, ConfigurationError, Endpoint, Noise, Outage, SimulatorConfig
from sda_ops.simulate.run import Ready, simulate
from sda_ops.simulate.truth import SimulationSummary

__all__ = [
    "Burst",
    "ConfigurationError",
    "Endpoint",
    "Noise",
    "Outage",
    "Ready",
    "SimulationSummary",
    "SimulatorConfig",
    "simulate",
]
