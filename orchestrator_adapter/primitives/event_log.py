"""The one writer of JSON log lines. Each line is one object, whose first fields are always these:

==========  ==============================================================================================================
``time``      UTC, ISO 8601 with microseconds and ``Z``, from the clock that is passed in (the machine's, if none is)
``level``     ``INFO``, ``WARNING`` or ``ERROR``, as in ``logging``
``event``     what happened: a stable name; a graph's decisions are named in ``Decision``
``run``       the flow run's id under Prefect, else the graph's name and the time it was built; empty outside a run
``operator``  where there is one, and then its ``instance`` (a number) as a field of its own, where one is known
``task_run``  under Prefect, after the event's own fields: the id of the instance's task run
==========  ==============================================================================================================

The event's own fields follow. ``JsonFormatter`` gives the lines of other loggers the same form. Items never cause one line
each: ``RateLimiter`` bounds what they cause.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, TypeVar

from orchestrator_adapter.primitives.clock import Clock, SystemClock
from orchestrator_adapter.primitives.decision import Decision, is_alarming
from orchestrator_adapter.primitives.errors import describe

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger("orchestrator_adapter.supervisor")
operator_logger = logging.getLogger("orchestrator_adapter.operator")

_PERIOD_S = 1.0  # at most one line per operator and kind in this time
_MOST_KEYS = 1_000
_FURTHER_KEYS = object()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPLETE = "is_json_line"  # marks the records whose message is a complete line

TaskRunId: TypeAlias = Callable[[str, int], str]
"""The id of the task run of an operator's instance."""

_run: ContextVar[str] = ContextVar("run", default="")
_task_run_id: ContextVar[TaskRunId | None] = ContextVar("task_run_id", default=None)
_instance: ContextVar[tuple[str, int, str] | None] = ContextVar("instance", default=None)  # with its task run


# Which run a line belongs to.


def new_run_id(graph: str) -> str:
    """The name of a run that has none from elsewhere: the graph's name and the time, ``sda-ingest-20260102T030405.678901Z``.

    The time is the machine's, also where the graph runs on another clock: it distinguishes runs.
    """
    return f"{graph}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"


def current_run() -> str:
    """The run that this task works for; empty outside a run."""
    return _run.get()


@contextmanager
def in_run(run: str, *, task_run_id: TaskRunId | None = None) -> Iterator[None]:
    """Within this context, and in the tasks that are started in it, log lines belong to ``run``.

    With ``task_run_id``, lines that name an operator and its instance get the field ``task_run``.
    """
    run_token, id_token = _run.set(run), _task_run_id.set(task_run_id)
    try:
        yield
    finally:
        _task_run_id.reset(id_token)
        _run.reset(run_token)


def enter_instance(operator: str, instance: int, task_run: str) -> None:
    """From here on, lines that are written in the current context belong to this instance and its task run.

    These are the lines that name the operator without an instance, and the lines of loggers that name none (``JsonFormatter``).
    """
    _instance.set((operator, instance, task_run))


def _task_run(fields: Mapping[str, object], task_run_id: TaskRunId | None) -> dict[str, object]:
    """The field ``task_run`` of a line with these fields, if it has one."""
    if task_run_id is None or not isinstance(operator := fields.get("operator"), str):
        return {}
    match fields.get("instance"):
        case int(instance) if instance >= 1:
            return {"task_run": task_run_id(operator, instance)}
        case None if (inside := _instance.get()) is not None and inside[0] == operator:
            return {"task_run": inside[2]}
        case _:
            return {}


# Writing lines.


class EventLog:
    """Writes events as JSON log lines. Any thread may call it.

    A log that is created within a run writes that run's lines. Any other log writes the lines of the run that calls it.
    """

    def __init__(
        self, logger: logging.Logger, *, clock: Clock | None = None, run: str | None = None, **fields: object
    ) -> None:
        """``fields`` are part of every line."""
        self._logger = logger
        self._clock: Clock = SystemClock() if clock is None else clock
        self._run = current_run() if run is None else run
        self._task_run_id = _task_run_id.get()
        self._fields = fields

    def __call__(
        self, event: str, /, *, level: int = logging.INFO, exc: BaseException | None = None, **fields: object
    ) -> None:
        """Write one line. ``exc`` adds ``cause`` and ``traceback``."""
        self.write(event, level, fields if exc is None else fields | _failure(exc))

    def write(self, event: str, level: int, fields: Mapping[str, object]) -> None:
        """As a call, for fields whose names are not known beforehand."""
        if self._logger.isEnabledFor(level):
            at = _datetime(self._clock.now_ns())
            whole = {**self._fields, **fields}
            whole |= _task_run(whole, self._task_run_id or _task_run_id.get())
            line = _line(at, level, event, self._run or current_run(), whole)
            self._logger.log(level, "%s", line, extra={_COMPLETE: True})


