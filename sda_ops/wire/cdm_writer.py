"""Conjunction Data Messages as text, in the standard's order: KVN and XML (CCSDS 508.0-B-1, chapters 4 and 6).

Numbers have as many digits as a double has, so that reading gives the same value. Kilometres and days are exact decimal
fractions of the value's metres and seconds, for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import TypeAlias
from xml.sax.saxutils import escape

from sda_ops.wire.cdm_fields import MESSAGE_PARTS, OBJECT, OBJECT_PARTS, RELATIVE, VERSION, Field, Part
from sda_ops.wire.cdm_message import ConjunctionMessage, ConjunctionObject
from sda_ops.wire.time_tags import tag_of_utc_ns

WRITTEN_VERSION = "1.0"

_Line: TypeAlias = tuple[str, str, str]
"""Keyword, value as text, and unit."""

_SCHEMA = "http://sanaregistry.org/r/ndmxml/ndmxml-1.0-master.xsd"
_RELATIVE_STATE = ("relative_position_m", "relative_velocity_m_s")


def cdm_kvn(message: ConjunctionMessage) -> str:
    """The message in KVN, with the unit in brackets behind each number that has one.

    Texts are written as they are, whereas the standard wants ASCII and lines of at most 254 characters: that is the
    caller's part. Fields that the standard does not have are at the end of their object or of the relative data.

    Raises ``ValueError`` for a message of another version than 1.0.
    """
    _check_version(message)
    lines = [_kvn_line((VERSION, WRITTEN_VERSION, ""))]
    for part in MESSAGE_PARTS:
        lines += _kvn_part(part, message)
    lines += [f"{keyword:<28} = {text}" for keyword, text in message.others]
    for number, each in enumerate(message.objects, 1):
        for part in OBJECT_PARTS:
            written = _kvn_part(part, each)
            if part.element == "metadata":
                written.insert(len(each.comments), f"{OBJECT:<28} = OBJECT{number}")
            lines += written
        lines += [f"{keyword:<28} = {text}" for keyword, text in each.others]
    return "\n".join([*lines, ""])


def cdm_xml(message: ConjunctionMessage) -> str:
    """The message in XML, with the elements and the ``units`` of the schema (NDM/XML 1.0), indented.

    Fields that the standard does not have are at the end of the relative data or of an object's ``data``. A validating
    reader rejects those.

    Raises ``ValueError`` for a message of another version than 1.0.
    """
    _check_version(message)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<cdm xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"',
        f'     xsi:noNamespaceSchemaLocation="{_SCHEMA}"',
        f'     id="{VERSION}" version="{WRITTEN_VERSION}">',
    ]
    for part in MESSAGE_PARTS:
        if part is RELATIVE:
            lines.append("<body>")
        others = message.others if part is RELATIVE else ()
        lines += _element(part.element, [*_xml_part(part, message), *_xml_others(others)])
    for number, each in enumerate(message.objects, 1):
        data: list[str] = []
        lines.append("<segment>")
        for part in OBJECT_PARTS:
            written = list(_xml_part(part, each))
            if part.element == "metadata":
                written.insert(len(each.comments), f"<{OBJECT}>OBJECT{number}</{OBJECT}>")
                lines += _element(part.element, written)
            elif written:
                data += _element(part.element, written)
        lines += _element("data", [*data, *_xml_others(each.others)])
        lines.append("</segment>")
    return "\n".join([*lines, "</body>", "</cdm>", ""])


def _check_version(message: ConjunctionMessage) -> None:
    if message.version != WRITTEN_VERSION:
        raise ValueError(
            f"message {message.message_id}: only version {WRITTEN_VERSION} is written, not {message.version}"
        )


def _part_value(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> object | None:
    return getattr(owner, part.attribute) if part.attribute else owner


# KVN.


def _kvn_part(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> list[str]:
    value = _part_value(part, owner)
    if value is None:
        return []
    lines = [f"COMMENT {comment}".rstrip() for comment in getattr(value, part.comments)]
    for field in part.fields:
        lines += [_kvn_line(line) for line in _texts(field, getattr(value, field.attribute))]
    return lines


def _kvn_line(line: _Line) -> str:
    keyword, text, unit = line
    return f"{keyword:<28} = {text:<24} [{unit}]" if unit else f"{keyword:<28} = {text}"


# XML.


def _element(name: str, lines: list[str]) -> list[str]:
    return [f"<{name}>", *(f"  {line}" for line in lines), f"</{name}>"]


def _xml_part(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> Iterator[str]:
    value = _part_value(part, owner)
    if value is None:
        return
    for comment in getattr(value, part.comments):
        yield f"<COMMENT>{escape(comment)}</COMMENT>"
    vectors: list[str] = []
    for field in part.fields:
        lines = [_xml_line(line) for line in _texts(field, getattr(value, field.attribute))]
        if field.attribute in _RELATIVE_STATE:
            vectors += lines
            if field.attribute == _RELATIVE_STATE[-1] and vectors:
                yield from _element("relativeStateVector", vectors)
        else:
            yield from lines


def _xml_line(line: _Line) -> str:
    keyword, text, unit = line
    units = f' units="{unit}"' if unit else ""
    return f"<{keyword}{units}>{escape(text)}</{keyword}>"


def _xml_others(others: tuple[tuple[str, str], ...]) -> list[str]:
    return [_xml_line((keyword, text, "")) for keyword, text in others]


# Values as text.


def _texts(field: Field, value: object) -> Iterator[_Line]:
    """A line for each keyword of the field; no line without a value."""
    if value is None:
        return
    if len(field.keywords) == 1:
        yield field.keywords[0], _text(field, value), field.units[0]
    else:
        assert isinstance(value, tuple)
        for keyword, unit, component in zip(field.keywords, field.units, value, strict=True):
            yield keyword, _text(field, component), unit


def _text(field: Field, value: object) -> str:
    if field.kind == "text":
        return str(value)
    if field.kind == "time":
        assert isinstance(value, int)
        return tag_of_utc_ns(value)
    if field.factor != 1:
        return str(Decimal(repr(value)) / field.factor)
    return repr(value).upper()
