"""SIGTERM, SIGINT and SIGHUP as requests to stop, also while the event loop is blocked. Knows nothing of graphs.

A handler in Python runs on the main thread between two bytecodes, also while an operator computes without awaiting; it passes
the signal to the loop of each listener. A loop that is blocked never takes it. Therefore the interpreter also writes each
signal to a socket (``signal.set_wakeup_fd``), which its C handler does even while the main thread is inside C code. One daemon
thread reads that socket. It sleeps until a signal arrives; from then on it checks whether the loops still turn, and ends the
process if ``force_end_at`` says so. It cannot run while C code holds the interpreter lock, except during a handler.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeAlias

from orchestrator_adapter.process.ending import end_process, exit_now
from orchestrator_adapter.process.report import ExitCode

logger = logging.getLogger("orchestrator_adapter.signals")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_SAME_REQUEST_S = (
    1.0  # a Ctrl-C may arrive twice: as the terminal's SIGINT, and as the SIGTERM of a parent that passes it on
)
_CHECK_S = 0.05
_LONGEST_GAP_S = 1.0  # between two checks: what is longer was no silence of the loop alone, see `RunningTime`
_NOTE_S = 0.2  # the handler waits for the thread at most so long: a busy machine
_WRITE_S = 5.0  # for the report of a forced end, if the disk or the log does not answer
_END = 0  # written to the socket, it ends the thread; no signal has this number
_CHECK = 255  # nor this one: it makes the thread check the loops

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None


# Deciding.


@dataclass(frozen=True, slots=True)
class Received:
    """A signal, or another request to stop: its name, and when it was noticed, monotonic seconds."""

    name: str
    at: float
    is_signal: bool = True


def force_end_at(received: Sequence[Received], last_turn: float, *, grace_s: float, patience_s: float) -> float | None:
    """When the process is ended by force if the loop has not turned until then; ``None`` if no signal was received.

    ``last_turn`` is when the loop turned last, in monotonic seconds. After the first signal the loop may be silent for the
    grace period and the patience, after a second one for the patience. Two different signals within a second are one request,
    and so are a signal and another request: a cancellation arrives as Prefect's state, and as the SIGTERM of Prefect's worker.
    """
    if not received:
        return None
    at = max(received[0].at, last_turn) + grace_s + patience_s
    firsts: dict[bool, Received] = {}
    for later in received:
        first = firsts.setdefault(later.is_signal, later)
        if first is not later and (later.name == first.name or later.at - first.at > _SAME_REQUEST_S):
            return min(at, max(later.at, last_turn) + patience_s)
    return at


class RunningTime:
    """Monotonic seconds without those in which the whole process stood still (SIGSTOP, a suspended machine or container).

    A loop cannot turn while its process is stopped, so that time is not its silence. The signal thread, which is stopped
    together with the loop, sees it as a long gap between two checks.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._stopped_s = 0.0
        self._checked_at: float | None = None

    def now(self) -> float:
        """Any thread may call it."""
        return self._monotonic() - self._stopped_s

    def check(self, *, first: bool) -> None:
        """Called at every check, by one thread. Of a longer gap since the last check ``_LONGEST_GAP_S`` counts."""
        now = self._monotonic()
        if not first and self._checked_at is not None:
            self._stopped_s += max(0.0, now - self._checked_at - _LONGEST_GAP_S)
        self._checked_at = now


# Listening.


@dataclass(frozen=True, slots=True)
class ForcedEnd:
    """What happens if the loop does not turn after a signal.

    Attributes:
        grace_s: How long the loop may be silent after the first signal, before ``patience_s``.
        patience_s: How long the loop may be silent after a second signal.
        end: Writes what is known, on another thread than the loop's, and returns the exit code. It receives the name of the
            first signal and how long the loop has been silent, in seconds.
    """

    grace_s: float
    patience_s: float
    end: Callable[[str, float], int]


