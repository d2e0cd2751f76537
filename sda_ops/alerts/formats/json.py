"""An alert as JSON, version 1. The schema is published: ``docs/schemas/conjunction-alert-1.json`` describes every field.

Times are text, RFC 3339 in UTC with nine decimals: an integer of nanoseconds since 1970 has more digits than the numbers of many
readers of JSON keep. Units are in the names. The same alert is the same bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from sda_ops.records.alert import Alert
from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.records.risk import ObjectEvidence

SCHEMA_VERSION = 1
"""Within it fields are added, and none is removed or changes its meaning or unit."""

_NS_PER_S = 1_000_000_000
_ENCODER = msgspec.json.Encoder()


def alert_json(alert: Alert) -> bytes:
    """The alert in UTF-8, without line breaks."""
    risk, estimate = alert.risk, alert.risk.estimate
    return _ENCODER.encode(
        {
            "schema_version": SCHEMA_VERSION,
            "id": str(alert.conjunction_id),
            "revision": alert.revision,
            "status": risk.status,
            "severity": alert.severity,
            "cause": risk.cause,
            "recorded_at": time_text(alert.recorded_timestamp),
            "evidence_at": time_text(risk.evidence_timestamp),
            "complete_until": _optional_time(risk.complete_until_timestamp),
            "conjunction": _conjunction(estimate),
            "objects": [_first(estimate, risk.evidence[0]), _second(estimate, risk.evidence[1])],
        }
    )


def _conjunction(estimate: ConjunctionUpdate) -> dict[str, Any]:
    return {
        "tca": time_text(estimate.tca_timestamp),
        "miss_distance_m": estimate.miss_m,
        "miss_radial_m": estimate.miss_radial_m,
        "miss_in_track_m": estimate.miss_in_track_m,
        "miss_cross_track_m": estimate.miss_cross_track_m,
        "relative_speed_m_s": estimate.relative_speed_m_s,
        "probability": estimate.probability,
        "max_probability": estimate.max_probability,
        "dilution_m": estimate.dilution_m,
        "same_fleet": estimate.same_fleet,
        "formation": estimate.formation,
        "estimate_revision": estimate.revision,
        "screened_at": time_text(estimate.screened_timestamp),
        "withdrawal_reason": estimate.reason,
    }


def _first(estimate: ConjunctionUpdate, evidence: ObjectEvidence) -> dict[str, Any]:
    return {
        "catalog_number": estimate.catalog_number_first,
        "name": estimate.name_first or None,
        "designator": estimate.designator_first or None,
        "fleet": estimate.fleet_first,
        "orbit_class": estimate.orbit_class_first,
        "assumed_radius_m": estimate.radius_first_m,
        "epoch": time_text(estimate.epoch_first_timestamp),
        "age_s": estimate.age_first_s,
        "state": _state(
            (estimate.first_x_m, estimate.first_y_m, estimate.first_z_m),
            (estimate.first_vx_m_s, estimate.first_vy_m_s, estimate.first_vz_m_s),
        ),
        "observations": _observations(evidence),
    }


def _second(estimate: ConjunctionUpdate, evidence: ObjectEvidence) -> dict[str, Any]:
    return {
        "catalog_number": estimate.catalog_number_second,
        "name": estimate.name_second or None,
        "designator": estimate.designator_second or None,
        "fleet": estimate.fleet_second,
        "orbit_class": estimate.orbit_class_second,
        "assumed_radius_m": estimate.radius_second_m,
        "epoch": time_text(estimate.epoch_second_timestamp),
        "age_s": estimate.age_second_s,
        "state": _state(
            (estimate.second_x_m, estimate.second_y_m, estimate.second_z_m),
            (estimate.second_vx_m_s, estimate.second_vy_m_s, estimate.second_vz_m_s),
        ),
        "observations": _observations(evidence),
    }


def _state(r_teme_m: tuple[float | None, ...], v_teme_m_s: tuple[float | None, ...]) -> dict[str, Any] | None:
    """``None`` for estimates of earlier versions, which have no states."""
    if None in r_teme_m or None in v_teme_m_s:
        return None
    return {"frame": "TEME", "position_m": r_teme_m, "velocity_m_s": v_teme_m_s}


def _observations(evidence: ObjectEvidence) -> dict[str, Any]:
    return {
        "count": evidence.observations,
        "ids": [str(each) for each in evidence.observation_ids],
        "sensors": evidence.sensors,
        "first_at": _optional_time(evidence.first_observation_timestamp),
        "last_at": _optional_time(evidence.last_observation_timestamp),
        "mean_square_residual": evidence.mean_square_residual,
    }


def time_text(timestamp_ns: int) -> str:
    """RFC 3339, UTC, with nanoseconds."""
    seconds, rest = divmod(timestamp_ns, _NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def _optional_time(timestamp_ns: int | None) -> str | None:
    return None if timestamp_ns is None else time_text(timestamp_ns)
