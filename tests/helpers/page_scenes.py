"""The live page without a run: its files, and documents made by hand. ``python -m tests.helpers.page_scenes`` serves every scene."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from orchestrator_adapter.control_plane.document import (
    BlockingPool,
    Bottleneck,
    Breaker,
    Budget,
    DeadLetterPage,
    DeadLetterRow,
    Document,
    Edge,
    Happened,
    Health,
    LastError,
    Latency,
    LatencyPoint,
    Ledger,
    Loop,
    Panel,
    Quantiles,
    Row,
    Shares,
    WorkerPool,
)
from orchestrator_adapter.control_plane.headline import with_headline
from orchestrator_adapter.control_plane.pages import page_files
from tests.helpers.documents import AT, document, edge, operator

Scene = Callable[[], Document]
CSP = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}

SDA_FUSION = (
    *(f"{source} -> merge" for source in ("radar-01", "radar-02", "radar-03", "optical-01", "optical-02", "isl-01")),
    *("isl-02 -> merge", "replay -> merge", "merge -> normalize", "normalize -> validate", "validate -> dedup"),
    *("dedup -> tee", "tee -> audit", "tee -> propagate", "propagate -> correlate", "correlate -> matched"),
    *("matched -> fuse", "fuse -> correlations", "screen -> found", "found -> conjunctions", "matched -> evidence"),
    *("found -> evidence", "evidence -> risk", "risk -> alerts"),
)


def graph(edges: tuple[str, ...], *, changed: dict[str, dict[str, Any]] | None = None, **changes: Any) -> Document:
    """A document of a topology: operators in the columns of their longest paths; ``changed`` by name of operator or edge."""
    changed = changed or {}
    pairs = [(one, other) for one, other in (each.split(" -> ") for each in edges)]
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    column = dict.fromkeys(names, 0)
    for _ in names:
        for one, other in pairs:
            column[other] = max(column[other], column[one] + 1)
    used: dict[int, int] = {}
    operators = []
    for name in sorted(names, key=column.__getitem__):
        row = used[column[name]] = used.get(column[name], -1) + 1
        inputs, outputs = any(each[1] == name for each in pairs), any(each[0] == name for each in pairs)
        role = "operator" if inputs and outputs else "sink" if inputs else "source"
        fields = {"role": role, "column": column[name], "row": row, "url": f"https://prefect.example/{name}"}
        operators.append(operator(name, **{**fields, **changed.get(name, {})}))
    drawn: tuple[Edge, ...] = tuple(edge(one, other, **changed.get(f"{one} -> {other}", {})) for one, other in pairs)
    now = time.time()
    fields = {
        "at": now,
        "started_at": now - 3_725,
        "timeline": (_happened(1, now - 3_725, "spawn", "", "The run has started"),),
        "latency": _latency(now),
        "panels": _PANELS,
        "breakers": (_breaker("optical-archive", operators=("optical-01", "optical-02")), _breaker("outbox")),
        "worker_pools": (_WORKERS,),
        "blocking_pools": tuple(
            BlockingPool(name=name, threads=2, busy=int(name == "audit"), waiting=0, abandoned=0)
            for name in ("audit", "log", "alerts")
        ),
        "url": "https://prefect.example/run",
    }
    return document((names[0], names[-1]), operators=tuple(operators), edges=drawn, **{**fields, **changes})


def _happened(number: int, at: float, decision: str, name: str, text: str, *, alarming: bool = False) -> Happened:
    return Happened(number=number, at=at, decision=decision, alarming=alarming, operator=name, text=text)


def _latency(now: float) -> Latency:
    series = tuple(
        LatencyPoint(
            at=now - 900 + 10 * i,
            quantiles=None if i % 30 == 7 else Quantiles(count=900, p50_s=0.004, p99_s=0.02 + 0.03 * (i % 17 == 3)),
        )
        for i in range(90)
    )
    return Latency(
        now=Quantiles(count=9_900, p50_s=0.004, p99_s=0.021),
        last_15_min=Quantiles(count=890_000, p50_s=0.004, p99_s=0.035),
        series=series,
    )


def _breaker(name: str, **changes: Any) -> Breaker:
    fields: dict[str, Any] = {"state": "closed", "forced": False, "probe_in_s": None, "failures": 0}
    return Breaker(name=name, **{**fields, "calls": 812, "rejections": 0, "opened": 0, **changes})


_PANELS = (
    Panel(
        title="Event time",
        columns=("Watermark", "Lag p99", "Late"),
        rows=(
            Row(name="radar-01", cells=("0.8 s ago", "1.2 s", "0")),
            Row(name="isl-01", cells=("2.1 s ago", "3.0 s", "12")),
        ),
    ),
    Panel(
        title="Alert outbox", columns=("Waiting", "Oldest", "Sent"), rows=(Row(name="webhook", cells=("0", "–", "14")),)
    ),
)
_WORKERS = WorkerPool(
    name="propagation",
    workers=2,
    ready=2,
    waiting=0,
    in_flight=1,
    calls=4_120,
    lost=0,
    restarts=0,
    hung=0,
    exhausted=False,
)
_CHAIN = tuple(f"{a} -> {b}" for a, b in pairwise(("radar", "normalize", "validate", "dedup", "log")))
_SLOW: dict[str, dict[str, Any]] = {
    "dedup": {"shares": Shares(busy=0.983, idle=0.017, blocked=0.0, down=0.0), "dead_letters": {"rejected": 25}},
    "validate -> dedup": {"fill": 0.998, "occupancy": 1022, "capacity": 1024, "pressure": 0.962, "outbox": 256},
    "normalize -> validate": {"fill": 0.9, "occupancy": 921, "capacity": 1024, "pressure": 0.61},
    "validate": {"shares": Shares(busy=0.12, idle=0.02, blocked=0.86, down=0.0)},
    "normalize": {"shares": Shares(busy=0.20, idle=0.19, blocked=0.61, down=0.0)},
}
_WHY = (
    "busy for 98 % of the last 10 s while its input 'validate -> dedup' was full for 96 % of it; no output made it wait"
)


def _bottleneck() -> Document:
    return graph(
        _CHAIN, changed=_SLOW, bottlenecks=(Bottleneck(operator="dedup", score=0.96, reason=_WHY),), actions=True
    )


def _fusion() -> Document:
    return graph(SDA_FUSION)


def _fusion_bottleneck() -> Document:
    changed: dict[str, dict[str, Any]] = {
        "dedup": _SLOW["dedup"],
        "validate -> dedup": _SLOW["validate -> dedup"],
        "validate": _SLOW["validate"],
        "optical-01": {"budget": Budget(left=None, of=None, window_s=None, restarts=2), "last_error": _error(200)},
    }
    return graph(SDA_FUSION, changed=changed, bottlenecks=(Bottleneck(operator="dedup", score=0.96, reason=_WHY),))


def _error(ago_s: float) -> LastError:
    return LastError(
        at=time.time() - ago_s, kind="ConnectError", message="[Errno 111] Connection refused: 127.0.0.1:8790"
    )


def _restarting() -> Document:
    down = {
        "state": "restarting",
        "restart_in_s": 3.4 - time.time() % 3,
        "budget": Budget(left=2, of=5, window_s=60.0, restarts=3),
        "shares": Shares(busy=0.3, idle=0.2, blocked=0.0, down=0.5),
        "last_error": _error(1),
        "errors": {"ConnectError": 3},
    }
    text = "optical-01 failed (ConnectError) and is restarted in 3.4 s: restart 3 of 5 within 60 s"
    timeline = (
        _happened(1, AT, "spawn", "", "The run has started"),
        _happened(2, time.time() - 2, "restart", "optical-01", text, alarming=True),
    )
    return graph(SDA_FUSION, changed={"optical-01": down}, timeline=timeline)


def _breaker_open() -> Document:
    archive = _breaker(
        "optical-archive",
        state="open",
        probe_in_s=12.0 - time.time() % 12,
        failures=5,
        rejections=140,
        opened=1,
        operators=("optical-01", "optical-02"),
    )
    users = {name: {"breakers": ("optical-archive",)} for name in ("optical-01", "optical-02")}
    return graph(SDA_FUSION, changed=users, breakers=(archive, _breaker("outbox")), actions=True)


def _stalled() -> Document:
    silent = 3.2 + time.time() % 20
    loop = Loop(
        silent_s=silent,
        stalled=True,
        lag_s=silent,
        stalls=1,
        blocked_by="dedup",
        stack='File "sda_ops/dedup.py", line 88, in check\n    time.sleep(60)',
        snapshot_age_s=silent,
    )
    health = Health(status="failing", reasons=(f"event loop has not answered for {silent:.2f} s; dedup blocks it",))
    return graph(_CHAIN, loop=loop, health=health)


def _draining() -> Document:
    ended = {"radar": {"state": "ok"}, "normalize": {"state": "ok"}}
    reason = "SIGTERM"
    health = Health(status="draining", reasons=(f"shutting down: {reason}",))
    return graph(_CHAIN, changed=ended, shutting_down=reason, health=health)


def _failing() -> Document:
    broken = {
        "log": {
            "state": "errored",
            "shares": Shares(busy=0.0, idle=0.0, blocked=0.0, down=1.0),
            "last_error": LastError(at=time.time() - 4, kind="OSError", message="[Errno 28] No space left on device"),
            "budget": Budget(left=0, of=0, window_s=None, restarts=0),
            "policy": "restart never",
        }
    }
    ledger = Ledger(
        left=(("ingested", 3_725_000), ("repeated", 0)),
        right=(("written", 3_687_700), ("duplicates", 37_245), ("in flight", 50)),
        balanced=False,
        lost=5,
    )
    reasons = ("operator 'log' has ended: OSError: [Errno 28] No space left on device",)
    return graph(_CHAIN, changed=broken, ledger=ledger, health=Health(status="failing", reasons=reasons))


def _paused() -> Document:
    health = Health(
        status="degraded",
        reasons=("source 'radar' is paused (requested by 127.0.0.1) and ingests nothing until it is resumed",),
    )
    return graph(_CHAIN, changed={"radar": {"state": "paused", "rate_in": 0.0}}, health=health, actions=True)


def _sixty() -> Document:
    lanes = [tuple(f"{name}-{lane}" for name in ("feed", "parse", "check", "store")) for lane in range(15)]
    beat = int(time.time() * 2) % 10
    busy = Shares(busy=0.1 * beat, idle=1 - 0.1 * beat, blocked=0.0, down=0.0)
    changed: dict[str, dict[str, Any]] = {name: {"shares": busy, "consumed": beat} for lane in lanes for name in lane}
    changed |= {f"{a} -> {b}": {"fill": 0.1 * beat, "rate": 100.0 * beat} for lane in lanes for a, b in pairwise(lane)}
    return graph(tuple(f"{a} -> {b}" for lane in lanes for a, b in pairwise(lane)), changed=changed)


def _hostile() -> Document:
    error = LastError(at=time.time() - 5, kind=HOSTILE, message=HOSTILE)
    changed = {HOSTILE: {"last_error": error, "note": HOSTILE, "errors": {HOSTILE: 1}, "dead_letters": {HOSTILE: 1}}}
    reason = Bottleneck(operator=HOSTILE, score=0.9, reason=HOSTILE)
    timeline = (_happened(1, time.time(), "restart", HOSTILE, HOSTILE, alarming=True),)
    panels = (Panel(title=HOSTILE, columns=(HOSTILE,), rows=(Row(name=HOSTILE, cells=(HOSTILE,)),)),)
    edges = (f"radar -> {HOSTILE}", f"{HOSTILE} -> log")
    return graph(edges, changed=changed, bottlenecks=(reason,), timeline=timeline, panels=panels, url="")


SCENES: dict[str, Scene] = {
    "healthy": lambda: graph(_CHAIN),
    "bottleneck": _bottleneck,
    "fusion": _fusion,
    "fusion-bottleneck": _fusion_bottleneck,
    "restarting": _restarting,
    "breaker": _breaker_open,
    "stalled": _stalled,
    "draining": _draining,
    "failing": _failing,
    "paused": _paused,
    "sixty": _sixty,
    "hostile": _hostile,
}


class _Pages(BaseHTTPRequestHandler):
    """``/`` and ``/page/…`` as the control plane, ``/events`` with the scene, the dead letters of one kind, and actions."""

    server: SceneServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        name = address.path.removeprefix("/").removeprefix("page/") or "index.html"
        if address.path == "/events":
            self._stream()
        elif address.path == "/dead-letters":
            asked = parse_qs(address.query)["operator"][0]
            self._send("application/json", msgspec.json.encode(_letters(asked)))
        elif (body := page_files().get(name)) is not None:
            self._send(_TYPES.get(name.rsplit(".", 1)[-1], "text/plain"), body)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        self.server.actions.append((self.path, self.headers.get("Authorization", "")))
        self._send("application/json", json.dumps({"result": "the run drains"}).encode())

    def _send(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CSP)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            while not self.server.silent.is_set():
                event, body = self.server.event()
                self.wfile.write(b"event: %b\ndata: %b\n\n" % (event, body))
                if self.server.silent.wait(self.server.every_s):
                    return
        except OSError:  # the page is closed
            return

    def log_message(self, *_: Any) -> None:
        """No access log."""


def _letters(name: str) -> DeadLetterPage:
    now = time.time()
    letters = tuple(
        DeadLetterRow(
            number=n, at=now - 3 * n, operator=name, kind="rejected", message=HOSTILE, attempts=1, payload="bytes (212)"
        )
        for n in range(20)
    )
    return DeadLetterPage(letters=letters, total=25, kept=20, next_before=1)


class SceneServer(ThreadingHTTPServer):
    """Serves one scene at a time.

    Attributes:
        scene: It makes the next document.
        silent: Set it, and every stream ends; new ones end at once.
        end: If it is there, it is sent instead of a document.
        actions: The path and the ``Authorization`` of each action that was requested.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, scene: Scene, *, every_s: float = 0.1, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Pages)
        self.scene = scene
        self.every_s = every_s
        self.silent = threading.Event()
        self.end: dict[str, str] | None = None
        self.actions: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def event(self) -> tuple[bytes, bytes]:
        """The next event."""
        if self.end is not None:
            return b"end", json.dumps(self.end).encode()
        return b"graph", msgspec.json.encode(with_headline(self.scene()))


@contextmanager
def serving(scene: Scene, *, every_s: float = 0.1) -> Iterator[SceneServer]:
    """A server on a thread."""
    with SceneServer(scene, every_s=every_s) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.silent.set()
            server.shutdown()
            thread.join()


def main() -> int:
    """Serve the scene that is named, until Ctrl-C."""
    name = sys.argv[1] if len(sys.argv) > 1 else "bottleneck"
    if name not in SCENES:
        print(f"no scene {name!r}; scenes: {', '.join(SCENES)}", file=sys.stderr)
        return 2
    with SceneServer(SCENES[name], every_s=0.5) as server:
        print(f"scene {name} at {server.url}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
