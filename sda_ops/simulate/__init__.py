"""Simulated sensors that send real bytes over real sockets, from a process of their own.

A catalogue is propagated with SGP4 and observed from radar and telescope sites. The measurements, with noise, are sent as
UDP datagrams, an HTTP archive and TCP beacons, at configured rates and with configured faults. The truth can be written
to a file.

- ``config``: all settings, validated together
- ``staged``: made-up objects that pass catalogued ones: conjunctions and near misses
- ``world``: the position of every object at any time
- ``radar``, ``optical``, ``isl``: one kind of sensor each: times to frames, no I/O
- ``faults``: faults in frames; the times of bursts and outages
- ``links``, ``archive``: how frames are sent
- ``pace``: sends one sensor's frames when they are due
- ``truth``: the frames that were sent
- ``run``: a whole simulation

Timestamps are of the arrival of the signal, and light time is part of the measurement. There is no refraction and no
aberration, as for a sensor that corrects for them. Telescopes also observe by day, and objects in the Earth's shadow.
"""

from sda_ops.simulate.config import Burst, ConfigurationError, Endpoint, Noise, Outage, SimulatorConfig, Staged
from sda_ops.simulate.run import Ready, simulate
from sda_ops.simulate.staged import StagingPlan
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
    "Staged",
    "StagingPlan",
    "simulate",
]
