"""Small replay files, at seconds after 2019-05-01T21:32:30Z."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sda_ops.records.observation import Observation

FIRST_NS = 1_556_746_350_000_000_000  # 2019-05-01T21:32:30Z


def tdm(path: Path, *seconds: float, participant: str = "HILL") -> Path:
    """A TDM with a range at each of these seconds after 2019-05-01T21:32:30Z."""
    data = "".join(f"RANGE = 2019-05-01T21:32:{30 + s:09.6f} {1_000 + s}\n" for s in seconds)
    path.write_text(
        "CCSDS_TDM_VERS = 1.0\nMETA_START\nTIME_SYSTEM = UTC\nMODE = SEQUENTIAL\nPATH = 1,2,1\nRANGE_UNITS = km\n"
        f"PARTICIPANT_1 = {participant}\nPARTICIPANT_2 = SAT\nMETA_STOP\nDATA_START\n{data}DATA_STOP\n"
    )
    return path


def iod(path: Path, *seconds: int, extra: str = "") -> Path:
    """IOD lines at each of these seconds after 2019-05-01T21:32:30Z."""
    lines = "".join(f"37386 11 014A   4172 E 201905012132{30 + s:02}000 17 25 2008223+702585 37 S\n" for s in seconds)
    path.write_text(lines + extra)
    return path


def offsets_s(items: Sequence[Observation]) -> list[float]:
    return [(item.sensor_timestamp - FIRST_NS) / 1e9 for item in items]
