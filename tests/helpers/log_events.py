"""The events of the log: what ``docs/log-events.md`` lists, and what the code writes, read from its syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator_adapter.bulkhead import log as bulkhead_log
from orchestrator_adapter.primitives.decision import Decision, is_alarming
from tests.helpers.support import ROOT

COMMON = frozenset({"operator", "instance", "task_run", "graph", "bulkhead"})
"""Fields of many events, which the page explains once."""

PACKAGES = ("orchestrator_adapter", "sda_ops", "flows")

_PAGE = ROOT / "docs" / "log-events.md"
_ROW = re.compile(r"^\| `(\w+)` \| ([A-Z, ]+|any) \| (.+?) \|(.*?)\| (.+?) \|$", re.MULTILINE)
_MAY_WRITE = re.compile(r"log(\.write|\.note|\.downstream)?\(|_faults\.note\(|EventLog|announce\(|def warnings_of")
_NO_FIELDS = frozenset({"level", "exc", "event"})
_ADDED = {  # by what passes the keywords on to the log
    "announce": {"command", "message"},
    "note": {"kind", "message", "not_logged_since_last"},
    "_note": {"edge", "items", "bytes"},
    "downstream": {"downstream"},
}

WRITERS = {
    "orchestrator_adapter/primitives/event_log.py": "the writer itself",
    "orchestrator_adapter/bulkhead/log.py:self._log.write": "BulkheadLog passes on what its callers say",
    "orchestrator_adapter/channels/spilling_edge.py:self._log(decision)": "_note passes on what its callers say",
    "orchestrator_adapter/prefect_flow/reporting/flow_run_watch.py:self._log": "a method that writes plain text",
    "flows/commands/messages.py": "announce passes on what its callers say",
    "flows/commands/screen/screening_run.py:announce(event)": "its events are those of warnings_of, below",
}
"""Calls that only pass on the event of their caller, by file or by file and call, with the reason."""

UNREADABLE: dict[str, tuple[str, set[str]]] = {
    "**who": ("operator and instance of the supervision loop, both common", set()),
    "**asdict(straggler)": ("the fields of Straggler", {"stack"}),
}
"""Keywords that the syntax does not show, with the fields that they stand for."""


@dataclass(frozen=True)
class LogEvent:
    """What the page, or one call, says of an event."""

    name: str
    levels: frozenset[str]
    fields: frozenset[str]
    where: str = ""


@cache
def documented() -> dict[str, LogEvent]:
    """The events of the page, by name. A name that two rows have is an error."""
    events: dict[str, LogEvent] = {}
    for name, levels, _, fields, _ in _ROW.findall(_PAGE.read_text(encoding="utf-8")):
        assert name not in events, f"docs/log-events.md has two rows for {name}"
        found = frozenset(re.findall(r"`(\w+)`", fields))
        events[name] = LogEvent(name, frozenset(levels.split(", ")), found)
    return events


def written() -> list[LogEvent]:
    """One for each event of each call in the three packages."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [event for path in paths for event in events_of(path.relative_to(ROOT), path.read_text(encoding="utf-8"))]


def events_of(path: Path, source: str) -> Iterator[LogEvent]:
    """The events that the calls of one file write. Raises ``AssertionError`` for a call that cannot be read."""
    if str(path) in WRITERS or not _MAY_WRITE.search(source):
        return
    tree = ast.parse(source)
    always = {
        name
        for call in _calls(tree)
        if ast.unparse(call.func) == "EventLog"
        for name in (keyword.arg for keyword in call.keywords)
        if name is not None
    } - {"clock", "run"}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in _own_calls(function):
                yield from _events(path, function, call, always)
            if function.name == "warnings_of":
                yield from _warnings(path, function)


