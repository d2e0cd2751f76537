"""Observations from CCSDS Tracking Data Messages (503.0-B, versions 1 and 2), in KVN or XML.

The entries of one time tag in one segment are one observation: range, range-rate, azimuth and elevation of a radar, or
right ascension and declination of a telescope. Other content of a TDM (spacecraft ranging, frequencies, clocks, weather)
has no field in our records. It is skipped in a segment that also has usable entries; a segment without any is malformed.

**Requirements for a segment.** A ``PATH`` that ends at the one site: ``1,2,1`` (two-way) or ``2,1`` (from the object), and
``MODE = SEQUENTIAL`` or no ``MODE``, which is optional: a ``PATH`` without an index belongs to the sequential mode (table 3-3).
``TIME_SYSTEM`` UTC, TAI or GPS; a time within a leap second is rejected. Without ``TIMETAG_REF`` a tag is the time of
reception. To a tag of transmission the signal's travel time is added, so that ``sensor_timestamp`` is the arrival. A range in
range units, one with an ambiguous modulus, and one with delays that may or may not have been subtracted (3.4.15.2) are
rejected.

**Frames.** Right ascension and declination are read in EME2000 and in ICRF, ICRF1 to ICRF3 and GCRF, and used as they are. The
frame bias between EME2000 and the others is 0.023 arcseconds (IERS Conventions 2010, 5.4.4): 5 m at the geostationary belt,
0.1 m at 1,000 km. The axes of ICRF1, ICRF2, ICRF3 and GCRF agree within 0.0001 arcseconds (IERS TN 35; Charlot et al. 2020):
2 cm at the geostationary belt. Frames of date are rejected: they differ by minutes of arc.

**Corrections** (``CORRECTIONS_APPLIED = NO``) are added to the range, the Doppler and the angles, in the unit of the data
(table 3-3). Corrections of frequencies, magnitudes and cross sections concern nothing that is read. ``DATA_QUALITY = DEGRADED``
says that there are issues, but not which: the data are used with the feed's uncertainties. `decode` notes each of these.

**Conventions.** What the format leaves to agreements between agencies ("the ICD should specify": 3.5.2.3, 3.5.2.7), and
the uncertainties, which it does not have, are properties of the feed: `TdmConventions`. The tracked object's name is not
used, because correlation has to find it independently.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan, radians
from typing import Literal, TypeAlias

from sda_ops.astro.time import NS_PER_S
from sda_ops.astro.topocentric import SPEED_OF_LIGHT_M_S
from sda_ops.records.ids import observation_id
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, SourceKind, Uncertainty
from sda_ops.wire.malformed import MalformedFrame
from sda_ops.wire.tdm_segments import Entry, Segment, read_segments
from sda_ops.wire.time_tags import utc_ns_of_tag

UNAMBIGUOUS_M = 50_000_000.0
"""With a longer range modulus (one way) a range is unambiguous up to the geostationary belt at the horizon (41,700 km)."""

_INT64 = 2**63
_KM = 1_000.0  # metres

_FRAMES = ("EME2000", "GCRF", "ICRF", "ICRF1", "ICRF2", "ICRF3")
"""The reference frames (SANA registry) of right ascension and declination that are used without a conversion."""

_COMPONENT = {
    "RANGE": "range",
    "DOPPLER_INSTANTANEOUS": "rate",
    "DOPPLER_INTEGRATED": "rate",
    "ANGLE_1": "angle_1",
    "ANGLE_2": "angle_2",
}
"""The component of an observation for each keyword."""

_UNUSED_KEYWORDS = re.compile(
    r"(CARRIER_POWER|DOPPLER_COUNT|PC_N0|PR_N0|(RECEIVE|TRANSMIT)_PHASE_CT_[1-5]|RECEIVE_FREQ(_[1-5])?"
    r"|TRANSMIT_FREQ(_RATE)?_[1-5]|DOR|VLBI_DELAY|MAG|RCS|CLOCK_BIAS|CLOCK_DRIFT|STEC|TROPO_DRY|TROPO_WET"
    r"|PRESSURE|RHUMIDITY|TEMPERATURE)"
)
"""The other data keywords of 503.0-B-2, table 3-5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TdmConventions:
    """The meaning of one feed's TDMs where the format leaves it open.

    Attributes:
        range_is_round_trip: Whether ``RANGE`` on a path such as ``1,2,1`` is the length of the whole path (EISCAT's files),
            and not the distance.
        doppler_is_round_trip: Whether Doppler on such a path is the rate of the whole path, and not of the distance
            (EISCAT's files).
        doppler_sign: 1 if Doppler is positive for a receding object, as the standard's "range rate" is; -1 if it is
            positive for an approaching one (EISCAT's files).
        uncertainty: One standard deviation of each kind of component; used for the measured components.
        source_ids: Our names for sites, by participant. The default is ``tdm-<participant>``.
    """

    range_is_round_trip: bool = True
    doppler_is_round_trip: bool = False
    doppler_sign: Literal[1, -1] = 1
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    source_ids: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.doppler_sign not in (1, -1):
            raise ValueError(f"TdmConventions: doppler_sign must be 1 or -1, got {self.doppler_sign!r}")


