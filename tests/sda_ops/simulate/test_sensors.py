"""Simulated sensors against SGP4: geometry, light time, noise, faults."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import erfa
import numpy as np
import pytest
from sgp4.api import SatrecArray

from sda_ops.astro.frames import earth_fixed_to_teme, sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.propagation import sgp4_states
from sda_ops.astro.sites import Site
from sda_ops.astro.time import Floats, julian_date
from sda_ops.astro.topocentric import SPEED_OF_LIGHT_M_S
from sda_ops.catalog import ElementSet, read_catalog, synthetic_catalog
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget
from sda_ops.simulate.config import Noise
from sda_ops.simulate.faults import FaultRates
from sda_ops.simulate.frames import Batch, SimulatedSensor
from sda_ops.simulate.isl import MESSAGE_DTYPE, Beacons
from sda_ops.simulate.optical import Telescopes
from sda_ops.simulate.places import RADAR_SITES, TELESCOPE_SITES
from sda_ops.simulate.radar import RadarArray
from sda_ops.simulate.world import STEP_NS, World
from sda_ops.validate import ValidationLimits, validate
from sda_ops.wire import isl, optical, radar
from sda_ops.wire.malformed import MalformedFrame

NOW_NS = 1_790_000_001_000_000_000
TIMES_NS = NOW_NS + np.arange(400, dtype=np.int64) * 2_000_000
NOISE = Noise()
SITE = RADAR_SITES[0]
LIMITS = ValidationLimits(max_clock_skew=timedelta(seconds=10))
SIX_SIGMA = 6.0  # of 10,000 draws, one exceeds this in fewer than one of 100,000 runs

ONE_MILLIMETRE = 1e-3
THREE_MILLIMETRES = 3e-3
ONE_MILLIMETRE_PER_SECOND = 1e-3
TEN_MICROMETRES_PER_SECOND = 1e-5
ONE_MILLIARCSECOND = 1e-3


@pytest.fixture(scope="module")
def catalog() -> tuple[ElementSet, ...]:
    return synthetic_catalog(objects=1000, epoch_ns=NOW_NS)


@pytest.fixture(scope="module")
def world(catalog: tuple[ElementSet, ...]) -> World:
    return World(catalog)


def radar_array(world: World, seed: int = 0) -> RadarArray:
    return RadarArray(world, array_id=3, site=SITE, noise=NOISE, rng=np.random.default_rng(seed))


def telescopes(world: World, seed: int = 0) -> Telescopes:
    return Telescopes(world, sites=TELESCOPE_SITES, noise=NOISE, rng=np.random.default_rng(seed))


def beacons(world: World, seed: int = 0) -> Beacons:
    return Beacons(world, satellites=np.arange(0, 1000, 100), noise=NOISE, rng=np.random.default_rng(seed))


def observe(sensor: SimulatedSensor, world: World) -> Batch:
    return sensor.observe(world.interval(NOW_NS), TIMES_NS)


def decode(sensor: SimulatedSensor, frames: list[bytes]) -> tuple[list[Observation], int]:
    """The pipeline's observations, and the number of frames that do not decode."""
    match sensor.kind:
        case "radar":
            observations, malformed = radar.decode_many(frames, ingest_timestamp=NOW_NS)
        case "optical":
            observations, malformed = optical.decode_page(b"[" + b",".join(frames) + b"]", ingest_timestamp=NOW_NS)
        case "isl":
            pieces = [piece for frame in frames for piece in isl.FrameAssembler().feed(frame)]
            malformed = [piece for piece in pieces if isinstance(piece, MalformedFrame)]
            whole = [piece for piece in pieces if isinstance(piece, bytes)]
            observations = [isl.decode_frame(piece, ingest_timestamp=NOW_NS) for piece in whole]
    return observations, len(malformed)


