"""The outbox: who hears which alert, and the SQLite file in which an alert waits until it is acknowledged.

- ``rules``: thresholds, severities and quiet rules, as pure functions
- ``values``: what goes in and comes out
- ``store``: the file
"""
