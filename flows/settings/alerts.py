"""The settings of alerts: what becomes one, who is notified, and how much the outbox holds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.settings.addresses import Address, SigningSecret
from flows.settings.sections import NAME_PATTERN, PositiveInt, PositiveSeconds, Section
from sda_ops.alerts.outbox.rules import SEVERITIES, AlertRules, SubscriberRules
from sda_ops.alerts.outbox.values import Bounds
from sda_ops.records.alert import Severity

_MAX_MISS_M = 100_000.0
_MAX_DAYS = 3_660.0
_MIB = 1_024 * 1_024
_RULES = SubscriberRules(name="defaults")

_Miss = Annotated[float, Field(gt=0, le=_MAX_MISS_M)]
_Probability = Annotated[float, Field(ge=0, le=1)]
_CatalogNumber = Annotated[int, Field(gt=0, le=999_999_999)]


class SubscriberSettings(Section):
    """A receiver of alerts, with its own thresholds beside those of [alerts], and which changes are material to it."""

    name: str = Field(
        min_length=1,
        max_length=100,
        pattern=NAME_PATTERN,
        description="Its name, e.g. flight-dynamics; under another name it is a new subscriber",
    )
    url: Address = Field(
        description="Where alerts are sent by HTTP POST; with credentials: secret:NAME, env:NAME or file:PATH, where it is"
    )
    format: Literal["json", "cdm-kvn", "cdm-xml"] = Field(
        "json", description="json (docs/schemas), or a CCSDS Conjunction Data Message in KVN or XML"
    )
    secret: SigningSecret | None = Field(
        None,
        description="Signs what is sent (Standard Webhooks): secret:NAME, env:NAME or file:PATH, where the secret is",
    )
    min_severity: Severity | None = Field(None, description="At least (default: that of [alerts])")
    miss_distance_m: _Miss | None = Field(None, description="At most, metres (default: that of [alerts])")
    min_probability: _Probability | None = Field(
        None, description="The least probability, or maximum probability without covariances (default: any)"
    )
    objects: tuple[_CatalogNumber, ...] = Field(
        (), description="Catalogue numbers, one of which must be in the pair (default: any)"
    )
    min_observations: int = Field(
        0, ge=0, le=1_000_000, description="The least number of observations of both objects together"
    )
    miss_change: float = Field(
        _RULES.miss_change, gt=0, le=1_000, description="A change of the miss distance by this share is material"
    )
    probability_factor: float = Field(
        _RULES.probability_factor, gt=1, le=1e10, description="A change of the probability by this factor is material"
    )
    tca_shift_s: PositiveSeconds = Field(
        _RULES.tca_shift_s, description="A shift of the time of closest approach by this is material, seconds"
    )
    finals: bool = Field(default=False, description="Whether it is also notified that a risk has become final")
    max_per_s: float = Field(
        20.0, ge=0.001, le=10_000, description="The most requests in a second, so that a recovery is no storm"
    )
    timeout_s: PositiveSeconds = Field(10.0, le=3_600, description="For a complete answer, seconds")

    def rules(self) -> SubscriberRules:
        """What it receives."""
        return SubscriberRules(
            name=self.name,
            min_severity=self.min_severity,
            miss_distance_m=self.miss_distance_m,
            min_probability=self.min_probability,
            objects=frozenset(self.objects),
            min_observations=self.min_observations,
            miss_change=self.miss_change,
            probability_factor=self.probability_factor,
            tca_shift_s=self.tca_shift_s,
            finals=self.finals,
        )


class AlertSettings(Section):
    """Which conjunctions become alerts, and the outbox in which alerts wait until each subscriber has acknowledged them."""

    enabled: bool = Field(default=True, description="Whether conjunctions become alerts")
    directory: Path = Field(
        Path("run/sda-fusion/alerts"), description="Folder of the outbox; only one run at a time writes it"
    )
    miss_distance_m: _Miss = Field(
        AlertRules().miss_distance_m, description="Conjunctions up to this miss distance become alerts, metres"
    )
    min_severity: Severity = Field(
        AlertRules().min_severity,
        description="The least severity: low, medium (probability from 1e-7 on) or high (from 1e-4 on)",
    )
    fleets: bool = Field(
        default=False, description="Whether pairs within one fleet, docked objects and formations become alerts"
    )
    keep_days: float = Field(
        30.0, ge=1, le=_MAX_DAYS, description="How long the outbox keeps a conjunction that is over, days"
    )
    max_age_days: float = Field(
        7.0, ge=0.01, le=_MAX_DAYS, description="An alert that is not acknowledged for longer is parked, days"
    )
    max_mib: PositiveInt = Field(1_024, ge=8, le=1 << 30, description="The most MiB of the outbox on the disk")
    subscribers: tuple[SubscriberSettings, ...] = Field((), description="Who receives alerts")

    @property
    def outbox(self) -> Path:
        """The file of the outbox."""
        return self.directory / "alerts.sqlite"

    def rules(self) -> AlertRules:
        """What becomes an alert."""
        return AlertRules(miss_distance_m=self.miss_distance_m, min_severity=self.min_severity, fleets=self.fleets)

    def bounds(self) -> Bounds:
        """How much the outbox holds, and for how long."""
        return Bounds(
            keep=timedelta(days=self.keep_days),
            max_age=timedelta(days=self.max_age_days),
            max_bytes=self.max_mib * _MIB,
        )

    @model_validator(mode="after")
    def _subscribers_fit(self) -> AlertSettings:
        problems = []
        names = [each.name for each in self.subscribers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"subscribers: names must differ, got {', '.join(twice)} more than once")
        for each in self.subscribers:
            if each.miss_distance_m is not None and each.miss_distance_m > self.miss_distance_m:
                problems.append(
                    f"subscribers: {each.name}: miss_distance_m must be <= that of [alerts], {self.miss_distance_m:g}, "
                    f"because farther conjunctions become no alerts: got {each.miss_distance_m:g}"
                )
            if each.min_severity is not None and SEVERITIES.index(each.min_severity) < SEVERITIES.index(
                self.min_severity
            ):
                problems.append(
                    f"subscribers: {each.name}: min_severity must not be below that of [alerts], {self.min_severity}, "
                    f"because less severe conjunctions become no alerts: got {each.min_severity}"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self