@dataclass(eq=False, slots=True)
class _Listener:
    loop: asyncio.AbstractEventLoop
    request: Callable[[str], object]
    forced: Callable[[], ForcedEnd | None]
    received: list[Received] = field(default_factory=list)
    last_turn: float = 0.0
    asked: bool = False

    def pass_on(self, name: str) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.request, name)

    def check_turn(self) -> None:
        """Ask the loop to note its next turn. One question at a time, so that a blocked loop does not collect them."""
        if not self.asked:
            self.asked = True
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._turned)

    def _turned(self) -> None:
        self.last_turn = _TIME.now()
        self.asked = False

    def due(self, last_turn: float) -> float | None:
        forced = self.forced()
        if forced is None:
            return None
        return force_end_at(self.received, last_turn, grace_s=forced.grace_s, patience_s=forced.patience_s)


@contextmanager
def stop_on_signals(
    request: Callable[[str], object], *, forced: Callable[[], ForcedEnd | None] = lambda: None
) -> Iterator[Callable[[str], object]]:
    """Inside, each SIGTERM, SIGINT and SIGHUP calls ``request`` with its name, on the running loop.

    Any number of these may be open in one process, each on its own loop: each gets every signal. When the last one is closed,
    the previous handlers are installed again, those of ``loop.add_signal_handler`` included; a handler that something else
    has installed in the meantime stays. A SIGHUP that is ignored (``nohup``) stays ignored.

    Python handles signals in the main thread only. Outside of it this installs nothing, and gets the signals only while
    another one is open in the main thread.

    ``forced`` returns what happens if the loop does not turn after a signal; ``None`` for no forced end. The function that this
    yields counts as a signal in that respect; it takes the reason, and any thread may call it.
    """
    listener = _Listener(asyncio.get_running_loop(), request, forced)
    _SIGNALS.add(listener)
    try:
        yield lambda reason: _SIGNALS.notice(listener, reason)
    finally:
        _SIGNALS.remove(listener)


@dataclass(slots=True)
class _Level:
    """Handlers that were replaced at one time, and the listeners that need the replacement."""

    previous: dict[signal.Signals, _Handler]
    listeners: set[int]


class _Signals:
    """This process's signal handlers and the listeners. Handlers change on the main thread only."""

    def __init__(self) -> None:
        self.listeners: tuple[_Listener, ...] = ()
        self._lock = threading.Lock()  # of `listeners`; the handler only reads it
        self._levels: list[_Level] = []
        self._thread: _SignalThread | None = None

    def add(self, listener: _Listener) -> None:
        with self._lock:
            self.listeners += (listener,)
        if threading.current_thread() is not threading.main_thread():
            return
        previous = {number: signal.getsignal(number) for number in STOP_SIGNALS if self._may_replace(number)}
        if previous or not self._levels:
            # Something between the last level and now has installed handlers, for example Prefect's engine.
            self._levels.append(_Level(previous, set()))
        self._levels[-1].listeners.add(id(listener))
        if self._thread is None:
            self._thread = _SignalThread(self)
        for number in previous:
            signal.signal(number, self._on_signal)
            signal.siginterrupt(number, False)  # noqa: FBT003 - as asyncio does: C code need not handle EINTR

    def remove(self, listener: _Listener) -> None:
        with self._lock:
            self.listeners = tuple(each for each in self.listeners if each is not listener)
        for level in self._levels:
            level.listeners.discard(id(listener))
        if threading.current_thread() is not threading.main_thread():
            return
        while self._levels and not self._levels[-1].listeners:
            self._restore(self._levels.pop().previous)
        if not self._levels and self._thread is not None:
            self._thread.stop()
            self._thread = None

    def notice(self, listener: _Listener, reason: str) -> None:
        """A request to stop that is not a signal, from any thread."""
        listener.received.append(Received(reason, _TIME.now(), is_signal=False))
        if (thread := self._thread) is not None:
            thread.check_loops()

    def forget(self) -> None:
        """In a forked child: its signals are no requests to stop the parent's runs."""
        self.listeners = ()
        while self._levels:
            self._restore(self._levels.pop().previous)
        if self._thread is not None:
            signal.set_wakeup_fd(-1)
            self._thread = None

    def _may_replace(self, number: signal.Signals) -> bool:
        present = signal.getsignal(number)
        if (
            present is None or present == self._on_signal
        ):  # None: not installed from Python, so it could not be restored
            return False
        return not (number is signal.SIGHUP and present is signal.SIG_IGN)

    def _restore(self, previous: dict[signal.Signals, _Handler]) -> None:
        for number, handler in previous.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """On the main thread, between two bytecodes."""
        if self._thread is not None:
            self._thread.ensure_wakeup(number)
        for listener in self.listeners:
            listener.pass_on(signal.Signals(number).name)
        if self._thread is not None:
            self._thread.let_run()


