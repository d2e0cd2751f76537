"""The audit sink: observations, correlations, cross-sensor updates and conjunctions, in Parquet files by hour of ingest.

The rows of the next commit wait in the edge, not in the sink. The sink takes them when there are ``max_rows``, when the edge
is full, or when the first has waited for ``commit_every``. So only rows that are being written are leased, and a cancellation
loses nothing. A batch is acknowledged when its files are fsynced and renamed: "written" in the ledger means that the rows
survive a power cut and that readers see them. Rows are converted and written in the graph's thread pool, while the rows of
the next commit gather.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from orchestrator_adapter import EventLog, Factory, WiredEnds, check_fields
from sda_ops.records.correlation import CrossSensorUpdate
from sda_ops.sinks.parquet_store import ParquetStore, Part
from sda_ops.sinks.parquet_tables import AuditRecord, table_of

logger = logging.getLogger(__name__)

OnCommit: TypeAlias = Callable[[Sequence[AuditRecord]], object]
"""Called with each batch that is on the disk."""

_HOUR_NS = 3_600 * 10**9
_CHECKS = 20  # of the edge during each `commit_every`: cheaper than waking up for every item


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The directory of the audit, and the size of its commits.

    Attributes:
        directory: Has a folder for each type of record: ``observations``, ``correlations``, ``cross_sensor_updates``,
            ``conjunctions``.
        max_rows: The greatest number of rows in a commit. The edge's capacity is the other bound.
        commit_every: How long the first row of a commit waits for others at most, on the graph's clock. The audit adds this
            much to latency. It also limits the number of files per hour and table, unless `max_rows` or the edge's capacity
            is reached sooner.
    """

    directory: Path
    max_rows: int = 65_536
    commit_every: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        check_fields(
            "Audit",
            ("max_rows", self.max_rows, self.max_rows >= 1, ">= 1"),
            ("commit_every", self.commit_every, self.commit_every >= timedelta(0), ">= 0"),
        )


def audit_sink(audit: Audit, *, on_commit: OnCommit | None = None, measures_latency: bool = True) -> Factory:
    """A sink into ``audit`` for records of the four types, in any order.

    ``on_commit`` is called in the writing thread with each batch that is on the disk, before it is acknowledged. Without
    ``measures_latency`` the run's latency does not include these records, which may have waited for a restart. It never includes
    cross-sensor updates, which wait for a watermark.

    Raises ``StoreInUseError``, which names the other process, if another process writes the directory. Raises ``TypeError``
    (a panic) for any other type of record. If the disk is full or broken, it raises ``OSError``, and no row of the batch is
    in the audit or acknowledged.
    """

    async def run(ends: WiredEnds) -> None:
        store = ends.keep("store", lambda: _opened(audit.directory, ends), ParquetStore.close)
        ends.gauge("leftovers_removed", store.leftovers_removed)
        one_by_one = False
        while True:
            if not one_by_one:
                await _gathered(ends, audit)
            wanted = min(ends.receiver.ready, audit.max_rows)
            batch = await ends.receiver.recv_many(audit.max_rows)
            if not batch:
                return
            one_by_one = len(batch) < wanted  # redelivered after a failure: until they are through, no other rows come
            await ends.acknowledge_after(len(batch), _commit, store, batch, on_commit)
            ends.gauge("bytes_written", store.bytes_written)
            ends.gauge("files_written", store.files_written)
            ends.gauge("rows", store.rows_written)
            if not measures_latency:
                continue
            now_ns = ends.clock.now_ns()
            own = [
                each.ingest_timestamp for each in batch if not isinstance(each, CrossSensorUpdate)
            ]  # those wait for a mark
            for ingested_ns, count in Counter(own).items():
                ends.latency.record(now_ns - ingested_ns, count)

    return run


def _opened(directory: Path, ends: WiredEnds) -> ParquetStore:
    store = ParquetStore(directory)
    if store.leftovers_removed:
        log = EventLog(logger, clock=ends.clock, operator=ends.name, instance=ends.instance)
        log("audit_leftovers_removed", level=logging.WARNING, files=store.leftovers_removed)
    return store


async def _gathered(ends: WiredEnds, audit: Audit) -> None:
    """Suspend until the edge has enough for a commit, or until waiting is over. It takes nothing from the edge."""
    await ends.wait_for_items()
    edge, clock = ends.receiver, ends.clock
    wait_s = audit.commit_every.total_seconds()
    due = clock.monotonic() + wait_s
    while edge.ready < audit.max_rows and edge.room > 0 and not edge.closed and clock.monotonic() < due:
        if await ends.shutdown.wait_at_most(wait_s / _CHECKS, clock):
            return


def _commit(store: ParquetStore, batch: Sequence[AuditRecord], on_commit: OnCommit | None) -> None:
    store.commit(list(_parts(batch)))
    if on_commit is not None:
        on_commit(batch)


def _parts(batch: Sequence[AuditRecord]) -> Iterator[Part]:
    """One part for each type of record and hour of ingest, in the order of the batch."""
    by_kind: defaultdict[type, list[AuditRecord]] = defaultdict(list)
    for record in batch:
        by_kind[type(record)].append(record)
    for kind, of_kind in by_kind.items():
        table = table_of(kind)
        by_hour: defaultdict[int, list[AuditRecord]] = defaultdict(list)
        for record in of_kind:
            by_hour[record.ingest_timestamp // _HOUR_NS].append(record)
        for records in by_hour.values():
            first_ns = min(record.ingest_timestamp for record in records)
            yield Part(table.name, first_ns, table.rows(records), table.repeating)
