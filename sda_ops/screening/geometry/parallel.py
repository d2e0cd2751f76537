"""Named tuples of arrays of one length: some of their rows, and several as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_Record = TypeVar("_Record", bound=tuple[Any, ...])


def chosen(record: _Record, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> _Record:
    """These rows of every array; rows are the last axis."""
    make: Any = type(record)
    result: _Record = make(*(array[..., which] for array in record))
    return result


def joined(records: Sequence[_Record]) -> _Record:
    """One after the other. There must be one at least."""
    make: Any = type(records[0])
    result: _Record = make(*(np.concatenate(arrays, axis=-1) for arrays in zip(*records, strict=True)))
    return result
