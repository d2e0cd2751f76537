"""Inter-satellite link beacons over TCP: a listener that outlives the operator, and a pump that empties its inbox.

Connections belong to the listener, so a restart of the operator closes none of them and loses no byte. Each connection
has its own ``FrameAssembler``. The inbox is bounded: when it is full, no connection is read from, and TCP carries the
pressure back to the beacons.

A peer that is slow, silent, half-open or hostile costs only itself: the deadlines and limits of the ``IslFeed`` end its
connection, and however much it sends, everyone else who has sent something is read as often as it is.

We never write to a beacon. So bare sockets do, without asyncio's transports: a connection is there once it is accepted
and gone once it is closed, with no state in between, and one that is turned away costs next to nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from enum import StrEnum

from orchestrator_adapter import BoundedLog, Clock, DeadLetterKind, Factory, OperatorError, Timer, Wakeup, WiredEnds
from sda_ops.records.observation import Observation
from sda_ops.wire import isl
from sda_ops.wire.isl import Assembled, FrameAssembler, FramingLost
from sda_ops.wire.malformed import MalformedFrame

_BATCH = 512  # frames at a time out of the inbox
_READ_BYTES = 16 * 1024  # of one connection a turn: what 256 of them can bring beyond a full inbox is then 4 MiB
_FINAL_TURNS = 64  # turns of the event loop at shutdown, in which what the kernel holds is still read: 1 MiB of each
_ACCEPTS_A_TURN = 16  # connections
_ACCEPT_PAUSE_S = 1.0  # as asyncio's own servers
_MAX_BACKLOG = 4_096  # connections in the kernel's queue: its own limit, too (Linux 5.4, net.core.somaxconn)
_MAX_PORT = 65_535
_SHORTEST_TIMER_S = 0.001  # a deadline that rounding puts a hair ahead must not be looked at again at the same instant

_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds idle, seconds between probes, probes unanswered (Linux, tcp(7)): a half-open peer is found after 2 minutes."""


@dataclass(frozen=True, slots=True)
class IslFeed:
    """Where beacons connect, and what a peer may cost.

    Deadlines run while a connection is read from: where the inbox is full, it is not the peer who is late.

    Attributes:
        host: The address to listen on, IPv4 or IPv6; ``::`` is every address of both.
        port: The TCP port; 0 lets the system choose.
        max_connections: Further ones are turned away at once, counted as ``rejected_connections``.
        max_connections_per_peer: Likewise for the connections of one remote address, which may be a gateway's. An IPv6
            network of 64 bits counts as one address: a single host has all of it to itself.
        inbox_frames: Frames received and not yet passed on, above which no connection is read.
        frame_deadline: How long after its first byte a frame must be whole, or the peer is hung up on. TCP itself takes
            about so long to mend a link that was down for half of it.
        silence_deadline: A peer that sends nothing at all for so long is hung up on.
        max_frame_bytes: A longer frame is taken for lost framing: whoever announces one is hung up on.
        max_malformed_frames: A peer that sends more of them on one connection is hung up on.
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
        problems = [
            f"IslFeed: {name} must be {bound}, got {value!r}"
            for name, value, good, bound in (
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
            if not good
        ]
        if problems:
            raise ValueError("; ".join(problems))


class ConnectionFault(StrEnum):
    """What the listener counts and logs: stable codes."""

    SLOW = "closed_slow"
    SILENT = "closed_silent"
    MALFORMED = "closed_malformed"
    FRAMING_LOST = "closed_framing_lost"
    REJECTED = "rejected_connections"
    ACCEPT = "accept_failures"


def isl_source(feed: IslFeed) -> Factory:
    """A source for all beacons of one listener. A port that is taken or forbidden is an ``OperatorError``."""

    async def run(ends: WiredEnds) -> None:
        listener = ends.keep("listener", lambda: _listener(feed, ends), IslListener.close)
        try:
            listener.open()
            ends.gauge("port", listener.port)
            while not ends.shutdown.is_set:
                _show(listener, ends)
                if listener.inbox:
                    await _pass_on(listener, ends)
                else:
                    await listener.wakeup.wait()
            listener.stop_accepting()
            for _ in range(_FINAL_TURNS):
                await asyncio.sleep(0)
            listener.close()
            while listener.inbox:
                await _pass_on(listener, ends)
        finally:
            _hand_over(listener, ends)
            _show(listener, ends)

    return run


def _listener(feed: IslFeed, ends: WiredEnds) -> IslListener:
    listener = IslListener(feed, ends.clock, ends.name)
    ends.shutdown.on_set(listener.wakeup.wake)
    return listener


def _show(listener: IslListener, ends: WiredEnds) -> None:
    """The listener's figures, as the operator's. It outlives the instances, and so its counts go on across them."""
    ends.gauge("connections", len(listener.connections))
    for fault, count in listener.faults.items():
        ends.gauge(fault.value, count)


async def _pass_on(listener: IslListener, ends: WiredEnds) -> None:
    """A batch from the inbox into the graph. What leaves the one is in the other before anything is awaited."""
    observations: list[Observation] = []
    try:
        _take_out(listener, ends, observations)
    finally:
        await ends.emit(observations)
    await asyncio.sleep(0)  # a flood of malformed frames fills no edge, and would freeze the loop for everyone


def _hand_over(listener: IslListener, ends: WiredEnds) -> None:
    """However an instance ends: what its inbox holds is the runtime's from now on, to deliver or to bury."""
    if ends.shutdown.is_set:
        listener.close()  # nothing more may come: nobody would take it
    observations: list[Observation] = []
    try:
        while listener.inbox:
            _take_out(listener, ends, observations)
    finally:
        ends.sender.offer(observations)


