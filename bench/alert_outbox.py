"""What the outbox of alerts costs: recording, delivering and pruning.

Usage: ``python -m bench.alert_outbox [--alerts N] [--observations N] [--subscribers N] [--rounds N]``. The conjunctions are made up,
each with so many observations of each object. The file is in a temporary folder, with ``synchronous=FULL`` as in a pipeline. For each call
it prints the processor time, the time that passed (the disk included), and both for one alert; the least of all rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sda_ops.alerts.outbox.rules import SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from tests.sda_ops.alerts.risks import DAY, T0, TCA, risk


@dataclass
class Figures:
    """The least times of each call over all rounds, seconds, with the number of alerts in it."""

    least: dict[str, tuple[float, float, int]] = field(default_factory=dict)

    def measure(self, name: str, count: int, call: Callable[[], object]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        best = self.least.get(name, (cpu, wall, count))
        self.least[name] = (min(cpu, best[0]), min(wall, best[1]), count)

    def show(self) -> None:
        for name, (cpu_s, wall_s, count) in self.least.items():
            each = f"{cpu_s / count * 1e6:8.1f} µs CPU, {wall_s / count * 1e6:8.1f} µs wall each"
            print(f"{name:44} {cpu_s * 1e3:9.2f} ms CPU {wall_s * 1e3:9.2f} ms wall; {each}")


def one_round(folder: Path, args: argparse.Namespace, figures: Figures) -> None:
    subscribers = [SubscriberRules(name=f"subscriber-{n}") for n in range(args.subscribers)]
    path, count = folder / "alerts.sqlite", args.alerts
    first, second = (
        [
            risk(n, 1_000_000 + n, estimate=estimate, miss_m=miss_m, observations=(args.observations,) * 2)
            for n in range(1, count + 1)
        ]
        for estimate, miss_m in ((1, 900.0), (2, 300.0))
    )
    outbox = AlertOutbox(path, subscribers=subscribers)
    outbox.open(T0)
    figures.measure("record: new conjunctions", count, lambda: outbox.record(first, T0))
    print(f"file: {path.stat().st_size / 2**20:.0f} MiB for {count:,} alerts")
    figures.measure("record: the same again", count, lambda: outbox.record(first, T0))
    figures.measure("record: material updates", count, lambda: outbox.record(second, T0))
    figures.measure("record: one update", 1, lambda: outbox.record([risk(1, 1_000_001, estimate=3, miss_m=100.0)], T0))
    name = subscribers[0].name
    figures.measure("due: 100 of all that is pending", 100, lambda: outbox.due(name, T0, 100))
    due = outbox.due(name, T0, 201)
    figures.measure("acknowledge: 1", 1, lambda: outbox.acknowledge(due[:1], T0))
    figures.measure("acknowledge: 100", 100, lambda: outbox.acknowledge(due[1:101], T0))
    figures.measure("note_failure: 1", 1, lambda: outbox.note_failure(due[101], "HTTP 503", T0))
    figures.measure("depth", 1, outbox.depth)
    outbox.close()
    again = AlertOutbox(path, subscribers=[*subscribers, SubscriberRules(name="added")])
    figures.measure("open: every page checked, a subscriber added", 2 * count, lambda: again.open(T0))
    figures.measure("prune: everything", 2 * count, lambda: again.prune(TCA + 100 * DAY))
    again.prune(TCA + 200 * DAY)
    again.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="What the outbox of alerts costs.")
    parser.add_argument("--alerts", type=int, default=25_000, help="conjunctions (default: 25,000)")
    parser.add_argument("--observations", type=int, default=10, help="of each object (default: 10)")
    parser.add_argument("--subscribers", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    args = parser.parse_args()
    figures = Figures()
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            one_round(Path(folder), args, figures)
    figures.show()


if __name__ == "__main__":
    main()
