"""Staged passages: element sets of made-up objects that pass catalogued ones at a chosen time and distance.

A conjunction is nearer than a threshold, a near miss is not. The pipeline cannot see which objects are staged: they have
numbers that are free in the catalogue, and names that say nothing. The truth is in a file of its own.

A staged object crosses the other one's path: it has the same position and velocity, the velocity turned about the position
vector and a little greater. So both have the same altitude there, and different periods: they meet once only. The mean elements
that give this state with SGP4 come from a differential correction (D. A. Vallado, P. Crawford, "SGP4 Orbit Determination",
AIAA 2008-6770), here of one state instead of many observations: six unknowns, six equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, cos, hypot, pi, radians, sin, sqrt
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from sgp4.api import WGS72, Satrec

from sda_ops.astro.propagation import M_PER_KM
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, UNIX_EPOCH_JD, Floats, julian_date
from sda_ops.catalog import ElementSet
from sda_ops.catalog.elements import MAX_SGP4_SATNUM, SGP4_EPOCH_JD
from sda_ops.catalog.synthetic import EARTH_RADIUS_KM, MU_KM3_S2

PassageKind: TypeAlias = Literal["conjunction", "near_miss", "late"]
"""``conjunction``: nearer than the threshold. ``near_miss``: the paths are farther apart than it. ``late``: the paths cross, but
the second object passes the crossing later, so that the objects are farther apart than the threshold."""

_TOLERANCE_KM = 1e-6
"""How far SGP4's position at the passage may be from the wanted one."""

_ALONE_M = 25_000.0
"""Both objects of a passage are farther apart than this at every other approach within a day."""

_ITERATIONS = 25
_TIME_SCALE_S = (
    1_000.0  # about 1 / mean motion in low orbit: so velocity errors are comparable with those of the position
)
_STEP = 1e-6  # of the differences, rad: some metres along the orbit
_TURNS_DEG = (10.0, 170.0)
_SPEEDS = (1.006, 1.03)
_ATTEMPTS = 50
_LATE_EVERY = 2  # of the near misses
_LOW_KM, _HIGH_KM = 350.0, 2_000.0
_CHECK_STEP_S = 10
_MIN_PER_S = 1.0 / 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """How one object passes another.

    Attributes:
        at_ns: When the other object is at the place of the passage, UTC.
        miss_m: The distance of the two paths there.
        miss_angle_rad: The direction of the miss vector about the relative velocity; 0 is as far up as possible.
        turn_rad: The angle between the two directions of motion.
        speed: The speed, as a multiple of the other one's.
        late_s: How much later than the other object it is at that place.
    """

    at_ns: int
    miss_m: float
    miss_angle_rad: float = 0.0
    turn_rad: float = pi / 2
    speed: float = 1.01
    late_s: float = 0.0


class StagedPassage(msgspec.Struct, frozen=True, kw_only=True):
    """The truth of one passage: the minimum of SGP4's distance.

    Attributes:
        kind: What was staged.
        catalog_number_first: The smaller of the two catalogue numbers.
        catalog_number_second: The greater one.
        staged: The one of the two that is made up.
        tca_timestamp: Time of closest approach, UTC nanoseconds.
        miss_m: The distance at that time.
        relative_speed_m_s: At that time.
    """

    kind: PassageKind
    catalog_number_first: int
    catalog_number_second: int
    staged: int
    tca_timestamp: int
    miss_m: float
    relative_speed_m_s: float

    @property
    def numbers(self) -> tuple[int, int]:
        """Both catalogue numbers, the smaller one first."""
        return self.catalog_number_first, self.catalog_number_second


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingPlan:
    """What to stage.

    Attributes:
        conjunctions: How many.
        near_misses: How many; every second one differs from a conjunction in time only.
        threshold_m: Conjunctions miss by 5 to 80 % of it, near misses by 105 to 400 %.
        first_after_s: The earliest passage, from the start.
        last_after_s: The latest one.
    """

    conjunctions: int = 1
    near_misses: int = 1
    threshold_m: float = 1_000.0
    first_after_s: float = 3_600.0
    last_after_s: float = 6 * 3_600.0


class Staging(NamedTuple):
    """The made-up objects, and the truth about them, in the same order."""

    element_sets: tuple[ElementSet, ...]
    passages: tuple[StagedPassage, ...]