def is_tdm(content: bytes) -> bool:
    """Whether the content begins as a TDM, in either notation."""
    head = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"CCSDS_TDM_VERS") or (head.startswith(b"<") and b"<tdm" in head)


def _ignore(_: str) -> None:
    pass


def decode(
    content: bytes, conventions: TdmConventions, *, ingest_timestamp: int, note: Callable[[str], object] = _ignore
) -> tuple[list[Observation], list[MalformedFrame]]:
    """A whole file's observations, and the parts of it that give none. Raises nothing.

    ``note`` is called with a sentence for each thing in a segment that is used, but not as its metadata may suggest: no
    ``MODE``, degraded data, a correction or a clock bias that is not applied.

    Both are in the file's order; an observation has the place of the first entry with its time tag. Entries of one segment
    that fail for the same reason are one `MalformedFrame`: its reason begins with the line of the first, its frame has the
    bytes of all. The id is made from the site's name and the text of the entries. The ``track_id`` is the segment: source,
    first time tag and the segment's number in the file.
    """
    segments, malformed = read_segments(content)
    observations: list[Observation] = []
    for segment in segments:
        observed, rejects = _observe(segment, conventions, ingest_timestamp)
        observations += observed
        for remark in _remarks(segment) if observed else ():
            note(f"TDM line {segment.line}: segment {segment.number}: {remark}")
        malformed += [_malformed(content, reason, entries) for reason, entries in rejects.items()]
    return observations, malformed


def _malformed(content: bytes, reason: str, entries: Sequence[Entry]) -> MalformedFrame:
    places = dict.fromkeys((entry.start, entry.end) for entry in entries)
    others = f" and {len(places) - 1} more" if len(places) > 1 else ""
    frame = b"".join(content[start:end] for start, end in places)
    return MalformedFrame(f"TDM line {entries[0].line}{others}: {reason}", frame)


# How a segment's metadata scale its numbers.


@dataclass(frozen=True, slots=True)
class _Scale:
    """Converts a number of the file to SI units: ``(number + correction) * factor``."""

    correction: float
    factor: float


@dataclass(frozen=True, slots=True)
class _Geometry:
    """How one segment was measured.

    Attributes:
        site: The participant that receives.
        legs: 1 for a signal from the object, 2 for a two-way signal.
        tagged_at_transmission: Whether time tags are of the transmission, and not of the reception.
        time_system: One of ``UTC``, ``TAI``, ``GPS``.
        equatorial: Whether the angles are right ascension and declination.
        scales: By keyword; the reason instead, if the keyword's numbers cannot be used.
    """

    site: str
    legs: int
    tagged_at_transmission: bool
    time_system: str
    equatorial: bool
    scales: dict[str, _Scale | str]


