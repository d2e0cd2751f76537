"""``Leftovers``: what runs on after an operator instance has ended: threads of blocking calls, and tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from orchestrator_adapter.operators.blocking import BlockingPools
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.kept import KEPT
from orchestrator_adapter.supervision.events import Straggler
from orchestrator_adapter.supervision.helpers import cancel_and_wait, context_of, is_closing_generator, label, tasks_in
from orchestrator_adapter.supervision.task import INSTANCE, Task

_NAMED = 3  # tasks that a problem names


class _FailureHandler:
    """An exception handler of the event loop: a stray that fails fails its instance, and ``before`` gets everything else."""

    def __init__(
        self, graph: object, before: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        self.before = before
        self.active = True
        self._graph = graph

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Asyncio calls it for an exception that no task will receive."""
        task, error = context.get("future"), context.get("exception")
        if self.active and isinstance(task, asyncio.Task) and error is not None:
            found = context_of(task)
            instance = None if found is None or found.get(KEPT, False) else found.get(INSTANCE)
            if instance is not None and instance.owner is self._graph and instance.is_alive():
                instance.fail(error)
                return
        if self.before is not None:
            self.before(loop, context)
        else:
            loop.default_exception_handler(context)


class Leftovers:
    """What operator instances of one graph have left running."""

    def __init__(self, graph: object, pools: BlockingPools, clock: Clock) -> None:
        """``graph`` is the ``owner`` of the instances' tasks."""
        self._graph = graph
        self._pools = pools
        self._clock = clock
        self._strays: dict[str, tuple[int, dict[str, None]]] = {}  # by operator: how many there were, and their names

    @property
    def problems(self) -> list[str]:
        """One sentence for each operator whose instances have left tasks running."""
        return [
            f"operator {operator!r} left {count} task{'s' if count > 1 else ''} running, which had to be cancelled "
            f"({_some(names)}); start helper tasks with ends.start"
            for operator, (count, names) in self._strays.items()
        ]

    @contextmanager
    def noticing_failures(self) -> Iterator[None]:
        """Inside, a stray whose exception no task will receive fails its instance: asyncio would only log it."""
        loop = asyncio.get_running_loop()
        handler = _FailureHandler(self._graph, loop.get_exception_handler())
        loop.set_exception_handler(handler)
        try:
            yield
        finally:
            handler.active = False
            present = loop.get_exception_handler()
            while isinstance(present, _FailureHandler) and not present.active:  # several runs may overlap on one loop
                present = present.before
            loop.set_exception_handler(present)

    def stack(self, task: Task) -> str:
        """The stack of an instance, of the tasks that it has started and of the threads that run its blocking calls."""
        return task.stack() + self._pools.stack(task.name)

    def straggler(self, task: Task) -> Straggler:
        """An instance that did not stop."""
        return Straggler(task.name, task.instance, self.stack(task))

    def record_strays(self, task: Task) -> None:
        """An instance has ended, and its strays were cancelled."""
        self._record(task.name, task.strays)

    async def wait_for_threads(self, limit_s: float) -> list[Straggler]:
        """Wait until the blocking calls have ended, at most ``limit_s`` seconds of real time. Returns those that run on."""
        await self._pools.wait_until_idle(limit_s)
        running = self._pools.still_running()
        return [Straggler(operator, instance, self._pools.stack(operator)) for operator, instance in running.items()]

    async def end_tasks(self, limit_s: float) -> list[Straggler]:
        """Cancel the tasks of ended instances that still run when all resources are closed. Returns those that did not end."""
        tasks = {task for task in tasks_in(self._is_of_this_graph) if not task.done()}
        for task in sorted(tasks, key=label):
            if not is_closing_generator(task):
                self._record(_instance(task).name, [label(task)])
        left = await cancel_and_wait(tasks, self._clock, limit_s)
        instances = {_instance(task).name: _instance(task) for task in sorted(left, key=label)}
        return [Straggler(name, instance.instance, instance.tasks_stack()) for name, instance in instances.items()]

    def _is_of_this_graph(self, context: Context) -> bool:
        instance = context.get(INSTANCE)
        return instance is not None and instance.owner is self._graph and not instance.is_alive()

    def _record(self, operator: str, names: list[str]) -> None:
        count, known = self._strays.get(operator, (0, {}))
        for name in names:
            if len(known) <= _NAMED:
                known[name] = None
        self._strays[operator] = (count + len(names), known)


def _instance(task: asyncio.Task[object]) -> Task:
    context = context_of(task)
    assert context is not None
    return context[INSTANCE]


def _some(names: dict[str, None]) -> str:
    return ", ".join([*names][:_NAMED]) + (", …" if len(names) > _NAMED else "")