def _events(
    path: Path, function: ast.FunctionDef | ast.AsyncFunctionDef, call: ast.Call, always: set[str]
) -> Iterator[LogEvent]:
    callee = ast.unparse(call.func)
    kind = _kind(path, callee)
    if kind is None or f"{path}:{callee}" in WRITERS:
        return
    keywords = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    named = keywords.get("event") if kind == "note" else call.args[int(kind == "announce")] if call.args else None
    if f"{path}:{callee}({'' if named is None else ast.unparse(named)})" in WRITERS:
        return
    where = f"{path}:{call.lineno}"
    fields = set(keywords) - _NO_FIELDS | _ADDED.get(kind, set()) | (always if kind in {"log", "write"} else set())
    if "exc" in keywords:
        fields |= {"cause", "traceback"}
    for hidden in (keyword.value for keyword in call.keywords if keyword.arg is None):
        text = f"**{ast.unparse(hidden)}"
        assert text in UNREADABLE, f"{where}: which fields are {text}? Add it to UNREADABLE"
        fields |= UNREADABLE[text][1]
    if kind == "write":
        fields |= _keys(function, call.args[2], where)
    if kind == "downstream":
        failing = ast.literal_eval(keywords["failing"])
        names = ["downstream_failing" if failing else "downstream_answers"]
        fields -= {"failing"}
    elif named is None:
        assert kind == "note", f"{where}: no event"
        names = [str(Decision.DEAD_LETTER)]
    else:
        names = _names(function, named, where)
    given = _given_levels(function, call.args[1] if kind == "write" else keywords.get("level"))
    for index, name in enumerate(names):
        level = given[index % len(given)] if given else _level(path, kind, name)  # one level, or one for each event
        yield LogEvent(name, frozenset({level}), frozenset(fields - COMMON), where)


def _warnings(path: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[LogEvent]:
    """Of the function that yields event, text and fields for ``announce``."""
    for node in ast.walk(function):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            where = f"{path}:{node.lineno}"
            event, _, fields = node.value.elts
            (name,) = _names(function, event, where)
            yield LogEvent(
                name, frozenset({"INFO"}), frozenset(_ADDED["announce"] | _keys(function, fields, where)), where
            )


def _kind(path: Path, callee: str) -> str | None:
    """How a call writes an event; ``None`` if it does not."""
    owner, _, last = callee.rpartition(".")
    if callee == "announce" or (callee == "self._note" and path.name == "spilling_edge.py"):
        return last
    if last in {"note", "downstream"} and re.search(r"log$|_faults$", owner):
        return last
    if last == "write" and owner.endswith("log"):
        return last
    if (last in {"log", "_log"} and owner not in {"math", "np"}) or callee == "EventLog(logger)":
        return "log"
    if callee == "self" and path.parts[1:] == ("bulkhead", "log.py"):
        return "log"
    return None


def _names(function: ast.AST, node: ast.expr, where: str) -> list[str]:
    """The events that an expression stands for, in the order of the text."""
    match node:
        case ast.Constant(str(name)):
            return [name]
        case ast.Attribute(ast.Name("Decision"), name):
            return [Decision[name].value]
        case ast.IfExp(_, one, other):
            return _names(function, one, where) + _names(function, other, where)
        case ast.Name(variable) if values := _assigned(function, variable):
            return [name for value in values for name in _names(function, value, where)]
    message = f"{where}: which event is {ast.unparse(node)}? Write it as a literal, or add the call to WRITERS"
    raise AssertionError(message)


def _keys(function: ast.AST, node: ast.expr, where: str) -> set[str]:
    """The names of the fields in a dictionary, written there or assigned before."""
    if isinstance(node, ast.Name) and (values := _assigned(function, node.id)):
        (node,) = values
    assert isinstance(node, ast.Dict), f"{where}: which fields are {ast.unparse(node)}? Write them as a literal"
    return {str(ast.literal_eval(key)) for key in node.keys if key is not None}


def _given_levels(function: ast.AST, level: ast.expr | None) -> list[str]:
    """The levels that a call names, in the order of the text."""
    values = _assigned(function, level.id) if isinstance(level, ast.Name) else [level]
    return re.findall(r"logging\.([A-Z]+)", " ".join(ast.unparse(value) for value in values if value is not None))


def _level(path: Path, kind: str, name: str) -> str:
    """The level of a call that names none."""
    if "bulkhead" in path.parts:
        errors, warnings = bulkhead_log._ERRORS, bulkhead_log._WARNINGS
        return "ERROR" if name in errors else "WARNING" if name in warnings else "INFO"
    if kind == "note" or name == "downstream_failing":
        return "WARNING"
    return "ERROR" if is_alarming(name) else "INFO"


def _assigned(function: ast.AST, variable: str) -> Sequence[ast.expr]:
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == variable for target in node.targets)
    ]


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _own_calls(function: ast.AST) -> Iterator[ast.Call]:
    """The calls of a function without those of the functions in it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if isinstance(node, ast.Call):
                yield node
            yield from _own_calls(node)
