"""Tables of conjunctions, and their files as other programs read them."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sda_ops.screening.approaches import EndedObject
from sda_ops.screening.assessment.formations import AssessedSlowPairs, PairKind
from sda_ops.screening.output import tables
from sda_ops.screening.output.tables import Unscreened
from tests.sda_ops.screening.found import START_NS, conjunctions, objects

HEADER = (
    "NORAD_CAT_ID_1,OBJECT_NAME_1,DSE_1,NORAD_CAT_ID_2,OBJECT_NAME_2,DSE_2,"
    "TCA,TCA_RANGE,TCA_RELATIVE_SPEED,MAX_PROB,DILUTION"
)
"""Of SOCRATES' files (https://celestrak.org/SOCRATES/socrates-format.php)."""


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_csv_begins_with_the_columns_of_socrates_in_its_digits() -> None:
    """Days, kilometres and km/s with three decimals, probabilities with four digits, times rounded to milliseconds."""
    content = tables.csv_of(tables.conjunction_table(objects(), conjunctions()))
    lines = content.decode().split("\r\n")
    assert lines[0].startswith(f"{HEADER},MISS_M,")
    assert lines[1].startswith(
        "200001,STARLINK-1,1.019,200002,STARLINK-2,-0.458,2026-03-10 01:00:00.999,0.014,9.173,3.343E-01,0.010,14.400,"
    )
    assert lines[2].startswith(
        '200001,STARLINK-1,1.019,200003,"COSMOS, ""OLD"" DEB",-0.458,2026-03-10 02:00:01.000,5.000,15.000,1.000E+00,3.535,'
    )
    assert lines[3].startswith(
        '200003,"COSMOS, ""OLD"" DEB",1.019,200004,,-0.458,2026-03-10 00:01:30.000,0.120,0.052,2.500E-07,,'
    )


def test_the_further_columns_of_csv_have_units_and_empty_fields_for_what_is_unknown() -> None:
    """Without covariances there is no probability; an object in no fleet has no fleet's name."""
    first, _, third = rows_of(tables.csv_of(tables.conjunction_table(objects(), conjunctions())))
    assert (first["MISS_RADIAL_M"], first["MISS_IN_TRACK_M"], first["MISS_CROSS_TRACK_M"]) == (
        "9.800",
        "10.200",
        "-3.700",
    )
    assert (first["EPOCH_1"], first["PROBABILITY"], first["SAME_FLEET"]) == ("2026-03-09 00:00:00.000000", "", "true")
    assert (first["FLEET_1"], first["FLEET_2"], first["ORBIT_CLASS_1"]) == ("Starlink", "Starlink", "LEO")
    assert (third["FLEET_1"], third["ORBIT_CLASS_1"], third["ORBIT_CLASS_2"]) == ("", "SSO", "LEO")
    assert (third["PROBABILITY"], third["RADIUS_2_M"], third["FORMATION"]) == ("1.235E-09", "2.31", "false")


def test_parquet_has_the_full_precision_units_and_what_was_screened(tmp_path: Path) -> None:
    """Times have microseconds, and each column its unit and description."""
    path = tmp_path / "found.parquet"
    path.write_bytes(tables.parquet_of(tables.conjunction_table(objects(), conjunctions()), {"objects": 4}))
    table = pq.read_table(path)
    assert table.column("TCA").to_pylist()[0] == datetime(2026, 3, 10, 1, 0, 0, 999_400, tzinfo=UTC)
    assert table.column("TCA_RANGE").to_pylist() == pytest.approx([0.0144, 4.9996, 0.12], abs=1e-15)
    assert table.column("DILUTION").null_count == 1
    assert table.schema.field("TCA_RANGE").metadata[b"unit"] == b"km"
    assert all(field.metadata[b"description"] for field in table.schema)
    assert json.loads(table.schema.metadata[b"screening"]) == {"objects": 4}


def test_json_has_every_list_and_what_was_screened() -> None:
    """One document; what is missing is null, times end in Z, and an empty list is there, too."""
    table = tables.conjunction_table(objects(), conjunctions())
    document = json.loads(tables.json_of({"conjunctions": table, "slow": table.slice(0, 0)}, {"objects": 4}))
    assert document["screening"] == {"schema_version": 1, "objects": 4}
    assert document["slow"] == []
    assert document["conjunctions"][0]["TCA"] == "2026-03-10T01:00:00.999400Z"
    assert document["conjunctions"][0]["PROBABILITY"] is None
    assert document["conjunctions"][2]["PROBABILITY"] == 1.2345e-9


def test_an_order_picks_rows() -> None:
    """The table has the chosen conjunctions in this order."""
    table = tables.conjunction_table(objects(), conjunctions(), np.array([2, 0]))
    assert table.column("NORAD_CAT_ID_1").to_pylist() == [200_003, 200_001]
    assert table.column("MISS_M").to_pylist() == [120.0, 14.4]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_was_written_can_be_read(tmp_path: Path, suffix: str) -> None:
    """With the same columns and types; CSV has its digits."""
    table = tables.conjunction_table(objects(), conjunctions())
    path = tmp_path / f"found{suffix}"
    path.write_bytes(tables.csv_of(table) if suffix == ".csv" else tables.parquet_of(table, {}))
    read = tables.read_table(path)
    assert read.schema.equals(table.schema)
    assert read.column("TCA").to_pylist()[2] == datetime(2026, 3, 10, 0, 1, 30, tzinfo=UTC)
    assert read.column("OBJECT_NAME_2").to_pylist() == table.column("OBJECT_NAME_2").to_pylist()
    assert read.column("SAME_FLEET").to_pylist() == [True, False, False]
    assert read.column("MISS_M").to_pylist() == [14.4, 4_999.6, 120.0]


def test_a_file_of_socrates_can_be_read(tmp_path: Path) -> None:
    """It has the first eleven columns."""
    path = tmp_path / "sort-maxProb.csv"
    path.write_text(f"{HEADER}\n5,A [+],7.838,11,B [-],7.838,2026-09-27 22:46:51.724,0.003,0.000,1.000E+00,0.000\n")
    [row] = tables.read_table(path).to_pylist()
    assert row["TCA"] == datetime(2026, 9, 27, 22, 46, 51, 724_000, tzinfo=UTC)
    assert (row["OBJECT_NAME_1"], row["MAX_PROB"], row["TCA_RANGE"]) == ("A [+]", 1.0, 0.003)


def test_a_file_without_these_columns_is_rejected_in_one_line(tmp_path: Path) -> None:
    """The message names the file and what is missing."""
    path = tmp_path / "other.csv"
    path.write_text("NORAD_CAT_ID_1,TCA\n5,2026-09-27 22:46:51\n")
    with pytest.raises(
        ValueError, match=r"other\.csv: expected the columns of conjunctions, got no OBJECT_NAME_1, DSE_1"
    ):
        tables.read_table(path)


def test_objects_that_were_not_screened_are_listed_with_the_reason() -> None:
    """Also without any, the table has its columns."""
    ended = EndedObject(row=2, from_ns=START_NS, until_ns=START_NS + 10**9, reason="below the surface")
    [row] = rows_of(tables.csv_of(tables.unscreened_table([Unscreened.of(objects(), ended)])))
    assert row == {
        "NORAD_CAT_ID": "200003",
        "OBJECT_NAME": 'COSMOS, "OLD" DEB',
        "FROM": "2026-03-10 00:00:00.000",
        "UNTIL": "2026-03-10 00:00:01.000",
        "REASON": "below the surface",
    }
    assert tables.csv_of(tables.unscreened_table([])) == b"NORAD_CAT_ID,OBJECT_NAME,FROM,UNTIL,REASON\r\n"


def test_slow_pairs_say_what_they_are_and_how_long_they_are_in_contact() -> None:
    """The smallest distance with its time, and the largest distance of a revolution."""
    pairs = AssessedSlowPairs(
        first=np.array([0]),
        second=np.array([1]),
        catalog_number_first=np.array([200_001]),
        catalog_number_second=np.array([200_002]),
        kind=np.array([PairKind.DOCKED], dtype=np.int8),
        smallest_m=np.array([0.0]),
        smallest_at_ns=np.array([START_NS]),
        relative_speed_m_s=np.array([0.0]),
        minima=np.array([0]),
        contact_s=np.array([5_400.0]),
        largest_m=np.array([np.nan]),
        fleet_first=np.array([0], dtype=np.int16),
        fleet_second=np.array([-1], dtype=np.int16),
        same_fleet=np.array([False]),
        fleets=("Starlink",),
    )
    [row] = rows_of(tables.csv_of(tables.slow_pair_table(objects(), pairs)))
    assert (row["OBJECT_NAME_1"], row["KIND"], row["SMALLEST_M"]) == ("STARLINK-1", "docked", "0.000")
    assert (row["SMALLEST_AT"], row["CONTACT_S"], row["LARGEST_M"]) == ("2026-03-10 00:00:00.000", "5400", "")
    assert (row["FLEET_1"], row["FLEET_2"], row["ORBIT_CLASS_1"]) == ("Starlink", "", "LEO")
