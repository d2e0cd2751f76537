from __future__ import annotations

import asyncio
import logging
import random
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

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
    keep_fresh,
    replacement_problem,
)
from tests.helpers.log_lines import event_of
from tests.helpers.running import eventually
from tests.sda_ops.catalog.catalog_texts import OMM, csv_of, kvn

ONCE = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=2), max_attempts=1)
TWICE = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=2), max_attempts=2)


def text_of(*numbers: int, **change: object) -> str:
    return csv_of([{**OMM, "NORAD_CAT_ID": number, **change} for number in numbers]) + "\n"


def replace_by_rename(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def file_catalog(tmp_path: Path, text: str | None = None, **options: Any) -> tuple[Path, LiveCatalog]:
    path = tmp_path / "catalog.csv"
    if text is not None:
        path.write_text(text)
    return path, LiveCatalog(CatalogFile(path), clock=ManualClock(), rng=random.Random(1), **options)


def numbers(version: CatalogVersion) -> list[int]:
    return [int(number) for number in version.columns.catalog_number]


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [event_of(record.getMessage()) for record in caplog.records if record.name == live.__name__]


@dataclass(slots=True)
class Server:
    """A real HTTP server for one catalogue. ``answers`` come first, raw (``None``: nothing), and then the connection is closed."""

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    answers: list[bytes | None] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                lines = request.decode().split("\r\n")[1:-2]
                asked = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
                self.requests.append(asked)
                scripted = bool(self.answers)
                writer.write((self.answers.pop(0) or b"") if scripted else self._current(asked))
                await writer.drain()
                if scripted:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def _current(self, asked: dict[str, str]) -> bytes:
        told = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        if "ETag" in self.headers and asked.get("if-none-match") == self.headers["ETag"]:
            return f"HTTP/1.1 304 Not Modified\r\n{told}\r\n".encode()
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.body)}\r\n{told}\r\n".encode() + self.body

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, text: str, *, tls: ssl.SSLContext | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[Server]:
        self = cls(text.encode(), headers or {})
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=tls)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/gp.php?secret=1"
        async with server:
            yield self

    def catalog(self, retry: RetryPolicy = ONCE, **options: Any) -> LiveCatalog:
        return LiveCatalog(CatalogUrl(self.url, retry=retry, **options), rng=random.Random(1))


async def test_the_first_load_is_version_1(tmp_path: Path) -> None:
    """It says what was loaded, from where, when, and what was bad in it."""
    path, catalog = file_catalog(tmp_path, text_of(*range(1, 11)) + "junk\n")
    version = await catalog.load()
    assert version is catalog.current is await catalog.load()
    assert (version.number, numbers(version), version.source) == (1, list(range(1, 11)), str(path))
    assert [e.catalog_number for e in version.element_sets] == numbers(version)
    assert [str(problem) for problem in version.problems] == [f"{path}:12: expected 17 fields as in the header, got 1"]
    assert version.loaded_ns == catalog.clock.now_ns()
    assert len(version.digest) == 64


async def test_nothing_is_current_before_it_is_loaded(tmp_path: Path) -> None:
    """Asking too early, loading what is not there, and what is no catalogue, raise errors that say from where and why."""
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


async def test_a_new_file_is_the_next_version_and_the_old_one_stays_as_it_was(tmp_path: Path) -> None:
    """Replaced by rename, the next refresh makes version 2; who holds version 1 still sees version 1."""
    path, catalog = file_catalog(tmp_path, text_of(1, 2))
    first = await catalog.load()
    replace_by_rename(path, text_of(3, 2))
    outcome = await catalog.refresh()
    assert isinstance(outcome, Refreshed)
    assert outcome.version is catalog.current
    assert (outcome.version.number, numbers(outcome.version)) == (2, [3, 2])
    assert (first.number, numbers(first)) == (1, [1, 2])


async def test_an_object_is_in_it_once(tmp_path: Path) -> None:
    """Of a file with several sets of one object the newest is in the catalogue."""
    older, newer = ({**OMM, "EPOCH": f"2008-09-2{day}T00:00:00"} for day in (0, 1))
    _, catalog = file_catalog(tmp_path, csv_of([older, newer]))
    version = await catalog.load()
    assert numbers(version) == [25544]
    assert version.columns.epoch_ns.tolist() == [1_221_955_200_000_000_000]


