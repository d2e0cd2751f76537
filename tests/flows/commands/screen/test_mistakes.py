"""``python -m flows screen``: what it says about mistakes, and what it leaves on the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flows.__main__ import main
from tests.helpers.screen_command import (
    screen,
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--out", "nowhere/found.csv"], ["--out: there is no folder nowhere"]),
        (["--out", "settings.toml/found.csv"], ["--out: settings.toml is not a folder"]),
        (["--out", "taken.csv"], ["--out: taken.csv exists; choose another name, or give --overwrite"]),
        (["--cdm", "full"], ["--cdm: the folder full is not empty; choose another, or give --overwrite"]),
        (["--cdm", "taken.csv"], ["--cdm: taken.csv is not a folder"]),
        (["--out", "a.svg.csv", "--plot", "top", "a.svg.csv.png", "--plot", "top", "a.svg.csv.png"],
         ["--plot: a.svg.csv.png is also written by --plot"]),
        (["--against", "99999"], ["--against: the catalogue has no object 99999"]),
        (["--against", "STARLINK-100"], [("--against: the catalogue has no object named 'STARLINK-100'; did you mean "
                                        "STARLINK-1000 (200001) or STARLINK-1001 (200002) or STARLINK-1002 (200003)?")]),
        (["--against", "twin"], ["--against: 2 objects are named 'twin': give a catalogue number (200199, 200200)"]),
        (["--plot", "200001,starlink-1000", "a.svg"], ["--plot: 200001 and starlink-1000 are the same object"]),
        (["--against", "1", "--plot", "2,3", "a.svg"],
         ["--against: the catalogue has no object 1",
          "--plot: the catalogue has no object 2; the catalogue has no object 3"]),
        (["--assets", "none.csv"], ["--assets: --miss cannot be given with it; the boxes of the assets are screened"]),
        (["--config", "missing.toml"], ["settings file missing.toml: no such file"]),
        (["--resume", "taken.csv"], ["--resume: taken.csv is not a folder"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_written(
    options: list[str], expected: list[str], catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; the message has the option, what is wrong, and what to do."""
    Path("taken.csv").touch()
    Path("full").mkdir()
    Path("full/old.cdm").touch()
    before = sorted(Path().rglob("*"))
    assert screen(catalog, *options) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"screen: {message}" for message in expected]
    assert printed.out == ""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "screen: nothing.json: No such file or directory"),
        ("", "expected TLE, 3LE, or OMM as CSV, JSON, XML or KVN, got an empty file"),
        ("<html><title>Forbidden</title></html>", "got a page in HTML: 'Forbidden'"),
        ("[]\n", "expected at least one usable row, got none (it has no row)"),
    ],
)
def test_a_catalogue_that_cannot_be_used_is_one_line(
    text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; it names the file."""
    if text is not None:
        Path("nothing.json").write_text(text)
    assert screen("nothing.json") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("screen: nothing.json: ")
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--horizon", "24"], "did you mean 24h?"),
        (["--miss", "5000km"], "expected a distance above 0 and at most 100km"),
        (["--start", "yesterday"], "expected now, epoch, or a time such as 2026-03-10T00:00:00Z"),
        (["--out", "found.xls"], "expected a table as .csv, .parquet or .json"),
        (["--plot", "25544", "a.svg"], "argument --plot: expected two different objects"),
        (["--plot", "top", "a.bmp"], "argument --plot: expected a picture as .svg, .png or .pdf"),
        (["--workers", "0"], "expected a whole number, at least 1"),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    options: list[str], message: str, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the usage."""
    with pytest.raises(SystemExit) as ended:
        main(["screen", str(catalog), *options])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: python -m flows screen")
    assert message in printed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "ftp://celestrak.org/gp",
            "expected a file, or an address that begins with http:// or https://, got one with ftp://",
        ),
        ("http://127.0.0.1:99999/gp", "the port must be at most 65535, got 99999"),
        (".", "Is a directory"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(source: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line; exit code 1."""
    assert screen(source) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"screen: {source}: ")
    assert message in line


def test_a_setting_with_a_typing_mistake_is_named(catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the name that was probably meant."""
    Path("settings.toml").write_text("[screening]\nmiss_distance = 5\n")
    assert screen(catalog) == 1
    assert "did you mean miss_distance_m?" in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_a_mistake_before_the_screening(
    catalog: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says what to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert screen(catalog, "--plot", "top", "top.svg") == 1
    assert capsys.readouterr().err == (
        "screen: --plot: pictures need matplotlib: pip install 'sda-stream-orchestrator[plot]'\n"
    )


def test_a_full_disk_leaves_no_part_of_a_file(
    catalog: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, with the file and the reason; the counts are printed, and the old file is unchanged."""
    Path("found.csv").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flows.commands.screen.files.os.fsync", full)
    assert screen(catalog, "--out", "found.csv", "--overwrite") == 1
    printed = capsys.readouterr()
    assert "screen: --out: found.csv: No space left on device" in printed.err
    assert "conjunctions" in printed.out
    assert Path("found.csv").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["catalog.json", "found.csv", "settings.toml"]
