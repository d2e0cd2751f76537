"""``python -m flows conjunctions``: the list, one conjunction with its history, its plot, and what is said without one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from flows.__main__ import main
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionReader, ConjunctionTable
from tests.sda_ops.screening.conjunctions.test_conjunction_table import HOUR, PLAIN, T0, WHOLE, S, estimate


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a pipeline whose table has three conjunctions: one with two estimates, one withdrawn, one in a fleet."""
    file = tmp_path / "fusion.toml"
    file.write_text(f'[screening]\ndirectory = "{tmp_path}/screening"\n')
    table = ConjunctionTable(tmp_path / "screening" / "conjunctions.sqlite")
    table.open()
    fleet = msgspec.structs.replace(
        estimate(44_713, 44_714, tca_ns=T0 + 2 * HOUR), name_first="STARLINK-1007", same_fleet=True
    )
    table.record([PLAIN, estimate(6, 7), fleet], WHOLE, T0)
    newer = msgspec.structs.replace(
        PLAIN, tca_timestamp=PLAIN.tca_timestamp + 250_000_000, miss_m=640.0, epoch_first_timestamp=T0, probability=2e-7
    )
    table.record([newer, fleet], WHOLE, T0 + HOUR)
    table.close()
    return file


def run(config: Path, *arguments: str) -> int:
    return main(["conjunctions", *arguments, "--config", str(config)])


def id_of(config: Path, first: int) -> str:
    reader = ConjunctionReader(config.parent / "screening" / "conjunctions.sqlite")
    (found,) = [each for each in reader.listed() if each.last.catalog_number_first == first]
    reader.close()
    return str(found.last.conjunction_id)


def test_pairs_of_a_fleet_are_counted_and_listed_on_request(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, "list") == 0
    _, listed, left_out = capsys.readouterr().out.splitlines()
    assert "VANGUARD 1" in listed
    assert left_out == "not listed: 1 within one fleet or in formation (--fleets lists them)"
    config.write_text(config.read_text() + "exclude_fleets = false\n")
    assert run(config, "list") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_list_has_the_active_ones_by_time_with_their_last_estimate(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "list", "--fleets") == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        *("id", "closest", "approach", "(UTC)", "miss", "km", "km/s", "max", "P", "P", "ages", "d"),
        *("revision", "status", "objects"),
    ]
    assert first.endswith("44713 STARLINK-1007 | 44714  fleet")
    # T0 is 2026-02-25 06:13:20.
    assert second.split()[1:] == [
        *("2026-02-25", "12:13:20.250", "0.640", "14.000", "1.50E-06", "2.00E-07", "0.67", "0.38", "2", "active"),
        *("5", "VANGUARD", "1", "|", "9"),
    ]
    assert second.startswith(id_of(config, 5)[:13])


@pytest.mark.parametrize(
    ("options", "firsts"),
    [
        (["--all"], [44_713, 5, 6]),
        (["--status", "withdrawn"], [6]),
        (["--object", "9"], [5]),
        (["--all", "--object", "7"], [6]),
    ],
)
def test_the_list_is_chosen_by_status_and_object(
    config: Path, capsys: pytest.CaptureFixture[str], options: list[str], firsts: list[int]
) -> None:
    assert run(config, "list", "--fleets", *options) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(listed) == sorted(id_of(config, first)[:13] for first in firsts)


def test_a_withdrawn_one_is_shown_with_the_reason(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, "show", id_of(config, 6)) == 0
    expected = "withdrawn: the newest element sets do not have this approach within the screened distance"
    assert capsys.readouterr().out.splitlines()[0].endswith(expected)


