"""Figures on alerts. Each command prints figures; none asserts a time.

``python -m bench.alerts latency``: from the observation to the acknowledged alert, in the whole pipeline
``python -m bench.alerts restart``: from ``kill -9`` of the pipeline to the first new alert
``python -m bench.alerts kills``: what a subscriber has after many kills, against what it must have
``python -m bench.alerts delivery``: deliveries a second, their latency and processor time, and a dead subscriber beside
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

COMMANDS = {
    "latency": ("from the observation to the acknowledged alert, in the whole pipeline", "bench.alerts.latency"),
    "restart": ("from kill -9 of the pipeline to the first new alert", "bench.alerts.restart"),
    "kills": ("what a subscriber has after many kills, against what it must have", "bench.alerts.kills"),
    "delivery": ("what a delivery costs: rate, latency, processor time", "bench.alerts.delivery"),
}
"""Each command's help, and its module, which has ``add_arguments(parser)`` and ``run(args) -> exit code``."""


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m bench.alerts", description="Figures on alerts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (help_, place) in COMMANDS.items():
        added = commands.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
        if name in sys.argv[1:2]:
            module = import_module(place)
            module.add_arguments(added)
            added.set_defaults(run=module.run)
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
