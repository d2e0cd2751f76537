"""The figures of the process in which a graph runs."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
from prometheus_client.metrics_core import Metric

from orchestrator_adapter.control_plane.families import counter, gauge


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """This process at one moment.

    Attributes:
        resident_bytes: Resident memory.
        open_fds: Open file descriptors.
        max_fds: How many may be open.
        threads: Threads, those of libraries included.
        cpu_s: Processor time since the start, user and system, seconds.
    """

    resident_bytes: int
    open_fds: int
    max_fds: int
    threads: int
    cpu_s: float

    @classmethod
    def now(cls) -> ProcessFigures:
        """The present figures. Any thread may call it."""
        process = psutil.Process()
        with process.oneshot():
            times = process.cpu_times()
            return cls(
                resident_bytes=process.memory_info().rss,
                open_fds=process.num_fds(),
                max_fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                threads=process.num_threads(),
                cpu_s=times.user + times.system,
            )


def of_the_process(figures: ProcessFigures) -> Iterator[Metric]:
    """Their metric families, under the names that Prometheus' client libraries use."""
    yield gauge(
        "process_resident_memory_bytes", "Resident memory of the process, bytes", [], [((), figures.resident_bytes)]
    )
    yield gauge("process_open_fds", "Open file descriptors of the process", [], [((), figures.open_fds)])
    yield gauge("process_max_fds", "How many file descriptors the process may open", [], [((), figures.max_fds)])
    yield gauge("process_threads", "Threads of the process", [], [((), figures.threads)])
    yield counter(
        "process_cpu_seconds_total", "Processor time that the process has used, seconds", [], [((), figures.cpu_s)]
    )
