"""The sections of settings that the pipelines share. Units are in the names; the Prefect UI shows the models as a form."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationInfo, field_validator, model_validator

from flows.settings.addresses import AccessToken, Address
from orchestrator_adapter.control_plane import ControlPlane

Port = Annotated[int, Field(ge=0, le=65_535, description="Port; 0 lets the system choose")]
_YEAR_S = 366 * 86_400.0  # a longer duration is a mistake; much longer ones overflow `timedelta`
PositiveSeconds = Annotated[float, Field(ge=0.001, le=_YEAR_S)]
PositiveInt = Annotated[int, Field(gt=0)]
NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"
"""The names of operators in settings."""


class Section(BaseModel):
    """A section of settings: immutable, and an unknown name is an error.

    ``removed`` has settings of earlier versions, with what to set now. They are errors, too, which say it.
    """

    removed: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _path_is_not_empty(cls, value: object, info: ValidationInfo) -> object:
        """Reject what an unset variable of a shell leaves: an empty path would be the current folder."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if value == "" and Path in (annotation, *get_args(annotation)):
            raise ValueError("expected a path, got ''")
        return value

    @field_validator("*")
    @classmethod
    def _path_can_be_opened(cls, value: object) -> object:
        """Reject null bytes and lone surrogates, for which opening the path would raise a ``ValueError``."""
        if isinstance(value, Path):
            try:
                possible = b"\0" not in os.fsencode(value)
            except UnicodeEncodeError:
                possible = False
            if not possible:
                raise ValueError(f"expected a path that the system can open, got {str(value)!r}")
        return value


class RadarSettings(Section):
    """One radar array, which sends datagrams."""

    name: str = Field(min_length=1, pattern=NAME_PATTERN, description="The operator's name, e.g. radar-01")
    host: str = Field("127.0.0.1", description="Address to bind")
    port: Port
    receive_buffer_bytes: PositiveInt = Field(
        4 * 1024 * 1024,
        le=2**31 - 1,
        description="Size of the kernel's receive buffer, bytes; the kernel may give less (net.core.rmem_max)",
    )


class RetrySettings(Section):
    """The delays of retries after a transient failure: decorrelated jitter."""

    initial_s: PositiveSeconds = Field(0.2, description="The shortest delay, seconds")
    cap_s: PositiveSeconds = Field(15.0, description="The longest delay, seconds")
    max_attempts: int = Field(
        0, ge=0, description="After so many the operator fails and is restarted by its policy; 0: no limit"
    )

    @model_validator(mode="after")
    def _delays_fit(self) -> RetrySettings:
        if self.cap_s < 3 * self.initial_s:
            raise ValueError(
                f"cap_s must be >= 3 * initial_s, or there is little jitter: got {self.cap_s:g} and {self.initial_s:g}"
            )
        return self


class BreakerSettings(Section):
    """When the circuit breaker opens, and for how long."""

    threshold: float = Field(
        0.5, gt=0, le=1, description="The share of failed requests in the window at which it opens"
    )
    window_s: PositiveSeconds | None = Field(
        None,
        description="The window of requests that count, seconds (default: 15, or min_calls requests that time out)",
    )
    cooldown_s: PositiveSeconds = Field(15.0, description="From the opening to the first probe, seconds")
    min_calls: int = Field(3, ge=1, le=10_000, description="It does not open with fewer requests in the window")


class OpticalSettings(Section):
    """The optical archive that is polled."""

    url: Address = Field(
        Address("http://127.0.0.1:9300/observations"),
        description="The address of its pages; with credentials: secret:NAME, env:NAME or file:PATH, where it is",
    )
    poll_interval_s: PositiveSeconds = Field(0.2, description="Pause between polls, seconds")
    long_poll_s: float = Field(
        0.0,
        ge=0,
        le=300,
        description="How long the archive may wait with its answer, seconds; 0: polls at a fixed interval",
    )
    timeout_s: PositiveSeconds = Field(5.0, description="For a complete answer, seconds; a long poll's wait is added")
    lookback_s: float = Field(
        60.0, ge=0, le=_YEAR_S, description="How far back from the start the first poll reaches, seconds"
    )
    max_body_bytes: PositiveInt = Field(16 * 1024 * 1024, description="A larger page is rejected, bytes")
    ca_file: FilePath | None = Field(None, description="Certificates (PEM) to trust instead of the system's")
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()

    @property
    def longest_time_outs_s(self) -> float:
        """The longest time in which ``min_calls`` requests time out, seconds."""
        return self.breaker.min_calls * (self.timeout_s + self.long_poll_s)

    @model_validator(mode="after")
    def _breaker_can_open(self) -> OpticalSettings:
        window_s = self.breaker.window_s
        if window_s is not None and window_s < self.longest_time_outs_s:
            raise ValueError(
                f"breaker.window_s must be >= breaker.min_calls * (timeout_s + long_poll_s) = {self.longest_time_outs_s:g}"
                f", or the breaker never opens while the archive is silent: got {window_s:g}"
            )
        return self

    @model_validator(mode="after")
    def _ca_file_has_certificates(self) -> OpticalSettings:
        if self.ca_file is not None:
            try:
                ssl.create_default_context(cafile=self.ca_file)
            except OSError as error:  # also SSLError
                raise ValueError(f"no certificates in ca_file {self.ca_file}: {error}") from error
        return self


