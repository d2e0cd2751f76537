"""A supervised streaming orchestrator that runs as one Prefect flow. It knows nothing of what streams through it.

What users import from here is public, and so are five packages beside it: ``bulkhead`` (worker processes; needs numpy),
``control_plane`` (health and metrics over HTTP), ``process`` (run a graph as a process), ``prefect_flow`` (run it as a Prefect
flow; the only package that imports Prefect) and ``testing``. ``resilience.http`` has the one HTTP exchange (it needs httpx).

The rooms, top-down; a module imports only from rooms below its own:

- ``prefect_flow``, ``process``, ``control_plane``, ``testing``: ways to run a graph, to ask it, to test it
- ``runtime``: act; ``graph``: declare; ``operators``: what an operator is given, and operators made of plain functions
- ``bulkhead``: worker processes; ``supervision``: decide what follows from an exit
- ``storage``: dead letters, files, claims; ``resilience``: retry and circuit breaker
- ``channels``: the data plane; ``primitives``: errors, clock, wake-ups, metrics, the event log

``events``, ``retry`` and ``task_exit`` are namespaces of closed alternatives: how a run ends, what came of an attempt, how an
operator instance ends.
"""

from orchestrator_adapter.channels.channel import EdgeStatistics
from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.channels.ledger import LedgerSnapshot, LedgerViolation, SignalsSnapshot
from orchestrator_adapter.channels.receiver import Receiver
from orchestrator_adapter.channels.sender import Sender
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.graph.plan import GraphError, GraphProblem, Plan, Role, VertexId
from orchestrator_adapter.operators.blocking import BlockingPool, BlockingPoolStatistics, HangingCall
from orchestrator_adapter.operators.combiners import Aligned, Combined, Combiner, Head, InputEnded, LeastOfInputs
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
from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.primitives.clock import Clock, SystemClock, Timeout, Timer
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.errors import (
    BlockingCallTimedOut,
    BlockingPoolExhausted,
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
from orchestrator_adapter.primitives.event_log import BoundedLog, EventLog, JsonFormatter, call_hook
from orchestrator_adapter.primitives.forked_children import close_in_forked_children
from orchestrator_adapter.primitives.gc_freeze import freeze_heap, frozen_heap
from orchestrator_adapter.primitives.listening import listen_tcp
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.wakeup import Wakeup
from orchestrator_adapter.resilience import retry
from orchestrator_adapter.resilience.breaker import BreakerPolicy, BreakerState, BreakerStatistics, CircuitBreaker
from orchestrator_adapter.resilience.retry import (
    Attempt,
    Permanent,
    Retry,
    RetryDiscard,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    with_retry,
)
from orchestrator_adapter.resilience.retry_budget import RetryBudget
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
from orchestrator_adapter.storage.durable import make_directory, sync_directory
from orchestrator_adapter.storage.jsonl import DEFAULT_MAX_FILE_BYTES, RotatingJsonLines, WriteFailedError, read_lines
from orchestrator_adapter.storage.locks import StoreInUseError, lock_for_writing
from orchestrator_adapter.storage.spill import spilled_items
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
    "Aligned",
    "Attempt",
    "Backoff",
    "BlockingCallTimedOut",
    "BlockingPool",
    "BlockingPoolExhausted",
    "BlockingPoolStatistics",
    "BoundedLog",
    "BreakerOpen",
    "BreakerPolicy",
    "BreakerState",
    "BreakerStatistics",
    "BuiltGraph",
    "Bury",
    "CircuitBreaker",
    "Clock",
    "Combined",
    "Combiner",
    "Control",
    "DeadLetter",
    "DeadLetterAs",
    "DeadLetterFile",
    "DeadLetterKind",
    "DeadLetterLimitExceeded",
    "DeadLetterLimits",
    "DeadLetterList",
    "DeadLetterStore",
    "Decision",
    "Discard",
    "Duplicate",
    "EdgeMisuse",
    "EdgeStatistics",
    "EndOfStream",
    "EventLog",
    "Factory",
    "FlowPolicy",
    "GraphError",
    "GraphProblem",
    "GraphStatus",
    "HangingCall",
    "Head",
    "InputEnded",
    "JsonFormatter",
    "LeastOfInputs",
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
    "SignalsSnapshot",
    "Stalled",
    "StoreInUseError",
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
    "check_fields",
    "claim",
    "close_in_forked_children",
    "events",
    "filter_items",
    "flat_map_items",
    "for_each",
    "for_each_batch",
    "freeze_heap",
    "frozen_heap",
    "listen_tcp",
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
    "spilled_items",
    "sync_directory",
    "task_exit",
    "with_retry",
]
