"""The last dead letters in memory: bounded, paged and without the items."""

from __future__ import annotations

from typing import Any

from orchestrator_adapter import DeadLetter, DeadLetterKind
from orchestrator_adapter.storage.recent_dead_letters import RecentDeadLetters


def letters(operator: str, count: int, message: str = "no", payload: Any = None) -> list[DeadLetter]:
    return [
        DeadLetter(
            time_ns=7,
            operator=operator,
            kind=DeadLetterKind.DESERIALIZATION,
            message=message,
            attempts=1,
            payload=payload,
        )
        for _ in range(count)
    ]


def test_the_last_thousand_of_a_run_and_the_last_twenty_of_each_operator_are_kept() -> None:
    """A flood of one operator does not remove those of another."""
    recent = RecentDeadLetters()
    recent.add(letters("quiet", 30))
    recent.add(letters("loud", 5_000))
    for _ in range(10):
        recent.add(letters("loud", 1))
    run = recent.page(limit=10_000)
    assert (len(run.letters), run.kept, run.total, run.more) == (1_000, 1_000, 5_040, False)
    assert [each.number for each in run.letters] == list(range(5_040, 4_040, -1))
    quiet = recent.page(operator="quiet", limit=10_000)
    assert ([each.number for each in quiet.letters], quiet.kept, quiet.total) == (list(range(30, 10, -1)), 20, 30)
    assert recent.page(operator="absent").letters == ()


def test_pages_have_every_letter_once() -> None:
    """From the newest to the oldest, each page before the last letter of the one before; new letters do not shift them."""
    recent = RecentDeadLetters()
    recent.add(letters("a", 55))
    seen: list[int] = []
    before = None
    while True:
        page = recent.page(before=before, limit=20)
        seen += [each.number for each in page.letters]
        recent.add(letters("b", 3))
        if not page.more:
            break
        before = page.letters[-1].number
    assert seen == list(range(55, 0, -1))


def test_a_letter_has_the_items_type_and_size_and_never_its_content() -> None:
    """Its message is cut, and has no control characters."""
    recent = RecentDeadLetters()
    recent.add(letters("a", 1, "x" * 10_000, b"SECRET"))
    recent.add(letters("a", 1, "bell\x07 escape\x1b[31m line\nend\u202e", {"key": "SECRET"}))
    newest, oldest = recent.page().letters
    assert (newest.payload, oldest.payload) == ("dict", "bytes (6)")
    assert newest.message == "bell  escape [31m line end "
    assert oldest.message == "x" * 300 + "…"
    assert "SECRET" not in str((newest, oldest))
