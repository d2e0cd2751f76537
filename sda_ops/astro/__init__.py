"""Astrodynamics as pure, vectorised functions: times, frames, sites, sensor measurements, batches of SGP4.

Metres, radians, seconds and UTC nanoseconds throughout; arrays in, arrays out. No I/O, no pydantic, no orchestrator.

- ``time``: UTC nanoseconds <-> the Julian date pair that SGP4 and ERFA take
- ``frames``: TEME -> Earth-fixed, TEME -> J2000
- ``sites``: places on Earth and their local horizons
- ``topocentric``: azimuth, elevation, range, range-rate; right ascension and declination; light time; and the inverses
- ``propagation``: many element sets at many times, by sgp4 or heyoka, with an error code for each unusable state
- ``knots``: interpolation between four such times
"""