class _SignalThread:
    """Reads the signals that the interpreter writes, and ends a process whose loop is silent after one."""

    def __init__(self, signals: _Signals) -> None:
        self._signals = signals
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)  # noqa: FBT003 - the standard library's signature
        # The previous descriptor is asyncio's, if `loop.add_signal_handler` was used: it keeps getting the other signals.
        self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._noted = 0  # stop signals that the thread has noted, and checked the loops after
        self._handled = 0  # stop signals whose handler has run
        self._ending = False  # the thread ends the process
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def let_run(self) -> None:
        """Called by the handler: wait until the thread has noted the signal, which takes a millisecond.

        Some C code holds the interpreter lock and yet calls handlers: a regular expression, arithmetic of huge integers. The
        thread can run only while the handler sleeps, so it is there that such a process is ended, at the signal after the
        one that made it due.
        """
        self._handled = max(self._handled, self._noted) + 1
        until = time.monotonic() + _NOTE_S
        while self._ending or (self._noted < self._handled and time.monotonic() < until):
            time.sleep(0.001)

    def stop(self) -> None:
        """Write the signals where they were written before, and end the thread.

        After a signal it ends only when every listener has left: one on another thread may still have to be ended by force.
        """
        if (present := signal.set_wakeup_fd(-1)) != self._writer.fileno():
            self._previous = present  # something else has taken it in the meantime
        with suppress(OSError, ValueError):  # it is closed
            signal.set_wakeup_fd(self._previous)
        with suppress(OSError):
            self._writer.send(bytes([_END]))

    def check_loops(self) -> None:
        """Check from now on whether the loops turn. Any thread may call it."""
        with suppress(OSError):
            self._writer.send(bytes([_CHECK]))

    def ensure_wakeup(self, number: int) -> None:
        """Called by the handler: if something has taken the wakeup descriptor since the start, take it back."""
        present = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if present != self._writer.fileno():
            self._previous = present
            with suppress(OSError):
                self._writer.send(bytes([number]))

    def _run(self) -> None:
        with self._reader, self._writer:
            signalled = stopped = False
            while not stopped or (signalled and self._signals.listeners):
                self._reader.settimeout(_CHECK_S if signalled else None)
                try:
                    numbers = self._reader.recv(4096)
                except TimeoutError:
                    numbers = b""
                _TIME.check(first=not signalled)
                for number in numbers:
                    stopped = stopped or number == _END
                    signalled = self._note(number) or signalled
                if signalled:
                    self._check()
                self._noted += sum(number in STOP_SIGNALS for number in numbers)

    def _note(self, number: int) -> bool:
        if number == _CHECK:
            return True
        if number not in STOP_SIGNALS:
            if number != _END and self._previous != -1:
                with suppress(OSError):
                    os.write(self._previous, bytes([number]))
            return False
        received = Received(signal.Signals(number).name, _TIME.now())
        for listener in self._signals.listeners:
            listener.received.append(received)
        return True

    def _check(self) -> None:
        listeners = self._signals.listeners
        now = _TIME.now()
        for listener in listeners:
            listener.check_turn()
        due = [each for each in listeners if (at := each.due(each.last_turn)) is not None and now >= at]
        # A run on another loop that still turns has had the time that it may need.
        if due and all((at := each.due(0.0)) is None or now >= at for each in listeners):
            self._ending = True
            _force_end(due, now)


def _force_end(due: Sequence[_Listener], now: float) -> None:
    ends = [(listener, forced) for listener in due if (forced := listener.forced()) is not None]
    # Should the disk or the log not answer:
    end_process(ExitCode.STRAGGLERS, within_s=max(_WRITE_S, *(forced.patience_s for _, forced in ends)))
    codes: list[int] = []
    for listener, forced in ends:
        first = listener.received[0]
        try:
            codes.append(forced.end(first.name, now - max(listener.last_turn, first.at)))
        except Exception:
            logger.exception("a run could not be reported; the process ends")
    exit_now(max(codes, default=ExitCode.STRAGGLERS))


_TIME = RunningTime()
_SIGNALS = _Signals()
os.register_at_fork(after_in_child=_SIGNALS.forget)
