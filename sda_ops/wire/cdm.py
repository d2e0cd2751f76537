"""Conjunction Data Messages (CCSDS 508.0-B-1 with corrigendum 2): what is known of one close approach of two objects.

`read_cdm` reads KVN and XML, `cdm_kvn` and `cdm_xml` write them. What is read is written again as the same value, in either
notation: `ConjunctionMessage`. It has the comments, too, and the keywords that the standard does not have.
"""

from sda_ops.wire.cdm_message import (
    ConjunctionMessage,
    ConjunctionObject,
    OrbitDetermination,
    PhysicalParameters,
    RtnCovariance,
)
from sda_ops.wire.cdm_reader import MAX_CDM_BYTES, read_cdm
from sda_ops.wire.cdm_writer import cdm_kvn, cdm_xml

__all__ = [
    "MAX_CDM_BYTES",
    "ConjunctionMessage",
    "ConjunctionObject",
    "OrbitDetermination",
    "PhysicalParameters",
    "RtnCovariance",
    "cdm_kvn",
    "cdm_xml",
    "read_cdm",
]
