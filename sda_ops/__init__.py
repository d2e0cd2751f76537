"""What a space-domain-awareness engineer would call it: one file per thing.

Data path, read top to bottom: ``wire -> sources -> normalize -> validate -> dedup -> sinks``; ``records`` is what travels.
``simulate`` sends the same bytes real sensors would, over real sockets, from its own process.
"""
