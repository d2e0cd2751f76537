"""Inter-satellite link beacons over TCP: a listener that outlives the operator, and a pump that empties its inbox.

Connections belong to the listener, so a restart of the operator closes none of them and loses no byte. Each connection
has its own ``FrameAssembler``; a peer that sends nonsense costs itself its connection and nobody else anything. The inbox
is bounded: when it is full, no connection is read from, and TCP carries the pressure back to the beacons.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from orchestrator_adapter import Clock, DeadLetterKind, Factory, OperatorError, WiredEnds
from orchestrator_adapter.wakeup import Wakeup
from sda_ops.records import Observation
from sda_ops.wire import isl
from sda_ops.wire.isl import Assembled, FrameAssembler, FramingLost
from sda_ops.wire.malformed import MalformedFrame

_BATCH = 512  # frames at a time out of the inbox
_FINAL_TURNS = 3  # turns of the event loop at shutdown, in which what the kernel holds is still read


@dataclass(frozen=True, slots=True)
class IslFeed:
    """Where beacons connect.

    Attributes:
        host: The address to listen on.
        port: The TCP port; 0 lets the system choose.
        max_connections: Further ones are turned away at once, counted as ``refused_connections``.
        inbox_frames: Frames received and not yet passed on, above which no connection is read.
    """

    host: str
    port: int
    max_connections: int = 256
    inbox_frames: int = 4_096


def isl_source(feed: IslFeed) -> Factory:
    """A source for all beacons of one listener. A port that is taken or forbidden is an ``OperatorError``."""

    async def run(ends: WiredEnds) -> None:
        listener = ends.keep("listener", lambda: _listener(feed, ends), IslListener.close)
        try:
            await listener.open()
            ends.gauge("port", listener.port)
            while not ends.shutdown.is_set:
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

    return run


def _listener(feed: IslFeed, ends: WiredEnds) -> IslListener:
    listener = IslListener(feed, ends.clock)
    ends.shutdown.on_set(listener.wakeup.wake)
    return listener


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
    done = 0
    try:
        for received_ns, frame in listener.inbox[:_BATCH]:
            if isinstance(frame, MalformedFrame):
                ends.dead_letter(frame.frame, DeadLetterKind.DESERIALIZATION, frame.reason)
                ends.count("decode_errors")
            else:
                observations.append(isl.decode_frame(frame, ingest_timestamp=received_ns))
            done += 1
    finally:  # a frame that the store would not keep stays at the head of the inbox
        del listener.inbox[:done]
    listener.resume()
    ends.gauge("connections", len(listener.connections))
    ends.gauge("refused_connections", listener.refused)


class IslListener:
    """The listening socket, its connections and their inbox: frames with the time at which they came in."""

    def __init__(self, feed: IslFeed, clock: Clock) -> None:
        self.clock = clock
        self.inbox: list[tuple[int, Assembled]] = []
        self.connections: set[BeaconConnection] = set()
        self.refused = 0
        self.wakeup = Wakeup()
        self._feed = feed
        self._server: asyncio.Server | None = None
        self._socket = _listen(feed)

    @property
    def port(self) -> int:
        """The port it really listens on."""
        return int(self._socket.getsockname()[1])

    @property
    def full(self) -> bool:
        """Whether connections must not be read."""
        return len(self.inbox) >= self._feed.inbox_frames

    async def open(self) -> None:
        """Start accepting; harmless when it does already."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: BeaconConnection(self), sock=self._socket)

    def admits(self) -> bool:
        """Whether one more connection is within the limit; counts the refusal otherwise."""
        if len(self.connections) < self._feed.max_connections:
            return True
        self.refused += 1
        return False

    def receive(self, frames: list[Assembled]) -> None:
        """Frames of one connection, in their order."""
        now_ns = self.clock.now_ns()
        self.inbox.extend((now_ns, frame) for frame in frames)
        if self.full:
            for connection in self.connections:
                connection.pause()
        self.wakeup.wake()

    def resume(self) -> None:
        """Read again, once the inbox has drained to half."""
        if len(self.inbox) <= self._feed.inbox_frames // 2:
            for connection in self.connections:
                connection.resume()

    def stop_accepting(self) -> None:
        """Turn new beacons away; the connected ones are still read."""
        if self._server is not None:
            self._server.close()

    def close(self) -> None:
        """Stop accepting and hang up on everyone. What is in the inbox stays there to be passed on."""
        self.stop_accepting()
        self._socket.close()
        for connection in tuple(self.connections):
            connection.hang_up()


class BeaconConnection(asyncio.Protocol):
    """One beacon's connection."""

    def __init__(self, listener: IslListener) -> None:
        self._listener = listener
        self._assembler = FrameAssembler()
        self._transport: asyncio.Transport | None = None
        self._hung_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._listener.admits():
            transport.abort()
            return
        self._listener.connections.add(self)
        if self._listener.full:
            self.pause()

    def data_received(self, data: bytes) -> None:
        if self not in self._listener.connections:
            return
        frames = self._assembler.feed(data)
        if frames:
            self._listener.receive(frames)
            if isinstance(frames[-1], FramingLost):
                self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's signature
        if self in self._listener.connections:
            self._listener.connections.discard(self)
            if (pending := self._assembler.pending) and not self._hung_up:
                reason = f"isl stream: the connection ended within a frame, after {len(pending)} bytes of it"
                self._listener.receive([MalformedFrame(reason, pending)])

    def pause(self) -> None:
        """Stop reading from this peer."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from this peer again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def hang_up(self) -> None:
        """Close the connection from our side. A frame that this tears was never taken in, and its beacon knows."""
        self._hung_up = True
        if self._transport is not None:
            self._transport.close()


def _listen(feed: IslFeed) -> socket.socket:
    try:
        return socket.create_server((feed.host, feed.port), backlog=128)
    except (OSError, UnicodeError) as error:  # the latter: a host name that IDNA cannot say
        raise OperatorError(f"isl feed: cannot listen on tcp://{feed.host}:{feed.port}: {error}") from error
