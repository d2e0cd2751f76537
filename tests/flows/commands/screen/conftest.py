"""Every test of the command screens in its own process and an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.screen_command import screen_inline, small_catalog_file


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    screen_inline(monkeypatch, caplog, tmp_path)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return small_catalog_file(tmp_path)
