"""The picture of a document in the terminal: what it says, that it fits, and that it interprets nothing."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from flows.commands.top.figures import duration, number, percent, shares_bar, trend
from flows.commands.top.picture import Banners, picture
from orchestrator_adapter.control_plane.document import (
    BlockingPool,
    Bottleneck,
    Breaker,
    Budget,
    Document,
    Happened,
    Health,
    LastError,
    Ledger,
    Loop,
    Panel,
    Row,
    Shares,
)
from orchestrator_adapter.control_plane.headline import with_headline
from tests.helpers.documents import AT, document, edge, operator

REASON = "busy for 98 % of the last 10 s while its input 'radar -> normalize' was full for 96 % of it"


def shown(shown_document: Document, *, width: int = 160, height: int | None = None, **banners: Any) -> list[str]:
    """The picture's lines, as a terminal of this size shows them."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor", record=True)
    console.print(picture(with_headline(shown_document), width=width, height=height, banners=Banners(**banners)))
    return console.export_text().splitlines()


def line_of(lines: list[str], beginning: str) -> str:
    (found,) = (line for line in lines if line.lstrip("▶ ").startswith(beginning))
    return found.rstrip()


def bottleneck() -> Document:
    return document(
        operators=(
            operator("radar", role="source", shares=Shares(busy=0.04, idle=0.0, blocked=0.96, down=0.0)),
            operator("normalize", shares=Shares(busy=0.98, idle=0.02, blocked=0.0, down=0.0)),
            operator("log", role="sink"),
        ),
        edges=(edge("radar", "normalize", fill=0.98, pressure=0.96, occupancy=980), edge("normalize", "log")),
        bottlenecks=(Bottleneck(operator="normalize", score=0.97, reason=REASON),),
    )


def many() -> Document:
    """60 operators; one of the last is restarted."""
    names = [f"stage-{number:02}" for number in range(60)]
    made = document(names)
    failing = operator("stage-57", column=57, state="restarting", restart_in_s=1.5)
    return msgspec.structs.replace(made, operators=(*made.operators[:57], failing, *made.operators[58:]))


def test_a_healthy_run_shows_its_headline_its_operators_its_balance_and_its_latency() -> None:
    lines = shown(document())

    assert lines[0].startswith("sda-ingest  OK  up 1 h 2 min, 04:06:10Z  run sda-ingest-20260102T030405.000000Z")
    assert lines[1].rstrip() == "Nothing is wrong: 3 of 3 operators run, 1,000 items/s come in. No item is lost."
    assert line_of(lines, "normalize").split() == [
        *("normalize", "running", "███···········", "20%", "1,000", "990", "<1%", "0%", "2.1", "ms", "3/3")
    ]
    assert [line.split()[0] for line in lines[3:6]] == ["radar", "normalize", "log"]
    assert line_of(lines, "ledger") == (
        "ledger ingested 3,725,000 = written 3,687,700 + duplicates 37,250 + in flight 50  balanced"
    )
    assert line_of(lines, "latency") == "latency now p50 4 ms  p99 21 ms   15 min p50 4 ms  p99 35 ms"
    assert line_of(lines, "process").startswith("process  181 MB  0.4 cores  9 threads  34/1024 files")


def test_idle_thread_pools_are_one_line() -> None:
    pools = tuple(
        BlockingPool(name=f"pool-{n}", threads=4, busy=int(n == 0), waiting=0, abandoned=0) for n in range(13)
    )
    lines = shown(msgspec.structs.replace(document(), blocking_pools=pools))
    threads = [line.rstrip() for line in lines if line.startswith("threads")]
    assert threads == ["threads pool-0 1/4 busy, 0 calls wait", "threads 12 pools are idle"]


