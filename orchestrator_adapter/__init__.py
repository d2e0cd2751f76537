"""A supervised streaming orchestrator that runs as one Prefect flow. It knows nothing of what streams through it.

Layout, bottom to top; a module imports only from those above it in this list:

- ``errors``, ``clock``, ``wakeup``, ``metrics``, ``ledger``: names, time, waiting, figures, books
- ``channel``: one bounded edge with leases; ``dead_letter`` and ``jsonl``: where what cannot go on is kept
- ``claims``: what only one run on the machine may have, and who has it
- ``breaker``, ``retry``: a downstream that fails, and how to go on asking it
- ``restart``, ``task_exit``, ``task``: one operator instance and how it may end
- ``bulkhead``: worker processes that answer requests made of arrays (import it from there: it needs numpy)
- ``edge``, ``ends``, ``operators``, ``routers``: what an operator holds, and operators out of plain functions
- ``plan``, ``graph``: validate and declare; ``events``, ``supervisor``: exits in, decisions out
- ``wiring``, ``status``, ``watchdog``, ``runtime``: a wired graph that runs
- ``control_plane``: ask it over HTTP; ``report``, ``pipeline``: run it in a process, with signals, report and exit code
- ``prefect_flow``: the same as a Prefect flow (the only module that imports Prefect); ``testing``, ``schedules``: for your
  tests

``Panicked`` is both a way for a task to exit and a way for a run to end, so the two unions live in modules of their own:
``task_exit.Panicked`` and ``events.Panicked``. So it is with what came of an attempt: ``retry.Ok``, ``retry.Discard``.
"""

from orchestrator_adapter import events, retry, task_exit
from orchestrator_adapter.breaker import BreakerPolicy, BreakerState, BreakerStatistics, CircuitBreaker
from orchestrator_adapter.channel import EdgeStatistics, FlowPolicy
from orchestrator_adapter.clock import Clock, SystemClock
from orchestrator_adapter.dead_letter import (
    DeadLetter,
    DeadLetterKind,
    DeadLetterLimits,
    DeadLetterList,
    DeadLetterStore,
)
from orchestrator_adapter.edge import Receiver, Sender
from orchestrator_adapter.ends import Factory, WiredEnds
from orchestrator_adapter.errors import (
    BreakerOpen,
    DeadLetterLimitExceeded,
    EdgeMisuse,
    EndOfStream,
    OperatorError,
    OrchestratorError,
    PermanentFailure,
    ReaderDone,
    ReaderGone,
    RetriesExhausted,
    RetryCutShort,
    RetryFailure,
    Stalled,
)
from orchestrator_adapter.events import SupervisionHooks, SupervisorEvent
from orchestrator_adapter.graph import OperatorGraph
from orchestrator_adapter.ledger import LedgerSnapshot, LedgerViolation
from orchestrator_adapter.operators import (
    Bury,
    Discard,
    Duplicate,
    Reject,
    filter_items,
    flat_map_items,
    for_each,
    for_each_batch,
    map_batches,
    map_items,
    sift,
    source_of,
)
from orchestrator_adapter.plan import GraphError, GraphProblem, Plan, Role, VertexId
from orchestrator_adapter.restart import Backoff, RestartPolicy
from orchestrator_adapter.retry import RetryBudget, RetryDisposition, RetryPolicy, with_retry
from orchestrator_adapter.routers import broadcast, merge, partition
from orchestrator_adapter.runtime import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.status import GraphStatus, OperatorStatus
from orchestrator_adapter.supervisor import Supervisor
from orchestrator_adapter.task import Task
from orchestrator_adapter.task_exit import TaskExit

__all__ = [
    "Backoff",
    "BreakerOpen",
    "BreakerPolicy",
    "BreakerState",
    "BreakerStatistics",
    "BuiltGraph",
    "Bury",
    "CircuitBreaker",
    "Clock",
    "DeadLetter",
    "DeadLetterKind",
    "DeadLetterLimitExceeded",
    "DeadLetterLimits",
    "DeadLetterList",
    "DeadLetterStore",
    "Discard",
    "Duplicate",
    "EdgeMisuse",
    "EdgeStatistics",
    "EndOfStream",
    "Factory",
    "FlowPolicy",
    "GraphError",
    "GraphProblem",
    "GraphStatus",
    "LedgerSnapshot",
    "LedgerViolation",
    "OperatorError",
    "OperatorGraph",
    "OperatorStatus",
    "OrchestratorError",
    "PermanentFailure",
    "Plan",
    "ReaderDone",
    "ReaderGone",
    "Receiver",
    "Reject",
    "RestartPolicy",
    "RetriesExhausted",
    "RetryBudget",
    "RetryCutShort",
    "RetryDisposition",
    "RetryFailure",
    "RetryPolicy",
    "Role",
    "Sender",
    "Stalled",
    "SupervisionHooks",
    "SupervisionPolicy",
    "Supervisor",
    "SupervisorEvent",
    "SystemClock",
    "Task",
    "TaskExit",
    "VertexId",
    "WiredEnds",
    "broadcast",
    "events",
    "filter_items",
    "flat_map_items",
    "for_each",
    "for_each_batch",
    "map_batches",
    "map_items",
    "merge",
    "partition",
    "retry",
    "sift",
    "source_of",
    "task_exit",
    "with_retry",
]
