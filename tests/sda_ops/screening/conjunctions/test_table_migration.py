"""A table of conjunctions that an earlier version wrote: it is converted in place, and read as it is."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from sda_ops.screening.conjunctions import conjunction_table
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionReader, ConjunctionTable, ConjunctionTableError
from tests.sda_ops.screening.conjunctions.test_conjunction_table import HOUR, PLAIN, T0, WHOLE, S, estimate

VERSION_1 = """
CREATE TABLE conjunctions (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    catalog_number_first INTEGER NOT NULL, catalog_number_second INTEGER NOT NULL,
    first_seen_timestamp INTEGER NOT NULL, tca_timestamp INTEGER NOT NULL,
    status TEXT NOT NULL, revision INTEGER NOT NULL);
CREATE INDEX conjunctions_by_time ON conjunctions (tca_timestamp);
CREATE TABLE updates (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    conjunction INTEGER NOT NULL REFERENCES conjunctions (number) ON DELETE CASCADE,
    catalog_number_first INTEGER NOT NULL, catalog_number_second INTEGER NOT NULL, name_first TEXT NOT NULL,
    name_second TEXT NOT NULL, tca_timestamp INTEGER NOT NULL, miss_m REAL NOT NULL, miss_radial_m REAL NOT NULL,
    miss_in_track_m REAL NOT NULL, miss_cross_track_m REAL NOT NULL, relative_speed_m_s REAL NOT NULL,
    max_probability REAL NOT NULL, dilution_m REAL, probability REAL, epoch_first_timestamp INTEGER NOT NULL,
    epoch_second_timestamp INTEGER NOT NULL, age_first_s REAL NOT NULL, age_second_s REAL NOT NULL,
    radius_first_m REAL NOT NULL, radius_second_m REAL NOT NULL, orbit_class_first TEXT NOT NULL,
    orbit_class_second TEXT NOT NULL, fleet_first TEXT, fleet_second TEXT, same_fleet INTEGER NOT NULL,
    formation INTEGER NOT NULL, revision INTEGER NOT NULL, status TEXT NOT NULL, screened_timestamp INTEGER NOT NULL,
    UNIQUE (conjunction, revision));
CREATE TABLE delivery (confirmed INTEGER NOT NULL);
INSERT INTO delivery VALUES (1);
INSERT INTO conjunctions VALUES (1, '01234567-89ab-8def-8123-456789abcdef', 5, 9, {seen}, {tca}, 'active', 2);
INSERT INTO updates VALUES (1, 1, 5, 9, 'VANGUARD 1', '', {tca}, 900.0, -100.0, 500.0, 741.6, 14000.0, 1e-6, 640.0, NULL,
    {epoch}, {epoch}, 3600.0, 3600.0, 1.0, 10.0, 'low', 'low', NULL, 'starlink', 0, 0, 1, 'active', {seen});
INSERT INTO updates VALUES (2, 1, 5, 9, 'VANGUARD 1', '', {tca}, 812.5, -100.0, 500.0, 632.6, 14000.0, 1.5e-6, 574.0, NULL,
    {epoch}, {epoch}, 3600.0, 3600.0, 1.0, 10.0, 'low', 'low', NULL, 'starlink', 0, 0, 2, 'active', {seen});
PRAGMA application_id = 1396982083;
PRAGMA user_version = 1;
"""
OLD_ID = "01234567-89ab-8def-8123-456789abcdef"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of version 1, as version 1 wrote it: one conjunction with two revisions, of which the first is delivered."""
    path = tmp_path / "conjunctions.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(VERSION_1.format(seen=T0 - HOUR, tca=PLAIN.tca_timestamp, epoch=T0 - 2 * HOUR))
    return path


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]