async def test_the_same_content_makes_no_new_version(tmp_path: Path) -> None:
    """Rewritten as it was, it is unchanged; so it is when bad content has come and gone, and then nothing is refused."""
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
    (lambda _: "", "expected TLE, 3LE, or OMM as CSV, JSON, XML or KVN, got ''"),
    (lambda _: "<!DOCTYPE html><html>503</html>", "a document type declaration"),
    (lambda _: "[]", "expected at least one usable row, got none (0 bad)"),
    (lambda text: text.partition("\n")[0] + "\n", "expected at least one usable row"),
    (lambda text: text + "junk\n" * 3, "expected at most 10% bad rows, got 3 of 23, the first: "),
    (lambda text: text[:-10], "it ends in the middle of a row: "),
    (lambda text: "\n".join(text.split("\n")[:10]) + "\n", "expected at least 50% of the 20 objects before, got 9"),
]


@pytest.mark.parametrize(("broken", "reason"), BAD)
async def test_a_broken_one_is_refused_and_the_old_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: Callable[[str], str], reason: str
) -> None:
    """The reason is returned, kept and logged once, however often the same is found; a good one takes its place."""
    caplog.set_level(logging.INFO, live.__name__)
    good = text_of(*range(1, 21))
    path, catalog = file_catalog(tmp_path, good)
    version = await catalog.load()
    told: list[CatalogVersion] = []
    catalog.on_change(told.append)
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
    assert [v.number for v in told] == [2]
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
        "objects": 20,
        "bad_rows": 0,
        "digest": "",
    }


async def test_what_was_refused_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad content that stays costs a second of processor once, not at every refresh."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    path.write_text(text_of(2, MEAN_MOTION="x"))
    first = await catalog.refresh()
    monkeypatch.setattr(live, "parse_catalog", lambda *_, **__: pytest.fail("parsed again"))
    again = await catalog.refresh()
    assert isinstance(first, CatalogRejected)
    assert first == again


async def test_a_file_torn_while_it_is_written_is_refused_until_it_is_whole(tmp_path: Path) -> None:
    """Written in place byte by byte, no refresh on the way gives anything but the old objects or the new ones."""
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


async def test_a_file_that_has_gone_is_refused(tmp_path: Path) -> None:
    """The old catalogue outlives its file."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    path.unlink()
    outcome = await catalog.refresh()
    assert isinstance(outcome, CatalogRejected)
    assert outcome.reason == f"{path}: No such file or directory"
    assert numbers(catalog.current) == [1]


async def test_the_first_catalogue_may_be_truncated(tmp_path: Path) -> None:
    """With nothing to fall back on, what is whole of it is better than none; it is among the problems."""
    _, catalog = file_catalog(tmp_path, text_of(*range(1, 21))[:-10])
    version = await catalog.load()
    assert (len(version.columns), len(version.problems)) == (19, 1)


async def test_listeners_are_told_until_they_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each version once, when it is the current one; one that raises does not keep it from the others."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    told: list[tuple[str, int, int]] = []

    def failing(version: CatalogVersion) -> None:
        told.append(("failing", version.number, catalog.current.number))
        raise RuntimeError("a listener's own")

    def other(version: CatalogVersion) -> None:
        told.append(("other", version.number, catalog.current.number))

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
    assert told == [
        ("failing", 1, 1),
        ("other", 1, 1),
        ("other", 1, 1),
        ("failing", 2, 2),
        ("other", 2, 2),
        ("failing", 3, 3),
    ]
    assert "a listener's own" in caplog.text


async def test_refreshes_at_once_make_one_version(tmp_path: Path) -> None:
    """Two that meet wait for each other, and the second finds nothing new."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    path.write_text(text_of(2))
    outcomes = await asyncio.gather(catalog.refresh(), catalog.refresh())
    assert [type(outcome) for outcome in outcomes] == [Refreshed, Unchanged]


async def test_parsing_does_not_hold_up_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a catalogue is parsed the event loop runs on; cancelled meanwhile, a refresh has changed nothing."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    entered, leave = threading.Event(), threading.Event()

    def held_up(text: str, *, file: str) -> Catalog:
        entered.set()
        assert leave.wait(20)
        return parse_catalog(text, file=file)

    monkeypatch.setattr(live, "parse_catalog", held_up)
    path.write_text(text_of(2))
    refreshing = asyncio.ensure_future(catalog.refresh())
    try:
        await eventually(entered.is_set, "the thread parses")
        assert numbers(catalog.current) == [1]
        refreshing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await refreshing
    finally:
        leave.set()
    assert numbers(catalog.current) == [1]
    assert isinstance(await catalog.refresh(), Refreshed)


async def test_a_catalogue_is_had_over_http() -> None:
    """Loaded from a real server, in any notation; its name is the URL without the query, which may hold a token."""
    async with Server.serving(kvn([OMM])) as server:
        version = await server.catalog().load()
    assert numbers(version) == [25544]
    assert version.source == server.url.partition("?")[0]


