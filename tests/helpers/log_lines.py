"""JSON log lines in tests: the fields that every line has are checked here, and the rest is compared."""

from __future__ import annotations

import json
import re
from typing import Any

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def event_of(line: str) -> dict[str, Any]:
    """The event and its own fields. Fails if the line does not begin with ``time``, ``level``, ``event`` and ``run``."""
    fields: dict[str, Any] = json.loads(line)
    assert list(fields)[:4] == ["time", "level", "event", "run"], line
    assert _TIME.fullmatch(fields.pop("time")), line
    assert fields.pop("level") in {"INFO", "WARNING", "ERROR"}, line
    assert isinstance(fields.pop("run"), str), line
    return fields
