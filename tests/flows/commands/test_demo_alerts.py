"""What the demo says of its alerts: from the truth of the staged passages, and from the table of a subscriber."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flows.__main__ import main
from flows.commands.demo_alerts import DemoAlerts, passages
from orchestrator_adapter.process import ExitCode
from sda_ops.alerts.subscriber.table import ReceivedAlert, SubscriberTable
from sda_ops.simulate.staged import PassageKind, StagedPassage, write_staged

TCA_NS = 1_795_998_427_250_000_000  # 2026-11-30T00:27:07.25Z
NS_PER_S = 1_000_000_000


def passage(kind: PassageKind, second: int, miss_m: float) -> StagedPassage:
    return StagedPassage(
        kind=kind,
        catalog_number_first=5,
        catalog_number_second=second,
        staged=second,
        tca_timestamp=TCA_NS,
        miss_m=miss_m,
        relative_speed_m_s=1e4,
    )


def alert(number: int, second: int, *, tca: str = "2026-11-30T00:27:07.250000900Z") -> ReceivedAlert:
    """Received two seconds before the closest approach."""
    unseen: dict[str, Any] = {"first_at": None}
    body = {
        "objects": [
            {"catalog_number": 5, "observations": unseen},
            {"catalog_number": second, "observations": {"first_at": "2026-11-30T00:26:55.250000000Z"}},
        ],
        "conjunction": {"tca": tca, "screened_at": "2026-11-30T00:27:03.000000000Z"},
    }
    return ReceivedAlert(UUID(int=number), 0, "application/json", json.dumps(body).encode(), TCA_NS - 2 * NS_PER_S)


def test_the_demo_names_each_staged_passage_with_its_alert_or_without(tmp_path: Path) -> None:
    """The times are those from the observation and from the screening to the arrival; another pair is another conjunction."""
    demo = DemoAlerts(tmp_path, 0)
    write_staged(demo.truth, [passage("conjunction", 901, 393.4), passage("late", 902, 3_734.0)])
    with closing(SubscriberTable(demo.table)) as table:
        for each in (alert(1, 901), alert(2, 700), alert(3, 901, tca="2026-11-30T00:27:09.000000000Z")):
            table.store(each)
    assert demo.result() == [
        (
            f"staged conjunction of 5 and 901, 393 m at 00:27:07 UTC: alert {UUID(int=1)}/0 arrived 10.00 s after the first "
            "observation of 901 as a known object and 2.25 s after the screening that found it"
        ),
        "staged near miss of 5 and 902, 3,734 m at 00:27:07 UTC: no alert",
        "3 alerts arrived, each once; 2 conjunctions among them were not staged",
    ]


def test_without_passages_and_alerts_the_demo_says_so(tmp_path: Path) -> None:
    demo = DemoAlerts(tmp_path, 0)
    assert demo.result() == ["0 alerts arrived, each once; 0 conjunctions among them were not staged"]
    assert demo.revisions() == 0
    args = argparse.Namespace(stage=(0, 0), seconds=30.0)
    assert demo.staging(tmp_path / "catalog.json", args) == []


def test_staged_objects_appear_within_the_time_in_which_the_sensors_send(tmp_path: Path) -> None:
    """After a quarter of it, and after five seconds at most."""

    def after_s(seconds: float) -> str:
        words = DemoAlerts(tmp_path, 0).staging(
            tmp_path / "catalog.json", argparse.Namespace(stage=(2, 1), seconds=seconds)
        )
        assert words[:2] == ["--stage", "2:1"]
        return words[words.index("--stage-after") + 1]

    assert (after_s(30.0), after_s(4.0)) == ("5", "1")


@pytest.mark.parametrize("text", ["1", "1:", ":1", "-1:2", "1:x"])
def test_invalid_numbers_of_passages_are_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected two whole numbers N:M"):
        passages(text)


def test_a_pipeline_without_alerts_cannot_stage_a_conjunction(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--pipeline", "sda-ingest", "--stage", "1:1"]) == ExitCode.FAILED
    assert capsys.readouterr().err == "demo: --stage: sda-ingest has no alerts; add --pipeline sda-fusion\n"
