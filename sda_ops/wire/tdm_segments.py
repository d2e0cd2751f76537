"""Segments of a CCSDS Tracking Data Message, from KVN or XML, with entries that have their place in the file.

Knows only the notation. `sda_ops.wire.tdm` knows what the keywords mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from xml.parsers import expat

from sda_ops.wire.malformed import MalformedFrame


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured value in its text form, and its place in the file.

    Attributes:
        keyword: Such as ``RANGE``.
        tag: The time tag.
        value: The number.
        line: The line, counted from 1.
        start: The first byte (in XML, of the ``observation`` around it).
        end: The byte after the last.
    """

    keyword: str
    tag: str
    value: str
    line: int
    start: int
    end: int


@dataclass(slots=True)
class Segment:
    """One segment: its metadata by keyword, and its entries in the file's order.

    Attributes:
        number: Counted from 1.
        line: The line at which it begins, counted from 1.
        start: The first byte.
        end: The byte after the last.
        metadata: Values by keyword, in their text form.
        entries: The measured values.
    """

    number: int
    line: int
    start: int
    end: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    @property
    def whole(self) -> Entry:
        """The whole segment as one entry, to be rejected as one."""
        return Entry("", "", "", self.line, self.start, self.end)


Segments: TypeAlias = tuple[list[Segment], list[MalformedFrame]]
"""The segments, and what could not be read."""


def read_segments(content: bytes) -> Segments:
    """A message's segments, in the file's order. A malformed part costs only itself; nothing is raised."""
    head = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    return _read_xml(content) if head.startswith(b"<") else _read_kvn(content)


def _read_kvn(content: bytes) -> Segments:
    segments: list[Segment] = []
    malformed: list[MalformedFrame] = []
    block: Literal["outside", "metadata", "data"] = "outside"
    data_may_follow = False
    end = 0
    for line, raw in enumerate(content.splitlines(keepends=True), 1):
        start, end = end, end + len(raw)
        text = raw.decode("utf-8", "replace").strip()
        keyword, separator, value = (part.strip() for part in text.partition("="))
        if not text or text.startswith("COMMENT"):
            continue
        if keyword == "META_START" or (keyword == "DATA_START" and not data_may_follow):
            segments.append(Segment(len(segments) + 1, line, start))
            data_may_follow = True
        if keyword in ("META_START", "META_STOP", "DATA_START", "DATA_STOP"):
            block = "metadata" if keyword == "META_START" else "data" if keyword == "DATA_START" else "outside"
            data_may_follow = keyword == "META_START" or (keyword == "META_STOP" and data_may_follow)
        elif not separator:
            malformed.append(_malformed_line(line, f"expected KEYWORD = value, got {text[:60]!r}", raw))
        elif block == "metadata":
            segments[-1].metadata[keyword] = value
        elif block == "data":
            tag, _, number = value.replace("\t", " ").partition(" ")
            segments[-1].entries.append(Entry(keyword, tag, number.strip(), line, start, end))
        if segments:
            segments[-1].end = end
    if block != "outside":
        malformed.append(_malformed_line(line, f"the file ends within the {block} of a segment", raw))
        entries = segments[-1].entries
        if entries and entries[-1].end == end and not raw.endswith((b"\n", b"\r")):
            entries.pop()  # truncated, perhaps within its digits
    return segments, malformed


class _XmlReader:
    """Handles expat's events. Elements outside ``metadata`` and ``data`` are ignored."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        self._block = ""
        self._text = ""
        self._epoch = ""
        self._place = (0, 0)  # line and byte of the observation
        self._values: list[tuple[str, str]] = []

    def read(self, content: bytes) -> None:
        """Raises ``expat.ExpatError``, or ``MalformedFrame`` for a document that declares entities."""
        self._parser.Parse(content, True)  # noqa: FBT003 - "this is all of it": the standard library's signature

    def _doctype(self, *_: object) -> None:
        raise MalformedFrame("TDM: a document type declaration is not allowed", b"")

    def _start(self, name: str, _: Mapping[str, str]) -> None:
        self._text = ""
        line, start = self._parser.CurrentLineNumber, self._parser.CurrentByteIndex
        if name == "segment":
            self.segments.append(Segment(len(self.segments) + 1, line, start))
        elif name in ("metadata", "data"):
            self._block = name if self.segments else ""
        elif name == "observation":
            self._place, self._epoch, self._values = (line, start), "", []

    def _characters(self, text: str) -> None:
        self._text += text

    def _end(self, name: str) -> None:
        text, self._text = self._text.strip(), ""
        end = self._parser.CurrentByteIndex + len(f"</{name}>")
        if name in ("metadata", "data"):
            self._block = ""
        elif name == "segment":
            self.segments[-1].end = end
        elif self._block == "metadata":
            self.segments[-1].metadata[name] = text
        elif self._block == "data" and name == "observation":
            line, start = self._place
            entries = [Entry(keyword, self._epoch, value, line, start, end) for keyword, value in self._values]
            self.segments[-1].entries += entries
        elif self._block == "data" and name == "EPOCH":
            self._epoch = text
        elif self._block == "data" and name != "COMMENT":
            self._values.append((name, text))


def _read_xml(content: bytes) -> Segments:
    reader = _XmlReader()
    malformed: list[MalformedFrame] = []
    try:
        reader.read(content)
    except MalformedFrame as error:
        return [], [MalformedFrame(error.reason, content)]
    except expat.ExpatError as error:  # complete observations before the error are kept
        raw = content.splitlines(keepends=True)[error.lineno - 1 :][:1]
        malformed.append(_malformed_line(error.lineno, f"not XML: {expat.ErrorString(error.code)}", b"".join(raw)))
    for segment in reader.segments:
        segment.end = segment.end or len(content)
    return reader.segments, malformed


def _malformed_line(line: int, reason: str, raw: bytes) -> MalformedFrame:
    return MalformedFrame(f"TDM line {line}: {reason}", raw)
