"""The headline of a document: the most severe condition first, as page and terminal show it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator_adapter.control_plane.document import Bottleneck, Breaker, Budget, Health, LastError, Ledger, Loop
from orchestrator_adapter.control_plane.headline import headline_of, with_headline
from tests.helpers.documents import AT, document, edge, operator


def breaker(**changes: Any) -> Breaker:
    fields: dict[str, Any] = {"state": "open", "forced": False, "probe_in_s": 12.4, "failures": 5, "calls": 90}
    return Breaker(name="archive", rejections=7, opened=1, **{**fields, **changes})


BOTTLENECK = Bottleneck(
    operator="normalize", score=0.97, reason="busy for 98 % of the last 10 s while its input was full"
)
RESTARTING = operator(
    "normalize",
    state="restarting",
    restart_in_s=3.21,
    budget=Budget(left=1, of=3, window_s=60.0, restarts=2),
    last_error=LastError(at=AT, kind="ValueError", message="no\nnumber"),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Nothing is wrong: 3 of 3 operators run, 1,000 items/s come in. No item is lost."),
        (
            {"bottlenecks": (BOTTLENECK,)},
            "'normalize' is the bottleneck: busy for 98 % of the last 10 s while its input was full. No item is lost.",
        ),
        (
            {"operators": (RESTARTING,), "bottlenecks": (BOTTLENECK,)},
            (
                "Operator 'normalize' is restarted in 3.2 s, 1 further restart left: ValueError: no number."
                " 1 further condition. No item is lost."
            ),
        ),
        (
            {"breakers": (breaker(), breaker(state="half-open"))},
            "Circuit breaker 'archive' is open; it admits a probe in 12 s. No item is lost.",
        ),
        (
            {"breakers": (breaker(forced=True, probe_in_s=None),)},
            "Circuit breaker 'archive' is forced open. No item is lost.",
        ),
        (
            {
                "loop": Loop(
                    silent_s=75.0, stalled=True, lag_s=75.0, stalls=1, blocked_by="operator 'normalize', instance 1"
                ),
                "health": Health(
                    status="failing",
                    reasons=("event loop has not answered for 75.00 s; operator 'normalize', instance 1 blocks it",),
                ),
            },
            "The event loop has not answered for 1 min 15 s: operator 'normalize', instance 1 blocks it. No item is lost.",
        ),
        (
            {
                "health": Health(
                    status="failing", reasons=("source 'radar' has ended unexpectedly: Errored(OSError)",)
                ),
                "operators": (operator("radar", role="source", state="errored"),),
            },
            "Source 'radar' has ended unexpectedly: Errored(OSError). No item is lost.",
        ),
        (
            {"operators": (operator("log", state="panicked"),)},
            "Operator 'log' has failed and is not restarted. No item is lost.",
        ),
        (
            {"health": Health(status="draining", reasons=("shutting down: SIGTERM",)), "shutting_down": "SIGTERM"},
            "Shutting down: SIGTERM. No item is lost.",
        ),
        ({"operators": (operator("radar", state="paused"),)}, "Source 'radar' is paused. No item is lost."),
        (
            {
                "operators": (operator("radar", state="paused"),),
                "health": Health(status="degraded", reasons=("source 'radar' is paused",)),
            },
            "Source 'radar' is paused. No item is lost.",
        ),
        (
            {
                "ledger": Ledger(left=(("ingested", 10),), right=(("written", 9),), balanced=False, lost=1),
                "bottlenecks": (BOTTLENECK,),
            },
            "The ledger does not balance: 1 item is unaccounted for. 1 further condition.",
        ),
        (
            {"operators": (operator("radar", state="paused", counters={"kernel_drops": 1_200}),)},
            "Source 'radar' is paused. 1,200 datagrams dropped by the kernel before a source read them.",
        ),
        (
            {"operators": (operator("radar", state="paused"),), "edges": (edge("radar", "normalize", dropped=1),)},
            "Source 'radar' is paused. 1 item dropped by flow policies.",
        ),
    ],
)
def test_the_headline_names_the_most_severe_condition_and_says_whether_items_are_lost(
    changes: dict[str, Any], expected: str
) -> None:
    assert headline_of(document(**changes)) == expected
    assert with_headline(document(**changes)).headline == expected


def test_a_long_error_is_cut_and_stays_one_line() -> None:
    failing = Health(status="failing", reasons=("x\n" * 500,))

    headline = headline_of(document(health=failing))

    assert "\n" not in headline
    assert len(headline) < 250
