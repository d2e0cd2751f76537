"""What is known of the times of a feed: ``docs/event-time.md`` says what follows from it."""

from __future__ import annotations

from pydantic import Field

from flows.settings.sections import PositiveSeconds, Section

_GROUND_CLOCK_ERROR_S = 0.011  # NTP: 10 ms, and 1 ms for each minute since it was set, at its usual 64 s
_ONBOARD_CLOCK_ERROR_S = 0.36  # 100 microseconds for each second since it was set, an hour ago


class FeedTimeSettings(Section):
    """How late observations of a feed are, and how exact its clocks. What is not set follows from the kind of the feed."""

    max_lateness_s: PositiveSeconds | None = Field(
        None,
        description="From a measurement to its arrival, at most, seconds (default: radar 0.1, optical 30 or one poll with its "
        "retries if that is longer, ISL 10); windows wait for so long",
    )
    clock_error_s: float | None = Field(
        None,
        ge=0,
        le=3_600,
        description="The largest difference between the sensors' clocks and this machine's, seconds (default: radar and "
        "optical 0.011, ISL 0.36); where it is set, it also widens the gate of correlation along the object's motion",
    )
    idle_after_s: PositiveSeconds | None = Field(
        None,
        description="Without contact for so long, the feed is not waited for, seconds (default: radar 15, optical 45 or two "
        "polls with their retries, ISL 30)",
    )

    @property
    def lateness_s(self) -> float:
        """``max_lateness_s``, or its default."""
        return self._default_lateness_s if self.max_lateness_s is None else self.max_lateness_s

    @property
    def error_s(self) -> float:
        """``clock_error_s``, or its default."""
        return self._default_error_s if self.clock_error_s is None else self.clock_error_s

    @property
    def idle_s(self) -> float:
        """``idle_after_s``, or its default."""
        return self._default_idle_s if self.idle_after_s is None else self.idle_after_s

    @property
    def _default_lateness_s(self) -> float:
        return 0.1

    @property
    def _default_error_s(self) -> float:
        return _GROUND_CLOCK_ERROR_S

    @property
    def _default_idle_s(self) -> float:
        return 15.0


class ArchiveTimeSettings(FeedTimeSettings):
    """Those of an archive: its own settings say how long a poll may take."""

    @property
    def longest_poll_s(self) -> float:
        """From one poll to the end of the next one, with the longest delay of a retry, seconds."""
        raise NotImplementedError

    @property
    def _default_lateness_s(self) -> float:
        return max(30.0, self.longest_poll_s)

    @property
    def _default_idle_s(self) -> float:
        return max(45.0, 2 * self.longest_poll_s)


class RingTimeSettings(FeedTimeSettings):
    """Those of satellites: their clocks run free between two contacts with the ground."""

    @property
    def _default_lateness_s(self) -> float:
        return 10.0

    @property
    def _default_error_s(self) -> float:
        return _ONBOARD_CLOCK_ERROR_S

    @property
    def _default_idle_s(self) -> float:
        return 30.0
