"""A catalogue that is replaced while running: versions, rejections, listeners, periodic refresh."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sgp4.io import compute_checksum

from orchestrator_adapter import RetryPolicy
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.testing import ManualClock, settle
from sda_ops.catalog import Catalog, RowProblem, live, parse_catalog, synthetic_catalog
from sda_ops.catalog.fetch import CatalogFile, CatalogUnavailable, CatalogUrl
from sda_ops.catalog.live import (
    CatalogRejected,
    CatalogVersion,
    LiveCatalog,
    Refreshed,
    RefreshOutcome,
    ReplacementLimits,
    Unchanged,
    replacement_problem,
)
from sda_ops.catalog.refreshing import keep_fresh
from tests.helpers.log_lines import event_of
from tests.helpers.running import eventually
from tests.sda_ops.catalog.catalog_server import numbers, text_of
from tests.sda_ops.catalog.catalog_texts import LINE1, LINE2, OMM, csv_of


def replace_by_rename(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def file_catalog(tmp_path: Path, text: str | None = None, **options: Any) -> tuple[Path, LiveCatalog]:
    path = tmp_path / "catalog.csv"
    if text is not None:
        path.write_text(text)
    return path, LiveCatalog(CatalogFile(path), clock=ManualClock(), rng=random.Random(1), **options)


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [event_of(record.getMessage()) for record in caplog.records if record.name == live.__name__]


async def test_the_first_load_is_version_1(tmp_path: Path) -> None:
    """It has the catalogue's source, time and content, and the bad rows."""
    path, catalog = file_catalog(tmp_path, text_of(*range(1, 11)) + "junk\n")
    version = await catalog.load()
    assert version is catalog.current is await catalog.load()
    assert (version.number, numbers(version), version.source) == (1, list(range(1, 11)), str(path))
    assert [e.catalog_number for e in version.element_sets] == numbers(version)
    assert [str(problem) for problem in version.problems] == [f"{path}:12: expected 17 fields as in the header, got 1"]
    assert version.loaded_ns == catalog.clock.now_ns()
    assert len(version.digest) == 64


async def test_there_is_no_current_version_before_the_first_load(tmp_path: Path) -> None:
    """Reading it too early, or loading a missing or invalid file, raises an error with the source and the reason."""
    path, catalog = file_catalog(tmp_path)
    with pytest.raises(CatalogUnavailable, match=r"catalog\.csv: not loaded yet"):
        _ = catalog.current
    with pytest.raises(CatalogUnavailable, match=r"catalog\.csv: No such file or directory$"):
        await catalog.load()
    path.write_text("hello")
    with pytest.raises(CatalogUnavailable, match=r"catalog\.csv: expected TLE, 3LE, or OMM as .*, got 'hello'$"):
        await catalog.load()
    path.write_text(text_of(1, MEAN_MOTION="x"))
    with pytest.raises(
        CatalogUnavailable, match=r"catalog\.csv: expected at least one usable row, got none \(1 bad, the"
    ):
        await catalog.load()
    path.write_text(text_of(1))
    assert numbers(await catalog.load()) == [1]


async def test_a_new_file_is_the_next_version_and_the_old_version_does_not_change(tmp_path: Path) -> None:
    """After a replacement by rename the next refresh makes version 2; a reader of version 1 still has version 1."""
    path, catalog = file_catalog(tmp_path, text_of(1, 2))
    first = await catalog.load()
    replace_by_rename(path, text_of(3, 2))
    outcome = await catalog.refresh()
    assert isinstance(outcome, Refreshed)
    assert outcome.version is catalog.current
    assert (outcome.version.number, numbers(outcome.version)) == (2, [3, 2])
    assert (first.number, numbers(first)) == (1, [1, 2])


