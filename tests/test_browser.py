"""The driver of Chromium that the tests of the live page use."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.browser import Browser, PageError, headless, needs_chromium

pytestmark = needs_chromium

_PAGE = b"""<!doctype html><html lang="en"><title>A page</title><body><button id="go" aria-label="Start it">Go</button>
<input id="in"><script>
document.querySelector("#go").addEventListener("click", () => setTimeout(async () => {
  document.body.dataset.clicked = Date.now(); console.error("it was", "clicked");
  await fetch("/other"); document.body.dataset.answered = true; }, 100));
document.addEventListener("keydown", e => document.body.dataset.key = e.key);
</script></body></html>"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'")
        self.end_headers()
        self.wfile.write(_PAGE if found else b"")

    def log_message(self, *_: Any) -> None:
        """No access log."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium; no process of it is left after the tests."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with headless() as started:
        yield started
        processes = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
        assert processes
    assert all(_has_ended(process) for process in processes)


def _has_ended(process: psutil.Process) -> bool:
    """Killed. It may wait for the system to reap it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    except psutil.NoSuchProcess:
        return True


def test_a_condition_is_timed_in_the_page(browser: Browser, url: str) -> None:
    page = browser.open(url)
    waiting = page.when("document.body.dataset.clicked")
    clicked_at = time.time()
    page.click("#go")
    page.evaluate("new Promise(done => setTimeout(done, 400))")  # the test asks late
    held_at = waiting.held_at()
    assert abs(held_at - float(page.evaluate("Number(document.body.dataset.clicked)")) / 1000) < 0.1
    assert held_at > clicked_at + 0.09
    page.wait_for("true")
    assert page.evaluate("new Promise(done => setTimeout(() => done({a: [1]}), 1))") == {"a": [1]}


def test_errors_and_requests_are_kept(browser: Browser, url: str) -> None:
    page = browser.open(url)
    page.click("#go")
    page.wait_for("document.body.dataset.answered")
    assert "error: it was clicked" in page.errors
    assert any("404" in error and error.endswith(f"{url}other") for error in page.errors)
    assert page.requests.count(url) == 1
    assert f"{url}other" in page.requests


def test_the_page_s_own_time_can_pass_faster(browser: Browser, url: str) -> None:
    page = browser.open(url)
    began = time.monotonic()
    page.evaluate("setTimeout(() => document.body.dataset.late = true, 29_000)")
    page.pass_time(30.0)
    assert page.evaluate("document.body.dataset.late") == "true"
    assert time.monotonic() - began < 20


def test_keys_text_and_the_accessibility_tree(browser: Browser, url: str) -> None:
    page = browser.open(url)
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "go"
    page.press("Enter")
    page.wait_for("document.body.dataset.clicked")
    assert page.evaluate("document.body.dataset.key") == "Enter"
    page.click("#in")
    page.type("a word")
    assert page.evaluate("document.querySelector('#in').value") == "a word"
    (button,) = (node for node in page.accessibility() if node.role == "button")
    assert button.name == "Start it"


def test_a_screenshot_has_the_size_and_the_colours_that_were_chosen(browser: Browser, url: str, tmp_path: Path) -> None:
    page = browser.open(url, width=390, height=800, scale=2, dark=True, mobile=True)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is True
    page.look(width=390, height=800, scale=2, less_motion=True)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is False
    assert page.evaluate("matchMedia('(prefers-reduced-motion: reduce)').matches") is True
    page.screenshot(tmp_path / "page.png")
    assert struct.unpack(">II", (tmp_path / "page.png").read_bytes()[16:24]) == (780, 1600)


def test_what_goes_wrong_in_the_page_is_an_error_with_its_text(browser: Browser, url: str) -> None:
    page = browser.open(url)
    with pytest.raises(PageError, match="nothing_there is not defined"):
        page.evaluate("nothing_there.x")
    with pytest.raises(PageError, match=r"waited 0\.1 s in vain for: false\nthe page shows:\nGo"):
        page.wait_for("false", limit_s=0.1)
    with pytest.raises(PageError, match="there is no element #missing"):
        page.click("#missing")
    with pytest.raises(PageError, match="net::ERR_"):
        page.go("http://127.0.0.1:1/")
