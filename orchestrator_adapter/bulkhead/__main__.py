"""A worker as a process of its own: the invitation comes on standard input."""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from orchestrator_adapter.bulkhead.errors import Malformed, Refused
from orchestrator_adapter.bulkhead.launchers.local import Enclosed
from orchestrator_adapter.bulkhead.worker import ignore_signals, serve, step_back


def main() -> int:
    """Serve until told to stop: 0; 1 if the bulkhead went away, or would not have it."""
    ignore_signals()
    step_back()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    enclosed = msgspec.json.decode(sys.stdin.buffer.read(), type=Enclosed)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[:] = enclosed.path
    try:
        serve(enclosed.invitation)
    except (OSError, Refused, Malformed) as error:
        sys.stderr.write(f"{enclosed.invitation.title}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
