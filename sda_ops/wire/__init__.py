"""Bytes and JSON to records and back: one format a file.

``radar`` (64-byte datagrams), ``optical`` (the archive's JSON pages), ``isl`` (length-prefixed 72-byte beacons), and
``malformed``, what all three say of bytes that are none of theirs.

A decoder judges *structure* only: sizes, keys, types. Whether the numbers make sense is `sda_ops.validate`'s question,
so that a NaN or a target inside the Earth is rejected there, with a reason, and not here as noise. Decoders are pure:
the time of arrival is passed in, sockets are the sources' business. Each format has its encoder beside it: the
simulator and the tests speak the same bytes as the sensors.
"""
