"""An alert as a Conjunction Data Message (CCSDS 508.0-B-1), KVN or XML, made from the record alone.

A CDM has no field for the status of a conjunction. The comments of its header have it, one ``KEYWORD = value`` each, as others
write ``HBR``: ``STATUS`` (``PROVISIONAL``, ``FINAL`` or ``RETRACTED``), ``CONJUNCTION_ID``, ``REVISION``, ``SEVERITY``, ``CAUSE``,
and a sentence that says what the status means. A retracted one repeats the last estimate, which the standard demands, without
``COLLISION_PROBABILITY``, so that a receiver that does not read comments does not take it for a risk.

`sda_ops.screening.output.message_builder` says which frame and which covariance a message has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import numpy as np

from sda_ops.astro.time import NS_PER_S, Floats
from sda_ops.catalog.columns import MU_WGS72_KM3_S2
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors
from sda_ops.records.alert import Alert
from sda_ops.records.conjunction import WITHDRAWN_BECAUSE, ConjunctionUpdate
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence
from sda_ops.screening.output.message_builder import (
    US,
    MessageNumbers,
    MessageObject,
    Notation,
    StatedProbability,
    content_of,
    covariance_comments_of,
    identity_of,
    one_line,
    stated_probability,
)
from sda_ops.wire.cdm import ConjunctionMessage, cdm_kvn, cdm_xml
from sda_ops.wire.time_tags import tag_of_utc_ns

_WRITERS = {"kvn": cdm_kvn, "xml": cdm_xml}
_MU_M3_S2 = MU_WGS72_KM3_S2 * 1e9
_Side: TypeAlias = Literal["first", "second"]
_IDENTITY = ("catalog_number", "name", "designator")
_AXES = ("x_m", "y_m", "z_m", "vx_m_s", "vy_m_s", "vz_m_s")
_LONGEST_COMMENT = 240  # a line of KVN has 254 characters at most


def alert_cdm(
    alert: Alert,
    *,
    notation: Notation,
    originator: str,
    errors: ElementSetErrors | None = None,
    own: Collection[int] = (),
) -> str:
    """The message as text (UTF-8). The same alert gives the same text.

    Args:
        alert: The revision. ``MESSAGE_ID`` is its conjunction's id and its number, ``CREATION_DATE`` when it was stored.
        notation: ``kvn`` or ``xml``.
        originator: ``ORIGINATOR``, one line of text.
        errors: The uncertainty with which the conjunction was assessed. ``None``: the default figures.
        own: Catalogue numbers of the receiver's own objects: such a one is OBJECT1, whose axes the relative state is in. Without
            one, the object with the smaller number is.

    Raises ``ValueError`` if the estimate has no states (an earlier version stored it), or no orbits, and for an originator that is
    not one line of text.
    """
    return _WRITERS[notation](alert_message(alert, originator=originator, errors=errors, own=own))


def alert_message(
    alert: Alert, *, originator: str, errors: ElementSetErrors | None = None, own: Collection[int] = ()
) -> ConjunctionMessage:
    """The message that `alert_cdm` writes."""
    risk = alert.risk
    estimate = risk.estimate
    sides: list[tuple[_Side, ObjectEvidence]] = [("first", risk.evidence[0]), ("second", risk.evidence[1])]
    if estimate.catalog_number_second in own and estimate.catalog_number_first not in own:
        sides.reverse()
    one, other = (
        MessageObject(
            identity=identity_of(*(getattr(estimate, f"{name}_{side}") for name in _IDENTITY)),
            epoch_ns=getattr(estimate, f"epoch_{side}_timestamp"),
            radius_m=getattr(estimate, f"radius_{side}_m"),
            comments=_evidence_comments(evidence),
        )
        for side, evidence in sides
    )
    numbers = _numbers(estimate, [side for side, _ in sides], ElementSetErrors() if errors is None else errors)
    return ConjunctionMessage(
        header_comments=_status_comments(alert),
        creation_date_ns=alert.recorded_timestamp // US * US,
        originator=originator,
        message_id=f"{alert.conjunction_id}_{alert.revision}",
        **content_of(numbers, 0, (one, other), _probability(risk), covariance_comments_of(errors)),
    )


def _numbers(estimate: ConjunctionUpdate, sides: Sequence[_Side], errors: ElementSetErrors) -> MessageNumbers:
    """The positions are moved to the written time, at most half a microsecond from the estimate's."""
    values = [getattr(estimate, f"{side}_{axis}") for side in sides for axis in _AXES]
    if None in values:
        raise ValueError(
            f"conjunction {estimate.conjunction_id}: its estimate has no states, which a CDM needs; an earlier version stored "
            "it, and the next screening adds them"
        )
    tca_ns = (estimate.tca_timestamp + US // 2) // US * US
    states = np.array(values, dtype=np.float64).reshape(2, 2, 3)
    r_m, v_m_s = states[:, 0], states[:, 1]
    r_m = r_m + v_m_s * ((tca_ns - estimate.tca_timestamp) / NS_PER_S)
    epoch_ns = np.array([getattr(estimate, f"epoch_{side}_timestamp") for side in sides])
    mean_motion_rad_s = _mean_motion_rad_s(estimate, r_m, v_m_s)
    catalog_errors = CatalogErrors(errors, epoch_ns=epoch_ns, mean_motion_rad_s=mean_motion_rad_s)
    variances = np.concatenate(catalog_errors.variances(np.arange(2), np.full(2, tca_ns)), axis=-1)
    return MessageNumbers(np.array([tca_ns]), r_m[:, np.newaxis], v_m_s[:, np.newaxis], variances[:, np.newaxis])


def _mean_motion_rad_s(estimate: ConjunctionUpdate, r_m: Floats, v_m_s: Floats) -> Floats:
    """Of the orbits with these states: the energy gives the major axis, Kepler's third law the rest.

    An element set's own mean motion differs by 0.2 % in low orbit. It is needed for the assumed errors of the velocity only.
    """
    inverse_axis = 2.0 / np.linalg.norm(r_m, axis=-1) - (v_m_s**2).sum(axis=-1) / _MU_M3_S2
    if not (np.isfinite(inverse_axis) & (inverse_axis > 0.0)).all():
        raise ValueError(f"conjunction {estimate.conjunction_id}: a state of its estimate is not one of a closed orbit")
    mean_motion_rad_s: Floats = np.sqrt(_MU_M3_S2 * inverse_axis**3)
    return mean_motion_rad_s


def _status_comments(alert: Alert) -> tuple[str, ...]:
    risk = alert.risk
    return (
        f"STATUS = {risk.status.upper()}",
        f"CONJUNCTION_ID = {alert.conjunction_id}",
        f"REVISION = {alert.revision}",
        f"SEVERITY = {alert.severity.upper()}",
        f"CAUSE = {risk.cause.upper()}",
        _meaning(risk),
    )


def _meaning(risk: ConjunctionRisk) -> str:
    match risk.status:
        case "retracted":
            return f"Retracted: {WITHDRAWN_BECAUSE[risk.estimate.reason]}. All figures are those of the last estimate"
        case "final" if risk.complete_until_timestamp is not None:
            until = tag_of_utc_ns(risk.complete_until_timestamp // US * US)
            return f"Final: all observations from before {until} are counted"
        case "final":
            return "Final: all observations are counted"
        case "provisional":
            return "Provisional: observations from before CREATION_DATE may follow"


def _evidence_comments(evidence: ObjectEvidence) -> tuple[str, ...]:
    """An observation does not change the orbit, so that none of this is in the fields of the orbit determination."""
    comments = [f"Observations of it, compared with this element set or a newer one = {evidence.observations}"]
    if not evidence.observations:
        return tuple(comments)
    sensors = one_line(", ".join(evidence.sensors))
    comments.append(f"Sensors ({len(evidence.sensors)}): {sensors}"[:_LONGEST_COMMENT].strip())
    times = (evidence.first_observation_timestamp, evidence.last_observation_timestamp)
    if None not in times:
        first, last = (tag_of_utc_ns(time_ns // US * US) for time_ns in times if time_ns is not None)
        comments.append(f"First and last observation = {first}, {last}")
    if evidence.mean_square_residual is not None:
        comments.append(
            f"Mean square residual from the element set, in standard deviations = {evidence.mean_square_residual:.6g}"
        )
    return tuple(comments)


def _probability(risk: ConjunctionRisk) -> StatedProbability:
    estimate = risk.estimate
    stated = stated_probability(
        estimate.probability,
        estimate.max_probability,
        estimate.dilution_m,
        "the assumed covariance in the encounter plane",
    )
    if risk.status == "retracted":
        return StatedProbability(None, None, "No COLLISION_PROBABILITY: the conjunction is retracted")
    return stated
