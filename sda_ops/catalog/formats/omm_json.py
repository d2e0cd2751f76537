"""Rows from OMM as JSON (CelesTrak, FORMAT=json; Space-Track, format/json): an array of objects, or a sequence of them."""

from __future__ import annotations

import json
import re

from sda_ops.catalog.formats.rows import OmmRows, Unreadable

_SPACE = re.compile(r"[ \t\r\n]*")
_WINDOW = 16_384
"""Characters that one object may have: twenty times as many as real ones."""

_NEXT_OBJECT = re.compile(r",[ \t\r\n]*(?=\{)")  # no field of an OMM is an object


def looks_like_omm_json(text: str) -> bool:
    """Whether the text begins as an array or an object."""
    return text.lstrip()[:1] in ("[", "{")


def omm_json_rows(text: str) -> OmmRows:
    """One row for each object, at the line where it begins.

    An object that is not valid JSON costs only itself: reading continues with the next '{' after a comma. Raises
    ``ValueError`` if the first object is invalid and no other follows.
    """
    decoder = json.JSONDecoder()
    position = _after_space(text, 0)
    is_array = text[position] == "["
    position = _after_space(text, position + is_array)
    line, counted, empty = 1, 0, True
    while position < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        # To locate an error the decoder scans the whole text before it: so it is given a window only.
        window = text[position : position + _WINDOW]
        try:
            value, length = decoder.raw_decode(window)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
            resumed = _NEXT_OBJECT.search(text, position)
            reason = _reason(error, line)
            if resumed is None and empty:
                raise ValueError(reason) from error
            yield line, Unreadable(reason, truncated=resumed is None)
            if resumed is None:
                return
            position = resumed.end()
        else:
            position += length
            yield (
                line,
                value
                if isinstance(value, dict)
                else Unreadable(f"expected an object of OMM fields, got {type(value).__name__}"),
            )
            position = _after_space(text, position)
            if is_array and text[position : position + 1] == ",":
                position = _after_space(text, position + 1)
        empty = False
    if is_array and position == len(text):
        line += text.count("\n", counted)
        yield line, Unreadable("expected ']' at the end of the array", truncated=True)


def _reason(error: ValueError | RecursionError, line: int) -> str:
    """What is wrong, with the line in the file, for a decoder that began in ``line``."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} in line {line + error.lineno - 1}"
    return f"not JSON: {error}"


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
