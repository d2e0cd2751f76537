"""A run's artifacts on a fake server: how many there are, and what happens in an outage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from orchestrator_adapter import OperatorGraph, source_of
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.prefect_flow.reporting import artifacts
from orchestrator_adapter.prefect_flow.reporting.artifact_publisher import ArtifactPublisher
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryOk
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.figures import BALANCED, all_ok
from tests.helpers.prefect_fakes import IDENTITY, FakePrefect, answered

OUTCOME = RunOutcome(all_ok(), ExitCode.OK, ())


class Scene:
    def __init__(self) -> None:
        self.prefect = FakePrefect()
        self.graph: OperatorGraph = chain(source_of([]), CollectSink())
        self.publisher = ArtifactPublisher(IDENTITY, self.graph)
        self.status = self.graph.build().status()

    def view(self, *, reason: str | None = None, written: int = 10) -> View:
        ledger = replace(BALANCED, written=written, in_flight=7 - written)
        status = replace(self.status, shutting_down=reason, ledger=ledger)
        return View(status, 0.0, silent_s=0.0, threshold_s=0.5, lag_s=0.0, stalls=0, blocked_by="")

    def artifacts(self) -> Mapping[str, object]:
        return {artifact.key or "": artifact.data for artifact in self.prefect.artifacts.values()}


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_run_of_any_length_has_four_artifacts(scene: Scene) -> None:
    """Topology and report are created once; status and progress are updated in place."""
    for written in range(1, 6):
        view = scene.view(written=written)
        assert isinstance(await scene.publisher.refresh(scene.prefect.client, view), RetryOk)
        assert scene.artifacts() == {
            "radar-net-topology": artifacts.topology(scene.graph),
            "radar-net-status": artifacts.status(view),
            "radar-net-settled": artifacts.settled_percent(view.status.ledger),
        }
    assert isinstance(await scene.publisher.report(scene.prefect.client, OUTCOME), RetryOk)
    assert scene.artifacts()["radar-net-report"] == artifacts.report(OUTCOME)
    assert scene.artifacts()["radar-net-settled"] == 100.0
    assert len(scene.prefect.artifacts) == 4
    assert scene.prefect.calls.count("update_artifact radar-net-topology") == 0
    assert scene.prefect.calls.count("update_artifact radar-net-status") == 4


async def test_an_artifact_has_its_kind_description_and_flow_run(scene: Scene) -> None:
    """The description of the progress has its figures, also after an update."""
    await scene.publisher.refresh(scene.prefect.client, scene.view(written=2))
    await scene.publisher.report(scene.prefect.client, OUTCOME)
    found = {made.key: (made.type, made.description) for made in scene.prefect.artifacts.values()}
    assert found == {
        "radar-net-topology": ("markdown", "operators and channels"),
        "radar-net-status": ("markdown", "live, renewed in place"),
        "radar-net-settled": ("progress", artifacts.settled_text(BALANCED)),
        "radar-net-report": ("markdown", "how the run ended"),
    }
    assert {made.flow_run_id for made in scene.prefect.artifacts.values()} == {IDENTITY.flow_run_id}


@pytest.mark.parametrize("answered_calls", [0, 1, 2])
async def test_an_outage_ends_the_round_and_the_next_round_completes_it(answered_calls: int, scene: Scene) -> None:
    """An artifact that was created is not created again; the others are."""
    scene.prefect.unreachable_after = answered_calls
    assert isinstance(await scene.publisher.refresh(scene.prefect.client, scene.view()), Retry)
    assert len(scene.prefect.calls) == answered_calls + 1
    scene.prefect.unreachable, scene.prefect.unreachable_after = False, None
    assert isinstance(await scene.publisher.refresh(scene.prefect.client, scene.view()), RetryOk)
    assert len(scene.prefect.artifacts) == len(scene.artifacts()) == 3


async def test_a_rejected_artifact_ends_the_round_and_is_tried_again(scene: Scene) -> None:
    """It does not count as published."""
    scene.prefect.raises["create_artifact radar-net-topology"] = answered(422)
    for _ in range(2):
        assert isinstance(await scene.publisher.refresh(scene.prefect.client, scene.view()), Permanent)
    assert scene.prefect.calls == 2 * ["create_artifact radar-net-topology"]


async def test_a_run_that_ends_before_the_first_round_has_only_a_report(scene: Scene) -> None:
    """There is no progress artifact to update."""
    assert isinstance(await scene.publisher.report(scene.prefect.client, OUTCOME), RetryOk)
    assert list(scene.artifacts()) == ["radar-net-report"]


async def test_a_failed_report_does_not_update_the_progress(scene: Scene) -> None:
    """The answer to the report is returned."""
    await scene.publisher.refresh(scene.prefect.client, scene.view(written=2))
    scene.prefect.unreachable = True
    assert isinstance(await scene.publisher.report(scene.prefect.client, OUTCOME), Retry)
    assert scene.artifacts()["radar-net-settled"] == 50.0


async def test_a_character_that_cannot_be_stored_is_replaced(scene: Scene) -> None:
    """The rest of a long page is unchanged."""
    long = 120_000 * "x"
    await scene.publisher.refresh(scene.prefect.client, scene.view(reason=f"\udcff{long}"))
    text = str(scene.artifacts()["radar-net-status"])
    text.encode()
    assert text.startswith(f"**draining: \N{REPLACEMENT CHARACTER}{long}**")
