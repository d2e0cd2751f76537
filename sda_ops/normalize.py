"""Normalization: azimuths and right ascensions in [0, 2 pi), and timestamps corrected for known clock offsets.

Pure, and the first stage after decoding. It does not check plausibility: that is `sda_ops.validate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, tau

from msgspec.structs import replace

from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget


class Normalizer:
    """Converts observations to the common convention, one at a time: ``normalize = Normalizer(); normalize(o)``.

    Azimuth and right ascension are wrapped into [0, 2 pi). Elevation, declination and non-finite numbers are unchanged. An
    observation that needs no change is returned itself, not as a copy. The id never changes: it identifies the frame.
    """

    def __init__(self, *, clock_offset_ns: Mapping[str, int] | None = None) -> None:
        """``clock_offset_ns`` says, by source id, how far a sensor's clock is ahead of UTC; it is subtracted."""
        self._clock_offset_ns = {source: offset for source, offset in (clock_offset_ns or {}).items() if offset}

    def __call__(self, observation: Observation) -> Observation:
        """The same measurement in the common convention; never raises."""
        target = observation.target
        if type(target) is RadarTarget:
            azimuth = target.azimuth_rad
            if azimuth is not None and not 0.0 <= azimuth < tau and isfinite(azimuth):
                observation = replace(observation, target=replace(target, azimuth_rad=_wrapped(azimuth)))
        elif type(target) is OpticalTarget:
            ascension = target.right_ascension_rad
            if not 0.0 <= ascension < tau and isfinite(ascension):
                observation = replace(observation, target=replace(target, right_ascension_rad=_wrapped(ascension)))
        if self._clock_offset_ns:
            offset_ns = self._clock_offset_ns.get(observation.source_id)
            if offset_ns is not None:
                observation = replace(observation, sensor_timestamp=observation.sensor_timestamp - offset_ns)
        return observation


def _wrapped(angle_rad: float) -> float:
    wrapped_rad = angle_rad % tau
    return wrapped_rad if wrapped_rad < tau else 0.0  # -1e-20 % tau rounds to tau
