"""Dead letters, their stores and their limits."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from orchestrator_adapter.primitives.errors import DeadLetterLimitExceeded
from orchestrator_adapter.storage.dead_letter import (
    DeadLetter,
    DeadLetterFile,
    DeadLetterGate,
    DeadLetterKind,
    DeadLetterLimits,
    DeadLetterList,
    DeadLetterStore,
)
from orchestrator_adapter.storage.jsonl import read_lines


class Reading(msgspec.Struct, frozen=True):
    sensor: str
    value: float
    raw: bytes = b""


class BrokenRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Surrogate:
    def __repr__(self) -> str:
        return "half a \ud800 character"


def letter(payload: object = None, *, message: str = "expected 64 bytes, got 63", **changes: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "time_ns": 1_790_000_000_000_000_000,
        "operator": "radar-01",
        "kind": DeadLetterKind.DESERIALIZATION,
        "message": message,
        "attempts": 1,
        "payload": payload,
    }
    return DeadLetter(**fields | changes)


def stored(directory: Path, *letters: DeadLetter) -> list[dict[str, Any]]:
    store = DeadLetterFile(directory)
    store.append(letters)
    store.close()
    return [json.loads(line) for line in read_lines(directory, "dead-letters")]


def test_the_kinds_are_exactly_those_of_the_specification() -> None:
    """Tools count by these names: an added or renamed kind changes the schema."""
    assert [str(kind) for kind in DeadLetterKind] == [
        "Deserialization",
        "SchemaMismatch",
        "ValidationFailed",
        "ProcessingException",
        "RetryBudgetExhausted",
        "PoisonPill",
        "Undelivered",
    ]


def test_a_letter_is_one_line_with_every_field(tmp_path: Path) -> None:
    """The line has the schema version, what went wrong, the item and its history."""
    history = ("delivered to instance 1", "delivered to instance 2")
    assert stored(tmp_path, letter(b"\x00\xff", history=history, attempts=2)) == [
        {
            "schema_version": 1,
            "time_ns": 1_790_000_000_000_000_000,
            "operator": "radar-01",
            "kind": "Deserialization",
            "message": "expected 64 bytes, got 63",
            "attempts": 2,
            "payload": {"base64": "AP8="},
            "history": ["delivered to instance 1", "delivered to instance 2"],
        },
    ]


def circular() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


PAYLOADS: list[tuple[object, object]] = [
    (None, None),
    (17, 17),
    (2**70, 2**70),
    ("text\nin two lines", "text\nin two lines"),
    (bytearray(b"x"), {"base64": "eA=="}),
    (Reading("radar-3", 1.5), {"sensor": "radar-3", "value": 1.5, "raw": {"base64": ""}}),
    (Reading("radar-3", math.nan, b"x"), {"sensor": "radar-3", "value": "nan", "raw": {"base64": "eA=="}}),
    ([math.inf, (-math.inf, 0.5)], ["inf", ["-inf", 0.5]]),
    ({"frame": b"x", 7: [None]}, {"frame": {"base64": "eA=="}, "7": [None]}),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
    (ValueError("odd"), {"repr": "ValueError('odd')"}),
    ({"inner": ValueError("odd")}, {"inner": {"repr": "ValueError('odd')"}}),
    ({(1, 2): 3}, {"repr": "{(1, 2): 3}"}),
    (circular(), {"repr": "[[...]]"}),
    ("\ud800", {"repr": "'\\ud800'"}),
    (Surrogate(), {"repr": "half a \\ud800 character"}),
    (BrokenRepr(), {"repr": "<BrokenRepr, whose repr raised RuntimeError>"}),
]


@pytest.mark.parametrize(("payload", "kept"), PAYLOADS, ids=lambda value: type(value).__name__)
def test_any_payload_is_kept_readably(tmp_path: Path, payload: object, kept: object) -> None:
    """As JSON where possible, base64 for bytes, text for numbers that are not finite, and a repr for any other object."""
    (line,) = stored(tmp_path, letter(payload))
    assert line["payload"] == kept


def test_a_message_with_a_lone_surrogate_loses_neither_the_letter_nor_its_payload(tmp_path: Path) -> None:
    """Error texts may quote foreign bytes: characters that UTF-8 does not have are escaped."""
    (line,) = stored(tmp_path, letter(b"x", message="bad name \udcff", history=("bad \udcff",)))
    assert (line["message"], line["history"]) == ("bad name \\udcff", ["bad \\udcff"])
    assert line["payload"] == {"base64": "eA=="}


def test_an_unprintable_payload_does_not_affect_other_letters(tmp_path: Path) -> None:
    """The letters before and after it in the same call are stored, in order."""
    lines = stored(tmp_path, letter(1), letter(BrokenRepr()), letter(3))
    assert [line["payload"] for line in (lines[0], lines[2])] == [1, 3]


def test_letters_are_in_the_file_when_append_returns(tmp_path: Path) -> None:
    """A process that is killed right after the call loses no letter."""
    store = DeadLetterFile(tmp_path)
    store.append([letter(1)])
    store.append([])
    store.append([letter(2)])
    assert [json.loads(line)["payload"] for line in read_lines(tmp_path, "dead-letters")] == [1, 2]
    store.close()
    store.close()
    assert (tmp_path / "dead-letters-000001.jsonl").exists()


def test_the_list_keeps_the_newest_and_counts_them_all() -> None:
    """Its memory is bounded; the total counts all letters."""
    store = DeadLetterList(capacity=2)
    store.append([letter(1), letter(2)])
    store.append([letter(3)])
    store.close()
    assert [kept.payload for kept in store.letters] == [2, 3]
    assert store.total == 3


def test_both_stores_are_stores(tmp_path: Path) -> None:
    """Both are a `DeadLetterStore` (mypy checks the assignment)."""
    stores: list[DeadLetterStore] = [DeadLetterFile(tmp_path), DeadLetterList()]
    for store in stores:
        store.append([letter(1)])
        store.close()


LIMITS = DeadLetterLimits(max_share=0.1, min_items=100, max_consecutive=20)


@pytest.mark.parametrize(
    ("items", "dead", "consecutive", "sentence"),
    [
        (0, 0, 0, None),
        (99, 99, 20, None),  # too few items for a share
        (100, 10, 10, None),  # exactly the share
        (100, 11, 0, "expected at most 10.0% dead letters, got 11 of 100 items (11.0%)"),
        (20, 20, 20, None),
        (21, 21, 21, "expected at most 20 consecutive dead letters, got 21"),
        (100, 50, 21, "expected at most 20 consecutive dead letters, got 21"),
    ],
)
def test_limits_are_exact_and_the_message_names_the_exceeded_one(
    items: int,
    dead: int,
    consecutive: int,
    sentence: str | None,
) -> None:
    """The limit itself passes, one more does not. The sentence has the expected and the actual number."""
    assert LIMITS.breach(items=items, dead=dead, consecutive=consecutive) == sentence


def test_all_invalid_limits_are_rejected_in_one_error() -> None:
    """The message names every invalid limit with its bounds and its value."""
    with pytest.raises(ValueError, match="DeadLetterLimits") as raised:
        DeadLetterLimits(max_share=1.5, min_items=0, max_consecutive=-1)
    assert str(raised.value) == (
        "DeadLetterLimits: max_share must be > 0 and <= 1, got 1.5; "
        "DeadLetterLimits: min_items must be >= 1, got 0; "
        "DeadLetterLimits: max_consecutive must be >= 1, got -1"
    )


def test_the_gate_stops_a_run_of_dead_letters_and_names_the_operator() -> None:
    """Twenty consecutive dead letters pass, the twenty-first raises."""
    gate = DeadLetterGate(LIMITS)
    gate.check("validate", passed=5, dead=0)
    gate.check("validate", passed=5, dead=20)
    with pytest.raises(DeadLetterLimitExceeded) as raised:
        gate.check("validate", passed=5, dead=21)
    assert str(raised.value) == "operator 'validate': expected at most 20 consecutive dead letters, got 21"


def test_one_good_item_ends_a_run() -> None:
    """Nineteen, a good one, nineteen: neither run is too long."""
    gate = DeadLetterGate(DeadLetterLimits(max_share=1.0, max_consecutive=20))
    gate.check("validate", passed=0, dead=19)
    gate.check("validate", passed=1, dead=19)
    gate.check("validate", passed=1, dead=38)
    with pytest.raises(DeadLetterLimitExceeded):
        gate.check("validate", passed=1, dead=40)


def test_the_gate_checks_the_share_over_all_items() -> None:
    """Alternating good and dead items make no long run, but too large a share."""
    gate = DeadLetterGate(LIMITS)
    gate.check("validate", passed=90, dead=10)
    with pytest.raises(DeadLetterLimitExceeded, match=r"got 11 of 101 items \(10\.9%\)$"):
        gate.check("validate", passed=90, dead=11)


def test_a_gate_without_limits_never_raises() -> None:
    """Without limits no counts raise."""
    DeadLetterGate(None).check("validate", passed=0, dead=10**9)
