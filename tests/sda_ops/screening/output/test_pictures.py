"""Pictures of a conjunction: what they are drawn from, what they name, and the formats."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from orchestrator_adapter import MissingExtra
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import ElementColumns, ElementSet
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.output.pictures import (
    Encounter,
    encounter_plane,
    history_picture,
    pair_distance,
    pair_picture,
)

EPOCH_NS = 961_800_620 * NS_PER_S  # 2000-06-23 22:50:20, near the epoch of both element sets
LINES = (
    (
        "VANGUARD 1",
        "1 00005U 58002B   00179.78495062  .00000023  00000-0  28098-4 0  4753",
        "2 00005  34.2682 348.7242 1859667 331.7664  19.3264 10.82419157413667",
    ),
    (
        "",
        "1 00006U 58002C   00179.78495062  .00000023  00000-0  28098-4 0  475",
        "2 00006  34.2682 348.7242 1859667 331.7664  49.3264 10.8241915741366",
    ),
)

ENCOUNTER = Encounter(
    tca_ns=EPOCH_NS + 1_800 * NS_PER_S,
    relative_position_m=np.array([9.8, 10.2, -3.7]),
    relative_velocity_m_s=np.array([-6.0, -5_554.4, -7_300.5]),
    radius_first_m=1.0,
    radius_second_m=10.0,
    max_probability=0.3343,
    dilution_m=10.1,
    aspect_ratio=2.3,
)


@pytest.fixture
def objects() -> ScreenedObjects:
    return ScreenedObjects.of([ElementSet.from_tle(*lines, name=name) for name, *lines in LINES])


def texts(svg: bytes) -> str:
    """The texts of a picture: matplotlib draws them as outlines, with each text in a comment."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.decode(), re.DOTALL))


def test_the_distance_of_a_pair_has_its_minima_marked(objects: ScreenedObjects) -> None:
    """Two objects of one orbit, 30 degrees of mean anomaly apart, are nearest when their middle is at the apogee: once a
    revolution of 133.04 minutes."""
    curve = pair_distance(objects, 0, 1, start_ns=EPOCH_NS, end_ns=EPOCH_NS + 8 * 3_600 * NS_PER_S)
    assert (np.diff(curve.at_ns) > 0).all()
    assert np.diff(curve.at_ns).max() == 10 * NS_PER_S
    assert len(curve.minima) in {3, 4}
    spacing_s = np.diff(curve.at_ns[curve.minima]) / NS_PER_S
    assert spacing_s == pytest.approx(86_400 / 10.824, abs=30)
    for index in curve.minima.tolist():
        assert curve.at_ns[index + 1] - curve.at_ns[index] <= 1_500_000
        assert curve.distance_m[index] == curve.distance_m[index - 5 : index + 6].min()


def test_the_encounter_plane_is_normal_to_the_relative_velocity_and_its_second_axis_is_up() -> None:
    """Its axes are unit vectors, and with the relative velocity they are right-handed."""
    across, up = encounter_plane(ENCOUNTER)
    along = ENCOUNTER.relative_velocity_m_s / np.linalg.norm(ENCOUNTER.relative_velocity_m_s)
    axes = np.array([across, up, along])
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1.0)
    assert up[0] > 0.999


def test_a_radial_relative_velocity_has_an_encounter_plane_too() -> None:
    """Its second axis is in-track."""
    radial = replace(ENCOUNTER, relative_velocity_m_s=np.array([-900.0, 0.0, 0.0]))
    assert encounter_plane(radial)[1].tolist() == [0.0, 1.0, 0.0]


def test_the_picture_of_a_conjunction_says_what_it_shows(objects: ScreenedObjects) -> None:
    """Objects, time, miss, speed, sizes, error, and the directions of both axes."""
    shown = texts(
        pair_picture(
            objects,
            0,
            1,
            ENCOUNTER,
            start_ns=EPOCH_NS,
            end_ns=EPOCH_NS + 3_600 * NS_PER_S,
            miss_distance_m=5_000.0,
            file_format="svg",
        )
    )
    for text in (
        "VANGUARD 1 (5)   and   object 6",
        "miss distance of the screening: 5.000 km",
        "closest approach: 14.6 m at 2000-06-23 23:20:20.000 UTC",
        "9.173 km/s",
        "disc with the sum of both radii: 1 m + 10 m",
        "(radial +9.8, in-track +10.2, cross-track -3.7 m)",
        "the size with the greatest probability of a collision, 3.34E-01",
        "0.80 in-track − 0.61 cross-track (m)",
        "radial (m)",
        "3σ",
    ):
        assert text in shown