def _geometry(metadata: Mapping[str, str], conventions: TdmConventions) -> _Geometry:
    """Raises ``ValueError`` for a segment that cannot have an observation."""
    mode, path = metadata.get("MODE", "none"), metadata.get("PATH", "none")
    if mode.upper() != "SEQUENTIAL" and not ("MODE" not in metadata and "PATH" in metadata):
        raise ValueError(f"expected MODE SEQUENTIAL, got {mode}")
    steps = [step.strip() for step in path.split(",")]
    legs = len(steps) - 1
    if legs not in (1, 2) or steps[0] == steps[1] or (legs == 2 and steps[0] != steps[2]):  # noqa: PLR2004 - there and back
        raise ValueError(f"expected a PATH of one site and one object, such as 1,2,1 or 2,1, got {path}")
    site = metadata.get(f"PARTICIPANT_{steps[-1]}", "")
    if not site:
        raise ValueError(f"expected PARTICIPANT_{steps[-1]}, the site at the end of PATH, got none")
    time_system = metadata.get("TIME_SYSTEM", "none")
    if time_system.upper() not in ("UTC", "TAI", "GPS"):
        raise ValueError(f"expected TIME_SYSTEM UTC, TAI or GPS, got {time_system}")
    reference = metadata.get("TIMETAG_REF", "RECEIVE")
    if reference.upper() not in ("RECEIVE", "TRANSMIT"):
        raise ValueError(f"expected TIMETAG_REF RECEIVE or TRANSMIT, got {reference}")
    return _Geometry(
        site,
        legs,
        reference.upper() == "TRANSMIT",
        time_system.upper(),
        metadata.get("ANGLE_TYPE", "").upper() == "RADEC",
        {keyword: _scale(keyword, metadata, legs, conventions) for keyword in _COMPONENT},
    )


def _scale(keyword: str, metadata: Mapping[str, str], legs: int, conventions: TdmConventions) -> _Scale | str:
    try:
        if keyword == "RANGE":
            return _range_scale(metadata, legs, conventions)
        if keyword.startswith("DOPPLER"):
            return _doppler_scale(keyword, metadata, legs, conventions)
        return _angle_scale(keyword, metadata)
    except ValueError as error:
        return str(error)


def _range_scale(metadata: Mapping[str, str], legs: int, conventions: TdmConventions) -> _Scale:
    units = metadata.get("RANGE_UNITS", "km")
    if units.lower() not in ("s", "km"):
        raise ValueError(f"expected RANGE_UNITS s or km, got {units}")
    unit_m = SPEED_OF_LIGHT_M_S if units.lower() == "s" else _KM
    factor = unit_m / legs if conventions.range_is_round_trip else unit_m
    modulus_m = _number(metadata.get("RANGE_MODULUS", "0")) * factor
    if _KM < modulus_m < UNAMBIGUOUS_M:  # a kilometre or less is a placeholder, not a real modulus
        raise ValueError(f"RANGE is ambiguous: its modulus is {modulus_m / _KM:g} km, one way")
    for name, value in metadata.items():
        if name.startswith(("TRANSMIT_DELAY_", "RECEIVE_DELAY_")) and _number(value):
            raise ValueError(f"RANGE with {name} = {value}: the format does not say whether that has been subtracted")
    return _Scale(_correction(metadata, "CORRECTION_RANGE"), factor)


def _doppler_scale(keyword: str, metadata: Mapping[str, str], legs: int, conventions: TdmConventions) -> _Scale:
    if keyword == "DOPPLER_INTEGRATED" and _number(metadata.get("INTEGRATION_INTERVAL", "0")):
        reference = metadata.get("INTEGRATION_REF", "none")
        # In half a second the rate of a low object changes by tens of metres per second.
        if reference.upper() != "MIDDLE":
            raise ValueError(f"{keyword}: expected INTEGRATION_REF MIDDLE, the time of its mean rate, got {reference}")
    unit_m_s = _KM / legs if conventions.doppler_is_round_trip else _KM
    return _Scale(_correction(metadata, "CORRECTION_DOPPLER"), conventions.doppler_sign * unit_m_s)


