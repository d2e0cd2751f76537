"""A run's artifacts on a server that is not there: how many there are, and what happens if it goes away."""

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

    def shown(self) -> Mapping[str, object]:
        return {artifact.key or "": artifact.data for artifact in self.prefect.artifacts.values()}


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_run_leaves_four_artifacts_however_long_it_is(scene: Scene) -> None:
    """Topology and report are written once, status and progress renewed in place."""
    for written in range(1, 6):
        view = scene.view(written=written)
        assert isinstance(await scene.publisher.refresh(scene.prefect.client, view), RetryOk)
        assert scene.shown() == {
            "radar-net-topology": artifacts.topology(scene.graph),
            "radar-net-status": artifacts.status(view),
            "radar-net-settled": artifacts.settled_percent(view.status.ledger),
        }
    assert isinstance(await scene.publisher.report(scene.prefect.client, OUTCOME), RetryOk)
    assert scene.shown()["radar-net-report"] == artifacts.report(OUTCOME)
    assert scene.shown()["radar-net-settled"] == 100.0
    assert len(scene.prefect.artifacts) == 4
    assert scene.prefect.calls.count("update_artifact radar-net-topology") == 0
    assert scene.prefect.calls.count("update_artifact radar-net-status") == 4


async def test_an_artifact_says_what_it_is_and_whose(scene: Scene) -> None:
    """Its kind, a description, the flow run; of the progress, the figures behind it, also when it is renewed."""
    await scene.publisher.refresh(scene.prefect.client, scene.view(written=2))
    await scene.publisher.report(scene.prefect.client, OUTCOME)
    told = {made.key: (made.type, made.description) for made in scene.prefect.artifacts.values()}
    assert told == {
        "radar-net-topology": ("markdown", "operators and channels"),
        "radar-net-status": ("markdown", "live, renewed in place"),
        "radar-net-settled": ("progress", artifacts.settled_text(BALANCED)),
        "radar-net-report": ("markdown", "how the run ended"),
    }
    assert {made.flow_run_id for made in scene.prefect.artifacts.values()} == {IDENTITY.flow_run_id}


@pytest.mark.parametrize("answered_calls", [0, 1, 2])
async def test_a_server_that_goes_away_in_a_round_ends_it_and_the_next_makes_up_for_it(
    answered_calls: int, scene: Scene
) -> None:
    """What was made is not made again, what was not is."""
    scene.prefect.unreachable_after = answered_calls
    assert isinstance(await scene.publisher.refresh(scene.prefect.client, scene.view()), Retry)
    assert len(scene.prefect.calls) == answered_calls + 1
    scene.prefect.unreachable, scene.prefect.unreachable_after = False, None
    assert isinstance(await scene.publisher.refresh(scene.prefect.client, scene.view()), RetryOk)
    assert len(scene.prefect.artifacts) == len(scene.shown()) == 3


async def test_an_artifact_that_is_refused_ends_the_round_and_is_not_taken_for_shown(scene: Scene) -> None:
    """It is tried again the next time."""
    scene.prefect.raises["create_artifact radar-net-topology"] = answered(422)
    for _ in range(2):
        assert isinstance(await scene.publisher.refresh(scene.prefect.client, scene.view()), Permanent)
    assert scene.prefect.calls == 2 * ["create_artifact radar-net-topology"]


async def test_a_report_of_a_run_that_was_never_shown_is_the_report_alone(scene: Scene) -> None:
    """A run that was over before the first round has no progress to renew."""
    assert isinstance(await scene.publisher.report(scene.prefect.client, OUTCOME), RetryOk)
    assert list(scene.shown()) == ["radar-net-report"]


async def test_a_report_that_is_not_taken_leaves_the_progress_as_it_was(scene: Scene) -> None:
    """Its answer is the one that is given back."""
    await scene.publisher.refresh(scene.prefect.client, scene.view(written=2))
    scene.prefect.unreachable = True
    assert isinstance(await scene.publisher.report(scene.prefect.client, OUTCOME), Retry)
    assert scene.shown()["radar-net-settled"] == 50.0


async def test_text_that_nobody_could_store_costs_a_character_and_not_the_page(scene: Scene) -> None:
    """However long the page is."""
    long = 120_000 * "x"
    await scene.publisher.refresh(scene.prefect.client, scene.view(reason=f"\udcff{long}"))
    shown = str(scene.shown()["radar-net-status"])
    shown.encode()
    assert shown.startswith(f"**draining: \N{REPLACEMENT CHARACTER}{long}**")
