"""A SQLite file of one kind: how it is made and checked, and how its errors read. It knows nothing of what is in it.

The write-ahead log lets other programs read while one writes. ``synchronous=FULL``: what a transaction has written is on the
disk when it returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator_adapter import OperatorError

_LOG_BYTES = 64 * 1_024 * 1_024
"""The write-ahead log is made shorter than this again when it was longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteFile:
    """One file.

    Attributes:
        path: The file.
        what: What it is, for messages: ``table of conjunctions``.
        setting: The setting that has its folder.
        application_id: In the header of every such file: another program's database has another one.
        schema_version: Of the present program, from 1 on. Files of earlier versions are converted.
        error: What is raised, with one clear sentence.
        when_damaged: What to do with a damaged file.
    """

    path: Path
    what: str
    setting: str
    application_id: int
    schema_version: int
    error: type[OperatorError]
    when_damaged: str = "move it away, and a new one is made"

    def open(
        self, schema: Sequence[str], *, locked_s: float, conversions: Mapping[int, Sequence[str]] | None = None
    ) -> sqlite3.Connection:
        """A connection that may write. Makes the file with its folder, or checks it, every page included.

        Args:
            schema: The statements that make the tables.
            locked_s: How long a statement waits for another program that writes.
            conversions: By schema version, the statements that make the next version of it.
        """
        with self.clear_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=locked_s)
            try:
                if not _is_new(db):
                    self._check(db)
                    self._check_pages(db)
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
                db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
                if _is_new(db):
                    with transaction(db):
                        db.execute(f"PRAGMA application_id = {self.application_id}")
                        db.execute(f"PRAGMA user_version = {self.schema_version}")
                        for statement in schema:
                            db.execute(statement)
                for version in range(schema_version(db), self.schema_version):
                    with transaction(db):
                        for statement in (conversions or {})[version]:
                            db.execute(statement)
                        db.execute(f"PRAGMA user_version = {version + 1}")
            except BaseException:
                db.close()
                raise
            return db

    def open_existing(self, *, locked_s: float, read_only: bool) -> sqlite3.Connection:
        """A connection to a file that is there, beside the program that writes it all the time."""
        with self.clear_errors():
            mode = "ro" if read_only else "rw"
            uri = f"{self.path.resolve().as_uri()}?mode={mode}"
            db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=locked_s)
            try:
                self._check(db)
                if not read_only:
                    db.execute("PRAGMA synchronous = FULL")
                    db.execute("PRAGMA foreign_keys = ON")
            except BaseException:
                db.close()
                raise
            return db

    def _check(self, db: sqlite3.Connection) -> None:
        """Raise the error if the database is not of this kind, or of a later version."""
        if _is_new(db):
            raise self.error(f"{self.what} {self.path}: it is empty: the run that makes it has not filled it yet")
        application = db.execute("PRAGMA application_id").fetchone()[0]
        if application != self.application_id:
            raise self.error(
                f"{self.what} {self.path}: it is another program's database; choose another folder ({self.setting})"
            )
        if not 1 <= (version := schema_version(db)) <= self.schema_version:
            earlier = " or earlier" if self.schema_version > 1 else ""
            raise self.error(
                f"{self.what} {self.path}: expected schema version {self.schema_version}{earlier}, got {version}; "
                "use the program that wrote it, or move the file away"
            )

    def _check_pages(self, db: sqlite3.Connection) -> None:
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise self.error(self._damaged(" ".join(found.replace("*", " ").split())))  # it has several lines

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Raise SQLite's and the system's errors as one clear sentence."""
        try:
            yield
        except sqlite3.OperationalError as error:
            hint = _HINTS.get(str(error), "").format(setting=self.setting)
            raise self.error(f"{self.what} {self.path}: {error}{hint}") from error
        except sqlite3.DatabaseError as error:
            raise self.error(self._damaged(str(error))) from error
        except OSError as error:
            raise self.error(f"{self.what} {self.path}: {error.strerror or error}") from error

    def _damaged(self, why: str) -> str:
        return f"{self.what} {self.path}: the file is damaged ({why}); {self.when_damaged}"


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit at the end; roll back on any error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def schema_version(db: sqlite3.Connection) -> int:
    """The schema version of an open file."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _is_new(db: sqlite3.Connection) -> bool:
    return not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


_HINTS = {
    "database or disk is full": "; free space there, or choose another folder ({setting})",
    "unable to open database file": "; is the folder there, and may this user write to it?",
    "attempt to write a readonly database": "; may this user write to the file and its folder?",
    "database is locked": "; another process writes it",
}