class IslSettings(Section):
    """The listener for the beacons' connections."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Port = 9400
    max_connections: PositiveInt = Field(256, description="Further connections are closed")
    max_connections_per_peer: PositiveInt = Field(
        64, description="Of one remote address (IPv6: of one /64); further ones are closed"
    )
    inbox_frames: PositiveInt = Field(4_096, description="While so many frames are buffered, connections are not read")
    frame_deadline_s: PositiveSeconds = Field(
        30.0, description="For a frame, from its first byte to its last, seconds; then its connection is closed"
    )
    silence_deadline_s: PositiveSeconds = Field(
        300.0, description="A connection without data is closed after so long, seconds"
    )
    max_frame_bytes: int = Field(
        4_096, ge=72, le=1024 * 1024, description="A connection that announces a longer frame is closed, bytes"
    )
    max_malformed_frames: int = Field(100, ge=0, description="A connection with more malformed frames is closed")


class ValidationSettings(Section):
    """Which observations are accepted."""

    replay: bool = Field(
        default=False, description="The feeds are replays: do not compare their timestamps with the clock"
    )
    max_clock_skew_s: PositiveSeconds = Field(
        300.0, description="The largest difference between a timestamp and its arrival, seconds"
    )
    max_archive_age_s: PositiveSeconds = Field(
        86_400.0, description="The greatest age of an archive's observation (after an outage it has a backlog), seconds"
    )
    clock_offset_ns: dict[str, int] = Field(
        default_factory=dict, description="By source id: how far its clock is ahead, ns"
    )


class DedupSettings(Section):
    """How long an observation's id is remembered, to recognize duplicates."""

    window_s: PositiveSeconds = Field(600.0, description="Since it was last seen, seconds")
    max_ids: PositiveInt = Field(
        500_000, description="Ids remembered at most (75 MB for 500,000); at high rates this is the shorter bound"
    )


class EventLogSettings(Section):
    """Where observations are written."""

    directory: Path = Field(Path("run/sda-ingest/log"), description="Folder; only one run at a time writes it")
    max_file_bytes: PositiveInt = Field(
        64 * 1024 * 1024, description="A file is finished before it grows larger, bytes"
    )


class DeadLetterSettings(Section):
    """Where dead letters are written, and how many end the run."""

    directory: Path = Field(Path("run/sda-ingest/dead-letters"), description="Folder")
    max_share: float = Field(0.5, gt=0, le=1, description="The largest share of validate's input; more ends the run")
    min_items: PositiveInt = Field(10_000, description="The share is checked after so many items")
    max_consecutive: PositiveInt = Field(10_000, description="So many consecutive rejections end the run")


class ShutdownSettings(Section):
    """How the run stops."""

    grace_s: PositiveSeconds = Field(
        5.0, description="For the whole drain, seconds; then operators that still run are aborted"
    )
    patience_s: PositiveSeconds = Field(
        1.0, description="After the abort, seconds; then operators that still run are reported as stragglers"
    )


class ControlPlaneSettings(Section):
    """The HTTP server of the run: live page, health, metrics and actions."""

    enabled: bool = Field(default=True, description="Whether the server runs")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. One that other machines can reach needs a token, and TLS or a proxy",
    )
    port: Port = 9100
    token: AccessToken | None = Field(
        None, description="Reference to the token: secret:NAME, env:NAME or file:PATH; 16 or more characters"
    )
    tls_certificate: Path | None = Field(None, description="Certificate with its chain, PEM; with it, HTTPS is served")
    tls_key: Path | None = Field(None, description="Its key, PEM, without a password")
    behind_proxy: bool = Field(
        default=False, description="Whether clients come through a proxy that ends TLS; reading then needs the token"
    )
    actions: bool = Field(
        default=False,
        description="Whether drain, pause of a source and force of a breaker are admitted, with the token",
    )

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """Certificate and key."""
        return None if self.tls_certificate is None or self.tls_key is None else (self.tls_certificate, self.tls_key)

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        ControlPlane(  # raises ValueError
            host=self.host,
            port=self.port,
            token="" if self.token is None else "a-stand-in-for-it",
            tls=self.tls,
            behind_proxy=self.behind_proxy,
            actions=self.actions,
        )
        return self


class PrefectSettings(Section):
    """How a run that is a Prefect flow reports to Prefect."""

    directory: Path = Field(
        Path("run/sda-ingest/prefect"),
        description="Folder: how runs ended, and what Prefect has not received; the next start reports it",
    )
    artifacts: bool = Field(
        default=True, description="Whether topology, live status and report are published as artifacts"
    )
    status_every_s: PositiveSeconds = Field(30.0, description="How often the live status is updated, seconds")
    look_every_s: PositiveSeconds = Field(
        5.0, description="How often the run checks whether it was cancelled in Prefect, seconds"
    )
    patience_s: PositiveSeconds = Field(
        120.0, description="How long a run that ends by itself waits for an API that does not answer, seconds"
    )
    patience_when_stopped_s: PositiveSeconds = Field(
        10.0,
        description="The same for a run that was asked to stop, seconds; a worker kills after 30, drain included",
    )


class Listening(Protocol):
    """A source that listens on a socket."""

    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


def check_shared_ports(what: str, scheme: str, listening: Iterable[Listening]) -> None:
    """Raise ``ValueError`` if two sources have the same address."""
    owners: dict[tuple[str, int], str] = {}
    for each in listening:
        if each.port and (other := owners.setdefault((each.host, each.port), each.name)) != each.name:
            raise ValueError(f"{what} {other} and {each.name} both listen on {scheme}://{each.host}:{each.port}")