async def test_all_element_sets_of_an_object_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sorted by epoch, and the log says what was loaded: objects, sets, epochs, ages, and the first remarks."""
    caplog.set_level(logging.INFO, live.__name__)
    rows = [{**OMM, "EPOCH": f"2025-12-{day:02}T00:00:00", "NORAD_CAT_ID": number} for day, number in DAYS]
    _, catalog = file_catalog(tmp_path, csv_of(rows) + "\nthe end\n")
    version = await catalog.load()
    assert numbers(version) == [5, 7, 7, 7]
    assert (np.diff(version.columns.epoch_ns[1:]) > 0).all()
    (line,) = logged(caplog)
    assert {name: line[name] for name in ("objects", "element_sets", "epochs", "median_age_h", "oldest_age_h")} == {
        "objects": 2,
        "element_sets": 4,
        "epochs": ["2025-12-11T00:00:00Z", "2025-12-31T00:00:00Z"],
        "median_age_h": 3 * 24.0,
        "oldest_age_h": 5 * 24.0,
    }
    assert [remark.rpartition("catalog.csv:")[2] for remark in line["remarks"]] == [
        "6: expected 17 fields as in the header, got 1"
    ]


DAYS = [(27, 5), (12, 7), (31, 7), (11, 7)]


async def test_an_element_set_of_the_future_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More than a day ahead of the clock, if the object has another one. It does not displace a good one."""
    caplog.set_level(logging.INFO, live.__name__)
    rows = [
        {**OMM, "EPOCH": epoch, "NORAD_CAT_ID": number}
        for epoch, number in (
            ("2025-12-28T00:00:00", 5),
            ("2026-01-01T23:00:00", 5),
            ("2026-01-02T01:00:00", 5),
            ("2026-02-01T00:00:00", 7),
            ("2026-03-01T00:00:00", 7),
        )
    ]
    _, catalog = file_catalog(tmp_path, csv_of(rows))
    version = await catalog.load()
    assert numbers(version) == [5, 5, 7, 7]
    assert [element_set.catalog_number for element_set in version.element_sets] == [5, 5, 7, 7]
    assert logged(caplog)[0]["future_sets_left_out"] == 1