def stage(
    element_sets: Sequence[ElementSet],
    plan: StagingPlan,
    *,
    start_ns: int,
    rng: np.random.Generator,
    targets: Sequence[ElementSet] | None = None,
) -> Staging:
    """Objects that pass random objects of a catalogue in low orbit, or random ones of ``targets``, each once at most.

    ``start_ns`` (UTC) is also their epoch. Raises ``ValueError`` if there are too few objects in low orbit.
    """
    count = plan.conjunctions + plan.near_misses
    usable = low_orbits(element_sets if targets is None else targets)
    if len(usable) < count:
        raise ValueError(
            f"staging {count} passages needs as many objects in low orbit, got {len(usable)}; stage fewer, or take a larger "
            "catalogue"
        )
    taken = {each.catalog_number for each in element_sets}
    number = max(taken)
    epoch_ns = start_ns // 1000 * 1000  # a catalogue file has microseconds
    made: list[ElementSet] = []
    passages: list[StagedPassage] = []
    for index, place in enumerate(rng.choice(len(usable), count, replace=False).tolist()):
        near_miss = index - plan.conjunctions
        kind: PassageKind = "conjunction" if near_miss < 0 else "late" if near_miss % _LATE_EVERY else "near_miss"
        number += 1
        staged, truth = _staged(usable[place], kind, plan, number=number, epoch_ns=epoch_ns, rng=rng)
        made.append(staged)
        passages.append(truth)
    return Staging(tuple(made), tuple(passages))


def low_orbits(element_sets: Sequence[ElementSet]) -> list[ElementSet]:
    """Those between `_LOW_KM` and `_HIGH_KM` of altitude at all times."""
    low: list[ElementSet] = []
    for each in element_sets:
        axis_km, eccentricity = _semi_major_axis_km(each.satrec), each.satrec.ecco
        perigee_km, apogee_km = (axis_km * (1.0 + sign * eccentricity) - EARTH_RADIUS_KM for sign in (-1, 1))
        if perigee_km > _LOW_KM and apogee_km < _HIGH_KM:
            low.append(each)
    return low


def passing(target: ElementSet, passage: Passage, *, catalog_number: int, name: str = "", epoch_ns: int) -> ElementSet:
    """An element set whose SGP4 position passes ``target`` as wanted, with this epoch (UTC).

    Raises ``ValueError`` if SGP4 cannot propagate ``target`` to the passage, or has no orbit for that state.
    """
    r_km, v_km_s = _state(target.satrec, passage.at_ns)
    up = r_km / np.linalg.norm(r_km)
    across = np.cross(up, v_km_s)
    turned = passage.speed * (
        up * (up @ v_km_s) + (v_km_s - up * (up @ v_km_s)) * cos(passage.turn_rad) + across * sin(passage.turn_rad)
    )
    relative = turned - v_km_s
    relative /= np.linalg.norm(relative)
    highest = up - relative * (relative @ up)
    highest /= np.linalg.norm(highest)
    direction = highest * cos(passage.miss_angle_rad) + np.cross(relative, highest) * sin(passage.miss_angle_rad)
    wanted = np.concatenate((r_km + direction * passage.miss_m / M_PER_KM, turned * _TIME_SCALE_S))
    at_ns = passage.at_ns + round(passage.late_s * NS_PER_S)
    # First with the epoch at the passage, from the osculating elements; then those mean elements, taken to the epoch.
    osculating = _osculating(wanted[:3], turned)
    there = _corrected(osculating, wanted, bstar=target.satrec.bstar, epoch_ns=at_ns, at_ns=at_ns)
    fitted = _satrec(there, target.satrec.bstar, at_ns, catalog_number)
    back = _at_epoch(there, fitted, (epoch_ns - at_ns) / NS_PER_S * _MIN_PER_S)
    elements = _corrected(back, wanted, bstar=target.satrec.bstar, epoch_ns=epoch_ns, at_ns=at_ns)
    satrec = _satrec(elements, target.satrec.bstar, epoch_ns, catalog_number)
    return ElementSet(catalog_number, name, satrec, _epoch_days(epoch_ns))


def closest_approach(first: ElementSet, second: ElementSet, near_ns: int) -> tuple[int, float, float]:
    """The minimum of SGP4's distance near a time: its time (UTC nanoseconds), the distance (m) and the relative speed (m/s)."""
    tca_ns = near_ns
    for _ in range(5):  # Newton's steps along the straight relative path: the second one is below a millisecond
        (r_1, v_1), (r_2, v_2) = _state(first.satrec, tca_ns), _state(second.satrec, tca_ns)
        r_km, v_km_s = r_2 - r_1, v_2 - v_1
        tca_ns -= round(float(r_km @ v_km_s / (v_km_s @ v_km_s)) * NS_PER_S)
    return tca_ns, float(np.linalg.norm(r_km)) * M_PER_KM, float(np.linalg.norm(v_km_s)) * M_PER_KM


