"""Fleets by name, as the catalogue writes names."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from sda_ops.catalog.reader import read_catalog
from sda_ops.screening.assessment.fleets import FLEETS, NO_FLEET, Fleet, Fleets
from tests.helpers.support import SDA_DATA_DIR

ACTIVE = SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv"
IRIDIUM_33 = SDA_DATA_DIR / "catalog/celestrak_iridium-33-debris_gp.json"


def fleet_of(name: str, fleets: Fleets | None = None, number: int = 1) -> str | None:
    fleets = fleets or Fleets()
    (index,) = fleets.of([number], [name])
    return None if index == NO_FLEET else fleets.names[index]


@pytest.mark.parametrize(
    ("name", "fleet"),
    [
        ("STARLINK-36853", "Starlink"),
        ("STARLINK-11566 [DTC]", "Starlink"),
        ("ONEWEB-0012", "OneWeb"),
        ("KUIPER-00008", "Kuiper"),
        ("HULIANWANG DIGUI-151", "Guowang"),
        ("QIANFAN-1", "Qianfan"),
        ("IRIDIUM 106", "Iridium"),
        ("GLOBALSTAR M069", "Globalstar"),
        ("ORBCOMM FM113", "Orbcomm"),
        ("FLOCK 4Q-16", "Planet"),
        ("SKYSAT-C12", "Planet"),
        ("LEMUR-2-GREENBERG", "Spire"),
        ("O3B MPOWER F4", "O3b"),
        ("NAVSTAR 43 (USA 132)", "GPS"),
        ("GSAT0101 (GALILEO-PFM)", "Galileo"),
        ("BEIDOU-3 M28", "BeiDou"),
        ("HAWK-A", "HawkEye 360"),
        ("starlink-1008", "Starlink"),
        # No members: fragments, rocket bodies, derelict satellites, other satellites with a similar name.
        ("IRIDIUM 33 DEB", None),
        ("IRIDIUM 33", None),
        ("IRIDIUM 914", None),
        ("ORBCOMM FM 16 DEB", None),
        ("STARLINK R/B", None),
        ("BEIDOU-2 AKM", None),
        ("GSAT-10", None),
        ("COSMOS 2251", None),
        ("COSMOS 2456 (730)", None),
        ("SWARM A", None),
        ("TIANQIN 1 (CAS-6)", None),
        ("MY STARLINK-1", None),
        ("", None),
    ],
)
def test_a_name_says_which_fleet_an_object_is_in(name: str, fleet: str | None) -> None:
    assert fleet_of(name) == fleet


def test_every_known_fleet_has_members_in_the_catalogue_and_most_satellites_have_a_fleet() -> None:
    """CelesTrak's active satellites of March 2026: the names of the table are those that occur."""
    if not ACTIVE.exists():
        pytest.skip(f"real data absent: no {ACTIVE} (set SDA_DATA_DIR)")
    with ACTIVE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [row["OBJECT_NAME"] for row in rows]
    fleets = Fleets()
    found = fleets.of([int(row["NORAD_CAT_ID"]) for row in rows], names)
    members = Counter(fleets.names[index] for index in found if index != NO_FLEET)
    assert set(members) == set(fleets.names)
    assert members["Starlink"] == sum(name.startswith("STARLINK-") for name in names) == 9_917
    assert (members["GPS"], members["Galileo"], members["Iridium"], members["OneWeb"]) == (39, 33, 80, 651)
    assert sum(members.values()) > 0.8 * len(names)


def test_no_fragment_of_a_collision_is_in_a_fleet() -> None:
    if not IRIDIUM_33.exists():
        pytest.skip(f"real data absent: no {IRIDIUM_33} (set SDA_DATA_DIR)")
    element_sets = read_catalog(IRIDIUM_33).element_sets
    assert len(element_sets) > 100
    found = Fleets().of([each.catalog_number for each in element_sets], [each.name for each in element_sets])
    assert (found == NO_FLEET).all()


def test_a_failed_satellite_is_excluded_by_its_number() -> None:
    fleets = Fleets((Fleet(name="Example", names=("EXAMPLE-*",), without=frozenset({7})),))
    assert fleet_of("EXAMPLE-1", fleets, 6) == "Example"
    assert fleet_of("EXAMPLE-1", fleets, 7) is None


def test_the_first_fleet_whose_names_fit_wins() -> None:
    fleets = Fleets((Fleet(name="Narrow", names=("STARLINK-1*",)), *FLEETS))
    assert fleet_of("STARLINK-1008", fleets) == "Narrow"
    assert fleet_of("STARLINK-2008", fleets) == "Starlink"


def test_without_fleets_nothing_is_in_one() -> None:
    assert fleet_of("STARLINK-1008", Fleets(())) is None