async def test_the_same_content_makes_no_new_version(tmp_path: Path) -> None:
    """Rewritten content, and content that returns after a bad one, is unchanged, and then there is no rejection."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    version = await catalog.load()
    replace_by_rename(path, text_of(1))
    assert await catalog.refresh() == Unchanged(version)
    path.write_text("bad")
    assert isinstance(await catalog.refresh(), CatalogRejected)
    replace_by_rename(path, text_of(1))
    assert await catalog.refresh() == Unchanged(version)
    assert catalog.rejection is None


BAD: list[tuple[Callable[[str], str], str]] = [
    (lambda _: "", "expected TLE, 3LE, or OMM as CSV, JSON, XML or KVN, got an empty file"),
    (
        lambda _: "<!DOCTYPE html><html>503</html>",
        "expected TLE, 3LE, or OMM as CSV, JSON, XML or KVN, got a page in HTML: '503'",
    ),
    (lambda _: "[]", "expected at least one usable row, got none (it has no row)"),
    (lambda text: text.partition("\n")[0] + "\n", "expected at least one usable row"),
    (lambda text: text + "junk\n" * 3, "expected at most 10% bad rows, got 3 of 23, the first: "),
    (lambda text: text[:-10], "it ends in the middle of a row: "),
    (lambda text: "\n".join(text.split("\n")[:10]) + "\n", "expected at least 50% of the 20 objects before, got 9"),
]


@pytest.mark.parametrize(("broken", "reason"), BAD)
async def test_a_bad_catalogue_is_rejected_and_the_old_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: Callable[[str], str], reason: str
) -> None:
    """The reason is returned, kept, and logged once for any number of refreshes; a good catalogue ends the rejection."""
    caplog.set_level(logging.INFO, live.__name__)
    good = text_of(*range(1, 21))
    path, catalog = file_catalog(tmp_path, good)
    version = await catalog.load()
    versions: list[CatalogVersion] = []
    catalog.on_change(versions.append)
    path.write_text(broken(good))
    outcome: RefreshOutcome | None = None
    for _ in range(2):
        outcome = await catalog.refresh()
        assert isinstance(outcome, CatalogRejected)
        assert outcome is catalog.rejection
        assert outcome.reason.startswith(f"{path}: {reason}")
        assert outcome.kept is catalog.current is version
        assert outcome.at_ns == catalog.clock.now_ns()
    replace_by_rename(path, text_of(*range(2, 22)))
    assert isinstance(await catalog.refresh(), Refreshed)
    assert catalog.rejection is None
    assert isinstance(outcome, CatalogRejected)
    assert [v.number for v in versions] == [2]
    lines = logged(caplog)
    assert [line["event"] for line in lines] == ["catalog_refreshed", "catalog_rejected", "catalog_refreshed"]
    assert lines[1] == {
        "event": "catalog_rejected",
        "source": str(path),
        "reason": outcome.reason,
        "kept_version": 1,
    }
    assert lines[2] | {"digest": ""} == {
        "event": "catalog_refreshed",
        "source": str(path),
        "version": 2,
        "from_cache": False,
        "confirmed_s_ago": 0,
        "objects": 20,
        "element_sets": 20,
        "future_sets_left_out": 0,
        "epochs": ["2008-09-20T12:25:40Z", "2008-09-20T12:25:40Z"],
        "median_age_h": 151475.6,
        "oldest_age_h": 151475.6,
        "bad_rows": 0,
        "remarks": [],
        "digest": "",
    }


async def test_rejected_content_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad content that stays costs a second of processor time once, not at every refresh."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    path.write_text(text_of(2, MEAN_MOTION="x"))
    first = await catalog.refresh()
    monkeypatch.setattr(live, "parse_catalog", lambda *_, **__: pytest.fail("parsed again"))
    again = await catalog.refresh()
    assert isinstance(first, CatalogRejected)
    assert first == again


async def test_a_file_that_is_being_written_is_rejected_until_it_is_whole(tmp_path: Path) -> None:
    """While it is written in place, byte by byte, each refresh gives either the old objects or the new ones."""
    old, new = text_of(*range(1, 9)), text_of(*range(101, 109))
    path, catalog = file_catalog(tmp_path, old, limits=ReplacementLimits(min_size_share=1.0))
    await catalog.load()
    with path.open("w") as file:
        for start in range(0, len(new), 37):
            assert numbers(catalog.current) == list(range(1, 9))
            file.write(new[start : start + 37])
            file.flush()
            await catalog.refresh()
    await catalog.refresh()
    assert numbers(catalog.current) == list(range(101, 109))


async def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    """The old catalogue stays when its file is removed."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    path.unlink()
    outcome = await catalog.refresh()
    assert isinstance(outcome, CatalogRejected)
    assert outcome.reason == f"{path}: No such file or directory"
    assert numbers(catalog.current) == [1]


async def test_the_first_load_logs_each_delay(caplog: pytest.LogCaptureFixture) -> None:
    """With the error and the seconds: a server may ask for minutes, in which a user would see nothing."""
    policy = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=3), max_attempts=3)
    with socket.socket() as closed:  # nothing listens on its port
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/catalog"
        with pytest.raises(CatalogUnavailable):
            await LiveCatalog(CatalogUrl(url, retry=policy)).load()
    lines = [json.loads(record.message) for record in caplog.records if "downstream_failing" in record.message]
    assert [line["attempt"] for line in lines] == [1, 2]
    assert all(url in line["error"] and line["retry_in_s"] == 0 for line in lines)