def test_the_picture_of_a_pair_without_a_conjunction_gives_the_smallest_distance(objects: ScreenedObjects) -> None:
    """It says whether that is within the miss distance."""
    window = {"start_ns": EPOCH_NS, "end_ns": EPOCH_NS + 3_600 * NS_PER_S}
    far = texts(pair_picture(objects, 0, 1, None, **window, miss_distance_m=5_000.0, file_format="svg"))
    assert "No approach within 5.000 km in this time. The smallest distance is " in far
    near = texts(pair_picture(objects, 0, 1, None, **window, miss_distance_m=5e7, file_format="svg"))
    assert "The objects move slowly against each other, or were not screened: no encounter plane." in near


def test_docked_objects_have_a_picture(objects: ScreenedObjects) -> None:
    """Their distance is 0 all the time. It is a PNG."""
    columns = ElementColumns.from_arrays(
        {
            name: np.array([200_001, 200_002]) if name == "catalog_number" else column[[0, 0]]
            for name, column in objects.columns.arrays().items()
        }
    )
    docked = ScreenedObjects(columns, ("A", "B"), ("", ""))
    window = {"start_ns": EPOCH_NS, "end_ns": EPOCH_NS + 600 * NS_PER_S}
    png = pair_picture(docked, 0, 1, None, **window, miss_distance_m=5_000.0, file_format="png")
    assert png.startswith(b"\x89PNG")
    shown = texts(pair_picture(docked, 0, 1, None, **window, miss_distance_m=5_000.0, file_format="svg"))
    assert "its minima" not in shown, "it has none"
    assert "mathdefault" not in shown, "the axis is linear"


def test_the_history_of_an_event_shows_every_estimate_and_the_closest_approach() -> None:
    """The last estimate has its value beside it. The same picture is the same file."""

    def drawn() -> bytes:
        return history_picture(
            title="A and B",
            estimated_ns=EPOCH_NS + np.array([0, 8, 16]) * 3_600 * NS_PER_S,
            miss_m=np.array([900.0, 2_000.0, 1_219.0]),
            max_probability=np.array([2e-5, 5e-6, 1.35e-5]),
            tca_ns=EPOCH_NS + 24 * 3_600 * NS_PER_S,
        )

    svg = drawn()
    assert svg == drawn()
    shown = texts(svg)
    for text in (
        "A and B",
        "1.219 km",
        "1.35E-05",
        "closest approach 2000-06-24 22:50:20",
        "time of the estimate (UTC)",
    ):
        assert text in shown


def test_estimates_that_hardly_differ_are_a_level_line() -> None:
    """The axis of the probability spans more than a decade, and has each label once."""
    svg = history_picture(
        title="A and B",
        estimated_ns=EPOCH_NS + np.array([0, 8]) * 3_600 * NS_PER_S,
        miss_m=np.array([10_932.0, 10_932.1]),
        max_probability=np.array([1.0e-6, 1.0e-6 * (1.0 - 1e-7)]),
        tca_ns=EPOCH_NS + 24 * 3_600 * NS_PER_S,
    )
    labels = [line for line in texts(svg).split("\n") if "10" in line and "mathdefault" in line]
    assert "10^{-6}" in "".join(labels)
    assert len(labels) == len(set(labels))


def test_without_matplotlib_the_message_says_what_to_install(
    objects: ScreenedObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the extra."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sda-stream-orchestrator\[plot\]'"):
        pair_picture(
            objects,
            0,
            1,
            None,
            start_ns=EPOCH_NS,
            end_ns=EPOCH_NS + NS_PER_S * 60,
            miss_distance_m=1.0,
            file_format="svg",
        )