def true_states(
    catalog: tuple[ElementSet, ...], batch: Batch, *, earlier_s: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """States from SGP4 itself, one object and one time for each row, some time before each observation."""
    by_number = {elements.catalog_number: elements.satrec for elements in catalog}
    times_ns = batch.timestamp_ns - np.rint(np.multiply(earlier_s, 1e9)).astype(np.int64)
    states = [
        sgp4_states(SatrecArray([by_number[number]]), np.array([time]))
        for number, time in zip(batch.catalog_numbers, times_ns.tolist(), strict=True)
    ]
    return np.array([s.r_teme_m[0, 0] for s in states]), np.array([s.v_teme_m_s[0, 0] for s in states])


def light_time_s(catalog: tuple[ElementSet, ...], batch: Batch, sites: list[Site]) -> Floats:
    """The travel time of the light that arrived at site i at time i, from SGP4 alone."""
    angle_rad = sidereal_angle(*julian_date(batch.timestamp_ns))
    site_m, _ = earth_fixed_to_teme(np.array([site.r_fixed_m for site in sites]), np.zeros(3), angle_rad)
    delay_s: Floats = np.zeros(len(sites))
    for _ in range(3):
        r_m, _ = true_states(catalog, batch, earlier_s=delay_s)
        delay_s = np.linalg.norm(r_m - site_m, axis=1) / SPEED_OF_LIGHT_M_S
    return delay_s


def test_interpolated_states_agree_with_sgp4(catalog: tuple[ElementSet, ...], world: World) -> None:
    """Between knots every object of every class is within a millimetre and ten micrometres a second of SGP4."""
    interval = world.interval(NOW_NS)
    objects = np.arange(1000)
    for part in (0.0, 0.123, 0.5, 0.9):
        time_ns = interval.start_ns + int(part * STEP_NS)
        r_m, v_m_s = interval.states(objects, np.full(1000, time_ns))
        states = sgp4_states(SatrecArray([elements.satrec for elements in catalog]), np.array([time_ns]))
        np.testing.assert_allclose(r_m, states.r_teme_m[:, 0], rtol=0, atol=ONE_MILLIMETRE)
        np.testing.assert_allclose(v_m_s, states.v_teme_m_s[:, 0], rtol=0, atol=TEN_MICROMETRES_PER_SECOND)


def test_a_radar_detection_converted_to_teme_is_at_sgp4s_position(
    catalog: tuple[ElementSet, ...], world: World
) -> None:
    """Range, azimuth and elevation, converted to TEME, are within six sigma of SGP4's position at the reflection."""
    array = radar_array(world)
    batch = observe(array, world)
    observations, _ = decode(array, list(batch.frames))
    assert len(observations) == len(TIMES_NS)
    delay_s = light_time_s(catalog, batch, [SITE] * len(batch.frames))
    r_m, v_m_s = true_states(catalog, batch, earlier_s=delay_s)
    reflection_ns = batch.timestamp_ns - np.rint(delay_s * 1e9).astype(np.int64)
    for observation, reflected_ns, truth_m, truth_m_s in zip(observations, reflection_ns, r_m, v_m_s, strict=True):
        target = observation.target
        assert isinstance(target, RadarTarget)
        assert target.azimuth_rad is not None
        assert target.elevation_rad is not None
        assert target.range_rate_m_s is not None
        east, north = np.sin(target.azimuth_rad), np.cos(target.azimuth_rad)
        flat = np.cos(target.elevation_rad)
        sight_m = target.range_m * np.array([flat * east, flat * north, np.sin(target.elevation_rad)])
        fixed_m = SITE.r_fixed_m + SITE.horizon.T @ sight_m
        angle = sidereal_angle(*julian_date(reflected_ns))
        measured_m, _ = earth_fixed_to_teme(fixed_m, np.zeros(3), angle)
        site_m, site_m_s = earth_fixed_to_teme(SITE.r_fixed_m, np.zeros(3), angle)
        direction = (truth_m - site_m) / np.linalg.norm(truth_m - site_m)
        error_m = measured_m - truth_m
        along_m = float(error_m @ direction)
        across_rad = float(np.linalg.norm(error_m - along_m * direction)) / target.range_m
        assert abs(along_m) < SIX_SIGMA * NOISE.radar_range_m
        assert across_rad < SIX_SIGMA * np.sqrt(2.0) * NOISE.radar_angle_rad
        rate_error_m_s = target.range_rate_m_s - (truth_m_s - site_m_s) @ direction
        assert abs(rate_error_m_s) < SIX_SIGMA * NOISE.radar_range_rate_m_s


def test_a_radars_noise_is_the_sigma_of_its_frames(catalog: tuple[ElementSet, ...], world: World) -> None:
    """The scatter of 400 ranges about the truth equals the sigma in the frames within a fifth."""
    batch = observe(radar_array(world), world)
    detections = np.frombuffer(b"".join(batch.frames), dtype=radar.FRAME_DTYPE)
    r_m, _ = true_states(catalog, batch, earlier_s=light_time_s(catalog, batch, [SITE] * len(batch.frames)))
    site_m, _ = earth_fixed_to_teme(SITE.r_fixed_m, np.zeros(3), sidereal_angle(*julian_date(batch.timestamp_ns)))
    residual_m = detections["range_m"] - np.linalg.norm(r_m - site_m, axis=1)
    assert np.std(residual_m) == pytest.approx(detections["sigma_range_m"][0], rel=0.2)


def test_without_noise_a_radar_measures_at_the_reflection(catalog: tuple[ElementSet, ...], world: World) -> None:
    """Noiseless ranges are SGP4's at t - range / c within 3 mm, range-rates within 1 mm/s; at t itself they differ by 10 m."""
    quiet = Noise(radar_range_m=0.0, radar_range_rate_m_s=0.0, radar_angle_rad=0.0)
    batch = observe(RadarArray(world, array_id=3, site=SITE, noise=quiet, rng=np.random.default_rng(0)), world)
    detections = np.frombuffer(b"".join(batch.frames), dtype=radar.FRAME_DTYPE)
    delay_s = light_time_s(catalog, batch, [SITE] * len(batch.frames))
    seen = []
    for earlier_s in (delay_s, np.zeros_like(delay_s)):
        r_m, v_m_s = true_states(catalog, batch, earlier_s=earlier_s)
        time_ns = batch.timestamp_ns - np.rint(earlier_s * 1e9).astype(np.int64)
        site_m, site_m_s = earth_fixed_to_teme(SITE.r_fixed_m, np.zeros(3), sidereal_angle(*julian_date(time_ns)))
        range_m = np.linalg.norm(r_m - site_m, axis=1)
        seen.append((range_m, np.sum((r_m - site_m) * (v_m_s - site_m_s), axis=1) / range_m))
    at_reflection, at_arrival = seen
    np.testing.assert_allclose(detections["range_m"], at_reflection[0], rtol=0, atol=THREE_MILLIMETRES)
    np.testing.assert_allclose(detections["range_rate_m_s"], at_reflection[1], rtol=0, atol=ONE_MILLIMETRE_PER_SECOND)
    assert np.abs(detections["range_m"] - at_arrival[0]).max() > 10.0


def test_a_radar_gives_every_object_a_track_of_its_own(world: World) -> None:
    """Within a pass track numbers and catalogue numbers correspond one to one, and differ."""
    batch = observe(radar_array(world), world)
    tracks = np.frombuffer(b"".join(batch.frames), dtype=radar.FRAME_DTYPE)["target_track_id"].tolist()
    pairs = set(zip(tracks, batch.catalog_numbers, strict=True))
    assert len(pairs) == len(set(tracks)) == len(set(batch.catalog_numbers)) > 3
    assert not set(tracks) & set(batch.catalog_numbers)


def test_a_direction_points_from_the_telescope_to_the_object(catalog: tuple[ElementSet, ...], world: World) -> None:
    """Right ascension and declination are within six sigma of the line of sight in J2000 to the point of reflection."""
    scopes = telescopes(world)
    batch = observe(scopes, world)
    observations, _ = decode(scopes, list(batch.frames))
    sites = [TELESCOPE_SITES[int(sensor.removeprefix("optical-")) - 1] for sensor in batch.sensors]
    r_m, _ = true_states(catalog, batch, earlier_s=light_time_s(catalog, batch, sites))
    for observation, site, truth_m in zip(observations, sites, r_m, strict=True):
        assert isinstance(observation.target, OpticalTarget)
        jd, fraction = julian_date(np.array(observation.sensor_timestamp))
        site_m, _ = earth_fixed_to_teme(site.r_fixed_m, np.zeros(3), sidereal_angle(jd, fraction))
        x, y, z = teme_to_j2000_matrix(jd, fraction) @ (truth_m - site_m)
        target = observation.target
        separation_rad = erfa.seps(
            target.right_ascension_rad, target.declination_rad, np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))
        )
        assert separation_rad < SIX_SIGMA * np.sqrt(2.0) * NOISE.optical_arcsec * optical.RAD_PER_ARCSEC