async def test_a_pipe_or_a_device_is_rejected_at_once(tmp_path: Path) -> None:
    """Reading a pipe that nothing writes to would never end, nor would a device such as /dev/zero."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CatalogUnavailable) as raised:
            await LiveCatalog(CatalogFile(path)).load()
        assert str(raised.value) == f"{path}: expected a file, got a pipe, a socket or a device"


async def test_the_first_catalogue_may_be_truncated(tmp_path: Path) -> None:
    """Without an old catalogue, the complete rows are better than none; the truncated one is among the problems."""
    _, catalog = file_catalog(tmp_path, text_of(*range(1, 21))[:-10])
    version = await catalog.load()
    assert (len(version.columns), len(version.problems)) == (19, 1)


async def test_listeners_are_called_until_they_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once for each version, when it is the current one; an exception in one does not affect the others."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    versions: list[tuple[str, int, int]] = []

    def failing(version: CatalogVersion) -> None:
        versions.append(("failing", version.number, catalog.current.number))
        raise RuntimeError("a listener's error")

    def other(version: CatalogVersion) -> None:
        versions.append(("other", version.number, catalog.current.number))

    catalog.on_change(failing)
    end, end_again = catalog.on_change(other), catalog.on_change(other)
    await catalog.load()
    end()
    end()
    path.write_text(text_of(2))
    await catalog.refresh()
    end_again()
    path.write_text(text_of(3))
    await catalog.refresh()
    assert versions == [
        ("failing", 1, 1),
        ("other", 1, 1),
        ("other", 1, 1),
        ("failing", 2, 2),
        ("other", 2, 2),
        ("failing", 3, 3),
    ]
    assert "a listener's error" in caplog.text


async def test_simultaneous_refreshes_make_one_version(tmp_path: Path) -> None:
    """The second waits for the first, and finds nothing new."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    path.write_text(text_of(2))
    outcomes = await asyncio.gather(catalog.refresh(), catalog.refresh())
    assert [type(outcome) for outcome in outcomes] == [Refreshed, Unchanged]


async def test_parsing_does_not_block_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a catalogue is parsed other tasks run. A refresh cancelled during the parsing changes nothing."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    entered, release = threading.Event(), threading.Event()

    def blocked(text: str, *, file: str) -> Catalog:
        entered.set()
        assert release.wait(20)
        return parse_catalog(text, file=file)

    monkeypatch.setattr(live, "parse_catalog", blocked)
    path.write_text(text_of(2))
    refreshing = asyncio.ensure_future(catalog.refresh())
    try:
        await eventually(entered.is_set, "the thread parses")
        assert numbers(catalog.current) == [1]
        refreshing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await refreshing
    finally:
        release.set()
    assert numbers(catalog.current) == [1]
    assert isinstance(await catalog.refresh(), Refreshed)


