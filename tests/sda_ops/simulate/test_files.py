"""Files that a simulation writes: catalogues and tracks; and bounds of its settings."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sgp4.api import SatrecArray

from sda_ops.astro.propagation import sgp4_states
from sda_ops.astro.sites import Site
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import ElementColumns, ElementSet, synthetic_catalog
from sda_ops.catalog.reader import parse_catalog
from sda_ops.records.observation import RadarTarget
from sda_ops.simulate.catalog_file import omm_json, usable_element_sets
from sda_ops.simulate.config import ConfigurationError, Endpoint, Noise, SimulatorConfig
from sda_ops.simulate.places import RADAR_SITES
from sda_ops.simulate.tracks import track_tdm
from sda_ops.simulate.world import World
from sda_ops.wire import tdm

NOON_NS = 1_773_230_400 * NS_PER_S + 123_456_789
CATALOG = synthetic_catalog(objects=300, epoch_ns=NOON_NS)


def test_a_written_catalogue_has_the_orbits_of_the_generated_one() -> None:
    """Within 1 cm after a day: only the epoch's microseconds are rounded."""
    back = parse_catalog(omm_json(CATALOG).decode(), file="catalog.json")
    assert back.problems == ()
    assert [each.catalog_number for each in back.element_sets] == [each.catalog_number for each in CATALOG]
    assert [each.name for each in back.element_sets] == [each.name for each in CATALOG]
    tomorrow = np.array([NOON_NS + 86_400 * NS_PER_S])
    ours, theirs = (
        sgp4_states(SatrecArray([each.satrec for each in sets]), tomorrow) for sets in (CATALOG, back.element_sets)
    )
    one_cm = 0.01
    assert np.array_equal(ours.error, theirs.error)
    assert np.nanmax(np.linalg.norm(ours.r_teme_m - theirs.r_teme_m, axis=-1)) < one_cm


def test_a_catalogue_that_is_read_and_written_again_has_the_same_elements() -> None:
    """To the bit, of 2,000 objects: otherwise the pipeline would screen some of them again."""

    def read_again(element_sets: Sequence[ElementSet]) -> tuple[ElementSet, ...]:
        return parse_catalog(omm_json(element_sets).decode(), file="catalog.json").element_sets

    first = read_again(synthetic_catalog(objects=2_000, epoch_ns=NOON_NS))
    before, after = (ElementColumns.of(each).arrays() for each in (first, read_again(first)))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_epoch_that_rounds_up_to_the_next_second_is_valid() -> None:
    """999,999,600 ns are not written as 1,000,000 microseconds."""
    just_before = NOON_NS // NS_PER_S * NS_PER_S + 999_999_600
    (back,) = parse_catalog(
        omm_json(synthetic_catalog(objects=1, epoch_ns=just_before)).decode(), file="x"
    ).element_sets
    assert back.satrec.jdsatepochF == pytest.approx(
        (just_before % (86_400 * NS_PER_S)) / (86_400 * NS_PER_S), abs=1e-10
    )


def test_a_track_decodes_to_plausible_radar_observations() -> None:
    """Ten a second, with the site's name, above the horizon and within range."""
    world = World(CATALOG)
    site = Site.from_degrees("anywhere", latitude_deg=48.0, longitude_deg=11.0, height_m=500.0)
    text = track_tdm(
        world, site=site, participant="ANYWHERE", start_ns=NOON_NS, seconds=3.0, rate_hz=10.0, noise=Noise(), seed=1
    )
    observations, malformed = tdm.decode(text.encode(), tdm.TdmConventions(), ingest_timestamp=0)
    assert malformed == []
    assert [each.sensor_timestamp for each in observations] == [NOON_NS + n * NS_PER_S // 10 for n in range(30)]
    assert {each.source_id for each in observations} == {"tdm-ANYWHERE"}
    for each in observations:
        target = each.target
        assert isinstance(target, RadarTarget)
        assert target.azimuth_rad is not None
        assert target.elevation_rad is not None
        assert target.elevation_rad > np.deg2rad(9.0)
        assert 3e5 < target.range_m < 5.1e6


def test_a_track_without_visible_objects_is_a_message_without_data() -> None:
    """This is not an error."""
    world = World(CATALOG[:1])
    texts = [
        track_tdm(world, site=site, participant="A", start_ns=NOON_NS, seconds=0.5, rate_hz=2.0, noise=Noise(), seed=0)
        for site in RADAR_SITES
    ]
    assert any("DATA_START\nDATA_STOP" in text for text in texts)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"archives": ()}, "archives must be 1 to 4"),
        ({"archives": tuple(Endpoint("h", n) for n in range(5))}, "archives must be 1 to 4"),
        ({"isl_targets": ()}, "isl_targets must name at least one target"),
        (
            {"isl_targets": (Endpoint("h", 1), Endpoint("h", 2)), "isl_connections": 4, "isl_satellites": 7},
            "isl_connections of all 2 rings must be <= isl_satellites, got 4 each and 7",
        ),
    ],
)
def test_archives_and_rings_need_telescopes_and_satellites(settings: dict[str, object], problem: str) -> None:
    """Each archive needs a telescope, each connection a satellite."""
    with pytest.raises(ConfigurationError, match=problem):
        SimulatorConfig(**settings)  # type: ignore[arg-type] # by name, from the table above
    SimulatorConfig(**{**settings, "optical_rate_hz": 0.0, "isl_rate_hz": 0.0, "isl_connections": 1})  # type: ignore[arg-type] # as above


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"<!DOCTYPE html>\n<html><head><title>503</title></head>\n<body>Try later</body></html>\n",
            "HTML: '503 Try later'",
        ),
        (b"<html>\n<body>503</body></html>\n", "got a page in HTML: '503'"),
        (b"No GP data found\n", "got 'No GP data found'"),
        (b"", "got an empty file"),
        (b"[]", "expected at least one usable row, got none (it has no row)"),
        (b"{}", "expected at least one usable row, got none (1 bad, the first: "),
        (gzip.compress(b"No GP data found\n"), "got 'No GP data found'"),
        (gzip.compress(omm_json(CATALOG[:2]))[:-9], "the gzip file is truncated"),
        (b"\x1f\x8bnot gzip", "the gzip file is invalid: "),
        (b"\x89PNG\r\n\x1a\n\x00", "got "),
    ],
    ids=[
        "page",
        "page without a doctype",
        "answer",
        "empty",
        "no row",
        "bad row",
        "gzip of an answer",
        "cut gzip",
        "bad gzip",
        "picture",
    ],
)
def test_a_file_that_is_no_catalogue_is_one_problem_with_its_first_line(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    """The problem names the file."""
    file = tmp_path / "catalog.json"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        usable_element_sets(file, at_ns=0)
    (problem,) = raised.value.problems
    assert problem.startswith("catalog: ")
    assert str(file) in problem
    assert reason in problem
    assert "\n" not in problem


def test_a_catalogue_that_cannot_be_read_is_one_problem_with_its_path(tmp_path: Path) -> None:
    """Such as a folder; the reason is the system's."""
    with pytest.raises(ConfigurationError) as raised:
        usable_element_sets(tmp_path, at_ns=0)
    assert raised.value.problems == (f"catalog: {tmp_path}: Is a directory",)


def test_a_catalogue_compressed_by_gzip_is_read(tmp_path: Path) -> None:
    """By its content; the name says nothing."""
    file = tmp_path / "catalog.json"
    file.write_bytes(gzip.compress(omm_json(CATALOG[:2])))
    assert len(usable_element_sets(file, at_ns=0)) == 2
