"""Workers as child processes of this process: a new interpreter each, which inherits nothing and does not use Prefect."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from orchestrator_adapter.bulkhead.transport.invitation import Invitation
from orchestrator_adapter.bulkhead.transport.network import Network

_REAPED_WITHIN_S = 5.0
_STDERR = 2


class ChildInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child reads from its standard input: its invitation, and this process's module search path."""

    invitation: Invitation
    path: tuple[str, ...]


class LocalProcesses:
    """Launches ``python -m orchestrator_adapter.bulkhead`` with the invitation on its standard input.

    The child blocks, then ignores, SIGINT and SIGTERM from its first instruction: a terminal or supervisor sends them to the
    whole process group, and a drain still needs the workers. The child ends when the bulkhead stops it or its connection ends.
    """

    def __init__(self, *, network: Network | None = None) -> None:
        self._network = network

    @property
    def network(self) -> Network | None:
        return self._network

    def launch(self, invitation: Invitation) -> LocalWorker:
        child_input = msgspec.json.encode(ChildInput(invitation, tuple(entry or str(Path.cwd()) for entry in sys.path)))
        # The child inherits this thread's signal mask. Later it ignores both signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator_adapter.bulkhead"],
                stdin=subprocess.PIPE,
                stdout=_STDERR,  # a handler that prints must not write to the pipeline's standard output
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError), process.stdin:  # it has ended already: is_alive() reports that
                process.stdin.write(child_input)
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

    def kill(self, pid: int | None) -> None:  # noqa: ARG002 - the process object knows the child's pid
        self._process.kill()

    def stopped(self, crashed: str | None) -> None:  # noqa: ARG002 - a local process has no report of its end
        try:
            self._process.wait(_REAPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