def test_a_bottleneck_is_marked_with_its_reason_and_the_edge_before_it() -> None:
    lines = shown(bottleneck())

    assert line_of(lines, "normalize  ").startswith("▶ normalize")
    assert line_of(lines, "normalize  ").split()[3:9] == ["██████████████", "98%", "1,000", "990", "98%", "96%"]
    assert line_of(lines, "normalize: ") == f"▶ normalize: {REASON}"
    assert line_of(lines, "radar  ").split()[2:4] == ["▒▒▒▒▒▒▒▒▒▒▒▒▒·", "-"]
    assert line_of(lines, "edge").startswith("edge radar -> normalize 98% full, under pressure 96% of the time")


def test_a_stalled_loop_has_a_banner_with_the_age_of_the_figures_and_the_place() -> None:
    loop = Loop(
        silent_s=3.2,
        stalled=True,
        lag_s=3.2,
        stalls=1,
        blocked_by="normalize",
        stack="a.py:1\nb.py:2",
        snapshot_age_s=3,
    )
    lines = shown(document(loop=loop, health=Health(status="failing", reasons=("x",))))

    assert lines[1].rstrip() == (
        "STALLED: the event loop has not answered for 3.2 s, and the figures are 3.0 s old; it is in b.py:2."
    )
    assert lines[2].startswith("The event loop has not answered for 3.2 s: normalize blocks it.")


