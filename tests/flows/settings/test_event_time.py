"""The section ``[event_time]``, and the settings that it replaces."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from flows.pipelines import FUSION
from flows.settings.event_time import EventTimeSettings
from flows.settings.fusion import FusionSettings
from flows.settings.load import SettingsError, load_settings
from sda_ops.correlate.fuse import FusionWindows


def problems(text: str, folder: Path) -> list[str]:
    file = folder / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(FusionSettings, file, prefix=FUSION.prefix)
    return [problem.removeprefix(f"{file}: ") for problem in raised.value.problems]


def test_the_defaults_are_those_of_the_windows() -> None:
    """The settings and the library have the same."""
    assert EventTimeSettings().windows == FusionWindows()


def test_the_settings_make_the_windows(tmp_path: Path) -> None:
    """In seconds, from a file."""
    file = tmp_path / "settings.toml"
    file.write_text(
        "[event_time]\nwindow_s = 5\nlongest_window_s = 900\nallowed_lateness_s = 0\nlate = 'dead_letter'\nmax_held = 7\n"
    )
    assert load_settings(FusionSettings, file, prefix=FUSION.prefix).event_time.windows == FusionWindows(
        gap=timedelta(seconds=5),
        longest=timedelta(minutes=15),
        allowed_lateness=timedelta(0),
        late="dead_letter",
        max_held=7,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[correlation]\nwindow_s = 3\n",
            (
                "[correlation] window_s: there is no such setting any more; it is now [event_time] window_s, the time between "
                "observations of one window"
            ),
        ),
        (
            "[correlation]\nmax_contributions = 9\n",
            (
                "[correlation] max_contributions: there is no such setting any more; [event_time] longest_window_s and max_held "
                "bound a window now"
            ),
        ),
        ("[correlation]\nwindow = 3\n", "[correlation] window: there is no such setting"),
        (
            "[event_time]\nwindow_s = 40\n",
            "[event_time]: longest_window_s must be >= window_s = 40, got 30",
        ),
        (
            "[event_time]\nallowed_latenes_s = 1\n",
            "allowed_latenes_s: there is no such setting; did you mean allowed_lateness_s?",
        ),
        ("[event_time]\nlate = 'drop'\n", "late: Input should be 'count' or 'dead_letter', got 'drop'"),
        ("[event_time]\nwindow_s = 0\n", "window_s: Input should be greater than or equal to 0.001, got 0"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_to_do(text: str, expected: str, tmp_path: Path) -> None:
    """Settings of earlier versions say where they have gone."""
    (problem,) = problems(text, tmp_path)
    assert expected in problem


def test_a_variable_of_an_earlier_version_says_where_the_setting_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the file does."""
    monkeypatch.setenv("SDA_FUSION__CORRELATION__WINDOW_S", "3")
    with pytest.raises(SettingsError) as raised:
        load_settings(FusionSettings, None, prefix=FUSION.prefix)
    assert raised.value.problems == [
        (
            "environment variable SDA_FUSION__CORRELATION__WINDOW_S: there is no such setting any more; it is now [event_time] "
            "window_s, the time between observations of one window"
        )
    ]
