"""The sections of settings that pipelines share. Units are in the names; the Prefect UI shows the same models as a form."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, FilePath, HttpUrl, model_validator

Port = Annotated[int, Field(ge=0, le=65_535, description="Port; 0 lets the system choose")]
_YEAR_S = 366 * 86_400.0  # beyond it a duration is a mistake, and far beyond it no `timedelta`
PositiveSeconds = Annotated[float, Field(ge=0.001, le=_YEAR_S)]
PositiveInt = Annotated[int, Field(gt=0)]
NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"
"""Of operators that are named in settings."""


class Section(BaseModel):
    """A section of settings: what it does not know is an error, and nobody changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RadarSettings(Section):
    """One radar array that sends datagrams to us."""

    name: str = Field(min_length=1, pattern=NAME_PATTERN, description="The operator's name, e.g. radar-01")
    host: str = Field("127.0.0.1", description="Address to bind")
    port: Port
    receive_buffer_bytes: PositiveInt = Field(
        4 * 1024 * 1024,
        le=2**31 - 1,
        description="Kernel buffer to ask for, bytes; the kernel may grant less (net.core.rmem_max)",
    )


class RetrySettings(Section):
    """When a request that failed, in a way that may pass, is made again: decorrelated jitter."""

    initial_s: PositiveSeconds = Field(0.2, description="The least delay, seconds")
    cap_s: PositiveSeconds = Field(15.0, description="The greatest delay, seconds")
    max_attempts: int = Field(
        0, ge=0, description="Then the operator fails and is restarted by its policy; 0: for as long as it takes"
    )

    @model_validator(mode="after")
    def _delays_fit(self) -> RetrySettings:
        if self.cap_s < 3 * self.initial_s:
            raise ValueError(
                f"cap_s must be >= 3 * initial_s, or there is little jitter: got {self.cap_s:g} and {self.initial_s:g}"
            )
        return self


class BreakerSettings(Section):
    """When a downstream that fails is left alone."""

    threshold: float = Field(0.5, gt=0, le=1, description="Share of failed requests in the window that opens it")
    window_s: PositiveSeconds | None = Field(
        None, description="How far back requests count, seconds (default: 15, or min_calls requests that time out)"
    )
    cooldown_s: PositiveSeconds = Field(15.0, description="From opening to the first probe, seconds")
    min_calls: int = Field(3, ge=1, le=10_000, description="It does not open on fewer requests")


class OpticalSettings(Section):
    """The optical archive that we poll."""

    url: HttpUrl = Field(HttpUrl("http://127.0.0.1:9300/observations"), description="Where its pages are")
    poll_interval_s: PositiveSeconds = Field(0.2, description="Pause between polls, seconds")
    long_poll_s: float = Field(
        0.0, ge=0, le=300, description="How long it may hold a request, seconds; 0: fixed interval"
    )
    timeout_s: PositiveSeconds = Field(
        5.0, description="For the whole of an answer, seconds; a long poll's wait comes on top"
    )
    lookback_s: float = Field(
        60.0, ge=0, le=_YEAR_S, description="How far before the start the first poll reaches, seconds"
    )
    max_body_bytes: PositiveInt = Field(16 * 1024 * 1024, description="A larger page is refused, bytes")
    ca_file: FilePath | None = Field(None, description="Certificates (PEM) to trust instead of the usual ones")
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()

    @property
    def longest_time_outs_s(self) -> float:
        """For how long the archive must be silent for as many requests to time out as it takes to open the breaker."""
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
            except OSError as error:  # an SSLError is one
                raise ValueError(f"no certificates in ca_file {self.ca_file}: {error}") from error
        return self


