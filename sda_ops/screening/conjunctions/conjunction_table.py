"""The table of conjunctions: a SQLite file with every conjunction, its history, and what was passed on of it.

Tables, of which other programs may read each at any time (write-ahead log)::

    conjunctions   one row each: id, the two objects, when first seen, last estimate's time, status, revision
    updates        one row for each revision: the fields of `sda_ops.records.conjunction.ConjunctionUpdate`
    delivery       one row: the last update that a sink has on disk

One screening is one transaction, which is on the disk when the call returns (``synchronous=FULL``): after a kill, the table is
that before the screening or that after it. The updates are an outbox: an update is written with the screening that it comes
from, and stays until a sink has confirmed it. So none is lost, and one that is sent twice has the same id and revision.

Everything here is synchronous. Calls from several threads are made one after the other.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from orchestrator_adapter import OperatorError
from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate, WithdrawalReason
from sda_ops.records.ids import conjunction_id
from sda_ops.screening.conjunctions.identity import REACH_NS, Encounters, match
from sda_ops.sqlite_file import SqliteFile, schema_version, transaction

APPLICATION_ID = 0x53444143
"""In the header of every such file ("SDAC"): another program's database is not one."""

SCHEMA_VERSION = 2
"""Version 1 has no designators, states and reasons of withdrawals. `ConjunctionTable.open` adds them; a reader reads both versions."""

SAME_TCA_NS = 1_000_000
"""Two estimates from the same element sets that differ by less are the same: engines round differently."""

SAME_MISS_M = 1.0

_LOCKED_S = 2.0
"""How long a call waits for another program that writes the file. A shutdown cannot end this wait: it is shorter than its drain."""

_READER_LOCKED_S = 10.0


class ConjunctionTableError(OperatorError):
    """The file cannot be used; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class WithoutPosition:
    """An object whose element set has no position in a part of what was screened.

    Attributes:
        catalog_number: The object.
        from_ns: UTC.
        until_ns: UTC.
    """

    catalog_number: int
    from_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class Screened:
    """What a screening has covered.

    Attributes:
        start_ns: UTC.
        end_ns: UTC; the first time that was not screened.
        objects: The catalogue numbers that were screened against all others, as a set; ``None``: all.
        catalog: The catalogue numbers that there were, as a set; ``None``: not known, and a withdrawal is never because of
            one that is missing.
        without_position: Objects that were not screened in a part of the time.
        slow_pairs: Catalogue numbers of two objects each, the smaller first, as a set: pairs that are within the miss distance
            while they hardly move against each other. They have no approaches, but have not moved away.
    """

    start_ns: int
    end_ns: int
    objects: Collection[int] | None = None
    catalog: Collection[int] | None = None
    without_position: Sequence[WithoutPosition] = ()
    slow_pairs: Collection[tuple[int, int]] = ()

    def why_missing(self, pair: Collection[int], tca_ns: int) -> WithdrawalReason:
        """Why an approach of two objects at that time was not found."""
        if self.catalog is not None and not all(number in self.catalog for number in pair):
            return "left_catalog"
        if any(
            each.catalog_number in pair and each.from_ns <= tca_ns < each.until_ns for each in self.without_position
        ):
            return "no_position"
        return "moved_away"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one screening has changed, in conjunctions.

    Attributes:
        new: First seen.
        updated: With a new estimate, those that are active again included.
        unchanged: From the same element sets as before.
        withdrawn: Not found any more.
    """

    new: int
    updated: int
    unchanged: int
    withdrawn: int


@dataclass(frozen=True, slots=True)
class HeldConjunctions:
    """How many conjunctions of each status are in the table, and how many updates."""

    active: int
    withdrawn: int
    passed: int
    updates: int


_FIELDS = tuple(name for name in ConjunctionUpdate.__struct_fields__ if name not in ("conjunction_id", "sequence"))
_OF_ESTIMATE = ConjunctionEstimate.__struct_fields__
_OF_REVISION = tuple(name for name in _FIELDS if name not in _OF_ESTIMATE)


