"""The files of a replay: what is skipped, folders, compression, conventions, and what is reported about them."""

from __future__ import annotations

import gzip
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, run_graph, settle
from sda_ops.records.observation import RadarTarget, Uncertainty
from sda_ops.sources import replay
from sda_ops.sources.replay import ReplayFeed, read_files, replay_source
from sda_ops.wire.tdm import TdmConventions
from tests.helpers.log_lines import event_of
from tests.helpers.running import Fault, GatedSink, eventually, fed_by
from tests.sda_ops.sources.replay_files import iod, offsets_s, tdm


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The lines of this event that the source has logged."""
    lines = [event_of(record.getMessage()) for record in caplog.records if record.name == replay.__name__]
    return [line for line in lines if line["event"] == event]


async def test_a_missing_or_foreign_file_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each is logged and counted once, the others are replayed, and no restart is used."""
    paths = {
        "missing.tdm": (None, "No such file or directory"),
        "binary.tdm": (b"\x00\x01\x02", "expected TDM or IOD, got '\\x00\\x01\\x02'"),
        "empty.tdm": (b"", "expected TDM or IOD, got an empty file"),
        "orbit.tdm": (b"CCSDS_OEM_VERS = 2.0\nX = 1\n", "expected TDM or IOD, got 'CCSDS_OEM_VERS = 2.0'"),
        "cut.tdm.gz": (gzip.compress(b"CCSDS_TDM_VERS = 2.0\n")[:-9], "the gzip file is truncated"),
        "folder": (None, "expected files *.xml in this folder, got none"),
        "/dev/zero": (None, "expected a file, got a pipe, a socket or a device"),
    }
    (tmp_path / "folder").mkdir()
    for name, (content, _) in paths.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    good = tdm(tmp_path / "a.tdm", 0, 1)
    sink = CollectSink()
    feed = ReplayFeed(paths=(*(tmp_path / name for name in paths), good), pattern="*.xml", pace=None)
    event = await run_graph(fed_by(replay_source(feed), sink))
    assert isinstance(event, events.AllOk)
    assert offsets_s(sink.items) == [0, 1]
    lines = logged(caplog, "replay_file_skipped")
    assert sorted(line["reason"] for line in lines) == sorted(f"{tmp_path / n}: {why}" for n, (_, why) in paths.items())
    assert event.figures.counters["source"]["files_skipped"] == 7
    assert event.figures.restarts == {}
    assert event.figures.ledger_holds


async def test_a_restart_does_not_report_a_skipped_file_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next instance continues with what was read."""
    sink = GatedSink()
    feed = ReplayFeed(paths=(tmp_path / "missing.tdm", tdm(tmp_path / "a.tdm", *range(20))), pace=None)
    source = Fault(replay_source(feed))

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built._runs["source"].waits_for_space, "the source waits for room")
        source.strike()
        await settle()
        sink.gate.set()

    event = await run_graph(fed_by(source, sink, capacity=8), during=during)
    assert event.figures.restarts["source"].total == 1
    assert len(logged(caplog, "replay_file_skipped")) == 1
    assert event.figures.counters["source"]["files_skipped"] == 1


async def test_the_sensors_of_the_files_are_reported_once_before_the_first_observation(tmp_path: Path) -> None:
    """A validation that follows knows them in time, and a restart does not report them again."""
    sink, calls = GatedSink(), []
    feed = ReplayFeed(paths=(tdm(tmp_path / "a.tdm", *range(20)), iod(tmp_path / "b.dat", 1)), pace=None)

    def record(source_ids: Collection[str]) -> None:
        calls.append((set(source_ids), len(sink.items)))

    source = Fault(replay_source(feed, on_sensors=record))

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built._runs["source"].waits_for_space, "the source waits for room")
        source.strike()
        await settle()
        sink.gate.set()

    event = await run_graph(fed_by(source, sink, capacity=4), during=during)
    assert event.figures.restarts["source"].total == 1
    assert calls == [({"tdm-HILL", "optical-4172"}, 0)]


async def test_files_compressed_by_gzip_are_read(tmp_path: Path) -> None:
    """They are recognised by their content; their names do not matter."""
    path = tdm(tmp_path / "a.tdm", 0, 2)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert offsets_s(read_files(ReplayFeed(paths=(path, iod(tmp_path / "b.dat", 1)))).observations) == [0, 1, 2]


async def test_each_file_may_have_conventions_of_its_own(tmp_path: Path) -> None:
    """A folder's are those of its files; the other files have the feed's."""
    (tmp_path / "folder").mkdir()
    tdm(tmp_path / "folder" / "c.tdm", 2)
    a, b = tdm(tmp_path / "a.tdm", 0), tdm(tmp_path / "b.tdm", 1)
    one_way = TdmConventions(range_is_round_trip=False, uncertainty=Uncertainty(sigma_range_m=7.0))
    feed = ReplayFeed(paths=(a, b, tmp_path / "folder"), conventions_of={b: one_way, tmp_path / "folder": one_way})
    found = read_files(feed).observations
    assert [o.target for o in found] == [RadarTarget(500_000.0), RadarTarget(1_001_000.0), RadarTarget(1_002_000.0)]
    assert [o.uncertainty.sigma_range_m for o in found] == [None, 7.0, 7.0]


async def test_the_notes_on_a_file_are_logged_with_a_bound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten of a file, then how many more there are; all are counted."""
    path = tdm(tmp_path / "a.tdm", 0)
    head, _, segment = path.read_text().partition("META_START")
    degraded = segment.replace("MODE =", "DATA_QUALITY = DEGRADED\nMODE =")
    path.write_text(head + f"META_START{degraded}" * 12)
    event = await run_graph(fed_by(replay_source(ReplayFeed(paths=(path,), pace=None)), CollectSink()))
    notes = [line["note"] for line in logged(caplog, "replay_note")]
    assert len(notes) == 11
    assert notes[0] == (
        "TDM line 2: segment 1: DATA_QUALITY is DEGRADED: its data are used with the feed's uncertainties"
    )
    assert notes[-1] == "2 more notes on this file"
    assert event.figures.counters["source"]["replay_notes"] == 12


def test_a_folder_stands_for_its_matching_files(tmp_path: Path) -> None:
    """Subfolders count only where the pattern includes them."""
    (tmp_path / "deep.tdm").mkdir()
    tdm(tmp_path / "b.tdm", 0)
    tdm(tmp_path / "a.tdm", 0, participant="VALLEY")
    tdm(tmp_path / "deep.tdm" / "c.tdm", 1)
    (tmp_path / "README").write_text("not a message")
    flat = read_files(ReplayFeed(paths=(tmp_path,), pattern="*.tdm"))
    assert [o.source_id for o in flat.observations] == ["tdm-VALLEY", "tdm-HILL"]
    assert len(read_files(ReplayFeed(paths=(tmp_path,), pattern="**/*.tdm")).observations) == 3
