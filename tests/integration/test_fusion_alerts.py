"""The whole of ``sda-fusion`` in one process, over real sockets: from an observation to a subscriber's table."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flows.settings.fusion import FusionSettings
from flows.topologies.fusion import fusion_pipeline
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.process import ExitCode
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.subscriber.table import SubscriberTable
from sda_ops.astro.time import julian_date
from sda_ops.catalog import ElementSet
from sda_ops.catalog.synthetic import synthetic_catalog
from sda_ops.simulate.catalog_file import omm_json
from sda_ops.simulate.staged import StagedPassage, StagingPlan, stage
from sda_ops.wire import isl
from tests.helpers.faulty_subscriber import FaultySubscriber
from tests.helpers.fusion import FusionPlace, conducted
from tests.helpers.running import counter, eventually

OBJECTS = 60
SATELLITE = 7


def staged_catalog(place: FusionPlace) -> tuple[dict[int, ElementSet], StagedPassage]:
    """Write a small catalogue in which two objects come near each other within the hour."""
    now_ns = time.time_ns()
    known = synthetic_catalog(objects=OBJECTS, epoch_ns=now_ns)
    plan = StagingPlan(conjunctions=1, near_misses=0, first_after_s=1_500.0, last_after_s=2_500.0)
    staged, (passage,) = stage(known, plan, start_ns=now_ns, rng=np.random.default_rng(1))
    place.catalog.write_bytes(omm_json([*known, *staged]))
    return {each.catalog_number: each for each in (*known, *staged)}, passage


def settings_at(place: FusionPlace, subscriber: dict[str, Any]) -> FusionSettings:
    return FusionSettings.model_validate(
        place.settings(
            screening={
                "directory": str(place.folder / "screening"),
                "horizon_s": 3_600.0,
                "window_s": 3_600.0,
                "advanced": {"broad_phase": "scipy", "engine": "sgp4"},
            },
            alerts={"directory": str(place.folder / "alerts"), "subscribers": [subscriber]},
        )
    )


def beacon(element_set: ElementSet, sequence: int) -> bytes:
    """A message of a satellite that is where its element set says."""
    now_ns = time.time_ns()
    days, fraction = julian_date(np.array([now_ns]))
    error, r_km, v_km_s = element_set.satrec.sgp4(float(days[0]), float(fraction[0]))
    assert error == 0
    return isl.encode(
        satellite_id=SATELLITE,
        sequence=sequence,
        timestamp_ns=now_ns,
        position_m=tuple(1_000.0 * each for each in r_km),
        velocity_m_s=tuple(1_000.0 * each for each in v_km_s),
        sigma_position_m=10.0,
        sigma_velocity_m_s=0.1,
    )


def test_an_observed_conjunction_becomes_one_alert_at_a_subscriber_and_the_ledger_is_exact(tmp_path: Path) -> None:
    """The subscriber wants observed conjunctions only: it is notified of the staged one with its first observation, and never again."""
    place = FusionPlace.free(tmp_path, radars=1, archives=1, isls=1)
    element_sets, passage = staged_catalog(place)
    table = SubscriberTable(tmp_path / "subscriber.sqlite")

    async def observed(subscriber: FaultySubscriber, graph: BuiltGraph) -> None:
        await eventually(lambda: counter(graph, "screened", "risk"), "the conjunction is stated")
        await eventually(lambda: counter(graph, "port", "isl-01"), "the ring's listener")
        assert not table.keys()
        _, writer = await asyncio.open_connection("127.0.0.1", place.isls[0])
        writer.write(beacon(element_sets[passage.staged], 1))
        await writer.drain()
        await eventually(table.keys, "the alert")
        writer.write(beacon(element_sets[passage.staged], 2))
        await writer.drain()
        await eventually(lambda: counter(graph, "rows", "correlations") == 2, "the second observation in the audit")
        writer.close()
        await writer.wait_closed()
        assert [each.behaviour for each in subscriber.requests] == ["ok"]

    async def run() -> Any:
        async with FaultySubscriber(table) as subscriber:
            settings = settings_at(place, {"name": "ops", "url": subscriber.url, "min_observations": 1})
            return await conducted(fusion_pipeline(settings), partial(observed, subscriber))

    outcome = asyncio.run(run())
    assert (outcome.exit_code, outcome.problems) == (ExitCode.OK, ())
    figures = outcome.event.figures
    assert figures.ledger_holds
    assert (figures.ledger.dead_lettered, figures.ledger.shed, figures.ledger.in_flight) == (0, 0, 0)

    (key,) = table.keys()
    assert table.deliveries() == 1
    (body,) = (json.loads(each) for each in table.bodies())
    assert (body["id"], body["revision"]) == (str(key[0]), key[1])
    assert (body["status"], body["cause"]) == ("provisional", "observed")
    assert tuple(each["catalog_number"] for each in body["objects"]) == passage.numbers
    (seen,) = (each["observations"] for each in body["objects"] if each["catalog_number"] == passage.staged)
    assert (seen["count"], seen["sensors"]) == (1, [f"isl-{SATELLITE}"])
    assert seen["ids"][0] in place.correlated()
    assert abs(body["conjunction"]["miss_distance_m"] - passage.miss_m) < 5.0
    tca = datetime.fromisoformat(body["conjunction"]["tca"][:26] + "+00:00")
    assert abs((tca - datetime.fromtimestamp(passage.tca_timestamp / 1e9, UTC)).total_seconds()) < 0.1

    outbox = AlertOutbox(place.folder / "alerts" / "alerts.sqlite")
    outbox.open(time.time_ns())
    assert outbox.alerted(time.time_ns()) == {key[0]}
    assert outbox.depth() == {}
    outbox.close()
    table.close()
