"""Screenshots, by a headless Chromium, of ``sda-ingest`` under a real Prefect server, after a restart.

``make screenshot`` (needs ``make debian-packages`` once) writes ``docs/flow-run.png``, ``docs/flow-run-topology.png`` and
``docs/flow-run-status.png``. It prints where they are and judges nothing; ``tests/integration/test_flow_run_page.py`` asks
the same server for what the page draws.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.browser import Browser, chromium, headless
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.support import ROOT, Addresses, flows_process, wait_until

_LOADED_S = 15.0  # of the page's own time
_LIMIT_S = 120.0
_WIDTH, _HEIGHT = 1500, 1100  # pixels


def photograph(browser: Browser, url: str, file: Path) -> None:
    """Open a page, wait until it has loaded all that it shows, and save a screenshot."""
    page = browser.open(url, width=_WIDTH, height=_HEIGHT)
    page.pass_time(_LOADED_S, limit_s=_LIMIT_S)
    page.screenshot(file)
    page.close()


class _Archive(BaseHTTPRequestHandler):
    """An optical archive whose first answer is not a page; after that its pages are empty."""

    rubbish = 1

    def do_GET(self) -> None:
        body, type(self).rubbish = (b"<html>", self.rubbish - 1) if self.rubbish > 0 else (b"[]", 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """No access log."""


@contextmanager
def archive(port: int) -> Iterator[None]:
    """The archive, on a thread."""
    _Archive.rubbish = 1
    with ThreadingHTTPServer(("127.0.0.1", port), _Archive) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def restarted_ingest(server: PrefectServer, folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """``sda-ingest`` as a process, after a restart of its optical source. Yields the flow run's id and the settings."""
    addresses = Addresses.free(radars=2)
    settings = addresses.settings(folder)
    with archive(addresses.archive), (folder / "pipeline.log").open("wb") as log:
        process = flows_process(["ingest", "--quiet"], settings, extra=server.environment, stdout=log, stderr=log)
        try:
            found: list[str] = []

            def rewired() -> bool:
                found.extend(_rewired(server))
                return bool(found)

            wait_until(rewired, f"optical #2 runs; see {folder}", limit_s=_LIMIT_S)
            yield found[0], settings
        finally:
            process.terminate()
            process.wait(60)


def _rewired(server: PrefectServer) -> list[str]:
    """The flow runs in which ``merge`` reads from ``optical #2``, and is Running."""
    query = {"task_runs": {"name": {"any_": ["merge"]}, "state": {"type": {"any_": ["RUNNING"]}}}}
    found = httpx.post(f"{server.api_url}/task_runs/filter", json=query, timeout=60).json()
    return [str(run["flow_run_id"]) for run in found if (run["state"] or {}).get("message") == "reads optical #2"]


def artifact_ids(server: PrefectServer, flow_run: str) -> dict[str, str]:
    """The run's artifacts: key to id."""
    query = {"artifacts": {"flow_run_id": {"any_": [flow_run]}}}
    found = httpx.post(f"{server.api_url}/artifacts/filter", json=query, timeout=60).json()
    return {artifact["key"]: artifact["id"] for artifact in found}


def main() -> int:
    """Take every screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the run goes on before the picture")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where the pictures go")
    args = parser.parse_args()
    if chromium() is None:
        print("there is no Chromium: make debian-packages", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        server = PrefectServer(Path(name), Addresses.free(radars=1).archive)
        server.start()
        try:
            with restarted_ingest(server, Path(name)) as (flow_run, _):
                time.sleep(args.seconds)
                ui = server.api_url.removesuffix("/api")
                shown = artifact_ids(server, flow_run)
                pages = {
                    "flow-run": f"{ui}/runs/flow-run/{flow_run}",
                    "flow-run-status": f"{ui}/artifacts/artifact/{shown['sda-ingest-status']}",
                    # The classic UI shows a Mermaid graph as its text; the new one, on the same server, draws it.
                    "flow-run-topology": f"{ui}/v2/artifacts/artifact/{shown['sda-ingest-topology']}",
                }
                with headless() as browser:
                    for what, url in pages.items():
                        file = args.folder / f"{what}.png"
                        photograph(browser, url, file)
                        print(json.dumps({"picture": str(file), "of": url, "bytes": file.stat().st_size}))
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
