"""What every conjunction message of ours has, if it is made from a screening or from the record of a conjunction.

**Frame.** The messages have EME2000: a CDM does not know TEME, SGP4's frame. The rotation uses IAU 1976 precession and IAU 1980
nutation without corrections: within 0.1 arcseconds of GCRS, 3 m in low orbit, for both objects alike. ITRF would need UT1 and
the pole, which a catalogue does not have (60 m on the ground), and its velocities are relative to the rotating Earth. The
rotation's own rate, 1e-11 rad/s, is neglected: 0.1 mm/s in low orbit, where SGP4's velocity is accurate to metres per second.
Distances, and parts along the orbit's axes, are the same in every frame.

**Covariance.** Public element sets have none. The messages have an assumed one, say so in a comment, and have
``COVARIANCE_METHOD = DEFAULT``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import pi
from typing import Any, Literal, TypeAlias

import numpy as np

from sda_ops.astro.frames import teme_to_j2000_matrix
from sda_ops.astro.time import NS_PER_S, SECONDS_PER_DAY, Floats, Nanoseconds, julian_date
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.screening.assessment.encounter import orbit_axes
from sda_ops.screening.assessment.name_patterns import is_debris, is_rocket_body
from sda_ops.wire.cdm import ConjunctionObject, PhysicalParameters, RtnCovariance
from sda_ops.wire.time_tags import tag_of_utc_ns

Notation: TypeAlias = Literal["kvn", "xml"]

UNKNOWN = "UNKNOWN"

US = 1_000
"""Nanoseconds: readers have microseconds at most."""

_LONGEST_NAME = 200  # a line of KVN has 254 characters at most
_DESIGNATOR = re.compile(r"(\d\d)(\d{3}[A-Z]{1,3})", re.ASCII)
_FULL_DESIGNATOR = re.compile(r"\d{4}-\d{3}[A-Z]{1,3}", re.ASCII)
_FIRST_YEAR = 57  # of a two-digit year: 1957
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\s]+")
_DIAGONAL = (0, 2, 5, 9, 14, 20)

_STATE_COMMENT = (
    "Position by SGP4, velocity as its derivative, from TEME of date to the mean equator and equinox of J2000 "
    "(IAU 1976 precession, IAU 1980 nutation)"
)
_SAME_OF_ALL: dict[str, Any] = {
    "catalog_name": "SATCAT",
    "ephemeris_name": "NONE",
    "covariance_method": "DEFAULT",
    "maneuverable": "N/A",
    "orbit_center": "EARTH",
    "ref_frame": "EME2000",
    "state_comments": (_STATE_COMMENT,),
}
_COVARIANCE_COMMENTS = (
    "Assumed, not determined: public element sets have no covariance",
    "Velocity: from the position's and the mean motion; without correlations",
)
_DEFAULT_SOURCE = (
    "Standard deviations at the epoch: round figures after Flohrer, Krag and Klinkrad, AMOS 2008; their growth with the age "
    "is assumed"
)
_OTHER_SOURCE = "Standard deviations at the epoch and their growth with the age: settings of the screening"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageObject:
    """One of the two objects of a message.

    Attributes:
        identity: As `identity_of` makes it.
        epoch_ns: Epoch of its element set, UTC.
        radius_m: Assumed.
        comments: Behind the comment on the epoch.
    """

    identity: dict[str, Any]
    epoch_ns: int
    radius_m: float
    comments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StatedProbability:
    """The probability of collision as a message has it; ``value`` and ``method`` are ``None`` if it states none."""

    value: float | None
    method: str | None
    comment: str


class MessageNumbers:
    """The numbers of several messages, with the digits that are written.

    Attributes:
        tca_ns: ``(n,)``, whole microseconds.
        r_m: ``(2, n, 3)``, in EME2000, to 1 µm.
        v_m_s: ``(2, n, 3)``, to 1 µm/s.
        variances: ``(2, n, 6)``, of the position (m²) and the velocity (m²/s²) in the object's own axes.
        relative_m: ``(n, 3)``, second minus first, in the first's axes.
        relative_m_s: ``(n, 3)``.
        miss_m: ``(n,)``.
        speed_m_s: ``(n,)``.
    """

    def __init__(self, tca_ns: Nanoseconds, r_teme_m: Floats, v_teme_m_s: Floats, variances: Floats) -> None:
        """From the states ``(2, n, 3)`` of the first and the second objects at ``tca_ns``."""
        to_j2000 = teme_to_j2000_matrix(*julian_date(tca_ns))
        axes = orbit_axes(r_teme_m[0], v_teme_m_s[0])
        self.tca_ns = tca_ns
        self.r_m = np.round(np.einsum("nij,knj->kni", to_j2000, r_teme_m), 6)
        self.v_m_s = np.round(np.einsum("nij,knj->kni", to_j2000, v_teme_m_s), 6)
        self.relative_m = np.round(np.einsum("nij,nj->ni", axes, r_teme_m[1] - r_teme_m[0]), 6)
        self.relative_m_s = np.round(np.einsum("nij,nj->ni", axes, v_teme_m_s[1] - v_teme_m_s[0]), 6)
        self.miss_m = np.round(np.linalg.norm(r_teme_m[1] - r_teme_m[0], axis=-1), 6)
        self.speed_m_s = np.round(np.linalg.norm(v_teme_m_s[1] - v_teme_m_s[0], axis=-1), 6)
        self.variances = variances


def content_of(
    numbers: MessageNumbers,
    n: int,
    objects: tuple[MessageObject, MessageObject],
    probability: StatedProbability,
    covariance_comments: tuple[str, ...],
) -> dict[str, Any]:
    """The fields of the nth `sda_ops.wire.cdm.ConjunctionMessage`, without its header and its screened volume."""
    tca_ns = numbers.tca_ns[n].item()
    return {
        "comments": (*_radius_comments(*(each.radius_m for each in objects)), probability.comment),
        "tca_ns": tca_ns,
        "miss_distance_m": numbers.miss_m[n].item(),
        "relative_speed_m_s": numbers.speed_m_s[n].item(),
        "relative_position_m": tuple(numbers.relative_m[n].tolist()),
        "relative_velocity_m_s": tuple(numbers.relative_m_s[n].tolist()),
        "collision_probability": probability.value,
        "collision_probability_method": probability.method,
        "objects": tuple(
            ConjunctionObject(
                **each.identity,
                **_SAME_OF_ALL,
                comments=(_epoch_comment(each.epoch_ns, tca_ns), *each.comments),
                physical=_physical(each.radius_m),
                position_m=tuple(numbers.r_m[k, n].tolist()),
                velocity_m_s=tuple(numbers.v_m_s[k, n].tolist()),
                covariance=RtnCovariance(comments=covariance_comments, state=_diagonal(numbers.variances[k, n])),
            )
            for k, each in enumerate(objects)
        ),
    }


def identity_of(catalog_number: int, name: str, designator: str) -> dict[str, Any]:
    """The fields of an object that say who it is, from a catalogue's texts. ``designator`` is as in a TLE (``98067A``)."""
    name = one_line(name)[:_LONGEST_NAME].strip()
    return {
        "designator": str(catalog_number),
        "name": name or UNKNOWN,
        "international_designator": _international_designator(designator),
        "object_type": "DEBRIS" if is_debris(name) else "ROCKET BODY" if is_rocket_body(name) else None,
    }


