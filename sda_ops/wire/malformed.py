"""The error for bytes that do not have the format's structure."""

from __future__ import annotations


class MalformedFrame(ValueError):
    """Bytes that are not a frame of the format. They cost only themselves and never stop a source.

    Attributes:
        reason: What was expected and what was received, in one sentence.
        frame: The malformed bytes, whole, for the dead-letter store.
    """

    def __init__(self, reason: str, frame: bytes) -> None:
        super().__init__(reason, frame)
        self.reason = reason
        self.frame = frame

    def __str__(self) -> str:
        return self.reason
