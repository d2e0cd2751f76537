"""The orchestrator, broken on purpose, one promise at a time. The schedules must detect every mutant.

Each mutant is a context manager that replaces a correct function by a broken one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from orchestrator_adapter.channels.channel import Channel
from orchestrator_adapter.channels.edge import Edge
from orchestrator_adapter.channels.ledger import OperatorAccount
from orchestrator_adapter.channels.sender import Sender
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.operators.routers import merge as sound_merge
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.runtime.shutdown import Phase
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter
from orchestrator_adapter.supervision import supervisor
from orchestrator_adapter.supervision.progress import ProgressWatch
from orchestrator_adapter.supervision.restart import BoundedRestart, NeverRestart, RestartPolicy
from orchestrator_adapter.supervision.supervisor import Supervisor
from orchestrator_adapter.supervision.task import Task
from orchestrator_adapter.supervision.task_exit import Errored, Panicked
from tests.chaos import behaviour

Mutant = Callable[[], AbstractContextManager[object]]


@contextmanager
def lease_drops_an_item() -> Iterator[None]:
    """Returned leases lose their first item."""
    sound = Channel.return_leases

    def broken(self: Channel[Any], failure: str, max_deliveries: int) -> Any:
        if self.leased > 1:
            self.acknowledge(1)
        return sound(self, failure, max_deliveries)

    with patch.object(Channel, "return_leases", broken):
        yield


@contextmanager
def lease_is_returned_reversed() -> Iterator[None]:
    """Returned leases are delivered again in the wrong order."""
    sound = Channel.return_leases

    def broken(self: Channel[Any], failure: str, max_deliveries: int) -> Any:
        self._buffer[self._head : self._taken] = self._buffer[self._head : self._taken][::-1]
        return sound(self, failure, max_deliveries)

    with patch.object(Channel, "return_leases", broken):
        yield


@contextmanager
def suspects_come_together() -> Iterator[None]:
    """Returned items are delivered in batches again, so that the item at fault is not known."""
    sound = Channel.return_leases

    def broken(self: Channel[Any], failure: str, max_deliveries: int) -> Any:
        poison = sound(self, failure, max_deliveries)
        self._suspects_end = 0
        return poison

    with patch.object(Channel, "return_leases", broken):
        yield


@contextmanager
def one_delivery_too_many() -> Iterator[None]:
    """A pill is recognised one delivery late."""
    sound = Channel.return_leases
    with patch.object(Channel, "return_leases", lambda self, failure, most: sound(self, failure, most + 1)):
        yield


@contextmanager
def acknowledges_one_too_many() -> Iterator[None]:
    """Acknowledging drops one leased item too many."""
    sound = Channel.acknowledge

    def broken(self: Channel[Any], count: int) -> None:
        sound(self, min(count + 1, self.leased))

    with patch.object(Channel, "acknowledge", broken):
        yield


@contextmanager
def capacity_is_ignored() -> Iterator[None]:
    """An edge takes one item more than it may hold."""
    sound = Channel.push

    def broken(self: Channel[Any], items: Sequence[Any]) -> int:
        self.capacity += 1
        try:
            return sound(self, items)
        finally:
            self.capacity -= 1

    with patch.object(Channel, "push", broken):
        yield


@contextmanager
def budget_is_endless() -> Iterator[None]:
    """Every restart is admitted, and charged."""

    def broken(
        _: RestartPolicy, charged: tuple[float, ...], now: float, *, begins_at: float
    ) -> tuple[bool, tuple[float, ...]]:
        return True, (*charged, begins_at)

    with patch.object(supervisor, "admit", broken):
        yield


@contextmanager
def budget_never_recovers() -> Iterator[None]:
    """Restarts older than the window go on counting."""

    def broken(
        policy: RestartPolicy, charged: tuple[float, ...], now: float, *, begins_at: float
    ) -> tuple[bool, tuple[float, ...]]:
        rule = policy.rule
        if isinstance(rule, NeverRestart) or (isinstance(rule, BoundedRestart) and len(charged) >= rule.max_restarts):
            return False, charged
        return True, (*charged, begins_at)

    with patch.object(supervisor, "admit", broken):
        yield


@contextmanager
def panics_are_restarted() -> Iterator[None]:
    """A bug is handled as an operational failure."""
    sound = Supervisor.decide

    def broken(self: Supervisor, operator: str, exit_: Any, **facts: Any) -> Any:
        if isinstance(exit_, Panicked):
            exit_ = Errored(exit_.error)
        return sound(self, operator, exit_, **facts)

    with patch.object(Supervisor, "decide", broken):
        yield


@contextmanager
def room_wakes_no_writer() -> Iterator[None]:
    """Acknowledging forgets to wake the writer that waits for room."""

    def broken(self: Edge[Any], count: int | None = None) -> None:
        if count := self.channel.leased if count is None else count:
            self.channel.acknowledge(count)
            self.reader.account.acknowledge(count)

    with patch.object(Edge, "acknowledge", broken):
        yield


@contextmanager
def the_end_wakes_no_reader() -> Iterator[None]:
    """Closing an edge forgets to wake the reader that waits for items."""

    def broken(self: Edge[Any]) -> None:
        self.channel.closed = True

    with patch.object(Edge, "close", broken):
        yield


@contextmanager
def outbox_is_dropped() -> Iterator[None]:
    """Offered items that do not fit are lost."""
    sound = Sender.offer

    def broken(self: Sender[Any], items: Sequence[Any]) -> None:
        sound(self, items)
        self._edge.outbox.clear()

    with patch.object(Sender, "offer", broken):
        yield


@contextmanager
def outbox_overtakes() -> Iterator[None]:
    """Offered items overtake those that already wait."""

    def broken(self: Sender[Any], items: Sequence[Any]) -> None:
        edge = self._edge
        edge.writer.account.emit(len(items))
        accepted = 0 if edge.channel.reader_gone else edge.channel.push(items)
        edge.items_available.wake()
        edge.outbox.extend(items[accepted:])

    with patch.object(Sender, "offer", broken):
        yield


@contextmanager
def undelivered_items_are_lost() -> Iterator[None]:
    """Items in the edges of an operator that has ended for good are counted, and not stored."""

    def broken(self: DeadLetterWriter, operator: str, items: Sequence[Any], message: str) -> None:
        self.undelivered += len(items)

    with patch.object(DeadLetterWriter, "write_undelivered", broken):
        yield


@contextmanager
def pills_are_lost() -> Iterator[None]:
    """Poison pills leave the edge and are not stored."""
    with patch.object(DeadLetterWriter, "write", lambda *_: None):
        yield


@contextmanager
def dead_letters_are_not_counted() -> Iterator[None]:
    """Items that the runtime dead-letters are not counted in the ledger."""
    with patch.object(OperatorAccount, "withdrawn", lambda self, count: None):
        yield


@contextmanager
def repeats_are_not_counted() -> Iterator[None]:
    """Items that leave twice are counted once."""

    def broken(self: OperatorAccount) -> None:
        self._open = 0

    with patch.object(OperatorAccount, "lease_lost", broken):
        yield


@contextmanager
def merge_loses_an_input() -> Iterator[None]:
    """A fan-in ends when its first input has ended."""

    def merge(*, max_batch: int = 256) -> Factory:
        async def run(ends: WiredEnds) -> None:
            while not ends.receivers[0].ended:
                for receiver in ends.receivers:
                    if batch := receiver.try_recv_many(max_batch):
                        ends.sender.offer(batch)
                        receiver.acknowledge(len(batch))
                        await ends.flush()
                if not ends.receivers[0].ended:
                    await ends.wait_for_items()

        return run

    with patch.object(behaviour, "merge", merge):
        yield


@contextmanager
def merge_forgets_its_last_input() -> Iterator[None]:
    """A fan-in serves all its inputs but one, and ends without it."""

    def merge(*, max_batch: int = 256) -> Factory:
        run = sound_merge(max_batch=max_batch)

        async def without_the_last(ends: WiredEnds) -> None:
            ends.receivers = ends.receivers[:-1] or ends.receivers
            inputs = ends._inputs  # what ``wait_for_items`` examines; with the last one it would never wait
            ends._inputs = replace(inputs, edges=inputs.edges[:-1] or inputs.edges)
            await run(ends)

        return without_the_last

    with patch.object(behaviour, "merge", merge):
        yield


@contextmanager
def broadcast_misses_an_output() -> Iterator[None]:
    """A broadcast skips its last output when it has more than one item."""

    def broadcast(*, max_batch: int = 256) -> Factory:
        async def run(ends: WiredEnds) -> None:
            async for batch in ends.receiver.batches(max_batch):
                for sender in ends.senders[: -1 if len(batch) > 1 else None]:
                    sender.offer(batch)
                ends.receiver.acknowledge(len(batch))
                await ends.flush()

        return run

    with patch.object(behaviour, "broadcast", broadcast):
        yield


@contextmanager
def abort_does_nothing() -> Iterator[None]:
    """An abort is recorded, and the task is not cancelled."""

    def broken(self: Task, reason: str = "abort") -> None:
        self._abort_reason = reason

    with patch.object(Task, "abort", broken):
        yield


@contextmanager
def stalls_go_unseen() -> Iterator[None]:
    """No operator is ever detected as stalled."""
    with patch.object(ProgressWatch, "stalled", lambda *_, **__: False):
        yield


@contextmanager
def waiting_for_room_is_a_stall() -> Iterator[None]:
    """An operator with a slow reader is detected as stalled."""
    sound = ProgressWatch.stalled

    def broken(self: ProgressWatch, now: float, *, acknowledged: int, has_input: bool, waits_for_space: bool) -> bool:
        return sound(self, now, acknowledged=acknowledged, has_input=has_input, waits_for_space=False)

    with patch.object(ProgressWatch, "stalled", broken):
        yield


@contextmanager
def the_second_request_is_ignored() -> Iterator[None]:
    """A second request to stop does not end the grace period."""
    sound = BuiltGraph.request_shutdown

    def broken(self: BuiltGraph, reason: str) -> None:
        if self._loop.shutdown.phase is Phase.RUNNING:
            sound(self, reason)

    with patch.object(BuiltGraph, "request_shutdown", broken):
        yield


MUTANTS: Mapping[str, Mutant] = {
    mutant.__name__.replace("_", "-"): mutant
    for mutant in (
        lease_drops_an_item,
        lease_is_returned_reversed,
        suspects_come_together,
        one_delivery_too_many,
        acknowledges_one_too_many,
        capacity_is_ignored,
        budget_is_endless,
        budget_never_recovers,
        panics_are_restarted,
        room_wakes_no_writer,
        the_end_wakes_no_reader,
        outbox_is_dropped,
        outbox_overtakes,
        undelivered_items_are_lost,
        pills_are_lost,
        dead_letters_are_not_counted,
        repeats_are_not_counted,
        merge_loses_an_input,
        merge_forgets_its_last_input,
        broadcast_misses_an_output,
        abort_does_nothing,
        stalls_go_unseen,
        waiting_for_room_is_a_stall,
        the_second_request_is_ignored,
    )
}
