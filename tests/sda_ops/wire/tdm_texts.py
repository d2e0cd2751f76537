"""TDM texts for tests, in both notations, and what decoding them gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sda_ops.records.observation import Observation, RadarTarget, Uncertainty
from sda_ops.wire.tdm import TdmConventions, decode

INGEST = 1_790_000_000_000_000_001


C_M_S = 299_792_458.0


NOON_NS = 1_473_163_200_000_000_000  # 2016-09-06T12:00:00Z


SIGMAS = Uncertainty(sigma_range_m=30.0, sigma_range_rate_m_s=2.0, sigma_angle_rad=0.001)


PLAIN = TdmConventions(uncertainty=SIGMAS)


RADAR = {
    "TIME_SYSTEM": "UTC",
    "PARTICIPANT_1": "HILL",
    "PARTICIPANT_2": "2002-009A",
    "MODE": "SEQUENTIAL",
    "PATH": "1,2,1",
    "RANGE_UNITS": "s",
    "ANGLE_TYPE": "AZEL",
}


TELESCOPE = RADAR | {"PATH": "2,1", "ANGLE_TYPE": "RADEC", "REFERENCE_FRAME": "EME2000"}


DATA = (
    "RANGE = 2016-09-06T12:00:00 0.01",
    "DOPPLER_INSTANTANEOUS = 2016-09-06T12:00:00 -1.5",
    "ANGLE_1 = 2016-09-06T12:00:00 90",
    "ANGLE_2 = 2016-09-06T12:00:00 45",
)


DIRECTION = ("ANGLE_1 = 2016-09-06T12:00:00 200", "ANGLE_2 = 2016-09-06T12:00:00 -30")


A_HUNDRED_METRES_PER_SECOND = 100.0


EISCAT = "eiscat_envisat_2016-09-06/2002-009A-2016-09-06_08-27-08.tdm"


def real(path: str) -> Path:
    root = Path(os.environ.get("SDA_DATA_DIR", Path(__file__).parents[3] / "../shared/data"))
    if not (root / path).exists():
        pytest.skip(f"real data absent: no {root / path} (set SDA_DATA_DIR)")
    return root / path


def segment(metadata: dict[str, str], *data: str) -> str:
    head = "".join(f"{keyword} = {value}\n" for keyword, value in metadata.items())
    return f"META_START\n{head}META_STOP\nDATA_START\n" + "".join(f"{line}\n" for line in data) + "DATA_STOP\n"


def kvn(metadata: dict[str, str], *data: str) -> bytes:
    return ("CCSDS_TDM_VERS = 2.0\n" + segment(metadata, *data)).encode()


def xml(metadata: dict[str, str], *data: str) -> bytes:
    head = "".join(f"<{keyword}>{value}</{keyword}>\n" for keyword, value in metadata.items())
    split = (line.replace("=", " ").split() for line in data)
    body = "".join(f"<observation><EPOCH>{t}</EPOCH><{k}>{v}</{k}></observation>\n" for k, t, v in split)
    return (
        '<?xml version="1.0"?>\n<tdm id="CCSDS_TDM_VERS" version="2.0">\n<header><ORIGINATOR>us</ORIGINATOR></header>\n<body>'
        f"<segment>\n<metadata><COMMENT>a comment</COMMENT>\n{head}</metadata>\n<data>{body}</data>\n</segment></body></tdm>\n"
    ).encode()


def good(content: bytes, conventions: TdmConventions = PLAIN) -> list[Observation]:
    observations, malformed = decode(content, conventions, ingest_timestamp=INGEST)
    assert [str(each) for each in malformed] == []
    return observations


def decode_one(content: bytes, conventions: TdmConventions = PLAIN) -> Observation:
    (observation,) = good(content, conventions)
    return observation


def radar_of(content: bytes, conventions: TdmConventions = PLAIN) -> RadarTarget:
    target = decode_one(content, conventions).target
    assert isinstance(target, RadarTarget)
    return target


def reasons_of(content: bytes, conventions: TdmConventions = PLAIN) -> list[str]:
    _, malformed = decode(content, conventions, ingest_timestamp=INGEST)
    return [each.reason for each in malformed]
