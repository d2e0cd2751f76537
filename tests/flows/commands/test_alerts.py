"""``python -m flows alerts``: what is listed and shown of an outbox, sending again, parking, and what is said about mistakes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.__main__ import main
from sda_ops.alerts.outbox.beside import AlertReader
from sda_ops.alerts.outbox.rules import SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from tests.sda_ops.alerts.risks import HOUR, S, risk

NOW = time.time_ns() // S * S
SUBSCRIBERS = (SubscriberRules(name="dynamics"), SubscriberRules(name="mine", objects=frozenset({6})))


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[AlertOutbox]:
    """Of a pipeline that runs: 5 is acknowledged, with an update that was tried in vain; 6 is parked; 8 is over and acknowledged."""
    (tmp_path / "fusion.toml").write_text(f'[alerts]\ndirectory = "{tmp_path}"\n')
    opened = AlertOutbox(tmp_path / "alerts.sqlite", subscribers=SUBSCRIBERS)
    opened.open(NOW)
    ahead = NOW + HOUR
    opened.record(
        [
            risk(tca_timestamp=ahead, observations=(2, 0)),
            risk(6, 7, tca_timestamp=ahead + 1, max_probability=2e-4),
            risk(8, 9, tca_timestamp=NOW - HOUR),
        ],
        NOW,
    )
    five, six, eight = opened.due("dynamics", NOW, 10)
    opened.acknowledge([five, eight], NOW + S)
    for subscriber_six in (six, *opened.due("mine", NOW, 10)):
        opened.park(subscriber_six, "HTTP 422: no such field", NOW + 2 * S)
    updates = [risk(estimate=n, miss_m=298.0 + n, tca_timestamp=ahead) for n in (2, 3)]
    opened.record(updates, NOW + 3 * S)
    (update,) = opened.due("dynamics", NOW, 10)
    opened.note_failure(update, "HTTP 503", NOW + 4 * S)
    yield opened
    opened.close()


def run(outbox: AlertOutbox, *arguments: str) -> int:
    return main(["alerts", *arguments, "--config", str(outbox.path.parent / "fusion.toml")])


def id_of(outbox: AlertOutbox, first: int) -> str:
    with AlertReader(outbox.path) as reader:
        (found,) = reader.listed(catalog_number=first)
    return str(found.alert.conjunction_id)


def listed(outbox: AlertOutbox, capsys: pytest.CaptureFixture[str], *options: str) -> list[int]:
    """The first objects of the listed alerts, in order."""
    assert run(outbox, "list", "--json", *options) == 0
    return [each["alert"]["objects"][0]["catalog_number"] for each in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("options", "firsts"),
    [
        ((), {5, 6}),
        (("--all",), {5, 6, 8}),
        (("--parked",), {6}),
        (("--object", "9", "--all"), {5, 8}),
        (("--subscriber", "mine"), {6}),
        (("--subscriber", "dynamics", "--parked"), {6}),
    ],
)
def test_the_list_has_what_is_active_or_not_acknowledged(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], firsts: set[int]
) -> None:
    found = listed(outbox, capsys, *options)
    assert set(found) == firsts
    assert len(found) == len(firsts)


def test_a_row_has_the_newest_revision_and_the_counts_of_deliveries(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(outbox, "list") == 0
    heading, *rows, left_out = capsys.readouterr().out.splitlines()
    assert heading.split()[-5:] == ["rev", "repeats", "pending", "parked", "objects"]
    (five,) = (row for row in rows if "VANGUARD 1 | 9" in row)
    assert five.startswith(id_of(outbox, 5)[:13])
    assert five.split()[3:10] == ["0.301", "1.50E-06", "medium", "provisional", "2", "0", "1"]
    assert left_out == "not listed: 1 more (--all lists them)"


@pytest.mark.parametrize("action", ["list", "show"])
def test_a_terminal_of_80_columns_wraps_nothing(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert run(outbox, *(("list", "--all") if action == "list" else ("show", id_of(outbox, 8)))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    if action == "list":
        assert sum(line.startswith("  ") and " | " in line for line in lines) == 3


def test_show_has_every_revision_its_evidence_and_what_became_of_it(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(outbox, "show", id_of(outbox, 5)[:9].upper()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"alert {id_of(outbox, 5)}: provisional, severity medium"
    assert lines[1] == "  5 VANGUARD 1 (LEO, assumed radius 1 m); no observations"
    text = "\n".join(lines)
    assert "2+0" in text
    below = [line.strip() for line in lines if line.startswith("     ")]
    assert [line.split(": ")[0] for line in below] == ["dynamics", "mine"] * 3
    assert below[0].startswith("dynamics: acknowledged 20")
    assert below[0].endswith("(first)")
    assert below[1] == "mine: quiet (other_objects)"
    assert below[2].startswith("dynamics: pending since 20")
    assert below[2].endswith("(miss_distance); 1 failed attempt, the last: HTTP 503")
    assert below[4] == "dynamics: quiet (not_material)"


def test_show_for_scripts_has_the_alerts_as_subscribers_get_them(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(outbox, "show", id_of(outbox, 5), "--json") == 0
    first, second, _ = json.loads(capsys.readouterr().out)
    assert (first["alert"]["revision"], first["alert"]["schema_version"]) == (0, 1)
    assert first["alert"]["objects"][0]["observations"]["count"] == 2
    delivery = second["deliveries"][0]
    assert (delivery["state"], delivery["attempts"], delivery["last_error"]) == ("pending", 1, "HTTP 503")


def test_everything_parked_of_a_subscriber_is_sent_again_while_the_pipeline_runs(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(outbox, "resend", "--subscriber", "mine") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"pending again: {id_of(outbox, 6)} revision 0 for mine",
        "1 in all",
    ]
    (due,) = outbox.due("mine", NOW, 10)
    assert (due.alert.revision, due.reason, due.attempts) == (0, "resent", 0)
    assert outbox.depth()["dynamics"].parked == 1


def test_one_alert_is_sent_again_to_each_subscriber_parked_or_acknowledged(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(outbox, "resend", id_of(outbox, 6)) == 0
    assert run(outbox, "resend", id_of(outbox, 8)[:8]) == 0
    assert len(outbox.due("mine", NOW, 10)) == 1
    assert {each.alert.risk.estimate.catalog_number_first for each in outbox.due("dynamics", NOW, 10)} == {5, 6, 8}


def test_a_revision_that_is_sent_again_is_followed_by_the_retraction_that_came_after_it(outbox: AlertOutbox) -> None:
    """The retraction is pending although the revision before is parked: the subscriber may have that. The order stays."""
    outbox.record([risk(6, 7, estimate=2, status="retracted")], NOW)
    assert [due.reason for due in outbox.due("mine", NOW, 10)] == ["retracted"]
    assert run(outbox, "resend", "--subscriber", "mine") == 0
    for status in ("provisional", "retracted"):
        (due,) = outbox.due("mine", NOW, 10)
        assert due.alert.risk.status == status
        outbox.acknowledge([due], NOW)
    assert outbox.due("mine", NOW, 10) == []


def test_what_is_parked_by_hand_is_not_due_and_has_its_reason(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(outbox, "park", id_of(outbox, 5), "--reason", "manoeuvre is done") == 0
    assert capsys.readouterr().out.endswith(" revision 1 for dynamics\n1 in all\n")
    assert outbox.due("dynamics", NOW, 10) == []
    assert run(outbox, "show", id_of(outbox, 5)) == 0
    assert "(manoeuvre is done); 1 failed attempt, the last: HTTP 503" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("resend",), "expected an ID, or --subscriber NAME for everything that is parked for it"),
        (("resend", "--subscriber", "dynamcs"), "no subscriber 'dynamcs' in {path}; there are: dynamics, mine"),
        (("list", "--subscriber", "you"), "no subscriber 'you' in {path}; there are: dynamics, mine"),
        (("show", ""), "expected the beginning of an id, got an empty one"),
        (("park", "{eight}", "--reason", "x"), "nothing is pending of {eight}"),
        (("park", "{eight}", "--reason", " "), "--reason: expected why, got an empty text"),
        (("resend", "{eight}", "--subscriber", "mine"), "nothing is parked or acknowledged for mine of {eight}"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    names = {"path": str(outbox.path), "eight": id_of(outbox, 8)}
    assert run(outbox, *(each.format(**names) for each in arguments)) == 1
    assert capsys.readouterr().err == f"alerts: {problem.format(**names)}\n"


def test_an_unknown_id_names_the_nearest_ones(outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]) -> None:
    known = id_of(outbox, 5)
    assert run(outbox, "show", f"{known[:3]}x") == 1
    error = capsys.readouterr().err
    assert f"no alert begins with '{known[:3]}x'; the nearest ids: " in error
    assert known[:13] in error
    assert error.endswith("(`alerts list --all` has all)\n")


def test_a_subscriber_that_was_removed_is_listed_and_nothing_is_sent_to_it(
    outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox.close()
    again = AlertOutbox(outbox.path, subscribers=SUBSCRIBERS[:1])
    again.open(NOW)
    assert listed(again, capsys, "--subscriber", "mine") == [6]
    assert run(again, "resend", "--subscriber", "mine") == 1
    assert capsys.readouterr().err == "alerts: subscriber mine is not in the settings: nothing is sent to it\n"
    again.close()


def test_without_an_outbox_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fusion.toml").write_text(f'[alerts]\ndirectory = "{tmp_path}"\n')
    assert main(["alerts", "list", "--config", str(tmp_path / "fusion.toml")]) == 1
    assert capsys.readouterr().err == (
        f"alerts: there is no outbox of alerts {tmp_path}/alerts.sqlite: a run of sda-fusion with alerts makes it\n"
    )


def test_an_empty_list_says_so(outbox: AlertOutbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(outbox, "list", "--parked", "--object", "5", "--subscriber", "dynamics") == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"no parked alerts of object 5 for dynamics in {outbox.path}"
