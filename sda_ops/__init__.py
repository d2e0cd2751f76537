"""Space domain awareness: observations of objects in orbit, from a sensor's bytes to a correlated record.

In the direction of the data: ``wire -> sources -> normalize -> validate -> dedup -> propagation -> correlate -> sinks``. ``records``
is what travels; ``astro`` and ``catalog`` are what is known of orbits. ``simulate`` sends the bytes that real sensors would send,
over real sockets, from a process of its own.
"""
