from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows.pipelines import INGEST
from flows.settings.ingest import IngestSettings
from flows.settings.load import SettingsError, load_settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("SDA_INGEST__"):
            monkeypatch.delenv(name)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def problems(file: Path | None) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load_settings(IngestSettings, file, prefix=INGEST.prefix)
    assert str(raised.value) == "\n".join(raised.value.problems)
    return raised.value.problems


def test_without_file_and_environment_the_defaults_hold() -> None:
    """The result equals the model's defaults."""
    assert load_settings(IngestSettings, None, prefix=INGEST.prefix) == IngestSettings()


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer overrides single values; the rest of the section stays."""
    file = written(tmp_path, '[event_log]\ndirectory = "/from/file"\nmax_file_bytes = 1000\n[isl]\nport = 1\n')
    monkeypatch.setenv("SDA_INGEST__EVENT_LOG__DIRECTORY", "/from/environment")
    monkeypatch.setenv("SDA_INGEST__RADARS", '[{"name": "only", "port": 7}]')
    settings = load_settings(IngestSettings, file, prefix=INGEST.prefix)
    assert settings.event_log.directory == Path("/from/environment")
    assert settings.event_log.max_file_bytes == 1000
    assert (settings.isl.port, settings.isl.max_connections) == (1, 256)
    assert [(radar.name, radar.port) for radar in settings.radars] == [("only", 7)]
    assert type(settings) is IngestSettings


def test_all_errors_are_reported_together_with_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of file and environment: each problem has the setting, the expected and the given value."""
    file = written(
        tmp_path,
        """
        reprot = "typo.json"
        [[radars]]
        name = "radar 1"
        port = 70000
        [[radars]]
        port = 1
        [optical]
        url = "ftp://archive"
        poll_interval_s = 0
        interval_s = 1
        """,
    )
    monkeypatch.setenv("SDA_INGEST__ISL__PORT", "-1")
    monkeypatch.setenv("SDA_INGEST__ISL__PROT", "1")
    assert sorted(problems(file)) == sorted(
        [
            f"{file}: reprot: there is no such setting; did you mean report?",
            f"{file}: [radars #1] name: String should match pattern '^[A-Za-z0-9_.-]+$', got 'radar 1'",
            f"{file}: [radars #1] port: Input should be less than or equal to 65535, got 70000",
            f"{file}: [radars #2] name: is missing, and has no default",
            (
                f"{file}: [optical] url: expected http://…, https://…, or secret:NAME (a Secret block of Prefect), "
                "env:NAME or file:PATH, got 'ftp://archive'"
            ),
            f"{file}: [optical] poll_interval_s: Input should be greater than or equal to 0.001, got 0",
            f"{file}: [optical] interval_s: there is no such setting; did you mean poll_interval_s?",
            (
                "environment variable SDA_INGEST__ISL__PORT: [isl] port: "
                "Input should be greater than or equal to 0, got '-1'"
            ),
            "environment variable SDA_INGEST__ISL__PROT: there is no such setting; did you mean port?",
        ]
    )


def test_a_variable_that_sets_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt section is reported together with the file's problems."""
    monkeypatch.setenv("SDA_INGEST__EVNT_LOG__DIRECTORY", "/data")
    monkeypatch.setenv("SDA_INGEST__", "x")
    monkeypatch.setenv("SDA_INGEST__RADARS__0__PORT", "1")  # a list is one variable, in JSON
    file = written(tmp_path, "[isl]\nport = -1\n")
    empty, misspelt, in_a_list, in_file = problems(file)
    nothing = "there is no such setting"
    assert empty.startswith(f"environment variable SDA_INGEST__: {nothing}; there are radars, optical, isl, ")
    assert misspelt == f"environment variable SDA_INGEST__EVNT_LOG__DIRECTORY: {nothing}; did you mean event_log?"
    assert in_a_list == (
        f"environment variable SDA_INGEST__RADARS__0__PORT: {nothing}; a list is set as a whole, in JSON"
    )
    assert in_file == f"{file}: [isl] port: Input should be greater than or equal to 0, got -1"


