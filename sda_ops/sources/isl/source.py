"""The ISL source operator: takes received frames from the listener's inbox and emits them as observations.

The listener outlives the operator's instances (``ends.keep``): a restart closes no connection and loses no byte. Sockets,
limits and deadlines are the listener's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from orchestrator_adapter import DeadLetterKind, Factory, WiredEnds
from sda_ops.records.observation import Observation
from sda_ops.sources.addresses import Binding
from sda_ops.sources.isl.contact import ContactRounds
from sda_ops.sources.isl.feed import IslFeed
from sda_ops.sources.isl.listener import IslListener, resolve
from sda_ops.wire import isl
from sda_ops.wire.malformed import MalformedFrame

_BATCH = 512  # frames taken from the inbox at a time
_FINAL_TURNS = 64  # event loop turns at shutdown in which connections are still read: 1 MiB of each


def isl_source(
    feed: IslFeed,
    *,
    on_contact: Callable[[int], object] | None = None,
    live_for: timedelta = timedelta(seconds=10),
) -> Factory:
    """A source for all beacons of one listener. A port that is in use or forbidden is an ``OperatorError``.

    ``on_contact`` is called, up to twice a second, with a time (UTC ns) before which everything that had arrived on any
    connection has been emitted. There is no contact without a connection that has had data within ``live_for``; the others
    are not waited for. See ``contact``.
    """

    async def run(ends: WiredEnds) -> None:
        binding = await ends.run_blocking(resolve, feed)
        listener = ends.keep("listener", lambda: _open_listener(feed, binding, ends), IslListener.close)
        try:
            contacts = None
            if on_contact is not None:
                contacts = ContactRounds(listener, ends.clock, on_contact, live_for=live_for)
            await _receive(listener, ends, contacts)
        finally:
            _enqueue_remaining(listener, ends)
            _publish_figures(listener, ends)

    return run


def _open_listener(feed: IslFeed, binding: Binding, ends: WiredEnds) -> IslListener:
    listener = IslListener(feed, binding, ends.clock, ends.name)
    ends.shutdown.on_set(listener.wakeup.wake)
    return listener


async def _receive(listener: IslListener, ends: WiredEnds, contacts: ContactRounds | None) -> None:
    """Emit what arrives until the shutdown, then what the kernel and the inbox still contain."""
    listener.accept()
    ends.gauge("port", listener.port)
    while not ends.shutdown.is_set:
        await ends.flush()  # suspends while the source is paused: frames then stay in the inbox, and with the peers
        _publish_figures(listener, ends)
        if listener.inbox:
            observations = await _emit_batch(listener, ends)
            if contacts is not None:
                contacts.emitted(observations)
        elif contacts is None:
            await listener.wakeup.wait()
        else:
            await listener.wakeup.wait_until(contacts.next_s, ends.clock)
        if contacts is not None:
            contacts.advance()
    listener.stop_accepting()
    for _ in range(_FINAL_TURNS):
        await asyncio.sleep(0)
    listener.close()
    while listener.inbox:
        await _emit_batch(listener, ends)


def _publish_figures(listener: IslListener, ends: WiredEnds) -> None:
    """Publish the listener's counts, which continue across restarts, as figures of the operator."""
    ends.gauge("connections", len(listener.connections))
    for fault, count in listener.faults.items():
        ends.gauge(fault.value, count)


async def _emit_batch(listener: IslListener, ends: WiredEnds) -> list[Observation]:
    """Move one batch from the inbox into the graph, and return it. Nothing is awaited while a frame is in neither."""
    observations: list[Observation] = []
    try:
        _decode_batch(listener, ends, observations)
    finally:
        await ends.emit(observations)
    await asyncio.sleep(0)  # malformed frames fill no edge: without this, a flood of them would block the event loop
    return observations


def _enqueue_remaining(listener: IslListener, ends: WiredEnds) -> None:
    """Give the rest of the inbox to the runtime, which delivers or dead-letters it. Runs however an instance ends."""
    if ends.shutdown.is_set:
        listener.close()  # no later instance would take what still arrives
    observations: list[Observation] = []
    try:
        while listener.inbox:
            _decode_batch(listener, ends, observations)
    finally:
        ends.sender.offer(observations)


def _decode_batch(listener: IslListener, ends: WiredEnds, observations: list[Observation]) -> None:
    """Take one batch from the inbox: good frames are appended to ``observations``, malformed ones dead-lettered."""
    for received_ns, frame in listener.inbox[:_BATCH]:
        if isinstance(frame, MalformedFrame):
            ends.count("decode_errors")
            # TCP has acknowledged these bytes. A full store must not cost the good frames after them, nor the count.
            ends.dead_letter(frame.frame, DeadLetterKind.DESERIALIZATION, frame.reason, must_keep=False)
        else:
            observations.append(isl.decode_frame(frame, ingest_timestamp=received_ns))
    del listener.inbox[:_BATCH]
    listener.resume()