def one_line(text: str) -> str:
    """The text as one line that every notation can hold."""
    return _UNPRINTABLE.sub(" ", text).strip()


def covariance_comments_of(errors: ElementSetErrors | None) -> tuple[str, ...]:
    """That the covariance is assumed, and where its figures are from; ``None``: the default ones."""
    source = _DEFAULT_SOURCE if errors in (None, ElementSetErrors()) else _OTHER_SOURCE
    return (*_COVARIANCE_COMMENTS, source)


def stated_probability(
    probability: float | None, max_probability: float, dilution_m: float | None, shape: str
) -> StatedProbability:
    """The probability with covariances if there is one, otherwise the maximum; the comment has the maximum.

    ``dilution_m`` is that of `sda_ops.records.conjunction.ConjunctionEstimate`; ``shape`` names the covariance of the maximum.
    """
    greatest = digits(max_probability)
    reached = (
        f"over all sizes of {shape}, reached with a standard deviation of {dilution_m:.6g} [m] along the miss vector"
        if dilution_m is not None and dilution_m > 0.0
        else "because MISS_DISTANCE is at most HBR"
    )
    if probability is None:
        comment = f"COLLISION_PROBABILITY is the maximum, {reached}"
        return StatedProbability(greatest, "ALFANO-MAX-PROBABILITY", comment)
    comment = f"Maximum probability (ALFANO-MAX-PROBABILITY) = {greatest!r}, {reached}"
    return StatedProbability(digits(probability), "FOSTER-1992", comment)


def digits(number: float) -> float:
    """With six significant digits: more would be noise."""
    return float(f"{number:.6g}")


def _international_designator(designator: str) -> str:
    """``1998-067A`` from a TLE's ``98067A``."""
    if _FULL_DESIGNATOR.fullmatch(designator):
        return designator
    if (match := _DESIGNATOR.fullmatch(designator)) is None:
        return UNKNOWN
    century = 19 if int(match[1]) >= _FIRST_YEAR else 20
    return f"{century}{match[1]}-{match[2]}"


def _epoch_comment(epoch_ns: int, tca_ns: int) -> str:
    age_days = (tca_ns - epoch_ns) / NS_PER_S / SECONDS_PER_DAY
    return f"Element set epoch = {tag_of_utc_ns(epoch_ns // US * US)}, age at TCA = {age_days:.6f} [d]"


def _physical(radius_m: float) -> PhysicalParameters:
    return PhysicalParameters(
        comments=(f"AREA_PC is of a sphere with the assumed radius of {radius_m:g} [m]",),
        area_for_probability_m2=digits(pi * radius_m**2),
    )


def _radius_comments(first_m: float, second_m: float) -> tuple[str, str]:
    return (
        f"HBR = {first_m + second_m:.6g}",
        f"HBR is the sum of the assumed radii: OBJECT1 {first_m:g} [m], OBJECT2 {second_m:g} [m]",
    )


def _diagonal(variances: Floats) -> tuple[float, ...]:
    """The lower triangle of a covariance that has only variances."""
    triangle = [0.0] * 21
    for place, variance in zip(_DIAGONAL, variances.tolist(), strict=True):
        triangle[place] = digits(variance)
    return tuple(triangle)
