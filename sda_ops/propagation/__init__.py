"""The catalogue in motion: every observation gets the states of all catalogued objects around its time.

- ``uncertainty``: how uncertain an element set's state is
- ``interval``: the states of the whole catalogue over 20 seconds, with a spatial index
- ``worker``, ``pool``: SGP4 in worker processes
- ``operator``: the ``propagate`` operator
"""
