"""The last good catalogue of a URL on disk: what a start uses it for, and what it never has."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.testing import ManualClock
from sda_ops.catalog import live
from sda_ops.catalog.cache import cache_path
from sda_ops.catalog.fetch import CatalogUnavailable, CatalogUrl
from sda_ops.catalog.live import CatalogCache, CatalogRejected, LiveCatalog, Unchanged
from sda_ops.catalog.refreshing import RETRY_AFTER, keep_fresh
from tests.helpers.log_lines import event_of
from tests.helpers.running import eventually
from tests.sda_ops.catalog.catalog_server import ONCE, Server, numbers, text_of

FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 62\r\n\r\n"
    b"GP data has not updated since your last successful download.\r\n"
)
TWO_HOURS = timedelta(hours=2)


def started(server: Server, folder: Path, clock: ManualClock, *, url: str | None = None) -> LiveCatalog:
    """As a process that starts now would have it."""
    source = CatalogUrl(url or server.url, retry=ONCE)
    return LiveCatalog(source, cache=CatalogCache(folder / "cache"), clock=clock, rng=random.Random(1))


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, object]]:
    lines = [event_of(record.getMessage()) for record in caplog.records if record.name == live.__name__]
    return [line for line in lines if line["event"] == name]


async def test_a_restart_within_the_interval_needs_no_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A publisher rejects a second download until its next update: the restart asks for none, and logs how old its data are."""
    caplog.set_level(logging.INFO, live.__name__)
    clock = ManualClock()
    async with Server.serving(text_of(1, 2)) as server:
        await started(server, tmp_path, clock).load()
        clock.advance(3600.0)
        server.answers = [FORBIDDEN] * 9
        again = started(server, tmp_path, clock)
        version = await again.load()
        assert (numbers(version), version.number, again.age) == ([1, 2], 1, timedelta(hours=1))
        assert len(server.requests) == 1
    assert [(line["from_cache"], line["confirmed_s_ago"]) for line in events(caplog, "catalog_refreshed")] == [
        (False, 0),
        (True, 3600),
    ]


async def test_a_later_restart_asks_once_and_goes_on_with_the_cache_if_that_fails(tmp_path: Path) -> None:
    """The request is conditional. The rejection has the first line of the error answer's body."""
    clock = ManualClock()
    async with Server.serving(text_of(1), headers={"ETag": '"v1"', "Last-Modified": "then"}) as server:
        await started(server, tmp_path, clock).load()
        clock.advance(7200.0)
        server.answers = [FORBIDDEN]
        again = started(server, tmp_path, clock)
        assert numbers(await again.load()) == [1]
        assert again.rejection is not None
        assert "answered 403 Forbidden: 'GP data has not updated since your last" in again.rejection.reason
        assert server.requests[1]["if-none-match"] == '"v1"'
        assert server.requests[1]["if-modified-since"] == "then"
        assert len(server.requests) == 2


async def test_an_unchanged_catalogue_makes_the_cache_fresh_again(tmp_path: Path) -> None:
    """After "304 Not Modified" the next start needs no request."""
    clock = ManualClock()
    async with Server.serving(text_of(1), headers={"ETag": '"v1"'}) as server:
        await started(server, tmp_path, clock).load()
        clock.advance(7200.0)
        second = started(server, tmp_path, clock)
        assert numbers(await second.load()) == [1]
        assert second.rejection is None
        clock.advance(7199.0)
        third = started(server, tmp_path, clock)
        await third.load()
        assert third.age == timedelta(seconds=7199)
        assert len(server.requests) == 2
        assert isinstance(await third.refresh(), Unchanged)


async def test_a_cache_that_was_removed_is_written_again(tmp_path: Path) -> None:
    """The first refresh after that finds no change, and the next one asks for the content."""
    clock = ManualClock()
    async with Server.serving(text_of(1), headers={"ETag": '"v1"'}) as server:
        catalog = started(server, tmp_path, clock)
        await catalog.load()
        cache_path(tmp_path / "cache").unlink()
        for _ in range(2):
            assert isinstance(await catalog.refresh(), Unchanged)
        assert ["if-none-match" in request for request in server.requests] == [False, True, False]
        assert cache_path(tmp_path / "cache").exists()


