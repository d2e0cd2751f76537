"""Notices for tests."""

from __future__ import annotations

from orchestrator_adapter.process import Notice


def notice(number: int, *, about: str = "a", markdown: str = "") -> Notice:
    """Notice ``number`` about one thing."""
    return Notice(
        event="thing.seen",
        key=str(number),
        resource=f"thing.{about}",
        title=f"thing {about}, {number}",
        artifact=f"thing-{about}",
        markdown=markdown or f"# {number}",
        labels={"thing.colour": "red"},
        payload={"number": number, "share": float("inf")},
    )
