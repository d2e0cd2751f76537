"""Correlations of made-up observations, for windows and ``fuse``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from sda_ops.astro.time import NS_PER_S
from sda_ops.records.correlation import Association, Correlation, CrossSensorUpdate, Residuals
from tests.helpers.running import NOON_NS


def correlation(
    number: int,
    source_id: str = "radar-1",
    *,
    observation: int = 1,
    at_s: float = 0.0,
    association: Association = "correlated",
    ingested_ns: int = NOON_NS,
) -> Correlation:
    """A correlation; if it is correlated, with the object ``number``. ``at_s``: event time after noon."""
    undecided = association in {"uct", "unpredicted"}
    return Correlation(
        UUID(int=observation),
        source_id,
        "radar",
        NOON_NS + round(at_s * NS_PER_S),
        ingested_ns,
        NOON_NS,
        association,
        catalog_number=number if association == "correlated" else None,
        candidates=() if undecided else (number,),
        residuals=None if undecided else Residuals(range_m=float(observation)),
    )


def effective_updates(items: Sequence[Any]) -> dict[UUID, CrossSensorUpdate]:
    """The updates that were inserted and not retracted, by id, in any order."""
    updates = [item for item in items if isinstance(item, CrossSensorUpdate)]
    retracted = {update.update_id for update in updates if update.retracted}
    inserted = {update.update_id: update for update in updates if not update.retracted}
    assert retracted <= set(inserted), "a retraction without its insertion"
    assert len(updates) == len(retracted) + len(inserted), "an update that came twice"
    return {each: update for each, update in inserted.items() if each not in retracted}


@dataclass(frozen=True, slots=True)
class Feed:
    """One source: its items reach the pipeline at most ``lateness_s`` after their event time."""

    source_id: str
    lateness_s: float


FEEDS = (Feed("radar-1", 0.1), Feed("optical-1", 30.0), Feed("isl-1", 10.0))
"""With the lateness of each kind of sensor."""


def observed(rng: Random, *, events: int, objects: int, seconds: float) -> list[Correlation]:
    """So many correlations of the three feeds, at random times, in order of event time. Some have the same time."""
    times_ms = sorted(rng.randrange(round(seconds * 1_000)) for _ in range(events))
    return [
        correlation(rng.randrange(objects), rng.choice(FEEDS).source_id, observation=number + 1, at_s=each / 1_000)
        for number, each in enumerate(times_ms)
    ]


def arriving(
    rng: Random, events: Sequence[Correlation], *, slower: float = 1.0
) -> dict[Feed, list[tuple[float, Correlation]]]:
    """For each feed its items with the time of their arrival, seconds after noon, in that order.

    With ``slower`` they are delayed by so many times the lateness at most.
    """
    return {
        feed: sorted(
            (
                ((each.sensor_timestamp - NOON_NS) / NS_PER_S + rng.uniform(0.0, slower * feed.lateness_s), each)
                for each in events
                if each.source_id == feed.source_id
            ),
            key=lambda arrival: arrival[0],
        )
        for feed in FEEDS
    }
