"""Rows from OMM as KVN, the 'keyword = value' notation (CCSDS 502.0-B, section 7; CelesTrak, FORMAT=kvn).

A message begins with CCSDS_OMM_VERS; a file may contain several.
"""

from __future__ import annotations

import re

from sda_ops.catalog.formats.rows import OmmRows, Unreadable
from sda_ops.catalog.omm_fields import UNITS, missing_fields

_BEGIN = re.compile(r"^[ \t]*CCSDS_OMM_VERS[ \t]*=", re.MULTILINE)
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)[ \t]*=[ \t]*(.*)", re.ASCII)
_UNIT = re.compile(r"(.*?)[ \t]*\[([^\[\]]*)\]")
_TEXT = ("OBJECT_NAME", "OBJECT_ID", "ORIGINATOR")
"""Keywords with values that may end in brackets that are not a unit: 'DRAGON [+]'."""


def looks_like_omm_kvn(text: str) -> bool:
    """Whether a line begins a message."""
    return _BEGIN.search(text) is not None


def omm_kvn_rows(text: str) -> OmmRows:
    """One row for each message, at the line of its CCSDS_OMM_VERS, with the first problem if it has any."""
    begun = 0
    fields: dict[str, object] = {}
    wrong: str | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.strip()
        if not words or words == "COMMENT" or words.startswith("COMMENT "):
            continue
        if _BEGIN.match(line):
            if begun:
                yield begun, Unreadable(wrong) if wrong else fields
            begun, fields, wrong = number, {}, None
        elif begun:
            wrong = wrong or _assign(fields, words, number)
        else:
            yield number, Unreadable(f"expected CCSDS_OMM_VERS first, got {words[:60]!r}")
    if begun and wrong is None and (missing := missing_fields(fields)):
        yield begun, Unreadable(f"missing {', '.join(missing)}", truncated=True)
    elif begun:
        yield begun, Unreadable(wrong) if wrong else fields


def _assign(fields: dict[str, object], words: str, number: int) -> str | None:
    """Add one line to ``fields``; returns what is wrong with the line, if anything is."""
    assignment = _ASSIGNMENT.fullmatch(words)
    if assignment is None:
        return f"line {number}: expected KEYWORD = value, got {words[:60]!r}"
    keyword, value = assignment.groups()
    if keyword in fields:
        return f"line {number}: {keyword} a second time; a message begins with CCSDS_OMM_VERS"
    if keyword not in _TEXT and (with_unit := _UNIT.fullmatch(value)) is not None:
        value, unit = with_unit.groups()
        if unit.strip().lower() != UNITS.get(keyword, unit.strip().lower()):
            return f"line {number}: {keyword} must be in {UNITS[keyword]}, got {unit!r}"
    fields[keyword] = value
    return None