def _angle_scale(keyword: str, metadata: Mapping[str, str]) -> _Scale:
    kind = metadata.get("ANGLE_TYPE", "none")
    if kind.upper() == "RADEC":
        frame = metadata.get("REFERENCE_FRAME", "none")
        if frame.upper() not in _FRAMES:
            raise ValueError(f"ANGLE_TYPE RADEC: expected REFERENCE_FRAME {', '.join(_FRAMES)}, got {frame}")
        for name in ("CORRECTION_ABERRATION_YEARLY", "CORRECTION_ABERRATION_DIURNAL"):
            if _correction(metadata, name):
                raise ValueError(f"{name} is not applied to the angles, and not given for each of them")
    elif kind.upper() != "AZEL":
        raise ValueError(f"expected ANGLE_TYPE AZEL or RADEC, got {kind}")
    return _Scale(_correction(metadata, f"CORRECTION_{keyword}"), radians(1.0))


def _correction(metadata: Mapping[str, str], name: str) -> float:
    """The correction that is still to be added, in the unit of the data."""
    correction = _number(metadata.get(name, "0"))
    applied = metadata.get("CORRECTIONS_APPLIED", "none")
    if not correction or applied.upper() == "YES":
        return 0.0
    if applied.upper() != "NO":
        raise ValueError(f"{name} = {correction:g}: expected CORRECTIONS_APPLIED YES or NO, got {applied}")
    return correction


_UNUSED_CORRECTIONS = ("CORRECTION_RECEIVE", "CORRECTION_TRANSMIT", "CORRECTION_MAG", "CORRECTION_RCS")


def _remarks(segment: Segment) -> Iterator[str]:
    """What a user of the segment's observations has to know."""
    metadata = segment.metadata
    if "MODE" not in metadata:
        yield "no MODE: it is read as SEQUENTIAL, to which its PATH belongs"
    if metadata.get("DATA_QUALITY", "").upper() == "DEGRADED":
        yield "DATA_QUALITY is DEGRADED: its data are used with the feed's uncertainties"
    for name in _UNUSED_CORRECTIONS:
        text = metadata.get(name, "0")
        if metadata.get("CORRECTIONS_APPLIED", "").upper() != "YES" and not _is_zero(text):
            yield f"{name} = {text[:40]} is not applied: no {name.removeprefix('CORRECTION_')} value is used"
    for keyword in sorted({entry.keyword for entry in segment.entries if entry.keyword.startswith("CLOCK_")}):
        yield f"{keyword} is not applied to its time tags"


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0.0
    except ValueError:
        return False


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not isfinite(number):
        raise ValueError(f"expected a finite number, got {text[:40]!r}")
    return number


# Entries to observations.

_Rejects: TypeAlias = dict[str, list[Entry]]
_Group: TypeAlias = dict[str, tuple[float, Entry]]
"""The measurements of one time tag by component: the value in SI units, and its entry."""


def _observe(
    segment: Segment, conventions: TdmConventions, ingest_timestamp: int
) -> tuple[list[Observation], _Rejects]:
    keywords = dict.fromkeys(entry.keyword for entry in segment.entries)
    if not keywords.keys() & _COMPONENT.keys():
        listed = ", ".join(keywords)[:200] or "no data"
        return [], {f"no usable entries in segment {segment.number}: {listed}": [segment.whole]}
    try:
        geometry = _geometry(segment.metadata, conventions)
    except ValueError as error:
        return [], {f"segment {segment.number}: {error}": [segment.whole]}
    source_id = conventions.source_ids.get(geometry.site, f"tdm-{geometry.site}")
    track_id = f"{source_id}@{segment.entries[0].tag}#{segment.number}"
    rejects: _Rejects = defaultdict(list)
    observations = []
    for tag_ns, group in _groups(segment.entries, geometry, rejects).items():
        entries = [entry for _, entry in group.values()]
        try:
            target = _target(group, equatorial=geometry.equatorial)
            timestamp_ns = _arrival_ns(tag_ns, target, geometry)
        except ValueError as error:
            rejects[str(error)] += entries
            continue
        kind: SourceKind = "optical" if isinstance(target, OpticalTarget) else "radar"
        content = "\n".join([geometry.site, *(f"{entry.keyword} {entry.tag} {entry.value}" for entry in entries)])
        observations.append(
            Observation(
                observation_id(kind, content.encode()),
                source_id,
                kind,
                timestamp_ns,
                ingest_timestamp,
                target,
                _uncertainty(target, conventions.uncertainty),
                track_id,
            )
        )
    return observations, rejects


