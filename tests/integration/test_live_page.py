"""The live page, in a real Chromium, of real runs: what goes wrong is on the page soon after it happened.

Each test prints how long that took, from the fault to the page. ``bench.faults`` reports such times.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from orchestrator_adapter.control_plane.document import Document, decode
from tests.helpers.browser import Browser, Page, headless, needs_chromium
from tests.helpers.control_plane import value
from tests.helpers.support import wait_until
from tests.helpers.watched_run import COOLDOWN_S, TOKEN, WatchedRun, watched_run
from tests.scenes.bottlenecks import scenes

pytestmark = needs_chromium

_OPERATORS = ("feed", "work", "call", "compute", "store")


class Archive(BaseHTTPRequestHandler):
    """What ``call`` asks. It answers with ``status``."""

    status = 200
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """No access log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as started:
        yield started


@pytest.fixture(scope="module")
def archive() -> Iterator[str]:
    with _Server(("127.0.0.1", 0), Archive) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@contextmanager
def running(archive: str) -> Iterator[WatchedRun]:
    """``feed -> work -> call -> compute -> store``, as a process."""
    with watched_run("faults", archive) as run:
        run.url = run.logged("control_plane")["url"]
        yield run


@pytest.fixture(scope="module")
def run(archive: str) -> Iterator[WatchedRun]:
    """A run for all the faults that it survives."""
    with running(archive) as started:
        yield started


@pytest.fixture
def page(browser: Browser, run: WatchedRun) -> Iterator[Page]:
    """The page of a run in which nothing is wrong. It must not have sent a request elsewhere, or logged an error."""
    opened = browser.open(f"{run.url}/")
    opened.wait_for(_all_run())
    yield opened
    opened.evaluate("0")
    assert [url for url in opened.requests if not url.startswith((run.url, "data:"))] == []
    assert opened.errors == []
    opened.close()


