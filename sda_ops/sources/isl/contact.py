"""When everything that had arrived before a time has been emitted, for a listener with many connections.

A *round* begins at a time ``D``. It notes how many bytes of each connection the kernel has received and this process has not
read. When those have been read, or their connection has closed, everything that had arrived before ``D`` is in the inbox or
was emitted; and when what was in the inbox then has been emitted, ``D`` is a contact. So there are contacts under a load that never
leaves the inbox empty, and none while connections are not read.

TCP does not show whether a silent peer has nothing to send or its link is broken: nothing is sent to a beacon, and the kernel's probes
begin after a minute. What a broken link holds back is later than the last data, because a connection keeps the order. So a
connection counts as *live* for a time after its last data; without a live one there is no contact.

While connections are not read, the beacons keep what the kernel has no room for, and how much that is cannot be seen. After
such a pause the observations themselves show it: as long as one is older than it may be, the contact is its time, and not
``D``. What follows on its connection is not older.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from orchestrator_adapter import Clock
from sda_ops.records.observation import Observation
from sda_ops.sources.isl.connection import BeaconConnection
from sda_ops.sources.isl.listener import IslListener

_EVERY_S = 0.5  # a round asks the kernel once for each connection
_CATCH_UP_S = 60.0  # after a pause; later, an old observation is one of a wrong clock
_OLDEST_NS = 300 * 1_000_000_000  # as above; validation rejects older ones by default


class ContactRounds:
    """The rounds of one instance of the source; see above."""

    def __init__(
        self, listener: IslListener, clock: Clock, on_contact: Callable[[int], object], *, live_for: timedelta
    ) -> None:
        """``on_contact`` gets each contact, UTC ns. ``live_for``: how long a connection counts as live after its last data."""
        self._on_contact = on_contact
        self._listener = listener
        self._clock = clock
        self._live_for_s = live_for.total_seconds()
        self._live_for_ns = round(self._live_for_s * 1e9)
        self._oldest_ns: int | None = None  # of the observations that are behind, since the last contact
        self._last_ns = 0
        self._next_s = clock.monotonic()
        self._began_ns: int | None = None
        self._unread_until: dict[BeaconConnection, int] = {}
        self._fence: int | None = None  # in frames ever received

    @property
    def next_s(self) -> float:
        """When to call ``advance`` again if nothing arrives, monotonic seconds."""
        return self._next_s if self._began_ns is None else self._clock.monotonic() + _EVERY_S

    def emitted(self, observations: Sequence[Observation]) -> None:
        """These have been emitted."""
        if self._listener.paused_within(_CATCH_UP_S):
            behind = [
                it.sensor_timestamp
                for it in observations
                if self._live_for_ns < it.ingest_timestamp - it.sensor_timestamp <= _OLDEST_NS
            ]
            if behind:
                self._oldest_ns = min(behind) if self._oldest_ns is None else min(self._oldest_ns, *behind)

    def advance(self) -> None:
        """Call it when all that was taken from the inbox has been emitted."""
        if (contact_ns := self._found()) is not None:
            self._on_contact(contact_ns)

    def _found(self) -> int | None:
        """A contact, UTC ns, when one is found."""
        listener, now_s = self._listener, self._clock.monotonic()
        if self._began_ns is None:
            if now_s < self._next_s:
                return None
            self._next_s = now_s + _EVERY_S
            if not listener.accepting or not any(it.silent_s <= self._live_for_s for it in listener.connections):
                return None
            self._began_ns = self._clock.now_ns()
            self._unread_until = {
                it: it.received_bytes + unread for it in listener.connections if (unread := it.unread_bytes)
            }
        if self._fence is None:
            self._unread_until = {
                it: until
                for it, until in self._unread_until.items()
                if it in listener.connections and it.received_bytes < until
            }
            if self._unread_until:
                return None
            self._fence = listener.received_frames
        if listener.received_frames - len(listener.inbox) < self._fence:
            return None
        contact_ns = self._began_ns if self._oldest_ns is None else min(self._began_ns, self._oldest_ns)
        self._began_ns, self._fence, self._oldest_ns = None, None, None
        if contact_ns < self._last_ns and self._listener.paused_within(_CATCH_UP_S):
            return None
        self._last_ns = contact_ns
        return contact_ns
