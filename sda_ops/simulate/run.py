"""One simulation from start to end: catalogue, sensors, links, archives, and their shutdown."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import ElementSet, synthetic_catalog
from sda_ops.records.observation import SourceKind
from sda_ops.simulate.archive import Archive, ArchiveServer
from sda_ops.simulate.catalog_file import omm_json, usable_element_sets
from sda_ops.simulate.config import Burst, ConfigurationError, Endpoint, Outage, OutageStyle, SimulatorConfig
from sda_ops.simulate.faults import FaultRates, Schedule, Window
from sda_ops.simulate.frames import SimulatedSensor
from sda_ops.simulate.isl import Beacons
from sda_ops.simulate.links import CLOSE_TIMEOUT_S, Link, TcpLink, UdpLink
from sda_ops.simulate.optical import Telescopes
from sda_ops.simulate.pace import Feed, Run, drive
from sda_ops.simulate.places import RADAR_SITES, TELESCOPE_SITES
from sda_ops.simulate.radar import RadarArray
from sda_ops.simulate.staged import Staging, low_orbits, stage, write_staged
from sda_ops.simulate.truth import SimulationSummary, TruthLog
from sda_ops.simulate.world import World

PROGRESS_EVERY_S = 1.0
GRACE_S = 2.0
"""How long a peer that does not read may delay the end."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The sensors are about to send.

    Attributes:
        archives: Where the archives listen.
        objects: Size of the catalogue.
    """

    archives: tuple[Endpoint, ...]
    objects: int


OnReady: TypeAlias = Callable[[Ready], None]
OnProgress: TypeAlias = Callable[[SimulationSummary], None]


async def simulate(
    config: SimulatorConfig,
    *,
    stop: asyncio.Event,
    on_ready: OnReady | None = None,
    on_progress: OnProgress | None = None,
    go: asyncio.Event | None = None,
) -> SimulationSummary:
    """Send until the duration or the count is reached; then serve the archive for ``linger_s``.

    ``stop`` ends both at once, and cleanly: connections are closed so that everything written arrives, and the truth file
    is complete. ``on_ready`` is called when every archive listens, ``on_progress`` once a second. With ``go``, nothing is
    sent before it (or ``stop``) is set; the archive's outages are still counted from the time it listens. Raises
    `ConfigurationError` for a catalogue without a usable object or with too few for the staged passages, and ``OSError`` if an address or a file is not available.
    """
    now_ns = _clock(config.start_time_ns)
    element_sets = _element_sets(config, now_ns())
    staging = _staging(config, element_sets, now_ns())
    element_sets = (*element_sets, *staging.element_sets)
    world = World(element_sets)
    if not world.interval(now_ns()).propagated().size:
        raise ConfigurationError([f"catalog: none of {len(element_sets)} objects can be propagated to the start time"])
    with ExitStack() as files:
        truth = files.enter_context(TruthLog(config.truth)) if config.truth is not None else None
        archives = [Archive(history=config.archive_history) for _ in config.archives] if config.optical_rate_hz else []
        async with AsyncExitStack() as tasks:
            run = Run(world, now_ns=now_ns, count=config.count, truth=truth)
            outage = _window(config.outages, "optical", run.start_ns)
            servers = [
                await tasks.enter_async_context(_serving(archive, endpoint, config.archive_outage, outage, run))
                for archive, endpoint in zip(archives, config.archives, strict=False)
            ]
            if on_ready is not None:
                on_ready(Ready(tuple(server.endpoint for server in servers), len(element_sets)))
            if go is not None:
                await _either(go, stop)
                run.start_ns = now_ns()
            if on_progress is not None:
                await tasks.enter_async_context(_background(_report(run, archives, on_progress)))
            if config.staged is not None and config.staged.into is not None:
                into, after_s = config.staged.into, config.staged.after_s
                await tasks.enter_async_context(_background(_replace_catalog(into, element_sets, after_s)))
            await tasks.enter_async_context(_background(_end_after(config.duration_s, stop, run)))
            with_beacon = [each.catalog_number for each in staging.element_sets]
            await _drive_all(list(_feeds(config, run, archives, with_beacon)), run)
            elapsed_s = (now_ns() - run.start_ns) / NS_PER_S
            if servers:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), config.linger_s)
    return _summary(run, archives, elapsed_s)


async def _either(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def _clock(start_time_ns: int | None) -> Callable[[], int]:
    if start_time_ns is None:
        return time.time_ns
    offset_ns = start_time_ns - time.monotonic_ns()
    return lambda: offset_ns + time.monotonic_ns()


def _element_sets(config: SimulatorConfig, epoch_ns: int) -> Sequence[ElementSet]:
    if config.catalog is None:
        return synthetic_catalog(objects=config.objects, epoch_ns=epoch_ns, seed=config.seed)
    return usable_element_sets(config.catalog, at_ns=epoch_ns)


def _staging(config: SimulatorConfig, element_sets: Sequence[ElementSet], now_ns: int) -> Staging:
    """The made-up objects; their truth is on disk before a pipeline can know them."""
    if config.staged is None:
        return Staging((), ())
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(3,)))
    plan, unseen = config.staged.plan, _unseen(element_sets, now_ns)
    targets = unseen if len(low_orbits(unseen)) >= plan.conjunctions + plan.near_misses else element_sets
    try:
        staging = stage(element_sets, plan, start_ns=now_ns, rng=rng, targets=targets)
    except ValueError as error:
        raise ConfigurationError([f"staged: {error}"]) from error
    if config.staged.truth is not None:
        write_staged(config.staged.truth, staging.passages)
    return staging


def _unseen(element_sets: Sequence[ElementSet], now_ns: int) -> list[ElementSet]:
    """The objects below the horizon of every site: the first observation of their passage is a beacon of the other object."""
    interval = World(element_sets).interval(now_ns)
    seen = [
        interval.visible(site, min_elevation_rad=0.0, max_range_m=np.inf) for site in (*RADAR_SITES, *TELESCOPE_SITES)
    ]
    return [element_sets[row] for row in np.setdiff1d(interval.propagated(), np.concatenate(seen)).tolist()]


async def _replace_catalog(path: Path, element_sets: Sequence[ElementSet], after_s: float) -> None:
    """Replace the file as a whole, so that a pipeline reads the old one or the new one."""
    await asyncio.sleep(after_s)
    written = path.with_name(f"{path.name}.new")
    await asyncio.to_thread(lambda: written.write_bytes(omm_json(element_sets)))
    written.replace(path)


def _feeds(
    config: SimulatorConfig, run: Run, archives: Sequence[Archive], with_beacon: Sequence[int]
) -> Iterator[Feed]:
    """Every sensor, with random numbers of its own: one more sensor changes no other."""
    seeds = np.random.SeedSequence(config.seed)

    def feed(sensor: SimulatedSensor, link: Link, rate_hz: float, rng: np.random.Generator) -> Feed:
        kind = sensor.kind
        outage = _window(config.outages, kind, run.start_ns)
        return Feed(
            sensor=sensor,
            schedule=Schedule(
                rate_hz=rate_hz,
                phase=rng.random(),
                burst=_window(config.bursts, kind, run.start_ns),
                burst_factor=next((burst.factor for burst in config.bursts if burst.kind == kind), 1.0),
                outage=outage if kind != "optical" else None,
            ),
            link=link,
            faults=FaultRates(config.malformed, config.impossible, config.duplicates),
            fault_rng=rng.spawn(1)[0],
            disconnect_in=outage if kind == "isl" else None,
        )

    def rng_of(kind: int, index: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(seeds.entropy, spawn_key=(kind, index)))

    world, noise = run.world, config.noise
    if config.radar_rate_hz > 0.0:
        for index, target in enumerate(config.radar_targets):
            rng = rng_of(0, index)
            site = RADAR_SITES[index % len(RADAR_SITES)]
            array = RadarArray(world, array_id=index + 1, site=site, noise=noise, rng=rng)
            yield feed(array, UdpLink(target), config.radar_rate_hz, rng)
    first_site_id = 1
    for index, archive in enumerate(archives):
        rng = rng_of(1, index)
        sites = TELESCOPE_SITES[
            index * len(TELESCOPE_SITES) // len(archives) : (index + 1) * len(TELESCOPE_SITES) // len(archives)
        ]
        telescopes = Telescopes(world, sites=sites, noise=noise, rng=rng, first_site_id=first_site_id)
        first_site_id += len(sites)
        yield feed(telescopes, archive, config.optical_rate_hz / len(archives), rng)
    if config.isl_rate_hz > 0.0:
        candidates = world.interval(run.start_ns).propagated()
        count = min(config.isl_satellites, candidates.size)
        satellites = rng_of(2, 0).choice(candidates, count, replace=False)
        if with_beacon:
            staged = np.flatnonzero(np.isin(world.catalog_numbers, with_beacon))
            satellites = np.concatenate((staged, satellites[~np.isin(satellites, staged)]))[:count]
        targets = [target for target in config.isl_targets for _ in range(config.isl_connections)][:count]
        for index, target in enumerate(targets):
            rng = rng_of(2, index + 1)
            beacons = Beacons(world, satellites=satellites[index :: len(targets)], noise=noise, rng=rng)
            link = TcpLink(target, random.Random(int(rng.integers(2**63))))
            yield feed(beacons, link, config.isl_rate_hz / len(targets), rng)


def _window(windows: Sequence[Burst] | Sequence[Outage], kind: SourceKind, start_ns: int) -> Window | None:
    for window in windows:
        if window.kind == kind:
            return Window(start_ns, int(window.for_s * NS_PER_S), int(window.every_s * NS_PER_S))
    return None


async def _drive_all(feeds: Sequence[Feed], run: Run) -> None:
    """Run every feed to its end. A peer that does not read is abandoned after a timeout; an error of one feed ends all."""
    drives = [asyncio.create_task(drive(feed, run), name=feed.sensor.kind) for feed in feeds]
    ended = asyncio.create_task(run.ended.wait())
    try:
        await asyncio.wait((ended, *drives), return_when=asyncio.FIRST_COMPLETED)
        run.ended.set()
        await asyncio.wait((ended, *drives), timeout=GRACE_S + CLOSE_TIMEOUT_S)
    finally:
        for task in (ended, *drives):
            task.cancel()
        outcomes = await asyncio.gather(*drives, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _end_after(duration_s: float | None, stop: asyncio.Event, run: Run) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), duration_s)
    run.ended.set()


async def _report(run: Run, archives: Sequence[Archive], on_progress: OnProgress) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        elapsed_s = (run.now_ns() - run.start_ns) / NS_PER_S
        on_progress(_summary(run, archives, elapsed_s))


def _summary(run: Run, archives: Sequence[Archive], elapsed_s: float) -> SimulationSummary:
    return run.tally.summary(
        unserved=sum(archive.unserved for archive in archives),
        archive_requests=sum(archive.requests for archive in archives),
        archive_requests_in_outage=sum(archive.requests_in_outage for archive in archives),
        elapsed_s=elapsed_s,
    )


@asynccontextmanager
async def _background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run ``work`` during the context, and cancel it at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _serving(
    archive: Archive, endpoint: Endpoint, style: OutageStyle, outage: Window | None, run: Run
) -> AsyncIterator[ArchiveServer]:
    """The archive on its socket, with its outages; in service again after the simulation has ended."""
    archive.outage_style = style
    server = ArchiveServer(archive, endpoint)
    await server.up()
    try:
        if outage is None:
            yield server
        else:
            async with _background(_outages(server, archive, outage, style, run)):
                yield server
    finally:
        await server.down()


async def _outages(server: ArchiveServer, archive: Archive, outage: Window, style: OutageStyle, run: Run) -> None:
    while not run.ended.is_set():
        now_ns = run.now_ns()
        wait_s = (outage.next_change_ns(now_ns) - now_ns) / NS_PER_S
        with suppress(TimeoutError):
            await asyncio.wait_for(run.ended.wait(), wait_s)
        in_service = run.ended.is_set() or not outage.contains(run.now_ns())
        if style == "refuse" and in_service != archive.in_service:
            await (server.up() if in_service else server.down())
        archive.in_service = in_service
        archive.wake()
