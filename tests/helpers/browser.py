"""A headless Chromium, driven over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

``with headless() as browser: page = browser.open(url)``. It has a temporary profile, and it is killed at the end. A condition
is watched in the page itself, so the time at which it held is not the time at which a test asked.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_START_S = 60.0
_CALL_S = 60.0
_KEYS = {  # what `press` accepts beside single characters: (code, Windows virtual key code, text)
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    " ": ("Space", 32, " "),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "Home": ("Home", 36, ""),
    "End": ("End", 35, ""),
}
_SHIFT = 8


def chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="there is no Chromium: `make debian-packages` installs it"
)


class PageError(AssertionError):
    """JavaScript that raised, or a condition that did not hold in time."""


@dataclass(frozen=True, slots=True)
class AxNode:
    """A node of the accessibility tree, as a screen reader has it."""

    role: str
    name: str
    description: str
    properties: dict[str, Any]


@contextmanager
def headless() -> Iterator[Browser]:
    """Start a Chromium; kill it, with all its processes, at the end."""
    path = chromium()
    assert path is not None, "there is no Chromium: make debian-packages"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # its helpers may still be writing
        process = subprocess.Popen(
            [
                *(path, "--headless=new", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
                *("--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-extensions"),
                *("--disable-backgrounding-occluded-windows", "--hide-scrollbars", "--enable-unsafe-swiftshader"),
                *(f"--user-data-dir={name}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with ExitStack() as stack:
            try:
                address = _address(process, Path(name))
                socket = connect(address, max_size=None, max_queue=None, ping_interval=None)
                yield Browser(stack.enter_context(socket))
            finally:  # before the connection is closed: Chromium would take two seconds for that
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Where it listens, once it does: it writes the port and the path into its profile."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError):
            port, path = (profile / "DevToolsActivePort").read_text().split()
            return f"ws://127.0.0.1:{port}{path}"
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"Chromium did not start (exit code {process.poll()})")


class Browser:
    """The connection to one Chromium. Not for several threads at once."""

    def __init__(self, socket: Connection) -> None:
        self._socket = socket
        self._number = 0
        self._pages: dict[str, Page] = {}

    def open(
        self,
        url: str = "about:blank",
        *,
        width: int = 1280,
        height: int = 900,
        scale: float = 1.0,
        dark: bool = False,
        mobile: bool = False,
        headers: dict[str, str] | None = None,
    ) -> Page:
        """A new page (a tab of its own), at ``url``. ``headers`` are sent with each of its requests."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, target, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.look(width=width, height=height, scale=scale, dark=dark, mobile=mobile)
        if headers:
            page.call("Network.setExtraHTTPHeaders", {"headers": headers})
        if url != "about:blank":
            page.go(url)
        return page

    def call(
        self, method: str, parameters: dict[str, Any] | None = None, session: str = "", *, limit_s: float = _CALL_S
    ) -> dict[str, Any]:
        """Send one command and wait for its result. Events that come before it go to their pages."""
        self._number += 1
        number = self._number
        command = {"id": number, "method": method, "params": parameters or {}}
        self._socket.send(json.dumps(command | ({"sessionId": session} if session else {})))
        deadline = time.monotonic() + limit_s
        while True:
            try:
                message = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                raise PageError(f"Chromium did not answer {method} within {limit_s:g} s") from None
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error'].get('message')}")
                result: dict[str, Any] = message["result"]
                return result
            if (page := self._pages.get(message.get("sessionId", ""))) is not None:
                page.on_event(message.get("method", ""), message.get("params", {}))


@dataclass(frozen=True, slots=True)
class Waiting:
    """A condition that is watched in the page."""

    page: Page
    number: int
    condition: str

    def held_at(self, limit_s: float = 60.0) -> float:
        """Wait until it holds. Returns when it held first: Unix time, s (``time.time()`` on this machine)."""
        limit_ms = round(limit_s * 1000)
        at = self.page.evaluate(
            f"Promise.race([window.__waits[{self.number}],"
            f" new Promise(done => setTimeout(() => done(null), {limit_ms}))])",
            limit_s=limit_s + _CALL_S,
        )
        if at is None:
            text = str(self.page.evaluate("document.body ? document.body.innerText : ''"))
            raise PageError(f"waited {limit_s:g} s in vain for: {self.condition}\nthe page shows:\n{text[:4000]}")
        return float(at) / 1000


