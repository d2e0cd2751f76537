"""Run records on disk: which flow run it was, how it ended, and which reports Prefect has not received.

One JSON file per attempt, ``<flow run id>.<attempt>.json``, and beside it ``….untold.jsonl`` with undelivered items, if there
are any. The process that reads or writes here owns the folder (see ``claims``), so every record but its own belongs to a
process that has ended; a record without an outcome belongs to one that was killed. Knows files, not Prefect's API.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.storage.durable import write_durably

_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One attempt of one flow run.

    Attributes:
        flow_run_id: Prefect's id of the run.
        flow_run_name: Its name in the UI.
        pipeline: The graph's name.
        attempt: Which attempt of the flow run, counted from 1.
        pid: The process that ran it.
        started: UTC, ISO 8601.
        state_type: Type of the final state (``COMPLETED`` …); ``None`` while the run goes on, and after a kill.
        state_message: Message of that state.
        exit_code: The process's exit code, once there is an outcome.
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
    """The run records in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, record: RunRecord) -> None:
        """Write the record atomically and durably. Raises ``OSError``."""
        body = {"version": _VERSION} | {
            name: str(value) if isinstance(value, UUID) else value for name, value in asdict(record).items()
        }
        write_durably(self._path(record), json.dumps(body, indent=2) + "\n")

    def record_outcome(self, record: RunRecord, *, state_type: str, message: str, exit_code: int) -> RunRecord:
        """Record how the run ended, before it is reported to Prefect. Raises ``OSError``."""
        ended = replace(record, state_type=state_type, state_message=message, exit_code=exit_code)
        self.write(ended)
        return ended

    def write_undelivered(self, record: RunRecord, items: Iterable[tuple[str, ReportItem]]) -> int:
        """Store undelivered items, as (kind, item); returns how many. Raises ``OSError``."""
        lines = [json.dumps({"kind": kind, "item": dict(item)}) for kind, item in items]
        if lines:
            write_durably(self._undelivered_path(record), "\n".join(lines) + "\n")
        return len(lines)

    def undelivered(self, record: RunRecord) -> list[tuple[str, ReportItem]]:
        """The stored undelivered items, in order. Raises ``OSError`` and ``ValueError``."""
        path = self._undelivered_path(record)
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        try:
            return [(entry["kind"], entry["item"]) for entry in map(json.loads, lines)]
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: expected a kind and an item on each line, got something else") from error

    def all(self) -> Iterator[RunRecord]:
        """Every valid record, oldest first. Others are skipped; ``unreadable`` lists them."""
        for path in self._files():
            if (record := _read(path)) is not None:
                yield record

    def unreadable(self) -> list[Path]:
        """Files that are named like a record and are not a valid one."""
        return [path for path in self._files() if _read(path) is None]

    def delete(self, record: RunRecord) -> None:
        """Remove the record and its undelivered items: Prefect has everything."""
        self._undelivered_path(record).unlink(missing_ok=True)
        self._path(record).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        found = []
        for path in self._directory.glob("*.json"):
            with suppress(FileNotFoundError):  # another thread has just deleted it
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