def write_staged(path: Path, passages: Sequence[StagedPassage]) -> None:
    """As JSON Lines."""
    path.write_bytes(msgspec.json.Encoder().encode_lines(passages))


def read_staged(path: Path) -> list[StagedPassage]:
    """What `write_staged` wrote."""
    return [msgspec.json.decode(line, type=StagedPassage) for line in path.read_bytes().splitlines()]


def _staged(
    target: ElementSet,
    kind: PassageKind,
    plan: StagingPlan,
    *,
    number: int,
    epoch_ns: int,
    rng: np.random.Generator,
) -> tuple[ElementSet, StagedPassage]:
    """One object that passes ``target`` once."""
    for _ in range(_ATTEMPTS):
        miss_m = plan.threshold_m * rng.uniform(*((0.05, 0.8) if kind == "conjunction" else (1.05, 4.0)))
        turn_rad = radians(rng.uniform(*_TURNS_DEG))
        passage = Passage(
            at_ns=epoch_ns + round(rng.uniform(plan.first_after_s, plan.last_after_s) * NS_PER_S),
            miss_m=0.02 * miss_m if kind == "late" else miss_m,
            miss_angle_rad=rng.uniform(0.0, 2.0 * pi),
            turn_rad=turn_rad,
            speed=rng.uniform(*_SPEEDS),
            late_s=_late_s(target, miss_m, turn_rad) * rng.choice((-1, 1)) if kind == "late" else 0.0,
        )
        staged = passing(target, passage, catalog_number=number, name=f"OBJECT {number}", epoch_ns=epoch_ns)
        tca_ns, miss_m, speed_m_s = closest_approach(target, staged, passage.at_ns)
        as_wanted = (miss_m < plan.threshold_m) == (kind == "conjunction")
        if as_wanted and _other_approach_m(target, staged, tca_ns, epoch_ns) > _ALONE_M:
            first, second = sorted((target.catalog_number, number))
            return staged, StagedPassage(
                kind=kind,
                catalog_number_first=first,
                catalog_number_second=second,
                staged=number,
                tca_timestamp=tca_ns,
                miss_m=miss_m,
                relative_speed_m_s=speed_m_s,
            )
    raise ValueError(f"no passage of {target.catalog_number} was found that is the only one of its pair")


def _late_s(target: ElementSet, miss_m: float, turn_rad: float) -> float:
    """How late an object must be at a crossing to miss the other one by this, with the same speed.

    The relative path passes the other object at ``v * late * cos(turn / 2)``.
    """
    speed_m_s = M_PER_KM * sqrt(MU_KM3_S2 / _semi_major_axis_km(target.satrec))
    return miss_m / (speed_m_s * cos(turn_rad / 2.0))


def _other_approach_m(target: ElementSet, staged: ElementSet, tca_ns: int, start_ns: int) -> float:
    """The least distance of the pair within a day of the start, but for the minute about the passage."""
    times_ns = start_ns + np.arange(0, 86_400, _CHECK_STEP_S, dtype=np.int64) * NS_PER_S
    times_ns = times_ns[np.abs(times_ns - tca_ns) > 30 * NS_PER_S]
    jd, fraction = julian_date(times_ns)
    (_, r_1, v_1), (_, r_2, v_2) = target.satrec.sgp4_array(jd, fraction), staged.satrec.sgp4_array(jd, fraction)
    r_km, v_km_s = r_2 - r_1, v_2 - v_1
    # The straight relative path within half a step of each time; NaN (decayed) is no approach.
    late_s = np.einsum("ti,ti->t", r_km, v_km_s) / np.einsum("ti,ti->t", v_km_s, v_km_s)
    late_s = np.clip(late_s, -0.5 * _CHECK_STEP_S, 0.5 * _CHECK_STEP_S)
    return float(np.nanmin(np.linalg.norm(r_km - v_km_s * late_s[:, np.newaxis], axis=1))) * M_PER_KM


def _semi_major_axis_km(satrec: Satrec) -> float:
    return float((MU_KM3_S2 / (satrec.no_kozai * _MIN_PER_S) ** 2) ** (1.0 / 3.0))


# The six unknowns: mean motion (rad/min), e cos w, e sin w, inclination, node, mean anomaly + w (rad). They have no
# singularity for circular orbits.
def _satrec(elements: Floats, bstar: float, epoch_ns: int, catalog_number: int = 0) -> Satrec:
    motion, e_cos, e_sin, inclination, node, longitude = elements.tolist()
    perigee = atan2(e_sin, e_cos)
    satrec = Satrec()
    satrec.sgp4init(
        WGS72,
        "i",
        catalog_number if catalog_number <= MAX_SGP4_SATNUM else 0,
        _epoch_days(epoch_ns),
        bstar,
        0.0,
        0.0,
        hypot(e_cos, e_sin),
        perigee % (2.0 * pi),
        inclination,
        (longitude - perigee) % (2.0 * pi),
        motion,
        node % (2.0 * pi),
    )
    return satrec


