"""What feeds the pipeline: a radar and an optical archive that can be made to fail, and the simulator for the rest."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from flows.local_prefect.processes import free_ports
from sda_ops.wire import radar
from tests.helpers.support import Addresses, flows_process, listens, wait_until

_TICK_S = 0.02


class Radar:
    """Sends detections over UDP, or nothing, or datagrams that are no detections, until it is closed."""

    def __init__(self, port: int, *, rate_per_s: float = 100.0) -> None:
        self.silent = False
        self.garbage_per_s = 0.0
        self._port, self._rate_per_s = port, rate_per_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sending."""
        self._closed.set()
        self._thread.join()

    def _send(self) -> None:
        number, due, due_garbage = 0, 0.0, 0.0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not self._closed.wait(_TICK_S):
                due += 0.0 if self.silent else self._rate_per_s * _TICK_S
                due_garbage += self.garbage_per_s * _TICK_S
                for _ in range(int(due)):
                    number += 1
                    frame = radar.encode(
                        array_id=1,
                        target_track_id=number,
                        timestamp_ns=time.time_ns(),
                        range_m=1e6,
                        sigma_range_m=30.0,
                    )
                    sock.sendto(frame, ("127.0.0.1", self._port))
                for _ in range(int(due_garbage)):
                    sock.sendto(b"\xff" * 63, ("127.0.0.1", self._port))
                due, due_garbage = due % 1, due_garbage % 1


class Archive:
    """A proxy before the simulator's archive. ``answers`` is ``pages``, ``500`` or ``rubbish`` (once, a body that is not JSON)."""

    def __init__(self, port: int, behind: int) -> None:
        self.answers = "pages"
        archive, client = self, httpx.Client(base_url=f"http://127.0.0.1:{behind}")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                match archive.answers:
                    case "pages":
                        found = client.get(self.path)
                        self._answer(found.status_code, found.content, found.headers.get("content-type", ""))
                    case "500":
                        self._answer(500, b"the archive's disk is full", "text/plain")
                    case _:
                        archive.answers = "pages"
                        self._answer(200, b"<html>maintenance</html>", "application/json")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """No access log."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                """A client that has gone is no error."""

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Feeds:
    """All of them: ``radar-01`` and ``optical`` can fail; ``radar-02`` and ``isl`` are the simulator's."""

    def __init__(self, addresses: Addresses, behind: int) -> None:
        self.addresses = addresses
        self.radar = Radar(addresses.radars[0])
        self.archive = Archive(addresses.archive, behind)
        self._load: list[subprocess.Popen[bytes]] = []

    def load(self, rate_per_s: float) -> None:
        """Send so many detections more to ``radar-02``, from a process of their own, until the end."""
        self._load.append(
            flows_process(
                [
                    *("simulate", "--radar", f"127.0.0.1:{self.addresses.radars[1]}", "--rate-radar", str(rate_per_s)),
                    *("--rate-optical", "0", "--rate-isl", "0", "--objects", "300", "--seed", "7"),
                ],
                {},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def close(self) -> None:
        """End everything."""
        for process in self._load:
            process.terminate()
            process.wait()
        self.radar.close()
        self.archive.close()


@contextmanager
def fed() -> Iterator[Feeds]:
    """The feeds of one pipeline, at free addresses."""
    addresses = Addresses.free(radars=2)
    (behind,) = free_ports(1)
    simulator = flows_process(
        [
            *("simulate", "--radar", f"127.0.0.1:{addresses.radars[1]}", "--archive", f"127.0.0.1:{behind}"),
            *("--isl", f"127.0.0.1:{addresses.isl}", "--objects", "300"),
            *("--rate-radar", "50", "--rate-optical", "20", "--rate-isl", "20"),
        ],
        {},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listens(behind), "the simulator's archive")
        feeds = Feeds(addresses, behind)
        try:
            yield feeds
        finally:
            feeds.close()
    finally:
        simulator.terminate()
        simulator.wait()
