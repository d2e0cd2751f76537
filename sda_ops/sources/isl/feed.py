"""The settings of one ISL listener: its address, and the limits for each peer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from datetime import timedelta

from orchestrator_adapter import check_fields
from sda_ops.wire import isl

_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class IslFeed:
    """Where beacons connect, and the limits for each peer.

    Deadlines run only while connections are read. They stand still while the inbox is full.

    Attributes:
        host: The address to listen on, IPv4 or IPv6; ``::`` is every address of both.
        port: The TCP port; 0 lets the system choose.
        max_connections: Further connections are closed at once and counted as ``rejected_connections``.
        max_connections_per_peer: The same limit for one remote address, which may be a gateway's. An IPv6 network of
            64 bits counts as one address, because a single host owns all of it.
        inbox_frames: Frames received and not yet emitted; above this number no connection is read.
        frame_deadline: The time from a frame's first byte to its last, after which the connection is closed. TCP itself
            takes about this long to recover from a link outage of half this length.
        silence_deadline: A connection without any data for this long is closed.
        max_frame_bytes: A longer frame length means that the framing is lost: the connection is closed.
        max_malformed_frames: A connection with more malformed frames than this is closed.
    """

    host: str
    port: int
    _: KW_ONLY
    max_connections: int = 256
    max_connections_per_peer: int = 64
    inbox_frames: int = 4_096
    frame_deadline: timedelta = timedelta(seconds=30)
    silence_deadline: timedelta = timedelta(minutes=5)
    max_frame_bytes: int = 4_096
    max_malformed_frames: int = 100

    def __post_init__(self) -> None:
        check_fields(
            "IslFeed",
            ("port", self.port, 0 <= self.port <= _MAX_PORT, f"0 to {_MAX_PORT}"),
            ("max_connections", self.max_connections, self.max_connections >= 1, ">= 1"),
            ("max_connections_per_peer", self.max_connections_per_peer, self.max_connections_per_peer >= 1, ">= 1"),
            ("inbox_frames", self.inbox_frames, self.inbox_frames >= 1, ">= 1"),
            ("frame_deadline", self.frame_deadline, self.frame_deadline > timedelta(0), "> 0"),
            ("silence_deadline", self.silence_deadline, self.silence_deadline > timedelta(0), "> 0"),
            (
                "max_frame_bytes",
                self.max_frame_bytes,
                self.max_frame_bytes >= isl.FRAME_SIZE,
                f">= {isl.FRAME_SIZE}",
            ),
            ("max_malformed_frames", self.max_malformed_frames, self.max_malformed_frames >= 0, ">= 0"),
        )