def _epoch_days(epoch_ns: int) -> float:
    return epoch_ns / NS_PER_DAY + UNIX_EPOCH_JD - SGP4_EPOCH_JD


def _state(satrec: Satrec, at_ns: int) -> tuple[Floats, Floats]:
    """TEME, km and km/s. Raises ``ValueError``."""
    jd, fraction = (float(part) for part in julian_date(np.array(at_ns)))
    error, r_km, v_km_s = satrec.sgp4(jd, fraction)
    if error != 0:
        raise ValueError(f"SGP4 has no state of object {satrec.satnum} at the passage: its error {error}")
    return np.array(r_km), np.array(v_km_s)


def _corrected(elements: Floats, wanted: Floats, *, bstar: float, epoch_ns: int, at_ns: int) -> Floats:
    """The mean elements at the epoch whose state at ``at_ns`` is the wanted one. Raises ``ValueError`` without a solution.

    ``wanted`` is the position in km and the velocity in km per `_TIME_SCALE_S`.
    """

    def state(of: Floats) -> Floats:
        r_km, v_km_s = _state(_satrec(of, bstar, epoch_ns), at_ns)
        return np.concatenate((r_km, v_km_s * _TIME_SCALE_S))

    elapsed_min = abs(at_ns - epoch_ns) / NS_PER_S * _MIN_PER_S
    steps = np.diag([_STEP / (elapsed_min + 10.0), *[_STEP] * 5])
    for _ in range(_ITERATIONS):
        residual = state(elements) - wanted
        if np.abs(residual).max() < _TOLERANCE_KM:
            return elements
        slopes = [(state(elements + step) - state(elements - step)) / (2.0 * step.sum()) for step in steps]
        elements = elements - np.linalg.solve(np.array(slopes).T, residual)
        if not (np.isfinite(elements).all() and hypot(elements[1], elements[2]) < 1.0 and elements[0] > 0.0):
            break
    raise ValueError("the differential correction has found no mean elements of the wanted state")


def _at_epoch(elements: Floats, satrec: Satrec, elapsed_min: float) -> Floats:
    """The mean elements after this time, by SGP4's secular rates without drag."""
    motion, e_cos, e_sin, inclination, node, longitude = elements.tolist()
    eccentricity = hypot(e_cos, e_sin)
    perigee = atan2(e_sin, e_cos) + satrec.argpdot * elapsed_min
    return np.array(
        [
            motion,
            eccentricity * cos(perigee),
            eccentricity * sin(perigee),
            inclination,
            node + satrec.nodedot * elapsed_min,
            longitude + (satrec.mdot + satrec.argpdot) * elapsed_min,
        ]
    )


def _osculating(r_km: Floats, v_km_s: Floats) -> Floats:
    """Two-body elements of a state (Vallado, *Fundamentals of Astrodynamics and Applications*, 4th ed., algorithm 9)."""
    distance_km = float(np.linalg.norm(r_km))
    momentum = np.cross(r_km, v_km_s)
    normal = momentum / np.linalg.norm(momentum)
    axis_km = 1.0 / (2.0 / distance_km - float(v_km_s @ v_km_s) / MU_KM3_S2)
    to_perigee = np.cross(v_km_s, momentum) / MU_KM3_S2 - r_km / distance_km
    to_node = np.array([-normal[1], normal[0], 0.0]) / hypot(normal[0], normal[1])
    ahead = np.cross(normal, to_node)
    e_cos, e_sin = float(to_perigee @ to_node), float(to_perigee @ ahead)
    eccentricity = hypot(e_cos, e_sin)
    latitude = atan2(float(r_km @ ahead), float(r_km @ to_node))
    anomaly = latitude - atan2(e_sin, e_cos)
    eccentric = 2.0 * atan2(
        sqrt(1.0 - eccentricity) * sin(anomaly / 2.0), sqrt(1.0 + eccentricity) * cos(anomaly / 2.0)
    )
    mean = eccentric - eccentricity * sin(eccentric)
    motion = sqrt(MU_KM3_S2 / axis_km**3) / _MIN_PER_S
    inclination = atan2(hypot(normal[0], normal[1]), float(normal[2]))
    node = atan2(to_node[1], to_node[0])
    return np.array([motion, e_cos, e_sin, inclination, node, mean + latitude - anomaly])
