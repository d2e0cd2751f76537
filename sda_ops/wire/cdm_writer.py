"""Conjunction Data Messages as text, in the standard's order: KVN and XML (CCSDS 508.0-B-1, chapters 4 and 6).

Numbers have as many digits as a double has, so that reading gives the same value. Kilometres and days are exact decimal
fractions of the value's metres and seconds, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias
from xml.sax.saxutils import escape

from sda_ops.wire.cdm_fields import MESSAGE_PARTS, OBJECT, OBJECT_PARTS, RELATIVE, VERSION, Field, Part
from sda_ops.wire.cdm_message import ConjunctionMessage, ConjunctionObject, OtherFields
from sda_ops.wire.time_tags import tag_of_utc_ns

WRITTEN_VERSION = "1.0"

_SCHEMA = "http://sanaregistry.org/r/ndmxml/ndmxml-1.0-master.xsd"
_RELATIVE_STATE = ("relative_position_m", "relative_velocity_m_s")


def cdm_kvn(message: ConjunctionMessage) -> str:
    """The message in KVN, with the unit in brackets behind each number that has one.

    Texts are written as they are, whereas the standard wants ASCII and lines of at most 254 characters: that is the
    caller's part. Fields that the standard does not have are at the end of their object or of the relative data.

    Raises ``ValueError`` for a message of another version than 1.0.
    """
    _check_version(message)
    lines = [f"{VERSION:<28} = {WRITTEN_VERSION}"]
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
            written = _xml_part(part, each)
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


# Each part's fields, prepared once: a message has a hundred lines.

_Line: TypeAlias = tuple[str, str]
"""What is before and behind a value."""


class _Prepared(NamedTuple):
    """One field.

    Attributes:
        attribute: Of the part's value.
        text_of: Makes the text of one component.
        lines: For each component.
    """

    attribute: str
    text_of: Callable[[Any], str]
    lines: tuple[_Line, ...]


def _prepared(line_of: Callable[[str, str], _Line], text_of: Callable[[str], str]) -> dict[str, list[_Prepared]]:
    """The fields of each part by its element."""
    return {
        part.element: [
            _Prepared(
                field.attribute,
                text_of if field.kind == "text" else _text_of(field),
                tuple(line_of(keyword, unit) for keyword, unit in zip(field.keywords, field.units, strict=True)),
            )
            for field in part.fields
        ]
        for part in (*MESSAGE_PARTS, *OBJECT_PARTS)
    }


def _text_of(field: Field) -> Callable[[Any], str]:
    factor = field.factor
    if field.kind == "time":
        return tag_of_utc_ns
    if factor != 1:
        return lambda number: str(Decimal(repr(number)) / factor)
    return lambda number: repr(number).upper()


def _kvn_line(keyword: str, unit: str) -> _Line:
    return f"{keyword:<28} = ", f" [{unit}]" if unit else ""


def _xml_line(keyword: str, unit: str) -> _Line:
    return f'<{keyword} units="{unit}">' if unit else f"<{keyword}>", f"</{keyword}>"


_KVN = _prepared(_kvn_line, str)
_XML = _prepared(_xml_line, escape)


def _part_value(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> object | None:
    return getattr(owner, part.attribute) if part.attribute else owner


def _components(prepared: _Prepared, value: object) -> Sequence[object]:
    component = getattr(value, prepared.attribute)
    if component is None:
        return ()
    return component if len(prepared.lines) > 1 else (component,)


def _kvn_part(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> list[str]:
    value = _part_value(part, owner)
    if value is None:
        return []
    lines = [f"COMMENT {comment}".rstrip() for comment in getattr(value, part.comments)]
    for each in _KVN[part.element]:
        text_of = each.text_of
        for component, (before, behind) in zip(_components(each, value), each.lines, strict=False):
            text = text_of(component)
            lines.append(f"{before}{text:<24}{behind}" if behind else before + text)
    return lines


def _xml_part(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> list[str]:
    value = _part_value(part, owner)
    if value is None:
        return []
    lines = [f"<COMMENT>{escape(comment)}</COMMENT>" for comment in getattr(value, part.comments)]
    vectors: list[str] = []
    for each in _XML[part.element]:
        written = vectors if each.attribute in _RELATIVE_STATE else lines
        for component, (before, behind) in zip(_components(each, value), each.lines, strict=False):
            written.append(before + each.text_of(component) + behind)
        if each.attribute == _RELATIVE_STATE[-1] and vectors:
            lines += _element("relativeStateVector", vectors)
    return lines


def _xml_others(others: OtherFields) -> list[str]:
    return [f"<{keyword}>{escape(text)}</{keyword}>" for keyword, text in others]


def _element(name: str, lines: list[str]) -> list[str]:
    return [f"<{name}>", *[f"  {line}" for line in lines], f"</{name}>"]
