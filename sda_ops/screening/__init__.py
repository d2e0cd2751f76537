"""Conjunction screening: every close approach of a catalogue of SGP4 element sets, complete within stated bounds.

Layout, top to bottom; a module imports only from modules below it:

- ``operator``: screening in a graph; ``coverage``: what is screened next; ``conjunction_table``: conjunctions and their
  history in a file; ``identity``: which estimate belongs to which conjunction
- ``pictures``, ``summary``, ``tables``: what was found as pictures, counts, and tables in files
- ``windows``: windows of a screening as calls of a bulkhead, with progress, resumption and cancellation
- ``checkpoints``: finished windows in files; ``worker``: what runs in a worker process; ``encoding``: results as arrays
- ``held``: positions that a worker keeps between calls
- ``screen``: the whole catalogue against itself; ``against``: some objects against the whole catalogue; ``passages``, ``boxes``:
  objects in the boxes of assets; ``changed``: held positions after a change of the catalogue
- ``results``: from what was found to a screening; ``nearby``: the broad phase of some objects against all
- ``refine``, ``narrow``, ``broad``: from all pairs to candidates to minima of SGP4 itself
- ``ephemeris``: positions between knots; ``certificate``: how good they are; ``direct``: SGP4 itself where there are no knots
- ``bounds``: how far a pair can move in a slice, and why nothing is missed; ``parallel``: arrays of one length
- ``assets``, ``volumes``: assets with their boxes, and the reader of a file of assets
- ``messages``: Conjunction Data Messages of what was assessed
- ``assess``: miss distances in the orbit's axes, probabilities, ages, fleets of what was found; ``formations``: slow pairs
- ``probability``, ``encounter``: collision probabilities, and the plane in which they are integrals
- ``assumptions``, ``sizes``, ``fleets``, ``orbit_classes``: what is assumed or known about the objects
- ``approaches``, ``objects``, ``exact``: what is screened, what is found, and SGP4's own states

What computes is pure: arrays in, arrays out. Only the operator knows of graphs. Nothing here knows settings or Prefect.
"""