def test_a_misplaced_setting_is_reported_with_its_table(tmp_path: Path) -> None:
    """In TOML every line after a table's name belongs to the table."""
    file = written(tmp_path, '[isl]\nport = 1\nreport = "r.json"\ngrace_s = 2\n')
    assert problems(file) == [
        f"{file}: [isl] report: there is no such setting; did you mean port?",
        f"{file}: [isl] grace_s: there is no such setting; did you mean [shutdown] grace_s?",
    ]


def test_a_rule_about_several_settings_is_reported_with_all_places_that_set_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value is in the file, the other in a variable; either may be the wrong one."""
    file = written(tmp_path, "[optical.retry]\ncap_s = 1\n")
    monkeypatch.setenv("SDA_INGEST__OPTICAL__RETRY__INITIAL_S", "1")
    assert problems(file) == [
        (
            f"{file}, environment variable SDA_INGEST__OPTICAL__RETRY__INITIAL_S: [optical.retry]: "
            "cap_s must be >= 3 * initial_s, or there is little jitter: got 1 and 1"
        )
    ]


def test_a_key_that_is_not_a_bare_word_is_quoted(tmp_path: Path) -> None:
    """So that a problem is one line, and an empty key is visible."""
    file = written(tmp_path, '"" = 1\n[isl]\n"a\\nb" = 1\n')
    in_section, empty = problems(file)
    assert in_section.startswith(f'{file}: [isl] "a\\nb": there is no such setting')
    assert empty.startswith(f'{file}: "": there is no such setting')


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Some editors write one."""
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbf[isl]\nport = 5\n")
    assert load_settings(IngestSettings, file, prefix=INGEST.prefix).isl.port == 5


def test_a_password_in_a_wrong_address_is_not_shown(tmp_path: Path) -> None:
    """Messages go to logs."""
    (problem,) = problems(written(tmp_path, '[optical]\nurl = "ftp://me:secret@archive"\n'))
    assert problem.endswith(
        "url: expected http://…, https://…, or secret:NAME (a Secret block of Prefect), env:NAME or file:PATH"
    )


def test_variables_may_be_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of variables have no case here."""
    monkeypatch.setenv("sda_ingest__isl__port", "5")
    assert load_settings(IngestSettings, None, prefix=INGEST.prefix).isl.port == 5


def test_a_variable_that_is_not_valid_json_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is named."""
    monkeypatch.setenv("SDA_INGEST__RADARS", "[oops")
    (problem,) = problems(None)
    assert problem.startswith("environment variable SDA_INGEST__RADARS: expected JSON: ")


@pytest.mark.parametrize("text", ["[isl", "isl = {port = }", "\x00"])
def test_toml_that_does_not_parse_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    """The message has the position."""
    file = written(tmp_path, text)
    (problem,) = problems(file)
    assert problem.startswith(f"settings file {file}: ")