class JsonFormatter(logging.Formatter):
    """Formats every log record as one JSON line; for handlers whose output consists of JSON lines only.

    The lines of ``EventLog`` stay as they are. Any other record becomes the event ``message``, with ``logger`` and
    ``message``, ``cause`` and ``traceback`` if it carries an exception, and under Prefect the operator instance that wrote it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line without its newline."""
        if getattr(record, _COMPLETE, False):
            return record.getMessage()
        fields: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info is not None and (exc := record.exc_info[1]) is not None:
            fields |= _failure(exc)
        if (inside := _instance.get()) is not None:
            fields |= dict(zip(("operator", "instance", "task_run"), inside, strict=True))
        at = datetime.fromtimestamp(record.created, UTC)
        return _line(at, record.levelno, "message", current_run(), fields)


def _line(at: datetime, level: int, event: str, run: str, fields: Mapping[str, object]) -> str:
    line: dict[str, object] = {
        "time": f"{at:%Y-%m-%dT%H:%M:%S.%fZ}",
        "level": logging.getLevelName(level),
        "event": event,
        "run": run,
    }
    return json.dumps({**line, **fields}, default=str)


def _failure(exc: BaseException) -> dict[str, object]:
    return {"cause": describe(exc), "traceback": "".join(traceback.format_exception(exc))}


def _datetime(now_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=now_ns // 1000)


class DecisionLog:
    """The decisions of one graph: each is logged and reported to the listener. Any thread may call it.

    Attributes:
        listener: Receives each decision with the fields of its line; what it raises is logged and changes nothing.
    """

    def __init__(self, graph: str, *, clock: Clock | None = None, run: str | None = None) -> None:
        self.listener: Callable[[Decision, Mapping[str, object]], object] | None = None
        self._log = EventLog(logger, clock=clock, run=run, graph=graph)

    def __call__(self, decision: Decision, **fields: object) -> None:
        """Log ``decision`` and report it."""
        self._log.write(decision, logging.ERROR if is_alarming(decision) else logging.INFO, fields)
        if (listener := self.listener) is not None:
            call_hook(lambda reported: listener(decision, reported), fields)


def call_hook(hook: Callable[[T], R] | None, record: T) -> R | None:
    """Call ``hook`` with ``record`` and return its answer. What it raises is logged and changes nothing: ``None``."""
    if hook is None:
        return None
    try:
        return hook(record)
    except BaseException:  # a hook is foreign code; asyncio would stop the loop for its SystemExit
        logger.exception("a hook failed; what it was called for goes on")
        return None


# Bounding lines.


class RateLimiter:
    """Admits at most one line a second for each key, and counts those that it suppresses.

    It knows at most 1,000 keys: all further ones count as one key, in case a key contains a text that differs each time.
    """

    def __init__(self, clock: Clock, *, period_s: float = _PERIOD_S) -> None:
        self._clock = clock
        self._period_s = period_s
        self._last: dict[Hashable, tuple[float, int]] = {}

    def admit(self, key: Hashable) -> int | None:
        """The number suppressed since the last admitted line of this key; ``None`` if this line is suppressed, too."""
        now = self._clock.monotonic()
        if key not in self._last and len(self._last) >= _MOST_KEYS:
            key = _FURTHER_KEYS
        last, suppressed = self._last.get(key, (float("-inf"), 0))
        if now - last < self._period_s:
            self._last[key] = (last, suppressed + 1)
            return None
        self._last[key] = (now, 0)
        return suppressed


class BoundedLog:
    """One operator's log of what its items cause: at most one line a second and kind, with the number suppressed."""

    def __init__(self, operator: str, clock: Clock) -> None:
        self._log = EventLog(operator_logger, clock=clock, operator=operator)
        self._clock = clock
        self._limiter = RateLimiter(clock)
        self._downstreams: dict[str, tuple[bool, float]] = {}  # what was logged last, and when

    def note(self, kind: str, message: str, *, event: str = Decision.DEAD_LETTER, **fields: object) -> None:
        """Log it, unless a line of its kind was logged within the last second; then count it."""
        suppressed = self._limiter.admit(kind)
        if suppressed is not None:
            line = {"kind": kind, "message": message, **fields, "not_logged_since_last": suppressed}
            self._log.write(event, logging.WARNING, line)

    def downstream(self, name: str, *, failing: bool, **fields: object) -> None:
        """Log that a downstream begins to fail, or answers again: one line a change, and at most one a second.

        A change within that second is logged by the next call after it, if it still holds then.
        """
        now = self._clock.monotonic()
        was_failing, logged_at = self._downstreams.get(name, (False, float("-inf")))
        if failing == was_failing or now - logged_at < _PERIOD_S:
            return
        self._downstreams[name] = (failing, now)
        event = "downstream_failing" if failing else "downstream_answers"
        self._log.write(event, logging.WARNING if failing else logging.INFO, {"downstream": name, **fields})
