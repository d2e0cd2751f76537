"""Inter-satellite link beacons over TCP, as a source operator.

Read in this order: ``source`` (the operator: inbox to graph), ``contact`` (before which time everything was emitted),
``listener`` (accepting, inbox, deadlines), ``connection`` (one beacon: bytes to frames), ``feed`` (settings).
"""

from sda_ops.sources.isl.feed import IslFeed
from sda_ops.sources.isl.source import isl_source

__all__ = ["IslFeed", "isl_source"]
