"""The context variables that an operator's instance runs with."""

from __future__ import annotations

import asyncio
from contextvars import Context, ContextVar, copy_context

import pytest

from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.from_functions import source_of
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.events import Spawned, SupervisionHooks
from orchestrator_adapter.testing import CollectSink, chain, run_graph
from tests.orchestrator_adapter.runtime.scenes import AWAY

WHO: ContextVar[str] = ContextVar("who", default="no one")


def named(spawned: Spawned) -> Context:
    context = copy_context()
    context.run(WHO.set, f"{spawned.operator} #{spawned.instance}")
    return context


class Asks:
    """Notes the variable in the operator, in a task that it starts and in a blocking call; its first instance fails."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    async def __call__(self, ends: WiredEnds) -> None:
        async def in_a_task() -> str:
            return WHO.get()

        self.seen.append((WHO.get(), await asyncio.create_task(in_a_task()), await ends.run_blocking(WHO.get)))
        if ends.instance == 1:
            raise AWAY
        async for batch in ends.receiver.batches():
            ends.commit(batch, acknowledge=len(batch))
            await ends.flush()


async def test_each_instance_runs_in_the_context_that_the_hook_returns_for_it() -> None:
    """Its own code, its tasks and its blocking calls see the variable of this instance; ``run()`` keeps its own."""
    asks = Asks()
    event = await run_graph(chain(source_of(range(3)), asks, CollectSink()), hooks=SupervisionHooks(context_for=named))
    assert isinstance(event, events.AllOk)
    assert asks.seen == [("op-1 #1",) * 3, ("op-1 #2",) * 3]
    assert WHO.get() == "no one"


async def test_without_a_hook_an_instance_runs_in_a_copy_of_the_caller_s_context() -> None:
    """What the caller of ``run()`` has set is seen in the operator and in its blocking calls."""
    asks = Asks()
    WHO.set("the caller")
    await run_graph(chain(source_of(range(3)), asks, CollectSink()))
    assert asks.seen == [("the caller",) * 3] * 2


async def test_a_context_hook_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The instances run in a copy of the caller's context, and the failure is logged."""

    def broken(_: Spawned) -> Context:
        raise ValueError("hook")

    asks = Asks()
    event = await run_graph(chain(source_of(range(3)), asks, CollectSink()), hooks=SupervisionHooks(context_for=broken))
    assert isinstance(event, events.AllOk)
    assert asks.seen == [("no one",) * 3] * 2
    assert "a hook failed" in caplog.text


async def test_acknowledging_calls_run_in_the_operator_s_context() -> None:
    """A sink's durable write sees the variables of its instance."""
    seen: list[str] = []

    async def sink(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches():
            await ends.acknowledge_after(len(batch), lambda: seen.append(WHO.get()))

    await run_graph(chain(source_of(range(1)), sink), hooks=SupervisionHooks(context_for=named))
    assert seen == ["sink #1"]
