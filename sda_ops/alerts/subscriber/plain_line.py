"""A received alert as one plain line for a terminal."""

from __future__ import annotations

import json
import re

from sda_ops.alerts.subscriber.table import ReceivedAlert

_TAG = re.compile(r"<(\w+)[^>]*>")
_OF_CDM = re.compile(r"\b(TCA|MISS_DISTANCE)\s*=\s*([^\s<]+)")
_RETRACTED = re.compile(r"COMMENT>? *STATUS = RETRACTED\b")
_MAX_SHOWN = 150  # characters: the body is the sender's


def plain_line(alert: ReceivedAlert) -> str:
    """``alert <conjunction id>/<revision>: `` and what the body says in short. Any body gives a line."""
    text = alert.body.decode("utf-8", errors="replace")
    said = _of_json(text) if alert.content_type.startswith("application/json") else _of_cdm(text)
    return f"alert {alert.key}: {_printable(said)}" if said else f"alert {alert.key}"


def _of_json(text: str) -> str:
    try:
        body = json.loads(text)
        first, second = (
            " ".join(str(each[name]) for name in ("catalog_number", "name") if each[name]) for each in body["objects"]
        )
        conjunction = body["conjunction"]
        where = f"{conjunction['miss_distance_m']:,.0f} m at {conjunction['tca'].partition('.')[0]} UTC"
        return f"{body['severity']}, {body['status']}: {first} and {second}, {where}"
    except (ValueError, TypeError, LookupError, AttributeError):
        return "(not an alert in JSON, version 1)"


def _of_cdm(text: str) -> str:
    found = dict(_OF_CDM.findall(_TAG.sub(r"\1 = ", text)))  # XML as keyword and value
    if not {"TCA", "MISS_DISTANCE"} <= found.keys():
        return ""
    status = (
        "retracted: " if _RETRACTED.search(text) else ""
    )  # the figures of a retraction are those of the last estimate
    return f"{status}{found['MISS_DISTANCE']} m at {found['TCA']} UTC"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_SHOWN])
