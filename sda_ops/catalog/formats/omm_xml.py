"""Rows from OMM as XML (CCSDS 505.0-B; CelesTrak, FORMAT=xml): an <ndm> with messages, or a single <omm>.

A document type declaration is rejected without being processed: without one there are no entities to expand.
"""

from __future__ import annotations

import re
from xml.parsers import expat

from sda_ops.catalog.formats.rows import OmmRows, Unreadable
from sda_ops.catalog.omm_fields import UNITS, OmmFields

_ROOTS = ("ndm", "omm")
_PIECE = 65_536  # bytes
_REPEATED = ("COMMENT", "USER_DEFINED")
_NEXT_MESSAGE = re.compile(rb"<(?:[A-Za-z_][\w.-]*:)?omm[\s>]")


def looks_like_omm_xml(text: str) -> bool:
    """Whether the text begins as XML. `omm_xml_rows` checks that it is OMM."""
    return text.lstrip()[:1] == "<"


def omm_xml_rows(text: str) -> OmmRows:
    """One row for each message. One that is not well-formed costs only itself: reading continues at the next <omm>.

    Raises ``ValueError`` for a document type declaration, or a root element other than <ndm> and <omm>.
    """
    stripped = text.lstrip()
    data = stripped.encode()
    begun, line, prolog = 0, 1 + text.count("\n", 0, len(text) - len(stripped)), b""
    while True:
        messages = _Messages(line, within=bool(prolog))
        try:
            messages.parse(prolog, data, begun)
        except expat.ExpatError as error:
            if not messages.root_seen:
                raise ValueError(f"not XML: {error}") from error
            at = max(begun, begun + messages.parser.ErrorByteIndex - len(prolog))
            error_line = line + messages.parser.ErrorLineNumber - 1
            # The message at ``begun`` is the one that failed: continue at a later one.
            resumed = _NEXT_MESSAGE.search(data, max(at, begun + 1))
            if messages.is_open or resumed is None or resumed.start() != at:
                truncated = resumed is None and data.find(b"</", at) < 0
                reason = f"not XML: {expat.ErrorString(error.code)} in line {error_line}"
                messages.fail(reason, line=error_line, truncated=truncated)
            yield from messages.rows
            if resumed is None:
                return
            line += data.count(b"\n", begun, resumed.start())
            begun, prolog = resumed.start(), b"<ndm>"
        else:
            yield from messages.rows
            return


class _Messages:
    """Handles expat's events and collects ``rows``: for each <omm> its elements that have text, by name."""

    def __init__(self, first_line: int, *, within: bool) -> None:
        self.rows: list[tuple[int, OmmFields | Unreadable]] = []
        self.root_seen = within
        self.parser = expat.ParserCreate("utf-8")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._take
        self._first_line = first_line
        self._begun: int | None = None
        self._fields: dict[str, object] = {}
        self._wrong: str | None = None
        self._text: list[str] = []

    def parse(self, prolog: bytes, data: bytes, begun: int) -> None:
        """Parse from ``begun``, piece by piece: an early error then leaves the rest of the data unread."""
        self.parser.Parse(prolog)
        for piece in range(begun, len(data), _PIECE):
            self.parser.Parse(data[piece : piece + _PIECE])
        self.parser.Parse(b"", True)  # noqa: FBT003 - expat takes no keyword: "this is the end"

    @property
    def is_open(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._begun is not None

    def fail(self, reason: str, *, line: int, truncated: bool) -> None:
        """Record that the open message is unreadable, or, if no message is open, the text at ``line``."""
        self.rows.append((self._begun or line, Unreadable(reason, truncated)))

    def _doctype(self, name: str, *_: object) -> None:
        raise ValueError(f"a document type declaration (<!DOCTYPE {name}>), which is not read")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(":")[2]
        self._text.clear()
        if not self.root_seen:
            if name not in _ROOTS:
                raise ValueError(f"expected <ndm> or <omm>, got <{tag}>")
            self.root_seen = True
        if name == "omm":
            line = self._first_line + self.parser.CurrentLineNumber - 1
            if self._begun is not None:
                self.fail("not closed before the next message", line=line, truncated=False)
            self._begun, self._fields, self._wrong = line, {}, None
        elif (unit := attributes.get("units")) is not None and unit.strip().lower() != UNITS.get(
            name, unit.strip().lower()
        ):
            self._wrong = self._wrong or f"{name} must be in {UNITS[name]}, got {unit!r}"

    def _take(self, text: str) -> None:
        self._text.append(text)

    def _end(self, tag: str) -> None:
        name = tag.rpartition(":")[2]
        text = "".join(self._text).strip()
        self._text.clear()
        if self._begun is None:
            return
        if name == "omm":
            self.rows.append((self._begun, Unreadable(self._wrong) if self._wrong else self._fields))
            self._begun = None
        elif text and self._fields.setdefault(name, text) != text and name not in _REPEATED:
            self._wrong = self._wrong or f"{name} twice, as {self._fields[name]!r} and as {text!r}"
