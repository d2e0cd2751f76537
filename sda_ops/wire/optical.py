"""Optical archive: a JSON array of observations in time order, the body of the archive's HTTP answers.

``obs_id`` and ``site_id`` may be strings or integers on the wire (archives differ); ``17`` and ``"17"`` are the same name.
Unknown keys are ignored.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from math import pi
from typing import Annotated

import msgspec

from sda_ops.records.ids import observation_ids
from sda_ops.records.observation import Observation, OpticalTarget, Uncertainty
from sda_ops.wire.malformed import MalformedFrame

RAD_PER_ARCSEC = pi / (180 * 3600)

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class OpticalEntry(msgspec.Struct, frozen=True, gc=False):
    """One observation in the archive's format.

    Attributes:
        obs_id: The archive's name for the observation.
        timestamp_ns: Middle of the exposure, UTC nanoseconds since the Unix epoch.
        ra_rad: Topocentric right ascension, J2000, radians.
        dec_rad: Topocentric declination, J2000, radians.
        sigma_arcsec: One standard deviation of the direction, arc seconds.
        site_id: The telescope.
    """

    obs_id: str | int
    timestamp_ns: _Int64
    ra_rad: float
    dec_rad: float
    sigma_arcsec: float
    site_id: str | int


_decode_entries = msgspec.json.Decoder(list[OpticalEntry]).decode
_CONTENT = struct.Struct("<qdddI")


def encode_page(entries: Sequence[OpticalEntry]) -> bytes:
    """The body of an answer with these entries."""
    return msgspec.json.encode(entries)


def decode_page(body: bytes, *, ingest_timestamp: int) -> tuple[list[Observation], list[MalformedFrame]]:
    """The observations of the good entries, and a `MalformedFrame` for each bad one, both in the page's order.

    A bad entry (a missing key, a wrong type) costs only itself; its `frame` is the entry, encoded as JSON again. ``NaN`` and
    ``Infinity``, which some JSON writers emit, are read as numbers, for `sda_ops.validate` to reject.

    Raises:
        MalformedFrame: The body is not a JSON array.
    """
    malformed: list[MalformedFrame] = []
    try:
        entries = _decode_entries(body)
    except (msgspec.DecodeError, RecursionError):
        entries, malformed = _decode_one_by_one(body)
    ids = observation_ids("optical", [_content(entry) for entry in entries])
    observations = [
        Observation(
            entry_id,
            f"optical-{entry.site_id}",
            "optical",
            entry.timestamp_ns,
            ingest_timestamp,
            OpticalTarget(entry.ra_rad, entry.dec_rad),
            Uncertainty(sigma_angle_rad=entry.sigma_arcsec * RAD_PER_ARCSEC),
            str(entry.obs_id),
        )
        for entry_id, entry in zip(ids, entries, strict=True)
    ]
    return observations, malformed


def _decode_one_by_one(body: bytes) -> tuple[list[OpticalEntry], list[MalformedFrame]]:
    """The slow path, for a page with a bad entry: it finds the reason for each."""
    try:
        page = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(f"optical page: expected a JSON array, got {len(body)} bytes: {error}", body) from error
    if not isinstance(page, list):
        raise MalformedFrame(f"optical page: expected a JSON array, got a JSON {type(page).__name__}", body)
    entries, malformed = [], []
    for index, value in enumerate(page):
        try:
            entry = msgspec.convert(value, OpticalEntry)
            _content(entry)  # `json` accepts a lone surrogate, which could be neither hashed nor logged
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            malformed.append(MalformedFrame(f"optical entry {index}: {error}", json.dumps(value).encode()))
        else:
            entries.append(entry)
    return entries, malformed


def _content(entry: OpticalEntry) -> bytes:
    """The content that the id is made from: the entry's values, without white space and order of keys."""
    obs_id = str(entry.obs_id).encode()
    head = _CONTENT.pack(entry.timestamp_ns, entry.ra_rad, entry.dec_rad, entry.sigma_arcsec, len(obs_id))
    return head + obs_id + str(entry.site_id).encode()
