"""JSON log lines in tests: the fields that every line has are checked here, and the rest is compared."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.helpers.log_events import COMMON, documented

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def event_of(line: str) -> dict[str, Any]:
    """The event and its own fields. Fails if the line does not begin with ``time``, ``level``, ``event`` and ``run``.

    Fails, too, if ``docs/log-events.md`` does not have the event, with this level and these fields.
    """
    fields: dict[str, Any] = json.loads(line)
    assert list(fields)[:4] == ["time", "level", "event", "run"], line
    assert _TIME.fullmatch(fields.pop("time")), line
    level = fields.pop("level")
    assert level in {"INFO", "WARNING", "ERROR"}, line
    assert isinstance(fields.pop("run"), str), line
    event = documented().get(fields["event"])
    assert event is not None, f"docs/log-events.md does not have {fields['event']}"
    assert event.levels & {level, "any"}, line
    assert fields.keys() - COMMON - event.fields == {"event"}, line
    return fields
