"""``python -m flows alerts``: what is in the outbox of ``sda-fusion``, sending again, and parking. Also while a run writes it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from flows.commands.messages import report_problems
from flows.commands.options import add_settings_argument
from flows.commands.tables import (
    SHORT_ID,
    Columns,
    NotOneId,
    catalog_number,
    fitting,
    minute_text,
    objects_text,
    one_id,
    pair_text,
    probability_text,
    table,
    time_text,
)
from flows.output import print_line
from flows.pipelines import FUSION
from flows.settings.load import SettingsError
from orchestrator_adapter.process import ExitCode
from sda_ops.alerts.formats.json import alert_json
from sda_ops.alerts.formats.json import time_text as rfc_3339
from sda_ops.alerts.outbox.beside import AlertEditor, AlertReader, Changed, DeliveryStatus, ListedAlert, Revision
from sda_ops.alerts.outbox.file import AlertOutboxError
from sda_ops.alerts.outbox.rules import probability
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence

EPILOG = """\
An alert is one conjunction with all its revisions. A pipeline that runs notices `resend` and `park` within a second.

examples:
  python -m flows alerts list --subscriber flight-dynamics
  python -m flows alerts show 3f2a
  python -m flows alerts resend 3f2a
  python -m flows alerts resend --subscriber flight-dynamics      # everything that is parked
  python -m flows alerts park 3f2a --reason "manoeuvre is done"
  python -m flows alerts list --parked --json | jq '.[].alert.id'
"""

_M_PER_KM = 1_000.0


class _Mistake(Exception):
    """What is wrong with the arguments, in a sentence."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``alerts``."""
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="alerts that are active or not acknowledged, by time of closest approach")
    which = listing.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="those that are over and acknowledged, too")
    which.add_argument("--parked", action="store_true", help="only those with a parked delivery")
    listing.add_argument("--object", type=catalog_number, metavar="ID", help="of the object with this catalogue number")
    show = actions.add_parser("show", help="one alert: each revision, its evidence, and who received it and when")
    resend = actions.add_parser("resend", help="send one alert again, or everything that is parked for a subscriber")
    park = actions.add_parser("park", help="do not deliver what is pending of one alert")
    show.add_argument("id", metavar="ID", help="the conjunction's id, or its beginning")
    resend.add_argument(
        "id",
        metavar="ID",
        nargs="?",
        help="what is parked of it, or the last acknowledged revision (default: all that is parked for --subscriber)",
    )
    park.add_argument("id", metavar="ID", help="the conjunction's id, or its beginning")
    park.add_argument("--reason", required=True, help="why; `show` has it")
    for action in (listing, resend, park):
        action.add_argument("--subscriber", metavar="NAME", help="of this subscriber (default: of each)")
    for action in (listing, show):
        action.add_argument("--json", action="store_true", help="for scripts; an alert is as the format json has it")
    for action in (listing, show, resend, park):
        add_settings_argument(action, FUSION.prefix)


def run(args: argparse.Namespace) -> int:
    """Do it. The exit code is 1, with one line, if there is no outbox, no such alert or subscriber, or nothing to do."""
    try:
        path = FUSION.load(args.config).alerts.outbox
        if args.action in ("list", "show"):
            with AlertReader(path) as reader:
                return _list(reader, args) if args.action == "list" else _show(reader, args)
        with AlertEditor(path) as editor:
            return _resend(editor, args) if args.action == "resend" else _park(editor, args)
    except SettingsError as error:
        return report_problems("alerts", error.problems)
    except (AlertOutboxError, NotOneId, _Mistake) as error:
        return report_problems("alerts", [str(error)])


def _list(reader: AlertReader, args: argparse.Namespace) -> int:
    _check_subscriber(reader, args.subscriber)
    now_ns = time.time_ns()
    found = reader.listed(subscriber=args.subscriber, catalog_number=args.object)
    of_subscriber = [each for each in found if args.subscriber is None or _concerns(each)]
    listed = [each for each in of_subscriber if args.all or (each.parked if args.parked else _is_open(each, now_ns))]
    if args.json:
        print_line(json.dumps([_listed_document(each) for each in listed]))
    elif listed:
        print_line(
            "\n".join(fitting(table(_LISTED, listed, text=_TEXT), table(_NARROW, listed, text=_TEXT, below=_below)))
        )
    else:
        print_line(f"no {_described(args)} in {reader.path}")
    if not args.json and (left_out := len(of_subscriber) - len(listed)):
        print_line(f"not listed: {left_out} more (--all lists them)")
    return ExitCode.OK


