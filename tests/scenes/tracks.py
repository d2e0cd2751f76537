"""Real tracks, correlated by the pipeline's operators against the real catalogue as clutter; and tables of the results.

For tests and for the benchmark that prints the same figures. The catalogue is of 2026, the tracks of 2016 and 2019. So the
epochs are shifted back by whole days; otherwise every element set would be too old to be used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
from sgp4.io import compute_checksum

from orchestrator_adapter import source_of
from orchestrator_adapter.testing import CollectSink, chain, run_graph
from sda_ops.astro.sites import Site
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, Nanoseconds
from sda_ops.catalog import ElementColumns, ElementSet, parse_catalog, read_catalog
from sda_ops.correlate.associate import Associator
from sda_ops.correlate.operator import correlate
from sda_ops.correlate.sensors import Sensor
from sda_ops.propagation.operator import Prediction, propagate
from sda_ops.propagation.pool import InlinePropagator
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.records.correlation import Correlation
from sda_ops.records.observation import Observation, Uncertainty
from sda_ops.wire import iod, tdm
from tests.helpers.support import SDA_DATA_DIR

CATALOG = SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv"
EISCAT_FOLDER = SDA_DATA_DIR / "eiscat_envisat_2016-09-06"
NOSS_FOLDER = SDA_DATA_DIR / "optical_noss_2019"
ABSENT = [str(path) for path in (CATALOG, EISCAT_FOLDER, NOSS_FOLDER) if not path.exists()]
"""The files of the real data that are absent."""

ENVISAT, NOSS_3_5_A = 27386, 37386

EISCAT_UHF = Site.from_degrees(
    "EISCAT UHF, Tromsø", latitude_deg=69.58649229, longitude_deg=19.22592538, height_m=85.554
)


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A catalogue for `sda_ops.propagation.operator.propagate`."""

    number: int
    columns: ElementColumns


class FixedCatalog:
    """A catalogue that never changes."""

    def __init__(self, columns: ElementColumns) -> None:
        self.current = Version(1, columns)

    async def load(self) -> None:
        pass


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """Observations of one object by one or several sensors.

    Attributes:
        observations: In the order of their file.
        sensors: The sensors and their sites.
        clutter: All other objects.
        object: The element set of the observed object.
    """

    observations: Sequence[Observation]
    sensors: Mapping[str, Sensor]
    clutter: ElementColumns
    object: ElementColumns

    async def correlated(self, *, catalogued: bool = True) -> list[Correlation]:
        """One for each observation; ``catalogued`` says whether the catalogue has the object."""
        columns = joined(self.clutter, self.object) if catalogued else self.clutter
        sink = CollectSink()
        event = await run_graph(
            chain(
                source_of(self.observations),
                propagate(
                    FixedCatalog(columns), InlinePropagator(engine="sgp4"), Prediction(errors=ElementSetErrors())
                ),
                correlate(Associator(self.sensors)),
                sink,
            )
        )
        assert event.figures.ledger_holds
        return sink.items


def envisat() -> Track:
    """EISCAT's 913 ranges and range-rates of ENVISAT, with the element set of the nearest epoch."""
    sigma = Uncertainty(sigma_range_m=100.0, sigma_range_rate_m_s=25.0)
    observations, malformed = tdm.decode(
        (EISCAT_FOLDER / "2002-009A-2016-09-06_08-27-08.tdm").read_bytes(),
        tdm.TdmConventions(doppler_sign=-1, uncertainty=sigma),
        ingest_timestamp=0,
    )
    assert not malformed
    element_sets = envisat_sets()
    seen_ns = observations[0].sensor_timestamp
    columns = ElementColumns.of(element_sets)
    nearest = int(np.argmin(np.abs(columns.epoch_ns - seen_ns)))
    return Track(
        observations,
        {observations[0].source_id: Sensor(EISCAT_UHF)},
        catalog_at(seen_ns),
        ElementColumns.of(element_sets[nearest : nearest + 1]),
    )


def envisat_sets() -> tuple[ElementSet, ...]:
    """ENVISAT's five element sets of those days, in the order of their epochs."""
    text = (EISCAT_FOLDER / "tles.txt").read_text(encoding="utf-8")
    return parse_catalog(text[: text.index("IRIDIUM")], file="tles.txt").element_sets


