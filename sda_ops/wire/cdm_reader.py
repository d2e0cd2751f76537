"""Conjunction Data Messages from text or bytes, in KVN or XML.

Both notations become one list of keywords with their values, from which the message is made: each error has its line. A
comment belongs to the part of the next keyword, because KVN does not delimit the parts. A date has to exist, a number has
to be finite and in the standard's unit, and a mandatory keyword has to be there. Enumerations are not checked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from math import isfinite
from typing import Any
from xml.parsers import expat

from sda_ops.gzipped import inflated
from sda_ops.wire.cdm_fields import (
    MESSAGE_FIELDS,
    MESSAGE_PARTS,
    OBJECT,
    OBJECT_FIELDS,
    OBJECT_PARTS,
    VERSION,
    Field,
    Part,
)
from sda_ops.wire.cdm_message import ConjunctionMessage, ConjunctionObject, check_text, is_keyword
from sda_ops.wire.malformed import MalformedFrame
from sda_ops.wire.time_tags import utc_ns_of_tag

MAX_CDM_BYTES = 1024 * 1024
"""The bound on a message: twenty times one with every field of the standard and long comments."""

VERSIONS = ("1.0", "2.0")
"""Of version 2.0, a draft, the keywords of version 1.0 are read; its new ones are kept as texts."""

_COMMENT = "COMMENT"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_COUNT = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_WITH_UNIT = re.compile(r"([^\[\]]*)\[([^\[\]]*)\]")
_ALIGNED_UNIT = re.compile(r" +\[")
_LINE_END = re.compile(r"\r\n|\n|\r")
_BLANKS = re.compile(r"[\t\r\n]+")
_PIECE = 65_536  # bytes


def read_cdm(content: str | bytes, *, file: str = "CDM") -> ConjunctionMessage:
    """The message in ``content``, in either notation; bytes may be a gzip file.

    Keywords that the standard does not have are kept in ``others``, and so are the components of an incomplete vector or
    covariance row. A field without a value is None.

    Raises `MalformedFrame`, a ``ValueError``, whose reason begins with ``file`` and the line: for content that is not one
    CDM of a version in `VERSIONS`, a missing mandatory keyword, and a value that its field cannot have.
    """
    raw = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    try:
        entries, last_line = _entries(content)
        return _message(entries, last_line)
    except _Wrong as wrong:
        place = f"{file} line {wrong.line}" if wrong.line else file
        raise MalformedFrame(f"{place}: {wrong}", raw) from None


class _Wrong(ValueError):
    """What is wrong, and the line; 0 if it concerns no line."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, slots=True)
class _Entry:
    """A keyword with its value as text.

    Attributes:
        line: Counted from 1.
        keyword: Also ``COMMENT``, `OBJECT` and `VERSION`.
        text: The value; in KVN with its unit.
        unit: In XML; None without one.
    """

    line: int
    keyword: str
    text: str
    unit: str | None = None


def _entries(content: str | bytes) -> tuple[list[_Entry], int]:
    """The keywords, and the number of the last line."""
    encoding = None
    if isinstance(content, str):
        content, encoding = content.encode(errors="surrogatepass"), "utf-8"
    try:
        content = inflated(content).removeprefix(b"\xef\xbb\xbf")
    except ValueError as error:
        raise _Wrong(str(error)) from None
    if len(content) > MAX_CDM_BYTES:
        raise _Wrong(f"expected one message of at most {MAX_CDM_BYTES} bytes, got {len(content)}")
    stripped = content.lstrip()
    if stripped.startswith(b"<"):
        return _xml_entries(stripped, encoding, 1 + content.count(b"\n", 0, len(content) - len(stripped)))
    try:
        lines = _LINE_END.split(content.decode())
    except UnicodeDecodeError as error:
        raise _Wrong(f"not UTF-8: {error.reason}", 1 + content.count(b"\n", 0, error.start)) from None
    return list(_kvn_entries(lines)), len(lines)


# KVN.


def _kvn_entries(lines: Sequence[str]) -> Iterator[_Entry]:
    for number, line in enumerate(lines, 1):
        text = line.replace("\t", " ").strip()
        if not text:
            continue
        if text == _COMMENT or text.startswith((f"{_COMMENT} ", f"{_COMMENT}=")):
            yield _Entry(number, _COMMENT, text.removeprefix(_COMMENT).strip())
            continue
        keyword, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not is_keyword(keyword):
            raise _Wrong(f"expected KEYWORD = value, got {text[:60]!r}", number)
        yield _Entry(number, keyword, value)


# XML.


