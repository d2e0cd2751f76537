"""All settings of a simulation. They are validated once, here, and every problem is reported together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from sda_ops.records.observation import SourceKind
from sda_ops.simulate.places import TELESCOPE_SITES
from sda_ops.simulate.staged import StagingPlan

OutageStyle: TypeAlias = Literal["503", "refuse", "blackhole", "drip"]
"""What an archive does in an outage: answer 503; refuse connections; accept requests and never answer; answer with an
endless body, a byte at a time."""

SOURCE_KINDS: tuple[SourceKind, ...] = get_args(SourceKind)
MAX_PORT = 65_535
MAX_THRESHOLD_M = 5_000.0
"""Near misses are up to four times as far, and must be the nearest approach of their pair."""
MAX_PASSAGE_S = 86_400.0
"""A staged pair meets once within a day; after that, it may meet again."""


class ConfigurationError(ValueError):
    """The configuration is invalid.

    Attributes:
        problems: One sentence for each problem.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host name or address, and port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """From ``HOST:PORT``. Raises ``ValueError``."""
        host, colon, port = text.rpartition(":")
        if not (host and colon and port.isdecimal() and int(port) <= MAX_PORT):
            raise ValueError(f"expected HOST:PORT, got {text!r}")
        try:
            host.encode("idna")
        except UnicodeError:  # a label that is empty or too long
            raise ValueError(f"expected HOST:PORT, and {host!r} is no host name") from None
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Burst:
    """Every ``every_s`` seconds, at the end of the period, ``kind`` sends ``factor`` times its rate for ``for_s``."""

    kind: SourceKind
    factor: float
    for_s: float
    every_s: float


