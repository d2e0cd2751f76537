"""The settings of ``sda-ingest``; ``flows.settings.load`` reads them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from flows.settings.sections import (
    ControlPlaneSettings,
    DeadLetterSettings,
    DedupSettings,
    EventLogSettings,
    IslSettings,
    OpticalSettings,
    PrefectSettings,
    RadarSettings,
    Section,
    ShutdownSettings,
    ValidationSettings,
    check_shared_ports,
)


class IngestSettings(Section):
    """All settings of ``sda-ingest``."""

    radars: list[RadarSettings] = Field(
        default_factory=lambda: [RadarSettings(name="radar-01", port=9201), RadarSettings(name="radar-02", port=9202)],
        min_length=1,
        description="The radar arrays",
    )
    optical: OpticalSettings = OpticalSettings()
    isl: IslSettings = IslSettings()
    validation: ValidationSettings = ValidationSettings()
    dedup: DedupSettings = DedupSettings()
    event_log: EventLogSettings = EventLogSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    control_plane: ControlPlaneSettings = ControlPlaneSettings()
    prefect: PrefectSettings = PrefectSettings()
    report: Path = Field(Path("run/sda-ingest/report.json"), description="The file of the run's report")

    @model_validator(mode="after")
    def _ports_differ(self) -> IngestSettings:
        check_shared_ports("radars", "udp", self.radars)
        return self