def _show(reader: AlertReader, args: argparse.Namespace) -> int:
    history = reader.history(_id(reader, args.id))
    last = history[-1].alert
    if args.json:
        print_line(json.dumps([_revision_document(each) for each in history]))
        return ExitCode.OK
    risk, estimate = last.risk, last.risk.estimate
    until = risk.complete_until_timestamp
    lines = [
        f"alert {last.conjunction_id}: {risk.status}, severity {last.severity}",
        *(
            f"  {text}; {_evidence(evidence)}"
            for text, evidence in zip(objects_text(estimate), risk.evidence, strict=True)
        ),
        (
            f"  time of closest approach {time_text(estimate.tca_timestamp)}, {estimate.miss_m / _M_PER_KM:.3f} km, "
            f"{estimate.relative_speed_m_s / _M_PER_KM:.3f} km/s"
        ),
        f"  evidence is complete until {time_text(until)}" if until is not None else "  evidence is not complete",
        "",
        *fitting(*(table(columns, history, text=_TEXT, below=_below_revision) for columns in (_REVISIONS, _FEWER))),
    ]
    print_line("\n".join(lines))
    return ExitCode.OK


def _resend(editor: AlertEditor, args: argparse.Namespace) -> int:
    if args.id is None and args.subscriber is None:
        raise _Mistake("expected an ID, or --subscriber NAME for everything that is parked for it")
    _check_subscriber(editor, args.subscriber, configured=True)
    full_id = None if args.id is None else _id(editor, args.id)
    changed = editor.send_again(full_id=full_id, subscriber=args.subscriber, now_ns=time.time_ns())
    if not changed:
        of_subscriber = "" if args.subscriber is None else f" for {args.subscriber}"
        what = "parked or acknowledged" if full_id is not None else "parked"
        raise _Mistake(f"nothing is {what}{of_subscriber}{'' if full_id is None else f' of {full_id}'}")
    return _confirm(changed, "pending again")


def _park(editor: AlertEditor, args: argparse.Namespace) -> int:
    _check_subscriber(editor, args.subscriber)
    reason = args.reason.strip()
    if not reason:
        raise _Mistake("--reason: expected why, got an empty text")
    full_id = _id(editor, args.id)
    changed = editor.park(full_id, subscriber=args.subscriber, reason=reason, now_ns=time.time_ns())
    if not changed:
        raise _Mistake(f"nothing is pending of {full_id}{'' if args.subscriber is None else f' for {args.subscriber}'}")
    return _confirm(changed, "parked")


def _confirm(changed: Sequence[Changed], what: str) -> int:
    lines = [f"{what}: {each.conjunction_id} revision {each.revision} for {each.subscriber}" for each in changed]
    print_line("\n".join([*lines, f"{len(changed)} in all"]))
    return ExitCode.OK


def _id(reader: AlertReader, given: str) -> str:
    none = f"the outbox {reader.path} is empty"
    return one_id(given, reader.ids, what="alert", none=none, listing="alerts list --all")


def _check_subscriber(reader: AlertReader, name: str | None, *, configured: bool = False) -> None:
    if name is None:
        return
    known = reader.subscribers()
    if name not in known:
        raise _Mistake(f"no subscriber {name!r} in {reader.path}; there are: {', '.join(known) or 'none'}")
    if configured and not known[name]:
        raise _Mistake(f"subscriber {name} is not in the settings: nothing is sent to it")


def _is_open(listed: ListedAlert, now_ns: int) -> bool:
    """Whether it is active, or something of it was not acknowledged."""
    risk = listed.alert.risk
    is_active = risk.status != "retracted" and risk.estimate.tca_timestamp >= now_ns
    return is_active or bool(listed.pending or listed.parked)


def _concerns(listed: ListedAlert) -> bool:
    """Whether the subscriber of the counts has received, or would receive, something of it."""
    return bool(listed.pending or listed.parked or listed.acknowledged)


def _described(args: argparse.Namespace) -> str:
    kind = "parked alerts" if args.parked else "alerts" if args.all else "open alerts"
    of_object = "" if args.object is None else f" of object {args.object}"
    return f"{kind}{of_object}{'' if args.subscriber is None else f' for {args.subscriber}'}"


