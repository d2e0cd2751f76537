"""The risk of conjunctions, with the evidence for it.

- ``evidence``: the observations of each object, by event time. Pure
- ``assessor``: updates, observations and watermarks in, statements out. Pure
- ``operator``: the operator ``risk``
"""
