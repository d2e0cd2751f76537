"""Writes the record of the current run, if a folder is configured. A disk that fails costs the record, not the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State

from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.storage.claims import Owner, claim

logger = logging.getLogger("orchestrator_adapter.prefect")


class RunRecordFile:
    """The record of one run. With ``directory=None`` every method does nothing."""

    def __init__(self, identity: RunIdentity, directory: Path | None) -> None:
        self._identity = identity
        self._directory = directory
        self._record: RunRecord | None = None

    @contextmanager
    def claimed(self, pipeline: str) -> Iterator[None]:
        """Claim the folder for this run. Raises ``OSError`` that names the owner, if another run has it."""
        if self._directory is None:
            yield
            return
        with claim((f"file://{self._directory.resolve()}",), Owner.this_process(pipeline, run=self._identity.label)):
            yield

    def open(self) -> None:
        """Write the record at the run's start. Raises ``OSError``: the run must not start if the folder is not writable."""
        if self._directory is not None:
            self._record = RunRecord(
                flow_run_id=self._identity.flow_run_id,
                flow_run_name=self._identity.flow_run_name,
                pipeline=self._identity.pipeline,
                attempt=self._identity.attempt,
                pid=os.getpid(),
                started=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            RunRecords(self._directory).write(self._record)

    def discard(self) -> None:
        """Delete the record: the run did not start."""
        if self._directory is not None and self._record is not None:
            RunRecords(self._directory).delete(self._record)

    def record_outcome(self, state: State[Any], exit_code: int) -> None:
        """Record how the run ended."""
        if self._directory is not None and self._record is not None:
            try:
                self._record = RunRecords(self._directory).record_outcome(
                    self._record, state_type=state.type.value, message=state.message or "", exit_code=exit_code
                )
            except OSError:
                logger.exception("how the run ended could not be written to %s", self._directory)

    def write_undelivered(self, items: Sequence[tuple[str, ReportItem]]) -> None:
        """Store the items, as (kind, item), that Prefect has not received."""
        if self._directory is not None and self._record is not None and items:
            try:
                RunRecords(self._directory).write_undelivered(self._record, items)
            except OSError:
                logger.exception("undelivered events and log lines could not be written to %s", self._directory)
            else:
                logger.warning(
                    "%d events and log lines could not be delivered to Prefect; %s keeps them for the next start",
                    *(len(items), self._directory),
                )
