"""A whole catalogue's elements as columns of numbers, which can be sent to another process and made a catalogue again.

Raw arrays only, no pickled records. The copy propagates exactly as the original, to the bit. SGP4's state depends on the
exact epoch that its initialiser was given, which two ways to make a ``Satrec`` round differently (see `ElementSet`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from sgp4.api import WGS72, Satrec

from sda_ops.astro.time import Floats, Nanoseconds, utc_ns
from sda_ops.catalog.elements import MAX_SGP4_SATNUM, SGP4_EPOCH_JD, ElementSet, tle_epoch_days

Column: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float64] | npt.NDArray[np.bool_]

MU_WGS72_KM3_S2 = 398600.8
"""Identifies a record made with WGS-72: WGS-72 "old" and WGS-84 have another value (AIAA 2006-6753, section II)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ElementColumns:
    """One value per object and column, all ``(objects,)``, read-only, in the order of the element sets.

    The names are those of sgp4's record.

    Attributes:
        catalog_number: Up to nine digits.
        jdsatepoch: Epoch as sgp4 stores it: Julian date of the day, UTC.
        jdsatepochF: The fraction of that day.
        sgp4_epoch_days: Epoch that ``sgp4init`` is given: days since 1949-12-31T00:00 UTC.
        bstar: Drag term, inverse Earth radii.
        ndot: As sgp4 stores it, rad/min². Not used by SGP4.
        nddot: As sgp4 stores it, rad/min³. Not used by SGP4.
        ecco: Mean, in [0, 1).
        argpo: Mean argument of perigee, rad.
        inclo: Mean inclination, rad.
        mo: Mean anomaly, rad.
        no_kozai: Kozai's mean motion, rad/min.
        nodeo: Mean right ascension of the ascending node, rad.
        near_earth: Whether SGP4 omits lunar and solar terms (period below 225 minutes).
    """

    catalog_number: npt.NDArray[np.int64]
    jdsatepoch: Floats
    jdsatepochF: Floats  # noqa: N815 - sgp4's name
    sgp4_epoch_days: Floats
    bstar: Floats
    ndot: Floats
    nddot: Floats
    ecco: Floats
    argpo: Floats
    inclo: Floats
    mo: Floats
    no_kozai: Floats
    nodeo: Floats
    near_earth: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        arrays = self.arrays()
        problems = [
            f"{name} must be ({len(self.catalog_number)},) of {_DTYPES.get(name, np.float64).__name__}, "
            f"got {column.shape} of {column.dtype}"
            for name, column in arrays.items()
            if column.shape != (len(self.catalog_number),) or column.dtype != _DTYPES.get(name, np.float64)
        ]
        if problems:
            raise ValueError(f"ElementColumns: {'; '.join(problems)}")
        for name, column in arrays.items():
            read_only = column.view()  # the caller's array stays writable
            read_only.flags.writeable = False
            object.__setattr__(self, name, read_only)

    @classmethod
    def of(cls, element_sets: Sequence[ElementSet]) -> ElementColumns:
        """The columns of ``element_sets``.

        Raises ``ValueError`` for a record made with another gravity model than WGS-72 or in the old ('a') mode.
        """
        for element_set in element_sets:
            if element_set.satrec.mu != MU_WGS72_KM3_S2 or element_set.satrec.operationmode != "i":
                raise ValueError(
                    f"object {element_set.catalog_number}: expected WGS-72 in mode 'i', got mu "
                    f"{element_set.satrec.mu} km3/s2 in mode {element_set.satrec.operationmode!r}"
                )
        satrecs = [element_set.satrec for element_set in element_sets]
        rows = np.array(
            [
                (
                    s.jdsatepoch,
                    s.jdsatepochF,
                    s.bstar,
                    s.ndot,
                    s.nddot,
                    s.ecco,
                    s.argpo,
                    s.inclo,
                    s.mo,
                    s.no_kozai,
                    s.nodeo,
                )
                for s in satrecs
            ],
            dtype=np.float64,
        ).reshape(len(satrecs), 11)
        jd, jd_fraction, bstar, ndot, nddot, ecco, argpo, inclo, mo, no_kozai, nodeo = np.ascontiguousarray(rows.T)
        return cls(
            catalog_number=np.array([element_set.catalog_number for element_set in element_sets], dtype=np.int64),
            jdsatepoch=jd,
            jdsatepochF=jd_fraction,
            sgp4_epoch_days=np.array([_epoch_days(element_set) for element_set in element_sets], dtype=np.float64),
            bstar=bstar,
            ndot=ndot,
            nddot=nddot,
            ecco=ecco,
            argpo=argpo,
            inclo=inclo,
            mo=mo,
            no_kozai=no_kozai,
            nodeo=nodeo,
            near_earth=np.array([satrec.method == "n" for satrec in satrecs], dtype=np.bool_),
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> ElementColumns:
        """The inverse of `arrays`, without copies. Raises ``ValueError`` for other names, shapes or types."""
        expected = [column.name for column in fields(cls)]
        if set(arrays) != set(expected):
            raise ValueError(f"ElementColumns: expected the columns {expected}, got {list(arrays)}")
        return cls(**arrays)  # type: ignore[arg-type] # __post_init__ checks the type of each

    def arrays(self) -> dict[str, Column]:
        """The columns by name, in order: contiguous arrays, whose bytes can be sent directly."""
        return {column.name: getattr(self, column.name) for column in fields(self)}

    def satrecs(self) -> list[Satrec]:
        """New sgp4 records. They propagate exactly as the original ones, to the bit and with the same errors."""
        numbers = np.where(self.catalog_number <= MAX_SGP4_SATNUM, self.catalog_number, 0)
        initial_values = zip(
            numbers.tolist(),
            self.sgp4_epoch_days.tolist(),
            self.bstar.tolist(),
            self.ndot.tolist(),
            self.nddot.tolist(),
            self.ecco.tolist(),
            self.argpo.tolist(),
            self.inclo.tolist(),
            self.mo.tolist(),
            self.no_kozai.tolist(),
            self.nodeo.tolist(),
            strict=True,
        )
        satrecs = []
        for elements, jd, jd_fraction in zip(
            initial_values, self.jdsatepoch.tolist(), self.jdsatepochF.tolist(), strict=True
        ):
            satrec = Satrec()
            satrec.sgp4init(WGS72, "i", *elements)
            satrec.jdsatepoch, satrec.jdsatepochF = jd, jd_fraction
            satrecs.append(satrec)
        return satrecs

    @property
    def epoch_ns(self) -> Nanoseconds:
        """Epochs, UTC nanoseconds since the Unix epoch."""
        return utc_ns(self.jdsatepoch, self.jdsatepochF)

    def __len__(self) -> int:
        return len(self.catalog_number)


_DTYPES: dict[str, type[np.generic]] = {"catalog_number": np.int64, "near_earth": np.bool_}
"""The types of the columns that are not ``float64``."""


def _epoch_days(element_set: ElementSet) -> float:
    if element_set.sgp4_epoch_days is not None:
        return element_set.sgp4_epoch_days
    satrec = element_set.satrec
    if round(satrec.jdsatepochF * 1e8) / 1e8 == satrec.jdsatepochF:
        return tle_epoch_days(satrec)  # eight decimals of a day: almost certainly from a TLE
    days: float = (satrec.jdsatepoch - SGP4_EPOCH_JD) + satrec.jdsatepochF
    return days
