"""Screenings and options as named arrays of numbers, and back, without pickle: for worker processes and for files.

The round trip is exact, to the bit. It knows nothing of workers or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from sda_ops.screening.approaches import Approaches, EndedObject, Screening, SlowPairs, Statistics

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

_Record = TypeVar("_Record")
_Columns = TypeVar("_Columns", Approaches, SlowPairs)

_HEADER = "header"
_APPROACHES = "approaches"
_SLOW_PAIRS = "slow_pairs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """A `Screening` without its columns."""

    start_ns: int
    end_ns: int
    miss_distance_m: float
    ended: tuple[EndedObject, ...]
    statistics: Statistics


def arrays_of(screening: Screening) -> dict[str, npt.NDArray[Any]]:
    """A screening as arrays, 40 bytes for each close approach. They share memory with the screening."""
    header = _Header(
        start_ns=screening.start_ns,
        end_ns=screening.end_ns,
        miss_distance_m=screening.miss_distance_m,
        ended=screening.ended,
        statistics=screening.statistics,
    )
    return {
        _HEADER: bytes_of(header),
        **{f"{_APPROACHES}.{name}": column for name, column in _columns(screening.approaches).items()},
        **{f"{_SLOW_PAIRS}.{name}": column for name, column in _columns(screening.slow_pairs).items()},
    }


def screening_of(arrays: Arrays) -> Screening:
    """The inverse of `arrays_of`. Raises ``ValueError`` for arrays that it has not made."""
    if _HEADER not in arrays:
        raise ValueError(f"expected a screening, got the arrays {sorted(arrays)}")
    header = record_of(arrays[_HEADER], _Header)
    return Screening(
        start_ns=header.start_ns,
        end_ns=header.end_ns,
        miss_distance_m=header.miss_distance_m,
        approaches=_from_columns(Approaches, _APPROACHES, arrays),
        slow_pairs=_from_columns(SlowPairs, _SLOW_PAIRS, arrays),
        ended=header.ended,
        statistics=header.statistics,
    )


def bytes_of(record: object) -> npt.NDArray[np.uint8]:
    """A dataclass of numbers, texts and tuples as MessagePack."""
    return np.frombuffer(msgspec.msgpack.encode(record, enc_hook=_plain), np.uint8)


def record_of(array: npt.NDArray[np.uint8], kind: type[_Record]) -> _Record:
    """The inverse of `bytes_of`. Raises ``ValueError``."""
    try:
        return msgspec.msgpack.decode(array.tobytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{kind.__name__.strip('_')}: {error}") from error


def digest_of(arrays: Arrays) -> str:
    """32 hexadecimal digits that identify the content of these arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _columns(columns: Approaches | SlowPairs) -> dict[str, npt.NDArray[Any]]:
    return {column.name: getattr(columns, column.name) for column in fields(columns)}


def _from_columns(kind: type[_Columns], prefix: str, arrays: Arrays) -> _Columns:
    names = [column.name for column in fields(kind)]
    if missing := [name for name in names if f"{prefix}.{name}" not in arrays]:
        raise ValueError(f"{prefix}: expected the columns {names}, {missing} are missing")
    columns = {name: arrays[f"{prefix}.{name}"] for name in names}
    if len(shapes := {column.shape for column in columns.values()}) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"{prefix}: expected columns of one length, got the shapes {sorted(shapes)}")
    return kind(**columns)


def _plain(value: object) -> object:
    """A scalar of numpy as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"expected numbers and texts, got {type(value).__name__}")
