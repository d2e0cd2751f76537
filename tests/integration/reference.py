"""The hand-written loop that ``sda-ingest`` must agree with: the same work, without the orchestrator, one record at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta

import msgspec

from sda_ops.normalize import Normalizer
from sda_ops.records.observation import Observation
from sda_ops.validate import ValidationLimits, validate
from sda_ops.wire import isl, optical, radar
from sda_ops.wire.malformed import MalformedFrame


def decoded(
    datagrams: Iterable[bytes], pages: Iterable[bytes], beacon_streams: Iterable[bytes], *, now_ns: int
) -> Iterator[Observation]:
    """All observations that can be decoded, feed after feed."""
    for datagram in datagrams:
        try:
            yield radar.decode(datagram, ingest_timestamp=now_ns)
        except MalformedFrame:
            continue
    for page in pages:
        observations, _ = optical.decode_page(page, ingest_timestamp=now_ns)
        yield from observations
    for stream in beacon_streams:
        for frame in isl.FrameAssembler().feed(stream):
            if isinstance(frame, bytes):
                yield isl.decode_frame(frame, ingest_timestamp=now_ns)


def log_lines(observations: Iterable[Observation]) -> list[bytes]:
    """The lines that the event log must contain."""
    normalize, limits = Normalizer(), ValidationLimits(max_clock_skew=timedelta(seconds=300))
    lines = []
    for observation in observations:
        normal = normalize(observation)
        if validate(normal, reference_time_ns=normal.ingest_timestamp, limits=limits) is None:
            lines.append(msgspec.json.encode(normal))
    return lines


def without_ingest_time(lines: Iterable[bytes]) -> list[bytes]:
    """The lines, sorted, without the value of the one field that differs between runs."""
    blanked = []
    for line in lines:
        stamp = str(json.loads(line)["ingest_timestamp"]).encode()
        blanked.append(line.replace(b'"ingest_timestamp":' + stamp, b'"ingest_timestamp":0', 1))
    return sorted(blanked)
