"""What a space-domain-awareness engineer would call it: one file per thing.

Data path, read top to bottom: ``wire -> sources -> normalize -> validate -> dedup -> propagate -> correlate -> sinks``;
``records`` and ``correlation`` are what travels, ``astro`` and ``catalog`` what is known of orbits.
``simulate`` sends the same bytes real sensors would, over real sockets, from its own process.
"""
