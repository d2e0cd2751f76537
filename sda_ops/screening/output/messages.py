"""Conjunction Data Messages of assessed conjunctions: states at the closest approach, and what was assumed.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from math import pi, sqrt
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from sda_ops.astro.frames import teme_to_j2000_matrix
from sda_ops.astro.time import NS_PER_S, SECONDS_PER_DAY, Floats, Nanoseconds, julian_date
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors
from sda_ops.screening.approaches import Screening
from sda_ops.screening.assessment.assess import Conjunctions
from sda_ops.screening.assessment.encounter import orbit_axes
from sda_ops.screening.assessment.name_patterns import is_debris, is_rocket_body
from sda_ops.screening.exact import exact_states
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.volumes.assets import Asset
from sda_ops.screening.volumes.passages import AssetScreening
from sda_ops.wire.cdm import (
    ConjunctionMessage,
    ConjunctionObject,
    PhysicalParameters,
    RtnCovariance,
    cdm_kvn,
    cdm_xml,
)
from sda_ops.wire.time_tags import tag_of_utc_ns

Notation: TypeAlias = Literal["kvn", "xml"]

UNKNOWN = "UNKNOWN"

_US = 1_000  # nanoseconds: readers have microseconds at most
_LINEAR_S = 30.0
"""Entry and exit times are written if they are at most this far from the closest approach: motion is then linear to 0.05 s."""

_LONGEST_NAME = 200  # a line of KVN has 254 characters at most
_DESIGNATOR = re.compile(r"(\d\d)(\d{3}[A-Z]{1,3})", re.ASCII)
_FULL_DESIGNATOR = re.compile(r"\d{4}-\d{3}[A-Z]{1,3}", re.ASCII)
_FIRST_YEAR = 57  # of a two-digit year: 1957
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\s]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_DIAGONAL = (0, 2, 5, 9, 14, 20)
_WRITERS = {"kvn": (cdm_kvn, "cdm"), "xml": (cdm_xml, "xml")}

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


def messages_of(
    objects: ScreenedObjects,
    conjunctions: Conjunctions,
    indices: Rows,
    *,
    screening: Screening,
    originator: str,
    creation_date_ns: int,
    errors: ElementSetErrors | None = None,
    assets: Rows | None = None,
) -> Iterator[ConjunctionMessage]:
    """A message for each of ``conjunctions[indices]``, in that order. About 0.2 ms of CPU each.

    The same conjunction of the same catalogue and settings has the same ``MESSAGE_ID`` in every run.

    Args:
        objects: The screened objects.
        conjunctions: As `assess` made them.
        indices: Which of them, and in which order.
        screening: The period and the distance that were screened.
        originator: ``ORIGINATOR``, one line of text.
        creation_date_ns: When the messages are made, UTC.
        errors: The uncertainty with which the conjunctions were assessed. ``None``: the default figures.
        assets: Rows of one's own objects: such a one is OBJECT1, whose axes the relative state is in. Without one, the first
            object is.

    Raises ``ValueError`` for an originator that is not one line of text.
    """
    first, second = conjunctions.first[indices], conjunctions.second[indices]
    swapped = np.zeros(len(indices), dtype=np.bool_)
    if assets is not None:
        swapped = np.isin(second, assets) & ~np.isin(first, assets)

    screened = partial(_sphere, screening)
    yield from _messages(objects, conjunctions, indices, swapped, screened, originator, creation_date_ns, errors)


def passage_messages_of(
    objects: ScreenedObjects,
    conjunctions: Conjunctions,
    indices: Rows,
    *,
    screening: AssetScreening,
    assets: Sequence[Asset],
    originator: str,
    creation_date_ns: int,
    errors: ElementSetErrors | None = None,
) -> Iterator[ConjunctionMessage]:
    """A message for each of the passages ``indices`` through the boxes of ``assets``, as `messages_of` makes them.

    ``conjunctions`` are the assessed ``screening.passages.approaches()``, in the order of the passages. OBJECT1 is the asset.
    The entry and exit times are those of the passage; where it is longer than the screened window, they are missing.
    """
    passages = screening.passages
    volumes = {asset.row: asset.volume for asset in assets}
    swapped = conjunctions.first[indices] != passages.asset[indices]

    def screened(n: int, _: _Numbers) -> dict[str, Any]:
        index = indices[n]
        volume = volumes[passages.asset[index].item()]
        entry_ns, exit_ns = passages.entry_ns[index].item(), passages.exit_ns[index].item()
        return {
            "screen_from_ns": screening.start_ns,
            "screen_until_ns": screening.end_ns,
            "screen_volume_frame": "RTN",
            "screen_volume_shape": "BOX",
            "screen_volume_m": (volume.radial_m, volume.in_track_m, volume.cross_track_m),
            "screen_entry_ns": entry_ns // _US * _US if entry_ns > screening.start_ns else None,
            "screen_exit_ns": exit_ns // _US * _US if exit_ns < screening.end_ns else None,
        }

    yield from _messages(objects, conjunctions, indices, swapped, screened, originator, creation_date_ns, errors)


def message_files(messages: Iterable[ConjunctionMessage], notation: Notation) -> Iterator[tuple[str, str]]:
    """The name and the text (UTF-8) of a file for each message, in order, one at a time.

    The name is the message's id; characters other than letters, digits, ``_`` and ``-`` are ``_``.
    """
    write, suffix = _WRITERS[notation]
    for message in messages:
        yield f"{_UNSAFE.sub('_', message.message_id)[:200]}.{suffix}", write(message)


def _messages(
    objects: ScreenedObjects,
    conjunctions: Conjunctions,
    indices: Rows,
    swapped: npt.NDArray[np.bool_],
    screened: Callable[[int, _Numbers], dict[str, Any]],
    originator: str,
    creation_date_ns: int,
    errors: ElementSetErrors | None,
) -> Iterator[ConjunctionMessage]:
    """``screened`` gives the fields of the screened volume of the nth message; ``swapped``: whose second object is OBJECT1."""
    first, second = conjunctions.first[indices], conjunctions.second[indices]
    pair = np.stack((np.where(swapped, second, first), np.where(swapped, first, second)))
    radius_m = np.stack((conjunctions.radius_first_m[indices], conjunctions.radius_second_m[indices]))
    radius_m = np.where(swapped, radius_m[::-1], radius_m)
    tca_ns = (conjunctions.tca_ns[indices] + _US // 2) // _US * _US
    numbers = _Numbers(objects, pair, tca_ns, ElementSetErrors() if errors is None else errors)
    source = _DEFAULT_SOURCE if errors in (None, ElementSetErrors()) else _OTHER_SOURCE
    covariance_comments = (*_COVARIANCE_COMMENTS, source)
    known: dict[int, dict[str, Any]] = {}

    for n, index in enumerate(indices.tolist()):
        for row in pair[:, n].tolist():
            if row not in known:
                known[row] = _identity(objects, row)
        one, other = (
            ConjunctionObject(
                **known[row],
                **_SAME_OF_ALL,
                comments=(_epoch_comment(numbers.epoch_ns[k, n].item(), tca_ns[n].item()),),
                physical=_physical(radius_m[k, n].item()),
                position_m=tuple(numbers.r_m[k, n].tolist()),
                velocity_m_s=tuple(numbers.v_m_s[k, n].tolist()),
                covariance=RtnCovariance(comments=covariance_comments, state=_diagonal(numbers.variances[k, n])),
            )
            for k, row in enumerate(pair[:, n].tolist())
        )
        probability, method, comment = _probability(conjunctions, index)
        content: dict[str, Any] = {
            "comments": (*_radius_comments(radius_m[:, n].tolist()), comment),
            "tca_ns": tca_ns[n].item(),
            "miss_distance_m": numbers.miss_m[n].item(),
            "relative_speed_m_s": numbers.speed_m_s[n].item(),
            "relative_position_m": tuple(numbers.relative_m[n].tolist()),
            "relative_velocity_m_s": tuple(numbers.relative_m_s[n].tolist()),
            "collision_probability": probability,
            "collision_probability_method": method,
            "objects": (one, other),
            **screened(n, numbers),
        }
        yield ConjunctionMessage(
            creation_date_ns=creation_date_ns, originator=originator, message_id=_message_id(content), **content
        )


class _Numbers:
    """The numbers of all messages, with the digits that are written.

    Attributes:
        tca_ns: ``(n,)``.
        epoch_ns: ``(2, n)``, of both element sets.
        r_m: ``(2, n, 3)``, in EME2000, to 1 µm.
        v_m_s: ``(2, n, 3)``, to 1 µm/s.
        variances: ``(2, n, 6)``, of the position (m²) and the velocity (m²/s²) in the object's own axes.
        relative_m: ``(n, 3)``, second minus first, in the first's axes.
        relative_m_s: ``(n, 3)``.
        miss_m: ``(n,)``.
        speed_m_s: ``(n,)``.
    """

    def __init__(self, objects: ScreenedObjects, pair: Rows, tca_ns: Nanoseconds, errors: ElementSetErrors) -> None:
        both, times_ns = pair.ravel(), np.tile(tca_ns, 2)
        shape = (2, len(tca_ns), 3)
        states = exact_states(objects.satrecs, both, times_ns)
        if states.failed.any():
            number = objects.columns.catalog_number[both[states.failed][0]]
            raise ValueError(f"object {number}: SGP4 has no state at the closest approach")
        r_m, v_m_s = states.r_teme_m.reshape(shape), states.v_teme_m_s.reshape(shape)
        to_j2000 = teme_to_j2000_matrix(*julian_date(tca_ns))
        axes = orbit_axes(r_m[0], v_m_s[0])
        self.tca_ns = tca_ns
        self.epoch_ns = objects.columns.epoch_ns[pair]
        self.r_m = np.round(np.einsum("nij,knj->kni", to_j2000, r_m), 6)
        self.v_m_s = np.round(np.einsum("nij,knj->kni", to_j2000, v_m_s), 6)
        self.relative_m = np.round(np.einsum("nij,nj->ni", axes, r_m[1] - r_m[0]), 6)
        self.relative_m_s = np.round(np.einsum("nij,nj->ni", axes, v_m_s[1] - v_m_s[0]), 6)
        self.miss_m = np.round(np.linalg.norm(r_m[1] - r_m[0], axis=-1), 6)
        self.speed_m_s = np.round(np.linalg.norm(v_m_s[1] - v_m_s[0], axis=-1), 6)
        catalog_errors = CatalogErrors(
            errors, epoch_ns=objects.columns.epoch_ns, mean_motion_rad_s=objects.columns.no_kozai / 60.0
        )
        self.variances = np.concatenate(catalog_errors.variances(both, times_ns), axis=-1).reshape(2, len(tca_ns), 6)


def _identity(objects: ScreenedObjects, row: int) -> dict[str, Any]:
    name = _UNPRINTABLE.sub(" ", objects.names[row]).strip()[:_LONGEST_NAME].strip()
    return {
        "designator": str(objects.columns.catalog_number[row]),
        "name": name or UNKNOWN,
        "international_designator": _international_designator(objects.designators[row]),
        "object_type": "DEBRIS" if is_debris(name) else "ROCKET BODY" if is_rocket_body(name) else None,
    }


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
    return f"Element set epoch = {tag_of_utc_ns(epoch_ns // _US * _US)}, age at TCA = {age_days:.6f} [d]"


def _physical(radius_m: float) -> PhysicalParameters:
    return PhysicalParameters(
        comments=(f"AREA_PC is of a sphere with the assumed radius of {radius_m:g} [m]",),
        area_for_probability_m2=_digits(pi * radius_m**2),
    )


def _radius_comments(radius_m: list[float]) -> tuple[str, str]:
    return (
        f"HBR = {sum(radius_m):.6g}",
        f"HBR is the sum of the assumed radii: OBJECT1 {radius_m[0]:g} [m], OBJECT2 {radius_m[1]:g} [m]",
    )


def _probability(conjunctions: Conjunctions, index: int) -> tuple[float, str, str]:
    """The probability, its method, and a comment."""
    greatest = _digits(float(conjunctions.max_probability[index]))
    dilution_m, ratio = conjunctions.dilution_m[index], conjunctions.aspect_ratio[index]
    reached = (
        f"over all sizes of a covariance with the aspect ratio {ratio:.4g} in the encounter plane, reached with a standard "
        f"deviation of {dilution_m:.6g} [m] along the miss vector"
        if dilution_m > 0.0
        else "because MISS_DISTANCE is at most HBR"
    )
    probability = float(conjunctions.probability[index])
    if np.isfinite(probability):
        comment = f"Maximum probability (ALFANO-MAX-PROBABILITY) = {greatest!r}, {reached}"
        return _digits(probability), "FOSTER-1992", comment
    return greatest, "ALFANO-MAX-PROBABILITY", f"COLLISION_PROBABILITY is the maximum, {reached}"


def _sphere(screening: Screening, n: int, numbers: _Numbers) -> dict[str, Any]:
    """The period and the sphere that were screened. Its size is that of the half axes, as in the standard's example.

    In that example the second object is 712 m away along an axis on which the volume's size is 1,000 m.
    """
    tca_ns, miss_m, speed_m_s = numbers.tca_ns[n].item(), numbers.miss_m[n].item(), numbers.speed_m_s[n].item()
    entry_ns, exit_ns = _inside(tca_ns, miss_m, speed_m_s, screening.miss_distance_m)
    return {
        "screen_from_ns": screening.start_ns,
        "screen_until_ns": screening.end_ns,
        "screen_volume_frame": "RTN",
        "screen_volume_shape": "ELLIPSOID",
        "screen_volume_m": (screening.miss_distance_m,) * 3,
        "screen_entry_ns": entry_ns,
        "screen_exit_ns": exit_ns,
    }


def _inside(tca_ns: int, miss_m: float, speed_m_s: float, distance_m: float) -> tuple[int | None, int | None]:
    """When the distance is first and last at most ``distance_m``, to 1 ms; None if the motion until then is not linear."""
    half_m = sqrt(max(distance_m**2 - miss_m**2, 0.0))
    if half_m >= _LINEAR_S * speed_m_s:
        return None, None
    half_ms = round(half_m / speed_m_s * 1_000)
    tca_ms = round(tca_ns / 1_000_000)
    return (tca_ms - half_ms) * 1_000_000, (tca_ms + half_ms) * 1_000_000


def _message_id(content: Mapping[str, Any]) -> str:
    """CSpOC's form: both objects, the time (year, day of the year, time of day), and a number; here from the content."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=content["tca_ns"] // _US)
    numbers = [
        (each.position_m, each.velocity_m_s, each.covariance.state, each.comments) for each in content["objects"]
    ]
    rest = [value for name, value in content.items() if name != "objects"]
    serial = xxhash.xxh3_64_intdigest(repr((numbers, rest)).encode()) % 10**14
    one, other = (each.designator.zfill(9) for each in content["objects"])
    return f"{one}_conj_{other}_{moment:%Y%j%H%M%S}_{serial:014}"


def _diagonal(variances: Floats) -> tuple[float, ...]:
    """The lower triangle of a covariance that has only variances."""
    triangle = [0.0] * 21
    for place, variance in zip(_DIAGONAL, variances.tolist(), strict=True):
        triangle[place] = _digits(variance)
    return tuple(triangle)


def _digits(number: float) -> float:
    """With six significant digits: more would be noise."""
    return float(f"{number:.6g}")