class _XmlReader:
    """Handles expat's events and collects ``entries``: the elements that have no elements."""

    def __init__(self, encoding: str | None, first_line: int) -> None:
        self._first_line = first_line
        self.entries: list[_Entry] = []
        self.parser = parser = expat.ParserCreate(encoding)
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._take
        self._text: list[str] = []
        self._open: tuple[int, str, Mapping[str, str]] | None = None  # line, name, attributes
        self._seen = False

    def line(self) -> int:
        """The line that the parser has reached, counted from 1."""
        return self._first_line + self.parser.CurrentLineNumber - 1

    def _doctype(self, name: str, *_: object) -> None:
        raise _Wrong(f"a document type declaration (<!DOCTYPE {name}>) is not allowed", self.line())

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        line, name = self.line(), tag.rpartition(":")[2]
        if stray := "".join(self._text).strip():
            raise _Wrong(f"expected an element, got {stray[:60]!r} before <{tag}>", line)
        self._text.clear()
        self._open = (line, name, attributes)
        if name == "cdm":
            if self._seen:
                raise _Wrong("expected one message, got a second one", line)
            self._seen = True
            self.entries.append(_Entry(line, VERSION, attributes.get("version", "").strip()))
        elif not self._seen and name != "ndm":
            raise _Wrong(f"expected <cdm>, got <{tag}>", line)

    def _take(self, text: str) -> None:
        self._text.append(text)

    def _end(self, _: str) -> None:
        text = _BLANKS.sub(" ", "".join(self._text)).strip()
        self._text.clear()
        if self._open is None:
            if text:
                raise _Wrong(f"expected an element, got {text[:60]!r}", self.line())
            return
        line, name, attributes = self._open
        self._open = None
        if name in _CONTAINERS and not text:
            return
        if "parameter" in attributes:  # the KVN's spelling of USER_DEFINED
            name = f"{name}_{attributes['parameter']}"
        if not is_keyword(name):
            raise _Wrong(f"expected an element of the standard, got <{name[:60]}>", line)
        self.entries.append(_Entry(line, name, text, attributes.get("units")))


_CONTAINERS = {part.element for part in (*MESSAGE_PARTS, *OBJECT_PARTS)} | {
    "ndm",
    "cdm",
    "body",
    "segment",
    "data",
    "relativeStateVector",
}


def _xml_entries(content: bytes, encoding: str | None, first_line: int) -> tuple[list[_Entry], int]:
    reader = _XmlReader(encoding, first_line)
    try:
        for start in range(0, len(content), _PIECE):
            reader.parser.Parse(content[start : start + _PIECE])
        reader.parser.Parse(b"", True)  # noqa: FBT003 - expat takes no keyword: "this is the end"
    except expat.ExpatError as error:
        raise _Wrong(f"not XML: {expat.ErrorString(error.code)}", first_line + error.lineno - 1) from None
    except (LookupError, ValueError) as error:  # expat asks Python for the declared encoding
        if isinstance(error, _Wrong):
            raise
        raise _Wrong(f"not XML: {error}", first_line) from None
    return reader.entries, reader.line()


# Entries to the message.


@dataclass(slots=True)
class _Section:
    """The header and relative data, or one object.

    Attributes:
        name: For messages.
        known: The part and the field of each keyword.
        parts: The parts in order.
        values: The value and the entry of each keyword of the standard.
        comments: By the part's element.
        others: What the standard does not have.
        other_lines: The keywords of ``others`` with their lines, for messages.
        current: The part of the last keyword.
        pending: Comments before the next keyword.
    """

    name: str
    known: Mapping[str, tuple[Part, Field]]
    parts: Sequence[Part]
    current: Part
    values: dict[str, tuple[Any, _Entry]] = field(default_factory=dict)
    comments: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: list[tuple[str, str]] = field(default_factory=list)
    other_lines: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    def attach_comments(self) -> None:
        """The pending comments belong to the current part."""
        self.comments[self.current.element] += self.pending
        self.pending = []

    def attribute(self, each: Field) -> Any:
        """The field's value, None without one. The components of an incomplete vector go to ``others``."""
        found = [self.values[keyword] for keyword in each.keywords if keyword in self.values]
        if len(found) < len(each.keywords):
            self.others += [(entry.keyword, _text(entry, with_unit=True)) for _, entry in found]
            return None
        values = tuple(value for value, _ in found)
        return values if len(values) > 1 else values[0]


def _message(entries: Sequence[_Entry], last_line: int) -> ConjunctionMessage:
    if not entries or entries[0].keyword != VERSION:
        raise _Wrong(f"expected {VERSION} as the first keyword", entries[0].line if entries else 1)
    version = entries[0].text
    if version not in VERSIONS:
        raise _Wrong(f"{VERSION}: expected {' or '.join(VERSIONS)}, got {version[:40]!r}", entries[0].line)
    head = _Section("the message", MESSAGE_FIELDS, MESSAGE_PARTS, MESSAGE_PARTS[0])
    sections = [head]
    for entry in entries[1:]:
        section = sections[-1]
        if entry.keyword == _COMMENT:
            section.pending.append(_text(entry))
        elif entry.keyword == OBJECT:
            sections.append(_next_object(sections, entry))
        else:
            _take(section, entry)
    sections[-1].attach_comments()
    if len(sections) != 3:  # noqa: PLR2004 - the message and two objects
        raise _Wrong(f"expected {OBJECT} = OBJECT1 and {OBJECT} = OBJECT2, got {len(sections) - 1} of them", last_line)
    first, second = (ConjunctionObject(**_arguments(each, last_line)) for each in sections[1:])
    return ConjunctionMessage(version=version, objects=(first, second), **_arguments(head, last_line))