def test_without_noise_a_telescope_measures_at_the_reflection(catalog: tuple[ElementSet, ...], world: World) -> None:
    """Noiseless directions are SGP4's at t - range / c within a milliarcsecond; at t itself one differs by arcseconds."""
    quiet = Noise(optical_arcsec=0.0)
    batch = observe(Telescopes(world, sites=TELESCOPE_SITES, noise=quiet, rng=np.random.default_rng(0)), world)
    entries, _ = optical.decode_page(b"[" + b",".join(batch.frames) + b"]", ingest_timestamp=NOW_NS)
    targets = [entry.target for entry in entries if isinstance(entry.target, OpticalTarget)]
    sites = [TELESCOPE_SITES[int(sensor.removeprefix("optical-")) - 1] for sensor in batch.sensors]
    angle_rad = sidereal_angle(*julian_date(batch.timestamp_ns))
    site_m, _ = earth_fixed_to_teme(np.array([site.r_fixed_m for site in sites]), np.zeros(3), angle_rad)
    matrices = teme_to_j2000_matrix(*julian_date(batch.timestamp_ns))
    differences_arcsec = []
    for earlier_s in (light_time_s(catalog, batch, sites), 0.0):
        r_m, _ = true_states(catalog, batch, earlier_s=earlier_s)
        ra_rad, dec_rad = erfa.c2s(np.einsum("nij,nj->ni", matrices, r_m - site_m))
        apart_rad = erfa.seps(
            ra_rad, dec_rad, [t.right_ascension_rad for t in targets], [t.declination_rad for t in targets]
        )
        differences_arcsec.append(np.max(apart_rad) / optical.RAD_PER_ARCSEC)
    assert differences_arcsec[0] < ONE_MILLIARCSECOND
    assert differences_arcsec[1] > 2.0


