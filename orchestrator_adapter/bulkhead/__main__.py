"""A worker as a process of its own. It reads its invitation from standard input."""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from orchestrator_adapter.bulkhead.errors import Malformed, PeerRejected
from orchestrator_adapter.bulkhead.launchers.local import ChildInput
from orchestrator_adapter.bulkhead.worker import ignore_signals, lower_priority, serve


def main() -> int:
    """Serve until the bulkhead stops this worker: exit code 0; 1 if the connection failed or was lost."""
    ignore_signals()
    lower_priority()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    child_input = msgspec.json.decode(sys.stdin.buffer.read(), type=ChildInput)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[:] = child_input.path
    try:
        serve(child_input.invitation)
    except (OSError, PeerRejected, Malformed) as error:
        sys.stderr.write(f"{child_input.invitation.title}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