def _declared(name: str) -> str:
    annotation = str(ConjunctionUpdate.__annotations__.get(name, ConjunctionEstimate.__annotations__.get(name)))
    kind = "REAL" if "float" in annotation else "INTEGER" if annotation in ("int", "bool") else "TEXT"
    return f"{name} {kind}{'' if 'None' in annotation else ' NOT NULL'}{_DEFAULTS.get(name, '')}"


_STATES = tuple(
    f"{which}_{part}" for which in ("first", "second") for part in ("x_m", "y_m", "z_m", "vx_m_s", "vy_m_s", "vz_m_s")
)
_OF_VERSION_2 = ("designator_first", "designator_second", *_STATES, "reason")
_DEFAULTS = dict.fromkeys(("designator_first", "designator_second"), " DEFAULT ''")


_SCHEMA = (
    """CREATE TABLE conjunctions (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        catalog_number_first INTEGER NOT NULL, catalog_number_second INTEGER NOT NULL,
        first_seen_timestamp INTEGER NOT NULL, tca_timestamp INTEGER NOT NULL,
        status TEXT NOT NULL, revision INTEGER NOT NULL)""",
    "CREATE INDEX conjunctions_by_time ON conjunctions (tca_timestamp)",
    f"""CREATE TABLE updates (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        conjunction INTEGER NOT NULL REFERENCES conjunctions (number) ON DELETE CASCADE,
        {", ".join(map(_declared, _FIELDS))},
        UNIQUE (conjunction, revision))""",
    "CREATE TABLE delivery (confirmed INTEGER NOT NULL)",
    "INSERT INTO delivery VALUES (0)",
)
_TO_VERSION_2 = tuple(f"ALTER TABLE updates ADD COLUMN {_declared(name)}" for name in _OF_VERSION_2)
_INSERT_UPDATE = (
    f"INSERT INTO updates (conjunction, {', '.join(_FIELDS)}) VALUES ({', '.join('?' * (1 + len(_FIELDS)))})"  # noqa: S608 - names of our own
)
_REPEAT_ESTIMATE = f"""INSERT INTO updates (conjunction, {", ".join(_OF_ESTIMATE)}, {", ".join(_OF_REVISION)})
    SELECT conjunction, {", ".join(_OF_ESTIMATE)}, revision + 1, ?, ?, ? FROM updates
    WHERE conjunction = ? AND revision = ?"""  # noqa: S608 - names of our own
_SELECT_UPDATES = (
    f"SELECT c.id, u.sequence, {', '.join(f'u.{name}' for name in _FIELDS)} "  # noqa: S608 - names of our own
    "FROM updates u JOIN conjunctions c ON c.number = u.conjunction"
)
_SELECT_UNDELIVERED = (
    f"{_SELECT_UPDATES} WHERE u.sequence > max(?, (SELECT confirmed FROM delivery)) "  # noqa: S608 - names of our own
    "ORDER BY u.sequence LIMIT ?"
)
_SELECT_NEWEST = (
    f"{_SELECT_UPDATES} AND u.revision = c.revision "
    "WHERE c.tca_timestamp >= ? AND c.status IN ('active', 'withdrawn') ORDER BY u.sequence"
)
_SELECT_LISTED = (
    f"SELECT c.first_seen_timestamp, {_SELECT_UPDATES.removeprefix('SELECT ')} AND u.revision = c.revision "
    "WHERE (? IS NULL OR c.status = ?) "
    "AND (? IS NULL OR ? IN (c.catalog_number_first, c.catalog_number_second)) ORDER BY c.tca_timestamp, c.id"
)
_SELECTED = ("conjunction_id", "sequence", *_FIELDS)
assert (*_OF_ESTIMATE, "revision", "status", "screened_timestamp", "reason") == _FIELDS


