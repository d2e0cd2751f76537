"""Whose observation is it? From a catalogue in motion and a measurement to an association, and across sensors to an update.

- ``uncertainty``: how far off an element set is
- ``sited``, ``sensors``: where sensors are, and how well they measure
- ``interval``: the catalogue for twenty seconds, with its spatial indices
- ``measure``: candidates against measurements
- ``associate``: gate, nearest, and the decision
- ``windows``: several sensors, one object
- ``operators``: all this as operators of a graph
"""
