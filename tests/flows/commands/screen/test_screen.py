"""``python -m flows screen``, through its command line: what it reads, finds, writes and says."""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.commands.screen import screening_run
from flows.commands.screen.progress import ScreeningProgress
from flows.commands.screen.report import passage_rows, text_of, top_table
from sda_ops.astro.time import NS_PER_DAY
from sda_ops.catalog import synthetic_catalog
from sda_ops.screening.output import tables
from sda_ops.simulate.catalog_file import omm_json
from sda_ops.wire.cdm import read_cdm
from tests.helpers.log_lines import event_of
from tests.helpers.screen_command import (
    START,
    START_NS,
    InlineWorkers,
    messages,
    rows_of,
    screen,
)
from tests.helpers.sizes import small_and_long
from tests.helpers.support import ROOT, SDA_DATA_DIR


def test_the_lists_are_written_as_csv(catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Conjunctions with the most probable first, those inside a fleet apart, slow pairs, and what was not screened."""
    assert screen(catalog, "--out", "found.csv") == 0
    found, fleet = rows_of("found.csv"), rows_of("found.fleet.csv")
    assert list(found[0])[:11] == list(tables.SOCRATES_COLUMNS)
    probabilities = [float(row["MAX_PROB"]) for row in found]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(found) > 20
    assert {row["SAME_FLEET"] for row in found} == {"false"}
    assert {row["SAME_FLEET"] for row in fleet} <= {"true"}
    assert all(row["TCA"].startswith("2026-03-10 0") for row in found)
    assert rows_of("found.unscreened.csv") == []
    assert Path("found.slow.csv").read_text().startswith("NORAD_CAT_ID_1,OBJECT_NAME_1,NORAD_CAT_ID_2")
    assert f"{len(found)} conjunctions" in capsys.readouterr().out


def test_every_format_has_the_same_conjunctions(catalog: Path) -> None:
    """JSON has every list in one file; Parquet and CSV can be read by ``read_table``."""
    for suffix in ("csv", "parquet", "json"):
        assert screen(catalog, "--out", f"found.{suffix}", "--fleet-pairs", "together") == 0
    document = json.loads(Path("found.json").read_text())
    expected = [row["NORAD_CAT_ID_2"] for row in document["conjunctions"]]
    assert len(expected) > 20
    for suffix in ("csv", "parquet"):
        table = tables.read_table(Path(f"found.{suffix}"))
        assert table.column("NORAD_CAT_ID_2").to_pylist() == expected
    assert document["screening"]["objects"] == 200
    assert document["screening"]["start"] == START
    assert document["screening"]["end"] == "2026-03-10T01:30:00Z"
    assert {*document} == {"screening", "conjunctions", "slow", "unscreened"}
    assert not Path("found.fleet.csv").exists()


def test_without_a_file_the_most_probable_conjunctions_are_printed(
    catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And counts by class, fleet, distance and speed, as plain text where standard output is not a terminal."""
    assert screen(catalog, "--top", "3") == 0
    text = capsys.readouterr().out
    assert "The most probable 3 of " in text
    assert "closest approach (UTC)" in text
    for title in ("orbit classes", "fleets", "distance", "relative speed"):
        assert title in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 200


def test_tables_fit_into_80_columns() -> None:
    """Objects are below each other where they do not fit beside each other, and each name is in one piece."""
    names = {"OBJECT_NAME_1": "STARLINK-31725", "NORAD_CAT_ID_1": 59538, "OBJECT_NAME_2": "YAOGAN-30 06C"}
    at = datetime.fromisoformat(START)
    row = {
        "NORAD_CAT_ID_2": 44451,
        "MAX_PROB": 1.89e-3,
        "TCA_RELATIVE_SPEED": 14.343,
        **dict.fromkeys(("TCA", "ENTRY", "EXIT"), at),
        **dict.fromkeys(("MISS_M", "MISS_RADIAL_M", "MISS_IN_TRACK_M", "MISS_CROSS_TRACK_M"), 43_211.0),
        **dict.fromkeys(("DSE_1", "DSE_2"), -12.5),
        **names,
    }
    for rows in (top_table, passage_rows):
        narrow, wide = (text_of([rows([row], title="title")], terminal=False, width=width) for width in (80, 150))
        assert max(map(len, narrow.splitlines())) <= 80
        assert len(wide.splitlines()) == len(narrow.splitlines()) - 1
        for name in ("STARLINK-31725 (59538)", "YAOGAN-30 06C (44451)"):
            assert name in narrow
            assert name in wide


def test_some_objects_are_screened_against_all(catalog: Path) -> None:
    """By number and by name; the list is a subset of the whole list, with the same figures."""
    assert screen(catalog, "--out", "all.csv", "--fleet-pairs", "together") == 0
    whole = rows_of("all.csv")
    number, name = whole[0]["NORAD_CAT_ID_1"], whole[1]["OBJECT_NAME_2"]
    assert (
        screen(catalog, "--out", "some.csv", "--fleet-pairs", "together", "--against", f"{number},{name.lower()}") == 0
    )
    some = rows_of("some.csv")
    wanted = [
        row
        for row in whole
        if number in {row["NORAD_CAT_ID_1"], row["NORAD_CAT_ID_2"]}
        or name in {row["OBJECT_NAME_1"], row["OBJECT_NAME_2"]}
    ]
    assert some == wanted
    assert len(some) < len(whole)


SOCRATES = SDA_DATA_DIR / "socrates_2026-03-09"


@pytest.mark.skipif(not SOCRATES.is_dir(), reason="needs the data of SDA_DATA_DIR")
def test_a_conjunction_of_socrates_has_the_figures_of_socrates(tmp_path: Path) -> None:
    """GRUS-1E and STARLINK-3043, of 2026-03-09: every printed digit, except the last of the time and the range."""
    document = json.loads((SOCRATES / "socrates_top20_maxProb.json").read_text())
    expected = next(each for each in document["conjunctions"] if each["obj1_norad"] == 47935)
    catalog = SOCRATES / "pairs_gp" / expected["gp_file"]
    options = ("--horizon", "10m", "--miss", "5km", "--out", "found.csv", "--fleet-pairs", "together")
    assert screen(catalog, *options, start="2026-03-12T04:40:00Z") == 0
    [row] = rows_of("found.csv")
    assert (row["NORAD_CAT_ID_1"], row["NORAD_CAT_ID_2"]) == ("47935", "49179")
    assert (row["DSE_1"], row["DSE_2"]) == (f"{expected['obj1_dse']:.3f}", f"{expected['obj2_dse']:.3f}")
    assert row["MAX_PROB"] == f"{expected['max_prob']:.3E}"
    assert row["TCA_RELATIVE_SPEED"] == f"{expected['rel_speed_kms']:.3f}"
    tca = datetime.fromisoformat(f"{row['TCA']}Z")
    assert abs(tca - datetime.fromisoformat(expected["tca"])) <= timedelta(milliseconds=1)
    assert abs(float(row["TCA_RANGE"]) - expected["min_range_km"]) <= 0.001


@small_and_long("pair", "top", "200001,200190", "OBJECT 200190, STARLINK-1000")
def test_a_pair_is_drawn(catalog: Path, pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The most probable conjunction, or any pair, also one that has none."""
    assert screen(catalog, "--plot", pair, "pair.png") == 0
    assert Path("pair.png").read_bytes().startswith(b"\x89PNG")
    assert "pair.png" in capsys.readouterr().out


def test_the_boxes_of_assets_are_screened(catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each passage has the asset as its first object, and its entry before its exit; the miss is in the asset's axes.

    A box that contains the sphere of the miss distance has a passage for each conjunction of its asset, with the same figures.
    """
    assert screen(catalog, "--out", "all.csv", "--fleet-pairs", "together") == 0
    expected = [row for row in rows_of("all.csv") if row["NORAD_CAT_ID_2"] == rows_of("all.csv")[0]["NORAD_CAT_ID_2"]]
    asset = expected[0]["NORAD_CAT_ID_2"]
    Path("mine.csv").write_text(f"catalog_number,radial_km,in_track_km,cross_track_km\n{asset},100,100,100\n")
    options = (
        "--start",
        START,
        "--horizon",
        "90m",
        "--config",
        "settings.toml",
        "--quiet",
        "--fleet-pairs",
        "together",
    )
    assert main(["screen", str(catalog), *options, "--assets", "mine.csv", "--out", "boxes.csv"]) == 0
    passages = rows_of("boxes.csv")
    assert {row["NORAD_CAT_ID_1"] for row in passages} == {asset}
    assert all(START[:10] <= row["ENTRY"] < row["EXIT"] <= "2026-03-10 01:30:00.000" for row in passages)
    for row in expected:
        [passage] = [
            each
            for each in passages
            if each["NORAD_CAT_ID_2"] == row["NORAD_CAT_ID_1"] and each["ENTRY"] <= row["TCA"] <= each["EXIT"]
        ]
        assert passage["OBJECT_NAME_1"] == row["OBJECT_NAME_2"]
        assert (passage["EPOCH_2"], passage["RADIUS_1_M"]) == (row["EPOCH_1"], row["RADIUS_2_M"])
        assert float(passage["MISS_M"]) == pytest.approx(float(row["MISS_M"]), abs=0.01)
        parts = [float(passage[f"MISS_{axis}_M"]) for axis in ("RADIAL", "IN_TRACK", "CROSS_TRACK")]
        assert sum(part**2 for part in parts) ** 0.5 == pytest.approx(float(passage["MISS_M"]), abs=0.01)
    assert rows_of("boxes.slow.csv") == []
    assert main(["screen", str(catalog), *options, "--assets", "mine.csv", "--cdm", "boxes"]) == 0
    assert "entry (UTC)" in capsys.readouterr().out
    messages_of_boxes = [read_cdm(path.read_bytes()) for path in Path("boxes").iterdir()]
    assert len(messages_of_boxes) == len(passages)
    assert {(each.objects[0].designator, each.screen_volume_shape) for each in messages_of_boxes} == {(asset, "BOX")}
    assert {f"{each.miss_distance_m:.1f}" for each in messages_of_boxes} == {
        f"{float(row['MISS_M']):.1f}" for row in passages
    }


def test_without_a_conjunction_there_is_no_picture_of_it(
    catalog: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is no error: a message says so, and the counts are 0."""
    assert screen(catalog, "--plot", "top", "top.svg", "--miss", "1m") == 0
    assert not Path("top.svg").exists()
    assert "top.svg is not written: there is no conjunction to draw" in messages(caplog)
    assert "within 1 m: 0 conjunctions, 0 slow pairs, 0 objects not screened" in capsys.readouterr().out


@small_and_long("form", "kvn", "xml")
def test_a_message_is_written_for_each_conjunction(catalog: Path, form: str) -> None:
    """Those inside a fleet have none. Each message can be read, and has the originator that was given."""
    options = ("--cdm", "messages", "--cdm-format", form, "--originator", "TEST", "--out", "found.csv")
    assert screen(catalog, *options) == 0
    files = sorted(Path("messages").iterdir())
    assert len(files) == len(rows_of("found.csv"))
    assert all("TEST" in file.read_text() for file in files[:3])


def test_the_start_may_be_the_median_epoch(catalog: Path) -> None:
    """Of an old file, say."""
    assert screen(catalog, "--out", "found.json", start="epoch") == 0
    assert json.loads(Path("found.json").read_text())["screening"]["start"] == START


def test_element_sets_far_from_the_start_are_listed_and_not_screened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their number is reported, with the median age of the others if that is high."""
    old = synthetic_catalog(objects=30, epoch_ns=START_NS - 40 * NS_PER_DAY)
    fresh = synthetic_catalog(objects=200, epoch_ns=START_NS - 10 * NS_PER_DAY)[30:]
    path = tmp_path / "mixed.json"
    path.write_bytes(omm_json([*old, *fresh]))
    assert screen(path, "--out", "found.csv") == 0
    unscreened = rows_of("found.unscreened.csv")
    assert len(unscreened) == 30
    assert unscreened[0]["REASON"] == "the epoch of its element set is 40.0 days before the start, more than 30d"
    assert (unscreened[0]["FROM"], unscreened[0]["UNTIL"]) == ("2026-03-10 00:00:00.000", "2026-03-10 01:30:00.000")
    announced = messages(caplog)
    assert "30 of 200 objects are not screened: their element sets are more than 30d from the start" in announced
    assert "the median epoch of the catalogue is 10.0 days before the start" in announced


def test_a_size_that_fits_no_object_is_reported(catalog: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake in a name is no error, because catalogues differ; but it is not silent."""
    with Path("settings.toml").open("a", encoding="utf-8") as file:
        file.write('\n[screening.sizes]\nnames = { "STRALINK-*" = 10.0 }\n')
    assert screen(catalog, "--out", "found.csv") == 0
    assert "warning: [screening.sizes] names: no object's name fits 'STRALINK-*'" in messages(caplog)


def test_an_old_catalogue_is_not_screened_from_now(catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one line says how old it is, and how to screen it."""
    assert screen(catalog, start="2026-12-05T00:00:00Z") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "all 200 element sets are more than 30d from the start 2026-12-05 00:00:00 UTC" in line
    assert "270.0 days before it" in line
    assert "--start epoch" in line
    assert "--max-age" not in line, "30 days are the greatest that it takes"
    assert screen(catalog, "--max-age", "2d", start="2026-03-20T00:00:00Z") == 1
    assert "a greater --max-age" in capsys.readouterr().err


def test_quiet_is_without_messages_of_its_progress(catalog: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And worker processes that work have no lines in any case."""
    assert screen(catalog, "--quiet") == 0
    assert not caplog.records
    assert logging.getLogger("orchestrator_adapter.bulkhead").level == logging.WARNING


def test_bad_rows_are_counted(catalog: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row with an impossible eccentricity; the others are screened. The file may be compressed."""
    rows = json.loads(catalog.read_text())
    rows[5]["ECCENTRICITY"] = 1.5
    Path("catalog.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert screen("catalog.json.gz", "--out", "found.json") == 0
    about = json.loads(Path("found.json").read_text())["screening"]
    assert (about["rows"], about["rows_rejected"], about["objects"]) == (200, 1, 199)
    assert "1 of 200 rows cannot be used: catalog.json.gz:" in messages(caplog)


class OneFile(BaseHTTPRequestHandler):
    """Answers every request with ``content``."""

    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


def test_a_catalogue_is_read_from_an_address(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one compressed by gzip; what was screened names the address without its query, which may be secret."""
    monkeypatch.setattr(OneFile, "content", gzip.compress(catalog.read_bytes()))
    with HTTPServer(("127.0.0.1", 0), OneFile) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/active.json.gz"
        assert screen(f"{address}?token=secret", "--out", "found.json") == 0
    about = json.loads(Path("found.json").read_text())["screening"]
    assert (about["catalog"], about["objects"]) == (address, 200)


def test_progress_elsewhere_is_a_line_for_each_tenth(caplog: pytest.LogCaptureFixture) -> None:
    """With the time left; ``--quiet`` has none."""
    now = iter([0.0, *(float(second) for second in range(1, 100))])
    progress = ScreeningProgress(quiet=False, monotonic=lambda: next(now))
    for finished in range(41):
        progress(finished, 40, None if finished == 0 else 3.0 * (40 - finished))
        ScreeningProgress(quiet=True)(finished, 40, None)
    lines = [event_of(record.getMessage()) for record in caplog.records]
    assert [line["finished"] for line in lines] == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert [line["message"] for line in lines][:2] == [
        "4 of 40 windows, about 1:48 min left",
        "8 of 40 windows, about 1:36 min left",
    ]
    assert lines[-1]["message"] == "40 of 40 windows, about 0 s left"


@pytest.mark.parametrize(
    ("horizon_h", "workers", "window_h"), [(24, 2, 3), (2, 2, 1), (1, 4, 1), (5, 2, 2.5), (4.2, 2, 2.5), (168, 64, 3)]
)
def test_each_worker_has_a_window(horizon_h: float, workers: int, window_h: float) -> None:
    """Of half hours, at least one hour, and at most the longest one that is allowed."""
    found = screening_run.window_length(timedelta(hours=3), timedelta(hours=horizon_h), workers)
    assert found == timedelta(hours=window_h)


def test_a_screening_continues_where_it_was_stopped(
    catalog: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM during the second window: exit code 1 and one line. The same command does the other windows only."""
    calls: list[int] = []

    def stop_in_the_second() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(InlineWorkers, "on_call", staticmethod(stop_in_the_second))
    options = ("--out", "found.csv", "--resume", "windows", "--workers", "1", "--horizon", "6h")
    assert screen(catalog, *options) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "screen: stopped while screening (SIGTERM); nothing was written; finished windows are in windows"
    )
    assert not Path("found.csv").exists()
    assert len(list(Path("windows").iterdir())) >= 1
    stopped_after = len(calls)
    assert screen(catalog, *options) == 0
    assert screen(catalog, "--out", "again.csv", "--workers", "1", "--horizon", "6h") == 0
    assert Path("found.csv").read_bytes() == Path("again.csv").read_bytes()
    assert len(calls) < stopped_after + 2 + 2


def shown_on_a_terminal(process: subprocess.Popen[bytes], near: int, *, stop_at: bytes | None = None) -> bytes:
    """What the process writes to its terminal until it ends. When ``stop_at`` is there, the process gets Ctrl-C."""
    shown = b""
    while True:
        try:
            shown += os.read(near, 65_536)
        except OSError:  # the process has closed the terminal
            break
        if stop_at is not None and stop_at in shown:
            os.write(near, b"\x03")
            stop_at = None
    os.close(near)
    process.wait()
    return shown


@pytest.mark.parametrize("stop_at", [None, b"\x1b[?25l"], ids=["until its end", "Ctrl-C when the bar is there"])
def test_worker_processes_screen_with_progress_and_stop_at_ctrl_c(tmp_path: Path, stop_at: bytes | None) -> None:
    """On a terminal: a bar, the tables in colour, exit code 0; with Ctrl-C one line and 1. No process remains."""
    catalog = tmp_path / "many.json"
    catalog.write_bytes(omm_json(synthetic_catalog(objects=300, epoch_ns=START_NS)))
    options = (
        "--start",
        START,
        "--horizon",
        "2h",
        "--workers",
        "1",
        "--config",
        "settings.toml",
        "--resume",
        "windows",
    )
    near, far = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "flows", "screen", str(catalog), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "150", "LINES": "50"},
        cwd=tmp_path,
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(far, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - Ctrl-C is of the controlling terminal
    ) as process:
        os.close(far)
        shown = shown_on_a_terminal(process, near, stop_at=stop_at)
    assert b"screening 300 objects, 2h from 2026-03-10 00:00:00 UTC" in shown
    assert b"windows" in shown
    if stop_at is None:
        assert process.returncode == 0, shown
        assert b"300 objects, 2026-03-10T00:00:00Z to 2026-03-10T02:00:00Z, within 5.000 km: " in shown
    else:
        assert process.returncode == 1, shown
        assert b"screen: stopped while screening (SIGINT); nothing was written\r\n" in shown, "no window was finished"
        assert b"Traceback" not in shown