class ConjunctionTable:
    """The writer. Constructing it opens nothing. The caller sees to it that no other process writes the file (a claim).

    Every method but `close` raises `ConjunctionTableError` if the file is damaged, or the disk full or broken; the table is
    unchanged then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = conjunction_file(path)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, or make it with its folder; check it. Does nothing if it is open.

        A file of version 1 becomes one of version 2, in one transaction.
        """
        with self._lock:
            if self._db is None:
                self._db = self._file.open(_SCHEMA, locked_s=_LOCKED_S, conversions={1: _TO_VERSION_2})

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def record(self, found: Sequence[ConjunctionEstimate], screened: Screened, now_ns: int) -> Recorded:
        """Write the result of one screening, in one transaction.

        An estimate is assigned to a conjunction by `sda_ops.screening.conjunctions.identity.match`; one that fits none gets a new one,
        unless its time is before ``now_ns``. It becomes a revision if its element sets or its figures are not those of the
        conjunction's last estimate. The order of ``found`` has no meaning.

        A conjunction becomes ``withdrawn`` if it was not found although its time, with a margin of `REACH_NS` on both sides, lies in
        what was screened, and its objects are not a slow pair. Conjunctions whose time is over do not change.
        """
        with self._writing() as db:
            known = [
                row
                for row in db.execute(_KNOWN, (screened.start_ns - REACH_NS, screened.end_ns + REACH_NS))
                if screened.objects is None or row[1] in screened.objects or row[2] in screened.objects
            ]
            matching = match(
                _encounters([row[1:4] for row in known]),
                _encounters([(e.catalog_number_first, e.catalog_number_second, e.tca_timestamp) for e in found]),
            )
            updates: list[tuple[Any, ...]] = []
            heads: list[tuple[Any, ...]] = []
            for row, estimate in zip(matching.known.tolist(), matching.found.tolist(), strict=True):
                number, *_, status, revision, epoch_first, epoch_second, tca_ns, miss_m, has_states = known[row]
                e = found[estimate]
                same_sets = (e.epoch_first_timestamp, e.epoch_second_timestamp) == (epoch_first, epoch_second)
                same = abs(e.tca_timestamp - tca_ns) < SAME_TCA_NS and abs(e.miss_m - miss_m) < SAME_MISS_M
                same &= has_states or e.first_x_m is None  # an estimate of version 1 gets its states
                if e.tca_timestamp >= now_ns and not (status == "active" and same_sets and same):
                    updates.append(_row(number, e, revision + 1, now_ns))
                    heads.append((e.tca_timestamp, "active", revision + 1, number))
            db.executemany(_SET_HEAD, heads)
            number = db.execute("SELECT coalesce(max(number), 0) FROM conjunctions").fetchone()[0]
            new = sorted(
                (found[row] for row in matching.new.tolist() if found[row].tca_timestamp >= now_ns), key=_by_time
            )
            minted: set[str] = set()
            first: list[tuple[Any, ...]] = []
            for number, e in enumerate(new, start=number + 1):  # noqa: B020 - it continues the numbers
                one, other, tca_ns = e.catalog_number_first, e.catalog_number_second, e.tca_timestamp
                minted.add(name := _free_id(db, minted, e))
                first.append((number, name, one, other, now_ns, tca_ns, "active", 1))
                updates.append(_row(number, e, 1, now_ns))
            db.executemany(_INSERT_HEAD, first)
            db.executemany(_INSERT_UPDATE, updates)
            earliest_ns, latest_ns = max(now_ns, screened.start_ns + REACH_NS), screened.end_ns - REACH_NS
            withdrawn = [
                (known[row][0], known[row][5], screened.why_missing(known[row][1:3], known[row][3]))
                for row in matching.missing.tolist()
                if known[row][4] == "active"
                and earliest_ns <= known[row][3] < latest_ns
                and known[row][1:3] not in screened.slow_pairs
            ]
            _end(db, withdrawn, "withdrawn", now_ns)
        return Recorded(len(first), len(heads), len(matching.known) - len(heads), len(withdrawn))

    def adopt(self, updates: Sequence[ConjunctionUpdate]) -> int:
        """Add conjunctions as they were, if the table does not have their ids. Returns how many.

        For a table that was lost, or restored from a backup: what was alerted is known again, so that the next screening
        finds it again or withdraws it. The revisions continue; the updates are passed on once more.
        """
        with self._writing() as db:
            known = {name for (name,) in db.execute("SELECT id FROM conjunctions")} if updates else set()
            missing = [each for each in updates if str(each.conjunction_id) not in known]
            first = db.execute("SELECT coalesce(max(number), 0) + 1 FROM conjunctions").fetchone()[0]
            for number, e in enumerate(missing, start=first):
                pair = (e.catalog_number_first, e.catalog_number_second)
                head = (e.screened_timestamp, e.tca_timestamp, e.status, e.revision)
                db.execute(_INSERT_HEAD, (number, str(e.conjunction_id), *pair, *head))
                db.execute(_INSERT_UPDATE, (number, *(getattr(e, name) for name in _FIELDS)))
        return len(missing)

    def mark_passed(self, now_ns: int) -> int:
        """Set every active conjunction whose time is over to ``passed``. Returns how many."""
        with self._writing() as db:
            over = db.execute(
                "SELECT number, revision, NULL FROM conjunctions WHERE tca_timestamp < ? AND status = 'active'",
                (now_ns,),
            ).fetchall()
            _end(db, over, "passed", now_ns)
        return len(over)

    def remove_older(self, before_ns: int) -> int:
        """Remove conjunctions whose time was before ``before_ns`` and whose updates are confirmed. Returns how many."""
        with self._writing() as db:
            return db.execute(_REMOVE, (before_ns,)).rowcount

    def undelivered(self, after: int, limit: int) -> list[ConjunctionUpdate]:
        """The next updates, at most ``limit``, that no sink has confirmed and whose sequence is greater than ``after``."""
        with self._lock, self._file.clear_errors():
            return list(map(_update, self._opened.execute(_SELECT_UNDELIVERED, (after, limit))))

    def newest(self, now_ns: int) -> list[ConjunctionUpdate]:
        """The last update of each conjunction that is active or withdrawn and whose time is not over, by sequence.

        Delivered or not: it is what a process starts with that keeps no state of its own.
        """
        with self._lock, self._file.clear_errors():
            return list(map(_update, self._opened.execute(_SELECT_NEWEST, (now_ns,))))

    def confirm(self, sequence: int) -> None:
        """A sink has every update up to ``sequence`` on its disk."""
        with self._writing() as db:
            db.execute("UPDATE delivery SET confirmed = max(confirmed, ?)", (sequence,))

    def held(self) -> HeldConjunctions:
        """Counts of what is in the table."""
        with self._lock, self._file.clear_errors():
            count = dict(self._opened.execute("SELECT status, count(*) FROM conjunctions GROUP BY status"))
            updates = self._opened.execute("SELECT count(*) FROM updates").fetchone()[0]
        return HeldConjunctions(count.get("active", 0), count.get("withdrawn", 0), count.get("passed", 0), updates)

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise ConjunctionTableError(f"table of conjunctions {self.path}: it is not open")
        return self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._file.clear_errors(), transaction(self._opened) as db:
            yield db


