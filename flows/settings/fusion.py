"""The settings of ``sda-fusion``; ``flows.settings.load`` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from math import degrees
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from flows.settings.addresses import Address, SchedulerAddress
from flows.settings.alerts import AlertSettings
from flows.settings.event_time import EventTimeSettings
from flows.settings.feed_time import ArchiveTimeSettings, FeedTimeSettings, RingTimeSettings
from flows.settings.screening import ScreeningSettings
from flows.settings.sections import (
    NAME_PATTERN,
    ControlPlaneSettings,
    DeadLetterSettings,
    DedupSettings,
    IslSettings,
    OpticalSettings,
    PositiveInt,
    PositiveSeconds,
    PrefectSettings,
    RadarSettings,
    Section,
    ShutdownSettings,
    ValidationSettings,
    check_shared_ports,
)
from flows.settings.uncertainty import ErrorSettings
from sda_ops.astro.sites import Site
from sda_ops.wire.iod import read_sites

_RUN = Path("run/sda-fusion")
_MAX_AGE_DAYS = 3_660.0  # ten years; an older element set is useless

_FILE_EVERY = timedelta(seconds=60)
_URL_EVERY = timedelta(hours=2)  # celestrak.org's own interval of updates; it answers 403 to more frequent requests


class TimedRadarSettings(RadarSettings, FeedTimeSettings):
    """One radar array, and what is known of its times."""


class NamedOpticalSettings(OpticalSettings, ArchiveTimeSettings):
    """One of several archives."""

    name: str = Field(min_length=1, pattern=NAME_PATTERN, description="The operator's name, e.g. optical-01")

    @property
    def longest_poll_s(self) -> float:
        """See ``ArchiveTimeSettings``."""
        return self.poll_interval_s + self.timeout_s + self.long_poll_s + self.retry.cap_s


class NamedIslSettings(IslSettings, RingTimeSettings):
    """One of several rings of satellites, with a listener of its own."""

    name: str = Field(min_length=1, pattern=NAME_PATTERN, description="The operator's name, e.g. isl-01")


_SigmaRange = Annotated[float, Field(gt=0, le=1e6)]
_SigmaRangeRate = Annotated[float, Field(gt=0, le=1e4)]
_SigmaAngle = Annotated[float, Field(gt=0, le=36_000)]
_DopplerSign = Literal[1, -1]


class ReplayFileSettings(Section):
    """One file of a replay; what is not set here is as in [replay]."""

    path: Path = Field(description="The file, or a folder of files; gzip may have compressed them")
    sigma_range_m: _SigmaRange | None = Field(None, description="One standard deviation of its ranges")
    sigma_range_rate_m_s: _SigmaRangeRate | None = Field(None, description="One standard deviation of its range rates")
    sigma_angle_arcsec: _SigmaAngle | None = Field(None, description="One standard deviation of its angles")
    range_is_round_trip: bool | None = Field(None, description="Whether its ranges are round trip")
    doppler_is_round_trip: bool | None = Field(None, description="Whether its range rates are round trip")
    doppler_sign: _DopplerSign | None = Field(
        None, description="-1 if its DOPPLER is positive for an approaching object"
    )


def _with_path(value: object) -> object:
    """A path alone is a file without conventions of its own."""
    return {"path": value} if isinstance(value, str | Path) else value


_ReplayFile = Annotated[
    ReplayFileSettings, BeforeValidator(_with_path, json_schema_input_type=Path | ReplayFileSettings)
]


class ReplaySettings(Section):
    """Tracking data from files: CCSDS TDM and IOD lines."""

    files: tuple[_ReplayFile, ...] = Field(
        (),
        description="The files, merged in time order, each a path or a table with its own conventions; "
        "without files the source ends at once",
    )
    pace: float = Field(1.0, ge=0, le=1e6, description="Speed, as a multiple of real time; 0: as fast as possible")
    sigma_range_m: _SigmaRange = Field(100.0, description="One standard deviation of ranges; TDMs have none")
    sigma_range_rate_m_s: _SigmaRangeRate = Field(25.0, description="One standard deviation of range rates")
    sigma_angle_arcsec: _SigmaAngle = Field(60.0, description="One standard deviation of angles in TDMs")
    range_is_round_trip: bool = Field(
        default=True, description="Whether ranges in TDMs are round trip, as the agencies agreed; False: one way"
    )
    doppler_is_round_trip: bool = Field(default=False, description="Whether range rates in TDMs are round trip")
    doppler_sign: _DopplerSign = Field(
        1, description="-1 if DOPPLER is positive for an approaching object, as in files of EISCAT"
    )

    def of_file(self, file: ReplayFileSettings) -> ReplaySettings:
        """The same settings, with those of one of the files where it has its own."""
        return self.model_copy(update=file.model_dump(exclude={"path"}, exclude_none=True))


class SensorSettings(Section):
    """The position of a sensor; predictions for the sensor need it."""

    source_id: str = Field(min_length=1, description="The source id in its observations, e.g. radar-1, optical-4172")
    latitude_deg: float = Field(ge=-90, le=90, description="Geodetic, north positive")
    longitude_deg: float = Field(ge=-180, le=360, description="East positive")
    height_m: float = Field(ge=-500, le=10_000, description="Above the WGS-84 ellipsoid")
    sigma_angle_arcsec: float | None = Field(
        None, gt=0, le=36_000, description="One standard deviation of its angles, if its observations have none"
    )
    replayed: bool = Field(
        default=False,
        description="It is a replay: do not compare its timestamps with the clock; those of files in [replay] never are",
    )


class StationSettings(Section):
    """A file with the positions of many observers, as users of IOD lines exchange it."""

    file: Path | None = Field(
        None,
        description="Lines 'number code latitude longitude height observer' (degrees, east positive; metres); station "
        "4172 is the sensor optical-4172. A table in [[sensors]] wins over a line of the file",
    )
    sigma_angle_arcsec: _SigmaAngle | None = Field(
        None, description="One standard deviation of their angles, if the observations have none"
    )
    replayed: bool = Field(default=False, description="They are replays, as in [[sensors]]")

    def sensors(self) -> tuple[SensorSettings, ...]:
        """One sensor for each station. Raises ``ValueError``."""
        if self.file is None:
            return ()
        try:
            text = self.file.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            raise ValueError(f"file {self.file} cannot be read: {error.strerror or error}") from error
        try:
            sites = read_sites(text)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error
        if not sites:
            raise ValueError(f"{self.file}: expected lines that begin with a station's number, got none")
        return tuple(self._sensor(number, site) for number, site in sites.items())

    def _sensor(self, number: int, site: Site) -> SensorSettings:
        try:
            return SensorSettings(
                source_id=f"optical-{number}",
                latitude_deg=degrees(site.latitude_rad),
                longitude_deg=degrees(site.longitude_rad),
                height_m=site.height_m,
                sigma_angle_arcsec=self.sigma_angle_arcsec,
                replayed=self.replayed,
            )
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{first['loc'][0]}: {first['msg']}, got {first['input']}"
            raise ValueError(f"{self.file}: station {number}: {problem}") from None

    @model_validator(mode="after")
    def _file_has_stations(self) -> StationSettings:
        self.sensors()
        return self


class CatalogSettings(Section):
    """The catalogue of element sets: a file, or an address."""

    file: Path | None = Field(
        None,
        description="TLE, 3LE, or OMM in CSV, JSON, XML or KVN (default: run/sda-fusion/catalog.json, if there is no url)",
    )
    url: Address | None = Field(
        None,
        description="Its HTTP address, instead of a file; with credentials: secret:NAME, env:NAME or file:PATH, where it is",
    )
    refresh_every_s: PositiveSeconds | None = Field(
        None,
        description="How often a newer catalogue is looked for, seconds (default: 60 for a file, 7200 for a url, because "
        "publishers reject more frequent requests)",
    )
    cache: Path = Field(
        _RUN / "catalog-cache",
        description="Folder: the last good catalogue of the url, with which a start begins; without a url it is not used",
    )
    max_age_days: float = Field(
        30.0, gt=0, le=_MAX_AGE_DAYS, description="An element set farther from its epoch is not used"
    )

    @property
    def location(self) -> Path | Address:
        """The file or the address that is set; otherwise the default file."""
        # No default file in the field: a dump would name it beside the url, and would not be valid.
        return self.url or self.file or _RUN / "catalog.json"

    @property
    def refresh_every(self) -> timedelta:
        """The interval of refreshes."""
        if self.refresh_every_s is not None:
            return timedelta(seconds=self.refresh_every_s)
        return _URL_EVERY if self.url is not None else _FILE_EVERY

    @model_validator(mode="after")
    def _file_or_url(self) -> CatalogSettings:
        if self.url is not None and self.file is not None:
            raise ValueError(f"expected a file or a url, got both: {self.file} and {self.url}")
        return self


class ClusterSettings(Section):
    """Other machines for worker processes, which connect back to this machine, over TLS.

    A run without a Prefect API has its workers on this machine.
    """

    kind: Literal["dask", "ray"] = Field(description="The kind of cluster; each needs the extra of its name")
    address: SchedulerAddress = Field(
        description="Address of its scheduler, e.g. tcp://scheduler:8786 or ray://head:10001, or where it is, as in a url"
    )
    host: str = Field(
        min_length=1,
        pattern="^[!-~]*$",
        description="The name or address at which its machines reach this one, in ASCII",
    )
    bind: str | None = Field(None, min_length=1, description="The address to listen on (default: host)")
    port: int = Field(0, ge=0, le=65_535, description="The port to listen on; 0: any free port")


class PropagatorSettings(Section):
    """The worker processes that compute orbits."""

    workers: int = Field(1, ge=1, le=256, description="The number of worker processes")
    cluster: ClusterSettings | None = Field(None, description="Where they run, if not on this machine")
    engine: Literal["sgp4", "heyoka", "auto"] = Field(
        "sgp4", description="heyoka (an extra) for near-Earth objects, sgp4 for the others; auto: heyoka if installed"
    )
    answer_within_s: PositiveSeconds = Field(
        30.0, description="A worker that takes longer counts as hung and is replaced, seconds"
    )
    max_rebuilds: int = Field(5, ge=0, le=1_000, description="Workers replaced in a minute; more end the run")


class CorrelationSettings(Section):
    """When an observation belongs to an object."""

    removed: ClassVar[Mapping[str, str]] = {
        "window_s": "it is now [event_time] window_s, the time between observations of one window",
        "max_contributions": "[event_time] longest_window_s and max_held bound a window now",
    }

    gate_miss: float = Field(1e-4, gt=0, lt=1, description="The probability that the right object is outside the gate")
    min_probability: float = Field(
        0.99,
        ge=0.5,
        lt=1,
        description="The least probability of the likeliest candidate; below it the observation is ambiguous",
    )
    near_earth: ErrorSettings | None = Field(None, description="Periods below 225 minutes (default: built in)")
    deep_space: ErrorSettings | None = Field(None, description="All other orbits (default: built in)")


class SpillSettings(Section):
    """Where observations wait for the propagator when it is slow or stuck, so that the audit does not wait with them."""

    directory: Path = Field(_RUN / "spill", description="Folder, on a local disk; only one run at a time uses it")
    max_mib: PositiveInt = Field(
        1_024, le=1 << 30, description="The most MiB on disk; 1,024 are about seven million observations"
    )
    when_full: Literal["shed", "backpressure"] = Field(
        "shed",
        description="shed: observations that do not fit have no correlation, are counted as shed, and are in the audit; "
        "backpressure: the audit and the sources wait",
    )


class AuditSettings(Section):
    """Where the audit is written, in Parquet."""

    directory: Path = Field(_RUN / "audit", description="Folder; only one run at a time writes it")
    max_rows: PositiveInt = Field(65_536, description="The most rows of one commit")
    commit_every_s: PositiveSeconds = Field(
        1.0, description="How long the first row of a commit waits for others, seconds; a longer time gives fewer files"
    )


class ConjunctionSettings(ScreeningSettings):
    """The screening of the catalogue for conjunctions, beside the stream."""

    enabled: bool = Field(default=True, description="Whether the catalogue is screened")
    directory: Path = Field(
        _RUN / "screening", description="Folder of the table of conjunctions; only one run at a time writes it"
    )
    keep_days: float = Field(
        3.0,
        ge=0,
        le=_MAX_AGE_DAYS,
        description="How long the table keeps a conjunction that is over, days; the audit keeps all",
    )
    workers: PositiveInt | None = Field(1, le=256, description="The number of worker processes")
    cluster: ClusterSettings | None = Field(None, description="Where they run, if not on this machine")
    answer_within_s: PositiveSeconds = Field(
        900.0, description="A worker that takes longer for one window counts as hung and is replaced, seconds"
    )

    @property
    def table(self) -> Path:
        """The file of the table of conjunctions."""
        return self.directory / "conjunctions.sqlite"


class FusionSettings(Section):
    """All settings of ``sda-fusion``."""

    radars: tuple[TimedRadarSettings, ...] = Field(
        default_factory=lambda: tuple(TimedRadarSettings(name=f"radar-{n:02}", port=9210 + n) for n in (1, 2, 3)),
        min_length=1,
        description="The radar arrays",
    )
    opticals: tuple[NamedOpticalSettings, ...] = Field(
        default_factory=lambda: tuple(
            NamedOpticalSettings(name=f"optical-{n:02}", url=Address(f"http://127.0.0.1:{9299 + n}/observations"))
            for n in (1, 2)
        ),
        min_length=1,
        description="The optical archives",
    )
    isls: tuple[NamedIslSettings, ...] = Field(
        default_factory=lambda: tuple(NamedIslSettings(name=f"isl-{n:02}", port=9410 + n) for n in (1, 2)),
        min_length=1,
        description="The rings of satellites",
    )
    replay: ReplaySettings = ReplaySettings()
    sensors: tuple[SensorSettings, ...] = Field(
        (),
        description="The positions of the sensors; observations of other sensors are not compared with the catalogue",
    )
    stations: StationSettings = StationSettings()
    catalog: CatalogSettings = CatalogSettings()
    propagator: PropagatorSettings = PropagatorSettings()
    correlation: CorrelationSettings = CorrelationSettings()
    event_time: EventTimeSettings = EventTimeSettings()
    screening: ConjunctionSettings = ConjunctionSettings()
    alerts: AlertSettings = AlertSettings()
    validation: ValidationSettings = ValidationSettings()
    dedup: DedupSettings = DedupSettings()
    audit: AuditSettings = AuditSettings()
    spill: SpillSettings = SpillSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings(directory=_RUN / "dead-letters")
    shutdown: ShutdownSettings = ShutdownSettings()
    control_plane: ControlPlaneSettings = ControlPlaneSettings(port=9101)
    prefect: PrefectSettings = PrefectSettings(directory=_RUN / "prefect")
    report: Path = Field(_RUN / "report.json", description="The file of the run's report")

    @property
    def source_names(self) -> tuple[str, ...]:
        """The operators that send observations."""
        radars, opticals, isls = ((each.name for each in feeds) for feeds in (self.radars, self.opticals, self.isls))
        return (*radars, *opticals, *isls, "replay")

    @property
    def known_sensors(self) -> tuple[SensorSettings, ...]:
        """The sensors, and those stations of the file that are not among them. Reads the file."""
        own = {sensor.source_id for sensor in self.sensors}
        return (*self.sensors, *(station for station in self.stations.sensors() if station.source_id not in own))

    @model_validator(mode="after")
    def _alerts_have_conjunctions(self) -> FusionSettings:
        if self.alerts.enabled and self.alerts.subscribers and not self.screening.enabled:
            raise ValueError(
                "alerts.subscribers: alerts come from screening; set screening.enabled = true, or alerts.enabled = false"
            )
        return self

    @model_validator(mode="after")
    def _names_and_ports_differ(self) -> FusionSettings:
        check_shared_ports("radars", "udp", self.radars)
        check_shared_ports("isls", "tcp", self.isls)
        for what, names in (
            (
                "operators",
                [
                    *(each.name for each in self.radars),
                    *(each.name for each in self.opticals),
                    *(each.name for each in self.isls),
                ],
            ),
            ("sensors", [each.source_id for each in self.sensors]),
            ("replay.files", [str(each.path) for each in self.replay.files]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what}: names must differ, got {', '.join(twice)} more than once")
        return self
