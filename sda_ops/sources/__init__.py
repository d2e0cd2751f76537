"""One feed a file: each makes a source operator that turns a feed's bytes into observations.

What a source listens on outlives its instances (``ends.keep``). A malformed frame is counted, kept as a dead letter with
its bytes, logged at a bounded rate, and never stops a source.
"""