def test_a_failing_run_shows_what_failed_what_is_open_and_what_is_not_accounted_for() -> None:
    error = LastError(at=AT - 12, kind="ValueError", message="no number")
    lines = shown(
        document(
            health=Health(status="failing", reasons=("operator 'normalize' exhausted its budget",)),
            operators=(
                operator(
                    "normalize", state="errored", last_error=error, budget=Budget(left=0, of=3, window_s=60, restarts=3)
                ),
                operator("log", state="restarting", restart_in_s=2.0, breakers=("disk",)),
            ),
            breakers=(
                Breaker(
                    name="disk",
                    state="open",
                    forced=False,
                    probe_in_s=12.4,
                    failures=5,
                    calls=9,
                    rejections=7,
                    opened=1,
                ),
            ),
            ledger=Ledger(left=(("ingested", 10),), right=(("written", 8),), balanced=False, lost=2),
            timeline=tuple(
                Happened(
                    number=number,
                    at=AT - number,
                    decision="restart",
                    alarming=False,
                    operator="log",
                    text="text",
                    times=number,
                )
                for number in (2, 1)
            ),
            panels=(
                Panel(title="sources", columns=("age", "lag"), rows=(Row(name="radar-01", cells=("2.0 s", "0.1 s")),)),
            ),
        )
    )

    assert lines[1].startswith("The ledger does not balance: 2 items are unaccounted for. 3 further conditions.")
    failed = line_of(lines, "normalize")
    assert "errored" in failed
    assert "0/3" in failed
    assert failed.endswith("12 s ago ValueError: no number")
    assert "restart 2.0 s" in line_of(lines, "log ")
    assert line_of(lines, "breaker") == "breaker disk open, admits a probe in 12 s  5 failures, 7 calls rejected"
    assert line_of(lines, "ledger") == "ledger ingested 10 = written 8  NOT BALANCED by 2"
    assert [line.rstrip() for line in lines if "restart log" in line] == [
        "04:06:09Z restart log text",
        "04:06:08Z restart log text (2 times)",
    ]
    assert line_of(lines, "sources").split() == ["sources", "age", "lag"]
    assert line_of(lines, "radar-01").split() == ["radar-01", "2.0", "s", "0.1", "s"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
@pytest.mark.parametrize("scene", [document, bottleneck, many], ids=["healthy", "bottleneck", "60 operators"])
def test_the_picture_fits_the_terminal_and_keeps_what_needs_attention(width: int, height: int, scene: Any) -> None:
    lines = shown(scene(), width=width, height=height, note="This is http://127.0.0.1:9100.")

    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("This is http://127.0.0.1:9100.")
    if scene is many:
        assert "restart 1.5 s" in line_of(lines, "stage-57")
        assert any("more operators, which need less attention" in line for line in lines)


def test_a_narrow_terminal_shows_the_last_errors_below_the_table() -> None:
    error = LastError(at=AT - 12, kind="ValueError", message="no number")
    lines = shown(document(operators=(operator("normalize", last_error=error),)), width=80, height=24)

    assert line_of(lines, "error") == "error normalize 12 s ago ValueError: no number"


def test_a_control_plane_that_does_not_answer_has_a_banner_and_the_old_figures_stay() -> None:
    lines = shown(document(), lost="http://x:9100: it does not answer within 5 s", lost_for_s=75.0)

    assert lines[1].rstrip() == (
        "DISCONNECTED for 1 min 15 s: http://x:9100: it does not answer within 5 s. "
        "The figures are those of 04:06:10Z; trying again."
    )
    assert line_of(lines, "normalize")


def test_markup_and_escape_sequences_are_shown_and_never_interpreted() -> None:
    hostile = "[red]x[/red] [link=http://e]\x1b[31m\x1b]0;title\x07\u202e\nnext"
    hostile_shown = "[red]x[/red] [link=http://e]?[31m?]0;title?? next"
    made = document(
        graph=hostile,
        run=hostile,
        health=Health(status="degraded", reasons=(hostile,)),
        operators=(
            operator(
                hostile, state="x\x1b[0m", last_error=LastError(at=AT, kind=hostile, message=hostile), url=hostile
            ),
        ),
        edges=(edge("a", hostile, id=hostile, pressure=0.5),),
        bottlenecks=(Bottleneck(operator=hostile, score=1.0, reason=hostile),),
        breakers=(
            Breaker(
                name=hostile,
                state="open",
                forced=False,
                probe_in_s=1.0,
                failures=0,
                calls=0,
                rejections=0,
                opened=1,
                operators=(hostile,),
            ),
        ),
        loop=Loop(silent_s=1.0, stalled=True, lag_s=1.0, stalls=1, blocked_by=hostile, stack=hostile),
        ledger=Ledger(left=((hostile, 1),), right=((hostile, 1),), balanced=True, lost=0),
        timeline=(Happened(number=1, at=AT, decision=hostile, alarming=True, operator=hostile, text=hostile),),
        panels=(Panel(title=hostile, columns=(hostile,), rows=(Row(name=hostile, cells=(hostile, "too many")),)),),
    )
    file = io.StringIO()
    console = Console(file=file, width=400)  # not a terminal: rich writes no escape sequence of its own
    console.print(picture(with_headline(made), width=400, banners=Banners(hostile, 1.0, hostile)))
    text = file.getvalue()

    assert all(character.isprintable() or character == "\n" for character in text)
    assert text.count("[red]x[/red]") > 15
    assert hostile_shown in text


def test_figures_are_short() -> None:
    assert [number(value) for value in (0, 0.44, 9.0, 12, 9_990, 12_345, 1_234_567, 2.5e9)] == [
        *("0", "0.4", "9", "12", "9,990", "12.3k", "1.23M", "2.5G")
    ]
    assert [duration(value) for value in (0, 0.0004, 0.0213, 0.25, 3.21, 59.6, 125, 11_040, 183_600)] == [
        *("0.0 s", "0.4 ms", "21 ms", "250 ms", "3.2 s", "1 min 0 s", "2 min 5 s", "3 h 4 min", "2 d 3 h")
    ]
    assert [percent(value) for value in (0, 0.001, 0.5, 1)] == ["0%", "<1%", "50%", "100%"]


def test_a_bar_has_its_width_whatever_the_shares_add_up_to() -> None:
    bars = [
        shares_bar(Shares(busy=busy, idle=0, blocked=blocked, down=down), 10).plain
        for busy, blocked, down in ((0.3, 0.3, 0.3), (1, 1, 1), (0, 0, 0), (-1, 0.5, 0), (1 / 3, 1 / 3, 1 / 3))
    ]

    assert bars == ["███▒▒▒×××·", "██████████", "··········", "▒▒▒▒▒·····", "███▒▒▒▒×××"]
    assert trend([None, 0.0, 1.0, 2.0], 3) == "▁▅█"
