"""Notices: what a run has to say to people, outside the stream. Operators post them; a reporter, if there is one, delivers them.

Knows nothing of Prefect. Without a reporter, notices stay on their board until newer ones replace them.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator_adapter.primitives.check_fields import check_fields

_RESERVED = ("prefect.", "orchestrator.")
_ARTIFACT_KEY = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One notice. Under Prefect it becomes one event and one version of an artifact.

    Attributes:
        event: The name of the event, for example ``conjunction.alert``; ``prefect.`` and ``orchestrator.`` are reserved.
        key: Identifies it among the notices with this event: a second one with the same key is not delivered again, in this
            run or in a later one.
        resource: The id of what it is about, for example ``conjunction.<id>``.
        title: One line for people: the resource's name, and the description of the artifact.
        labels: Further labels of the resource. Automations can filter by them.
        payload: The details, for programs. Values that are not JSON become text.
        artifact: The key of the artifact: lowercase letters, digits and dashes. Notices with the same one are its versions.
        markdown: The text of the artifact.
    """

    event: str
    key: str
    resource: str
    title: str
    artifact: str
    markdown: str
    labels: Mapping[str, str] = field(default_factory=dict)
    payload: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(
            "Notice",
            ("event", self.event, bool(self.event) and not self.event.startswith(_RESERVED), "a name of your own"),
            ("key", self.key, bool(self.key), "not empty"),
            (
                "resource",
                self.resource,
                bool(self.resource) and not self.resource.startswith(_RESERVED),
                "an id of your own",
            ),
            (
                "artifact",
                self.artifact,
                _ARTIFACT_KEY.fullmatch(self.artifact) is not None,
                "lowercase letters, digits and dashes",
            ),
        )


class NoticeBoard:
    """Notices that wait for a reporter. Bounded: when it is full, the oldest one is dropped and counted.

    Every method may be called from any thread, and none waits.
    """

    def __init__(self, capacity: int = 1_000, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        check_fields("NoticeBoard", ("capacity", capacity, capacity >= 1, ">= 1"))
        self._capacity = capacity
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Notice]] = deque()
        self._dropped = 0
        self._on_post: Callable[[], object] = lambda: None

    def post(self, notice: Notice) -> None:
        """Add a notice."""
        with self._lock:
            self._waiting.append((self._now_ns(), notice))
            if len(self._waiting) > self._capacity:
                self._waiting.popleft()
                self._dropped += 1
            on_post = self._on_post
        on_post()

    def take(self) -> list[tuple[int, Notice]]:
        """Remove and return all notices, oldest first, each with the time at which it was posted, UTC nanoseconds."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken

    def notify(self, on_post: Callable[[], object]) -> None:
        """Call ``on_post`` after each ``post``, on the thread that posts. It replaces the one before, and must not block."""
        with self._lock:
            self._on_post = on_post

    @property
    def dropped(self) -> int:
        """How many notices were dropped, because the board was full."""
        return self._dropped
