"""Conjunction screening: every close approach of a catalogue of SGP4 element sets, complete within stated bounds.

Rooms, top to bottom; a room imports only from rooms below it:

- ``output``: tables, counts, pictures, conjunction messages
- ``conjunctions``: an identity that stays, its table in SQLite, and the source of a pipeline
- ``workers``: windows as calls of a bulkhead, with progress, cancellation and resumption
- ``volumes``: boxes of assets, and the passages through them
- ``assessment``: axes, ages, probabilities, fleets, formations
- ``geometry``: from element sets to closest approaches
- ``approaches``, ``objects``, ``exact``: what is screened, what is found, and SGP4's own states

Arrays in, arrays out: only ``workers``, ``conjunctions`` and ``output`` have effects.
"""