def _groups(entries: Sequence[Entry], geometry: _Geometry, rejects: _Rejects) -> dict[int, _Group]:
    """The readable entries by time tag (UTC nanoseconds); the others go to ``rejects``."""
    groups: dict[int, _Group] = {}
    for entry in entries:
        scale = geometry.scales.get(entry.keyword)
        if scale is None:
            if not _UNUSED_KEYWORDS.fullmatch(entry.keyword):
                rejects[f"{entry.keyword[:40]!r} is not a data keyword of the standard"].append(entry)
            continue
        if isinstance(scale, str):
            rejects[scale].append(entry)
            continue
        try:
            tag_ns = utc_ns_of_tag(entry.tag, geometry.time_system)
            value = (_number(entry.value) + scale.correction) * scale.factor
        except ValueError as error:
            rejects[f"{entry.keyword}: {error}"].append(entry)
            continue
        if groups.setdefault(tag_ns, {}).setdefault(_COMPONENT[entry.keyword], (value, entry))[1] is not entry:
            rejects[f"{entry.keyword}: its time tag has a {_COMPONENT[entry.keyword]} already"].append(entry)
    for group in groups.values():
        if ("angle_1" in group) != ("angle_2" in group):
            single = "angle_1" if "angle_1" in group else "angle_2"
            rejects["ANGLE_1 or ANGLE_2 without the other at its time tag"].append(group.pop(single)[1])
    return {tag_ns: group for tag_ns, group in groups.items() if group}


def _target(group: _Group, *, equatorial: bool) -> RadarTarget | OpticalTarget:
    value = {component: si for component, (si, _) in group.items()}
    range_m, rate_m_s = value.get("range"), value.get("rate")
    angle_1, angle_2 = value.get("angle_1"), value.get("angle_2")
    if not equatorial:
        if range_m is None:
            raise ValueError("no RANGE at this time tag: a radar's observation needs one")
        return RadarTarget(range_m, rate_m_s, angle_1, angle_2)
    if angle_1 is None or angle_2 is None or range_m is not None or rate_m_s is not None:
        raise ValueError("ANGLE_TYPE RADEC: expected right ascension and declination and nothing else at this time tag")
    return OpticalTarget(angle_1, angle_2)


def _arrival_ns(tag_ns: int, target: RadarTarget | OpticalTarget, geometry: _Geometry) -> int:
    """When the signal arrived: the tag itself, or the travel time later."""
    if not geometry.tagged_at_transmission:
        return tag_ns
    range_m = target.range_m if isinstance(target, RadarTarget) else None
    if range_m is None:
        raise ValueError("TIMETAG_REF TRANSMIT without a RANGE: the time of arrival is unknown")
    travel_ns = geometry.legs * range_m / SPEED_OF_LIGHT_M_S * NS_PER_S
    if not -_INT64 <= tag_ns + travel_ns < _INT64:
        raise ValueError("expected an arrival before 2262: the range is impossible")
    return tag_ns + round(travel_ns)


def _uncertainty(target: RadarTarget | OpticalTarget, given: Uncertainty) -> Uncertainty:
    if isinstance(target, OpticalTarget):
        return Uncertainty(sigma_angle_rad=given.sigma_angle_rad)
    return Uncertainty(
        given.sigma_range_m,
        None if target.range_rate_m_s is None else given.sigma_range_rate_m_s,
        None if target.azimuth_rad is None else given.sigma_angle_rad,
    )
