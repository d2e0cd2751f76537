"""Astrodynamics as pure, vectorised functions: times, frames, sites, what a sensor sees, batches of SGP4.

Metres, radians, seconds and UTC nanoseconds throughout; arrays in, arrays out. No I/O, no pydantic, no orchestrator.

- ``time``: UTC nanoseconds <-> the Julian date pair that SGP4 and ERFA take
- ``frames``: TEME -> Earth-fixed, TEME -> J2000
- ``sites``: a place on Earth and its local horizon
- ``topocentric``: azimuth, elevation, range, range-rate; right ascension and declination; light time; and back
- ``propagation``: many element sets at many times, by sgp4 or heyoka; what cannot be trusted is marked
- ``knots``: between four such times, by interpolation
"""
