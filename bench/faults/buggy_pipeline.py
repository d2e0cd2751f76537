"""``python -m bench.faults.buggy_pipeline ingest …`` is ``python -m flows ingest …`` with faults of code on demand.

A line on standard input is one fault of ``validate`` or of the event log's disk; what it did is a line on standard output, with
the Unix time in seconds. Everything else is the product as it is.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from flows.__main__ import main
from flows.topologies import from_settings
from orchestrator_adapter import OperatorError, RotatingJsonLines, WiredEnds


class Faults:
    """What is to go wrong."""

    def __init__(self) -> None:
        self.next_item = ""  # what happens at the next item: "bug", "pill" or "block"
        self.pill: object = None
        self.block_s = 0.0
        self.work_s = 0.0
        self.sync_s = 0.0

    def listen(self) -> None:
        """Obey the lines on standard input."""
        for line in sys.stdin:
            match line.split():
                case ["bug" | "pill" as what]:
                    self.next_item = what
                case ["block", seconds]:
                    self.block_s, self.next_item = float(seconds), "block"
                case ["work", seconds]:
                    self.work_s = float(seconds)
                    _say("work")
                case ["sync", seconds]:
                    self.sync_s = float(seconds)
                    _say("sync")
                case _:
                    raise ValueError(f"no such fault: {line!r}")

    def at(self, item: Any) -> None:
        """``validate`` has this item."""
        if self.pill == item.observation_id and self.pill is not None:
            raise OperatorError(f"cannot handle {item.observation_id}")
        what, self.next_item = self.next_item, ""
        if what:
            _say(what)
        match what:
            case "bug":
                raise KeyError("site")
            case "pill":
                self.pill = item.observation_id
                raise OperatorError(f"cannot handle {item.observation_id}")
            case "block":
                time.sleep(self.block_s)
            case _:
                pass


def _say(what: str) -> None:
    print(json.dumps({"did": what, "at": time.time()}), flush=True)


def _install(faults: Faults) -> None:
    # Before the module of the topology imports it by name.
    validation, sync, flush = from_settings.validation, RotatingJsonLines.sync, WiredEnds.flush

    @wraps(validation)
    def faulty_validation(*arguments: Any, **options: Any) -> Callable[[Any], Any]:
        judge = validation(*arguments, **options)

        def judge_or_fail(item: Any) -> Any:
            faults.at(item)
            return judge(item)

        return judge_or_fail

    def slow_sync(lines: RotatingJsonLines) -> None:
        if faults.sync_s:
            time.sleep(faults.sync_s)
        sync(lines)

    async def slow_flush(ends: WiredEnds) -> None:
        if faults.work_s and ends.name == "validate":
            await asyncio.sleep(faults.work_s)
        await flush(ends)

    from_settings.validation = faulty_validation
    WiredEnds.flush = slow_flush  # type: ignore[method-assign,assignment] # it is the fault
    RotatingJsonLines.sync = slow_sync  # type: ignore[method-assign,assignment] # it is the fault


if __name__ == "__main__":
    FAULTS = Faults()
    _install(FAULTS)
    threading.Thread(target=FAULTS.listen, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