@pytest.mark.parametrize(
    ("header", "value", "condition"),
    [("ETag", '"v1"', "if-none-match"), ("Last-Modified", "Tue, 10 Mar 2026 08:00:00 GMT", "if-modified-since")],
)
async def test_it_asks_whether_there_is_anything_new(header: str, value: str, condition: str) -> None:
    """The server's validator goes back to it, and "304 Not Modified" is unchanged."""
    async with Server.serving(text_of(1), headers={header: value}) as server:
        catalog = server.catalog()
        version = await catalog.load()
        server.answers = [b"HTTP/1.1 304 Not Modified\r\n\r\n"]
        assert await catalog.refresh() == Unchanged(version)
        assert condition not in server.requests[0]
        assert server.requests[1][condition] == value
        server.body, server.headers = text_of(2).encode(), {}
        assert isinstance(await catalog.refresh(), Refreshed)
        await catalog.refresh()
        assert condition not in server.requests[3]


async def test_not_modified_since_it_was_refused_is_refused() -> None:
    """What is no good does not become good by not being modified; and an outage in between is not held against it."""
    async with Server.serving(text_of(1), headers={"ETag": '"good"'}) as server:
        catalog = server.catalog()
        await catalog.load()
        server.body, server.headers = b"bad", {"ETag": '"bad"'}
        first = await catalog.refresh()
        server.answers = [b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"]
        outage = await catalog.refresh()
        again = await catalog.refresh()
        assert isinstance(first, CatalogRejected)
        assert isinstance(outage, CatalogRejected)
        assert isinstance(again, CatalogRejected)
        assert server.requests[-1]["if-none-match"] == '"bad"'
        assert first.reason == again.reason != outage.reason
        server.body, server.headers = text_of(1).encode(), {"ETag": '"good"'}
        assert isinstance(await catalog.refresh(), Unchanged)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404 Not Found"),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "answered 500 Internal Server Error"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304 Not Modified"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\nNORAD_CAT_ID,", "peer closed connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, "more than the 1000 bytes allowed"),
        (None, "disconnected without sending"),
    ],
)
async def test_what_a_server_does_wrong_is_refused(answer: bytes | None, reason: str) -> None:
    """Errors, torn and oversized answers, and an unasked-for 304, leave the old catalogue; the URL's query is not told."""
    async with Server.serving(text_of(1)) as server:
        catalog = server.catalog(max_body_bytes=1000)
        await catalog.load()
        server.answers = [answer, None]
        outcome = await catalog.refresh()
    assert isinstance(outcome, CatalogRejected)
    assert reason in outcome.reason
    assert server.url.partition("?")[0] in outcome.reason
    assert "secret" not in outcome.reason
    assert numbers(catalog.current) == [1]