@pytest.mark.parametrize("action", ["list", "show"])
def test_a_terminal_of_80_columns_has_a_line_below_each_row(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Nothing wraps; the wide table is that of a wide terminal, and of everything that is no terminal."""
    arguments = ("list", "--all", "--fleets") if action == "list" else ("show", id_of(config, 5))
    shown = {}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns in (80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(config, *arguments) == 0
        shown[columns] = capsys.readouterr().out.splitlines()
        assert max(map(len, shown[columns])) <= columns
    rows = 3 if action == "list" else 2
    assert len(shown[80]) == len(shown[200]) + rows
    text = "5 VANGUARD 1 | 9" if action == "list" else "R -0.100 I +0.500 C +0.633 km"
    assert any(line.strip().startswith(text) for line in shown[80])


def test_an_empty_list_says_so(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, "list", "--status", "passed", "--object", "5") == 0
    assert capsys.readouterr().out.startswith("no passed conjunctions of object 5 in ")


def test_show_takes_the_beginning_of_an_id_and_prints_every_estimate(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "show", id_of(config, 5)[:9].upper()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"conjunction {id_of(config, 5)}: active"
    assert lines[1:4] == [
        "  5 VANGUARD 1 (low, assumed radius 1 m)",
        "  9 (low, starlink, assumed radius 10 m)",
        "  time of closest approach 2026-02-25 12:13:20.250, 0.640 km, 14.000 km/s",
    ]
    first, second = (line.split() for line in lines[-2:])
    assert first == [
        *("1", "2026-02-25", "06:13:20", "active", "02-24", "20:13", "02-25", "03:13", "2026-02-25", "12:13:20.000"),
        *("0.812", "-0.100", "0.500", "0.633", "1.50E-06", "-"),
    ]
    assert (second[0], second[4:6], second[-1]) == ("2", ["02-25", "06:13"], "2.00E-07")


def test_show_draws_the_history(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "history.svg"
    assert run(config, "show", id_of(config, 5), "--plot", str(file)) == 0
    assert "<svg" in file.read_text()
    assert capsys.readouterr().out.endswith(f"plot: {file}\n")


def test_a_plot_that_cannot_be_made_is_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert run(config, "show", id_of(config, 5), "--plot", "history.docx") == 1
    assert capsys.readouterr().err == (
        "conjunctions: --plot history.docx: expected a name that ends with .svg, .png or .pdf\n"
    )
    assert run(config, "show", id_of(config, 5), "--plot", "/no such folder/history.svg") == 1
    assert capsys.readouterr().err == "conjunctions: /no such folder/history.svg: No such file or directory\n"


def test_an_unknown_id_names_the_nearest_ones(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = id_of(config, 5)
    wrong = full[:6] + "zz"
    assert run(config, "show", wrong) == 1
    assert capsys.readouterr().err.startswith(
        f"conjunctions: no conjunction begins with '{wrong}'; the nearest ids: {full[:13]} "
    )


def test_an_ambiguous_id_names_those_that_it_may_be(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ConjunctionTable(config.parent / "screening" / "conjunctions.sqlite")
    table.open()
    table.record([estimate(n, 100_000 + n) for n in range(100, 140)], WHOLE, T0 + S)  # 40 ids: two begin alike
    table.close()
    letters = [letter for letter in "0123456789abcdef" if run(config, "show", letter) == 1]
    assert letters
    assert "is the beginning of several ids: " in capsys.readouterr().err


def test_without_a_table_the_command_says_what_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fusion.toml"
    file.write_text(f'[screening]\ndirectory = "{tmp_path}/nothing"\n')
    assert run(file, "list") == 1
    assert capsys.readouterr().err == (
        f"conjunctions: there is no table of conjunctions {tmp_path}/nothing/conjunctions.sqlite: "
        "a run of sda-fusion with screening makes it\n"
    )
    assert not (tmp_path / "nothing").exists()


def test_a_wrong_setting_is_one_line_with_the_right_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fusion.toml"
    file.write_text('[screening]\ndirectry = "x"\n')
    assert run(file, "list") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean directory?" in error


@pytest.mark.parametrize("arguments", [["list", "--object", "ISS"], ["list", "--status", "gone"], ["list", "--all", "--status", "passed"], ["show"]])  # fmt: skip
def test_a_wrong_option_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["conjunctions", *arguments])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