def _take_out(listener: IslListener, ends: WiredEnds, observations: list[Observation]) -> None:
    """A batch out of the inbox: the good frames onto ``observations``, the bad ones to the dead letters."""
    for received_ns, frame in listener.inbox[:_BATCH]:
        if isinstance(frame, MalformedFrame):
            ends.count("decode_errors")
            # TCP has acknowledged it: a store that is full may cost neither the good ones behind it nor the count.
            ends.dead_letter(frame.frame, DeadLetterKind.DESERIALIZATION, frame.reason, must_keep=False)
        else:
            observations.append(isl.decode_frame(frame, ingest_timestamp=received_ns))
    del listener.inbox[:_BATCH]
    listener.resume()


class IslListener:
    """The listening socket, its connections and their inbox: frames with the time at which they came in.

    It has one timer for all deadlines, and none without a connection.

    Attributes:
        feed: What it was told.
        port: The port it really listens on.
        inbox: To be taken from its head.
        connections: Those that are open.
        faults: How often there was each.
        wakeup: Woken when any of these changes.
    """

    def __init__(self, feed: IslFeed, clock: Clock, operator: str) -> None:
        self.feed = feed
        self.inbox: list[tuple[int, Assembled]] = []
        self.connections: set[BeaconConnection] = set()
        self.faults = dict.fromkeys(ConnectionFault, 0)
        self.wakeup = Wakeup()
        self._clock = clock
        self._log = BoundedLog(operator, clock)
        self._loop = asyncio.get_running_loop()
        self._socket = _listen(feed)
        self.port = int(self._socket.getsockname()[1])
        self._accepts_no_more = False
        self._accept_again: Timer | None = None
        self._enforcement: Timer | None = None
        self._shortest_deadline_s = min(feed.frame_deadline, feed.silence_deadline).total_seconds()
        self._paused_since_s: float | None = None
        self._paused_s = 0.0  # in all, but for a pause that still lasts

    @property
    def full(self) -> bool:
        """Whether connections must not be read."""
        return len(self.inbox) >= self.feed.inbox_frames

    @property
    def paused(self) -> bool:
        """Whether they are not."""
        return self._paused_since_s is not None

    @property
    def reading_s(self) -> float:
        """The time that deadlines run on: monotonic seconds in which connections were read. Stands still in a pause."""
        now_s = self._clock.monotonic() if self._paused_since_s is None else self._paused_since_s
        return now_s - self._paused_s

    # The way in.

    def open(self) -> None:
        """Accept; harmless when it does already, or does so no more."""
        _cancel(self._accept_again)
        self._accept_again = None
        if not self._accepts_no_more:
            self._loop.add_reader(self._socket, self._accept)

    def stop_accepting(self) -> None:
        """Turn new beacons away; the connected ones are still read."""
        _cancel(self._accept_again)
        if not self._accepts_no_more:
            self._accepts_no_more = True
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def close(self) -> None:
        """Stop accepting and hang up on everyone. What is in the inbox stays there to be passed on."""
        self.stop_accepting()
        for connection in tuple(self.connections):
            connection.close()

    def _accept(self) -> None:
        """Let in those who wait; but a crowd at the door must leave the others their turn."""
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, (address, port, *_) = self._socket.accept()  # of IPv6, flow and scope come after it
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Most likely out of descriptors or memory. The socket stays readable: without a pause we should be
                # called again at once, and for ever. Who waits does so in the kernel's queue; the others are read on.
                self._loop.remove_reader(self._socket)
                self._accept_again = self._clock.call_later(_ACCEPT_PAUSE_S, self.open)
                self.note(
                    ConnectionFault.ACCEPT, f"isl feed: cannot accept a connection for {_ACCEPT_PAUSE_S:g} s: {error}"
                )
                return
            self._admit(sock, _origin(address), f"{_bracketed(address)}:{port}")

    def _admit(self, sock: socket.socket, origin: str, peer: str) -> None:
        if rejection := self._rejection_reason(origin):
            sock.close()
            self.note(ConnectionFault.REJECTED, rejection, peer)
            return
        connection = BeaconConnection(self, sock, origin, peer)
        self.connections.add(connection)
        if not self.paused:
            connection.resume()
        self._arm()
        self.wakeup.wake()

    def _rejection_reason(self, origin: str) -> str | None:
        """Why another connection of ``origin`` is one too many, if it is."""
        feed = self.feed
        if len(self.connections) >= feed.max_connections:
            return f"isl feed: expected at most {feed.max_connections} connections, got one more"
        if sum(other.origin == origin for other in self.connections) >= feed.max_connections_per_peer:
            return f"isl feed: expected at most {feed.max_connections_per_peer} connections of {origin}, got one more"
        return None

    # What connections tell.

    def receive(self, frames: Sequence[Assembled]) -> None:
        """Frames of one connection, in their order."""
        now_ns = self._clock.now_ns()
        self.inbox.extend((now_ns, frame) for frame in frames)
        if self.full:
            # Not at once: whoever else has something to be read in this turn is read first. Else the one that happens
            # to come first, and always has enough to fill the inbox, would be the only one ever read.
            self._loop.call_soon(self._pause)
        self.wakeup.wake()

    def forget(self, connection: BeaconConnection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        if not self.connections:
            _cancel(self._enforcement)
            self._enforcement = None
        self.wakeup.wake()

    def note(self, fault: ConnectionFault, reason: str, peer: str | None = None) -> None:
        """Count it, and log it unless there were many."""
        self.faults[fault] += 1
        self._log.note(fault.value, reason, event="isl_fault", peer=peer)
        self.wakeup.wake()

    # Backpressure.

    def _pause(self) -> None:
        """Read nobody, if the inbox still is full; their deadlines stand still."""
        if self.full and not self.paused:
            self._paused_since_s = self._clock.monotonic()
            for connection in self.connections:
                connection.pause()

    def resume(self) -> None:
        """Read again, once the inbox has drained to half."""
        if self._paused_since_s is not None and len(self.inbox) <= self.feed.inbox_frames // 2:
            self._paused_s += self._clock.monotonic() - self._paused_since_s
            self._paused_since_s = None
            self._arm()
            for connection in self.connections:
                connection.resume()

    # Deadlines.

    def _arm(self) -> None:
        """Look at the deadlines when the next one can pass: of those that begin later, none does so sooner."""
        if self._enforcement is None and self.connections and not self.paused:
            next_s = min(connection.due()[0] for connection in self.connections)
            delay_s = min(next_s - self.reading_s, self._shortest_deadline_s)
            self._enforcement = self._clock.call_later(max(delay_s, _SHORTEST_TIMER_S), self._enforce)

    def _enforce(self) -> None:
        """Hang up on everyone whose deadline has passed."""
        self._enforcement = None
        now_s = self.reading_s
        for connection in tuple(self.connections):
            due_s, fault = connection.due()
            if due_s <= now_s:
                connection.overdue(fault)
        self._arm()


class BeaconConnection:
    """One beacon's connection, not read from until ``resume``.

    Attributes:
        origin: What the limit per peer counts: the remote address, or the IPv6 network that it is in.
        peer: The remote address and port, for people.
    """

    def __init__(self, listener: IslListener, sock: socket.socket, origin: str, peer: str) -> None:
        self.origin = origin
        self.peer = peer
        self._listener = listener
        self._feed = listener.feed
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._assembler = FrameAssembler(max_frame_bytes=self._feed.max_frame_bytes)
        self._malformed_frames = 0
        self._heard_s = self._frame_began_s = listener.reading_s

    def resume(self) -> None:
        """Read from this peer."""
        self._loop.add_reader(self._socket, self._read)

    def pause(self) -> None:
        """Stop reading from this peer."""
        self._loop.remove_reader(self._socket)

    def close(self) -> None:
        """Close the connection. A frame that this tears was never taken in; its beacon can tell."""
        self.pause()
        self._socket.close()
        self._listener.forget(self)

    def due(self) -> tuple[float, ConnectionFault]:
        """When the next of its deadlines passes, in the listener's ``reading_s``, and which one that is."""
        silent = (self._heard_s + self._feed.silence_deadline.total_seconds(), ConnectionFault.SILENT)
        if not self._assembler.pending_bytes:
            return silent
        return min(silent, (self._frame_began_s + self._feed.frame_deadline.total_seconds(), ConnectionFault.SLOW))

    def overdue(self, fault: ConnectionFault) -> None:
        """Hang up, for a deadline has passed; what came of a frame is kept."""
        if fault is ConnectionFault.SLOW:
            limit_s, size = self._feed.frame_deadline.total_seconds(), self._assembler.pending_bytes
            reason = f"isl stream: expected a whole frame within {limit_s:g} s, got {size} bytes of it"
        else:
            limit_s = self._feed.silence_deadline.total_seconds()
            reason = f"isl stream: expected something within {limit_s:g} s, got nothing"
        self._bury_torn(reason)
        self._hang_up(fault, reason)

    def _read(self) -> None:
        """Once a turn, and not more than the others."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # reset, or given up by keep-alive
            data = b""
        if data:
            self._receive(data)
        else:
            size = self._assembler.pending_bytes
            self._bury_torn(f"isl stream: the connection ended within a frame, after {size} bytes of it")
            self.close()

    def _receive(self, data: bytes) -> None:
        torn = self._assembler.pending
        frames = self._assembler.feed(data)
        self._heard_s = self._listener.reading_s
        if frames or not torn:
            self._frame_began_s = self._heard_s  # of the frame that is incomplete now; more bytes of it change nothing
        limit = self._feed.max_malformed_frames
        allowance = limit - self._malformed_frames
        malformed = sum(isinstance(frame, MalformedFrame) for frame in frames)
        self._malformed_frames += malformed
        if malformed > allowance:
            frames = _cut(frames, allowance, torn + data)
        if frames:
            self._listener.receive(frames)
        if frames and isinstance(frames[-1], FramingLost):
            self._hang_up(ConnectionFault.FRAMING_LOST, frames[-1].reason)
        elif malformed > allowance:
            self._hang_up(
                ConnectionFault.MALFORMED, f"isl stream: expected at most {limit} malformed frames, got one more"
            )

    def _bury_torn(self, reason: str) -> None:
        if torn := self._assembler.pending:
            self._listener.receive([MalformedFrame(reason, torn)])

    def _hang_up(self, fault: ConnectionFault, reason: str) -> None:
        self._listener.note(fault, reason, self.peer)
        self.close()


def _cut(frames: list[Assembled], allowance: int, stream: bytes) -> list[Assembled]:
    """``frames`` up to the first malformed one beyond ``allowance``, and what follows in ``stream`` as one more.

    Else a peer could have a dead letter made of every four bytes. What was read is kept all the same.
    """
    end = 0
    for number, frame in enumerate(frames, 1):
        if isinstance(frame, MalformedFrame):
            allowance -= 1
            end += isl.PREFIX_SIZE + len(frame.frame)
        else:
            end += isl.PREFIX_SIZE + len(frame)
        if allowance < 0 and end < len(stream):
            reason = f"isl stream: {len(stream) - end} bytes after one malformed frame too many"
            return [*frames[:number], MalformedFrame(reason, stream[end:])]
    return frames


def _origin(address: str) -> str:
    """Who is behind a remote address: itself, but for IPv6 its network of 64 bits (RFC 4291, section 2.5.4)."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _cancel(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()


def _listen(feed: IslFeed) -> socket.socket:
    try:
        found = socket.getaddrinfo(feed.host or None, feed.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Of a name that has both, the IPv4 address: it is the one that every beacon can reach.
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        sock = socket.create_server(
            address,
            family=family,
            backlog=min(feed.max_connections, _MAX_BACKLOG),
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, UnicodeError) as error:  # the latter: a host name that IDNA cannot say
        where = f"tcp://{_bracketed(feed.host)}:{feed.port}"
        raise OperatorError(f"isl feed: cannot listen on {where}: {error}") from error
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    # Linux hands these on to every connection it accepts here.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock
