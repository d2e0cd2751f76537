"""A received alert as one plain line for a terminal."""

from __future__ import annotations

import json
import re

from sda_ops.alerts.subscriber.table import ReceivedAlert

_TAG = re.compile(r"<(\w+)[^>]*>")
_OF_CDM = re.compile(r"\b(TCA|MISS_DISTANCE)\s*=\s*([^\s<]+)")
_MAX_SHOWN = 60  # characters of a value: the body is the sender's


def plain_line(alert: ReceivedAlert) -> str:
    """``alert <conjunction id>/<revision>``, and what the body says in short."""
    text = alert.body.decode("utf-8", errors="replace")
    said = _of_json(text) if alert.content_type.startswith("application/json") else _of_cdm(text)
    return " ".join((f"alert {alert.key}", *(_printable(each) for each in said)))


def _of_json(text: str) -> list[str]:
    try:
        body = json.loads(text)
    except ValueError:
        return ["(a body that is not JSON)"]
    if not isinstance(body, dict):
        return []
    return [str(body[name]) for name in ("severity", "status") if name in body]


def _of_cdm(text: str) -> list[str]:
    found = dict(_OF_CDM.findall(_TAG.sub(r"\1 = ", text)))  # XML as keyword and value
    return [
        *([f"closest approach {found['TCA']}"] if "TCA" in found else []),
        *([f"miss distance {found['MISS_DISTANCE']} m"] if "MISS_DISTANCE" in found else []),
    ]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_SHOWN])