class IslSettings(Section):
    """The listener that beacons connect to."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Port = 9400
    max_connections: PositiveInt = Field(256, description="Further connections are turned away")
    max_connections_per_peer: PositiveInt = Field(
        64, description="Of one remote address (IPv6: of one /64); further ones are turned away"
    )
    inbox_frames: PositiveInt = Field(4_096, description="Frames held before connections are no longer read")
    frame_deadline_s: PositiveSeconds = Field(
        30.0, description="For a frame, from its first byte to its last, seconds; then its sender is hung up on"
    )
    silence_deadline_s: PositiveSeconds = Field(
        300.0, description="A peer that sends nothing for so long is hung up on, seconds"
    )
    max_frame_bytes: int = Field(
        4_096, ge=72, le=1024 * 1024, description="Whoever announces a longer frame is hung up on, bytes"
    )
    max_malformed_frames: int = Field(
        100, ge=0, description="Whoever sends more of them on one connection is hung up on"
    )


class ValidationSettings(Section):
    """What is believed."""

    replay: bool = Field(
        default=False, description="The feeds replay the past: do not compare their timestamps with the clock"
    )
    max_clock_skew_s: PositiveSeconds = Field(300.0, description="Between a timestamp and its arrival, seconds")
    max_archive_age_s: PositiveSeconds = Field(
        86_400.0, description="How old an archive's observation may be (its backlog after an outage), seconds"
    )
    clock_offset_ns: dict[str, int] = Field(
        default_factory=dict, description="By source id: how far its clock is known to be ahead, ns"
    )


class DedupSettings(Section):
    """How long an observation is remembered, so that its repeat is known for one."""

    window_s: PositiveSeconds = Field(600.0, description="After it was last met, seconds")
    max_ids: PositiveInt = Field(
        500_000, description="Remembered at most (75 MB for 500,000); at high rates this is the shorter bound"
    )


class EventLogSettings(Section):
    """Where observations are kept."""

    directory: Path = Field(Path("run/sda-ingest/log"), description="Folder; one pipeline at a time writes it")
    max_file_bytes: PositiveInt = Field(
        64 * 1024 * 1024, description="A file is finished before it grows beyond, bytes"
    )


class DeadLetterSettings(Section):
    """Where what cannot go on is kept, and how much of it is too much."""

    directory: Path = Field(Path("run/sda-ingest/dead-letters"), description="Folder")
    max_share: float = Field(0.5, gt=0, le=1, description="Of what validate sees; more brings the pipeline down")
    min_items: PositiveInt = Field(10_000, description="The share is not judged before so many items")
    max_consecutive: PositiveInt = Field(10_000, description="So many rejections in a row bring the pipeline down")


class ShutdownSettings(Section):
    """How it stops."""

    grace_s: PositiveSeconds = Field(
        5.0, description="For the drain, overall, seconds; then what still runs is aborted"
    )
    patience_s: PositiveSeconds = Field(1.0, description="After the abort; then stragglers are named, seconds")


class ControlPlaneSettings(Section):
    """Where the run is asked for its health and its figures, over HTTP: /health and /metrics."""

    enabled: bool = Field(default=True, description="Whether it is served at all")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; who can reach it can read it")
    port: Port = 9100


class PrefectSettings(Section):
    """What Prefect is told beside the stream, where the pipeline runs as a Prefect flow."""

    directory: Path = Field(
        Path("run/sda-ingest/prefect"),
        description="Folder: how runs ended, and what Prefect has not been told; the next start tells it",
    )
    artifacts: bool = Field(default=True, description="Whether topology, live status and report are shown as artifacts")
    status_every_s: PositiveSeconds = Field(30.0, description="How often the live status is renewed, seconds")
    look_every_s: PositiveSeconds = Field(
        5.0, description="How often the run looks whether somebody has cancelled it in Prefect, seconds"
    )
    patience_s: PositiveSeconds = Field(
        120.0, description="How long an end of its own waits for an API that does not answer, seconds"
    )
    patience_when_stopped_s: PositiveSeconds = Field(
        10.0,
        description="The same for an end that somebody asked for, seconds; a worker kills after 30, drain included",
    )


class Listening(Protocol):
    """A source with a socket of its own."""

    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


def refuse_shared_ports(what: str, scheme: str, listening: Iterable[Listening]) -> None:
    """Raise ``ValueError`` if two of them want the same address."""
    owners: dict[tuple[str, int], str] = {}
    for each in listening:
        if each.port and (other := owners.setdefault((each.host, each.port), each.name)) != each.name:
            raise ValueError(f"{what} {other} and {each.name} both listen on {scheme}://{each.host}:{each.port}")
