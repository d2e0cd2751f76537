from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import OperatorError, WiredEnds, map_items, source_of
from orchestrator_adapter.channels.ledger import LEDGER_TERMS
from orchestrator_adapter.process.report import ExitCode, cause, exit_code, report, write_report
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.events import SupervisorEvent
from orchestrator_adapter.testing import CollectSink, FailAt, chain, run_graph
from tests.helpers.figures import FIGURES, STUCK, UNBALANCED, VIOLATED, all_ok, exhausted, panicked, shut_down


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (all_ok(), ExitCode.OK),
        (shut_down(), ExitCode.OK),
        (exhausted(), ExitCode.BUDGET_EXHAUSTED),
        (panicked(), ExitCode.PANICKED),
        (shut_down(STUCK), ExitCode.STRAGGLERS),
        (exhausted(STUCK), ExitCode.STRAGGLERS),
        (panicked(STUCK), ExitCode.STRAGGLERS),
        (all_ok(VIOLATED), ExitCode.LEDGER_VIOLATION),
        (panicked(UNBALANCED), ExitCode.LEDGER_VIOLATION),
    ],
)
def test_the_most_severe_condition_gives_the_exit_code(event: SupervisorEvent, expected: ExitCode) -> None:
    """In this order: ledger, stragglers, panic, budget; for every event."""
    assert exit_code(event) is expected
    assert report(event)["exit_code"] == int(expected)


def test_exit_codes_keep_their_numbers() -> None:
    """Scripts rely on them: 0 to 6, as the command line's help has them."""
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "BUDGET_EXHAUSTED": 3,
        "PANICKED": 4,
        "STRAGGLERS": 5,
        "LEDGER_VIOLATION": 6,
    }


def test_the_cause_is_one_line() -> None:
    """The operator and its chain of errors; the reason of a shutdown; ``None`` for a run that ended by itself."""
    assert cause(all_ok()) is None
    assert cause(shut_down()) == "SIGTERM"
    assert cause(exhausted()) == "poll: OSError: down <- ValueError: no"
    assert cause(panicked()) == "map: KeyError: 'x'"


def test_the_report_has_exactly_these_fields() -> None:
    """The specification's fields (section 10), and some more."""
    result = report(exhausted(STUCK))
    assert result == {
        "report_version": 1,
        "event": "BudgetExhausted",
        "cause": "poll: OSError: down <- ValueError: no",
        "ledger": {
            "ingested": 10,
            "repeated": 0,
            "derived": 0,
            "written": 7,
            "duplicates": 1,
            "rejected": 1,
            "discarded": 0,
            "absorbed": 0,
            "shed": 0,
            "dead_lettered": 1,
            "in_flight": 0,
        },
        "ledger_holds": True,
        "signals": {"sent": 0, "received": 0, "undelivered": 0, "in_flight": 0},
        "ledger_violations": [],
        "restarts": {"poll": 2},
        "exits": {"poll": "Ok", "log": "Aborted(SIGTERM)"},
        "stragglers": [{"operator": "log", "instance": 1, "stack": "here"}],
        "undelivered": 1,
        "problems": ["closing what 'log' kept: OSError"],
        "latency_ms": {"p50": 1.5, "p99": 2.5, "max": 3.5},
        "throughput_per_s": 2.0,
        "elapsed_s": 3.5,
        "loop_stalls": 0,
        "max_loop_lag_s": 0.0,
        "counters": {"poll": {"polls": 3}},
        "breakers": {
            "archive": {"state": "open", "forced": False, "opened": 2, "open_s": 31.5, "rejections": 12},
        },
        "exit_code": 5,
    }
    assert list(result["ledger"]) == list(LEDGER_TERMS)


def test_the_report_of_a_run_without_measurements_has_no_latency() -> None:
    """Each quantile is null; an elapsed time of zero is no error."""
    result = report(all_ok(replace(FIGURES, latency=None, elapsed_s=0.0)))
    assert result["latency_ms"] == {"p50": None, "p99": None, "max": None}
    assert result["throughput_per_s"] == 0.0


def test_the_report_on_disk_is_the_report(tmp_path: Path) -> None:
    """Folders are made, an older report is replaced, and no other file remains."""
    path = tmp_path / "new" / "folder" / "report.json"
    write_report(all_ok(), path)
    write_report(panicked(UNBALANCED), path)
    assert json.loads(path.read_text()) == report(panicked(UNBALANCED))
    assert [each.name for each in path.parent.iterdir()] == ["report.json"]


def test_a_report_with_invalid_unicode_is_written(tmp_path: Path) -> None:
    """A lone surrogate in an error's text is written as an escape."""
    event = events.BudgetExhausted(FIGURES, "poll", ("OSError: \udcff",), OSError("\udcff"))
    write_report(event, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["cause"] == "poll: OSError: \udcff"


def test_a_report_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a disk error the older report is unchanged, and no draft remains."""
    path = tmp_path / "report.json"
    write_report(all_ok(), path)
    before = path.read_bytes()

    def broken(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_report(panicked(), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_report_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that makes it durable: fsync of the draft, rename, fsync of the folder."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def recorded_fsync(file: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{file}').readlink().name}")
        fsync(file)

    def recorded_rename(path: Path, target: Any) -> Path:
        steps.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_rename)
    write_report(all_ok(), tmp_path / "report.json")
    assert steps == [f"fsync report.json.{os.getpid()}.part", "rename to report.json", f"fsync {tmp_path.name}"]


async def test_the_report_of_a_real_run_has_its_restarts() -> None:
    """One injected fault: the report names the operator, and the ledger balances."""
    graph = chain(source_of(range(10)), map_items(FailAt({3: OperatorError("once")})), CollectSink())
    result = report(await run_graph(graph))
    assert result["restarts"] == {"op-1": 1}
    assert (result["ledger"]["ingested"], result["ledger"]["written"]) == (10, 10)
    assert result["exit_code"] == 0


async def test_the_report_of_a_real_panic_has_the_chain_of_causes() -> None:
    """Outermost first."""

    async def buggy(ends: WiredEnds) -> None:
        raise TypeError("second") from OSError("first")

    result = report(await run_graph(chain(source_of(range(10)), buggy)))
    assert result["event"] == "Panicked"
    assert result["cause"] == "sink: TypeError: second <- OSError: first"
    assert result["exit_code"] == 4