def test_a_file_that_is_not_text_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Bytes that are not UTF-8."""
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xff\xfe")
    (problem,) = problems(file)
    assert problem.startswith(f"settings file {file}: ")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing.toml", "no such file"),
        (".", "cannot be read: Is a directory"),
        ("n" * 5_000, "cannot be read: File name too long"),
        ("\0", "cannot be read: embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path, name: str, why: str) -> None:
    """The message has the reason of the operating system."""
    assert problems(tmp_path / name) == [f"settings file {tmp_path / name}: {why}"]


def test_a_file_that_cannot_be_read_is_an_error_that_names_it() -> None:
    """With the kernel's reason."""
    (problem,) = problems(Path("/proc/self/mem"))
    assert problem.startswith("settings file /proc/self/mem: cannot be read: ")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("optical", "lookback_s", "inf"),
        ("optical", "lookback_s", "nan"),
        ("optical", "poll_interval_s", "1e300"),
        ("optical", "poll_interval_s", "1e-9"),
        ("optical", "long_poll_s", "nan"),
        ("shutdown", "grace_s", "inf"),
        ("validation", "max_clock_skew_s", "1e15"),
        ("dead_letters", "max_share", "nan"),
    ],
)
def test_numbers_outside_the_range_of_durations_and_shares_are_errors(
    tmp_path: Path, section: str, name: str, value: str
) -> None:
    """They are rejected here; later they would overflow."""
    (problem,) = problems(written(tmp_path, f"[{section}]\n{name} = {value}\n"))
    assert problem.startswith(f"{tmp_path / 'settings.toml'}: [{section}] {name}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[event_log]\ndirectory = ""\n', "[event_log] directory: expected a path, got ''"),
        ("[event_log]\ndirectory = 3\n", "[event_log] directory: expected a path, got 3"),
        ('radars = "r"\n', "radars: expected a list of tables, [[radars]], got 'r'"),
    ],
)
def test_a_value_of_another_kind_is_an_error_that_says_what_is_expected(
    tmp_path: Path, text: str, expected: str
) -> None:
    """An empty text, which an unset variable of a shell leaves, is not the current folder."""
    file = written(tmp_path, text)
    assert problems(file) == [f"{file}: {expected}"]


def test_a_path_with_a_null_byte_is_an_error(tmp_path: Path) -> None:
    """It would be a traceback where the path is opened."""
    file = written(tmp_path, '[event_log]\ndirectory = "a\\u0000b"\n')
    (problem,) = problems(file)
    expected = r"[event_log] directory: expected a path that the system can open, got 'a\x00b'"
    assert problem == f"{file}: {expected}"


def test_a_receive_buffer_above_31_bits_is_an_error(tmp_path: Path) -> None:
    """The socket option is a signed 32-bit number."""
    file = written(tmp_path, '[[radars]]\nname = "r"\nport = 1\nreceive_buffer_bytes = 2147483648\n')
    (problem,) = problems(file)
    assert problem.startswith(f"{file}: [radars #1] receive_buffer_bytes: ")


def test_every_setting_is_described() -> None:
    """The Prefect UI shows the descriptions beside the fields; the type of ports has one."""
    schema = IngestSettings.model_json_schema()
    sections = {"IngestSettings": schema, **schema["$defs"]}
    missing = [
        f"{section}.{name}"
        for section, definition in sections.items()
        for name, field in definition["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert not missing


def test_two_arrays_on_one_port_are_an_error_that_names_both(tmp_path: Path) -> None:
    """The second could not bind; the settings are rejected before a socket is opened."""
    file = tmp_path / "settings.toml"
    file.write_text('[[radars]]\nname = "north"\nport = 9201\n[[radars]]\nname = "south"\nport = 9201\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(IngestSettings, file, prefix=INGEST.prefix)
    assert caught.value.problems == [f"{file}: radars north and south both listen on udp://127.0.0.1:9201"]


@pytest.mark.parametrize(
    ("optical", "problem"),
    [
        (
            {"retry": {"initial_s": 15, "cap_s": 20}},
            "[optical.retry]: cap_s must be >= 3 * initial_s, or there is little jitter: got 20 and 15",
        ),
        (
            {"breaker": {"window_s": 10}, "timeout_s": 5},
            "[optical]: breaker.window_s must be >= breaker.min_calls * (timeout_s + long_poll_s) = 15, or the breaker never",
        ),
        (
            {"ca_file": __file__},
            f"[optical]: no certificates in ca_file {__file__}: [X509: NO_CERTIFICATE_OR_CRL_FOUND]",
        ),
    ],
)
def test_settings_that_would_fail_in_an_outage_are_rejected(
    optical: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little jitter, a breaker that cannot open, a file without certificates: each is named with its value."""
    monkeypatch.setenv("SDA_INGEST__OPTICAL", json.dumps(optical))
    with pytest.raises(SettingsError) as raised:
        load_settings(IngestSettings, None, prefix=INGEST.prefix)
    (found,) = raised.value.problems
    assert found.startswith(f"environment variable SDA_INGEST__OPTICAL: {problem}")
    assert "input" not in found
