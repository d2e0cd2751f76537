from __future__ import annotations

from pathlib import Path

import pytest

from flows.pipelines import FUSION
from flows.settings.fusion import FusionSettings
from flows.settings.load import SettingsError, load_settings

SITE = "{source_id = 's', latitude_deg = 1, longitude_deg = 2, height_m = 3}"


def problems(text: str, folder: Path) -> list[str]:
    file = folder / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(FusionSettings, file, prefix=FUSION.prefix)
    return raised.value.problems


def test_every_fusion_setting_has_a_default() -> None:
    """The form in Prefect can be submitted without changes."""
    assert FusionSettings() == FusionSettings.model_validate({})


def test_fusion_has_its_own_prefix_of_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ignores SDA_INGEST__."""
    monkeypatch.setenv("SDA_FUSION__PROPAGATOR__WORKERS", "3")
    monkeypatch.setenv("SDA_INGEST__DEDUP__WINDOW_S", "1")
    settings = load_settings(FusionSettings, None, prefix=FUSION.prefix)
    assert settings.propagator.workers == 3
    assert settings.dedup.window_s == 600.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'catalog = {file = "a.csv", url = "http://b/"}',
            ": [catalog]: expected a file or a url, got both: a.csv and http://b/",
        ),
        ("correlation = {min_probability = 0.4}", ": [correlation] min_probability: "),
        ("correlation = {gate_miss = 1.0}", ": [correlation] gate_miss: "),
        ("propagator = {workers = 0}", ": [propagator] workers: "),
        ('propagator = {engine = "sgp8"}', ": [propagator] engine: "),
        ("replay = {pace = -1.0}", ": [replay] pace: "),
        ("replay = {doppler_sign = 2}", ": [replay] doppler_sign: "),
        ("audit = {commit_every_s = 0}", ": [audit] commit_every_s: "),
        (
            'radars = [{name = "a", port = 9}, {name = "b", port = 9}]',
            "radars a and b both listen on udp://127.0.0.1:9",
        ),
        ('isls = [{name = "a", port = 9}, {name = "b", port = 9}]', "isls a and b both listen on tcp://127.0.0.1:9"),
        (
            'radars = [{name = "a", port = 9}]\nisls = [{name = "a", port = 8}]',
            "operators: names must differ, got a more than once",
        ),
        (
            f"sensors = [{SITE}, {SITE}]",
            "sensors: names must differ, got s more than once",
        ),
        (
            'replay = {files = ["a", {path = "a", doppler_sign = -1}]}',
            "replay.files: names must differ, got a more than once",
        ),
        ('stations = {file = "none.txt"}', ": [stations]: file none.txt cannot be read: No such file or directory"),
        ('replay = {files = [{path = "a", pace = 3}]}', ": [replay.files #1] pace: there is no such setting"),
        ("replay = {files = [5]}", ": [replay.files #1]: expected a table, got 5"),
        (f"sensors = [{SITE.replace('= 1', '= 91')}]", ": [sensors #1] latitude_deg: "),
    ],
)
def test_each_mistake_is_one_problem_with_the_expected_value(text: str, expected: str, tmp_path: Path) -> None:
    """The problem has the setting's path."""
    (problem,) = problems(text, tmp_path)
    assert expected in problem


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    """Three mistakes, three problems."""
    assert len(problems('propagator = {workers = 0}\naudit = {max_rows = 0}\nnonsense = "x"', tmp_path)) == 3


def test_a_catalogue_is_refreshed_as_often_as_its_source_allows() -> None:
    """Every minute from a file, every two hours from an address; a setting wins."""
    url = "https://celestrak.org/NORAD/elements/gp.php?GROUP=active&FORMAT=csv"
    for section, seconds in (({}, 60), ({"url": url}, 7200), ({"url": url, "refresh_every_s": 600}, 600)):
        assert FusionSettings.model_validate({"catalog": section}).catalog.refresh_every.total_seconds() == seconds


def test_a_station_file_with_a_bad_line_is_a_problem_with_the_line(tmp_path: Path) -> None:
    """As is one without any station, such as a catalogue."""
    file = tmp_path / "sites.txt"
    file.write_text("4171 CB 52.8344 6.3785 10 Cees Bassa\n4172 LB 99 0 0\n")
    (problem,) = problems(f'stations = {{file = "{file}"}}', tmp_path)
    assert f": [stations]: {file}: sites line 2: expected a latitude within +-90" in problem
    file.write_text("4171 CB 52.8344 6.3785 20000 Cees Bassa\n")
    (problem,) = problems(f'stations = {{file = "{file}"}}', tmp_path)
    assert f": [stations]: {file}: station 4171: height_m: Input should be less than or equal to 10000" in problem
    file.write_text("STARLINK-1\n")
    (problem,) = problems(f'stations = {{file = "{file}"}}', tmp_path)
    assert problem.endswith(f": [stations]: {file}: expected lines that begin with a station's number, got none")