async def test_a_catalogue_is_refreshed_periodically_until_the_shutdown(tmp_path: Path) -> None:
    """A refresh every hour, none before the first hour has passed, and an end at the shutdown."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    clock, shutdown = catalog.clock, ShutdownToken()
    assert isinstance(clock, ManualClock)
    refreshing = asyncio.ensure_future(keep_fresh(catalog, timedelta(hours=1), shutdown))
    for number in (2, 3):
        path.write_text(text_of(number))
        await clock.advance_when_idle(3599)
        assert numbers(catalog.current) == [number - 1]
        await clock.advance_when_idle(1)
        await eventually(lambda: numbers(catalog.current), "the refresh", holds=[number].__eq__)
        await settle()
    path.write_text("bad")
    await clock.advance_when_idle(3600)
    await eventually(lambda: catalog.rejection, "the rejection")
    await settle()
    assert not refreshing.done()
    shutdown.set("enough")
    await refreshing


async def test_a_shutdown_does_not_wait_for_a_refresh() -> None:
    """A request without an answer is cancelled at the shutdown."""
    requested, closed = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        requested.set()
        await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        clock, shutdown = ManualClock(), ShutdownToken()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        catalog = LiveCatalog(CatalogUrl(url), clock=clock)
        refreshing = asyncio.ensure_future(keep_fresh(catalog, timedelta(hours=1), shutdown))
        await clock.advance_when_idle(3600)
        await requested.wait()
        shutdown.set("enough")
        await refreshing
        await closed.wait()


async def test_a_bug_in_a_refresh_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends ``keep_fresh``."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    monkeypatch.setattr(live, "parse_catalog", lambda *_, **__: 1 / 0)
    path.write_text(text_of(2))
    clock = catalog.clock
    assert isinstance(clock, ManualClock)
    refreshing = asyncio.ensure_future(keep_fresh(catalog, timedelta(hours=1), ShutdownToken()))
    await clock.advance_when_idle(3600)
    with pytest.raises(ZeroDivisionError):
        await refreshing


OLD = synthetic_catalog(objects=100, epoch_ns=1_790_000_000_000_000_000)


@given(
    objects=st.integers(0, 100),
    older=st.integers(0, 100),
    bad=st.integers(0, 100),
    truncated=st.booleans(),
    limits=st.builds(
        ReplacementLimits,
        max_bad_share=st.floats(0, 1),
        bad_rows_allowed=st.integers(0, 9),
        min_size_share=st.floats(0, 1),
    ),
)
def test_a_replacement_must_be_whole_and_within_the_limits(
    *, objects: int, older: int, bad: int, truncated: bool, limits: ReplacementLimits
) -> None:
    """It must also have an object. The share counts rows, also those of older sets. The first one need not be whole."""
    problems = tuple(RowProblem("x", line, "bad") for line in range(bad))
    good = objects + older if objects else 0
    new = Catalog("x", OLD[:objects], tuple(range(objects)), problems, truncated and bad > 0, good + bad)
    old = CatalogVersion(1, OLD, None, (), 0, "x", "")  # type: ignore[arg-type] # the check needs no columns
    few = bad <= limits.bad_rows_allowed and bad <= good
    rows_good = objects > 0 and (few or bad <= limits.max_bad_share * (good + bad))
    assert (replacement_problem(None, new, limits) is None) == rows_good
    expected = rows_good and not new.truncated and objects >= limits.min_size_share * 100
    assert (replacement_problem(old, new, limits) is None) == expected


def tle_of(epoch_day: int, *, bad_checksum: bool = False) -> str:
    line1 = f"{LINE1[:18]}26{epoch_day:03}{LINE1[23:68]}"
    checksum = (compute_checksum(line1) + bad_checksum) % 10
    return f"{line1}{checksum}\n{LINE2}\n"


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("".join(map(tle_of, range(300, 320))) + tle_of(320, bad_checksum=True), True),
        (tle_of(300) + tle_of(301, bad_checksum=True), True),
        (tle_of(300) + "end of file\n", True),
        (tle_of(300) + tle_of(301, bad_checksum=True) * 2, False),
        (tle_of(300) * 20 + tle_of(301, bad_checksum=True) * 3, False),
        ("No GP data found", False),
        ("<html><body>1 moment</body></html>", False),
        ("503\n1 moment, please\n2 come\n", False),
    ],
)
async def test_a_few_bad_rows_or_a_footer_cost_only_themselves(tmp_path: Path, text: str, *, accepted: bool) -> None:
    """The share of bad rows is that in the rows read; up to two are allowed in a small file. Nonsense is rejected in one line."""
    _, catalog = file_catalog(tmp_path, text)
    if accepted:
        assert set(numbers(await catalog.load())) == {25544}
    else:
        with pytest.raises(CatalogUnavailable, match=r"\A[^\n]+\Z"):
            await catalog.load()


def test_limits_are_shares() -> None:
    """Both problems are reported at once."""
    with pytest.raises(ValueError, match=r".") as raised:
        ReplacementLimits(max_bad_share=1.5, min_size_share=-0.1)
    assert str(raised.value) == (
        "ReplacementLimits: max_bad_share must be in [0, 1], got 1.5; "
        "ReplacementLimits: min_size_share must be in [0, 1], got -0.1"
    )
