"""Counts of conjunctions by orbit class, fleet, distance and relative speed."""

from __future__ import annotations

import numpy as np

from sda_ops.screening.output.summary import most_probable_first, summarise
from tests.sda_ops.screening.found import conjunctions


def test_each_conjunction_is_in_one_group_of_each_kind() -> None:
    """The classes and fleets of a pair have no order; groups without conjunctions are left out."""
    summary = summarise(conjunctions())
    assert summary.total is not None
    assert (summary.total.count, summary.total.smallest_m, summary.total.max_probability) == (3, 14.4, 1.0)
    assert [(group.label, group.count, group.smallest_m) for group in summary.by_class] == [
        ("LEO / SSO", 2, 120.0),
        ("LEO / LEO", 1, 14.4),
    ]
    assert {group.label: group.count for group in summary.by_fleet} == {
        "no fleet / no fleet": 1,
        "no fleet / Starlink": 1,
        "Starlink / Starlink": 1,
    }
    assert [(group.label, group.count) for group in summary.by_distance] == [
        ("below 100 m", 1),
        ("100 m to 200 m", 1),
        ("2 km to 5 km", 1),
    ]
    assert [(group.label, group.max_probability) for group in summary.by_speed] == [
        ("below 100 m/s", 2.5e-7),
        ("5 km/s to 10 km/s", 0.33432),
        ("14 km/s and more", 1.0),
    ]


def test_a_part_of_the_conjunctions_can_be_summarised() -> None:
    """Also an empty one."""
    assert [group.count for group in summarise(conjunctions(), np.array([2])).by_fleet] == [1]
    assert summarise(conjunctions(), np.array([], dtype=np.intp)).total is None


def test_the_most_probable_conjunction_is_the_first() -> None:
    """Of those that are chosen."""
    assert most_probable_first(conjunctions()).tolist() == [1, 0, 2]
    assert most_probable_first(conjunctions(), np.array([True, False, True])).tolist() == [0, 2]