def _first(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


def _says(selector: str, words: str) -> str:
    """An element that the selector finds has these words."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})]"
    return f"{found}.some(each => each.textContent.includes({json.dumps(words)}))"


def _operator(name: str, state: str) -> str:
    return _first(f'[data-operator="{name}"][data-state="{state}"]')


def _all_run(*names: str) -> str:
    return " && ".join(_operator(name, "running") for name in names or _OPERATORS)


_MARKED = (
    "[...new Set([...document.querySelectorAll('[data-bottleneck=\"true\"]')].map(it => it.dataset.operator))].sort()"
)


def _marks(*names: str) -> str:
    """Exactly these operators are marked as bottlenecks."""
    return f"{_MARKED}.join() === {json.dumps(','.join(sorted(names)))}"


def _document(run: WatchedRun) -> Document:
    return decode(httpx.get(f"{run.url}/graph", timeout=10).content)


def _shown(what: str, fault_at: float, shown_at: float) -> None:
    print(f"{what}: on the page {shown_at - fault_at:.2f} s after it")


def test_an_operator_that_fails_is_shown_as_restarting_and_again_as_running(run: WatchedRun, page: Page) -> None:
    """Its state, its next instance, the restart in the timeline with the cause."""
    restarting = page.when(_operator("work", "restarting"))
    before = next(each for each in _document(run).operators if each.name == "work")
    fault_at = run.command("fail", wait_for="fail")
    _shown("an operator that fails", fault_at, restarting.held_at())
    page.wait_for(_operator("work", "running"))
    page.wait_for(_says('[data-decision="restart"][data-operator="work"]', "work: has failed"))
    page.wait_for(_says('[data-decision="restart"][data-operator="work"]', "the antenna is gone"))
    after = next(each for each in _document(run).operators if each.name == "work")
    assert after.instance == before.instance + 1
    assert after.budget.restarts == before.budget.restarts + 1
    assert after.last_error is not None
    assert (after.last_error.kind, after.last_error.message) == ("OSError", "the antenna is gone")


def test_a_killed_worker_process_is_shown_and_replaced(run: WatchedRun, page: Page) -> None:
    (before,) = _document(run).worker_pools
    page.wait_for(_says(".pool", "2 of 2 workers ready"))
    ready = run.logged("worker_ready")
    fewer = page.when(_says(".pool", "1 of 2 workers ready"))
    os.kill(ready["pid"], signal.SIGKILL)
    fault_at = time.time()
    _shown("a worker that is killed", fault_at, fewer.held_at())
    page.wait_for(_says(".pool", "2 of 2 workers ready"))
    (after,) = _document(run).worker_pools
    assert after.restarts == before.restarts + 1
    assert after.lost == 0


def test_pressure_behind_a_slow_sink_is_shown_and_the_sink_is_the_bottleneck(run: WatchedRun, page: Page) -> None:
    page.wait_for(_marks())
    pressure = page.when(_first('[data-edge="compute -> store"]:not([data-pressure="none"])'))
    marked = page.when(_marks("store"))
    fault_at = run.command("write 0.3", wait_for="write")
    try:
        _shown("pressure behind a slow sink", fault_at, pressure.held_at())
        _shown("the slow sink as the bottleneck", fault_at, marked.held_at())
        (bottleneck,) = _document(run).bottlenecks
        assert bottleneck.operator == "store"
        assert "'compute -> store'" in bottleneck.reason
        page.wait_for(_says("[data-headline]", "store"))
    finally:
        run.command("write 0", wait_for="write")


def test_a_breaker_that_opens_is_shown_with_its_countdown(run: WatchedRun, page: Page) -> None:
    breaker = '[data-breaker="archive"]'
    is_open = page.when(_first(f'{breaker}[data-state="open"]'))
    counts = [page.when(_says(breaker, f"next probe in {seconds} s")) for seconds in (2, 1)]
    Archive.status = 500
    try:
        opened = run.logged("circuit_breaker", state="open")
        _shown("a breaker that opens", opened["at"], is_open.held_at())
        left = _document(run).breakers[0].probe_in_s
        assert left is not None
        assert 0 <= left <= COOLDOWN_S
        two, one = (count.held_at() for count in counts)
        assert two < one
    finally:
        Archive.status = 200
    page.wait_for(_first(f'{breaker}[data-state="closed"]'))


def test_the_page_names_what_stalls_the_loop_and_stays_useful(run: WatchedRun, page: Page) -> None:
    """The banner, the operator's name, the last figures stay, and the banner goes when the loop answers again."""
    banner = _first('[data-banner="stalled"]')
    stalled = page.when(f"{banner} && {_says('[data-headline]', 'work')}")
    fault_at = run.command("block 2.5", wait_for="block")
    _shown("a stalled loop, with the operator's name", fault_at, stalled.held_at())
    assert page.evaluate(f"Boolean({_all_run()})") is True
    page.click('[data-operator="work"][data-state]')
    page.wait_for(_first('[data-details="work"]'))
    document = _document(run)
    assert (document.loop.stalled, document.loop.blocked_by, document.health.status) == (True, "work", "failing")
    page.wait_for(f"!{banner}")


def test_a_source_is_paused_and_resumed_by_the_page_s_own_buttons_and_all_figures_agree(
    run: WatchedRun, page: Page
) -> None:
    """While nothing moves, the page, ``/graph`` and ``/metrics`` have the same ledger, and it balances."""
    page.click('[data-operator="feed"][data-state]')
    page.wait_for(_first('[data-details="feed"]'))
    _act(page, "Pause")
    page.wait_for(_operator("feed", "paused"))
    wait_until(lambda: dict(_document(run).ledger.right)["in_flight"] == 0, "nothing is in flight")
    ledger = _document(run).ledger
    assert ledger.balanced
    assert ledger.lost == 0
    metrics = httpx.get(f"{run.url}/metrics", timeout=10).text
    for term, items in (*ledger.left, *ledger.right):
        assert value(metrics, "ledger_items", term=term) == items
        page.wait_for(
            "[...document.querySelectorAll('#ledger tr')].some(row => row.cells[0].textContent === "
            f"{json.dumps(term.replace('_', ' '))} && row.cells[1].textContent.replace(/\\D/g, '') === '{items}')"
        )
    assert value(metrics, "ledger_balanced") == 1
    page.wait_for(_first('#ledger [data-balanced="true"]'))
    ingested = dict(ledger.left)["ingested"]
    assert dict(_document(run).ledger.left)["ingested"] == ingested > 0
    _act(page, "Resume")
    page.wait_for(_operator("feed", "running"))
    wait_until(lambda: dict(_document(run).ledger.left)["ingested"] > ingested, "it ingests again")


def _act(page: Page, button: str) -> None:
    """Press an action's button, enter the token, confirm, and wait for the server's answer."""
    page.click("button.action", text=button)
    page.wait_for(_first("dialog[open] input[name=token]"))
    page.evaluate("document.querySelector('dialog input').value = ''")
    page.click("dialog input[name=token]")
    page.type(TOKEN)
    page.click("dialog button[type=submit]")
    page.wait_for(_says("dialog [role=status]", "Done"))
    page.click("dialog button", text="Close")


def test_the_page_drains_the_run_and_says_that_it_has_ended(browser: Browser, archive: str) -> None:
    """Drained by the page's own button; the figures stay, and the ledger of the report balances."""
    with running(archive) as run:
        page = browser.open(f"{run.url}/")
        page.wait_for(_all_run())
        ended = page.when(_first('[data-banner="ended"], [data-banner="disconnected"]'))
        _act(page, "Drain the run")
        _shown("the end of the run", run.logged("shutdown")["at"], ended.held_at())
        report = run.end()
        assert report["event"] == "ShutDown"
        assert report["ledger_holds"]
        page.close()


def test_exactly_the_slow_operator_is_marked_in_each_of_ten_topologies(browser: Browser) -> None:
    with watched_run("scenes") as run:
        for scene in scenes():
            said = run.received("scene")
            assert said["name"] == scene.name
            opened_at = time.time()
            page = browser.open(f"{said['url']}/")
            shown_at = page.wait_for(_marks(*scene.truth))
            names = ", ".join(sorted(scene.truth))
            print(f"{scene.name}: {names} is marked {shown_at - opened_at:.2f} s after the page was opened")
            page.close()
        run.command("end")
        assert all(run.received("ended")["balanced"])