@dataclass(frozen=True, slots=True)
class Outage:
    """Every ``every_s`` seconds, at the end of the period, ``kind`` is out of service for ``for_s``.

    Radars stop sending and satellites disconnect. Telescopes continue to observe; their archive is out of service.
    """

    kind: SourceKind
    for_s: float
    every_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """One standard deviation of each component; Gaussian, unbiased, uncorrelated.

    Attributes:
        radar_range_m: Also a field of the frame.
        radar_range_rate_m_s: Also a field of the frame.
        radar_angle_rad: Azimuth (on the sky) and elevation; the frame has no field for it.
        optical_arcsec: Right ascension (on the sky) and declination; also a field of the entry.
        isl_position_m: Each axis; also a field of the frame.
        isl_velocity_m_s: Each axis; also a field of the frame.
    """

    radar_range_m: float = 30.0
    radar_range_rate_m_s: float = 0.3
    radar_angle_rad: float = 5e-4
    optical_arcsec: float = 2.0
    isl_position_m: float = 10.0
    isl_velocity_m_s: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Made-up objects that pass catalogued ones (`sda_ops.simulate.staged`). The sensors observe them from the start.

    Each of them has a beacon, as far as there are beacons.

    Attributes:
        plan: The passages.
        into: The catalogue file that is replaced by one with the made-up objects, in OMM in JSON; None for no file.
        after_s: When, from the first frame on.
        truth: JSON Lines file of the passages; None for no file.
    """

    plan: StagingPlan
    into: Path | None = None
    after_s: float = 0.0
    truth: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """One simulation. Raises `ConfigurationError` with every problem.

    Attributes:
        radar_targets: Where each radar array sends its datagrams; array ids count from 1 in this order.
        radar_rate_hz: Detections a second of each array; 0 for no radars.
        archives: Where the telescopes' archives listen, with port 0 any free one; the telescopes are divided among them.
        optical_rate_hz: Observations a second of all telescopes; 0 for no telescopes and no archive.
        isl_targets: Where the satellites connect, one ring to each; the satellites are divided among the rings.
        isl_rate_hz: Beacons a second of all satellites; 0 for no beacons.
        isl_connections: TCP connections of each ring; its satellites are divided among them.
        isl_satellites: Satellites with a beacon.
        catalog: A TLE, 3LE or OMM (CSV, JSON, XML, KVN) file; None for a generated catalogue.
        objects: Size of the generated catalogue.
        seed: Of all random numbers.
        start_time_ns: UTC; timestamps begin there and advance in real time. None for the real clock.
        duration_s: Stop sending after this time; None for no limit.
        count: Stop after this many frames of all kinds, faults included; None for no limit.
        linger_s: How long the archive serves after the last frame; None: until the stop.
        truth: JSON Lines file of all frames that were sent; None for no file.
        noise: Standard deviations of the measurements.
        malformed: Additional frames that do not decode, for each good frame: 0.01 is one in a hundred.
        impossible: Additional frames that decode and are physically impossible, for each good frame.
        duplicates: Frames sent twice, byte for byte, for each good frame.
        bursts: One at most for each kind.
        outages: One at most for each kind.
        archive_outage: What the archive does in an outage.
        archive_history: Entries that the archive stores; the oldest are dropped first.
        staged: Conjunctions and near misses; None for those of the catalogue only.
    """

    radar_targets: tuple[Endpoint, ...] = (Endpoint("127.0.0.1", 9201), Endpoint("127.0.0.1", 9202))
    radar_rate_hz: float = 250.0
    archives: tuple[Endpoint, ...] = (Endpoint("127.0.0.1", 9300),)
    optical_rate_hz: float = 20.0
    isl_targets: tuple[Endpoint, ...] = (Endpoint("127.0.0.1", 9400),)
    isl_rate_hz: float = 50.0
    isl_connections: int = 4
    isl_satellites: int = 40
    catalog: Path | None = None
    objects: int = 2000
    seed: int = 0
    start_time_ns: int | None = None
    duration_s: float | None = None
    count: int | None = None
    linger_s: float | None = None
    truth: Path | None = None
    noise: Noise = field(default_factory=Noise)
    malformed: float = 0.0
    impossible: float = 0.0
    duplicates: float = 0.0
    bursts: tuple[Burst, ...] = ()
    outages: tuple[Outage, ...] = ()
    archive_outage: OutageStyle = "503"
    archive_history: int = 1_000_000
    staged: Staged | None = None

    def __post_init__(self) -> None:
        problems = [*self._out_of_bounds(), *self._impossible_windows(), *self._impossible_passages()]
        if problems:
            raise ConfigurationError(problems)

    def _out_of_bounds(self) -> Iterator[str]:
        for name in ("radar_rate_hz", "optical_rate_hz", "isl_rate_hz"):
            if not 0.0 <= getattr(self, name) <= 1e6:  # noqa: PLR2004 - beyond any socket; keeps timestamps distinct
                yield f"{name} must be in [0, 1e6], got {getattr(self, name)}"
        for name in ("isl_connections", "isl_satellites", "objects", "archive_history"):
            if getattr(self, name) < 1:
                yield f"{name} must be >= 1, got {getattr(self, name)}"
        for name in ("duration_s", "count", "linger_s", "start_time_ns"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                yield f"{name} must be >= 0, got {getattr(self, name)}"
        for name in ("malformed", "impossible", "duplicates"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                yield f"{name} must be in [0, 1], got {getattr(self, name)}"
        if self.seed < 0:
            yield f"seed must be >= 0, got {self.seed}"
        for sigma in fields(self.noise):
            if not 0.0 < getattr(self.noise, sigma.name) < float("inf"):
                yield f"noise.{sigma.name} must be > 0 and finite, got {getattr(self.noise, sigma.name)}"
        if self.radar_rate_hz > 0.0 and not self.radar_targets:
            yield "radar_targets must name at least one target while radar_rate_hz > 0"
        if self.optical_rate_hz > 0.0 and not 1 <= len(self.archives) <= len(TELESCOPE_SITES):
            yield f"archives must be 1 to {len(TELESCOPE_SITES)}, with a telescope each, got {len(self.archives)}"
        if self.isl_rate_hz > 0.0 and not self.isl_targets:
            yield "isl_targets must name at least one target while isl_rate_hz > 0"
        if self.isl_connections * len(self.isl_targets) > self.isl_satellites:
            yield (
                f"isl_connections of all {len(self.isl_targets)} rings must be <= isl_satellites, "
                f"got {self.isl_connections} each and {self.isl_satellites}"
            )
        if self.archive_outage not in get_args(OutageStyle):
            yield f"archive_outage must be one of {', '.join(get_args(OutageStyle))}, got {self.archive_outage!r}"

    def _impossible_windows(self) -> Iterator[str]:
        for name, windows in (("burst", self.bursts), ("outage", self.outages)):
            kinds = [window.kind for window in windows]
            for window in windows:
                if window.kind not in SOURCE_KINDS:
                    yield f"{name}: kind must be one of {', '.join(SOURCE_KINDS)}, got {window.kind!r}"
                if not 0.0 < window.for_s < window.every_s:
                    yield f"{name} of {window.kind}: 0 < for_s < every_s expected, got {window.for_s}, {window.every_s}"
            yield from (f"{name} of {kind}: given more than once" for kind in set(kinds) if kinds.count(kind) > 1)
        for burst in self.bursts:
            if not 0.0 < burst.factor <= 1e4:  # noqa: PLR2004 - a larger factor is a typing error
                yield f"burst of {burst.kind}: factor must be in (0, 1e4], got {burst.factor}"

    def _impossible_passages(self) -> Iterator[str]:
        if self.staged is None:
            return
        plan, after_s = self.staged.plan, self.staged.after_s
        if not plan.conjunctions + plan.near_misses >= 1 or min(plan.conjunctions, plan.near_misses) < 0:
            yield f"staged: expected at least one passage, got {plan.conjunctions} and {plan.near_misses} near misses"
        if not 1.0 <= plan.threshold_m <= MAX_THRESHOLD_M:
            yield f"staged: threshold_m must be in [1, {MAX_THRESHOLD_M:g}], got {plan.threshold_m:g}"
        if not 0.0 <= plan.first_after_s <= plan.last_after_s <= MAX_PASSAGE_S:
            yield (
                f"staged: 0 <= first_after_s <= last_after_s <= {MAX_PASSAGE_S:g} expected, "
                f"got {plan.first_after_s:g}, {plan.last_after_s:g}"
            )
        if not 0.0 <= after_s < float("inf"):
            yield f"staged: after_s must be >= 0, got {after_s:g}"
