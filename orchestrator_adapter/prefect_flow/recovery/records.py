"""What outlives a run that Prefect knows of: which run it was, how it ended, and what Prefect has not been told. On disk.

One JSON file a run, ``<flow run id>.json``, and beside it ``<flow run id>.untold.jsonl`` if something is left to tell. A
record without an outcome whose process is gone was killed. Whoever reads or writes here owns the folder (see ``claims``), so
every record but its own is of a process that has ended. Knows files, not Prefect's API.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from orchestrator_adapter.prefect_flow.recovery.outbox import Item
from orchestrator_adapter.storage.durable import write_durably

_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One attempt of one flow run.

    Attributes:
        flow_run_id: Whose.
        flow_run_name: What people call it.
        pipeline: The graph's name.
        attempt: Which attempt of the flow run, counted from 1.
        pid: The process that ran it.
        started: UTC, ISO 8601.
        state_type: How the flow run is to end (``COMPLETED`` …); ``None`` while it runs, and for good if it was killed.
        state_message: What that state says.
        exit_code: The process's, once there is an outcome.
    """

    flow_run_id: UUID
    flow_run_name: str
    pipeline: str
    attempt: int
    pid: int
    started: str
    state_type: str | None = None
    state_message: str = ""
    exit_code: int | None = None


class RunRecords:
    """The records in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, record: RunRecord) -> None:
        """Write it, whole or not at all, durable. Raises ``OSError``."""
        body = {"version": _VERSION} | {
            name: str(value) if isinstance(value, UUID) else value for name, value in asdict(record).items()
        }
        write_durably(self._path(record), json.dumps(body, indent=2) + "\n")

    def record_outcome(self, record: RunRecord, *, state_type: str, message: str, exit_code: int) -> RunRecord:
        """The run has ended: say how, before Prefect is told. Raises ``OSError``."""
        settled = replace(record, state_type=state_type, state_message=message, exit_code=exit_code)
        self.write(settled)
        return settled

    def write_undelivered(self, record: RunRecord, items: Iterable[tuple[str, Item]]) -> int:
        """Keep what Prefect has not been told, as (kind, item); returns how many. Raises ``OSError``."""
        lines = [json.dumps({"kind": kind, "item": dict(item)}) for kind, item in items]
        if lines:
            write_durably(self._undelivered_path(record), "\n".join(lines) + "\n")
        return len(lines)

    def undelivered(self, record: RunRecord) -> list[tuple[str, Item]]:
        """What was kept, in order. Raises ``OSError`` and ``ValueError``."""
        path = self._undelivered_path(record)
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        try:
            return [(entry["kind"], entry["item"]) for entry in map(json.loads, lines)]
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: expected a kind and an item on each line, got something else") from error

    def all(self) -> Iterator[RunRecord]:
        """Every record, oldest first. One that cannot be read is passed over: ``unreadable`` names it."""
        for path in self._files():
            if (record := _read(path)) is not None:
                yield record

    def unreadable(self) -> list[Path]:
        """Files that should be records and are none."""
        return [path for path in self._files() if _read(path) is None]

    def delete(self, record: RunRecord) -> None:
        """Prefect knows everything of it."""
        self._undelivered_path(record).unlink(missing_ok=True)
        self._path(record).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        found = []
        for path in self._directory.glob("*.json"):
            with suppress(FileNotFoundError):  # it has just been forgotten
                found.append((path.lstat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]

    def _path(self, record: RunRecord) -> Path:
        return self._directory / f"{record.flow_run_id}.{record.attempt}.json"

    def _undelivered_path(self, record: RunRecord) -> Path:
        return self._directory / f"{record.flow_run_id}.{record.attempt}.untold.jsonl"


def _read(path: Path) -> RunRecord | None:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("version") != _VERSION:
            return None
        return RunRecord(**(body | {"flow_run_id": UUID(body["flow_run_id"])}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
