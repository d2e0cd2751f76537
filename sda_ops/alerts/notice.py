"""An alert as a notice for people: an event with labels and figures, and a page of plain text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from orchestrator_adapter.process import Notice
from sda_ops.records.alert import Alert
from sda_ops.records.conjunction import WITHDRAWN_BECAUSE, ConjunctionUpdate
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence

ALERT_EVENT: Final = "conjunction.alert"
"""The name of the event."""

CONJUNCTION: Final = "conjunction."
"""Before the conjunction's id, in the id of the event's resource."""

SEVERITY_LABEL: Final = "conjunction.severity"
STATUS_LABEL: Final = "conjunction.status"

_KEY_CHARACTERS: Final = 13  # of an id, in the artifact's key: 48 bits


def alert_notice(alert: Alert) -> Notice:
    """The notice of one revision.

    Its key has the time at which the outbox stored the revision, so the same stored revision is never reported twice, and a new
    outbox reports its own.
    """
    risk, estimate = alert.risk, alert.risk.estimate
    return Notice(
        event=ALERT_EVENT,
        key=f"{alert.key}@{alert.recorded_timestamp}",
        resource=f"{CONJUNCTION}{alert.conjunction_id}",
        title=_title(alert),
        labels={SEVERITY_LABEL: alert.severity, STATUS_LABEL: risk.status},
        artifact=f"alert-{str(alert.conjunction_id)[:_KEY_CHARACTERS]}",
        payload={
            "conjunction_id": str(alert.conjunction_id),
            "revision": alert.revision,
            "severity": alert.severity,
            "status": risk.status,
            "cause": risk.cause,
            "objects": [{"catalog_number": number, "name": name} for number, name in _objects(estimate)],
            "tca": _utc(estimate.tca_timestamp),
            "miss_m": estimate.miss_m,
            "relative_speed_m_s": estimate.relative_speed_m_s,
            "probability": estimate.probability,
            "max_probability": estimate.max_probability,
            "observations": [each.observations for each in risk.evidence],
            "recorded": _utc(alert.recorded_timestamp),
            "summary": _title(alert),
        },
        markdown=_page(alert),
    )


def _title(alert: Alert) -> str:
    estimate = alert.risk.estimate
    first, second = (f"{name} ({number})" if name else str(number) for number, name in _objects(estimate))
    status = "" if alert.risk.status == "provisional" else f", {alert.risk.status}"
    return (
        f"{alert.severity}: {first} and {second}, {_distance(estimate.miss_m)} "
        f"at {_utc(estimate.tca_timestamp)}, revision {alert.revision}{status}"
    )


def _page(alert: Alert) -> str:
    risk, estimate = alert.risk, alert.risk.estimate
    components = ", ".join(
        f"{name} {value:,.0f} m"
        for name, value in (
            ("radial", estimate.miss_radial_m),
            ("in-track", estimate.miss_in_track_m),
            ("cross-track", estimate.miss_cross_track_m),
        )
    )
    rows = [
        ("status", _status(risk)),
        ("time of closest approach", _utc(estimate.tca_timestamp)),
        ("miss distance", f"{_distance(estimate.miss_m)} ({components})"),
        ("relative speed", f"{estimate.relative_speed_m_s / 1e3:,.2f} km/s"),
        ("probability of collision", _probability(estimate)),
        ("revision", f"{alert.revision}, recorded {_utc(alert.recorded_timestamp)}"),
        ("conjunction", str(alert.conjunction_id)),
    ]
    first, second = risk.evidence
    objects = [
        (*_object(number, name), _utc(evidence.epoch_timestamp), str(evidence.observations), *_seen(evidence))
        for (number, name), evidence in zip(_objects(estimate), (first, second), strict=True)
    ]
    return "\n".join(
        [
            f"# {alert.severity.capitalize()}: {' and '.join(_cell(name or str(n)) for n, name in _objects(estimate))}",
            "",
            *_table(("", ""), rows),
            "",
            *_table(("object", "name", "element set of", "observations", "sensors", "last observed"), objects),
        ]
    )


def _status(risk: ConjunctionRisk) -> str:
    match risk.status:
        case "provisional":
            return "provisional: more evidence may follow"
        case "final":
            return "final: all evidence from before the watermark is in"
        case "retracted":
            return f"retracted: {WITHDRAWN_BECAUSE[risk.estimate.reason]}"


def _objects(estimate: ConjunctionUpdate) -> tuple[tuple[int, str], tuple[int, str]]:
    return (
        (estimate.catalog_number_first, " ".join(estimate.name_first.split())),
        (estimate.catalog_number_second, " ".join(estimate.name_second.split())),
    )


def _object(number: int, name: str) -> tuple[str, str]:
    return str(number), name or "-"


def _seen(evidence: ObjectEvidence) -> tuple[str, str]:
    last = evidence.last_observation_timestamp
    return ", ".join(evidence.sensors) or "-", "-" if last is None else _utc(last)


def _probability(estimate: ConjunctionUpdate) -> str:
    if estimate.probability is None:
        return f"at most {estimate.max_probability:.1e} (no covariances)"
    return f"{estimate.probability:.1e} (at most {estimate.max_probability:.1e})"


def _distance(metres: float) -> str:
    return f"{metres:,.0f} m" if metres < 10_000 else f"{metres / 1e3:,.1f} km"  # noqa: PLR2004 - a matter of reading


def _utc(timestamp_ns: int) -> str:
    """To the millisecond, rounded down."""
    seconds, ns = divmod(timestamp_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{ns // 1_000_000:03} UTC"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [_row(head), _row(("---",) * len(head)), *(_row(tuple(map(_cell, row))) for row in rows)]


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text from the catalogue or from a sensor, which must not end its cell or be markup."""
    return "".join(f"\\{each}" if each in "\\|<>*_`[]" else each for each in text)