def _evidence(evidence: ObjectEvidence) -> str:
    if not evidence.observations:
        return "no observations"
    residual = evidence.mean_square_residual
    about = "" if residual is None else f", mean square residual {residual:.2f}"
    many = "observation" if evidence.observations == 1 else "observations"
    return f"{evidence.observations} {many} by {', '.join(evidence.sensors)}{about}"


def _probability(risk: ConjunctionRisk) -> str:
    return probability_text(probability(risk.estimate))


_LISTED: Columns[ListedAlert] = (
    ("id", lambda row: str(row.alert.conjunction_id)[:SHORT_ID]),
    ("closest approach (UTC)", lambda row: time_text(row.alert.risk.estimate.tca_timestamp)),
    ("miss km", lambda row: f"{row.alert.risk.estimate.miss_m / _M_PER_KM:.3f}"),
    ("P", lambda row: _probability(row.alert.risk)),
    ("severity", lambda row: row.alert.severity),
    ("status", lambda row: row.alert.risk.status),
    ("rev", lambda row: str(row.alert.revision)),
    ("repeats", lambda row: str(row.repeats)),
    ("pending", lambda row: str(row.pending)),
    ("parked", lambda row: str(row.parked)),
    ("objects", lambda row: pair_text(row.alert.risk.estimate)),
)
_NARROW: Columns[ListedAlert] = (
    _LISTED[0],
    ("closest approach (UTC)", lambda row: time_text(row.alert.risk.estimate.tca_timestamp)[:-4]),
    *_LISTED[2:5],
    _LISTED[6],
)
"""What an 80-column terminal can show."""
_REVISIONS: Columns[Revision] = (
    ("rev", lambda row: str(row.alert.revision)),
    ("recorded (UTC)", lambda row: time_text(row.alert.recorded_timestamp)[:-4]),
    ("status", lambda row: row.alert.risk.status),
    ("cause", lambda row: row.alert.risk.cause),
    ("severity", lambda row: row.alert.severity),
    ("miss km", lambda row: f"{row.alert.risk.estimate.miss_m / _M_PER_KM:.3f}"),
    ("P", lambda row: _probability(row.alert.risk)),
    ("obs", lambda row: "+".join(str(each.observations) for each in row.alert.risk.evidence)),
)
_FEWER: Columns[Revision] = (
    _REVISIONS[0],
    ("recorded", lambda row: minute_text(row.alert.recorded_timestamp)),
    *_REVISIONS[2:],
)
_TEXT = ("id", "closest approach (UTC)", "severity", "status", "objects", "recorded (UTC)", "recorded", "cause")


def _below(row: ListedAlert) -> list[str]:
    counts = [f"{count} {state}" for count, state in ((row.pending, "pending"), (row.parked, "parked")) if count]
    return [f"  {', '.join([pair_text(row.alert.risk.estimate), row.alert.risk.status, *counts])}"]


def _below_revision(row: Revision) -> list[str]:
    return [f"     {_status(each)}" for each in row.deliveries]


def _status(delivery: DeliveryStatus) -> str:
    """What became of a revision for a subscriber, in a line."""
    many = "attempt" if delivery.attempts == 1 else "attempts"
    attempts = f"; {delivery.attempts} failed {many}" if delivery.attempts else ""
    error = f", the last: {delivery.last_error}" if delivery.last_error else ""
    match delivery.state:
        case "quiet":
            return f"{delivery.subscriber}: quiet ({delivery.reason})"
        case "pending":
            since = time_text(delivery.since_ns)[:-4]
            return f"{delivery.subscriber}: pending since {since} ({delivery.reason}){attempts}{error}"
        case "acknowledged" | "parked" | "superseded" as state:
            at = time_text(delivery.changed_ns)[:-4]
            return f"{delivery.subscriber}: {state} {at} ({delivery.reason}){attempts}{error}"


def _listed_document(listed: ListedAlert) -> dict[str, Any]:
    counts = {"pending": listed.pending, "acknowledged": listed.acknowledged, "parked": listed.parked}
    return {"alert": json.loads(alert_json(listed.alert)), "repeats": listed.repeats, "deliveries": counts}


def _revision_document(revision: Revision) -> dict[str, Any]:
    return {
        "alert": json.loads(alert_json(revision.alert)),
        "deliveries": [
            {
                "subscriber": each.subscriber,
                "state": each.state,
                "reason": each.reason,
                "since": rfc_3339(each.since_ns),
                "changed": rfc_3339(each.changed_ns),
                "attempts": each.attempts,
                "last_error": each.last_error,
            }
            for each in revision.deliveries
        ],
    }
