"""The table of conjunctions: what a screening changes in it, what is delivered, and what a kill or a bad file does."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.records.ids import conjunction_id
from sda_ops.screening.conjunctions import conjunction_table
from sda_ops.screening.conjunctions.conjunction_table import (
    ConjunctionReader,
    ConjunctionTable,
    ConjunctionTableError,
    HeldConjunctions,
    Recorded,
    Screened,
    WithoutPosition,
)

S = 10**9
HOUR = 3_600 * S
T0 = 1_772_000_000 * S
WHOLE = Screened(T0 - HOUR, T0 + 24 * HOUR)
PLAIN = ConjunctionEstimate(
    catalog_number_first=5,
    catalog_number_second=9,
    name_first="VANGUARD 1",
    tca_timestamp=T0 + 6 * HOUR,
    miss_m=812.5,
    miss_radial_m=-100.0,
    miss_in_track_m=500.0,
    miss_cross_track_m=632.6,
    relative_speed_m_s=14_000.0,
    max_probability=1.5e-6,
    dilution_m=574.0,
    epoch_first_timestamp=T0 - 10 * HOUR,
    epoch_second_timestamp=T0 - 3 * HOUR,
    age_first_s=57_600.0,
    age_second_s=32_400.0,
    radius_first_m=1.0,
    radius_second_m=10.0,
    orbit_class_first="low",
    orbit_class_second="low",
    fleet_second="starlink",
    designator_first="58002B",
    first_x_m=7.1e6,
    first_y_m=-12.25,
    first_z_m=1.0 / 3.0,
    first_vx_m_s=0.125,
    first_vy_m_s=7_500.0,
    first_vz_m_s=-0.1,
    second_x_m=7.1e6 - 100.0,
    second_y_m=487.75,
    second_z_m=632.9,
    second_vx_m_s=-0.5,
    second_vy_m_s=-6_500.0,
    second_vz_m_s=100.0,
)


def estimate(
    first: int = 5, second: int = 9, *, tca_ns: int = T0 + 6 * HOUR, epoch_ns: int = T0 - 10 * HOUR
) -> ConjunctionEstimate:
    return msgspec.structs.replace(
        PLAIN,
        catalog_number_first=first,
        catalog_number_second=second,
        tca_timestamp=tca_ns,
        epoch_first_timestamp=epoch_ns,
    )


@pytest.fixture
def table(tmp_path: Path) -> Iterator[ConjunctionTable]:
    opened = ConjunctionTable(tmp_path / "screening" / "conjunctions.sqlite")
    opened.open()
    yield opened
    opened.close()


def statuses(table: ConjunctionTable) -> list[tuple[int, str]]:
    return [(update.revision, update.status) for update in table.undelivered(0, 100)]


def test_an_update_comes_out_of_the_table_as_the_estimate_that_was_recorded(table: ConjunctionTable) -> None:
    assert table.record([PLAIN], WHOLE, T0) == Recorded(new=1, updated=0, unchanged=0, withdrawn=0)
    (update,) = table.undelivered(0, 10)
    assert update.conjunction_id == conjunction_id(5, 9, PLAIN.tca_timestamp)
    assert (update.revision, update.status, update.screened_timestamp) == (1, "active", T0)
    assert {name: getattr(update, name) for name in PLAIN.__struct_fields__} == msgspec.structs.asdict(PLAIN)


def test_the_same_element_sets_again_make_no_revision(table: ConjunctionTable) -> None:
    table.record([PLAIN], WHOLE, T0)
    assert table.record([PLAIN], WHOLE, T0 + S) == Recorded(new=0, updated=0, unchanged=1, withdrawn=0)
    assert len(table.undelivered(0, 10)) == 1


def test_a_newer_element_set_makes_a_revision_of_the_same_conjunction(table: ConjunctionTable) -> None:
    table.record([PLAIN], WHOLE, T0)
    later = estimate(tca_ns=PLAIN.tca_timestamp + 3 * S, epoch_ns=T0 - HOUR)
    assert table.record([later], WHOLE, T0 + HOUR).updated == 1
    first, second = table.undelivered(0, 10)
    assert first.conjunction_id == second.conjunction_id
    assert (second.revision, second.tca_timestamp, second.screened_timestamp) == (2, later.tca_timestamp, T0 + HOUR)


def test_an_estimate_is_compared_with_the_last_one_and_not_with_the_first(table: ConjunctionTable) -> None:
    for step in range(4):  # 45 minutes in all: beyond the reach of the first estimate
        drifted = estimate(tca_ns=PLAIN.tca_timestamp + step * 15 * 60 * S, epoch_ns=T0 - HOUR + step)
        table.record([drifted], WHOLE, T0 + step)
    assert [update.revision for update in table.undelivered(0, 10)] == [1, 2, 3, 4]


def test_what_is_not_found_any_more_is_withdrawn_and_keeps_its_id_when_it_comes_again(table: ConjunctionTable) -> None:
    table.record([PLAIN], WHOLE, T0)
    assert table.record([], WHOLE, T0 + S).withdrawn == 1
    assert table.record([], WHOLE, T0 + 2 * S).withdrawn == 0
    assert table.record([PLAIN], WHOLE, T0 + 3 * S).updated == 1
    assert statuses(table) == [(1, "active"), (2, "withdrawn"), (3, "active")]
    assert len({update.conjunction_id for update in table.undelivered(0, 10)}) == 1


def test_a_conjunction_near_an_edge_of_what_was_screened_is_not_withdrawn(table: ConjunctionTable) -> None:
    table.record([PLAIN], WHOLE, T0)
    before = Screened(T0, PLAIN.tca_timestamp + 19 * 60 * S)
    behind = Screened(PLAIN.tca_timestamp - 19 * 60 * S, T0 + 24 * HOUR)
    assert table.record([], before, T0).withdrawn == 0
    assert table.record([], behind, T0).withdrawn == 0


def test_a_screening_of_some_objects_withdraws_only_their_conjunctions(table: ConjunctionTable) -> None:
    table.record([estimate(5, 9), estimate(6, 7)], WHOLE, T0)
    assert table.record([], Screened(WHOLE.start_ns, WHOLE.end_ns, frozenset({9})), T0 + S).withdrawn == 1
    last = table.undelivered(0, 10)[-1]
    assert (last.catalog_number_second, last.status) == (9, "withdrawn")


def test_a_conjunction_of_a_pair_that_has_become_slow_is_not_withdrawn(table: ConjunctionTable) -> None:
    """Below 10 m/s an approach is listed as a slow pair: the objects are as near as before."""
    table.record([estimate(5, 9), estimate(6, 7)], WHOLE, T0)
    slow = Screened(WHOLE.start_ns, WHOLE.end_ns, slow_pairs=frozenset({(5, 9), (5, 6)}))
    assert table.record([], slow, T0 + S).withdrawn == 1
    assert [(each.catalog_number_first, each.status) for each in table.newest(T0)] == [(5, "active"), (6, "withdrawn")]


def test_a_withdrawal_says_whether_the_approach_moved_away_or_nothing_is_known_of_it(table: ConjunctionTable) -> None:
    table.record([estimate(5, 9), estimate(6, 7), estimate(6, 8)], WHOLE, T0)
    tca_ns = PLAIN.tca_timestamp
    without = (WithoutPosition(7, tca_ns, tca_ns + 1), WithoutPosition(9, tca_ns - 5, tca_ns))
    table.record([], Screened(WHOLE.start_ns, WHOLE.end_ns, None, frozenset({5, 6, 7, 9}), without), T0 + S)
    assert [(each.catalog_number_second, each.reason) for each in table.undelivered(3, 10)] == [
        (9, "moved_away"),
        (7, "no_position"),
        (8, "left_catalog"),
    ]
    table.record([estimate(6, 8)], WHOLE, T0 + 2 * S)
    assert table.undelivered(6, 10)[0].reason is None


@pytest.mark.parametrize(
    ("revision", "screened_ns", "older"),
    [(1, T0, True), (2, T0, False), (3, T0 + S, False), (1, T0 + 2 * S, False), (4, T0 - S, False)],
)
def test_an_update_is_older_if_both_its_revision_and_its_screening_are(
    revision: int, screened_ns: int, *, older: bool
) -> None:
    """The fourth is of a table that was made anew, the last one of a clock that was set back."""
    update = ConjunctionUpdate(
        **msgspec.structs.asdict(PLAIN),
        conjunction_id=conjunction_id(5, 9, T0),
        revision=revision,
        sequence=1,
        status="active",
        screened_timestamp=screened_ns,
    )
    assert update.is_older_than(2, T0 + S) == older


def test_the_newest_updates_are_those_of_conjunctions_to_come_delivered_or_not(table: ConjunctionTable) -> None:
    table.record([estimate(5, 9), estimate(6, 7), estimate(5, 8, tca_ns=T0 + 2 * HOUR)], WHOLE, T0)
    table.record([estimate(5, 9, epoch_ns=T0), estimate(5, 8, tca_ns=T0 + 2 * HOUR)], WHOLE, T0 + S)
    table.confirm(4)
    newest = table.newest(T0 + 2 * HOUR)
    assert [(each.catalog_number_second, each.revision, each.status) for each in newest] == [
        (8, 1, "active"),
        (9, 2, "active"),
        (7, 2, "withdrawn"),
    ]
    table.mark_passed(T0 + 3 * HOUR)
    assert [each.catalog_number_second for each in table.newest(T0 + 3 * HOUR)] == [9, 7]
    assert table.newest(T0 + 6 * HOUR + 1) == []


def test_a_conjunction_passes_once_and_is_never_withdrawn_then(table: ConjunctionTable) -> None:
    table.record([PLAIN], WHOLE, T0)
    later = PLAIN.tca_timestamp + 1
    assert table.mark_passed(PLAIN.tca_timestamp) == 0
    assert table.mark_passed(later) == 1
    assert table.mark_passed(later) == 0
    assert table.record([], WHOLE, later).withdrawn == 0
    assert table.record([PLAIN], WHOLE, later) == Recorded(new=0, updated=0, unchanged=1, withdrawn=0)
    assert statuses(table) == [(1, "active"), (2, "passed")]


def test_an_approach_of_the_past_that_is_not_known_makes_no_conjunction(table: ConjunctionTable) -> None:
    assert table.record([PLAIN], WHOLE, PLAIN.tca_timestamp + 1).new == 0


def test_an_update_stays_undelivered_until_a_sink_confirms_it(table: ConjunctionTable) -> None:
    table.record([estimate(5, 9), estimate(6, 7)], WHOLE, T0)
    first, second = table.undelivered(0, 10)
    assert table.undelivered(0, 1) == [first]
    table.confirm(first.sequence)
    assert table.undelivered(0, 10) == [second]
    table.confirm(second.sequence)
    table.confirm(first.sequence)  # a confirmation that comes late changes nothing
    assert table.undelivered(0, 10) == []


def test_a_table_that_another_program_writes_is_named_and_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conjunction_table, "_LOCKED_S", 0.0)
    table = ConjunctionTable(tmp_path / "conjunctions.sqlite")
    table.open()
    with closing(sqlite3.connect(table.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConjunctionTableError, match="database is locked; another process writes it"):
            table.record([PLAIN], WHOLE, T0)
    assert table.record([PLAIN], WHOLE, T0).new == 1
    table.close()


def test_old_conjunctions_are_removed_with_their_history_when_their_updates_are_delivered(
    table: ConjunctionTable,
) -> None:
    table.record([estimate(5, 9), estimate(6, 7, tca_ns=T0 + 12 * HOUR)], WHOLE, T0)
    table.mark_passed(T0 + 7 * HOUR)
    assert table.remove_older(T0 + 7 * HOUR) == 0
    table.confirm(table.undelivered(0, 10)[-1].sequence)
    assert table.remove_older(T0 + 7 * HOUR) == 1
    assert table.held() == HeldConjunctions(active=1, withdrawn=0, passed=0, updates=1)
    table.record([estimate(6, 7, tca_ns=T0 + 12 * HOUR, epoch_ns=T0)], WHOLE, T0 + 8 * HOUR)
    assert [update.revision for update in table.undelivered(0, 10)] == [2]


def test_the_table_is_the_same_after_it_was_closed_and_opened(table: ConjunctionTable) -> None:
    table.record([PLAIN], WHOLE, T0)
    before = table.undelivered(0, 10)
    table.close()
    again = ConjunctionTable(table.path)
    again.open()
    assert again.undelivered(0, 10) == before
    assert again.record([PLAIN], WHOLE, T0 + S).unchanged == 1
    again.close()


def test_a_reader_sees_the_table_while_it_is_written(table: ConjunctionTable) -> None:
    table.record([estimate(6, 7), estimate(5, 9, tca_ns=T0 + 2 * HOUR)], WHOLE, T0)
    reader = ConjunctionReader(table.path)
    by_time = [each.last.catalog_number_first for each in reader.listed()]
    assert by_time == [5, 6]
    table.record([estimate(5, 9, tca_ns=T0 + 2 * HOUR, epoch_ns=T0)], WHOLE, T0 + HOUR)
    (five,) = reader.listed(catalog_number=9)
    assert (five.last.revision, five.first_seen_ns) == (2, T0)
    assert [each.last.catalog_number_first for each in reader.listed(status="withdrawn")] == [6]
    name = str(five.last.conjunction_id)
    assert reader.ids(name[:6]) == [name]
    assert [update.revision for update in reader.history(name)] == [1, 2]
    assert reader.history("no id") == []
    reader.close()


KILLED = """
import sys
from pathlib import Path
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable, Screened
from tests.sda_ops.screening.conjunctions.test_conjunction_table import HOUR, T0, WHOLE, estimate
table = ConjunctionTable(Path(sys.argv[1]))
table.open()
epoch = 0
while True:
    epoch += 1
    table.record([estimate(n, 100_000 + n, epoch_ns=T0 - HOUR + epoch) for n in range(1, 2_001)], WHOLE, T0 + epoch)
    print(epoch, flush=True)
