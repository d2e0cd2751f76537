"""The alerts of the demo: a staged conjunction and a staged near miss, a subscriber, and what arrived at it."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.local_prefect.processes import HOST
from sda_ops.alerts.subscriber.table import ReceivedAlert, SubscriberTable
from sda_ops.simulate.staged import StagedPassage, read_staged

NS_PER_S = 1_000_000_000
SUBSCRIBER = "reference"
HORIZON_S = 6 * 3_600.0
_FIRST_S, _LAST_S = 3_600, 18_000  # the staged passages, from the start
_STAGE_AFTER_S = 5.0


def passages(text: str) -> tuple[int, int]:
    """``N:M`` on the command line. Raises ``ArgumentTypeError``."""
    conjunctions, colon, near_misses = text.partition(":")
    if not (colon and conjunctions.isdecimal() and near_misses.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected two whole numbers N:M, got {text!r}")
    return int(conjunctions), int(near_misses)


@dataclass(frozen=True)
class DemoAlerts:
    """The folder and the port of the demo's subscriber."""

    folder: Path
    port: int

    @property
    def table(self) -> Path:
        """What the subscriber has received."""
        return self.folder / "subscriber.sqlite"

    @property
    def truth(self) -> Path:
        """The staged passages."""
        return self.folder / "staged.jsonl"

    def staging(self, catalog: Path, args: argparse.Namespace) -> list[str]:
        """The simulator's arguments: the staged objects appear in the pipeline's catalogue while the sensors send."""
        conjunctions, near_misses = args.stage
        if not conjunctions + near_misses:
            return []
        after_s = min(_STAGE_AFTER_S, args.seconds / 4)
        return [
            *("--stage", f"{conjunctions}:{near_misses}", "--stage-truth", str(self.truth)),
            *("--stage-into", str(catalog), "--stage-after", f"{after_s:g}"),
            *("--stage-passages", f"{_FIRST_S}:{_LAST_S}"),
        ]

    def settings(self) -> dict[str, Any]:
        """The section ``alerts``. The subscriber gets what an observation has shown."""
        subscriber = {
            "name": SUBSCRIBER,
            "url": f"http://{HOST}:{self.port}/alerts",
            "min_observations": 1,
            "max_per_s": 100,
        }
        return {"directory": self.folder / "alerts", "subscribers": [subscriber]}

    def command(self) -> list[str]:
        """The command that runs the subscriber."""
        return [sys.executable, "-m", "flows", "subscriber", "--port", str(self.port), "--table", str(self.table)]

    def result(self) -> list[str]:
        """Sentences about what arrived: for each staged passage, and for all alerts."""
        received = [_received(each) for each in self._alerts()]
        passages = read_staged(self.truth) if self.truth.is_file() else []
        about = [_about(passage, [each for each in received if each.is_of(passage)]) for passage in passages]
        others = {each.alert.conjunction_id for each in received if not any(each.is_of(one) for one in passages)}
        twice = len(received) - len({each.alert.key for each in received})
        repeats = f"{twice} of them TWICE" if twice else "each once"
        return [
            *about,
            f"{len(received)} alerts arrived, {repeats}; {len(others)} conjunctions among them were not staged",
        ]

    def revisions(self) -> int:
        """How many revisions of alerts are in the outbox."""
        if not (self.folder / "alerts" / "alerts.sqlite").is_file():
            return 0
        with closing(sqlite3.connect(self.folder / "alerts" / "alerts.sqlite")) as db:
            return int(db.execute("SELECT count(*) FROM alerts").fetchone()[0])

    def _alerts(self) -> list[ReceivedAlert]:
        if not self.table.is_file():
            return []
        with closing(SubscriberTable(self.table)) as table:
            return table.alerts()


@dataclass(frozen=True)
class _Received:
    """An alert, and its body."""

    alert: ReceivedAlert
    body: dict[str, Any]

    def is_of(self, passage: StagedPassage) -> bool:
        """Whether the alert is about a staged passage."""
        pair = tuple(each["catalog_number"] for each in self.body["objects"])
        return (
            pair == passage.numbers and abs(_utc_ns(self.body["conjunction"]["tca"]) - passage.tca_timestamp) < NS_PER_S
        )

    def after_s(self, time: str | None) -> float | None:
        """How long after a time of the body it arrived."""
        return None if time is None else (self.alert.received_ns - _utc_ns(time)) / NS_PER_S


def _received(alert: ReceivedAlert) -> _Received:
    return _Received(alert, json.loads(alert.body))


def _utc_ns(text: str) -> int:
    """A time of an alert in JSON: nine decimals."""
    seconds, _, decimals = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * NS_PER_S + int(decimals)


def _about(passage: StagedPassage, received: Sequence[_Received]) -> str:
    at = datetime.fromtimestamp(passage.tca_timestamp // NS_PER_S, UTC)
    what = "conjunction" if passage.kind == "conjunction" else "near miss"
    first, second = passage.numbers
    staged = f"staged {what} of {first} and {second}, {passage.miss_m:,.0f} m at {at:%H:%M:%S} UTC"
    if not received:
        return f"{staged}: no alert"
    alert = received[0]
    made_up = next(each for each in alert.body["objects"] if each["catalog_number"] == passage.staged)
    times = {
        f"the first observation of {passage.staged} as a known object": alert.after_s(
            made_up["observations"]["first_at"]
        ),
        "the screening that found it": alert.after_s(alert.body["conjunction"]["screened_at"]),
    }
    after = " and ".join(f"{seconds:.2f} s after {what}" for what, seconds in times.items() if seconds is not None)
    return f"{staged}: alert {alert.alert.key} arrived {after}"
