"""``make bench-faults``: twelve faults in real pipelines; when page, metrics, alerts and log show them, as a Markdown table.

Each fault has a pipeline, a Chromium with the live page and a Prometheus of its own. The time is from the fault until the page
has the text, an answer of ``/metrics`` has the sample (it is asked ten times a second), and the line is in the log. An
alert's time is until its condition held, evaluated once a second with the rules of ``deploy/prometheus/rules.yml`` as they are;
it fires after the rule's own ``for``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench.faults.catalogue import Fault, catalogue
from bench.faults.observers import Alert, Line, Metrics, prometheus
from tests.helpers.browser import Browser, PageError, chromium, headless

_SHOWN_WITHIN_S = 15.0
_MAX_TEXT = 200
_OF_YOUNG_PROCESSES = {"MemoryGrows"}  # its condition holds in each process's first minutes; it fires after two hours


@dataclass(frozen=True, slots=True)
class Shown:
    """After how many seconds, and what. ``None``: not within the time that was waited."""

    after_s: float | None
    text: str = ""

    def cell(self) -> str:
        """For the table."""
        if self.after_s is None:
            return self.text or "nothing"
        text = " ".join(self.text.split()).replace("|", "\\|")
        text = text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
        return f"**{max(self.after_s, 0.0):.1f} s**: {text}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one fault looked like."""

    fault: Fault
    page: Shown
    metrics: Shown
    alerts: Sequence[tuple[float, Alert]]
    log: Shown
    ended: str
    balanced: bool

    def row(self) -> str:
        """Of the table."""
        alerts = "<br>".join(
            f"`{alert.name}`{f' ({alert.about})' if alert.about else ''} holds after {after_s:.0f} s, "
            + (f"fires {alert.for_s / 60:g} min later" if alert.for_s else "fires at once")
            for after_s, alert in self.alerts
        )
        ledger = "balances" if self.balanced else "**does not balance**"
        cells = (
            f"**{self.fault.name}**: {self.fault.how}",
            self.page.cell(),
            self.metrics.cell(),
            alerts or "none",
            self.log.cell(),
            f"{ledger}; {self.ended}",
        )
        return "| " + " | ".join(cells) + " |"


def observe(fault: Fault, browser: Browser, folder: Path) -> Seen:
    """Start a pipeline, inject the fault, and wait for everyone who looks."""
    with ExitStack() as stack:
        run = stack.enter_context(fault.run(folder))
        watched = stack.enter_context(prometheus(run.url, run.job, folder))
        page = browser.open(f"{run.url}/{fault.fragment}", width=1400, height=1000)
        stack.callback(page.close)
        page.wait_for("document.querySelector('[data-operator][data-state=\"running\"]')")
        fault.prepare(run)
        known = {(alert.name, alert.about) for alert in watched.alerts()}
        waiting = page.when(fault.on_page)
        metrics = Metrics(run.url, fault.in_metrics)
        at = fault.inject(run)
        try:
            shown_at = waiting.held_at(_SHOWN_WITHIN_S)
            on_page = Shown(shown_at - at, str(page.evaluate(fault.on_page)))
        except PageError:
            on_page = Shown(None)
        time.sleep(max(0.0, at + fault.for_alerts_s - time.time()))
        metrics.close()
        alerts = [
            (alert.since - at, alert)
            for alert in watched.alerts()
            if (alert.name, alert.about) not in known and alert.name not in _OF_YOUNG_PROCESSES
        ]
        fault.repair(run)
        line: Line | None = run.log.first(fault.in_log, since=at - 0.01)
        run.end()
        return Seen(
            fault,
            page=on_page,
            metrics=Shown(None if metrics.at is None else metrics.at - at, metrics.says),
            alerts=sorted(alerts, key=lambda each: each[0]),
            log=Shown(None if line is None else line.at - at, str(line or "")),
            ended=f"{run.report['event']}, exit code {run.report['exit_code']}",
            balanced=bool(run.report["ledger_holds"]),
        )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [fault.name for fault in catalogue()]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="wait for alerts for 3 s only")
    args = parser.parse_args()
    for needed in (chromium() or "chromium", "prometheus"):
        if shutil.which(needed) is None:
            print(f"there is no {needed}: make debian-packages installs it", file=sys.stderr)
            return 1
    print(f"cores: {os.cpu_count()}; load average at the beginning: {os.getloadavg()[0]:.1f}\n")
    print(
        "| the fault, and how it is injected | the page | `/metrics` | alerts | the log | the ledger; the run's end |"
    )
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    balanced = True
    with headless() as browser:
        for fault in catalogue():
            if args.only and fault.name not in args.only:
                continue
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
                seen = observe(replace(fault, for_alerts_s=3.0) if args.quick else fault, browser, Path(name))
            print(seen.row(), flush=True)
            balanced &= seen.balanced
    return 0 if balanced else 1


if __name__ == "__main__":
    sys.exit(main())