def _next_object(sections: Sequence[_Section], entry: _Entry) -> _Section:
    name = f"OBJECT{len(sections)}"
    if entry.text.upper() != name or len(sections) > 2:  # noqa: PLR2004 - two objects
        expected = f"{OBJECT} = {name}" if len(sections) <= 2 else "two objects"  # noqa: PLR2004 - two objects
        raise _Wrong(f"expected {expected}, got {OBJECT} = {entry.text[:40]}", entry.line)
    section = _Section(name, OBJECT_FIELDS, OBJECT_PARTS, OBJECT_PARTS[0])
    section.comments[section.current.element], sections[-1].pending = sections[-1].pending, []
    return section


def _take(section: _Section, entry: _Entry) -> None:
    """Raises ``_Wrong``."""
    found = section.known.get(entry.keyword)
    if found is None:
        if entry.keyword in OBJECT_FIELDS or entry.keyword in MESSAGE_FIELDS or entry.keyword == VERSION:
            raise _Wrong(f"{entry.keyword} does not belong to {section.name}", entry.line)
        section.attach_comments()
        section.others.append((entry.keyword, _text(entry, with_unit=True)))
        section.other_lines.append(f"{entry.keyword} in line {entry.line}")
        return
    part, each = found
    if not entry.text and each.kind != "text" and not each.required:
        return  # a number or a time that the originator does not have
    section.current = part
    section.attach_comments()
    if entry.keyword in section.values:
        raise _Wrong(
            f"{entry.keyword} is there twice, first in line {section.values[entry.keyword][1].line}", entry.line
        )
    if each.kind == "text":
        section.values[entry.keyword] = _text(entry), entry
    else:
        section.values[entry.keyword] = _value(entry, each), entry


def _text(entry: _Entry, *, with_unit: bool = False) -> str:
    text = f"{entry.text} [{entry.unit}]" if with_unit and entry.unit else entry.text
    if with_unit:
        text = _ALIGNED_UNIT.sub(" [", text)
    try:
        return check_text(text)
    except ValueError as error:
        raise _Wrong(f"{entry.keyword}: {error}", entry.line) from None


def _value(entry: _Entry, each: Field) -> float:
    text, unit = entry.text, entry.unit
    if unit is None and (match := _WITH_UNIT.fullmatch(text)) is not None:
        text, unit = match[1].strip(), match[2]
    expected = each.units[each.keywords.index(entry.keyword)]
    try:
        if unit is not None and unit.strip() and unit.strip().lower() != expected.lower():
            raise ValueError(f"expected {f'the unit {expected}' if expected else 'no unit'}, got [{unit[:40]}]")  # noqa: TRY301 - one place adds the line
        if each.kind == "time":
            return utc_ns_of_tag(text)
        return _count(text) if each.kind == "count" else _number(text, each)
    except ValueError as error:
        raise _Wrong(f"{entry.keyword}: {error}", entry.line) from None


def _count(text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise ValueError(f"expected a whole number, got {text[:40]!r}")
    return int(text)


def _number(text: str, each: Field) -> float:
    number = float(text) if _NUMBER.fullmatch(text) else float("nan")
    if isfinite(number) and each.factor != 1:
        try:
            number = float(Decimal(text) * each.factor)
        except DecimalException:
            number = float("nan")
    if not isfinite(number):
        raise ValueError(f"expected a finite number, got {text[:40]!r}")
    lowest, highest = each.bounds
    if not lowest <= number <= highest:
        raise ValueError(f"expected a number from {lowest:g} to {highest:g}, got {text[:40]}")
    return number


def _arguments(section: _Section, last_line: int) -> dict[str, Any]:
    """The arguments of the section's class. Raises ``_Wrong`` for mandatory keywords that are missing."""
    missing = [
        keyword for keyword, (_, each) in section.known.items() if each.required and keyword not in section.values
    ]
    if missing:
        unknown = f"; unknown are {', '.join(section.other_lines[:5])}" if section.other_lines else ""
        raise _Wrong(f"no {', '.join(missing)} in {section.name}{unknown}", last_line)
    arguments: dict[str, Any] = {}
    for part in section.parts:
        values: dict[str, Any] = {part.comments: tuple(section.comments[part.element])}
        for each in part.fields:
            values[each.attribute] = section.attribute(each)
        if part.value is None:
            arguments |= values
        elif any(values[each.attribute] is not None for each in part.fields):
            arguments[part.attribute] = part.value(**values)
    return arguments | {"others": tuple(section.others)}
