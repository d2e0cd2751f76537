"""Correlation: which catalogued object an observation belongs to, and updates from several sensors of one object.

- ``sensors``: where sensors are, and how well they measure
- ``candidates``: which objects an observation may belong to, with their scores
- ``measure``: residuals and likelihoods of candidates
- ``associate``: the gate and the decision
- ``operator``: the operator that associates
- ``fuse``: the operator that combines the correlations of one object by several sensors
"""
