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
``task_exit.Panicked`` and ``events.Panicked``. So it is with what came of an attempt: ``retry.RetryOk``, ``retry.RetryDiscard``.
"""

from orchestrator_adapter.channels.channel import EdgeStatistics, FlowPolicy
from orchestrator_adapter.channels.edge import Receiver, Sender
from orchestrator_adapter.channels.ledger import LedgerSnapshot, LedgerViolation
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.graph.plan import GraphError, GraphProblem, Plan, Role, VertexId
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.operators.from_functions import (
    DeadLetterAs,
    Discard,
    Duplicate,
    Reject,
    Verdict,
    filter_items,
    flat_map_items,
    for_each,
    for_each_batch,
    map_batches,
    map_items,
    sift,
    source_of,
)
from orchestrator_adapter.operators.routers import broadcast, merge, partition
from orchestrator_adapter.primitives.clock import Clock, SystemClock, Timeout, Timer
from orchestrator_adapter.primitives.errors import (
    BreakerOpen,
    DeadLetterLimitExceeded,
    EdgeMisuse,
    EndOfStream,
    MissingExtra,
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
from orchestrator_adapter.primitives.event_log import BoundedLog, call_hook
from orchestrator_adapter.primitives.gc_freeze import freeze_heap, frozen_heap
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.wakeup import Wakeup
from orchestrator_adapter.resilience import retry
from orchestrator_adapter.resilience.breaker import BreakerPolicy, BreakerState, BreakerStatistics, CircuitBreaker
from orchestrator_adapter.resilience.retry import (
    Attempt,
    Permanent,
    Retry,
    RetryBudget,
    RetryDiscard,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    with_retry,
)
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.runtime.status import GraphStatus, OperatorStatus
from orchestrator_adapter.storage.claims import Owner, claim
from orchestrator_adapter.storage.dead_letter import (
    DeadLetter,
    DeadLetterFile,
    DeadLetterKind,
    DeadLetterLimits,
    DeadLetterList,
    DeadLetterStore,
)
from orchestrator_adapter.storage.durable import lock_for_writing, make_directory, sync_directory
from orchestrator_adapter.storage.jsonl import DEFAULT_MAX_FILE_BYTES, RotatingJsonLines, WriteFailedError, read_lines
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.events import SupervisionHooks, SupervisorEvent
from orchestrator_adapter.supervision.restart import Backoff, RestartPolicy
from orchestrator_adapter.supervision.supervisor import Supervisor
from orchestrator_adapter.supervision.task import Task
from orchestrator_adapter.supervision.task_exit import TaskExit

Bury = DeadLetterAs
"""The earlier name of ``DeadLetterAs``."""

__all__ = [
    "DEFAULT_MAX_FILE_BYTES",
    "Attempt",
    "Backoff",
    "BoundedLog",
    "BreakerOpen",
    "BreakerPolicy",
    "BreakerState",
    "BreakerStatistics",
    "BuiltGraph",
    "Bury",
    "CircuitBreaker",
    "Clock",
    "DeadLetter",
    "DeadLetterAs",
    "DeadLetterFile",
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
    "MissingExtra",
    "OperatorError",
    "OperatorGraph",
    "OperatorStatus",
    "OrchestratorError",
    "Owner",
    "Permanent",
    "PermanentFailure",
    "Plan",
    "ReaderDone",
    "ReaderGone",
    "Receiver",
    "Reject",
    "RestartPolicy",
    "RetriesExhausted",
    "Retry",
    "RetryBudget",
    "RetryCutShort",
    "RetryDiscard",
    "RetryDisposition",
    "RetryFailure",
    "RetryOk",
    "RetryPolicy",
    "Role",
    "RotatingJsonLines",
    "Sender",
    "ShutdownToken",
    "Stalled",
    "SupervisionHooks",
    "SupervisionPolicy",
    "Supervisor",
    "SupervisorEvent",
    "SystemClock",
    "Task",
    "TaskExit",
    "Timeout",
    "Timer",
    "Verdict",
    "VertexId",
    "Wakeup",
    "WiredEnds",
    "WriteFailedError",
    "broadcast",
    "call_hook",
    "claim",
    "events",
    "filter_items",
    "flat_map_items",
    "for_each",
    "for_each_batch",
    "freeze_heap",
    "frozen_heap",
    "lock_for_writing",
    "make_directory",
    "map_batches",
    "map_items",
    "merge",
    "partition",
    "read_lines",
    "retry",
    "sift",
    "source_of",
    "sync_directory",
    "task_exit",
    "with_retry",
]