@dataclass(slots=True)
class Page:
    """One page. ``errors`` and ``requests`` are complete up to the last command.

    Attributes:
        errors: What the console has as an error or a warning, exceptions, and failed loads.
        requests: The URL of each request that it has sent.
    """

    browser: Browser
    target: str
    session: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _loaded: bool = False
    _waits: int = 0
    _time_passed: bool = False

    def call(
        self, method: str, parameters: dict[str, Any] | None = None, *, limit_s: float = _CALL_S
    ) -> dict[str, Any]:
        """Any command of the protocol."""
        return self.browser.call(method, parameters, self.session, limit_s=limit_s)

    def look(
        self,
        *,
        width: int = 1280,
        height: int = 900,
        scale: float = 1.0,
        dark: bool = False,
        mobile: bool = False,
        less_motion: bool = False,
    ) -> None:
        """Its size in CSS pixels, pixels for each of them, colour scheme, and whether it is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", size)
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if less_motion else "no-preference",
        }
        media = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", {"features": media})

    def go(self, url: str, *, limit_s: float = _CALL_S) -> None:
        """Open ``url`` and wait until it has loaded."""
        self._loaded = False
        if error := self.call("Page.navigate", {"url": url}).get("errorText"):
            raise PageError(f"{url}: {error}")
        deadline = time.monotonic() + limit_s
        while not self._loaded:
            if time.monotonic() > deadline:
                raise PageError(f"{url} has not loaded within {limit_s:g} s")
            self.evaluate("0")
            time.sleep(0.01)

    def pass_time(self, seconds: float, *, limit_s: float = _CALL_S) -> None:
        """Let so much of the page's own time pass, as fast as its requests are answered. Its clock is then its own."""
        self._time_passed = False
        policy = {"policy": "pauseIfNetworkFetchesPending", "budget": seconds * 1000}
        self.call("Emulation.setVirtualTimePolicy", policy)
        deadline = time.monotonic() + limit_s
        while not self._time_passed:
            if time.monotonic() > deadline:
                raise PageError(f"{seconds:g} s of the page's time took more than {limit_s:g} s")
            self.evaluate("0")
            time.sleep(0.02)

    def evaluate(self, script: str, *, limit_s: float = _CALL_S) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to. The value must be JSON."""
        parameters = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.call("Runtime.evaluate", parameters, limit_s=limit_s)
        if "exceptionDetails" in result:
            raise PageError(f"{script}: {_exception(result['exceptionDetails'])}")
        return result["result"].get("value")

    def when(self, condition: str) -> Waiting:
        """Begin to watch a JavaScript expression, at once after each change of the page and every 20 ms."""
        self._waits += 1
        number = self._waits
        self.evaluate(
            f"""void ((window.__waits ??= {{}})[{number}] = new Promise(done => {{
                const holds = () => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }};
                let timer, observer;
                const look = () => {{
                    if (!holds()) return;
                    clearInterval(timer);
                    observer.disconnect();
                    done(Date.now());
                }};
                observer = new MutationObserver(look);
                observer.observe(document,
                    {{subtree: true, childList: true, attributes: true, characterData: true}});
                timer = setInterval(look, 20);
                look();
            }}))"""
        )
        return Waiting(self, number, condition)

    def wait_for(self, condition: str, *, limit_s: float = 60.0) -> float:
        """Wait until a JavaScript expression holds; ``held_at`` says what it returns."""
        return self.when(condition).held_at(limit_s)

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Save a PNG of what is visible, or of the ``whole`` page."""
        parameters = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            parameters |= {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", parameters)["data"]))

    def click(self, selector: str, *, text: str = "") -> None:
        """Press the left mouse button in the middle of the first element that the CSS selector finds, with this ``text``."""
        found = self.evaluate(
            f"""(() => {{
                const element = [...document.querySelectorAll({json.dumps(selector)})]
                    .find(each => !{json.dumps(text)} || each.textContent.trim() === {json.dumps(text)});
                if (!element) return null;
                element.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
                const box = element.getBoundingClientRect();
                return [box.left + box.width / 2, box.top + box.height / 2];
            }})()"""
        )
        if found is None:
            raise PageError(f"there is no element {selector}{f' with the text {text!r}' if text else ''}")
        at = {"x": found[0], "y": found[1]}
        self.call("Input.dispatchMouseEvent", at | {"type": "mouseMoved"})
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", at | {"type": kind, "button": "left", "clickCount": 1})

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key: one character, or a name such as ``Enter``, ``Tab``, ``Escape``, ``ArrowRight``."""
        code, number, text = _KEYS.get(key, ("", ord(key[0].upper()), key))
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": _SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", event | {"type": "keyDown", **({"text": text} if text else {})})
        self.call("Input.dispatchKeyEvent", event | {"type": "keyUp"})

    def type(self, text: str) -> None:
        """Enter text into the element that has the focus."""
        self.call("Input.insertText", {"text": text})

    def accessibility(self) -> list[AxNode]:
        """The accessibility tree in document order, without the nodes that a screen reader ignores."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            AxNode(
                role=str(node.get("role", {}).get("value", "")),
                name=str(node.get("name", {}).get("value", "")),
                description=str(node.get("description", {}).get("value", "")),
                properties={each["name"]: each["value"].get("value") for each in node.get("properties", ())},
            )
            for node in nodes
            if not node.get("ignored")
        ]

    def close(self) -> None:
        """Close the tab."""
        self.browser.call("Target.closeTarget", {"targetId": self.target})

    def on_event(self, method: str, event: dict[str, Any]) -> None:
        """Keep what the page reports."""
        match method:
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(event["request"]["url"])
            case "Emulation.virtualTimeBudgetExpired":
                self._time_passed = True
            case "Runtime.exceptionThrown":
                self.errors.append(_exception(event["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if event["type"] in {"error", "warning", "assert"}:
                words = (str(each.get("value", each.get("description", ""))) for each in event["args"])
                self.errors.append(f"{event['type']}: {' '.join(words)}")
            case "Log.entryAdded" if event["entry"]["level"] in {"error", "warning"}:
                self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}".rstrip())
            case _:
                pass


def _exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text"))
