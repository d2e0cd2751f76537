"""CelesTrak's SOCRATES: its 20 conjunctions of the highest probability, from the element sets that it used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import pytest

from sda_ops.catalog.reader import read_catalog
from sda_ops.screening.geometry.screen import ScreeningOptions, screen_window
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.support import SDA_DATA_DIR

FOLDER = SDA_DATA_DIR / "socrates_2026-03-09"
LIST = FOLDER / "socrates_top20_maxProb.json"

pytestmark = pytest.mark.skipif(not LIST.is_file(), reason=f"real data absent: no {LIST} (set SDA_DATA_DIR)")

HALF_WINDOW_NS = 600_000_000_000


@dataclass(frozen=True, slots=True)
class Conjunction:
    """A row of SOCRATES, as printed."""

    objects: ScreenedObjects
    tca_ns: int
    range_km: float
    speed_km_s: float
    max_probability: float


@cache
def conjunctions() -> tuple[Conjunction, ...]:
    rows = json.loads(LIST.read_text())["conjunctions"]
    return tuple(
        Conjunction(
            # Of the same element sets as TLEs, a line in five files has one character too many.
            ScreenedObjects.of(read_catalog((FOLDER / "pairs_gp" / row["gp_file"]).with_suffix(".csv")).element_sets),
            _ns(row["tca"]),
            row["min_range_km"],
            row["rel_speed_kms"],
            row["max_prob"],
        )
        for row in rows
    )


def _ns(text: str) -> int:
    return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000) * 1_000_000


def test_each_conjunction_is_found_at_the_printed_time_range_and_speed() -> None:
    assert len(conjunctions()) == 20
    options = ScreeningOptions(broad_phase="scipy", engine="sgp4")
    for each in conjunctions():
        window = (each.tca_ns - HALF_WINDOW_NS, each.tca_ns + HALF_WINDOW_NS)
        found = screen_window(each.objects, *window, 5e3, options).approaches
        assert len(found) == 1
        assert abs(int(found.tca_ns[0]) - each.tca_ns) <= 1_000_000, "one millisecond, as printed"
        assert abs(float(found.miss_m[0]) - each.range_km * 1e3) <= 1.0, "one metre, as printed"
        assert round(float(found.relative_speed_m_s[0]) / 1e3, 3) == each.speed_km_s
