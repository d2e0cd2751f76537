"""``python -m flows screen`` in tests: through its command line, with an in-process worker and a small catalogue."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.commands.screen import screening_run
from orchestrator_adapter.bulkhead import Arrays
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import ElementSet, synthetic_catalog
from sda_ops.screening.workers.worker import ScreeningWorker
from sda_ops.simulate.catalog_file import omm_json
from tests.helpers.log_lines import event_of

START = "2026-03-10T00:00:00Z"
START_NS = 1_773_100_800 * NS_PER_S
SETTINGS = """
[screening.advanced]
broad_phase = "scipy"
engine = "sgp4"
"""


class InlineWorkers:
    """One handler in this process. ``on_call`` is called before each window."""

    on_call: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self._handler = ScreeningWorker()

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        self.on_call()
        return self._handler.handle(method, arrays)

    async def share(self, key: str, arrays: Arrays) -> None:
        self._handler.share(key, arrays)

    def statistics(self) -> Any:
        class One:
            workers = 1

        return One()


def screen_inline(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Without worker processes, which take a second to start; in an empty folder, without settings from outside."""

    @asynccontextmanager
    async def inline(*, workers: int) -> AsyncIterator[InlineWorkers]:
        yield InlineWorkers()

    for name in list(os.environ):
        if name.upper().startswith("SDA_SCREEN__"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(screening_run, "screening_bulkhead", inline)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "flows.commands")
    (tmp_path / "settings.toml").write_text(SETTINGS)


def named(sets: tuple[ElementSet, ...]) -> list[ElementSet]:
    """The first 40 are a fleet, the others have their number as their name; two share a name."""
    names = [
        f"STARLINK-{1_000 + row}" if row < 40 else f"OBJECT {each.catalog_number}" for row, each in enumerate(sets)
    ]
    names[-1] = names[-2] = "TWIN"
    return [
        ElementSet(each.catalog_number, name, each.satrec, each.sgp4_epoch_days)
        for each, name in zip(sets, names, strict=True)
    ]


def small_catalog_file(tmp_path: Path) -> Path:
    """200 objects at the start: 100 approaches below 100 km in 90 minutes."""
    path = tmp_path / "catalog.json"
    path.write_bytes(omm_json(named(synthetic_catalog(objects=200, epoch_ns=START_NS))))
    return path


def screen(catalog: Path | str, *options: str, start: str = START) -> int:
    arguments = ("--start", start, "--horizon", "90m", "--miss", "100km", "--config", "settings.toml", "--quiet")
    return main(["screen", str(catalog), *arguments, *options])


def messages(caplog: pytest.LogCaptureFixture) -> str:
    """The texts of what was announced, which on a terminal are lines of standard error."""
    lines = [event_of(record.getMessage()) for record in caplog.records if record.name == "flows.commands"]
    return "\n".join(str(line["message"]) for line in lines)


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
