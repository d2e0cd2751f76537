"""Inter-satellite link beacons: a TCP stream of messages, each a ``u32`` little-endian length and a frame of 72 bytes.

`FrameAssembler` cuts the byte stream into frames, `decode_frame` decodes one. Neither knows sockets.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from sda_ops.records.ids import observation_id
from sda_ops.records.observation import Observation, StateTarget, Uncertainty
from sda_ops.wire.malformed import MalformedFrame

FRAME_SIZE = 72
PREFIX_SIZE = 4

_FRAME = struct.Struct("<IIQ3d3dff")
_PREFIX = struct.Struct("<I")


class FramingLost(MalformedFrame):
    """An impossible frame length: the start of the next frame is unknown, and the connection must be closed.

    Its `frame` has all bytes from the impossible length on.
    """


Assembled: TypeAlias = bytes | MalformedFrame | FramingLost
"""One piece of the stream: a whole 72-byte frame, a skipped one, or the loss of the framing."""


def encode(
    *,
    satellite_id: int,
    sequence: int,
    timestamp_ns: int,
    position_m: tuple[float, float, float],
    velocity_m_s: tuple[float, float, float],
    sigma_position_m: float,
    sigma_velocity_m_s: float,
) -> bytes:
    """One message: length prefix and frame; position and velocity in the TEME frame of the timestamp.

    Raises:
        struct.error: A number does not fit its field.
    """
    sigmas = (sigma_position_m, sigma_velocity_m_s)
    frame = _FRAME.pack(satellite_id, sequence, timestamp_ns, *position_m, *velocity_m_s, *sigmas)
    return _PREFIX.pack(FRAME_SIZE) + frame


def decode_frame(frame: bytes, *, ingest_timestamp: int) -> Observation:
    """The observation of one frame, which is given without its prefix.

    Raises:
        MalformedFrame: The frame is not 72 bytes long.
    """
    if len(frame) != FRAME_SIZE:
        raise _malformed(frame)
    satellite_id, _, timestamp_ns, x, y, z, vx, vy, vz, sigma_position, sigma_velocity = _FRAME.unpack(frame)
    return Observation(
        observation_id("isl", frame),
        f"isl-{satellite_id}",
        "isl",
        timestamp_ns,
        ingest_timestamp,
        StateTarget((x, y, z), (vx, vy, vz)),
        Uncertainty(sigma_position_m=sigma_position, sigma_velocity_m_s=sigma_velocity),
    )


class FrameAssembler:
    """Cuts one connection's byte stream into frames, for any segmentation by the network.

    It distinguishes *not enough bytes yet* (kept; nothing is returned), *bad bytes* (a length other than 72: skipped whole
    and returned as `MalformedFrame`) and *lost framing* (a length above `max_frame_bytes`: `FramingLost`). It stores at most
    one incomplete frame: `max_frame_bytes` and the prefix.
    """

    def __init__(self, *, max_frame_bytes: int = 64 * 1024) -> None:
        if max_frame_bytes < FRAME_SIZE:
            raise ValueError(f"FrameAssembler: max_frame_bytes must be >= {FRAME_SIZE}, got {max_frame_bytes}")
        self._max_frame_bytes = max_frame_bytes
        self._pending = b""
        self._lost: FramingLost | None = None

    @property
    def pending_bytes(self) -> int:
        """The number of bytes of the incomplete message, prefix included."""
        return len(self._pending)

    @property
    def pending(self) -> bytes:
        """The bytes of the incomplete message, prefix included."""
        return self._pending

    def feed(self, data: bytes) -> list[Assembled]:
        """Every frame that is complete with these bytes, in stream order. The rest is kept for the next call.

        A `FramingLost` is always the last item, after the frames that were completed before it.

        Raises:
            FramingLost: The framing was lost in an earlier call.
        """
        if self._lost is not None:
            raise self._lost
        buffer = self._pending + data
        assembled: list[Assembled] = []
        start, end = 0, len(buffer)
        while end - start >= PREFIX_SIZE:
            (length,) = _PREFIX.unpack_from(buffer, start)
            if length > self._max_frame_bytes:
                self._lost = FramingLost(
                    f"isl stream: expected a frame length of {FRAME_SIZE} (at most {self._max_frame_bytes}), got {length}",
                    buffer[start:],
                )
                assembled.append(self._lost)
                start = end
                break
            stop = start + PREFIX_SIZE + length
            if stop > end:
                break
            frame = buffer[start + PREFIX_SIZE : stop]
            assembled.append(frame if length == FRAME_SIZE else _malformed(frame))
            start = stop
        self._pending = buffer[start:]
        return assembled


def _malformed(frame: bytes) -> MalformedFrame:
    return MalformedFrame(f"isl frame: expected {FRAME_SIZE} bytes, got {len(frame)}", frame)
