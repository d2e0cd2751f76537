"""Which objects come within the miss distance, and when: from element sets to minima of the distance of SGP4's positions.

From top to bottom: ``screen`` (the whole catalogue against itself) and ``against`` (some objects against all); ``results`` and
``changed``; ``refine``, ``narrow``, ``broad`` and ``nearby`` (from all pairs to candidates to minima); ``ephemeris``, ``certificate`` and
``direct`` (positions between knots, their error, and positions without knots); ``bounds`` (how far a pair can move in a slice, and why
nothing is missed).
"""
