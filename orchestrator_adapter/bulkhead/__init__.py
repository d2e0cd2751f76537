"""A bulkhead: computing that must not disturb the stream, in worker processes of its own, called with named arrays.

Layout, top to bottom; a module imports only from those below it in this list:

- ``pool``: ``Bulkhead``, what operators hold
- ``door``: listens, and lets in who was invited; ``connection``: one worker's bytes on the event loop
- ``local``: workers as plain processes; ``launcher``: the interface that other ways to start one fill in
- ``worker``: what runs in the worker process; ``tls_pump``, ``certificates``: the same beyond one machine
- ``book``: which call is where, what is resubmitted and what given up, who hangs: pure; ``statistics``, ``log``: what is told
- ``invitation``, ``handshake``, ``wire``: values and bytes; ``errors``

It knows nothing of what is computed, of graphs, or of Prefect (``prefect_flow.workers`` places the same workers as task runs).
"""

from orchestrator_adapter.bulkhead.errors import (
    BatchLost,
    BulkheadCannotStart,
    BulkheadClosed,
    BulkheadExhausted,
    HandlerFailed,
)
from orchestrator_adapter.bulkhead.launchers.launcher import Launcher, Network, WorkerHandle
from orchestrator_adapter.bulkhead.launchers.local import LocalProcesses
from orchestrator_adapter.bulkhead.pool import Bulkhead
from orchestrator_adapter.bulkhead.statistics import BulkheadEvent, BulkheadStatistics
from orchestrator_adapter.bulkhead.transport.invitation import Invitation
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
    "WorkerHandle",
]
