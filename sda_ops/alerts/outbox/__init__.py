"""The outbox: who receives which alert, and the SQLite file in which an alert waits until it is acknowledged.

- ``rules``: thresholds, severities and quiet rules, as pure functions
- ``values``: what goes in and comes out
- ``store``: the outbox of a pipeline; ``beside``: the same file for the command line
- ``recording``: which risks are new revisions; ``changes``: of single deliveries; ``space``: what is removed when
- ``file``: the tables
"""
