"""Workers as plain child processes of this one: a fresh interpreter each, nothing inherited, no Prefect."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from orchestrator_adapter.bulkhead.launchers.launcher import Network
from orchestrator_adapter.bulkhead.transport.invitation import Invitation

_REAPED_WITHIN_S = 5.0
_STDERR = 2


class Enclosed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child reads on its standard input: its invitation, and where this process finds its modules."""

    invitation: Invitation
    path: tuple[str, ...]


class LocalProcesses:
    """Launches ``python -m orchestrator_adapter.bulkhead``, the invitation on its standard input.

    What a terminal or a supervisor sends to the process group (SIGINT, SIGTERM) does not reach it, from its first instruction
    on: a drain can still use it. It ends when it is told to, or when its connection does.
    """

    def __init__(self, *, network: Network | None = None) -> None:
        self._network = network

    @property
    def network(self) -> Network | None:
        return self._network

    def launch(self, invitation: Invitation) -> LocalWorker:
        enclosed = msgspec.json.encode(Enclosed(invitation, tuple(entry or str(Path.cwd()) for entry in sys.path)))
        # The mask of this thread is what the child begins with; it ignores the signals for good a little later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator_adapter.bulkhead"],
                stdin=subprocess.PIPE,
                stdout=_STDERR,  # a handler that prints must not end up among the pipeline's own output
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError), process.stdin:  # it has ended already: whoever waits for it will see
                process.stdin.write(enclosed)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return LocalWorker(process)


class LocalWorker:
    """A child process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self, pid: int | None) -> None:  # noqa: ARG002 - it knows better: the child's own
        self._process.kill()

    def stopped(self, crashed: str | None) -> None:  # noqa: ARG002 - nobody to report to
        try:
            self._process.wait(_REAPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