_KNOWN = """SELECT c.number, c.catalog_number_first, c.catalog_number_second, c.tca_timestamp, c.status, c.revision,
        u.epoch_first_timestamp, u.epoch_second_timestamp, u.tca_timestamp, u.miss_m, u.first_x_m IS NOT NULL
    FROM conjunctions c JOIN updates u ON u.conjunction = c.number AND u.revision = c.revision
    WHERE c.tca_timestamp >= ? AND c.tca_timestamp < ?"""
_INSERT_HEAD = "INSERT INTO conjunctions VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SET_HEAD = "UPDATE conjunctions SET tca_timestamp = ?, status = ?, revision = ? WHERE number = ?"
_REMOVE = """DELETE FROM conjunctions WHERE tca_timestamp < ? AND NOT EXISTS (
    SELECT 1 FROM updates u WHERE u.conjunction = conjunctions.number AND u.sequence > (SELECT confirmed FROM delivery))"""


def _encounters(rows: Sequence[tuple[int, int, int]]) -> Encounters:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Encounters(*columns)


def _row(number: int, estimate: ConjunctionEstimate, revision: int, now_ns: int) -> tuple[Any, ...]:
    return (number, *msgspec.structs.astuple(estimate), revision, "active", now_ns, None)


def _by_time(estimate: ConjunctionEstimate) -> tuple[int, int, int]:
    return estimate.tca_timestamp, estimate.catalog_number_first, estimate.catalog_number_second


