"""The settings of windows by event time: how observations of one object are combined, and how long they are waited for."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from flows.settings.sections import PositiveInt, PositiveSeconds, Section
from sda_ops.correlate.fuse import FusionWindows

_MAX_LATENESS_S = 7 * 86_400.0


class EventTimeSettings(Section):
    """Which observations of one object belong together, by the times at which the sensors measured, and what late ones change."""

    window_s: PositiveSeconds = Field(
        2.0, description="Observations of one object with less time between them are in one window, seconds"
    )
    longest_window_s: PositiveSeconds = Field(
        30.0, description="A window is not longer, seconds; an observation so long after the first begins a new one"
    )
    allowed_lateness_s: float = Field(
        5.0,
        ge=0,
        le=_MAX_LATENESS_S,
        description="How long after the end of a window, in event time, a late observation still changes it, seconds",
    )
    late: Literal["count", "dead_letter"] = Field(
        "count",
        description="What happens to observations that are later: their correlations are stored and counted; dead_letter: "
        "and a dead letter has them, too",
    )
    max_held: PositiveInt = Field(
        1_000_000,
        le=100_000_000,
        description="The most observations that wait in windows; more of them close the oldest window early",
    )

    @property
    def windows(self) -> FusionWindows:
        """The windows of one object's correlations."""
        return FusionWindows(
            gap=timedelta(seconds=self.window_s),
            longest=timedelta(seconds=self.longest_window_s),
            allowed_lateness=timedelta(seconds=self.allowed_lateness_s),
            late=self.late,
            max_held=self.max_held,
        )

    @model_validator(mode="after")
    def _longest_is_not_shorter(self) -> EventTimeSettings:
        if self.longest_window_s < self.window_s:
            raise ValueError(f"longest_window_s must be >= window_s = {self.window_s:g}, got {self.longest_window_s:g}")
        return self
