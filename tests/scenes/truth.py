"""A simulated scene with known truth: objects, observations of every kind of sensor, and the object of each observation.

Observations come from the simulator's sensors with noise, through the real wire formats. They are correlated with the
catalogue as the ``propagate`` operator uses it. The true states differ from it in one of three ways:

- ``catalogue``: every object is where its element set says. Only the sensors err.
- ``offset``: every object is off by one draw from `ElementSetErrors`, in the orbit's axes, with the velocity errors that the
  model assumes. This matches the model exactly, but it is not a physical orbit.
- ``orbit``: every object flies an orbit whose elements differ from the catalogue's by as much. In-track and radial errors
  are correlated as in real orbits; at the perigee of an eccentric orbit they are larger than the model says.

It knows nothing of graphs or clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from sda_ops.astro.propagation import Propagator, States, sgp4_states
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.catalog import ElementColumns, ElementSet, newest_of_each, read_catalog, synthetic_catalog
from sda_ops.correlate.associate import Associator
from sda_ops.correlate.sensors import Sensor
from sda_ops.propagation.interval import STEP_NS, CatalogFacts, CatalogInterval, Placed, knots_of
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors
from sda_ops.records.correlation import Correlation
from sda_ops.records.observation import Observation, SourceKind, Uncertainty
from sda_ops.simulate import world as simulated
from sda_ops.simulate.config import Noise
from sda_ops.simulate.frames import SimulatedSensor
from sda_ops.simulate.isl import Beacons
from sda_ops.simulate.optical import Telescopes
from sda_ops.simulate.places import RADAR_SITES, TELESCOPE_SITES
from sda_ops.simulate.radar import RadarArray
from sda_ops.wire import isl, optical, radar
from tests.helpers.support import SDA_DATA_DIR

Truth: TypeAlias = Literal["catalogue", "offset", "orbit"]
OrbitClass: TypeAlias = Literal["LEO", "MEO", "GEO", "HEO"]
Outcome: TypeAlias = Literal["right", "wrong", "ambiguous", "uct"]

REAL_CATALOG = SDA_DATA_DIR / "catalog" / "celestrak_active_2026-03.csv"
REAL_EPOCH_NS = 1_773_115_200_000_000_000  # 2026-03-10T04:00Z: half of its element sets are older
BATCH = 256  # as in the operators
EARTH_RADIUS_M = 6_378_135.0  # WGS-72
MU_M3_S2 = 3.986008e14  # WGS-72
NOISE = Noise()
SENSORS = {
    f"radar-{number}": Sensor(site, Uncertainty(sigma_angle_rad=NOISE.radar_angle_rad))
    for number, site in enumerate(RADAR_SITES, 1)
} | {f"optical-{number}": Sensor(site) for number, site in enumerate(TELESCOPE_SITES, 1)}


def catalog(path: Path = REAL_CATALOG, *, objects: int = 15_000) -> tuple[tuple[ElementSet, ...], str]:
    """The real catalogue with one element set per object, or a generated one if the file is absent; and its description."""
    if path.is_file():
        element_sets = newest_of_each(read_catalog(path)).element_sets
        return element_sets, f"{len(element_sets):,} objects of {path.name}"
    return (
        synthetic_catalog(objects=objects, epoch_ns=REAL_EPOCH_NS),
        f"{objects:,} generated objects: no {path} (set SDA_DATA_DIR)",
    )


class Snapshots:
    """Intervals of a catalogue at any time, as the ``propagate`` operator makes them; all of them are cached."""

    def __init__(self, element_sets: Sequence[ElementSet], errors: ElementSetErrors) -> None:
        columns = ElementColumns.of(element_sets)
        self.facts = CatalogFacts(1, columns.catalog_number, columns.epoch_ns, errors_of(columns, errors))
        self._propagator = Propagator(columns.satrecs(), engine="sgp4")
        self._knots: dict[int, States] = {}
        self._intervals: dict[int, CatalogInterval] = {}

    def at(self, timestamp_ns: int) -> CatalogInterval:
        number = timestamp_ns // STEP_NS
        if number not in self._intervals:
            for knot in knots_of(timestamp_ns):
                if knot not in self._knots:
                    self._knots[knot] = self._propagator.propagate(np.array([knot * STEP_NS]))
            knots = [self._knots[knot] for knot in knots_of(timestamp_ns)]
            self._intervals[number] = CatalogInterval(self.facts, number * STEP_NS, knots)
        return self._intervals[number]

    def as_new(self) -> None:
        """Drop the intervals and the newest knot: the work that the next interval costs."""
        self._intervals.clear()
        if self._knots:
            del self._knots[max(self._knots)]


def errors_of(columns: ElementColumns, errors: ElementSetErrors) -> CatalogErrors:
    return CatalogErrors(errors, epoch_ns=columns.epoch_ns, mean_motion_rad_s=columns.no_kozai / 60.0)


# The truth.


def world(
    truth: Truth, element_sets: Sequence[ElementSet], errors: ElementSetErrors, *, at_ns: int, rng: np.random.Generator
) -> simulated.World:
    """The true objects; their errors are those of element sets as old as they are at ``at_ns``."""
    match truth:
        case "catalogue":
            return simulated.World(element_sets)
        case "offset":
            return _OffsetWorld(element_sets, errors, at_ns=at_ns, rng=rng)
        case "orbit":
            return simulated.World(other_orbits(element_sets, errors, at_ns=at_ns, rng=rng))


class _OffsetWorld(simulated.World):
    def __init__(
        self, element_sets: Sequence[ElementSet], errors: ElementSetErrors, *, at_ns: int, rng: np.random.Generator
    ) -> None:
        super().__init__(element_sets)
        columns = ElementColumns.of(element_sets)
        everything = np.arange(len(columns))
        self._mean_motion_rad_s = columns.no_kozai / 60.0
        self._sigma_m = errors_of(columns, errors).sigmas_m(everything, np.full(len(columns), at_ns))
        self._draws = rng.standard_normal((5, len(columns)))
        self._here: dict[int, simulated.WorldInterval] = {}

    def interval(self, timestamp_ns: int) -> simulated.WorldInterval:
        first = timestamp_ns // simulated.STEP_NS
        if first not in self._here:
            knots = [self._knot(knot * simulated.STEP_NS) for knot in range(first - 1, first + 3)]
            self._here[first] = simulated.WorldInterval(first * simulated.STEP_NS, knots)
        return self._here[first]

    def _knot(self, timestamp_ns: int) -> States:
        """Radial and cross-track errors oscillate once a revolution, as in orbits; in-track errors are constant."""
        states = sgp4_states(self._satrecs, np.array([timestamp_ns]))
        r_m, v_m_s = states.r_teme_m[:, 0], states.v_teme_m_s[:, 0]
        normal = _unit(np.cross(r_m, v_m_s))
        radial = _unit(r_m)
        axes = np.stack((radial, np.cross(normal, radial), normal), axis=2)
        n = self._mean_motion_rad_s
        turn = n * ((timestamp_ns - REAL_EPOCH_NS) / NS_PER_S)
        cos, sin = np.cos(turn), np.sin(turn)
        a, b, c, d, e = self._draws
        offset_m = np.stack((a * cos + b * sin, c, d * cos + e * sin), axis=1) * self._sigma_m
        swing_m = (e * cos - d * sin) * self._sigma_m[:, 2]
        offset_m_s = n[:, np.newaxis] * np.stack((-offset_m[:, 1], -offset_m[:, 0], swing_m), axis=1)
        return States(
            (r_m + np.einsum("nij,nj->ni", axes, offset_m))[:, np.newaxis],
            (v_m_s + np.einsum("nij,nj->ni", axes, offset_m_s))[:, np.newaxis],
            states.error,
        )


def other_orbits(
    element_sets: Sequence[ElementSet], errors: ElementSetErrors, *, at_ns: int, rng: np.random.Generator
) -> tuple[ElementSet, ...]:
    """The same objects with elements that are off by one draw of ``errors``; mean motions are unchanged.

    An eccentricity error of d/a makes radial errors of d and in-track errors of 2 d. So the in-track error is divided
    between eccentricity and mean anomaly, and radial errors are limited to 0.4 times the in-track ones.
    """
    columns = ElementColumns.of(element_sets)
    sigma_m = errors_of(columns, errors).sigmas_m(np.arange(len(columns)), np.full(len(columns), at_ns))
    a_m = np.cbrt(MU_M3_S2 / (columns.no_kozai / 60.0) ** 2)
    in_track = sigma_m[:, 1] / a_m
    radial = np.minimum(sigma_m[:, 0] / a_m, 0.4 * in_track)
    cross_track = sigma_m[:, 2] / a_m
    draws = rng.standard_normal((5, len(columns)))
    along = np.sqrt(in_track**2 - 4.0 * radial**2) * draws[0]
    x = columns.ecco * np.cos(columns.argpo) + radial * draws[1]
    y = columns.ecco * np.sin(columns.argpo) + radial * draws[2]
    perigee = np.arctan2(y, x)
    # The node of an equatorial orbit has no meaning, so its error is limited.
    node = cross_track * draws[4] / np.maximum(np.sin(columns.inclo), 1e-3)
    moved = replace(
        columns,
        ecco=np.minimum(np.hypot(x, y), 0.99),
        argpo=perigee % (2.0 * np.pi),
        inclo=np.abs(columns.inclo + cross_track * draws[3]),
        nodeo=columns.nodeo + node,
        mo=(columns.mo + along + columns.argpo - perigee - np.cos(columns.inclo) * node) % (2.0 * np.pi),
    )
    return tuple(
        ElementSet(elements.catalog_number, elements.name, satrec)
        for elements, satrec in zip(element_sets, moved.satrecs(), strict=True)
    )


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


# The observations.


@dataclass(frozen=True, slots=True)
class Rates:
    """Observations per second of all radars, of all telescopes, and of all beacons."""

    radar_hz: float
    optical_hz: float
    isl_hz: float


@dataclass(frozen=True, slots=True)
class Seen:
    """An observation and the catalogue number of its true object."""

    observation: Observation
    number: int


def observe(
    sky: simulated.World, rates: Rates, *, start_ns: int, length_s: float, rng: np.random.Generator
) -> list[Seen]:
    """All observations of ``length_s``, in time order. Every object has a beacon."""
    objects = rng.permutation(sky.interval(start_ns).propagated())
    sensors: list[tuple[SimulatedSensor, float]] = [
        (Telescopes(sky, sites=TELESCOPE_SITES, noise=NOISE, rng=rng), rates.optical_hz),
        (Beacons(sky, satellites=objects, noise=NOISE, rng=rng), rates.isl_hz),
    ]
    for number, site in enumerate(RADAR_SITES, 1):
        array = RadarArray(sky, array_id=number, site=site, noise=NOISE, rng=rng)
        sensors.append((array, rates.radar_hz / len(RADAR_SITES)))
    seen = [
        one
        for sensor, rate_hz in sensors
        for timestamps_ns in _by_interval(start_ns, length_s, rate_hz)
        for one in _observed(sensor, sky.interval(int(timestamps_ns[0])), timestamps_ns)
    ]
    return sorted(seen, key=lambda one: one.observation.sensor_timestamp)


def _by_interval(start_ns: int, length_s: float, rate_hz: float) -> Iterator[Nanoseconds]:
    if not rate_hz:
        return
    timestamps_ns = start_ns + (np.arange(int(length_s * rate_hz)) * (NS_PER_S / rate_hz)).astype(np.int64)
    yield from np.split(timestamps_ns, np.flatnonzero(np.diff(timestamps_ns // simulated.STEP_NS)) + 1)


def _observed(sensor: SimulatedSensor, interval: simulated.WorldInterval, timestamps_ns: Nanoseconds) -> list[Seen]:
    batch = sensor.observe(interval, timestamps_ns)
    ingested_ns = int(timestamps_ns[-1])
    observations: list[Observation]
    match sensor.kind:
        case "radar":
            observations, _ = radar.decode_many(batch.frames, ingest_timestamp=ingested_ns)
        case "optical":
            observations, _ = optical.decode_page(b"[" + b",".join(batch.frames) + b"]", ingest_timestamp=ingested_ns)
        case "isl":
            frames = isl.FrameAssembler().feed(b"".join(batch.frames))
            observations = [
                isl.decode_frame(frame, ingest_timestamp=ingested_ns) for frame in frames if type(frame) is bytes
            ]
    return [Seen(observation, number) for observation, number in zip(observations, batch.catalog_numbers, strict=True)]


# The evaluation.


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An observation and its correlation."""

    seen: Seen
    correlation: Correlation

    @property
    def kind(self) -> SourceKind:
        return self.correlation.source_kind

    @property
    def outcome(self) -> Outcome:
        found = self.correlation
        match found.association:
            case "correlated":
                return "right" if found.catalog_number == self.seen.number else "wrong"
            case "ambiguous" | "uct":
                return found.association
            case "unpredicted":
                raise AssertionError(f"every sensor's site is known, but an observation is unpredicted: {found}")


