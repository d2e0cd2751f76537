"""Classes of orbits: known satellites, and the limits of the classes."""

from __future__ import annotations

import pytest

from sda_ops.catalog.reader import parse_catalog
from sda_ops.screening.assessment.orbit_classes import OrbitClass, orbit_classes
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.support import SDA_DATA_DIR
from tests.sda_ops.screening.orbits import Orbit, screened

ACTIVE = SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv"
BEGINNINGS = (
    *("NAVSTAR ", "GSAT0", "BEIDOU-", "ISS (", "ONEWEB-", "IRIDIUM ", "SENTINEL-1", "LANDSAT", "METOP", "INTELSAT "),
    *("TDRS ", "XMM-NEWTON", "THEMIS ", "MERIDIAN"),
)


def test_known_satellites_have_their_classes() -> None:
    """Every navigation satellite is in a medium orbit or a geosynchronous one, and so on."""
    if not ACTIVE.exists():
        pytest.skip(f"real data absent: no {ACTIVE} (set SDA_DATA_DIR)")
    header, *lines = ACTIVE.read_text(encoding="utf-8").splitlines()
    chosen = [header, *(line for line in lines if line.startswith(BEGINNINGS))]
    objects = ScreenedObjects.of(parse_catalog("\n".join(chosen), file=ACTIVE.name).element_sets)
    by_name = dict(
        zip(objects.names, (OrbitClass(code) for code in orbit_classes(objects.columns).tolist()), strict=True)
    )

    def classes(beginning: str) -> set[OrbitClass]:
        return {orbit_class for name, orbit_class in by_name.items() if name.startswith(beginning)}

    assert classes("NAVSTAR ") == classes("GSAT0") == {OrbitClass.MEO}
    assert classes("BEIDOU-") == {OrbitClass.MEO, OrbitClass.GEO}
    assert classes("ISS (") == classes("ONEWEB-") == classes("IRIDIUM ") == {OrbitClass.LEO}
    assert classes("SENTINEL-1") == classes("LANDSAT") == classes("METOP") == {OrbitClass.SSO}
    assert classes("INTELSAT ") == classes("TDRS ") == {OrbitClass.GEO}
    assert classes("XMM-NEWTON") == classes("THEMIS ") == {OrbitClass.HEO}
    assert OrbitClass.MOLNIYA in classes("MERIDIAN")


@pytest.mark.parametrize(
    ("orbit", "expected"),
    [
        (Orbit(perigee_km=1_950.0), OrbitClass.LEO),
        (Orbit(perigee_km=2_050.0), OrbitClass.MEO),
        (Orbit(perigee_km=700.0, inclination_deg=94.9), OrbitClass.LEO),
        (Orbit(perigee_km=700.0, inclination_deg=98.2), OrbitClass.SSO),
        (Orbit(perigee_km=700.0, inclination_deg=104.1), OrbitClass.LEO),
        (Orbit(perigee_km=700.0, eccentricity=0.3), OrbitClass.LMO),
        (Orbit(perigee_km=300.0, eccentricity=0.73, inclination_deg=28.0), OrbitClass.GTO),
        (Orbit(perigee_km=500.0, eccentricity=0.742, inclination_deg=63.4), OrbitClass.MOLNIYA),
        (Orbit(perigee_km=500.0, eccentricity=0.742, inclination_deg=60.0), OrbitClass.HEO),
        (Orbit(perigee_km=35_786.0, inclination_deg=0.1), OrbitClass.GEO),
        (Orbit(perigee_km=35_786.0, inclination_deg=55.0), OrbitClass.GEO),
        (Orbit(perigee_km=1_000.0, eccentricity=0.8), OrbitClass.HEO),
        (Orbit(perigee_km=60_000.0), OrbitClass.OTHER),
    ],
)
def test_an_orbit_has_the_class_of_its_shape(orbit: Orbit, expected: OrbitClass) -> None:
    assert OrbitClass(orbit_classes(screened([orbit]).columns)[0]) is expected