async def test_the_cache_of_another_url_is_not_used(tmp_path: Path) -> None:
    """Also if only the query differs, which selects the group of objects."""
    clock = ManualClock()
    async with Server.serving(text_of(1)) as server:
        await started(server, tmp_path, clock).load()
        server.body = text_of(7).encode()
        other = started(server, tmp_path, clock, url=server.url + "&GROUP=stations")
        assert numbers(await other.load()) == [7]
        assert len(server.requests) == 2
        server.answers = [FORBIDDEN]
        with pytest.raises(CatalogUnavailable, match="403 Forbidden: 'GP data has not updated"):
            await started(server, tmp_path, clock).load()


async def test_the_cache_has_no_credentials(tmp_path: Path) -> None:
    """Neither user nor password nor query; and other users cannot read it."""
    clock = ManualClock()
    async with Server.serving(text_of(1)) as server:
        url = server.url.replace("http://", "http://a-user:pass-word@") + "&token=t0k-en"
        await started(server, tmp_path, clock, url=url).load()
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    assert server.url.partition("?")[0].encode() in content
    for secret in (b"a-user", b"pass-word", b"t0k-en", b"secret"):
        assert secret not in content
    assert file.stat().st_mode & 0o077 == 0


async def test_a_bad_catalogue_is_not_cached(tmp_path: Path) -> None:
    """The last good one stays in the cache."""
    clock = ManualClock()
    async with Server.serving(text_of(1)) as server:
        first = started(server, tmp_path, clock)
        await first.load()
        server.body = b"<html>maintenance</html>"
        assert isinstance(await first.refresh(), CatalogRejected)
        assert numbers(await started(server, tmp_path, clock).load()) == [1]


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"[]", b"\xff\xfe", None])
async def test_a_damaged_cache_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    """With one line in the log; the catalogue is fetched, and the cache is good again."""
    caplog.set_level(logging.INFO, live.__name__)
    clock, path = ManualClock(), cache_path(tmp_path / "cache")
    async with Server.serving(text_of(1)) as server:
        await started(server, tmp_path, clock).load()
        path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
        assert numbers(await started(server, tmp_path, clock).load()) == [1]
        assert len(server.requests) == 2
        (line,) = events(caplog, "catalog_cache_failed")
        assert str(line["reason"]).startswith(f"{path}: expected ")
        assert numbers(await started(server, tmp_path, clock).load()) == [1]
        assert len(server.requests) == 2


async def test_a_cache_that_cannot_be_written_costs_no_catalogue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported, and the run goes on."""
    (tmp_path / "cache").write_text("a file, not a folder")
    async with Server.serving(text_of(1)) as server:
        assert numbers(await started(server, tmp_path, ManualClock()).load()) == [1]
    assert events(caplog, "catalog_cache_failed")


async def test_the_next_refresh_is_due_one_interval_after_the_last_download(tmp_path: Path) -> None:
    """A download of an earlier process counts, too. After a failure the next refresh is due after 15 minutes."""
    clock, shutdown = ManualClock(), ShutdownToken()
    async with Server.serving(text_of(1)) as server:
        await started(server, tmp_path, clock).load()
        clock.advance(7000.0)
        again = started(server, tmp_path, clock)
        await again.load()
        refreshing = asyncio.ensure_future(keep_fresh(again, TWO_HOURS, shutdown))
        await clock.advance_when_idle(199.0)
        assert len(server.requests) == 1
        server.answers = [FORBIDDEN]
        await clock.advance_when_idle(1.0)
        await eventually(lambda: again.rejection, "the rejection")
        server.body = text_of(2).encode()
        await clock.advance_when_idle(RETRY_AFTER.total_seconds() - 1.0)
        assert len(server.requests) == 2
        await clock.advance_when_idle(1.0)
        await eventually(lambda: numbers(again.current), "the refresh", holds=[2].__eq__)
        shutdown.set("enough")
        await refreshing
