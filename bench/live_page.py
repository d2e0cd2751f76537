"""Pictures of the live page, and what it costs the browser.

``make screenshot-page`` runs ``sda-ingest`` with simulated sensors and a ``dedup`` that is too slow, and writes
``docs/live-page.png``, ``docs/live-page-dark.png`` and ``docs/live-page-phone.png``. ``--cost`` measures instead how long the
scripts of the page work for a document of 60 operators of which every figure changes. Neither judges anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flows.topologies.ingest as topology
from flows.__main__ import main as flows_main
from orchestrator_adapter import WiredEnds
from tests.helpers.browser import Browser, Page, chromium, headless
from tests.helpers.page_scenes import SCENES, serving
from tests.helpers.support import ROOT, wait_until

_BATCH_S = 1.0  # what the slow operator needs for a batch of at most 256 items
_START_S = 60.0
_RUN_S = 90.0
_LOOKS: dict[str, dict[str, Any]] = {
    "live-page": {"width": 1440, "height": 900},
    "live-page-dark": {"width": 1440, "height": 900, "dark": True},
    "live-page-phone": {"width": 390, "height": 844, "scale": 2, "mobile": True},
}
_EVERY_S = 0.5
_NO_SCRIPT = frozenset({"(idle)", "(program)", "(root)"})  # entries of the profile that are not JavaScript


class _SlowEnds:
    """An operator's ends that wait after each batch."""

    def __init__(self, ends: WiredEnds) -> None:
        self._ends = ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ends, name)

    async def flush(self) -> None:
        await self._ends.flush()
        await asyncio.sleep(_BATCH_S)


def _slow(deduplicate: Callable[..., Any]) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        run = deduplicate(**options)
        return lambda ends: run(_SlowEnds(ends))

    return make


def slow_run(folder: str) -> int:
    """The process of the run."""
    vars(topology)["deduplicate"] = _slow(vars(topology)["deduplicate"])
    return flows_main(["demo", "--no-api", "--quiet", f"--seconds={_RUN_S:g}", f"--folder={folder}/demo"])


def pictures(browser: Browser, target: Path) -> None:
    """Each picture of a real run, once the bottleneck is marked."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        log = Path(name) / "out"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "bench.live_page", "--slow-run", name]
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
        try:
            address: list[str] = []

            def serves() -> bool:
                lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
                address.extend(line["url"] for line in lines if line.get("event") == "control_plane_address")
                file = Path(name) / "demo" / "pipeline.log"
                return bool(address) and file.is_file() and '"control_plane"' in file.read_text()

            wait_until(serves, "the run serves its page", limit_s=_START_S)
            for picture, look in _LOOKS.items():
                page = browser.open(f"{address[0]}/", **look)
                page.wait_for("document.querySelector('[data-bottleneck=true]')")
                if picture == "live-page":
                    time.sleep(30)  # so that its latency has a curve
                    page.wait_for("document.querySelector('[data-bottleneck=true]')")
                time.sleep(1)
                file = target / f"{picture}.png"
                page.screenshot(file)
                page.close()
                print(json.dumps({"picture": str(file), "bytes": file.stat().st_size}))
        finally:
            process.terminate()
            process.wait(_RUN_S)


def cost(browser: Browser, seconds: float) -> None:
    """The time of JavaScript for each document, by the sampling profiler."""
    with serving(SCENES["sixty"], every_s=_EVERY_S) as server:
        page = browser.open(server.url)
        page.wait_for("document.querySelectorAll('[data-operator][data-state]').length === 60")
        script_ms = _script_ms(page, seconds)
    documents = seconds / _EVERY_S
    print(
        f"60 operators, 45 edges: {script_ms / documents:.1f} ms of JavaScript for a document, two documents a second"
    )


def _script_ms(page: Page, seconds: float) -> float:
    page.call("Profiler.enable")
    page.call("Profiler.start")
    time.sleep(seconds)
    profile = page.call("Profiler.stop")["profile"]
    names = {node["id"]: node["callFrame"]["functionName"] for node in profile["nodes"]}
    samples = zip(profile["samples"], profile["timeDeltas"], strict=True)
    return float(sum(us for node, us in samples if names[node] not in _NO_SCRIPT)) / 1_000


def main() -> int:
    """Take the pictures, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where the pictures go")
    parser.add_argument("--cost", action="store_true", help="measure the time of the page's scripts")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long --cost measures")
    parser.add_argument("--slow-run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.slow_run:
        return slow_run(args.slow_run)
    if chromium() is None:
        print("there is no Chromium: make debian-packages", file=sys.stderr)
        return 1
    with headless() as browser:
        cost(browser, args.seconds) if args.cost else pictures(browser, args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
