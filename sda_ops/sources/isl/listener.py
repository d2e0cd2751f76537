"""The ISL listener: accepts beacons, collects their frames in a bounded inbox, and enforces limits and deadlines.

While the inbox is full no connection is read, and TCP passes the backpressure on to the beacons. A peer that is slow,
silent, half-open or hostile costs only itself: its connection is closed, and every other peer is read as often as it is.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from orchestrator_adapter import BoundedLog, Clock, Timer, Wakeup, close_in_forked_children
from sda_ops.sources.addresses import Binding, bracketed, failures_named, local_address
from sda_ops.sources.isl.connection import BeaconConnection, ConnectionFault
from sda_ops.sources.isl.feed import IslFeed
from sda_ops.wire.isl import Assembled

_ACCEPTS_A_TURN = 16  # connections
_ACCEPT_PAUSE_S = 1.0  # as in asyncio's own servers
_MAX_BACKLOG = 4_096  # connections in the kernel's queue; also the kernel's own limit (Linux 5.4, net.core.somaxconn)
_SHORTEST_TIMER_S = 0.001  # rounding can put a deadline just after its timer: the next check must not be at once

_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds idle, seconds between probes, unanswered probes (Linux, tcp(7)): a half-open peer is detected after 2 minutes."""


class IslListener:
    """The listening socket, its connections and their inbox: frames, each with the time at which it was received.

    One timer serves all deadlines. It exists only while there are connections.

    Attributes:
        feed: The settings.
        port: The port that the socket is bound to.
        inbox: Received frames, oldest first; the source removes them from the front.
        connections: The open connections.
        received_frames: How many frames have ever been put into the inbox.
        faults: How often each fault has occurred.
        wakeup: Woken when any of these changes.
    """

    def __init__(self, feed: IslFeed, binding: Binding, clock: Clock, operator: str) -> None:
        self.feed = feed
        self.inbox: list[tuple[int, Assembled]] = []
        self.connections: set[BeaconConnection] = set()
        self.received_frames = 0
        self.faults = dict.fromkeys(ConnectionFault, 0)
        self.wakeup = Wakeup()
        self._clock = clock
        self._log = BoundedLog(operator, clock)
        self._loop = asyncio.get_running_loop()
        self._socket = _listen(feed, binding)
        self.port = int(self._socket.getsockname()[1])
        self._closed_to_new = False
        self._accept_timer: Timer | None = None
        self._deadline_timer: Timer | None = None
        self._shortest_deadline_s = min(feed.frame_deadline, feed.silence_deadline).total_seconds()
        self._paused_since_s: float | None = None
        self._resumed_s = float("-inf")
        self._paused_s = 0.0  # in total, without a pause that is still going on

    @property
    def full(self) -> bool:
        """Whether connections must not be read."""
        return len(self.inbox) >= self.feed.inbox_frames

    @property
    def paused(self) -> bool:
        """Whether connections are not read at present."""
        return self._paused_since_s is not None

    def paused_within(self, last_s: float) -> bool:
        """Whether connections were not read at any time in the last ``last_s`` seconds."""
        return self.paused or self._clock.monotonic() - self._resumed_s <= last_s

    @property
    def reading_s(self) -> float:
        """Monotonic seconds during which connections were read. Deadlines run on this time: it stands still in a pause."""
        now_s = self._clock.monotonic() if self._paused_since_s is None else self._paused_since_s
        return now_s - self._paused_s

    @property
    def accepting(self) -> bool:
        """Whether new connections are accepted at present."""
        return not self._closed_to_new and self._accept_timer is None

    # Accepting.

    def accept(self) -> None:
        """Accept connections from now on. Does nothing after ``stop_accepting``."""
        _cancel(self._accept_timer)
        self._accept_timer = None
        if not self._closed_to_new:
            self._loop.add_reader(self._socket, self._accept_pending)

    def stop_accepting(self) -> None:
        """Close the listening socket. Open connections are still read."""
        _cancel(self._accept_timer)
        if not self._closed_to_new:
            self._closed_to_new = True
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def close(self) -> None:
        """Stop accepting and close every connection. The inbox keeps its frames, to be emitted."""
        self.stop_accepting()
        for connection in tuple(self.connections):
            connection.close()

    def _accept_pending(self) -> None:
        """Accept waiting connections, but only so many in one turn that the open ones are read in between."""
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, (address, port, *_) = self._socket.accept()  # IPv6 adds flow and scope
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Probably out of descriptors or memory. The socket stays readable, so that without a pause this would
                # be called again at once, endlessly. New peers wait in the kernel's queue; the others are still read.
                self._loop.remove_reader(self._socket)
                self._accept_timer = self._clock.call_later(_ACCEPT_PAUSE_S, self.accept)
                reason = f"isl feed: cannot accept a connection for {_ACCEPT_PAUSE_S:g} s: {error}"
                self.record(ConnectionFault.ACCEPT, reason)
                return
            self._admit(sock, _origin(address), f"{bracketed(address)}:{port}")

    def _admit(self, sock: socket.socket, origin: str, peer: str) -> None:
        if reason := self._rejection_reason(origin):
            sock.close()
            self.record(ConnectionFault.REJECTED, reason, peer)
            return
        close_in_forked_children(sock)  # the beacon must notice the end of this process
        connection = BeaconConnection(self, sock, origin, peer)
        self.connections.add(connection)
        if not self.paused:
            connection.resume()
        self._start_deadline_timer()
        self.wakeup.wake()

    def _rejection_reason(self, origin: str) -> str | None:
        """Why another connection from ``origin`` exceeds a limit; ``None`` if it does not."""
        feed = self.feed
        if len(self.connections) >= feed.max_connections:
            return f"isl feed: expected at most {feed.max_connections} connections, got one more"
        if sum(other.origin == origin for other in self.connections) >= feed.max_connections_per_peer:
            return f"isl feed: expected at most {feed.max_connections_per_peer} connections of {origin}, got one more"
        return None

    # Called by connections.

    def receive(self, frames: Sequence[Assembled]) -> None:
        """Append frames of one connection to the inbox, in their order."""
        now_ns = self._clock.now_ns()
        self.received_frames += len(frames)
        self.inbox.extend((now_ns, frame) for frame in frames)
        if self.full:
            # Not at once: connections that are readable in this same turn are read first. Otherwise a peer that always
            # fills the inbox, and comes first, would be the only one that is ever read.
            self._loop.call_soon(self._pause)
        self.wakeup.wake()

    def on_closed(self, connection: BeaconConnection) -> None:
        """Forget a closed connection."""
        self.connections.discard(connection)
        if not self.connections:
            _cancel(self._deadline_timer)
            self._deadline_timer = None
        self.wakeup.wake()

    def record(self, fault: ConnectionFault, reason: str, peer: str | None = None) -> None:
        """Count a fault and log it at a bounded rate."""
        self.faults[fault] += 1
        self._log.note(fault.value, reason, event="isl_fault", peer=peer)
        self.wakeup.wake()

    # Backpressure.

    def _pause(self) -> None:
        """Stop reading every connection if the inbox is still full. Deadlines stand still in a pause."""
        if self.full and not self.paused:
            self._paused_since_s = self._clock.monotonic()
            for connection in self.connections:
                connection.pause()

    def resume(self) -> None:
        """Read connections again, once the inbox is at most half full."""
        if self._paused_since_s is not None and len(self.inbox) <= self.feed.inbox_frames // 2:
            self._paused_s += self._clock.monotonic() - self._paused_since_s
            self._paused_since_s = None
            self._resumed_s = self._clock.monotonic()
            self._start_deadline_timer()
            for connection in self.connections:
                connection.resume()

    # Deadlines.

    def _start_deadline_timer(self) -> None:
        """Check deadlines when the next one can pass. No later one begins that passes sooner than the shortest."""
        if self._deadline_timer is None and self.connections and not self.paused:
            next_s = min(connection.next_deadline()[0] for connection in self.connections)
            delay_s = min(next_s - self.reading_s, self._shortest_deadline_s)
            self._deadline_timer = self._clock.call_later(max(delay_s, _SHORTEST_TIMER_S), self._expire_connections)

    def _expire_connections(self) -> None:
        """Close every connection whose deadline has passed."""
        self._deadline_timer = None
        now_s = self.reading_s
        for connection in tuple(self.connections):
            deadline_s, fault = connection.next_deadline()
            if deadline_s <= now_s:
                connection.expire(fault)
        self._start_deadline_timer()


def _origin(address: str) -> str:
    """What counts as one peer: an IPv4 address, or an IPv6 network of 64 bits (RFC 4291, section 2.5.4)."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))


def _cancel(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()


def resolve(feed: IslFeed) -> Binding:
    """Where to listen. Blocks, because a name server may take long. A name without an address is an ``OperatorError``."""
    with failures_named(_cannot_listen(feed)):
        return local_address(feed.host, feed.port, socket.SOCK_STREAM)


def _cannot_listen(feed: IslFeed) -> str:
    return f"isl feed: cannot listen on tcp://{bracketed(feed.host)}:{feed.port}"


def _listen(feed: IslFeed, binding: Binding) -> socket.socket:
    family, address = binding
    with failures_named(_cannot_listen(feed)):
        sock = socket.create_server(
            address,
            family=family,
            backlog=min(feed.max_connections, _MAX_BACKLOG),
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    close_in_forked_children(sock)  # the port must be free when this process ends
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    # On Linux every accepted connection inherits these options.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock
