"""Element sets as columns: copies that propagate to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sgp4
from sgp4 import omm
from sgp4.api import WGS72, WGS72OLD, WGS84, Satrec
from sgp4.exporter import export_tle

from sda_ops.astro.time import NS_PER_DAY
from sda_ops.catalog import ElementColumns, ElementSet, parse_catalog, read_catalog, synthetic_catalog
from sda_ops.catalog.elements import tle_epoch_days
from tests.sda_ops.catalog.catalog_texts import LINE1, LINE2, OMM, data

DAYS = np.array([-5.0, -1.37, 0.0, 0.25, 1.0, 7.77, 30.0])
"""Days from the epoch at which two records must agree to the bit."""

VERIFICATION = Path(sgp4.__file__).with_name("SGP4-VER.TLE").read_text().splitlines()
VERIFICATION_LINES = [(a, b) for a, b in itertools.pairwise(VERIFICATION) if a.startswith("1 ")]
"""SGP4's own verification set, AIAA 2006-6753, appendix D, with deep-space orbits and errors."""


def bits(satrec: Satrec) -> tuple[bytes, ...]:
    """Error codes, positions and velocities at DAYS from the epoch; any NaN equals any other."""
    epoch = np.full(len(DAYS), satrec.jdsatepoch)
    error, r_km, v_km_s = satrec.sgp4_array(epoch, satrec.jdsatepochF + DAYS)
    return error.tobytes(), r_km.tobytes(), v_km_s.tobytes()


def copied(columns: ElementColumns) -> list[Satrec]:
    """Records made only from names, types and bytes, as another process makes them."""
    sent = {name: (str(array.dtype), array.tobytes()) for name, array in columns.arrays().items()}
    return ElementColumns.from_arrays({name: np.frombuffer(raw, kind) for name, (kind, raw) in sent.items()}).satrecs()


def differing(element_sets: Sequence[ElementSet]) -> list[int]:
    """Numbers of the objects whose copied record differs."""
    return [
        element_set.catalog_number
        for element_set, copy in zip(element_sets, copied(ElementColumns.of(element_sets)), strict=True)
        if bits(element_set.satrec) != bits(copy) or element_set.satrec.gsto != copy.gsto
    ]


def two_lines_of(element_sets: Iterable[ElementSet]) -> list[tuple[str, str]]:
    """Two-line sets of the objects whose number fits."""
    return [export_tle(e.satrec) for e in element_sets if 0 < e.satrec.satnum < 100_000]


def test_the_real_catalogue_is_copied_to_the_bit() -> None:
    """All 14,683 active objects propagate the same from five days before to thirty days after their epoch."""
    element_sets = read_catalog(data("catalog/celestrak_active_2026-03.csv")).element_sets
    assert differing(element_sets) == []


@pytest.mark.parametrize("name", ["cosmos-2251-debris", "iridium-33-debris", "stations"])
def test_real_debris_is_copied_to_the_bit(name: str) -> None:
    """The same holds for element sets from JSON."""
    assert differing(read_catalog(data(f"catalog/celestrak_{name}_gp.json")).element_sets) == []


def test_two_line_sets_are_copied_to_the_bit() -> None:
    """Real deep-space objects as two lines, for which sgp4 stores another epoch than it starts from."""
    element_sets = read_catalog(data("catalog/celestrak_active_2026-03.csv")).element_sets
    lines = two_lines_of(e for e in element_sets if e.satrec.method == "d")
    read = parse_catalog("\n".join(itertools.chain(*lines)), file="x").element_sets
    assert len(read) == len(lines) > 700
    assert differing(read) == []
    assert all(isinstance(element_set.sgp4_epoch_days, float) for element_set in read)
    # The epoch that sgp4 stores is not enough.
    kept = [s.jdsatepoch - 2433281.5 + s.jdsatepochF for s in (e.satrec for e in read)]
    assert sum(e.sgp4_epoch_days != days for e, days in zip(read, kept, strict=True)) > 500


@pytest.mark.parametrize("known", [True, False])
def test_the_verification_set_is_copied_to_the_bit(*, known: bool) -> None:
    """All of SGP4-VER.TLE, with its errors, whether the epoch is known from the reader or has to be derived."""
    satrecs = [Satrec.twoline2rv(*lines) for lines in VERIFICATION_LINES]
    element_sets = [
        ElementSet(satrec.satnum, "", satrec, tle_epoch_days(satrec) if known else None) for satrec in satrecs
    ]
    assert len(element_sets) == 33
    assert {satrec.method for satrec in satrecs} == {"n", "d"}
    assert any(np.frombuffer(bits(satrec)[0], np.uint8).any() for satrec in satrecs)
    assert differing(element_sets) == []


def test_a_generated_catalogue_is_copied_to_the_bit() -> None:
    """Objects whose epoch was given to sgp4init directly, with a known epoch or without."""
    element_sets = synthetic_catalog(objects=300, epoch_ns=1_790_000_000_123_456_789)
    assert differing(element_sets) == []
    assert differing([ElementSet(e.catalog_number, e.name, e.satrec) for e in element_sets]) == []


def test_an_omm_equals_sgp4s_own_record() -> None:
    """Every object of the real catalogue equals that of sgp4.omm.initialize, to the bit and in every element."""
    path = data("catalog/celestrak_active_2026-03.csv")
    element_sets = iter(read_catalog(path).element_sets)
    attributes: tuple[str, ...] = (
        "jdsatepoch",
        "jdsatepochF",
        "bstar",
        "ndot",
        "nddot",
        "ecco",
        "argpo",
        "inclo",
        "mo",
        "no_kozai",
    )
    attributes += ("nodeo", "gsto", "method", "intldesg", "elnum", "revnum", "epochyr", "epochdays", "classification")
    with path.open() as file:
        for row in omm.parse_csv(file):
            ours, theirs = next(element_sets).satrec, Satrec()
            number = int(row["NORAD_CAT_ID"])
            omm.initialize(theirs, row | {"NORAD_CAT_ID": number if number <= 339_999 else 0})
            assert [getattr(ours, name) for name in attributes] == [getattr(theirs, name) for name in attributes]
            assert bits(ours) == bits(theirs)
    assert next(element_sets, None) is None


def test_numbers_epochs_and_kinds_of_orbit_are_columns() -> None:
    """Nine-digit numbers, epochs in UTC nanoseconds and SGP4's two kinds of orbit are in the order of the objects."""
    rows = [{**OMM, "NORAD_CAT_ID": 799_500_123}, {**OMM, "NORAD_CAT_ID": 339_999, "MEAN_MOTION": 1.0027}]
    columns = ElementColumns.of([ElementSet.from_omm(row) for row in rows] + [ElementSet.from_tle(LINE1, LINE2)])
    assert len(columns) == 3
    assert columns.catalog_number.tolist() == [799_500_123, 339_999, 25544]
    assert columns.near_earth.tolist() == [True, False, True]
    # 2008-09-20T12:25:40.104192Z
    assert (columns.epoch_ns - 1_221_913_540_104_192_000).tolist() == pytest.approx([0, 0, 0], abs=1_000)
    assert [satrec.satnum for satrec in columns.satrecs()] == [0, 339_999, 25544]
    noon = ElementColumns.of(synthetic_catalog(objects=2, epoch_ns=20_000 * NS_PER_DAY + NS_PER_DAY // 2))
    assert noon.epoch_ns.tolist() == [20_000 * NS_PER_DAY + NS_PER_DAY // 2] * 2


def test_an_empty_catalogue_has_empty_columns() -> None:
    """They can be copied, too."""
    columns = ElementColumns.of([])
    assert (len(columns), columns.epoch_ns.shape, copied(columns)) == (0, (0,), [])


def test_columns_are_read_only() -> None:
    """The arrays that they were made from stay writable."""
    arrays = ElementColumns.of([ElementSet.from_tle(LINE1, LINE2)]).arrays()
    own = {name: array.copy() for name, array in arrays.items()}
    columns = ElementColumns.from_arrays(own)
    with pytest.raises(ValueError, match="read-only"):
        columns.bstar[0] = 1.0
    own["bstar"][0] = 1.0
    assert list(own) == [field.name for field in fields(ElementColumns)]


def test_invalid_columns_are_rejected_with_every_problem() -> None:
    """Missing or other names, lengths and types raise ValueError with the expected and the actual ones."""
    arrays = ElementColumns.of([ElementSet.from_tle(LINE1, LINE2)] * 2).arrays()
    with pytest.raises(
        ValueError, match=r"^ElementColumns: expected the columns \['catalog_number', .*got \['bstar'\]$"
    ):
        ElementColumns.from_arrays({"bstar": arrays["bstar"]})
    wrong: dict[str, npt.NDArray[np.generic]] = {
        "ecco": np.zeros(3),
        "near_earth": np.zeros(2),
        "mo": np.zeros(2, np.float32),
    }
    with pytest.raises(ValueError, match=r".") as raised:
        ElementColumns.from_arrays({**arrays, **wrong})
    assert str(raised.value) == (
        "ElementColumns: ecco must be (2,) of float64, got (3,) of float64; "
        "mo must be (2,) of float64, got (2,) of float32; near_earth must be (2,) of bool, got (2,) of float64"
    )


@pytest.mark.parametrize(("gravity", "mode"), [(WGS84, "i"), (WGS72OLD, "i"), (WGS72, "a")])
def test_records_of_another_model_are_rejected(gravity: int, mode: str) -> None:
    """Their copy would be another orbit."""
    satrec = Satrec()
    satrec.sgp4init(gravity, mode, 5, 27000.0, 0.0, 0.0, 0.0, 0.001, 0.0, 1.0, 0.0, 0.06, 0.0)
    with pytest.raises(
        ValueError, match=r"^object 5: expected WGS-72 in mode 'i', got mu \d+\.\d+ km3/s2 in mode '[ai]'$"
    ):
        ElementColumns.of([ElementSet(5, "", satrec)])
