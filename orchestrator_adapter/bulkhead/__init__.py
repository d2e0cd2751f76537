"""A bulkhead: computations in worker processes, called with named arrays, that must not disturb the stream.

Layout, top to bottom; a module imports only from modules below it:

- ``pool``: ``Bulkhead``, the public class; ``__main__``: the program of a worker process
- ``worker_group``: starts, replaces and stops the workers
- ``dispatcher``: sends calls to ready workers and completes them
- ``worker_slot``: one worker's life; ``scheduler``: which call goes where, losses, budgets (pure)
- ``launchers``: how workers are started and killed; ``worker``: what runs in a worker process
- ``log``, ``statistics``
- ``transport``: listener, authentication, connection, frames
- ``errors``

It knows nothing of what is computed, of graphs, or of Prefect (``prefect_flow.workers`` launches the workers as task runs).
"""

from orchestrator_adapter.bulkhead.errors import (
    BatchLost,
    BulkheadCannotStart,
    BulkheadClosed,
    BulkheadExhausted,
    HandlerFailed,
    Rejection,
)
from orchestrator_adapter.bulkhead.launchers.launcher import Launcher, WorkerHandle
from orchestrator_adapter.bulkhead.launchers.local import LocalProcesses
from orchestrator_adapter.bulkhead.pool import Bulkhead
from orchestrator_adapter.bulkhead.statistics import BulkheadEvent, BulkheadStatistics
from orchestrator_adapter.bulkhead.transport.invitation import Invitation
from orchestrator_adapter.bulkhead.transport.network import Network
from orchestrator_adapter.bulkhead.transport.wire import Arrays
from orchestrator_adapter.bulkhead.worker import Handler

__all__ = [
    "Arrays",
    "BatchLost",
    "Bulkhead",
    "BulkheadCannotStart",
    "BulkheadClosed",
    "BulkheadEvent",
    "BulkheadExhausted",
    "BulkheadStatistics",
    "Handler",
    "HandlerFailed",
    "Invitation",
    "Launcher",
    "LocalProcesses",
    "Network",
    "Rejection",
    "WorkerHandle",
]
