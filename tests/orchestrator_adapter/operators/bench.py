"""``Bench``: one operator with its ends, for the tests of what an operator uses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from orchestrator_adapter.channels.channel import Undeliverable
from orchestrator_adapter.channels.edge import Edge, Side
from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping, OperatorAccount
from orchestrator_adapter.channels.make_edge import make_edge
from orchestrator_adapter.channels.receiver import Receiver
from orchestrator_adapter.channels.sender import Sender
from orchestrator_adapter.operators.blocking import BlockingCalls, BlockingPool, BlockingThreads
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.services import VertexServices
from orchestrator_adapter.primitives.event_log import BoundedLog, DecisionLog
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.stopwatch import Stopwatch
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.storage.dead_letter import DeadLetterGate, DeadLetterLimits, DeadLetterList
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter
from orchestrator_adapter.storage.spill import SpillFiles
from orchestrator_adapter.testing import ManualClock


class Bench:
    """One operator with any number of inputs and outputs, and the other ends of its edges for the test to use."""

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 1,
        *,
        capacity: int = 4,
        policy: FlowPolicy | None = None,
        bookkeeping: Bookkeeping = Bookkeeping.CONSERVING,
        limits: DeadLetterLimits | None = None,
        pool: BlockingPool | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.account = OperatorAccount("op", bookkeeping)
        self.letters = DeadLetterList()
        self.dead_lettered: list[tuple[str, list[Any]]] = []
        self.shutdown = ShutdownToken()
        self.pool = BlockingThreads(pool or BlockingPool("op"), "bench")
        self.services = VertexServices(
            clock=self.clock,
            rng=random.Random(0),
            shutdown=self.shutdown,
            dead_letter_writer=DeadLetterWriter(DecisionLog("graph"), self.letters, self.clock),
            account=self.account,
            blocking=BlockingCalls("op", BoundedLog("op", self.clock), self.pool),
            breakers=Breakers(DecisionLog("graph"), self.clock),
            gate=DeadLetterGate(limits),
            log=BoundedLog("op", self.clock),
            latency=LatencyHistogram(),
        )
        sides = (Side(self.account, Stopwatch(self.clock)), Side(self.account, Stopwatch(self.clock)))
        self.inputs = [
            self._edge(f"in-{number} -> op", capacity, None, writer=self._side(f"in-{number}"), reader=sides[0])
            for number in range(inputs)
        ]
        self.outputs = [
            self._edge(f"op -> out-{number}", capacity, policy, writer=sides[1], reader=self._side(f"out-{number}"))
            for number in range(outputs)
        ]
        self.feeds: list[Sender[Any]] = [Sender(edge) for edge in self.inputs]
        self.drains: list[Receiver[Any]] = [Receiver(edge) for edge in self.outputs]
        self.ends = WiredEnds("op", inputs=sides[0], outputs=sides[1], services=self.services)

    @property
    def input(self) -> Edge[Any]:
        return self.inputs[0]

    @property
    def output(self) -> Edge[Any]:
        return self.outputs[0]

    @property
    def feed(self) -> Sender[Any]:
        return self.feeds[0]

    @property
    def drain(self) -> Receiver[Any]:
        return self.drains[0]

    def _edge(self, name: str, capacity: int, policy: FlowPolicy | None, *, writer: Side, reader: Side) -> Edge[Any]:
        return make_edge(
            name,
            capacity,
            policy or FlowPolicy.backpressure(),
            writer=writer,
            reader=reader,
            clock=self.clock,
            dead_letter=self._dead_letter,
            make_queue=lambda edge_id, spill: SpillFiles(spill.folder, edge_id, spill.max_bytes),
            log=lambda decision, **fields: self.log.append((decision, fields)),
        )

    def _dead_letter(self, why: str, items: Sequence[Undeliverable[Any]]) -> None:
        self.dead_lettered.append((why, [undeliverable.item for undeliverable in items]))

    def _side(self, operator: str) -> Side:
        return Side(OperatorAccount(operator, Bookkeeping.EXPANDING), Stopwatch(self.clock))


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