def _free_id(db: sqlite3.Connection, minted: Collection[str], estimate: ConjunctionEstimate) -> str:
    """The id of a new conjunction: the first occurrence in its bucket that no other conjunction has."""
    pair = (estimate.catalog_number_first, estimate.catalog_number_second)
    for occurrence in itertools.count():
        name = str(conjunction_id(*pair, estimate.tca_timestamp, occurrence=occurrence))
        if name not in minted and db.execute("SELECT 1 FROM conjunctions WHERE id = ?", (name,)).fetchone() is None:
            break
    return name


def _end(db: sqlite3.Connection, rows: Sequence[tuple[int, int, str | None]], status: str, now_ns: int) -> None:
    """Set conjunctions, each with its revision and a reason, to ``status``, with one more revision that repeats the last estimate."""
    db.executemany(_REPEAT_ESTIMATE, [(status, now_ns, reason, number, revision) for number, revision, reason in rows])
    db.executemany(
        "UPDATE conjunctions SET status = ?, revision = ? WHERE number = ?",
        [(status, revision + 1, number) for number, revision, _ in rows],
    )


def _update(row: tuple[Any, ...]) -> ConjunctionUpdate:
    return msgspec.convert(dict(zip(_SELECTED, row, strict=True)), ConjunctionUpdate, strict=False)


# Reading, also while a pipeline writes.


@dataclass(frozen=True, slots=True)
class ListedConjunction:
    """A conjunction as it is now.

    Attributes:
        first_seen_ns: UTC.
        last: Its last update.
    """

    first_seen_ns: int
    last: ConjunctionUpdate


class ConjunctionReader:
    """Reads a table, and changes nothing. Making it, and each method, may raise `ConjunctionTableError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise ConjunctionTableError(
                f"there is no table of conjunctions {path}: a run of sda-fusion with screening makes it"
            )
        self._file = conjunction_file(path)
        self._db = self._file.open_existing(locked_s=_READER_LOCKED_S, read_only=True)
        self._of_version = _as_in_version_1 if schema_version(self._db) == 1 else str

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def listed(self, *, status: str | None = None, catalog_number: int | None = None) -> list[ListedConjunction]:
        """The conjunctions with this status and of this object (``None``: any), by time of closest approach."""
        with self._file.clear_errors():
            select = self._of_version(_SELECT_LISTED)
            rows = self._db.execute(select, (status, status, catalog_number, catalog_number))
            return [ListedConjunction(first_seen_ns, _update(tuple(row))) for first_seen_ns, *row in rows]

    def ids(self, prefix: str, limit: int = 10) -> list[str]:
        """The ids that begin with ``prefix``, at most ``limit``, in order."""
        with self._file.clear_errors():
            rows = self._db.execute(
                "SELECT id FROM conjunctions WHERE substr(id, 1, ?) = ? ORDER BY id LIMIT ?",
                (len(prefix), prefix, limit),
            )
            return [row[0] for row in rows]

    def history(self, full_id: str) -> list[ConjunctionUpdate]:
        """Every revision of a conjunction, the first one first; empty if the id is unknown."""
        with self._file.clear_errors():
            select = self._of_version(f"{_SELECT_UPDATES} WHERE c.id = ? ORDER BY u.revision")
            return list(map(_update, self._db.execute(select, (full_id,))))


def _as_in_version_1(select: str) -> str:
    """The same question to a table that lacks the columns of version 2."""
    for name in _OF_VERSION_2:
        select = select.replace(f"u.{name}", "''" if name in _DEFAULTS else "NULL")
    return select


def conjunction_file(path: Path) -> SqliteFile:
    """The file as a table of conjunctions."""
    return SqliteFile(
        path=path,
        what="table of conjunctions",
        setting="screening.directory",
        application_id=APPLICATION_ID,
        schema_version=SCHEMA_VERSION,
        error=ConjunctionTableError,
    )