def evaluate(seen: Sequence[Seen], snapshots: Snapshots, associator: Associator) -> list[Evaluated]:
    """Correlate all observations, in batches of the ``correlate`` operator's size."""
    placed = [Placed(one.observation, snapshots.at(one.observation.sensor_timestamp)) for one in seen]
    found = [
        correlation
        for start in range(0, len(placed), BATCH)
        for correlation in associator.correlate(placed[start : start + BATCH], now_ns=0)
    ]
    return [Evaluated(one, correlation) for one, correlation in zip(seen, found, strict=True)]


def orbit_class(elements: ElementSet) -> OrbitClass:
    """By eccentricity and mean altitude; graveyard orbits count as geostationary."""
    satrec = elements.satrec
    altitude_m = (satrec.a - 1.0) * EARTH_RADIUS_M
    if satrec.ecco > 0.1:
        return "HEO"
    if altitude_m < 2_000_000.0:
        return "LEO"
    return "GEO" if altitude_m > 34_000_000.0 else "MEO"


class Neighbours:
    """Distances between objects of a catalogue."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._rows = {number: row for row, number in enumerate(snapshots.facts.catalog_number.tolist())}

    def known(self, number: int, timestamp_ns: int) -> bool:
        """Whether the catalogue has a state of this object at this time."""
        return bool(np.isin(self._rows[number], self._snapshots.at(timestamp_ns).usable))

    def distance_m(self, one: int, other: int, timestamp_ns: int) -> float:
        rows = np.array([self._rows[one], self._rows[other]])
        r_m, _ = self._snapshots.at(timestamp_ns).states(rows, np.full(2, timestamp_ns))
        return float(np.linalg.norm(r_m[0] - r_m[1]))

    def nearest(self, number: int, timestamp_ns: int) -> tuple[int, float]:
        """The catalogue number and the distance (m) of the nearest other object."""
        interval = self._snapshots.at(timestamp_ns)
        others = interval.usable[interval.usable != self._rows[number]]
        r_m, _ = interval.states(others, np.full(others.size, timestamp_ns))
        own_m, _ = interval.states(np.array([self._rows[number]]), np.array([timestamp_ns]))
        distance_m = np.linalg.norm(r_m - own_m, axis=1)
        index = int(np.argmin(distance_m))
        return int(self._snapshots.facts.catalog_number[others[index]]), float(distance_m[index])


# The whole scene.


@dataclass(frozen=True, slots=True)
class Scene:
    """The evaluation of one scene.

    Attributes:
        truth: How the objects differ from the catalogue.
        evaluated: Every observation.
        missing: Numbers of the objects that were removed from the catalogue.
        neighbours: Distances in the whole catalogue.
    """

    truth: Truth
    evaluated: Sequence[Evaluated]
    missing: frozenset[int]
    neighbours: Neighbours


def scene(
    truth: Truth,
    element_sets: Sequence[ElementSet],
    *,
    at_ns: int,
    length_s: float,
    rates: Rates,
    missing: float,
    seed: int,
) -> Scene:
    """Simulate and evaluate one scene. ``missing`` is the share of objects removed from the catalogue."""
    rng = np.random.default_rng([seed, at_ns])
    errors = ElementSetErrors()
    sky = world(truth, element_sets, errors, at_ns=at_ns, rng=rng)
    gone = rng.random(len(element_sets)) < missing
    kept = [elements for elements, out in zip(element_sets, gone, strict=True) if not out]
    seen = observe(sky, rates, start_ns=at_ns, length_s=length_s, rng=rng)
    evaluated = evaluate(seen, Snapshots(kept, errors), Associator(SENSORS))
    numbers = {elements.catalog_number for elements, out in zip(element_sets, gone, strict=True) if out}
    return Scene(truth, evaluated, frozenset(numbers), Neighbours(Snapshots(element_sets, errors)))
