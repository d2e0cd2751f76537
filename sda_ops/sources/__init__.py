"""Source operators, one module for each kind of feed: each turns the bytes of a feed into observations.

Sockets and read positions outlive the operator's instances (``ends.keep``). A malformed frame is counted, dead-lettered
with its bytes and logged at a bounded rate. It never stops a source.
"""
