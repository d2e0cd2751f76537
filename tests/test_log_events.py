"""``docs/log-events.md`` lists every event that the code writes, with its levels and fields, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator_adapter.primitives.decision import Decision
from tests.helpers.log_events import WRITERS, LogEvent, documented, events_of, written
from tests.helpers.support import ROOT

_OF_OTHER_LOGGERS = "message"


def merged(calls: list[LogEvent]) -> dict[str, tuple[set[str], set[str]]]:
    """Levels and fields of each event, of all the calls that write it."""
    events: dict[str, tuple[set[str], set[str]]] = {}
    for each in calls:
        levels, fields = events.setdefault(each.name, (set(), set()))
        levels |= each.levels
        fields |= each.fields
    return events


@pytest.fixture(scope="module")
def calls() -> list[LogEvent]:
    """What the three packages write."""
    return written()


def test_the_page_lists_every_event_and_no_other(calls: list[LogEvent]) -> None:
    """Every line of another logger is the event ``message``."""
    names = {each.name: each.where for each in calls}
    assert {name: where for name, where in names.items() if name not in documented()} == {}
    assert sorted(set(documented()) - set(names)) == [_OF_OTHER_LOGGERS]


def test_levels_and_fields_of_each_event_are_those_of_the_code(calls: list[LogEvent]) -> None:
    """Those of all calls that write it."""
    page = merged([event for name, event in documented().items() if name != _OF_OTHER_LOGGERS])
    code = merged(calls)
    assert {name: page[name] for name in page} == {name: code[name] for name in page}


def test_every_decision_is_written_somewhere(calls: list[LogEvent]) -> None:
    """So that the search of the code has found the decisions."""
    assert sorted(set(Decision) - {each.name for each in calls}) == []


def test_every_exception_of_the_search_still_exists() -> None:
    """A file, or a call in it."""
    for place in WRITERS:
        file, _, call = place.partition(":")
        assert call.partition("(")[0] in (ROOT / file).read_text(encoding="utf-8"), place


@pytest.mark.parametrize(
    ("call", "level", "fields"),
    [
        ('self._log("burnt", level=logging.WARNING, heat_k=1)', "WARNING", {"heat_k"}),
        ('self._log("burnt", level=logging.ERROR, exc=error)', "ERROR", {"cause", "traceback"}),
        ('log.note("hot", why, event="burnt")', "WARNING", {"kind", "message", "not_logged_since_last"}),
        ('announce("demo", "burnt", text, heat_k=1)', "INFO", {"command", "message", "heat_k"}),
        ('self._log.write("burnt", logging.ERROR, {"heat_k": 1, "operator": name})', "ERROR", {"heat_k"}),
    ],
)
def test_an_event_is_found_however_it_is_written(call: str, level: str, fields: set[str]) -> None:
    """With its level and the fields that the writer adds; without the common ones."""
    (event,) = events_of(Path("flows/x.py"), f"def f():\n    {call}\n")
    assert event == LogEvent("burnt", frozenset({level}), frozenset(fields), "flows/x.py:2")


@pytest.mark.parametrize("call", ["self._log(name)", 'self._log("burnt", **more)'])
def test_a_call_whose_event_or_fields_cannot_be_read_is_rejected(call: str) -> None:
    """Such a call would hide an event from the page."""
    with pytest.raises(AssertionError, match=r"flows/x\.py:2"):
        list(events_of(Path("flows/x.py"), f"def f():\n    {call}\n"))