def test_a_table_of_version_1_keeps_its_ids_revisions_and_deliveries(old: Path) -> None:
    table = ConjunctionTable(old)
    table.open()
    (update,) = table.undelivered(0, 10)
    assert (str(update.conjunction_id), update.revision, update.miss_m) == (OLD_ID, 2, 812.5)
    assert (update.designator_first, update.first_x_m, update.second_vz_m_s, update.reason) == ("", None, None, None)
    newer = msgspec.structs.replace(estimate(epoch_ns=T0), designator_first="58002B", first_x_m=7e6)
    assert table.record([newer], WHOLE, T0).updated == 1
    last = table.undelivered(0, 10)[-1]
    assert (str(last.conjunction_id), last.revision) == (OLD_ID, 3)
    assert (last.designator_first, last.first_x_m) == ("58002B", 7e6)
    assert table.record([], WHOLE, T0 + S).withdrawn == 1
    assert table.undelivered(0, 10)[-1].reason == "moved_away"
    table.close()
    again = ConjunctionTable(old)
    again.open()
    assert [str(each.conjunction_id) for each in again.newest(T0)] == [OLD_ID]
    again.close()


def test_an_estimate_of_version_1_gets_its_states_from_the_same_element_sets_once(old: Path) -> None:
    """A conjunction message needs them."""
    table = ConjunctionTable(old)
    table.open()
    (stored,) = table.undelivered(0, 10)
    values = {
        name: getattr(stored, name) for name in PLAIN.__struct_fields__ if not name.startswith(("first_", "second_"))
    }
    same = msgspec.structs.replace(PLAIN, **values)
    assert table.record([same], WHOLE, T0).updated == 1
    assert table.record([same], WHOLE, T0 + S).unchanged == 1
    last = table.undelivered(0, 10)[-1]
    assert (last.revision, last.first_x_m, last.epoch_first_timestamp) == (
        3,
        PLAIN.first_x_m,
        stored.epoch_first_timestamp,
    )
    table.close()


def test_a_reader_reads_a_table_of_version_1_and_leaves_it_as_it_is(old: Path) -> None:
    before = content(old)
    reader = ConjunctionReader(old)
    (listed,) = reader.listed(status="active")
    assert (str(listed.last.conjunction_id), listed.last.designator_second, listed.last.first_x_m) == (OLD_ID, "", None)
    assert [each.revision for each in reader.history(OLD_ID)] == [1, 2]
    reader.close()
    assert content(old) == before


def test_a_conversion_that_fails_leaves_the_table_of_version_1(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, statements = content(old), conjunction_table._TO_VERSION_2
    monkeypatch.setattr(conjunction_table, "_TO_VERSION_2", (*statements, "SELECT no_such_function()"))
    with pytest.raises(ConjunctionTableError, match=r"conjunctions\.sqlite: no such function"):
        ConjunctionTable(old).open()
    assert content(old) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from sda_ops.screening.conjunctions import conjunction_table
def then_die(statements):
    yield from statements
    os.kill(os.getpid(), signal.SIGKILL)
conjunction_table._TO_VERSION_2 = then_die(conjunction_table._TO_VERSION_2)
conjunction_table.ConjunctionTable(Path(sys.argv[1])).open()
"""


def test_a_kill_in_a_conversion_leaves_the_table_of_version_1_and_the_next_start_converts_it(old: Path) -> None:
    before = content(old)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(old)], env=os.environ | {"PYTHONPATH": "."}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert content(old) == before
    table = ConjunctionTable(old)
    table.open()
    assert table.held().updates == 2
    table.close()
    assert content(old)[-1] == "(2,)"


def test_a_converted_table_and_a_new_one_have_the_same_columns(old: Path, tmp_path: Path) -> None:
    columns = []
    for path in (old, tmp_path / "new.sqlite"):
        table = ConjunctionTable(path)
        table.open()
        table.close()
        with closing(sqlite3.connect(path)) as db:
            columns.append(sorted(row[1:5] for row in db.execute("PRAGMA table_info(updates)")))
    assert columns[0] == columns[1]
    assert len(columns[0]) > 40
