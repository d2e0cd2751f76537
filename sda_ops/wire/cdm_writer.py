"""Conjunction Data Messages as text, in the standard's order: KVN and XML (CCSDS 508.0-B-1, chapters 4 and 6).

Numbers have as many digits as a double has, so that reading gives the same value. Kilometres and days are exact decimal
fractions of the value's metres and seconds, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
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
    """The message in XML, with the elements and the ``units`` of the schema (NDM/XML 1.0).

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


# The lines of each field, prepared once: `%` fills in a whole covariance at once.


class _Template(NamedTuple):
    """The lines of one field.

    Attributes:
        attribute: Of the part's value.
        lines: With a place for each component.
        text_of: Makes the text of a component; None if the place takes the component itself.
    """

    attribute: str
    lines: str
    text_of: Callable[[Any], str] | None


def _templates(line: Callable[[str, str, str], str], text_of: Callable[[str], str]) -> dict[str, list[_Template]]:
    """The fields of each part by its element."""
    return {
        part.element: [_template(field, line, text_of) for field in part.fields]
        for part in (*MESSAGE_PARTS, *OBJECT_PARTS)
    }


def _template(field: Field, line: Callable[[str, str, str], str], text_of: Callable[[str], str]) -> _Template:
    convert: Callable[[Any], str] | None
    if field.kind == "text":
        convert = text_of
    elif field.kind == "time":
        convert = tag_of_utc_ns
    else:
        convert = None if field.factor == 1 else lambda number: str(Decimal(repr(number)) / field.factor)
    place = "r" if convert is None else "s"
    lines = (
        line(keyword, place, unit.replace("%", "%%")) for keyword, unit in zip(field.keywords, field.units, strict=True)
    )
    return _Template(field.attribute, "\n".join(lines), convert)


def _kvn_line(keyword: str, place: str, unit: str) -> str:
    return f"{keyword:<28} = %-24{place} [{unit}]" if unit else f"{keyword:<28} = %{place}"


def _xml_line(keyword: str, place: str, unit: str) -> str:
    units = f' units="{unit}"' if unit else ""
    return f"<{keyword}{units}>%{place}</{keyword}>"


_KVN = _templates(_kvn_line, str)
_XML = _templates(_xml_line, escape)


def _part_value(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> object | None:
    return getattr(owner, part.attribute) if part.attribute else owner


def _filled(template: _Template, value: object) -> str:
    """The lines of one field; empty without a value."""
    component = getattr(value, template.attribute)
    if component is None:
        return ""
    components = component if isinstance(component, tuple) else (component,)
    return template.lines % (components if template.text_of is None else tuple(map(template.text_of, components)))


def _kvn_part(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> list[str]:
    value = _part_value(part, owner)
    if value is None:
        return []
    lines = [f"COMMENT {comment}".rstrip() for comment in getattr(value, part.comments)]
    return [*lines, *filter(None, [_filled(template, value) for template in _KVN[part.element]])]


def _xml_part(part: Part, owner: ConjunctionMessage | ConjunctionObject) -> list[str]:
    value = _part_value(part, owner)
    if value is None:
        return []
    lines = [f"<COMMENT>{escape(comment)}</COMMENT>" for comment in getattr(value, part.comments)]
    vectors: list[str] = []
    for template in _XML[part.element]:
        if text := _filled(template, value):
            (vectors if template.attribute in _RELATIVE_STATE else lines).append(text)
        if template.attribute == _RELATIVE_STATE[-1] and vectors:
            lines += _element("relativeStateVector", vectors)
    return lines


def _xml_others(others: OtherFields) -> list[str]:
    return [f"<{keyword}>{escape(text)}</{keyword}>" for keyword, text in others]


def _element(name: str, lines: list[str]) -> list[str]:
    return [f"<{name}>", *lines, f"</{name}>"]