def noss() -> Track:
    """Amateurs' 29 positions of NOSS 3-5 (A) on seven nights, with an element set from before the first night."""
    observations, malformed = iod.decode((NOSS_FOLDER / "tlegen_37386.dat").read_bytes(), ingest_timestamp=0)
    assert not malformed
    sites = iod.read_sites((NOSS_FOLDER / "tlegen_sites.txt").read_text(encoding="utf-8"))
    _, line1, line2 = (NOSS_FOLDER / "tlegen_37386.txt").read_text(encoding="utf-8").splitlines()
    return Track(
        observations,
        {f"optical-{station}": Sensor(site) for station, site in sites.items()},
        catalog_at(observations[0].sensor_timestamp),
        ElementColumns.of([ElementSet.from_tle(_with_checksum(line1), _with_checksum(line2))]),
    )


def catalog_at(timestamp_ns: int) -> ElementColumns:
    """The real catalogue, its epochs shifted by whole days so that their median is nearest to this time."""
    columns = _catalog()
    days = round((timestamp_ns - int(np.median(columns.epoch_ns))) / NS_PER_DAY)
    return replace(columns, jdsatepoch=columns.jdsatepoch + days, sgp4_epoch_days=columns.sgp4_epoch_days + days)


@cache
def _catalog() -> ElementColumns:
    return ElementColumns.of(read_catalog(CATALOG).element_sets)


def joined(first: ElementColumns, second: ElementColumns) -> ElementColumns:
    """Both catalogues, in this order."""
    more = second.arrays()
    both: dict[str, Any] = {name: np.concatenate((column, more[name])) for name, column in first.arrays().items()}
    return ElementColumns.from_arrays(both)


def _with_checksum(line: str) -> str:
    """Add the checksum: the file's lines have blanks instead of element set numbers and checksums."""
    return f"{line.ljust(68)[:68]}{compute_checksum(line.ljust(69))}"


@dataclass(frozen=True, slots=True)
class RangeTable:
    """Mean and standard deviation of a track's residuals (measured minus predicted): range (km) and range-rate (km/s)."""

    points: int
    mean_km: float
    scatter_km: float
    mean_km_s: float
    scatter_km_s: float

    @classmethod
    def of(cls, correlations: Sequence[Correlation]) -> RangeTable:
        residuals = [found.residuals for found in correlations if found.residuals is not None]
        pairs = np.array([(each.range_m, each.range_rate_m_s) for each in residuals], dtype=np.float64)
        mean, scatter = np.mean(pairs, axis=0) / 1e3, np.std(pairs, axis=0) / 1e3
        return cls(len(pairs), float(mean[0]), float(scatter[0]), float(mean[1]), float(scatter[1]))

    def __str__(self) -> str:
        return (
            f"{self.points} points: range {self.mean_km:+.3f} ± {self.scatter_km:.3f} km, "
            f"range-rate {self.mean_km_s:+.4f} ± {self.scatter_km_s:.4f} km/s"
        )


@dataclass(frozen=True, slots=True)
class Night:
    """The distances of one night's positions from the predictions, in order.

    Attributes:
        date: UTC.
        after_epoch_days: Age of the element set at the first position.
        separations_deg: Great-circle distances.
    """

    date: str
    after_epoch_days: float
    separations_deg: tuple[float, ...]

    def __str__(self) -> str:
        separations = " ".join(f"{separation:.3f}" for separation in self.separations_deg)
        return f"{self.date}  {self.after_epoch_days:4.1f} days after epoch:  {separations}"


def nights_of(correlations: Sequence[Correlation], epoch_ns: Nanoseconds) -> list[Night]:
    """The positions of each day."""
    by_date: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for found in correlations:
        assert found.residuals is not None
        apart_rad = np.hypot(found.residuals.right_ascension_rad or 0.0, found.residuals.declination_rad or 0.0)
        date = datetime.fromtimestamp(found.sensor_timestamp // NS_PER_S, UTC).date().isoformat()
        by_date[date].append((found.sensor_timestamp, float(np.rad2deg(apart_rad))))
    return [
        Night(date, (of_night[0][0] - int(epoch_ns[0])) / NS_PER_DAY, tuple(apart_deg for _, apart_deg in of_night))
        for date, of_night in sorted(by_date.items())
    ]