def test_a_beacon_contains_the_satellites_state(catalog: tuple[ElementSet, ...], world: World) -> None:
    """Position and velocity in a beacon are within six sigma of SGP4's, in TEME, under the satellite's own number."""
    ring = beacons(world)
    batch = observe(ring, world)
    observations, _ = decode(ring, list(batch.frames))
    r_m, v_m_s = true_states(catalog, batch)
    for observation, number, truth_m, truth_m_s in zip(observations, batch.catalog_numbers, r_m, v_m_s, strict=True):
        assert isinstance(observation.target, StateTarget)
        assert observation.source_id == f"isl-{number}"
        assert np.abs(observation.target.r_teme_m - truth_m).max() < SIX_SIGMA * NOISE.isl_position_m
        assert np.abs(observation.target.v_teme_m_s - truth_m_s).max() < SIX_SIGMA * NOISE.isl_velocity_m_s


def test_every_satellite_counts_its_own_beacons(world: World) -> None:
    """Each satellite's sequence numbers are 0, 1, 2, ... without a gap."""
    messages = np.frombuffer(b"".join(observe(beacons(world), world).frames), dtype=MESSAGE_DTYPE)
    for satellite in np.unique(messages["satellite_id"]):
        mine = messages[messages["satellite_id"] == satellite]["sequence"]
        assert mine.tolist() == list(range(40))


def test_a_beacon_equals_the_wire_formats_encoding(world: World) -> None:
    """Its bytes are those of `sda_ops.wire.isl.encode` for the same numbers."""
    frame = observe(beacons(world), world).frames[0]
    message = np.frombuffer(frame, dtype=MESSAGE_DTYPE)[0]
    x, y, z = message["position_m"].tolist()
    vx, vy, vz = message["velocity_m_s"].tolist()
    assert frame == isl.encode(
        satellite_id=int(message["satellite_id"]),
        sequence=int(message["sequence"]),
        timestamp_ns=int(message["timestamp_ns"]),
        position_m=(x, y, z),
        velocity_m_s=(vx, vy, vz),
        sigma_position_m=float(message["sigma_position_m"]),
        sigma_velocity_m_s=float(message["sigma_velocity_m_s"]),
    )