async def test_a_request_that_fails_is_made_again() -> None:
    """A server that is too busy for the first request and answers the second loses nothing."""
    async with Server.serving(text_of(1)) as server:
        server.answers = [b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nETag: "sorry"\r\n\r\n']
        catalog = server.catalog(TWICE)
        assert numbers(await catalog.load()) == [1]
        assert len(server.requests) == 2
        await catalog.refresh()
        assert "if-none-match" not in server.requests[2]  # the apology's tag is not the catalogue's


async def test_a_server_that_is_slow_is_refused_in_time() -> None:
    """An answer that drips for longer than the timeout is cut off, on the catalogue's clock."""
    clock = ManualClock()
    asked = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\nN")
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        catalog = LiveCatalog(CatalogUrl(url, timeout=timedelta(seconds=9), retry=ONCE), clock=clock)
        refreshing = asyncio.ensure_future(catalog.refresh())
        await asked.wait()
        clock.advance(9.0)
        outcome = await refreshing
    assert isinstance(outcome, CatalogRejected)
    assert "not done within 9 s" in outcome.reason


async def test_a_certificate_is_verified(tmp_path: Path) -> None:
    """Over TLS it is had from who has a certificate of a trusted authority, and from nobody else."""
    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    async with Server.serving(text_of(1), tls=server_side) as server:
        assert numbers(await server.catalog(ca_file=tmp_path / "ca.pem").load()) == [1]
        with pytest.raises(CatalogUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await server.catalog().load()


async def test_a_certificate_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """Before anything is asked."""
    catalog = LiveCatalog(CatalogUrl("https://127.0.0.1:1/", ca_file=tmp_path / "none.pem"))
    with pytest.raises(CatalogUnavailable, match=r"^https://127\.0\.0\.1:1/: cannot be asked: .*No such file"):
        await catalog.load()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "ftp://x/"}, "url must begin with http:// or https://, got 'ftp://x/'"),
        ({"url": "http://x:y/"}, "'http://x:y/' is no URL: "),
        ({"url": "http://x/", "timeout": timedelta(0)}, "timeout must be > 0 and max_body_bytes >= 1"),
        ({"url": "http://x/", "max_body_bytes": 0}, "timeout must be > 0 and max_body_bytes >= 1"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(options: dict[str, Any], problem: str) -> None:
    """When it is made, not when it is asked."""
    with pytest.raises(ValueError, match=r".") as refusal:
        CatalogUrl(**options)
    assert str(refusal.value).startswith(f"CatalogUrl: {problem}")


async def test_it_is_kept_fresh_until_the_shutdown(tmp_path: Path) -> None:
    """A refresh every hour, none before the first hour is over, and an end at the shutdown."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    clock, shutdown = catalog.clock, ShutdownToken()
    assert isinstance(clock, ManualClock)
    keeping = asyncio.ensure_future(keep_fresh(catalog, timedelta(hours=1), shutdown))
    for number in (2, 3):
        path.write_text(text_of(number))
        await clock.advance_when_idle(3599)
        assert numbers(catalog.current) == [number - 1]
        await clock.advance_when_idle(1)
        await eventually(lambda wanted=number: numbers(catalog.current) == [wanted], "the refresh")  # type: ignore[misc]
        await settle()
    path.write_text("bad")
    await clock.advance_when_idle(3600)
    await eventually(lambda: catalog.rejection, "the rejection")
    await settle()
    assert not keeping.done()
    shutdown.set("enough")
    await keeping


async def test_a_shutdown_does_not_wait_for_a_refresh() -> None:
    """A request that is never answered is cancelled when the shutdown comes."""
    asked, closed = asyncio.Event(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        clock, shutdown = ManualClock(), ShutdownToken()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        catalog = LiveCatalog(CatalogUrl(url), clock=clock)
        keeping = asyncio.ensure_future(keep_fresh(catalog, timedelta(hours=1), shutdown))
        await clock.advance_when_idle(3600)
        await asked.wait()
        shutdown.set("enough")
        await keeping
        await closed.wait()


async def test_what_nobody_expects_of_a_refresh_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug within a refresh leaves keep_fresh as it is."""
    path, catalog = file_catalog(tmp_path, text_of(1))
    await catalog.load()
    monkeypatch.setattr(live, "parse_catalog", lambda *_, **__: 1 / 0)
    path.write_text(text_of(2))
    clock = catalog.clock
    assert isinstance(clock, ManualClock)
    keeping = asyncio.ensure_future(keep_fresh(catalog, timedelta(hours=1), ShutdownToken()))
    await clock.advance_when_idle(3600)
    with pytest.raises(ZeroDivisionError):
        await keeping


OLD = synthetic_catalog(objects=100, epoch_ns=1_790_000_000_000_000_000)


@given(
    objects=st.integers(0, 100),
    bad=st.integers(0, 100),
    truncated=st.booleans(),
    limits=st.builds(ReplacementLimits, max_bad_share=st.floats(0, 1), min_size_share=st.floats(0, 1)),
)
def test_a_replacement_is_judged_by_its_size_and_its_bad_rows(
    *, objects: int, bad: int, truncated: bool, limits: ReplacementLimits
) -> None:
    """It is accepted exactly if it is whole, has an object, and is within both limits; the first need not be whole."""
    problems = tuple(RowProblem("x", line, "bad") for line in range(bad))
    new = Catalog("x", OLD[:objects], tuple(range(objects)), problems, truncated and bad > 0)
    old = CatalogVersion(1, OLD, None, (), 0, "x", "")  # type: ignore[arg-type] # the judgement needs no columns
    rows_good = objects > 0 and bad <= limits.max_bad_share * (objects + bad)
    assert (replacement_problem(None, new, limits) is None) == rows_good
    expected = rows_good and not new.truncated and objects >= limits.min_size_share * 100
    assert (replacement_problem(old, new, limits) is None) == expected


def test_limits_are_shares() -> None:
    """Both are told at once."""
    with pytest.raises(ValueError, match=r".") as refusal:
        ReplacementLimits(max_bad_share=1.5, min_size_share=-0.1)
    assert str(refusal.value) == (
        "ReplacementLimits: max_bad_share must be in [0, 1], got 1.5; "
        "ReplacementLimits: min_size_share must be in [0, 1], got -0.1"
    )