"""


def test_a_kill_in_the_middle_of_an_update_leaves_whole_screenings(tmp_path: Path) -> None:
    path = tmp_path / "conjunctions.sqlite"
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert writer.stdout is not None
    for _ in range(3):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)  # it writes the next screening
    done = 3 + len(writer.stdout.read().split())
    writer.wait()
    table = ConjunctionTable(path)
    table.open()
    held = table.held()
    assert held.active == 2_000
    assert held.updates in (2_000 * done, 2_000 * (done + 1))  # committed, but killed before it could print it
    revisions = {update.revision for update in table.undelivered(held.updates - 2_000, 2_000)}
    assert revisions == {held.updates // 2_000}
    table.close()


def test_a_full_disk_is_named_and_leaves_the_table_as_it_was(table: ConjunctionTable) -> None:
    table.record([PLAIN], WHOLE, T0)
    assert table._db is not None
    table._db.execute("PRAGMA max_page_count = 1")  # SQLite's own limit raises the error of a full disk
    many = [estimate(n, 100_000 + n) for n in range(1, 3_000)]
    with pytest.raises(
        ConjunctionTableError, match=r"conjunctions\.sqlite: database or disk is full; free space there"
    ):
        table.record([PLAIN, *many], WHOLE, T0)
    table._db.execute("PRAGMA max_page_count = 100000")
    assert table.held() == HeldConjunctions(active=1, withdrawn=0, passed=0, updates=1)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "conjunctions.sqlite"
    path.write_bytes(b"no database" * 1_000)
    with pytest.raises(ConjunctionTableError, match=r"the file is damaged \(file is not a database\); move it away"):
        ConjunctionTable(path).open()


def test_a_damaged_page_is_found_when_the_table_is_opened(table: ConjunctionTable) -> None:
    table.record([estimate(n, 100_000 + n) for n in range(1, 1_000)], WHOLE, T0)
    table.close()
    with table.path.open("r+b") as file:
        file.seek(5 * 4_096)
        file.write(b"\xff" * 20_000)
    with pytest.raises(ConjunctionTableError, match="the file is damaged"):
        ConjunctionTable(table.path).open()


def test_a_database_of_another_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "conjunctions.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE birds (name TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(ConjunctionTableError, match="another program's database; choose another folder"):
        ConjunctionTable(path).open()
    assert path.read_bytes() == before


def test_a_table_of_another_version_is_not_opened(table: ConjunctionTable) -> None:
    table.close()
    other = sqlite3.connect(table.path)
    other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(ConjunctionTableError, match="expected schema version 2 or earlier, got 9"):
        ConjunctionTable(table.path).open()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConjunctionTableError, match=r"table of conjunctions .*/file/conjunctions\.sqlite: "):
        ConjunctionTable(tmp_path / "file" / "conjunctions.sqlite").open()


def test_a_reader_says_that_there_is_no_table_yet(tmp_path: Path) -> None:
    with pytest.raises(ConjunctionTableError, match=r"there is no table of conjunctions .*: a run of sda-fusion"):
        ConjunctionReader(tmp_path / "conjunctions.sqlite")