@pytest.mark.parametrize("make", [radar_array, telescopes, beacons])
def test_good_frames_decode_and_pass_validation(make: type, world: World) -> None:
    """Every good frame decodes, has the planned time and sensor, and is physically possible."""
    sensor: SimulatedSensor = make(world)
    batch = observe(sensor, world)
    observations, malformed = decode(sensor, list(batch.frames))
    assert malformed == 0
    assert [o.sensor_timestamp for o in observations] == batch.timestamp_ns.tolist()
    assert [o.source_id for o in observations] == list(batch.sensors)
    assert [o.observation_id for o in observations] == list(sensor.observation_ids(batch.frames))
    assert [validate(o, reference_time_ns=NOW_NS, limits=LIMITS) for o in observations] == [None] * len(observations)


@pytest.mark.parametrize("make", [radar_array, telescopes, beacons])
def test_malformed_frames_do_not_decode(make: type, world: World) -> None:
    """None of 400 malformed frames gives an observation."""
    sensor: SimulatedSensor = make(world)
    frames = [sensor.malformed(frame) for frame in observe(sensor, world).frames]
    assert decode(sensor, frames) == ([], len(frames))


@pytest.mark.parametrize("make", [radar_array, telescopes, beacons])
def test_impossible_frames_decode_and_fail_validation(make: type, world: World) -> None:
    """All of 400 impossible frames decode, and validation rejects every one."""
    sensor: SimulatedSensor = make(world)
    frames = [sensor.impossible(frame) for frame in observe(sensor, world).frames]
    observations, malformed = decode(sensor, frames)
    assert malformed == 0
    assert all(validate(o, reference_time_ns=NOW_NS, limits=LIMITS) is not None for o in observations)


@pytest.mark.parametrize("make", [radar_array, telescopes, beacons])
def test_faults_are_additional_and_change_no_good_frame(make: type, world: World) -> None:
    """With faults the good frames are the same, in order; a duplicate equals the frame before it."""
    sensor: SimulatedSensor = make(world)
    clean = observe(sensor, world)
    faulty = FaultRates(0.1, 0.1, 0.1).insert(clean, sensor, np.random.default_rng(1))
    good = [frame for frame, fault in zip(faulty.frames, faulty.faults, strict=True) if fault is None]
    assert good == list(clean.frames)
    assert {fault: faulty.faults.count(fault) > 10 for fault in ("malformed", "impossible", "duplicate")} == {
        "malformed": True,
        "impossible": True,
        "duplicate": True,
    }
    originals = dict(zip(clean.timestamp_ns.tolist(), clean.frames, strict=True))
    for time, frame, fault in zip(faulty.timestamp_ns.tolist(), faulty.frames, faulty.faults, strict=True):
        assert (frame == originals[time]) == (fault in (None, "duplicate"))
    assert np.all(np.diff(faulty.timestamp_ns) >= 0)


@pytest.mark.parametrize("make", [radar_array, telescopes, beacons])
def test_one_seed_sends_the_same_bytes(make: type, world: World) -> None:
    """The same seed and times give the same frames; another seed gives others."""
    first, again, other = (observe(make(world, seed), world).frames for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_radar_site_sees_objects_of_the_real_catalogue() -> None:
    """Of 14,683 real objects every radar site sees more than fifty at once, all of them in low orbit."""
    root = Path(os.environ.get("SDA_DATA_DIR", Path(__file__).parents[3] / "../shared/data"))
    path = root / "catalog/celestrak_active_2026-03.csv"
    if not path.exists():
        pytest.skip(f"real data absent: no {path} (set SDA_DATA_DIR)")
    world = World(read_catalog(path).element_sets)
    interval = world.interval(1_773_144_000 * 10**9)  # 2026-03-10 12:00 UTC
    for site in RADAR_SITES:
        visible = interval.visible(site, min_elevation_rad=np.deg2rad(10.0), max_range_m=5e6)
        r_m, _ = interval.states(visible, np.full(visible.size, interval.start_ns))
        assert visible.size > 50
        assert np.linalg.norm(r_m, axis=1).max() < 12e6
